// A warp per group; lane l has values l, l + 32, ... of it.
#include <cuda_runtime.h>

#include <algorithm>

#include "pmkvq/base/check.h"
#include "pmkvq/kernels/cuda/float16.cuh"
#include "pmkvq/kernels/kv_quant/sequence_quant.h"
#include "pmkvq/tensor/device/cuda_runtime.h"

namespace pmkvq {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kMostValues = 4;  // Of a lane.
constexpr int kWidths = kNumDamageWidths;

// A lane's values of a group.
struct GroupValues {
  float x[kMostValues];

  template <class Function>
  __device__ __forceinline__ void ForEach(int lane, int group, const Function& function) {
#pragma unroll
    for (int n = 0; n < kMostValues; ++n) {
      if (lane + n * 32 >= group) break;
      function(lane + n * 32, x[n]);
    }
  }
};

struct Range {
  float low;
  float high;
};
__device__ __forceinline__ Range RangeOf(GroupValues& values, int lane, int group) {
  Range range{INFINITY, -INFINITY};
  values.ForEach(lane, group, [&](int, float& x) {
    range.low = fminf(range.low, x);
    range.high = fmaxf(range.high, x);
  });
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    range.low = fminf(range.low, __shfl_xor_sync(~0u, range.low, distance));
    range.high = fmaxf(range.high, __shfl_xor_sync(~0u, range.high, distance));
  }
  return range;
}

// The functions with names keep a compiler from fusing or replacing what must round as on the CPU.
__device__ __forceinline__ float StepOf(const Range& range, int bits) {
  return __fdiv_rn(__fadd_rn(range.high, -range.low), static_cast<float>((1 << bits) - 1));
}
__device__ __forceinline__ float Quantized(float x, const Range& range, float step, int bits) {
  float value = range.low;
  if (step > 0.0f) {
    const float scaled = __fdiv_rn(__fadd_rn(x, -range.low), step);
    const float code = rintf(fminf(fmaxf(scaled, 0.0f), static_cast<float>((1 << bits) - 1)));
    value = __fadd_rn(__fmul_rn(code, step), range.low);
  }
  return bits == 16 ? ToFloat(Round<__nv_bfloat16>(value)) : value;
}

// Blocks: heads x pieces of the rows. A thread has pairs threadIdx.x, ...
__global__ void __launch_bounds__(kThreads)
    LargestKeysKernel(const float* k, int64_t rows, int64_t heads, int64_t dim, float* largest) {
  const int64_t half = dim / 2;
  const int64_t head = blockIdx.x;
  for (int64_t i = threadIdx.x % 64; i < half; i += 64) {
    float most = 0.0f;
    for (int64_t row = static_cast<int64_t>(blockIdx.y) * (kThreads / 64) + threadIdx.x / 64;
         row < rows; row += static_cast<int64_t>(gridDim.y) * (kThreads / 64)) {
      const float* const from = k + (row * heads + head) * dim;
      most = fmaxf(most, fmaxf(fabsf(from[i]), fabsf(from[half + i])));
    }
    // Bits of floats that are not negative are ordered as the floats; the order does not matter.
    atomicMax(reinterpret_cast<unsigned*>(largest) + head * half + i, __float_as_uint(most));
  }
}

__global__ void __launch_bounds__(kThreads)
    DamageKernel(int group, const float* x, const float* gradient, int64_t num_groups,
                 double* parts) {
  __shared__ double shared[kWarps][kWidths];
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  double sums[kWidths] = {};
  for (int64_t r = static_cast<int64_t>(blockIdx.x) * kWarps + warp; r < num_groups;
       r += static_cast<int64_t>(gridDim.x) * kWarps) {
    GroupValues values;
    GroupValues gradients;
    values.ForEach(lane, group, [&](int i, float& value) { value = x[r * group + i]; });
    gradients.ForEach(lane, group, [&](int i, float& value) { value = gradient[r * group + i]; });
    const Range range = RangeOf(values, lane, group);
#pragma unroll
    for (int w = 0; w < kWidths; ++w) {
      const int bits = 16 >> w;
      const float step = StepOf(range, bits);
#pragma unroll
      for (int n = 0; n < kMostValues; ++n) {
        if (lane + n * 32 >= group) break;
        const float value = values.x[n];
        const float error = __fadd_rn(Quantized(value, range, step, bits), -value);
        sums[w] += fabs(static_cast<double>(error) * static_cast<double>(gradients.x[n]));
      }
    }
  }
#pragma unroll
  for (int w = 0; w < kWidths; ++w) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
      sums[w] += __shfl_xor_sync(~0u, sums[w], distance);
    }
    if (lane == 0) shared[warp][w] = sums[w];
  }
  __syncthreads();
  if (threadIdx.x >= kWidths) return;
  double sum = 0.0;
  for (int i = 0; i < kWarps; ++i) sum += shared[i][threadIdx.x];
  parts[threadIdx.x * kDamageParts + blockIdx.x] = sum;
}

// Blocks: groups x points.
template <class T>
__global__ void __launch_bounds__(kThreads)
    ScaledKernel(const __grid_constant__ ScaledQuantization op) {
  const int lane = threadIdx.x % 32;
  const auto group = static_cast<int>(op.group);
  const auto dim = static_cast<int>(op.dim);
  const int64_t num_groups = op.rows * op.heads * (dim / group);
  const int64_t r = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (r >= num_groups) return;
  const int64_t point = blockIdx.y;
  const int first = static_cast<int>(r % (dim / group)) * group;  // In its head.
  const int64_t head = r / (dim / group) % op.heads;
  const int half = dim / 2;
  const float* const scales =
      op.scales == nullptr ? nullptr : op.scales + (point * op.heads + head) * half;
  GroupValues values;
  GroupValues factors;
#pragma unroll
  for (int n = 0; n < kMostValues; ++n) {
    const int i = lane + n * 32;
    if (i >= group) break;
    factors.x[n] = scales == nullptr ? 1.0f : scales[(first + i) % half];
    values.x[n] = __fdiv_rn(op.x[r * group + i], factors.x[n]);
  }
  const Range range = RangeOf(values, lane, group);
  const float step = StepOf(range, op.bits);
  auto* const out = reinterpret_cast<T*>(op.out) + (point * num_groups + r) * group;
#pragma unroll
  for (int n = 0; n < kMostValues; ++n) {
    const int i = lane + n * 32;
    if (i >= group) break;
    const float value = Quantized(values.x[n], range, step, op.bits) * factors.x[n];
    if constexpr (sizeof(T) == sizeof(float)) {
      out[i] = value;
    } else {
      out[i] = Round<T>(value);
    }
  }
}

}  // namespace
}  // namespace cuda

using internal::CheckLaunch;
using internal::CudaDeviceScope;

void FindLargestKeys(const float* k, int64_t rows, int64_t heads, int64_t dim, float* largest,
                     Stream& stream) {
  const CudaDeviceScope scope(stream.device());
  const dim3 grid(static_cast<unsigned>(heads),
                  static_cast<unsigned>(std::min<int64_t>((rows + 3) / 4, 64)));
  cuda::LargestKeysKernel<<<grid, cuda::kThreads, 0, stream.handle()>>>(k, rows, heads, dim,
                                                                        largest);
  CheckLaunch("the largest keys");
}

void MeasureDamage(int64_t group, const float* x, const float* gradient, int64_t num_groups,
                   double* parts, Stream& stream) {
  PMKVQ_CHECK(group > 0 && group <= 32 * cuda::kMostValues);
  const CudaDeviceScope scope(stream.device());
  cuda::DamageKernel<<<static_cast<unsigned>(kDamageParts), cuda::kThreads, 0, stream.handle()>>>(
      static_cast<int>(group), x, gradient, num_groups, parts);
  CheckLaunch("the damage of quantisation");
}

void QuantizeScaled(const ScaledQuantization& op, Stream& stream) {
  PMKVQ_CHECK(op.group > 0 && op.group <= 32 * cuda::kMostValues && op.dim % op.group == 0);
  PMKVQ_CHECK(op.bits == 16 || op.bits == 8 || op.bits == 4 || op.bits == 2);
  PMKVQ_CHECK(op.out_type == DType::kF16 || op.out_type == DType::kF32);
  PMKVQ_CHECK(op.points > 0 && (op.scales != nullptr || op.points == 1));
  const CudaDeviceScope scope(stream.device());
  const int64_t num_groups = op.rows * op.heads * (op.dim / op.group);
  const dim3 grid(static_cast<unsigned>((num_groups + cuda::kWarps - 1) / cuda::kWarps),
                  static_cast<unsigned>(op.points));
  const auto kernel =
      op.out_type == DType::kF16 ? cuda::ScaledKernel<__half> : cuda::ScaledKernel<float>;
  kernel<<<grid, cuda::kThreads, 0, stream.handle()>>>(op);
  CheckLaunch("quantising keys of many scales");
}

}  // namespace pmkvq
