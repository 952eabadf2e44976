#include <cuda_runtime.h>

#include <cmath>

#include "pmkvq/base/check.h"
#include "pmkvq/kernels/kv_quant/append_token.cuh"
#include "pmkvq/kernels/kv_quant/latent_rows.h"
#include "pmkvq/tensor/device/cuda_runtime.h"

namespace pmkvq {
namespace cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kGroup = 128;
constexpr int kMostTurned = 1024;

// Blocks: sequences x (what is stored, query heads).
__global__ void __launch_bounds__(kThreads)
    AppendLatentsKernel(AppendOperands op, int latent, int rope) {
  const int sequence = blockIdx.x;
  const int part = blockIdx.y;
  const AppendTarget target = op.targets[sequence];
  if (target.capacity == AppendTarget::kNothing) return;
  if (part > 0) {
    const int width = latent + rope;
    const size_t first = (static_cast<size_t>(sequence) * op.num_heads + part - 1) * width;
    bool finite = true;
    for (int i = threadIdx.x; i < width; i += kThreads) {
      finite &= StoreQuery(op, first + i, op.q[first + i]);
    }
    if (!finite) SayUnfit(op, sequence, UnfitRow::kQuery);
    return;
  }
  const TokenPlace latents(op, target, /*values=*/false, kGroup);
  bool finite = true;
  for (int i = threadIdx.x; i < latent; i += kThreads) {
    finite &= latents.Store<__half>(i / kGroup, i % kGroup,
                                    op.k[static_cast<size_t>(sequence) * latent + i]);
  }
  if (!finite) SayUnfit(op, sequence, UnfitRow::kKey);
  // The second stream has tokens as rows, too.
  AppendTarget second = target;
  second.k = target.v;
  const TokenPlace ropes(op, second, /*values=*/false, rope);
  finite = true;
  for (int i = threadIdx.x; i < rope; i += kThreads) {
    finite &= ropes.Store<__half>(0, i, op.v[static_cast<size_t>(sequence) * rope + i]);
  }
  if (!finite) SayUnfit(op, sequence, UnfitRow::kValue);
}

// A block per row.
__global__ void __launch_bounds__(kThreads) TurnKernel(LatentTurn turn, float norm) {
  __shared__ float values[kMostTurned];
  const auto width = static_cast<int>(turn.width);
  const auto rotated = static_cast<int>(turn.rotated);
  float* const x = turn.x + static_cast<int64_t>(blockIdx.x) * width;
  const bool is_first = turn.factors != nullptr && !turn.factors_last;
  const bool is_last = turn.factors != nullptr && turn.factors_last;
  for (int i = threadIdx.x; i < width; i += kThreads) {
    values[i] = is_first ? x[i] * turn.factors[i] : x[i];
  }
  __syncthreads();
  for (int distance = 1; distance < rotated; distance *= 2) {
    for (int pair = threadIdx.x; pair < rotated / 2; pair += kThreads) {
      const int i = pair / distance * 2 * distance + pair % distance;
      const float a = values[i];
      const float b = values[i + distance];
      values[i] = a + b;
      values[i + distance] = a - b;
    }
    __syncthreads();
  }
  for (int i = threadIdx.x; i < width; i += kThreads) {
    const float value = i < rotated ? values[i] * norm : values[i];
    x[i] = is_last ? value * turn.factors[i] : value;
  }
}

}  // namespace
}  // namespace cuda

void AppendLatents(const LatentWidths& widths, const AppendOperands& operands, Stream& stream) {
  PMKVQ_CHECK(widths.latent % cuda::kGroup == 0 && fragment::IsRowWidth(widths.rope));
  if (operands.num_sequences == 0) return;
  const internal::CudaDeviceScope scope(stream.device());
  const int64_t parts = 1 + (operands.q == nullptr ? 0 : operands.num_heads);
  const dim3 grid(static_cast<unsigned>(operands.num_sequences), static_cast<unsigned>(parts));
  cuda::AppendLatentsKernel<<<grid, cuda::kThreads, 0, stream.handle()>>>(
      operands, static_cast<int>(widths.latent), static_cast<int>(widths.rope));
  internal::CheckLaunch("storing latents");
}

void TurnLatents(const LatentTurn& turn, Stream& stream) {
  PMKVQ_CHECK(turn.width <= cuda::kMostTurned && turn.rotated <= turn.width);
  PMKVQ_CHECK((turn.rotated & (turn.rotated - 1)) == 0);
  if (turn.rows == 0 || (turn.factors == nullptr && turn.rotated == 0)) return;
  const internal::CudaDeviceScope scope(stream.device());
  const float norm = turn.rotated == 0 ? 1.0f : 1.0f / std::sqrt(static_cast<float>(turn.rotated));
  cuda::TurnKernel<<<static_cast<unsigned>(turn.rows), cuda::kThreads, 0, stream.handle()>>>(turn,
                                                                                             norm);
  internal::CheckLaunch("scaling latents");
}

}  // namespace pmkvq
