// Work of a stream, recorded once and launched again and again at the cost of one launch: a CUDA
// graph.
#pragma once

#include <cstdint>
#include <functional>

#include "pmkvq/tensor/device/stream.h"

struct CUgraphExec_st;

namespace pmkvq {

class CapturedWork {
 public:
  // Records what `work` launches on the stream; nothing of it runs. Work that allocates, or waits
  // for the stream, cannot be recorded (DeviceError).
  CapturedWork(Stream& stream, const std::function<void()>& work);
  ~CapturedWork();
  CapturedWork(const CapturedWork&) = delete;
  CapturedWork& operator=(const CapturedWork&) = delete;

  // All that it reads and writes must still be there.
  void Launch(Stream& stream);

  // Of this process so far, by all threads: works that were recorded, and launches.
  struct Counts {
    int64_t recorded = 0;
    int64_t launched = 0;
  };
  static Counts CountsSoFar();

 private:
  CUgraphExec_st* graph_ = nullptr;
};

}  // namespace pmkvq
