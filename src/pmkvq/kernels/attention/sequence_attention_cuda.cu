// A warp per row of scores. A row of up to 2,048 columns is in registers between the passes.
#include <cuda_runtime.h>

#include "pmkvq/base/check.h"
#include "pmkvq/kernels/attention/sequence_attention.h"
#include "pmkvq/kernels/cuda/float16.cuh"
#include "pmkvq/kernels/cuda/warp.cuh"
#include "pmkvq/tensor/device/cuda_runtime.h"

namespace pmkvq {
namespace cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kRowsPerBlock = kThreads / 32;

// Which columns a row sees, and where its inverse goes.
struct Row {
  int64_t index;  // Of the tile's rows of all heads; less than 0: none.
  int visible;
  int64_t inverse;
};
__device__ __forceinline__ Row RowOf(const internal::SequenceWeights& op) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + threadIdx.x / 32;
  const int64_t per_head = op.tokens * op.group;
  if (index >= op.heads * per_head) return {-1, 0, 0};
  const int64_t head = index / per_head;
  const int64_t in_head = index % per_head;
  return {index, static_cast<int>(op.first_token + in_head / op.group + 1),
          head * op.rows * op.group + in_head};
}

__device__ __forceinline__ float Get(const float4& x, int i) {
  return i == 0 ? x.x : i == 1 ? x.y : i == 2 ? x.z : x.w;
}

// Weights in F16 are at most 2^10, so that small ones are no subnormal numbers.
constexpr float kLargest = 10.0f;

// Four columns from 4 * four on.
__device__ __forceinline__ float4 LoadVisible(const float4* scores, int four, int visible) {
  const float4 none = make_float4(-INFINITY, -INFINITY, -INFINITY, -INFINITY);
  if (4 * four >= visible) return none;
  float4 x = scores[four];
  if (4 * four + 1 >= visible) x.y = -INFINITY;
  if (4 * four + 2 >= visible) x.z = -INFINITY;
  if (4 * four + 3 >= visible) x.w = -INFINITY;
  return x;
}

__device__ __forceinline__ float4 Weigh(const float4& x, float reference) {
  return make_float4(exp2f(x.x - reference), exp2f(x.y - reference), exp2f(x.z - reference),
                     exp2f(x.w - reference));
}

// kFours: of a lane, in registers; 0: read again in each pass.
template <bool kF16, int kFours>
__global__ void __launch_bounds__(kThreads)
    WeighKernel(const __grid_constant__ internal::SequenceWeights op) {
  const Row row = RowOf(op);
  if (row.index < 0) return;
  const int lane = threadIdx.x % 32;
  const auto fours = static_cast<int>(op.columns / 4);
  auto* const scores = reinterpret_cast<float4*>(op.scores) + row.index * fours;
  constexpr int kHeld = kFours == 0 ? 1 : kFours;
  float4 held[kHeld];
  float largest = -INFINITY;
  const auto raise = [&](const float4& x) {
    largest = fmaxf(largest, fmaxf(fmaxf(x.x, x.y), fmaxf(x.z, x.w)));
  };
  if constexpr (kFours == 0) {
    for (int four = lane; four < fours; four += 32) raise(LoadVisible(scores, four, row.visible));
  } else {
#pragma unroll
    for (int n = 0; n < kFours; ++n) {
      held[n] = LoadVisible(scores, lane + n * 32, row.visible);
      raise(held[n]);
    }
  }
  largest = OverWarp(largest, Larger{});
  const float reference = kF16 ? largest - kLargest : largest;
  float sum = 0.0f;
  if constexpr (kF16) {
    auto* const out = reinterpret_cast<uint2*>(op.f16) + row.index * fours;
    const auto store = [&](int four, const float4& x) {
      const float4 weight = Weigh(x, reference);
      __half rounded[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        // The sum is of the weights as they are multiplied.
        rounded[i] = Round<__half>(Get(weight, i));
        sum += ToFloat(rounded[i]);
      }
      out[four] = *reinterpret_cast<const uint2*>(rounded);
    };
    if constexpr (kFours == 0) {
      for (int four = lane; four < fours; four += 32) {
        store(four, LoadVisible(scores, four, row.visible));
      }
    } else {
#pragma unroll
      for (int n = 0; n < kFours; ++n) {
        if (lane + n * 32 < fours) store(lane + n * 32, held[n]);
      }
    }
    sum = OverWarp(sum, Plus{});
    if (lane == 0) op.inverses[row.inverse] = 1.0f / sum;
  } else {
    const auto add = [&](const float4& w) { sum += (w.x + w.y) + (w.z + w.w); };
    if constexpr (kFours == 0) {
      for (int four = lane; four < fours; four += 32) {
        add(Weigh(LoadVisible(scores, four, row.visible), reference));
      }
    } else {
#pragma unroll
      for (int n = 0; n < kFours; ++n) {
        held[n] = Weigh(held[n], reference);
        add(held[n]);
      }
    }
    const float inverse = 1.0f / OverWarp(sum, Plus{});
    const auto scaled = [&](const float4& w) {
      return make_float4(w.x * inverse, w.y * inverse, w.z * inverse, w.w * inverse);
    };
    if constexpr (kFours == 0) {
      for (int four = lane; four < fours; four += 32) {
        scores[four] = scaled(Weigh(LoadVisible(scores, four, row.visible), reference));
      }
    } else {
#pragma unroll
      for (int n = 0; n < kFours; ++n) {
        if (lane + n * 32 < fours) scores[lane + n * 32] = scaled(held[n]);
      }
    }
  }
}

// Weights are 0 where a row does not see the column; what the product has there is finite.
__global__ void __launch_bounds__(kThreads)
    ScoresGradKernel(const __grid_constant__ internal::SequenceWeights op, const float* weights,
                     float* products) {
  const Row row = RowOf(op);
  if (row.index < 0) return;
  const int lane = threadIdx.x % 32;
  const auto fours = static_cast<int>(op.columns / 4);
  const auto* const weight = reinterpret_cast<const float4*>(weights) + row.index * fours;
  auto* const product = reinterpret_cast<float4*>(products) + row.index * fours;
  float sum = 0.0f;
#pragma unroll 4
  for (int four = lane; 4 * four < row.visible; four += 32) {
    const float4 w = weight[four];
    const float4 x = product[four];
    sum += (w.x * x.x + w.y * x.y) + (w.z * x.z + w.w * x.w);
  }
  sum = OverWarp(sum, Plus{});
#pragma unroll 4
  for (int four = lane; four < fours; four += 32) {
    float4 out = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (4 * four < row.visible) {
      const float4 w = weight[four];
      const float4 x = product[four];
      out = make_float4(w.x * (x.x - sum), w.y * (x.y - sum), w.z * (x.z - sum), w.w * (x.w - sum));
    }
    product[four] = out;
  }
}

unsigned BlocksOf(const internal::SequenceWeights& op) {
  const int64_t rows = op.heads * op.tokens * op.group;
  return static_cast<unsigned>((rows + kRowsPerBlock - 1) / kRowsPerBlock);
}

template <bool kF16>
void LaunchWeigh(const internal::SequenceWeights& op, Stream& stream) {
  const auto kernel = op.columns <= 512    ? WeighKernel<kF16, 4>
                      : op.columns <= 1024 ? WeighKernel<kF16, 8>
                      : op.columns <= 2048 ? WeighKernel<kF16, 16>
                                           : WeighKernel<kF16, 0>;
  kernel<<<BlocksOf(op), kThreads, 0, stream.handle()>>>(op);
}

}  // namespace
}  // namespace cuda

void internal::WeighSequence(const SequenceWeights& op, Stream& stream) {
  PMKVQ_CHECK(op.columns % 4 == 0 && op.columns >= op.first_token + op.tokens);
  const CudaDeviceScope scope(stream.device());
  if (op.f16 != nullptr) {
    cuda::LaunchWeigh<true>(op, stream);
  } else {
    cuda::LaunchWeigh<false>(op, stream);
  }
  CheckLaunch("weights of a sequence");
}

void internal::SequenceScoresGrad(const SequenceWeights& op, const float* weights, float* products,
                                  Stream& stream) {
  PMKVQ_CHECK(op.columns % 4 == 0);
  const CudaDeviceScope scope(stream.device());
  cuda::ScoresGradKernel<<<cuda::BlocksOf(op), cuda::kThreads, 0, stream.handle()>>>(op, weights,
                                                                                     products);
  CheckLaunch("gradients of scores");
}

}  // namespace pmkvq
