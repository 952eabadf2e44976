#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include "pmkvq/base/error.h"
#include "pmkvq/tensor/device/cuda_runtime.h"
#include "pmkvq/tensor/device/stream.h"

namespace pmkvq {
namespace internal {

void CheckCuda(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  throw DeviceError("cuda", fmt::format("{}: {} ({})", what, cudaGetErrorString(status),
                                        cudaGetErrorName(status)));
}

CudaDeviceScope::CudaDeviceScope(DeviceId device) {
  CheckCuda(cudaGetDevice(&earlier_), "asking for the thread's device");
  CheckCuda(cudaSetDevice(device.index), "choosing a device");
}

CudaDeviceScope::~CudaDeviceScope() { static_cast<void>(cudaSetDevice(earlier_)); }

}  // namespace internal

using internal::CheckCuda;
using internal::CudaDeviceScope;

Stream::Stream(DeviceId device) : device_(device) {
  const CudaDeviceScope scope(device);
  CheckCuda(cudaStreamCreateWithFlags(&handle_, cudaStreamNonBlocking), "making a stream");
}

Stream::~Stream() { static_cast<void>(cudaStreamDestroy(handle_)); }

void Stream::Synchronize() { CheckCuda(cudaStreamSynchronize(handle_), "work on the device"); }

void Stream::Wait(const StreamEvent& event) {
  CheckCuda(cudaStreamWaitEvent(handle_, event.handle()), "waiting for an event");
}

StreamEvent::StreamEvent(DeviceId device) : device_(device) {
  const CudaDeviceScope scope(device);
  CheckCuda(cudaEventCreate(&handle_), "making an event");
}

StreamEvent::~StreamEvent() { static_cast<void>(cudaEventDestroy(handle_)); }

void StreamEvent::Record(Stream& stream) {
  CheckCuda(cudaEventRecord(handle_, stream.handle()), "recording an event");
}

void StreamEvent::Synchronize() { CheckCuda(cudaEventSynchronize(handle_), "work on the device"); }

double MicrosecondsBetween(const StreamEvent& begin, const StreamEvent& end) {
  float milliseconds = 0.0f;
  CheckCuda(cudaEventElapsedTime(&milliseconds, begin.handle(), end.handle()),
            "the time between events");
  return 1e3 * static_cast<double>(milliseconds);
}

PinnedBuffer::PinnedBuffer(DeviceId device, size_t num_bytes)
    : device_(device), num_bytes_(num_bytes) {
  const CudaDeviceScope scope(device);
  void* memory = nullptr;
  if (num_bytes > 0) CheckCuda(cudaMallocHost(&memory, num_bytes), "allocating pinned memory");
  data_ = static_cast<std::byte*>(memory);
}

PinnedBuffer::~PinnedBuffer() {
  if (data_ != nullptr) static_cast<void>(cudaFreeHost(data_));
}

void CopyToDevice(Stream& stream, std::byte* target, const void* source, size_t num_bytes) {
  CheckCuda(cudaMemcpyAsync(target, source, num_bytes, cudaMemcpyHostToDevice, stream.handle()),
            "copying to the device");
}

void CopyToHost(Stream& stream, void* target, const std::byte* source, size_t num_bytes) {
  CheckCuda(cudaMemcpyAsync(target, source, num_bytes, cudaMemcpyDeviceToHost, stream.handle()),
            "copying to the host");
}

void CopyOnDevice(Stream& stream, std::byte* target, const std::byte* source, size_t num_bytes) {
  CheckCuda(cudaMemcpyAsync(target, source, num_bytes, cudaMemcpyDeviceToDevice, stream.handle()),
            "copying on the device");
}

void FillOnDevice(Stream& stream, std::byte* target, uint8_t value, size_t num_bytes) {
  CheckCuda(cudaMemsetAsync(target, value, num_bytes, stream.handle()), "filling memory");
}

}  // namespace pmkvq
