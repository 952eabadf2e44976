#include <cuda_runtime.h>

#include "pmkvq/kernels/attention/chunk_attention.h"
#include "pmkvq/kernels/cuda/float16.cuh"
#include "pmkvq/tensor/device/cuda_runtime.h"

namespace pmkvq {
namespace cuda {
namespace {

constexpr int kThreads = 256;

struct PackArguments {
  ChunkOperands op;
  internal::ChunkMemory memory;
  int heads;
  int group;
  int dim;
  int rest;
  int rest_capacity;
  int columns;
};

// A value of the cache as what is multiplied.
__device__ __forceinline__ void Put(__half* to, __half value) { *to = value; }
__device__ __forceinline__ void Put(float* to, __nv_bfloat16 value) { *to = ToFloat(value); }
__device__ __forceinline__ void Put(__half* to, float value) { *to = Round<__half>(value); }
__device__ __forceinline__ void Put(float* to, float value) { *to = value; }
__device__ __forceinline__ float Get(__half value) { return ToFloat(value); }
__device__ __forceinline__ float Get(float value) { return value; }

// Blocks: rows of q, k and v together. y = 0: q of token x; 1: k and v of column x. T: of the
// cache; M: of memory.
template <class T, class M>
__global__ void __launch_bounds__(kThreads) PackKernel(const __grid_constant__ PackArguments a) {
  const int64_t x = blockIdx.x;
  bool has_unfit[3] = {false, false, false};
  if (blockIdx.y == 0) {
    if (x >= a.op.num_rows) return;
    const int width = a.heads * a.group * a.dim;
    const float* const from = a.op.q + x * width;
    auto* const to = reinterpret_cast<M*>(a.memory.q);
    for (int i = threadIdx.x; i < width; i += kThreads) {
      const int head = i / (a.group * a.dim);
      M& value = to[(head * a.op.num_rows + x) * a.group * a.dim + i % (a.group * a.dim)];
      Put(&value, from[i]);
      has_unfit[2] |= !isfinite(Get(value));
    }
  } else {
    const int width = a.heads * a.dim;
    const int64_t row = x - a.rest;
    for (int i = threadIdx.x; i < 2 * width; i += kThreads) {
      const bool is_values = i >= width;
      const int head = i % width / a.dim;
      const int dim = i % a.dim;
      T value = Round<T>(0.0f);
      if (row < 0) {
        const auto* const slot = reinterpret_cast<const T*>(
            a.op.arena +
            static_cast<size_t>(is_values ? a.op.rest_v : a.op.rest_k) * fragment::kArenaUnit);
        value = slot[(head * a.rest_capacity + x) * a.dim + dim];
      } else if (row < a.op.num_rows) {
        value = Round<T>((is_values ? a.op.v : a.op.k)[row * width + i % width]);
        has_unfit[is_values ? 1 : 0] |= !isfinite(ToFloat(value));
      }
      auto* const to = reinterpret_cast<M*>(is_values ? a.memory.v : a.memory.k);
      Put(to + (static_cast<int64_t>(head) * a.columns + x) * a.dim + dim, value);
    }
  }
#pragma unroll
  for (uint32_t kind = 0; kind < 3; ++kind) {
    if (has_unfit[kind]) atomicMin(a.op.unfit, kUnfitKinds * a.op.block + kind);
  }
}

struct WeighArguments {
  internal::ChunkMemory memory;
  internal::ChunkSlice slice;
  int group;
  int dim;
  int64_t rows;  // Hkv * T * G
  int64_t rows_per_head;
  float scale;  // With log2(e).
  SinkLayout sink;
  int num_tokens;  // Stored before.
  int window;      // 0: none.
};

// The first columns of a slice, which the chunk's row `row` does not see. Columns of the sink's
// rest are older than those of the chunk.
__device__ __forceinline__ int64_t HiddenColumns(const WeighArguments& a, int64_t row) {
  if (a.window == 0) return 0;
  const int64_t last = a.num_tokens + row;
  const auto hidden = static_cast<int>(last + 1 < a.window ? 0 : last + 1 - a.window);
  if (!a.slice.is_own) return a.sink.InPages(hidden) - a.slice.first_in_pages;
  return a.sink.InRest(min(hidden, a.num_tokens)) + max(0, hidden - a.num_tokens);
}

// A warp per row.
template <class M>
__global__ void __launch_bounds__(kThreads) WeighKernel(const __grid_constant__ WeighArguments a) {
  const int lane = threadIdx.x % 32;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  if (row >= a.rows) return;
  const int64_t columns = a.slice.columns;
  const int64_t token = row % a.rows_per_head / a.group;
  const int64_t visible = a.slice.visible + (a.slice.is_own ? token + 1 : 0);
  const int64_t hidden = HiddenColumns(a, token);
  const float* const scores = a.memory.scores + row * columns;
  float largest = -INFINITY;
  for (int64_t i = (hidden > 0 ? hidden : 0) + lane; i < visible; i += 32) {
    largest = fmaxf(largest, scores[i]);
  }
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, distance));
  }
  float2* const sums = reinterpret_cast<float2*>(a.memory.references) + row;
  const float2 before = a.slice.is_own ? make_float2(-INFINITY, 0.0f) : *sums;
  // Weights are at most 2^10, so that small ones are no subnormal F16.
  constexpr float kLargest = 10.0f;
  const float reference = fmaxf(before.x, largest * a.scale - kLargest);
  auto* const weights = reinterpret_cast<M*>(a.memory.weights) + row * columns;
  float sum = 0.0f;
  for (int64_t i = lane; i < columns; i += 32) {
    // The sum is of the weights as they are multiplied.
    M weight;
    Put(&weight, hidden <= i && i < visible ? exp2f(scores[i] * a.scale - reference) : 0.0f);
    weights[i] = weight;
    sum += Get(weight);
  }
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    sum += __shfl_xor_sync(~0u, sum, distance);
  }
  const float factor = a.slice.is_own ? 0.0f : exp2f(before.x - reference);
  if (lane == 0) *sums = make_float2(reference, before.y * factor + sum);
  if (a.slice.is_own || factor == 1.0f) return;
  float* const out = a.memory.sums + row * a.dim;
  for (int i = lane; i < a.dim; i += 32) out[i] *= factor;
}

__global__ void __launch_bounds__(kThreads)
    FinishKernel(const __grid_constant__ internal::ChunkMemory memory, float* out, int64_t rows,
                 int heads, int group, int dim) {
  const int64_t token = blockIdx.x;
  const int width = heads * group * dim;
  for (int i = threadIdx.x; i < width; i += kThreads) {
    const int head = i / (group * dim);
    const int64_t row = (head * rows + token) * group + i % (group * dim) / dim;
    out[token * width + i] = memory.sums[row * dim + i % dim] / memory.references[2 * row + 1];
  }
}

}  // namespace
}  // namespace cuda

namespace internal {

void PackChunk(const DecodeShape& shape, const ChunkOperands& operands, int64_t rest,
               int64_t columns, const ChunkMemory& memory, Stream& stream) {
  const CudaDeviceScope scope(stream.device());
  const cuda::PackArguments arguments{
      .op = operands,
      .memory = memory,
      .heads = static_cast<int>(shape.num_kv_heads),
      .group = static_cast<int>(shape.num_heads / shape.num_kv_heads),
      .dim = static_cast<int>(shape.head_dim),
      .rest = static_cast<int>(rest),
      .rest_capacity = shape.sink.rest_tokens,
      .columns = static_cast<int>(columns)};
  const dim3 grid(static_cast<unsigned>(columns), 2);
  const auto kernel = shape.float_type == DType::kF16 ? cuda::PackKernel<__half, __half>
                                                      : cuda::PackKernel<__nv_bfloat16, float>;
  kernel<<<grid, cuda::kThreads, 0, stream.handle()>>>(arguments);
  CheckLaunch("packing a chunk");
}

void WeighChunk(const DecodeShape& shape, const ChunkOperands& operands, const ChunkSlice& slice,
                const ChunkMemory& memory, Stream& stream) {
  constexpr float kLog2E = 1.44269504f;
  const CudaDeviceScope scope(stream.device());
  const int64_t group = shape.num_heads / shape.num_kv_heads;
  const cuda::WeighArguments arguments{.memory = memory,
                                       .slice = slice,
                                       .group = static_cast<int>(group),
                                       .dim = static_cast<int>(shape.head_dim),
                                       .rows = shape.num_heads * operands.num_rows,
                                       .rows_per_head = group * operands.num_rows,
                                       .scale = shape.scale * kLog2E,
                                       .sink = shape.sink,
                                       .num_tokens = operands.num_tokens,
                                       .window = static_cast<int>(shape.sliding_window)};
  constexpr int kRowsPerBlock = cuda::kThreads / 32;
  const auto blocks = static_cast<unsigned>((arguments.rows + kRowsPerBlock - 1) / kRowsPerBlock);
  const auto kernel =
      ChunkType(shape) == DType::kF16 ? cuda::WeighKernel<__half> : cuda::WeighKernel<float>;
  kernel<<<blocks, cuda::kThreads, 0, stream.handle()>>>(arguments);
  CheckLaunch("weights of attention");
}

void FinishChunk(const DecodeShape& shape, const ChunkOperands& operands, const ChunkMemory& memory,
                 Stream& stream) {
  const CudaDeviceScope scope(stream.device());
  cuda::FinishKernel<<<static_cast<unsigned>(operands.num_rows), cuda::kThreads, 0,
                       stream.handle()>>>(
      memory, operands.out, operands.num_rows, static_cast<int>(shape.num_kv_heads),
      static_cast<int>(shape.num_heads / shape.num_kv_heads), static_cast<int>(shape.head_dim));
  CheckLaunch("the output of attention");
}

}  // namespace internal
}  // namespace pmkvq
