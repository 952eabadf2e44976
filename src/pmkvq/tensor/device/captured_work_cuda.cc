#include "pmkvq/tensor/device/captured_work.h"

#include <cuda_runtime_api.h>

#include <atomic>

#include "pmkvq/tensor/device/cuda_runtime.h"

namespace pmkvq {

using internal::CheckCuda;

namespace {

std::atomic<int64_t> num_recorded{0};
std::atomic<int64_t> num_launched{0};

}  // namespace

CapturedWork::CapturedWork(Stream& stream, const std::function<void()>& work) {
  const internal::CudaDeviceScope scope(stream.device());
  CheckCuda(cudaStreamBeginCapture(stream.handle(), cudaStreamCaptureModeThreadLocal),
            "recording work");
  cudaGraph_t graph = nullptr;
  try {
    work();
  } catch (...) {
    // The stream must not stay in recording.
    static_cast<void>(cudaStreamEndCapture(stream.handle(), &graph));
    if (graph != nullptr) static_cast<void>(cudaGraphDestroy(graph));
    throw;
  }
  CheckCuda(cudaStreamEndCapture(stream.handle(), &graph), "recording work");
  const cudaError_t status = cudaGraphInstantiate(&graph_, graph, 0);
  static_cast<void>(cudaGraphDestroy(graph));
  CheckCuda(status, "preparing recorded work");
  ++num_recorded;
}

CapturedWork::~CapturedWork() { static_cast<void>(cudaGraphExecDestroy(graph_)); }

void CapturedWork::Launch(Stream& stream) {
  CheckCuda(cudaGraphLaunch(graph_, stream.handle()), "launching recorded work");
  ++num_launched;
}

CapturedWork::Counts CapturedWork::CountsSoFar() { return {num_recorded, num_launched}; }

}  // namespace pmkvq
