#include <cuda_runtime.h>

#include <algorithm>
#include <climits>

#include "pmkvq/base/check.h"
#include "pmkvq/kernels/cuda/float16.cuh"
#include "pmkvq/kernels/cuda/mma.cuh"
#include "pmkvq/kernels/cuda/warp.cuh"
#include "pmkvq/kernels/device_rows/product_rows.cuh"
#include "pmkvq/kernels/routing/device_experts.h"
#include "pmkvq/tensor/device/cuda_runtime.h"

namespace pmkvq {
namespace cuda {
namespace {

constexpr int kWarp = 32;
constexpr int kMost = static_cast<int>(kMostExperts);
constexpr float kLeastSum = 1e-20f;  // routing.cc

struct RouteArguments {
  const float* bias;
  const float* logits;
  int32_t* experts;
  float* weights;
  int num_experts;
  int num_chosen;
  bool is_softmax;
  bool normalizes;
  float factor;
  int num_groups;
  int num_chosen_groups;
  int group_top;
};

// The first of the largest values that are not taken; takes it. What is no number counts as the
// smallest. One has to be free. By a warp; every lane gets it.
__device__ __forceinline__ int TakeLargest(const float* values, int count, uint8_t* is_taken) {
  const int lane = threadIdx.x % kWarp;
  float best = -INFINITY;
  int index = INT_MAX;
  for (int i = lane; i < count; i += kWarp) {
    if (is_taken[i]) continue;
    const float value = isnan(values[i]) ? -INFINITY : values[i];
    if (index == INT_MAX || value > best) {
      best = value;
      index = i;
    }
  }
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    const float other = __shfl_xor_sync(~0u, best, distance);
    const int at = __shfl_xor_sync(~0u, index, distance);
    if (at == INT_MAX) continue;
    if (index == INT_MAX || other > best || (other == best && at < index)) {
      best = other;
      index = at;
    }
  }
  __syncwarp();  // All lanes have read what lane 0 writes.
  if (lane == 0) is_taken[index] = 1;
  __syncwarp();
  return index;
}

__device__ __forceinline__ void Clear(uint8_t* flags, int count, uint8_t value) {
  for (int i = threadIdx.x % kWarp; i < count; i += kWarp) flags[i] = value;
  __syncwarp();
}

// A warp per row.
__global__ void __launch_bounds__(kWarp) RouteKernel(const __grid_constant__ RouteArguments a) {
  __shared__ float scores[kMost];
  __shared__ float choice[kMost];
  __shared__ float groups[kMost];
  __shared__ uint8_t is_taken[kMost];
  __shared__ uint8_t is_chosen[kMost];
  const int lane = threadIdx.x;
  const int64_t row = blockIdx.x;
  const int n = a.num_experts;
  const float* const logits = a.logits + row * n;
  float largest = -INFINITY;
  for (int i = lane; i < n; i += kWarp) largest = fmaxf(largest, logits[i]);
  largest = OverWarp(largest, Larger{});
  float sum = 0.0f;
  for (int i = lane; i < n; i += kWarp) {
    scores[i] = a.is_softmax ? expf(logits[i] - largest) : 1.0f / (1.0f + expf(-logits[i]));
    sum += scores[i];
  }
  sum = OverWarp(sum, Plus{});
  for (int i = lane; i < n; i += kWarp) {
    if (a.is_softmax) scores[i] /= sum;
    choice[i] = a.bias == nullptr ? scores[i] : scores[i] + a.bias[i];
  }
  Clear(is_taken, n, 0);
  if (a.num_chosen_groups < a.num_groups) {
    const int size = n / a.num_groups;
    for (int group = 0; group < a.num_groups; ++group) {
      float total = 0.0f;
      for (int i = 0; i < a.group_top; ++i) {
        total += choice[group * size +
                        TakeLargest(choice + group * size, size, is_taken + group * size)];
      }
      if (lane == 0) groups[group] = total;
    }
    Clear(is_taken, n, 1);
    Clear(is_chosen, a.num_groups, 0);
    for (int i = 0; i < a.num_chosen_groups; ++i) {
      const int group = TakeLargest(groups, a.num_groups, is_chosen);
      Clear(is_taken + group * size, size, 0);
    }
  }
  float total = 0.0f;
  for (int j = 0; j < a.num_chosen; ++j) {
    const int expert = TakeLargest(choice, n, is_taken);
    total += scores[expert];
    if (lane == 0) {
      a.experts[row * a.num_chosen + j] = expert;
      a.weights[row * a.num_chosen + j] = scores[expert];
    }
  }
  __syncwarp();
  const float scale = a.normalizes ? a.factor / (total + kLeastSum) : a.factor;
  if (lane != 0) return;
  for (int j = 0; j < a.num_chosen; ++j) a.weights[row * a.num_chosen + j] *= scale;
}

// One block; a thread per expert, which goes through all pairs.
__global__ void __launch_bounds__(kMost)
    GroupKernel(const __grid_constant__ DeviceRouting routing, int num_experts, int num_pairs) {
  __shared__ int ends[kMost];
  __shared__ int uses[kMost];
  const int expert = threadIdx.x;
  int count = 0;
  if (expert < num_experts) {
    for (int pair = 0; pair < num_pairs; ++pair) count += routing.experts[pair] == expert;
  }
  ends[expert] = count;
  uses[expert] = count > 0;
  __syncthreads();
  for (int distance = 1; distance < kMost; distance *= 2) {
    const int more = expert >= distance ? ends[expert - distance] : 0;
    const int more_uses = expert >= distance ? uses[expert - distance] : 0;
    __syncthreads();
    ends[expert] += more;
    uses[expert] += more_uses;
    __syncthreads();
  }
  if (expert >= num_experts) return;
  int place = ends[expert] - count;
  routing.first[expert] = place;
  if (count > 0) routing.used[uses[expert]] = expert;
  if (expert == num_experts - 1) {
    routing.first[num_experts] = ends[expert];
    routing.used[0] = uses[expert];
  }
  for (int pair = 0; count > 0 && pair < num_pairs; ++pair) {
    if (routing.experts[pair] != expert) continue;
    routing.places[pair] = place;
    routing.pairs[place++] = pair;
  }
}

struct ExpertArguments {
  DeviceRouting routing;
  ProductRows x;
  const std::byte* w;
  float* y;
  int64_t n_out;
  int64_t k_in;
  int num_chosen;
  bool of_rows;
};

__device__ __forceinline__ int64_t RowOfPlace(const ExpertArguments& a, int place) {
  return a.of_rows ? a.routing.pairs[place] / a.num_chosen : place;
}

// Blocks: 64 rows of W x experts that have rows. A warp has 16 rows of W; columns are pairs, each
// with the two parts of its row side by side. A lane reads 16 adjacent bytes of W and of x; which
// of them a product calls its first column is the same for both.
constexpr int kExpertWarps = 4;
template <class T, int kTiles>
__global__ void __launch_bounds__(kExpertWarps* kWarp)
    ExpertKernel(const __grid_constant__ ExpertArguments a) {
  if (static_cast<int>(blockIdx.y) >= a.routing.used[0]) return;
  const int expert = a.routing.used[1 + blockIdx.y];
  const int begin = a.routing.first[expert];
  const int end = a.routing.first[expert + 1];
  const int lane = threadIdx.x % kWarp;
  const int g = lane / 4;
  const int t = lane % 4;
  const int64_t row = (static_cast<int64_t>(blockIdx.x) * kExpertWarps + threadIdx.x / kWarp) * 16;
  if (row >= a.n_out) return;
  const T* const w =
      reinterpret_cast<const T*>(a.w) + static_cast<int64_t>(expert) * a.n_out * a.k_in + 8 * t;
  // Rows behind the last one are read as the last one, and not stored.
  const T* const w0 = w + min(row + g, a.n_out - 1) * a.k_in;
  const T* const w1 = w + min(row + g + 8, a.n_out - 1) * a.k_in;
  for (int first = begin; first < end; first += 4 * kTiles) {
    const T* x[kTiles];
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      const int place = min(first + 4 * i + g / 2, end - 1);
      x[i] = reinterpret_cast<const T*>(a.x.data) +
             (g % 2 * a.x.part_rows + RowOfPlace(a, place)) * a.k_in + 8 * t;
    }
    float sums[kTiles][4] = {};
#pragma unroll 4
    for (int64_t k = 0; k < a.k_in; k += 32) {
      // Behind the last column zeros.
      const bool has = k + 8 * t < a.k_in;
      const uint4 zero = make_uint4(0, 0, 0, 0);
      const uint4 a0 = has ? *reinterpret_cast<const uint4*>(w0 + k) : zero;
      const uint4 a1 = has ? *reinterpret_cast<const uint4*>(w1 + k) : zero;
      const uint32_t low[4] = {a0.x, a1.x, a0.y, a1.y};
      const uint32_t high[4] = {a0.z, a1.z, a0.w, a1.w};
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        const uint4 b = has ? *reinterpret_cast<const uint4*>(x[i] + k) : zero;
        MultiplyTile<T>(sums[i], low, b.x, b.y);
        MultiplyTile<T>(sums[i], high, b.z, b.w);
      }
    }
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      const int place = first + 4 * i + t;
      if (place >= end) continue;
      float* const y = a.y + place * a.n_out + row;
      if (row + g < a.n_out) y[g] = sums[i][0] + sums[i][1];
      if (row + g + 8 < a.n_out) y[g + 8] = sums[i][2] + sums[i][3];
    }
  }
}

// For F32, and widths that are no multiple of 8: a warp for each place and row of W.
constexpr int kPlainWarps = 8;
template <class T>
__global__ void __launch_bounds__(kPlainWarps* kWarp)
    PlainExpertKernel(const __grid_constant__ ExpertArguments a) {
  const int place = blockIdx.x;
  const int lane = threadIdx.x % kWarp;
  const int64_t row = static_cast<int64_t>(blockIdx.y) * kPlainWarps + threadIdx.x / kWarp;
  if (row >= a.n_out) return;
  const int64_t expert = a.routing.experts[a.routing.pairs[place]];
  const T* const w = reinterpret_cast<const T*>(a.w) + (expert * a.n_out + row) * a.k_in;
  const T* const x = reinterpret_cast<const T*>(a.x.data) + RowOfPlace(a, place) * a.k_in;
  const T* const rest = x + a.x.part_rows * a.k_in;
  float sum = 0.0f;
  for (int64_t k = lane; k < a.k_in; k += kWarp) {
    const float value = ToFloat(x[k]) + (a.x.parts == 2 ? ToFloat(rest[k]) : 0.0f);
    sum = fmaf(value, ToFloat(w[k]), sum);
  }
  sum = OverWarp(sum, Plus{});
  if (lane == 0) a.y[place * a.n_out + row] = sum;
}

constexpr int kAddThreads = 256;
constexpr int kMostChosen = static_cast<int>(kMostChosenOnDevice);

// A block per row.
__global__ void __launch_bounds__(kAddThreads)
    AddExpertsKernel(const __grid_constant__ DeviceRouting routing, const float* y, int64_t width,
                     float* x, int num_chosen) {
  __shared__ int order[kMostChosen];
  const int64_t row = blockIdx.x;
  const int64_t first = row * num_chosen;
  if (threadIdx.x < num_chosen) {
    const int expert = routing.experts[first + threadIdx.x];
    int before = 0;
    for (int j = 0; j < num_chosen; ++j) before += routing.experts[first + j] < expert;
    order[before] = threadIdx.x;
  }
  __syncthreads();
  for (int64_t i = threadIdx.x; i < width; i += kAddThreads) {
    float value = x[row * width + i];
    for (int j = 0; j < num_chosen; ++j) {
      const int64_t pair = first + order[j];
      value = fmaf(routing.weights[pair], y[routing.places[pair] * width + i], value);
    }
    x[row * width + i] = value;
  }
}

template <class T>
void LaunchExperts(const ExpertArguments& arguments, int64_t rows, int64_t num_experts,
                   Stream& stream) {
  const int64_t pairs = rows * arguments.num_chosen;
  if (arguments.k_in % 8 != 0 || arguments.x.parts != 2) {
    const dim3 grid(static_cast<unsigned>(pairs),
                    static_cast<unsigned>((arguments.n_out + kPlainWarps - 1) / kPlainWarps));
    PlainExpertKernel<T><<<grid, kPlainWarps * kWarp, 0, stream.handle()>>>(arguments);
    return;
  }
  const dim3 grid(
      static_cast<unsigned>((arguments.n_out + 16 * kExpertWarps - 1) / (16 * kExpertWarps)),
      static_cast<unsigned>(std::min(pairs, num_experts)));
  constexpr int64_t kFewRows = 64;
  if (rows <= kFewRows) {
    ExpertKernel<T, 2><<<grid, kExpertWarps * kWarp, 0, stream.handle()>>>(arguments);
  } else {
    ExpertKernel<T, 8><<<grid, kExpertWarps * kWarp, 0, stream.handle()>>>(arguments);
  }
}

}  // namespace
}  // namespace cuda

void RouteOnDevice(const RoutingRule& rule, const float* bias, const float* logits, int64_t rows,
                   const DeviceRouting& routing, Stream& stream) {
  PMKVQ_CHECK(rule.num_experts > 0 && rule.num_experts <= kMostExperts);
  PMKVQ_CHECK(rule.num_groups > 0 && rule.num_experts % rule.num_groups == 0);
  PMKVQ_CHECK(rule.num_chosen > 0 && rule.num_chosen <= cuda::kMostChosen);
  if (rows == 0) return;
  const internal::CudaDeviceScope scope(stream.device());
  const cuda::RouteArguments arguments{
      .bias = bias,
      .logits = logits,
      .experts = routing.experts,
      .weights = routing.weights,
      .num_experts = static_cast<int>(rule.num_experts),
      .num_chosen = static_cast<int>(rule.num_chosen),
      .is_softmax = rule.score == RouterScore::kSoftmax,
      .normalizes = rule.normalize,
      .factor = static_cast<float>(rule.factor),
      .num_groups = static_cast<int>(rule.num_groups),
      .num_chosen_groups = static_cast<int>(rule.num_chosen_groups),
      .group_top = static_cast<int>(rule.group_top)};
  cuda::RouteKernel<<<static_cast<unsigned>(rows), cuda::kWarp, 0, stream.handle()>>>(arguments);
  internal::CheckLaunch("routing");
  cuda::GroupKernel<<<1, cuda::kMost, 0, stream.handle()>>>(
      routing, arguments.num_experts, static_cast<int>(rows * rule.num_chosen));
  internal::CheckLaunch("sorting rows by expert");
}

void MultiplyExperts(const RoutingRule& rule, int64_t rows, const DeviceRouting& routing,
                     const ExpertProduct& product, Stream& stream) {
  if (rows == 0) return;
  const internal::CudaDeviceScope scope(stream.device());
  const cuda::ExpertArguments arguments{.routing = routing,
                                        .x = product.x,
                                        .w = product.w,
                                        .y = product.y,
                                        .n_out = product.n_out,
                                        .k_in = product.k_in,
                                        .num_chosen = static_cast<int>(rule.num_chosen),
                                        .of_rows = product.of_rows};
  switch (product.x.type) {
    case DType::kF16:
      cuda::LaunchExperts<__half>(arguments, rows, rule.num_experts, stream);
      break;
    case DType::kBF16:
      cuda::LaunchExperts<__nv_bfloat16>(arguments, rows, rule.num_experts, stream);
      break;
    default: {
      PMKVQ_CHECK(product.x.type == DType::kF32 && product.x.parts == 1);
      const dim3 grid(
          static_cast<unsigned>(rows * rule.num_chosen),
          static_cast<unsigned>((product.n_out + cuda::kPlainWarps - 1) / cuda::kPlainWarps));
      cuda::PlainExpertKernel<float>
          <<<grid, cuda::kPlainWarps * cuda::kWarp, 0, stream.handle()>>>(arguments);
    }
  }
  internal::CheckLaunch("products of experts");
}

void AddExperts(const RoutingRule& rule, int64_t rows, const DeviceRouting& routing, const float* y,
                int64_t width, float* x, Stream& stream) {
  if (rows == 0) return;
  const internal::CudaDeviceScope scope(stream.device());
  cuda::AddExpertsKernel<<<static_cast<unsigned>(rows), cuda::kAddThreads, 0, stream.handle()>>>(
      routing, y, width, x, static_cast<int>(rule.num_chosen));
  internal::CheckLaunch("adding experts");
}

}  // namespace pmkvq
