#include "pmkvq/base/check.h"
#include "pmkvq/kernels/kv_quant/append_heads.h"
#include "pmkvq/kernels/kv_quant/append_token.cuh"
#include "pmkvq/tensor/device/cuda_runtime.h"

namespace pmkvq {
namespace cuda {
namespace {

__device__ __forceinline__ float FloatOf(float x) { return x; }
template <class G>
__device__ __forceinline__ float FloatOf(G x) {
  return ToFloat(x);
}

// Blocks: sequences x (keys of all heads, values of all heads, query heads); a thread per dim.
// T: of pages. G: of the heads.
template <class T, class G>
__global__ void __launch_bounds__(256)
    AppendGivenKernel(GivenHeads heads, AppendOperands op, int kv_heads) {
  const int sequence = blockIdx.x;
  const int dim = threadIdx.x;
  const int head_dim = blockDim.x;
  const int part = blockIdx.y;
  const AppendTarget target = op.targets[sequence];
  if (target.capacity == AppendTarget::kNothing) return;
  bool finite = true;
  UnfitRow kind = UnfitRow::kQuery;
  if (part >= 2 * kv_heads) {
    const int head = part - 2 * kv_heads;
    const size_t at = (static_cast<size_t>(sequence) * op.num_heads + head) * head_dim + dim;
    float factor = heads.query_factor;
    if (heads.query_factors != nullptr) factor *= heads.query_factors[head * head_dim + dim];
    finite = StoreQuery(op, at, FloatOf(reinterpret_cast<const G*>(heads.q)[at]) * factor);
  } else {
    const bool is_values = part >= kv_heads;
    kind = is_values ? UnfitRow::kValue : UnfitRow::kKey;
    const int head = is_values ? part - kv_heads : part;
    const auto* const rows = reinterpret_cast<const G*>(is_values ? heads.v : heads.k);
    const TokenPlace place(op, target, is_values, head_dim);
    if (place.BeginsPage()) {
      place.ZeroHead(head, threadIdx.x, head_dim);
      __syncthreads();
    }
    float value = FloatOf(rows[(static_cast<size_t>(sequence) * kv_heads + head) * head_dim + dim]);
    if (!is_values && heads.key_factors != nullptr) {
      value *= heads.key_factors[head * head_dim + dim];
    }
    finite = place.Store<T>(head, dim, value);
  }
  if (!finite) SayUnfit(op, sequence, kind);
}

template <class T>
auto KernelOf(DType type) {
  switch (type) {
    case DType::kF16:
      return AppendGivenKernel<T, __half>;
    case DType::kBF16:
      return AppendGivenKernel<T, __nv_bfloat16>;
    default:
      return AppendGivenKernel<T, float>;
  }
}

}  // namespace
}  // namespace cuda

void AppendGivenHeads(int64_t num_kv_heads, int64_t head_dim, DType float_type,
                      const GivenHeads& heads, const AppendOperands& operands, Stream& stream) {
  PMKVQ_CHECK(fragment::IsHeadDim(head_dim));
  PMKVQ_CHECK(float_type == DType::kF16 || float_type == DType::kBF16);
  PMKVQ_CHECK(heads.type == DType::kF32 || heads.type == DType::kF16 || heads.type == DType::kBF16);
  if (operands.num_sequences == 0) return;
  const internal::CudaDeviceScope scope(stream.device());
  const int64_t parts = 2 * num_kv_heads + (heads.q == nullptr ? 0 : operands.num_heads);
  const dim3 grid(static_cast<unsigned>(operands.num_sequences), static_cast<unsigned>(parts));
  const auto kernel = float_type == DType::kF16 ? cuda::KernelOf<__half>(heads.type)
                                                : cuda::KernelOf<__nv_bfloat16>(heads.type);
  kernel<<<grid, static_cast<unsigned>(head_dim), 0, stream.handle()>>>(
      heads, operands, static_cast<int>(num_kv_heads));
  internal::CheckLaunch("storing tokens");
}

}  // namespace pmkvq
