#include "pmkvq/research/bench/cuda_memory.h"

#include <cstring>
#include <random>

#include "pmkvq/base/float16.h"

namespace pmkvq::internal {
namespace {

constexpr size_t kCopiedBytes = size_t{2} << 30;  // Each way.

void PutHalf(std::vector<std::byte>& bytes, size_t index, float value) {
  const F16 half = ToF16(value);
  std::memcpy(bytes.data() + 2 * index, &half, sizeof(half));
}

}  // namespace

void FillWithPattern(Stream& stream, std::byte* target, size_t num_bytes,
                     const std::vector<std::byte>& pattern) {
  size_t filled = std::min(num_bytes, pattern.size());
  CopyToDevice(stream, target, pattern.data(), filled);
  while (filled < num_bytes) {
    // Whole patterns, so that their period stays.
    const size_t count = std::min(filled, num_bytes - filled);
    CopyOnDevice(stream, target + filled, target, count);
    filled += count;
  }
  stream.Synchronize();
}

std::vector<std::byte> RandomCodes(size_t num_bytes) {
  std::mt19937 random(1);
  std::vector<std::byte> bytes(num_bytes);
  for (size_t i = 0; i + 4 <= num_bytes; i += 4) {
    const auto word = static_cast<uint32_t>(random());
    std::memcpy(bytes.data() + i, &word, sizeof(word));
  }
  return bytes;
}

std::vector<std::byte> NormalHalves(size_t num_bytes, float deviation) {
  std::mt19937 random(2);
  std::normal_distribution<float> normal(0.0f, deviation);
  std::vector<std::byte> bytes(num_bytes);
  for (size_t i = 0; 2 * i < num_bytes; ++i) PutHalf(bytes, i, normal(random));
  return bytes;
}

std::vector<std::byte> RandomMetadata(size_t num_bytes) {
  std::mt19937 random(3);
  std::uniform_real_distribution<float> uniform;
  std::vector<std::byte> bytes(num_bytes);
  for (size_t i = 0; 2 * i < num_bytes; ++i) {
    const float u = uniform(random);
    PutHalf(bytes, i, i / 128 % 2 == 1 ? 4.0f + 2.5f * u : -3.2f + u);
  }
  return bytes;
}

double TimeOnStream(Stream& stream, const std::function<void()>& launch) {
  StreamEvent begin(stream.device());
  StreamEvent end(stream.device());
  begin.Record(stream);
  launch();
  end.Record(stream);
  end.Synchronize();
  return MicrosecondsBetween(begin, end);
}

CopyCeiling::CopyCeiling(DeviceId device) : memory_(device, 2 * kCopiedBytes) {}

void CopyCeiling::Measure(Stream& stream) {
  const double us = TimeOnStream(stream, [&] {
    CopyOnDevice(stream, memory_.data() + kCopiedBytes, memory_.data(), kCopiedBytes);
  });
  gb_per_s_.Add(2.0 * static_cast<double>(kCopiedBytes) / us * 1e-3);
}

}  // namespace pmkvq::internal
