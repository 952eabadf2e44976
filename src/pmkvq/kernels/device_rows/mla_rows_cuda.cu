// A block of threads per row, or per row and head. Sums are added up in a fixed order.
#include <cuda_runtime.h>

#include "pmkvq/base/check.h"
#include "pmkvq/kernels/cuda/warp.cuh"
#include "pmkvq/kernels/device_rows/mla_rows.h"
#include "pmkvq/kernels/device_rows/product_rows.cuh"
#include "pmkvq/tensor/device/cuda_runtime.h"

namespace pmkvq {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;

__device__ __forceinline__ float SumAt(const StackedSums& from, int64_t row, int64_t i) {
  return SumOf(from.sums, from.width, row, from.at + i);
}

__device__ __forceinline__ float SumOverBlock(float x) {
  __shared__ float warp_sums[kThreads / kWarp];
  x = OverWarp(x, Plus{});
  if (threadIdx.x % kWarp == 0) warp_sums[threadIdx.x / kWarp] = x;
  __syncthreads();
  float sum = 0.0f;
#pragma unroll
  for (int w = 0; w < kThreads / kWarp; ++w) sum += warp_sums[w];
  return sum;
}

// 1 / sqrt(mean of squares + eps) of the first `count` values.
__device__ __forceinline__ float InverseNorm(const StackedSums& from, int64_t row, int64_t count,
                                             float eps) {
  float square = 0.0f;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) {
    const float value = SumAt(from, row, i);
    square = fmaf(value, value, square);
  }
  return 1.0f / sqrtf(SumOverBlock(square) / static_cast<float>(count) + eps);
}

// Pair i of dr values from `first` on, rotated, to `out`.
__device__ __forceinline__ void Rotate(const RopeOfRows& rope, const StackedSums& from, int64_t row,
                                       int64_t first, int i, float scale, float* out) {
  const int pairs = static_cast<int>(rope.width / 2);
  const int low_at = rope.in_pairs ? 2 * i : i;
  const int high_at = rope.in_pairs ? 2 * i + 1 : pairs + i;
  const float low = SumAt(from, row, first + low_at);
  const float high = SumAt(from, row, first + high_at);
  const float2 rotation = reinterpret_cast<const float2*>(rope.rotations)[row * pairs + i];
  out[low_at] = (low * rotation.x - high * rotation.y) * scale;
  out[high_at] = (high * rotation.x + low * rotation.y) * scale;
}

__global__ void __launch_bounds__(kThreads)
    LatentRowsKernel(const __grid_constant__ LatentRows op) {
  const int64_t row = blockIdx.x;
  const float inverse = InverseNorm(op.from, row, op.latent, op.eps);
  for (int64_t i = threadIdx.x; i < op.latent; i += kThreads) {
    op.latents[row * op.latent + i] = SumAt(op.from, row, i) * inverse * op.weight[i];
  }
  if (threadIdx.x < op.rope.width / 2) {
    Rotate(op.rope, op.from, row, op.latent, threadIdx.x, 1.0f, op.rope_keys + row * op.rope.width);
  }
}

__global__ void __launch_bounds__(kThreads)
    NormSumsKernel(const __grid_constant__ StackedSums from, int64_t count, const float* weight,
                   float eps, const __grid_constant__ ProductRows out) {
  const int64_t row = blockIdx.x;
  const float inverse = InverseNorm(from, row, count, eps);
  for (int64_t i = threadIdx.x; i < count; i += kThreads) {
    Store(out, count, row, i, SumAt(from, row, i) * inverse * weight[i]);
  }
}

// Blocks: rows x heads.
__global__ void __launch_bounds__(kThreads)
    LatentQueriesKernel(const __grid_constant__ LatentQueryRows op) {
  const int64_t row = blockIdx.x;
  const int64_t head = blockIdx.y;
  const int64_t first = head * (op.nope + op.rope.width);
  for (int64_t i = threadIdx.x; i < op.nope; i += kThreads) {
    Store(op.nope_rows, op.num_heads * op.nope, row, head * op.nope + i,
          SumAt(op.from, row, first + i));
  }
  if (threadIdx.x < op.rope.width / 2) {
    float* const q = op.q + (row * op.num_heads + head) * (op.latent + op.rope.width) + op.latent;
    Rotate(op.rope, op.from, row, first + op.nope, threadIdx.x, op.scale, q);
  }
}

__global__ void __launch_bounds__(kThreads)
    AbsorbedKernel(const __grid_constant__ ProductSums sums, int64_t num_heads, int64_t latent,
                   int64_t rope, float scale, float* q) {
  const int64_t row = blockIdx.x;
  const int64_t head = blockIdx.y;
  float* const to = q + (row * num_heads + head) * (latent + rope);
  for (int64_t i = threadIdx.x; i < latent; i += kThreads) {
    to[i] = SumOf(sums, num_heads * latent, row, head * latent + i) * scale;
  }
}

__global__ void __launch_bounds__(kThreads)
    RoundSumsKernel(const __grid_constant__ ProductSums sums, int64_t width,
                    const __grid_constant__ ProductRows out) {
  const int64_t i = static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x;
  if (i < width) Store(out, width, blockIdx.x, i, SumOf(sums, width, blockIdx.x, i));
}

constexpr int64_t kMostRope = 128;

}  // namespace
}  // namespace cuda

void MakeLatentRows(const LatentRows& op, Stream& stream) {
  if (op.rows == 0) return;
  PMKVQ_CHECK(op.rope.width % 2 == 0 && op.rope.width <= cuda::kMostRope);
  const internal::CudaDeviceScope scope(stream.device());
  cuda::LatentRowsKernel<<<static_cast<unsigned>(op.rows), cuda::kThreads, 0, stream.handle()>>>(
      op);
  internal::CheckLaunch("latents");
}

void NormSums(const StackedSums& from, int64_t rows, int64_t count, const float* weight, float eps,
              const ProductRows& out, Stream& stream) {
  if (rows == 0) return;
  PMKVQ_CHECK(rows <= out.part_rows);
  const internal::CudaDeviceScope scope(stream.device());
  cuda::NormSumsKernel<<<static_cast<unsigned>(rows), cuda::kThreads, 0, stream.handle()>>>(
      from, count, weight, eps, out);
  internal::CheckLaunch("norms of rows");
}

void MakeLatentQueries(const LatentQueryRows& op, Stream& stream) {
  if (op.rows == 0) return;
  PMKVQ_CHECK(op.rope.width % 2 == 0 && op.rope.width <= cuda::kMostRope);
  PMKVQ_CHECK(op.rows <= op.nope_rows.part_rows);
  const internal::CudaDeviceScope scope(stream.device());
  const dim3 grid(static_cast<unsigned>(op.rows), static_cast<unsigned>(op.num_heads));
  cuda::LatentQueriesKernel<<<grid, cuda::kThreads, 0, stream.handle()>>>(op);
  internal::CheckLaunch("queries of latents");
}

void PutAbsorbedQueries(const ProductSums& sums, int64_t rows, int64_t num_heads, int64_t latent,
                        int64_t rope, float scale, float* q, Stream& stream) {
  if (rows == 0) return;
  const internal::CudaDeviceScope scope(stream.device());
  const dim3 grid(static_cast<unsigned>(rows), static_cast<unsigned>(num_heads));
  cuda::AbsorbedKernel<<<grid, cuda::kThreads, 0, stream.handle()>>>(sums, num_heads, latent, rope,
                                                                     scale, q);
  internal::CheckLaunch("queries of latents");
}

void RoundSums(const ProductSums& sums, int64_t rows, int64_t width, const ProductRows& out,
               Stream& stream) {
  if (rows == 0) return;
  PMKVQ_CHECK(rows <= out.part_rows);
  const internal::CudaDeviceScope scope(stream.device());
  const dim3 grid(static_cast<unsigned>(rows),
                  static_cast<unsigned>((width + cuda::kThreads - 1) / cuda::kThreads));
  cuda::RoundSumsKernel<<<grid, cuda::kThreads, 0, stream.handle()>>>(sums, width, out);
  internal::CheckLaunch("rounding rows");
}

}  // namespace pmkvq
