// A block of threads per row, or a warp per head. Sums are added up in a fixed order.
#include <cuda_runtime.h>

#include <algorithm>

#include "pmkvq/base/check.h"
#include "pmkvq/kernels/cuda/float16.cuh"
#include "pmkvq/kernels/device_rows/device_rows.h"
#include "pmkvq/tensor/device/cuda_runtime.h"

namespace pmkvq {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;

__device__ __forceinline__ float ToFloat(float x) { return x; }

__device__ __forceinline__ float SumOf(const ProductSums& sums, int64_t width, int64_t row,
                                       int64_t i) {
  float sum = sums.data[row * width + i];
  if (sums.parts == 2) sum += sums.data[(sums.part_rows + row) * width + i];
  return sum;
}

// The first of two parts. Of F16 at most 65504: the rest takes up as much again.
template <class T>
__device__ __forceinline__ T FirstPart(float value) {
  if constexpr (MaxFinite<T>() < 1e5f) {
    if (value > MaxFinite<T>()) return Round<T>(MaxFinite<T>());
    if (value < -MaxFinite<T>()) return Round<T>(-MaxFinite<T>());
  }
  return Round<T>(value);
}

template <class T>
__device__ __forceinline__ void StorePart(const ProductRows& out, int64_t width, int64_t row,
                                          int64_t i, float value) {
  T* const data = reinterpret_cast<T*>(out.data);
  const T rounded = out.parts == 2 ? FirstPart<T>(value) : Round<T>(value);
  data[row * width + i] = rounded;
  if (out.parts == 2) {
    data[(out.part_rows + row) * width + i] = Round<T>(value - ToFloat(rounded));
  }
}

__device__ __forceinline__ void Store(const ProductRows& out, int64_t width, int64_t row, int64_t i,
                                      float value) {
  switch (out.type) {
    case DType::kF16:
      return StorePart<__half>(out, width, row, i, value);
    case DType::kBF16:
      return StorePart<__nv_bfloat16>(out, width, row, i, value);
    default:
      reinterpret_cast<float*>(out.data)[row * width + i] = value;
  }
}

__device__ __forceinline__ float4 Add(const float4& a, const float4& b) {
  return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};
}
// Four adjacent values; widths are multiples of 4.
__device__ __forceinline__ float4 FourSumsOf(const ProductSums& sums, int64_t width, int64_t row,
                                             int64_t four) {
  const auto* const data = reinterpret_cast<const float4*>(sums.data);
  const float4 first = __ldcg(data + row * width / 4 + four);
  if (sums.parts == 1) return first;
  return Add(first, __ldcg(data + (sums.part_rows + row) * width / 4 + four));
}

template <class T>
__device__ __forceinline__ void StoreFourParts(const ProductRows& out, int64_t width, int64_t row,
                                               int64_t four, const float4& value) {
  const float values[4] = {value.x, value.y, value.z, value.w};
  T rounded[4];
  T rest[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    rounded[i] = out.parts == 2 ? FirstPart<T>(values[i]) : Round<T>(values[i]);
    rest[i] = Round<T>(values[i] - ToFloat(rounded[i]));
  }
  auto* const data = reinterpret_cast<uint2*>(out.data);
  data[row * width / 4 + four] = *reinterpret_cast<const uint2*>(rounded);
  if (out.parts == 2) {
    data[(out.part_rows + row) * width / 4 + four] = *reinterpret_cast<const uint2*>(rest);
  }
}
__device__ __forceinline__ void StoreFour(const ProductRows& out, int64_t width, int64_t row,
                                          int64_t four, const float4& value) {
  switch (out.type) {
    case DType::kF16:
      return StoreFourParts<__half>(out, width, row, four, value);
    case DType::kBF16:
      return StoreFourParts<__nv_bfloat16>(out, width, row, four, value);
    default:
      reinterpret_cast<float4*>(out.data)[row * width / 4 + four] = value;
  }
}

__device__ __forceinline__ float WarpSum(float x) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    x += __shfl_xor_sync(~0u, x, distance);
  }
  return x;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    EmbedKernel(const T* table, const int32_t* tokens, int64_t width, float* x) {
  const T* const from = table + static_cast<int64_t>(tokens[blockIdx.x]) * width;
  float* const to = x + blockIdx.x * width;
  for (int64_t i = threadIdx.x; i < width; i += kThreads) to[i] = ToFloat(from[i]);
}

__global__ void __launch_bounds__(kThreads) NormKernel(const __grid_constant__ NormRows op) {
  __shared__ float warp_sums[kThreads / kWarp];
  const int64_t row = blockIdx.x;
  float* const x = op.x + (op.picked != nullptr ? op.picked[row] : row) * op.width;
  float square = 0.0f;
  for (int64_t i = threadIdx.x; i < op.width; i += kThreads) {
    float value = x[i];
    if (op.sums.data != nullptr) {
      value += SumOf(op.sums, op.width, row, i);
      if (op.bias != nullptr) value += op.bias[i];
      x[i] = value;
    }
    square = fmaf(value, value, square);
  }
  if (op.weight == nullptr) return;
  square = WarpSum(square);
  if (threadIdx.x % kWarp == 0) warp_sums[threadIdx.x / kWarp] = square;
  __syncthreads();
  float sum = 0.0f;
#pragma unroll
  for (int w = 0; w < kThreads / kWarp; ++w) sum += warp_sums[w];
  const float inverse = 1.0f / sqrtf(sum / static_cast<float>(op.width) + op.eps);
  for (int64_t i = threadIdx.x; i < op.width; i += kThreads) {
    Store(op.out, op.width, row, i, x[i] * inverse * op.weight[i]);
  }
}

// Rows of at most kMostFours * 4 values, a multiple of 4, in registers between both passes: few
// rows are one chain of dependent steps, which reading them twice would make longer.
constexpr int kNormThreads = 1024;
constexpr int kFoursPerThread = 2;
constexpr int kMostFours = kNormThreads * kFoursPerThread;

__global__ void __launch_bounds__(kNormThreads)
    NormFoursKernel(const __grid_constant__ NormRows op) {
  __shared__ float warp_sums[kNormThreads / kWarp];
  const int64_t row = blockIdx.x;
  const int fours = static_cast<int>(op.width / 4);
  auto* const x =
      reinterpret_cast<float4*>(op.x) + (op.picked != nullptr ? op.picked[row] : row) * fours;
  float4 values[kFoursPerThread];
  float square = 0.0f;
#pragma unroll
  for (int n = 0; n < kFoursPerThread; ++n) {
    const int i = threadIdx.x + n * blockDim.x;
    if (i >= fours) break;
    float4 value = x[i];
    if (op.sums.data != nullptr) {
      value = Add(value, FourSumsOf(op.sums, op.width, row, i));
      if (op.bias != nullptr) value = Add(value, reinterpret_cast<const float4*>(op.bias)[i]);
      x[i] = value;
    }
    values[n] = value;
    square = fmaf(value.x, value.x, square);
    square = fmaf(value.y, value.y, square);
    square = fmaf(value.z, value.z, square);
    square = fmaf(value.w, value.w, square);
  }
  if (op.weight == nullptr) return;
  square = WarpSum(square);
  if (threadIdx.x % kWarp == 0) warp_sums[threadIdx.x / kWarp] = square;
  __syncthreads();
  const int lane = threadIdx.x % kWarp;
  const float sum = WarpSum(lane < static_cast<int>(blockDim.x) / kWarp ? warp_sums[lane] : 0.0f);
  const float inverse = 1.0f / sqrtf(sum / static_cast<float>(op.width) + op.eps);
#pragma unroll
  for (int n = 0; n < kFoursPerThread; ++n) {
    const int i = threadIdx.x + n * blockDim.x;
    if (i >= fours) break;
    const float4 weight = reinterpret_cast<const float4*>(op.weight)[i];
    StoreFour(op.out, op.width, row, i,
              {values[n].x * inverse * weight.x, values[n].y * inverse * weight.y,
               values[n].z * inverse * weight.z, values[n].w * inverse * weight.w});
  }
}

__global__ void __launch_bounds__(kThreads)
    RotationsKernel(const int32_t* positions, int64_t count, const float* frequencies, int pairs,
                    float factor, float2* rotations) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count) return;
  const float angle = static_cast<float>(positions[i / pairs]) * frequencies[i % pairs];
  double sine = 0.0;
  double cosine = 0.0;
  sincos(static_cast<double>(angle), &sine, &cosine);
  rotations[i] =
      make_float2(static_cast<float>(cosine) * factor, static_cast<float>(sine) * factor);
}

// Blocks: rows x heads of all three kinds; a warp each. A lane has pairs lane, lane + 32, ...
constexpr int kMostPairs = 4;  // Of a lane: D of 256 at most.
constexpr int kHeadsPerBlock = 4;

__global__ void __launch_bounds__(kHeadsPerBlock* kWarp)
    HeadKernel(const __grid_constant__ HeadRows op) {
  const int lane = threadIdx.x % kWarp;
  const int all_heads = static_cast<int>(op.num_heads + 2 * op.num_kv_heads);
  const int head = blockIdx.y * kHeadsPerBlock + threadIdx.x / kWarp;
  if (head >= all_heads) return;
  const int64_t row = blockIdx.x;
  const int dim = static_cast<int>(op.head_dim);
  const int pairs = dim / 2;
  const int64_t width = static_cast<int64_t>(all_heads) * dim;
  const int64_t first = static_cast<int64_t>(head) * dim;
  float low[kMostPairs];
  float high[kMostPairs];
#pragma unroll
  for (int n = 0; n < kMostPairs; ++n) {
    const int i = lane + n * kWarp;
    if (i >= pairs) break;
    low[n] = SumOf(op.sums, width, row, first + i);
    high[n] = SumOf(op.sums, width, row, first + pairs + i);
    if (op.bias != nullptr) {
      low[n] += op.bias[first + i];
      high[n] += op.bias[first + pairs + i];
    }
  }
  const int num_heads = static_cast<int>(op.num_heads);
  const int kv_heads = static_cast<int>(op.num_kv_heads);
  const bool is_query = head < num_heads;
  const bool is_value = head >= num_heads + kv_heads;
  float* out = nullptr;
  const float* norm = nullptr;
  const float* factors = nullptr;
  if (is_query) {
    out = op.q + (row * num_heads + head) * dim;
    norm = op.q_norm;
    if (op.query_factors != nullptr)
      factors = op.query_factors + static_cast<int64_t>(head) * pairs;
  } else {
    const int kv_head = (head - num_heads) % kv_heads;
    out = (is_value ? op.v : op.k) + (row * kv_heads + kv_head) * dim;
    norm = op.k_norm;
    if (op.key_factors != nullptr) factors = op.key_factors + static_cast<int64_t>(kv_head) * pairs;
  }
  if (!is_value && norm != nullptr) {
    float square = 0.0f;
#pragma unroll
    for (int n = 0; n < kMostPairs; ++n) {
      if (lane + n * kWarp >= pairs) break;
      square = fmaf(low[n], low[n], square);
      square = fmaf(high[n], high[n], square);
    }
    square = WarpSum(square);
    const float inverse = 1.0f / sqrtf(square / static_cast<float>(dim) + op.eps);
#pragma unroll
    for (int n = 0; n < kMostPairs; ++n) {
      const int i = lane + n * kWarp;
      if (i >= pairs) break;
      low[n] = low[n] * inverse * norm[i];
      high[n] = high[n] * inverse * norm[pairs + i];
    }
  }
  const auto* const rotations = reinterpret_cast<const float2*>(op.rotations) + row * pairs;
  const bool is_key = !is_query && !is_value;
#pragma unroll
  for (int n = 0; n < kMostPairs; ++n) {
    const int i = lane + n * kWarp;
    if (i >= pairs) break;
    float a = low[n];
    float b = high[n];
    if (is_key && op.raw_k != nullptr) {
      float* const raw = op.raw_k + (out - op.k);
      raw[i] = a;
      raw[pairs + i] = b;
    }
    if (!is_value) {
      const float2 rotation = rotations[i];
      const float x = a * rotation.x - b * rotation.y;
      b = b * rotation.x + a * rotation.y;
      a = x;
      if (factors != nullptr) {
        a *= factors[i];
        b *= factors[i];
      }
    }
    out[i] = a;
    out[pairs + i] = b;
  }
}

// Blocks: rows x pieces of a row.
__global__ void __launch_bounds__(kThreads)
    RoundKernel(const float* x, int64_t width, const __grid_constant__ ProductRows out) {
  const int64_t i = static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x;
  if (i < width) Store(out, width, blockIdx.x, i, x[blockIdx.x * width + i]);
}

__global__ void __launch_bounds__(kThreads)
    RoundFoursKernel(const float* x, int64_t width, const __grid_constant__ ProductRows out) {
  const int64_t four = static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x;
  if (four >= width / 4) return;
  StoreFour(out, width, blockIdx.x, four,
            reinterpret_cast<const float4*>(x)[blockIdx.x * width / 4 + four]);
}

__device__ __forceinline__ float SiluMul(float gate, float up) {
  return gate / (1.0f + expf(-gate)) * up;
}

__global__ void __launch_bounds__(kThreads)
    SiluMulFoursKernel(const __grid_constant__ ProductSums sums, int64_t width,
                       const __grid_constant__ ProductRows out) {
  const int64_t four = static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x;
  if (four >= width / 4) return;
  const float4 gate = FourSumsOf(sums, 2 * width, blockIdx.x, four);
  const float4 up = FourSumsOf(sums, 2 * width, blockIdx.x, width / 4 + four);
  StoreFour(
      out, width, blockIdx.x, four,
      {SiluMul(gate.x, up.x), SiluMul(gate.y, up.y), SiluMul(gate.z, up.z), SiluMul(gate.w, up.w)});
}

__global__ void __launch_bounds__(kThreads)
    SiluMulKernel(const __grid_constant__ ProductSums sums, int64_t width,
                  const __grid_constant__ ProductRows out) {
  const int64_t i = static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x;
  if (i >= width) return;
  const int64_t row = blockIdx.x;
  const float gate = SumOf(sums, 2 * width, row, i);
  const float up = SumOf(sums, 2 * width, row, width + i);
  Store(out, width, row, i, SiluMul(gate, up));
}

__global__ void __launch_bounds__(kThreads)
    AddPartsKernel(const __grid_constant__ ProductSums sums, int64_t width, float* out) {
  const int64_t i = static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x;
  if (i < width) out[blockIdx.x * width + i] = SumOf(sums, width, blockIdx.x, i);
}

// A warp per head; lane l has values l, l + 32, ...: distances of 32 and more are within a lane.
template <int kDim>
__global__ void __launch_bounds__(kHeadsPerBlock* kWarp) HadamardKernel(float* x, int64_t count) {
  constexpr int kValues = kDim / kWarp;
  const int lane = threadIdx.x % kWarp;
  const int64_t head = static_cast<int64_t>(blockIdx.x) * kHeadsPerBlock + threadIdx.x / kWarp;
  if (head >= count) return;
  float value[kValues];
#pragma unroll
  for (int n = 0; n < kValues; ++n) value[n] = x[head * kDim + lane + n * kWarp];
#pragma unroll
  for (int distance = 1; distance < kWarp; distance *= 2) {
#pragma unroll
    for (int n = 0; n < kValues; ++n) {
      const float other = __shfl_xor_sync(~0u, value[n], distance);
      value[n] = (lane & distance) == 0 ? value[n] + other : other - value[n];
    }
  }
#pragma unroll
  for (int half = 1; half < kValues; half *= 2) {
#pragma unroll
    for (int n = 0; n < kValues; ++n) {
      if ((n & half) != 0) continue;
      const float a = value[n];
      const float b = value[n + half];
      value[n] = a + b;
      value[n + half] = a - b;
    }
  }
  const float scale = 1.0f / sqrtf(static_cast<float>(kDim));
#pragma unroll
  for (int n = 0; n < kValues; ++n) x[head * kDim + lane + n * kWarp] = value[n] * scale;
}

unsigned BlocksOf(int64_t count, int64_t per_block) {
  return static_cast<unsigned>((count + per_block - 1) / per_block);
}
dim3 RowPieces(int64_t rows, int64_t width) {
  return {static_cast<unsigned>(rows), BlocksOf(width, kThreads)};
}

void CheckOut(const ProductRows& out, int64_t rows) {
  PMKVQ_CHECK(out.type == DType::kF16 || out.type == DType::kBF16 || out.type == DType::kF32);
  PMKVQ_CHECK(out.parts == 1 || (out.parts == 2 && out.type != DType::kF32));
  PMKVQ_CHECK(rows <= out.part_rows);
}

}  // namespace
}  // namespace cuda

void EmbedRows(const std::byte* table, DType type, const int32_t* tokens, int64_t rows,
               int64_t width, float* x, Stream& stream) {
  if (rows == 0) return;
  const internal::CudaDeviceScope scope(stream.device());
  const auto launch = [&]<class T>(const T* typed) {
    cuda::EmbedKernel<T><<<static_cast<unsigned>(rows), cuda::kThreads, 0, stream.handle()>>>(
        typed, tokens, width, x);
  };
  switch (type) {
    case DType::kF16:
      launch(reinterpret_cast<const __half*>(table));
      break;
    case DType::kBF16:
      launch(reinterpret_cast<const __nv_bfloat16*>(table));
      break;
    default:
      PMKVQ_CHECK(type == DType::kF32);
      launch(reinterpret_cast<const float*>(table));
  }
  internal::CheckLaunch("looking up tokens");
}

void AddAndNormRows(const NormRows& op, Stream& stream) {
  if (op.rows == 0) return;
  PMKVQ_CHECK(op.picked == nullptr || op.sums.data == nullptr);
  if (op.weight != nullptr) cuda::CheckOut(op.out, op.rows);
  const internal::CudaDeviceScope scope(stream.device());
  if (op.width % 4 == 0 && op.width / 4 <= cuda::kMostFours) {
    const int64_t warps = (op.width / 4 + cuda::kWarp - 1) / cuda::kWarp;
    const auto threads =
        static_cast<unsigned>(std::min<int64_t>(warps * cuda::kWarp, cuda::kNormThreads));
    cuda::NormFoursKernel<<<static_cast<unsigned>(op.rows), threads, 0, stream.handle()>>>(op);
    internal::CheckLaunch("norms of rows");
    return;
  }
  cuda::NormKernel<<<static_cast<unsigned>(op.rows), cuda::kThreads, 0, stream.handle()>>>(op);
  internal::CheckLaunch("norms of rows");
}

void MakeRotations(const int32_t* positions, int64_t rows, const float* frequencies, int64_t pairs,
                   float factor, float* rotations, Stream& stream) {
  if (rows == 0) return;
  const internal::CudaDeviceScope scope(stream.device());
  cuda::RotationsKernel<<<cuda::BlocksOf(rows * pairs, cuda::kThreads), cuda::kThreads, 0,
                          stream.handle()>>>(positions, rows * pairs, frequencies,
                                             static_cast<int>(pairs), factor,
                                             reinterpret_cast<float2*>(rotations));
  internal::CheckLaunch("rotations");
}

void MakeHeadRows(const HeadRows& op, Stream& stream) {
  if (op.rows == 0) return;
  PMKVQ_CHECK(op.head_dim % 2 == 0 && op.head_dim <= 2 * cuda::kWarp * cuda::kMostPairs);
  const internal::CudaDeviceScope scope(stream.device());
  const dim3 grid(static_cast<unsigned>(op.rows),
                  cuda::BlocksOf(op.num_heads + 2 * op.num_kv_heads, cuda::kHeadsPerBlock));
  cuda::HeadKernel<<<grid, cuda::kHeadsPerBlock * cuda::kWarp, 0, stream.handle()>>>(op);
  internal::CheckLaunch("queries, keys and values");
}

void RoundRows(const float* x, int64_t rows, int64_t width, const ProductRows& out,
               Stream& stream) {
  if (rows == 0) return;
  cuda::CheckOut(out, rows);
  const internal::CudaDeviceScope scope(stream.device());
  if (width % 4 == 0) {
    cuda::
        RoundFoursKernel<<<cuda::RowPieces(rows, width / 4), cuda::kThreads, 0, stream.handle()>>>(
            x, width, out);
  } else {
    cuda::RoundKernel<<<cuda::RowPieces(rows, width), cuda::kThreads, 0, stream.handle()>>>(
        x, width, out);
  }
  internal::CheckLaunch("rounding rows");
}

void SiluMulRows(const ProductSums& sums, int64_t rows, int64_t width, const ProductRows& out,
                 Stream& stream) {
  if (rows == 0) return;
  cuda::CheckOut(out, rows);
  const internal::CudaDeviceScope scope(stream.device());
  const auto kernel = width % 4 == 0 ? cuda::SiluMulFoursKernel : cuda::SiluMulKernel;
  kernel<<<cuda::RowPieces(rows, width % 4 == 0 ? width / 4 : width), cuda::kThreads, 0,
           stream.handle()>>>(sums, width, out);
  internal::CheckLaunch("SiLU");
}

void AddPartsOfRows(const ProductSums& sums, int64_t rows, int64_t width, float* out,
                    Stream& stream) {
  if (rows == 0) return;
  const internal::CudaDeviceScope scope(stream.device());
  cuda::AddPartsKernel<<<cuda::RowPieces(rows, width), cuda::kThreads, 0, stream.handle()>>>(
      sums, width, out);
  internal::CheckLaunch("adding the parts of products");
}

void HadamardRows(float* x, int64_t count, int64_t width, Stream& stream) {
  if (count == 0) return;
  PMKVQ_CHECK(width == 64 || width == 128);
  const internal::CudaDeviceScope scope(stream.device());
  const auto kernel = width == 64 ? cuda::HadamardKernel<64> : cuda::HadamardKernel<128>;
  kernel<<<cuda::BlocksOf(count, cuda::kHeadsPerBlock), cuda::kHeadsPerBlock * cuda::kWarp, 0,
           stream.handle()>>>(x, count);
  internal::CheckLaunch("rotating heads");
}

}  // namespace pmkvq
