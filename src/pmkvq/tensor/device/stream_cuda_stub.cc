#include "pmkvq/base/check.h"
#include "pmkvq/tensor/device/stream.h"

namespace pmkvq {
namespace {

constexpr DeviceId kCuda{Device::kCuda, 0};

// Without a stream, an event or pinned memory nobody can come here.
[[noreturn]] void Unreachable() {
  PMKVQ_CHECK_MSG(false, "there is no stream of this device");
  internal::ThrowNoBackend(kCuda, "a stream");
}

}  // namespace

Stream::Stream(DeviceId device) : device_(device) { internal::ThrowNoBackend(device, "a stream"); }
Stream::~Stream() = default;
void Stream::Synchronize() { Unreachable(); }
void Stream::Wait(const StreamEvent& /*event*/) { Unreachable(); }

StreamEvent::StreamEvent(DeviceId device) : device_(device) {
  internal::ThrowNoBackend(device, "an event");
}
StreamEvent::~StreamEvent() = default;
void StreamEvent::Record(Stream& /*stream*/) { Unreachable(); }
void StreamEvent::Synchronize() { Unreachable(); }
double MicrosecondsBetween(const StreamEvent& /*begin*/, const StreamEvent& /*end*/) {
  Unreachable();
}

PinnedBuffer::PinnedBuffer(DeviceId device, size_t num_bytes)
    : device_(device), num_bytes_(num_bytes) {
  internal::ThrowNoBackend(device, "pinned memory");
}
PinnedBuffer::~PinnedBuffer() = default;

void CopyToDevice(Stream&, std::byte*, const void*, size_t) { Unreachable(); }
void CopyToHost(Stream&, void*, const std::byte*, size_t) { Unreachable(); }
void CopyOnDevice(Stream&, std::byte*, const std::byte*, size_t) { Unreachable(); }
void FillOnDevice(Stream&, std::byte*, uint8_t, size_t) { Unreachable(); }

}  // namespace pmkvq
