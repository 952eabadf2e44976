#include "pmkvq/kernels/kv_quant/unfit_rows.h"

#include <cuda_runtime.h>

#include <algorithm>

#include "pmkvq/base/check.h"
#include "pmkvq/kernels/cuda/float16.cuh"
#include "pmkvq/tensor/device/cuda_runtime.h"

namespace pmkvq {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 1024;

template <class T>
__global__ void __launch_bounds__(kThreads)
    LookForUnfitKernel(const float* values, int64_t count, uint32_t code, uint32_t* unfit) {
  bool all_fit = true;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += stride) {
    all_fit &= isfinite(ToFloat(Round<T>(values[i]))) != 0;
  }
  if (!all_fit) atomicMin(unfit, code);
}

}  // namespace
}  // namespace cuda

void LookForUnfit(const float* values, int64_t count, DType float_type, uint32_t code,
                  uint32_t* unfit, Stream& stream) {
  PMKVQ_CHECK(float_type == DType::kF16 || float_type == DType::kBF16);
  if (count == 0) return;
  const internal::CudaDeviceScope scope(stream.device());
  const auto blocks = static_cast<unsigned>(
      std::min((count + cuda::kThreads - 1) / cuda::kThreads, cuda::kMostBlocks));
  const auto kernel = float_type == DType::kF16 ? cuda::LookForUnfitKernel<__half>
                                                : cuda::LookForUnfitKernel<__nv_bfloat16>;
  kernel<<<blocks, cuda::kThreads, 0, stream.handle()>>>(values, count, code, unfit);
  internal::CheckLaunch("looking at values");
}

}  // namespace pmkvq
