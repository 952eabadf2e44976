// Device memory with made-up pages, and times on a stream. Internal to bench/.
#pragma once

#include <algorithm>
#include <functional>
#include <memory>
#include <vector>

#include "pmkvq/research/bench/measurements.h"
#include "pmkvq/tensor/device/buffer.h"
#include "pmkvq/tensor/device/captured_work.h"
#include "pmkvq/tensor/device/stream.h"

namespace pmkvq::internal {

// Fills device memory with copies of the pattern.
void FillWithPattern(Stream& stream, std::byte* target, size_t num_bytes,
                     const std::vector<std::byte>& pattern);

// Patterns: random codes; F16 values of a normal distribution; (min, range) of 128 tokens each.
std::vector<std::byte> RandomCodes(size_t num_bytes);
std::vector<std::byte> NormalHalves(size_t num_bytes, float deviation);
std::vector<std::byte> RandomMetadata(size_t num_bytes);

// Memory of the device with `values`.
template <class T>
std::unique_ptr<Buffer> UploadValues(Stream& stream, const std::vector<T>& values) {
  auto buffer = std::make_unique<Buffer>(stream.device(), values.size() * sizeof(T));
  CopyToDevice(stream, buffer->data(), values.data(), buffer->num_bytes());
  stream.Synchronize();
  return buffer;
}

// Microseconds that the device takes for what `launch` puts on the stream.
double TimeOnStream(Stream& stream, const std::function<void()>& launch);

// GB/s of copies within the device, read plus written: one sample per Measure.
class CopyCeiling {
 public:
  explicit CopyCeiling(DeviceId device);
  void Measure(Stream& stream);
  const Measurements& gb_per_s() const { return gb_per_s_; }

 private:
  Buffer memory_;
  Measurements gb_per_s_;
};

}  // namespace pmkvq::internal
