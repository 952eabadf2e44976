// A block of threads per row (row_block.cuh). Two passes over a row, the second one from a cache.
#include <algorithm>

#include "pmkvq/base/check.h"
#include "pmkvq/kernels/sequence_rows/row_block.cuh"
#include "pmkvq/tensor/device/cuda_runtime.h"

namespace pmkvq {
namespace cuda {
namespace {

__device__ __forceinline__ float ToFloat(float x) { return x; }

template <class T>
__global__ void __launch_bounds__(kRowThreads)
    LargestKernel(const T* x, int64_t count, float* largest) {
  float most = 0.0f;
  bool is_nan = false;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kRowThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kRowThreads + threadIdx.x; i < count;
       i += stride) {
    const float value = fabsf(ToFloat(x[i]));
    is_nan |= isnan(value);
    most = fmaxf(most, value);
  }
  // Bits of floats that are not negative are ordered as the floats, NaN above all.
  unsigned bits = is_nan ? 0x7fffffffu : __float_as_uint(most);
  bits = OverWarp(bits, [](unsigned a, unsigned b) { return max(a, b); });
  if (threadIdx.x % 32 == 0) atomicMax(reinterpret_cast<unsigned*>(largest), bits);
}

template <class T>
__global__ void __launch_bounds__(kRowThreads)
    ScaleKernel(const T* x, int64_t count, float factor, __half* out) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kRowThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kRowThreads + threadIdx.x; i < count;
       i += stride) {
    out[i] = Round<__half>(ToFloat(x[i]) * factor);
  }
}

__global__ void __launch_bounds__(kRowThreads) NormKernel(const __grid_constant__ SequenceNorm op) {
  __shared__ float shared[kRowWarps];
  const int64_t row = blockIdx.x;
  float* const x = op.x + row * op.width;
  const bool has_sums = op.sums.data != nullptr;
  const float* const sums = op.sums.data + row * op.width;
  const float scale = has_sums ? op.sums.scales[row] : 0.0f;
  float square = 0.0f;
  bool is_bad = false;
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < op.width; i += kRowThreads) {
    float value = x[i];
    if (has_sums) {
      value += sums[i] * scale;
      if (op.bias != nullptr) value += op.bias[i];
      x[i] = value;
    }
    is_bad |= !isfinite(value);
    square = fmaf(value, value, square);
  }
  if (is_bad && op.check.first != nullptr) Note(op.check, row);
  if (op.weight == nullptr) return;
  square = OverBlock(square, shared, Plus{});
  const float inverse = 1.0f / sqrtf(square / static_cast<float>(op.width) + op.eps);
  StoreRow(op.out, op.width, row, [&](int64_t i) { return x[i] * inverse * op.weight[i]; });
}

// As RmsNormGrad (kernels/norm).
__global__ void __launch_bounds__(kRowThreads)
    NormGradKernel(const __grid_constant__ SequenceNormGrad op) {
  __shared__ float shared[kRowWarps];
  const int64_t row = blockIdx.x;
  const float* const x = op.x + row * op.width;
  const float* const dy = op.dy.data + row * op.width;
  float* const dx = op.dx + row * op.width;
  const float scale = op.dy.scales[row];
  float square = 0.0f;
  float dot = 0.0f;
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < op.width; i += kRowThreads) {
    const float value = x[i];
    square = fmaf(value, value, square);
    dot = fmaf(dy[i] * op.weight[i], value, dot);
  }
  square = OverBlock(square, shared, Plus{});
  dot = OverBlock(dot, shared, Plus{}) * scale;
  const float inverse = 1.0f / sqrtf(square / static_cast<float>(op.width) + op.eps);
  const float along_x = inverse * inverse * inverse * dot / static_cast<float>(op.width);
  bool is_bad = false;
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < op.width; i += kRowThreads) {
    const float value = dx[i] + (inverse * op.weight[i] * (dy[i] * scale) - along_x * x[i]);
    dx[i] = value;
    is_bad |= !isfinite(value);
  }
  if (is_bad && op.check.first != nullptr) Note(op.check, row);
  if (op.out.data == nullptr) return;
  StoreRow(op.out, op.width, row, [&](int64_t i) { return dx[i]; });
}

// A warp per head. A lane has pairs lane, lane + 32, ...
constexpr int kMostPairs = 4;
constexpr int kHeadsPerBlock = 4;

// One head of a stacked row: which kind it is, and where its values lie.
struct Head {
  bool is_query;
  bool is_value;
  int64_t grouped;  // First value among queries, or among keys or values.
};
__device__ __forceinline__ Head HeadOf(const SequenceHeadShape& shape, int64_t row, int head) {
  const auto heads = static_cast<int>(shape.num_heads);
  const auto kv_heads = static_cast<int>(shape.num_kv_heads);
  const int group = heads / kv_heads;
  if (head < heads) {
    const int64_t at = (head / group * shape.rows + row) * group + head % group;
    return {true, false, at * shape.head_dim};
  }
  const int kv_head = (head - heads) % kv_heads;
  return {false, head >= heads + kv_heads, (row * kv_heads + kv_head) * shape.head_dim};
}

struct HeadPairs {
  float low[kMostPairs];
  float high[kMostPairs];

  template <class Function>
  __device__ __forceinline__ void ForEach(int lane, int pairs, const Function& function) {
#pragma unroll
    for (int n = 0; n < kMostPairs; ++n) {
      if (lane + n * 32 >= pairs) break;
      function(lane + n * 32, low[n], high[n]);
    }
  }
};

// The projection's output for a head, with its bias.
__device__ __forceinline__ HeadPairs LoadHead(const SequenceHeadShape& shape,
                                              const ScaledSums& sums, int64_t row, int head,
                                              int lane) {
  const auto pairs = static_cast<int>(shape.head_dim / 2);
  const int64_t first = static_cast<int64_t>(head) * shape.head_dim;
  const float* const from =
      sums.data + row * (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim + first;
  const float scale = sums.scales[row];
  HeadPairs values;
  values.ForEach(lane, pairs, [&](int i, float& low, float& high) {
    low = from[i] * scale;
    high = from[pairs + i] * scale;
    if (shape.bias != nullptr) {
      low += shape.bias[first + i];
      high += shape.bias[first + pairs + i];
    }
  });
  return values;
}

__device__ __forceinline__ float InverseRms(HeadPairs& values, int lane, int pairs, float eps) {
  float square = 0.0f;
  values.ForEach(lane, pairs, [&](int, float& low, float& high) {
    square = fmaf(low, low, square);
    square = fmaf(high, high, square);
  });
  square = OverWarp(square, Plus{});
  return 1.0f / sqrtf(square / static_cast<float>(2 * pairs) + eps);
}

__global__ void __launch_bounds__(kHeadsPerBlock * 32)
    HeadsKernel(const __grid_constant__ SequenceHeadShape shape,
                const __grid_constant__ ScaledSums sums, float* q, float* k, float* v) {
  const int lane = threadIdx.x % 32;
  const int head = blockIdx.y * kHeadsPerBlock + threadIdx.x / 32;
  if (head >= shape.num_heads + 2 * shape.num_kv_heads) return;
  const int64_t row = blockIdx.x;
  const auto pairs = static_cast<int>(shape.head_dim / 2);
  const Head place = HeadOf(shape, row, head);
  HeadPairs values = LoadHead(shape, sums, row, head, lane);
  const float* const norm = place.is_query ? shape.q_norm : shape.k_norm;
  if (!place.is_value && norm != nullptr) {
    const float inverse = InverseRms(values, lane, pairs, shape.eps);
    values.ForEach(lane, pairs, [&](int i, float& low, float& high) {
      low = low * inverse * norm[i];
      high = high * inverse * norm[pairs + i];
    });
  }
  const auto* const rotations = reinterpret_cast<const float2*>(shape.rotations) + row * pairs;
  float* const out = (place.is_query ? q : place.is_value ? v : k) + place.grouped;
  values.ForEach(lane, pairs, [&](int i, float& low, float& high) {
    if (!place.is_value) {
      const float2 rotation = rotations[i];
      const float x = low * rotation.x - high * rotation.y;
      high = high * rotation.x + low * rotation.y;
      low = x;
    }
    out[i] = low;
    out[pairs + i] = high;
  });
}

// The row is put together in shared memory.
__global__ void __launch_bounds__(kRowThreads)
    HeadsGradKernel(const __grid_constant__ SequenceHeadShape shape,
                    const __grid_constant__ ScaledSums sums, const float* dq, const float* dk,
                    const float* dv, const __grid_constant__ ScaledRows out) {
  extern __shared__ float gradients[];
  const int lane = threadIdx.x % 32;
  const int64_t row = blockIdx.x;
  const auto dim = static_cast<int>(shape.head_dim);
  const int pairs = dim / 2;
  const auto all_heads = static_cast<int>(shape.num_heads + 2 * shape.num_kv_heads);
  const auto* const rotations = reinterpret_cast<const float2*>(shape.rotations) + row * pairs;
  for (int head = threadIdx.x / 32; head < all_heads; head += kRowWarps) {
    const Head place = HeadOf(shape, row, head);
    const float* const from = (place.is_query ? dq : place.is_value ? dv : dk) + place.grouped;
    HeadPairs values;
    values.ForEach(lane, pairs, [&](int i, float& low, float& high) {
      low = from[i];
      high = from[pairs + i];
      if (place.is_value) return;
      const float2 rotation = rotations[i];
      const float x = low * rotation.x + high * rotation.y;
      high = high * rotation.x - low * rotation.y;
      low = x;
    });
    float* const to = gradients + head * dim;
    values.ForEach(lane, pairs, [&](int i, float& low, float& high) {
      to[i] = low;
      to[pairs + i] = high;
    });
    const float* const norm = place.is_query ? shape.q_norm : shape.k_norm;
    if (place.is_value || norm == nullptr) continue;
    // Each lane reads back what it wrote.
    HeadPairs raw = LoadHead(shape, sums, row, head, lane);
    const float inverse = InverseRms(raw, lane, pairs, shape.eps);
    float dot = 0.0f;
    raw.ForEach(lane, pairs, [&](int i, float& low, float& high) {
      dot = fmaf(to[i] * norm[i], low, dot);
      dot = fmaf(to[pairs + i] * norm[pairs + i], high, dot);
    });
    dot = OverWarp(dot, Plus{});
    const float along = inverse * inverse * inverse * dot / static_cast<float>(dim);
    raw.ForEach(lane, pairs, [&](int i, float& low, float& high) {
      to[i] = inverse * norm[i] * to[i] - along * low;
      to[pairs + i] = inverse * norm[pairs + i] * to[pairs + i] - along * high;
    });
  }
  __syncthreads();
  StoreRow(out, static_cast<int64_t>(all_heads) * dim, row,
           [&](int64_t i) { return gradients[i]; });
}

// Of value i of a row [H D].
__device__ __forceinline__ int64_t GroupedRow(const SequenceHeadShape& shape, int64_t row,
                                              int head) {
  const auto group = static_cast<int>(shape.num_heads / shape.num_kv_heads);
  return (head / group * shape.rows + row) * group + head % group;
}

__global__ void __launch_bounds__(kRowThreads)
    GatherKernel(const __grid_constant__ SequenceHeadShape shape,
                 const __grid_constant__ GroupedHeads heads,
                 const __grid_constant__ GroupedHeads other,
                 const __grid_constant__ ScaledRows out) {
  const int64_t row = blockIdx.x;
  const auto dim = static_cast<int>(shape.head_dim);
  StoreRow(out, shape.num_heads * dim, row, [&](int64_t index) {
    const int i = static_cast<int>(index);
    const int64_t at = GroupedRow(shape, row, i / dim);
    float value = heads.data[at * dim + i % dim];
    if (heads.inverses != nullptr) value *= heads.inverses[at];
    if (other.data != nullptr) {
      float subtracted = other.data[at * dim + i % dim];
      if (other.inverses != nullptr) subtracted *= other.inverses[at];
      value -= subtracted;
    }
    return value;
  });
}

__global__ void __launch_bounds__(kRowThreads)
    ScatterKernel(const __grid_constant__ SequenceHeadShape shape,
                  const __grid_constant__ ScaledSums sums, float* out) {
  const int64_t row = blockIdx.x;
  const auto dim = static_cast<int>(shape.head_dim);
  const auto width = static_cast<int>(shape.num_heads * dim);
  const float scale = sums.scales[row];
  for (int i = threadIdx.x; i < width; i += kRowThreads) {
    out[GroupedRow(shape, row, i / dim) * dim + i % dim] = sums.data[row * width + i] * scale;
  }
}

__device__ __forceinline__ float Sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

__global__ void __launch_bounds__(kRowThreads)
    SiluMulKernel(const __grid_constant__ ScaledSums sums, int64_t width,
                  const __grid_constant__ ScaledRows out) {
  const int64_t row = blockIdx.x;
  const float* const gate = sums.data + row * 2 * width;
  const float scale = sums.scales[row];
  StoreRow(out, width, row, [&](int64_t i) {
    const float x = gate[i] * scale;
    return x * Sigmoid(x) * (gate[width + i] * scale);
  });
}

// y = g s(g) u: dg = dy u s (1 + g (1 - s)), du = dy g s.
__global__ void __launch_bounds__(kRowThreads)
    SiluMulGradKernel(const __grid_constant__ ScaledSums sums,
                      const __grid_constant__ ScaledSums dproduct, int64_t width,
                      const __grid_constant__ ScaledRows out) {
  const int64_t row = blockIdx.x;
  const float* const gate = sums.data + row * 2 * width;
  const float* const dy = dproduct.data + row * width;
  const float scale = sums.scales[row];
  const float dscale = dproduct.scales[row];
  StoreRow(out, 2 * width, row, [&](int64_t i) {
    const int64_t at = i < width ? i : i - width;
    const float x = gate[at] * scale;
    const float s = Sigmoid(x);
    const float d = dy[at] * dscale;
    if (i >= width) return d * x * s;
    return d * (gate[width + at] * scale) * s * (1.0f + x * (1.0f - s));
  });
}

// Gradients of probabilities are at most 1 before the weight: one power of two suits all rows.
constexpr float kProbabilityFactor = 0x1p14f;

__global__ void __launch_bounds__(kRowThreads)
    CrossEntropyKernel(const __grid_constant__ ScaledSums logits, const int32_t* targets,
                       int64_t vocab_size, float weight, double* losses,
                       const __grid_constant__ ScaledRows gradient) {
  __shared__ float shared[kRowWarps];
  __shared__ double shared_sums[kRowWarps];
  const int64_t row = blockIdx.x;
  const float* const x = logits.data + row * vocab_size;
  const float scale = logits.scales[row];
  const int64_t target = targets[row];
  float largest = -INFINITY;
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < vocab_size; i += kRowThreads) {
    largest = fmaxf(largest, x[i] * scale);
  }
  largest = OverBlock(largest, shared, Larger{});
  double sum = 0.0;
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < vocab_size; i += kRowThreads) {
    sum += static_cast<double>(expf(x[i] * scale - largest));
  }
  sum = OverBlock(sum, shared_sums, Plus{});
  if (threadIdx.x == 0) {
    losses[row] =
        target < 0
            ? 0.0
            : log(sum) - (static_cast<double>(x[target] * scale) - static_cast<double>(largest));
  }
  if (gradient.data == nullptr) return;
  __syncthreads();
  const float inverse = static_cast<float>(1.0 / sum);
  const bool is_float = gradient.type == DType::kF32;
  const float factor = is_float ? 1.0f : kProbabilityFactor;
  if (threadIdx.x == 0) gradient.scales[row] = weight / factor;
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < vocab_size; i += kRowThreads) {
    float value = expf(x[i] * scale - largest) * inverse;
    if (i == target) value -= 1.0f;
    if (target < 0) value = 0.0f;
    const int64_t at = row * vocab_size + i;
    if (is_float) {
      reinterpret_cast<float*>(gradient.data)[at] = value;
    } else {
      StoreScaled(gradient, at, gradient.part_rows * vocab_size, value * factor);
    }
  }
}

__global__ void __launch_bounds__(kRowThreads)
    SquaresKernel(const __grid_constant__ ScaledSums sums, int64_t width, double* squares) {
  __shared__ double shared[kRowWarps];
  const int64_t row = blockIdx.x;
  const float* const x = sums.data + row * width;
  const auto scale = static_cast<double>(sums.scales[row]);
  float square = 0.0f;
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < width; i += kRowThreads) square = fmaf(x[i], x[i], square);
  const double sum = OverBlock(static_cast<double>(square), shared, Plus{});
  if (threadIdx.x == 0) squares[row] = sum * scale * scale;
}

__global__ void __launch_bounds__(kRowThreads)
    SumKernel(const double* values, int64_t count, int64_t stride, double* sums) {
  __shared__ double shared[kRowWarps];
  const double* const from = values + blockIdx.x * stride;
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < count; i += kRowThreads) sum += from[i];
  sum = OverBlock(sum, shared, Plus{});
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

unsigned BlocksOf(int64_t count, int64_t per_block) {
  return static_cast<unsigned>((count + per_block - 1) / per_block);
}
// Blocks that share a long row of values.
unsigned StridedBlocks(int64_t count) {
  return std::min(BlocksOf(count, kRowThreads * int64_t{8}), 132u * 8u);
}

void CheckOut(const ScaledRows& out, int64_t rows) {
  PMKVQ_CHECK(out.data != nullptr && out.scales != nullptr && rows <= out.part_rows);
  PMKVQ_CHECK((out.type == DType::kF16 && (out.parts == 1 || out.parts == 2)) ||
              (out.type == DType::kF32 && out.parts == 1));
}
void CheckShape(const SequenceHeadShape& shape) {
  PMKVQ_CHECK(shape.head_dim % 2 == 0 && shape.head_dim <= 64 * kMostPairs);
  PMKVQ_CHECK(shape.num_heads % shape.num_kv_heads == 0);
}

// Calls launch(x as its type).
template <class Launch>
void WithType(const std::byte* x, DType type, const Launch& launch) {
  switch (type) {
    case DType::kF16:
      return launch(reinterpret_cast<const __half*>(x));
    case DType::kBF16:
      return launch(reinterpret_cast<const __nv_bfloat16*>(x));
    default:
      PMKVQ_CHECK(type == DType::kF32);
      launch(reinterpret_cast<const float*>(x));
  }
}

}  // namespace
}  // namespace cuda

using internal::CheckLaunch;
using internal::CudaDeviceScope;

void FindLargest(const std::byte* x, DType type, int64_t count, float* largest, Stream& stream) {
  const CudaDeviceScope scope(stream.device());
  cuda::WithType(x, type, [&]<class T>(const T* typed) {
    cuda::LargestKernel<T><<<cuda::StridedBlocks(count), cuda::kRowThreads, 0, stream.handle()>>>(
        typed, count, largest);
  });
  CheckLaunch("the largest weight");
}

void ScaleToF16(const std::byte* x, DType type, int64_t count, float factor, std::byte* out,
                Stream& stream) {
  const CudaDeviceScope scope(stream.device());
  cuda::WithType(x, type, [&]<class T>(const T* typed) {
    cuda::ScaleKernel<T><<<cuda::StridedBlocks(count), cuda::kRowThreads, 0, stream.handle()>>>(
        typed, count, factor, reinterpret_cast<__half*>(out));
  });
  CheckLaunch("scaling weights");
}

void AddAndNormSequence(const SequenceNorm& op, Stream& stream) {
  if (op.weight != nullptr) cuda::CheckOut(op.out, op.rows);
  const CudaDeviceScope scope(stream.device());
  cuda::NormKernel<<<static_cast<unsigned>(op.rows), cuda::kRowThreads, 0, stream.handle()>>>(op);
  CheckLaunch("norms of a sequence");
}

void AddNormGrad(const SequenceNormGrad& op, Stream& stream) {
  if (op.out.data != nullptr) cuda::CheckOut(op.out, op.rows);
  const CudaDeviceScope scope(stream.device());
  cuda::NormGradKernel<<<static_cast<unsigned>(op.rows), cuda::kRowThreads, 0, stream.handle()>>>(
      op);
  CheckLaunch("gradients of norms");
}

void MakeSequenceHeads(const SequenceHeadShape& shape, const ScaledSums& sums, float* q, float* k,
                       float* v, Stream& stream) {
  cuda::CheckShape(shape);
  const CudaDeviceScope scope(stream.device());
  const dim3 grid(static_cast<unsigned>(shape.rows),
                  cuda::BlocksOf(shape.num_heads + 2 * shape.num_kv_heads, cuda::kHeadsPerBlock));
  cuda::HeadsKernel<<<grid, cuda::kHeadsPerBlock * 32, 0, stream.handle()>>>(shape, sums, q, k, v);
  CheckLaunch("queries, keys and values of a sequence");
}

void SequenceHeadsGrad(const SequenceHeadShape& shape, const ScaledSums& sums, const float* dq,
                       const float* dk, const float* dv, const ScaledRows& out, Stream& stream) {
  cuda::CheckShape(shape);
  cuda::CheckOut(out, shape.rows);
  const CudaDeviceScope scope(stream.device());
  const auto bytes =
      static_cast<size_t>((shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim) *
      sizeof(float);
  internal::CheckCuda(
      cudaFuncSetAttribute(cuda::HeadsGradKernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           static_cast<int>(bytes)),
      "memory for gradients of heads");
  cuda::HeadsGradKernel<<<static_cast<unsigned>(shape.rows), cuda::kRowThreads, bytes,
                          stream.handle()>>>(shape, sums, dq, dk, dv, out);
  CheckLaunch("gradients of heads");
}

void GatherHeads(const SequenceHeadShape& shape, const GroupedHeads& heads,
                 const GroupedHeads& other, const ScaledRows& out, Stream& stream) {
  cuda::CheckShape(shape);
  cuda::CheckOut(out, shape.rows);
  const CudaDeviceScope scope(stream.device());
  cuda::GatherKernel<<<static_cast<unsigned>(shape.rows), cuda::kRowThreads, 0, stream.handle()>>>(
      shape, heads, other, out);
  CheckLaunch("gathering heads");
}

void ScatterHeads(const SequenceHeadShape& shape, const ScaledSums& sums, float* out,
                  Stream& stream) {
  cuda::CheckShape(shape);
  const CudaDeviceScope scope(stream.device());
  cuda::ScatterKernel<<<static_cast<unsigned>(shape.rows), cuda::kRowThreads, 0, stream.handle()>>>(
      shape, sums, out);
  CheckLaunch("scattering heads");
}

void SiluMulSequence(const ScaledSums& sums, int64_t rows, int64_t width, const ScaledRows& out,
                     Stream& stream) {
  cuda::CheckOut(out, rows);
  const CudaDeviceScope scope(stream.device());
  cuda::SiluMulKernel<<<static_cast<unsigned>(rows), cuda::kRowThreads, 0, stream.handle()>>>(
      sums, width, out);
  CheckLaunch("SiLU of a sequence");
}

void SiluMulSequenceGrad(const ScaledSums& sums, const ScaledSums& dproduct, int64_t rows,
                         int64_t width, const ScaledRows& out, Stream& stream) {
  cuda::CheckOut(out, rows);
  const CudaDeviceScope scope(stream.device());
  cuda::SiluMulGradKernel<<<static_cast<unsigned>(rows), cuda::kRowThreads, 0, stream.handle()>>>(
      sums, dproduct, width, out);
  CheckLaunch("gradients of SiLU");
}

void SequenceCrossEntropy(const ScaledSums& logits, const int32_t* targets, int64_t rows,
                          int64_t vocab_size, float weight, double* losses,
                          const ScaledRows& gradient, Stream& stream) {
  if (gradient.data != nullptr) cuda::CheckOut(gradient, rows);
  const CudaDeviceScope scope(stream.device());
  cuda::CrossEntropyKernel<<<static_cast<unsigned>(rows), cuda::kRowThreads, 0, stream.handle()>>>(
      logits, targets, vocab_size, weight, losses, gradient);
  CheckLaunch("cross entropy");
}

void SumSquaresOfRows(const ScaledSums& sums, int64_t rows, int64_t width, double* squares,
                      Stream& stream) {
  const CudaDeviceScope scope(stream.device());
  cuda::SquaresKernel<<<static_cast<unsigned>(rows), cuda::kRowThreads, 0, stream.handle()>>>(
      sums, width, squares);
  CheckLaunch("squares of rows");
}

void SumDoubles(const double* values, int64_t count, int64_t stride, int64_t num_sums, double* sums,
                Stream& stream) {
  const CudaDeviceScope scope(stream.device());
  cuda::SumKernel<<<static_cast<unsigned>(num_sums), cuda::kRowThreads, 0, stream.handle()>>>(
      values, count, stride, sums);
  CheckLaunch("sums");
}

}  // namespace pmkvq
