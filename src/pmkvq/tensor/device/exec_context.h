// What an op runs with: how many threads on the CPU, which stream on a device.
#pragma once

namespace pmkvq {

class Stream;

struct ExecContext {
  // A number of threads is a context: the CPU needs nothing more.
  ExecContext(int threads) : num_threads(threads) {}  // NOLINT: implicit, for callers on the CPU.
  ExecContext(int threads, Stream& device_stream) : num_threads(threads), stream(&device_stream) {}

  // An op uses as many or fewer (base/parallel.h); its bits do not depend on it.
  int num_threads = 1;
  // That ops on a device launch on (stream.h). Null on the CPU.
  Stream* stream = nullptr;
};

}  // namespace pmkvq
