#include "pmkvq/tensor/device/captured_work.h"

#include <cuda_runtime_api.h>

#include "pmkvq/tensor/device/cuda_runtime.h"

namespace pmkvq {

using internal::CheckCuda;

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
}

CapturedWork::~CapturedWork() { static_cast<void>(cudaGraphExecDestroy(graph_)); }

void CapturedWork::Launch(Stream& stream) {
  CheckCuda(cudaGraphLaunch(graph_, stream.handle()), "launching recorded work");
}

}  // namespace pmkvq
