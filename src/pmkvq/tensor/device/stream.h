// Work on a device in order: streams, events, copies between the host and a device.
//
// A stream runs what is launched on it one after the other, while the host goes on. Errors of such
// work show at the next Synchronize as DeviceError, and end every later call on the device: whoever
// catches one must not use the device again.
//
// Threads: an object is used by one thread at a time. Everything here throws Unsupported in a
// program without CUDA, and DeviceError when the device fails.
#pragma once

#include <cstddef>
#include <cstdint>

#include "pmkvq/tensor/device/device.h"

// CUDA's own types, so that no header of ours includes one of CUDA's.
struct CUstream_st;
struct CUevent_st;

namespace pmkvq {

class StreamEvent;

class Stream {
 public:
  explicit Stream(DeviceId device);
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  // Waits until all work is done. Throws the error of the work, if it had one.
  void Synchronize();
  // Work that is launched from now on waits for the event.
  void Wait(const StreamEvent& event);

  DeviceId device() const { return device_; }
  CUstream_st* handle() const { return handle_; }

 private:
  DeviceId device_;
  CUstream_st* handle_ = nullptr;
};

// A point in a stream.
class StreamEvent {
 public:
  explicit StreamEvent(DeviceId device);
  ~StreamEvent();
  StreamEvent(const StreamEvent&) = delete;
  StreamEvent& operator=(const StreamEvent&) = delete;

  void Record(Stream& stream);
  // Waits until the stream has come to it.
  void Synchronize();

  CUevent_st* handle() const { return handle_; }

 private:
  DeviceId device_;
  CUevent_st* handle_ = nullptr;
};

// Microseconds between two events that the device has passed.
double MicrosecondsBetween(const StreamEvent& begin, const StreamEvent& end);

// Host memory that a device copies from and to without the host's help. Not initialised.
class PinnedBuffer {
 public:
  PinnedBuffer(DeviceId device, size_t num_bytes);
  ~PinnedBuffer();
  PinnedBuffer(const PinnedBuffer&) = delete;
  PinnedBuffer& operator=(const PinnedBuffer&) = delete;

  std::byte* data() const { return data_; }
  size_t num_bytes() const { return num_bytes_; }

 private:
  DeviceId device_;
  std::byte* data_ = nullptr;
  size_t num_bytes_ = 0;
};

// In stream order. Host memory must stay as it is until the stream has come there, and should be
// pinned: other memory makes the host wait.
void CopyToDevice(Stream& stream, std::byte* target, const void* source, size_t num_bytes);
void CopyToHost(Stream& stream, void* target, const std::byte* source, size_t num_bytes);
void CopyOnDevice(Stream& stream, std::byte* target, const std::byte* source, size_t num_bytes);
void FillOnDevice(Stream& stream, std::byte* target, uint8_t value, size_t num_bytes);

}  // namespace pmkvq
