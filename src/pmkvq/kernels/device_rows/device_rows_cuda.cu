// A block of threads per row, or a warp per head. Sums are added up in a fixed order.
#include <cuda_runtime.h>

#include <algorithm>

#include "pmkvq/base/check.h"
#include "pmkvq/kernels/cuda/copy.cuh"
#include "pmkvq/kernels/cuda/launch.cuh"
#include "pmkvq/kernels/cuda/warp.cuh"
#include "pmkvq/kernels/device_rows/device_rows.h"
#include "pmkvq/kernels/device_rows/product_rows.cuh"
#include "pmkvq/kernels/kv_quant/append_token.cuh"
#include "pmkvq/tensor/device/cuda_runtime.h"

namespace pmkvq {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;

// Block `block` of those that make rotations.
__device__ __forceinline__ void MakeRotation(const Rotations& op, int64_t rows, int64_t block) {
  const int64_t i = block * kThreads + threadIdx.x;
  if (i >= rows * op.pairs) return;
  const float angle = static_cast<float>(op.positions[i / op.pairs]) * op.frequencies[i % op.pairs];
  double sine = 0.0;
  double cosine = 0.0;
  sincos(static_cast<double>(angle), &sine, &cosine);
  reinterpret_cast<float2*>(op.data)[i] =
      make_float2(static_cast<float>(cosine) * op.factor, static_cast<float>(sine) * op.factor);
}

// A block for each row, then those for rotations.
template <class T>
__global__ void __launch_bounds__(kThreads)
    EmbedKernel(const T* table, const int32_t* tokens, int64_t rows, int64_t width, float* x,
                float factor, const __grid_constant__ Rotations rotations) {
  LetNextKernelStart();
  if (blockIdx.x >= rows) {
    MakeRotation(rotations, rows, blockIdx.x - rows);
    return;
  }
  const T* const from = table + static_cast<int64_t>(tokens[blockIdx.x]) * width;
  float* const to = x + blockIdx.x * width;
  for (int64_t i = threadIdx.x; i < width; i += kThreads) to[i] = ToFloat(from[i]) * factor;
}

__global__ void __launch_bounds__(kThreads) NormKernel(const __grid_constant__ NormRows op) {
  __shared__ float warp_sums[kThreads / kWarp];
  LetNextKernelStart();
  WaitForEarlierKernel();
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
  square = OverWarp(square, Plus{});
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

__device__ __forceinline__ float BlockSum(float x, float (&warp_sums)[kThreads / kWarp]) {
  x = OverWarp(x, Plus{});
  if (threadIdx.x % kWarp == 0) warp_sums[threadIdx.x / kWarp] = x;
  __syncthreads();
  float sum = 0.0f;
#pragma unroll
  for (int w = 0; w < kThreads / kWarp; ++w) sum += warp_sums[w];
  return sum;
}

// Sums go through a norm before they are added.
__global__ void __launch_bounds__(kThreads) NormedSumsKernel(const __grid_constant__ NormRows op) {
  __shared__ float warp_sums[2][kThreads / kWarp];
  LetNextKernelStart();
  WaitForEarlierKernel();
  const int64_t row = blockIdx.x;
  float* const x = op.x + row * op.width;
  const auto width = static_cast<float>(op.width);
  const auto sum_of = [&](int64_t i) {
    const float sum = SumOf(op.sums, op.width, row, i);
    return op.bias != nullptr ? sum + op.bias[i] : sum;
  };
  float square = 0.0f;
  for (int64_t i = threadIdx.x; i < op.width; i += kThreads) {
    const float sum = sum_of(i);
    square = fmaf(sum, sum, square);
  }
  const float of_sums = 1.0f / sqrtf(BlockSum(square, warp_sums[0]) / width + op.eps);
  square = 0.0f;
  for (int64_t i = threadIdx.x; i < op.width; i += kThreads) {
    const float value = x[i] + sum_of(i) * of_sums * op.sums_weight[i];
    x[i] = value;
    square = fmaf(value, value, square);
  }
  if (op.weight == nullptr) return;
  const float inverse = 1.0f / sqrtf(BlockSum(square, warp_sums[1]) / width + op.eps);
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
  LetNextKernelStart();
  const int64_t row = blockIdx.x;
  const int fours = static_cast<int>(op.width / 4);
  auto* const x =
      reinterpret_cast<float4*>(op.x) + (op.picked != nullptr ? op.picked[row] : row) * fours;
  float4 values[kFoursPerThread];
  float4 weights[kFoursPerThread];
#pragma unroll
  for (int n = 0; n < kFoursPerThread; ++n) {
    const int i = threadIdx.x + n * blockDim.x;
    if (op.weight == nullptr || i >= fours) break;
    weights[n] = reinterpret_cast<const float4*>(op.weight)[i];
  }
  WaitForEarlierKernel();
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
  square = OverWarp(square, Plus{});
  if (threadIdx.x % kWarp == 0) warp_sums[threadIdx.x / kWarp] = square;
  __syncthreads();
  const int lane = threadIdx.x % kWarp;
  const float sum =
      OverWarp(lane < static_cast<int>(blockDim.x) / kWarp ? warp_sums[lane] : 0.0f, Plus{});
  const float inverse = 1.0f / sqrtf(sum / static_cast<float>(op.width) + op.eps);
#pragma unroll
  for (int n = 0; n < kFoursPerThread; ++n) {
    const int i = threadIdx.x + n * blockDim.x;
    if (i >= fours) break;
    const float4& weight = weights[n];
    StoreFour(op.out, op.width, row, i,
              {values[n].x * inverse * weight.x, values[n].y * inverse * weight.y,
               values[n].z * inverse * weight.z, values[n].w * inverse * weight.w});
  }
}

__global__ void __launch_bounds__(kThreads)
    RotationsKernel(const __grid_constant__ Rotations rotations, int64_t rows) {
  MakeRotation(rotations, rows, blockIdx.x);
}

// Blocks: rows x heads of all three kinds; a warp each. A lane has pairs lane, lane + 32, ...
constexpr int kMostPairs = 4;  // Of a lane: D of 256 at most.
constexpr int kHeadsPerBlock = 4;

// Stores a head of the token of sequence `row`; a query's values at `at`.
__device__ __forceinline__ void AppendHead(const AppendOperands& op, int64_t row, bool is_query,
                                           bool is_value, int head, int dim, size_t at,
                                           const float (&low)[kMostPairs],
                                           const float (&high)[kMostPairs]) {
  const AppendTarget target = op.targets[row];
  if (target.capacity == AppendTarget::kNothing) return;
  const int lane = threadIdx.x % kWarp;
  const int pairs = dim / 2;
  const TokenPlace place(op, target, is_value, dim);
  if (!is_query && place.BeginsPage()) {
    place.ZeroHead(head, lane, kWarp);
    __syncwarp();
  }
  bool finite = true;
#pragma unroll
  for (int n = 0; n < kMostPairs; ++n) {
    const int i = lane + n * kWarp;
    if (i >= pairs) break;
    if (is_query) {
      finite &= StoreQuery(op, at + i, low[n]);
      finite &= StoreQuery(op, at + pairs + i, high[n]);
    } else {
      finite &= op.is_bf16 ? place.Store<__nv_bfloat16>(head, i, low[n])
                           : place.Store<__half>(head, i, low[n]);
      finite &= op.is_bf16 ? place.Store<__nv_bfloat16>(head, pairs + i, high[n])
                           : place.Store<__half>(head, pairs + i, high[n]);
    }
  }
  if (!finite) {
    SayUnfit(op, row, is_query ? UnfitRow::kQuery : is_value ? UnfitRow::kValue : UnfitRow::kKey);
  }
}

__global__ void __launch_bounds__(kHeadsPerBlock* kWarp)
    HeadKernel(const __grid_constant__ HeadRows op) {
  const int lane = threadIdx.x % kWarp;
  const int all_heads = static_cast<int>(op.num_heads + 2 * op.num_kv_heads);
  const int head = blockIdx.y * kHeadsPerBlock + threadIdx.x / kWarp;
  const int64_t row = blockIdx.x;
  if (head >= all_heads) return;
  WaitForEarlierKernel();
  // Behind the wait: blocks of attention that start while the product before runs would come to lie
  // on the few multiprocessors that have done with it.
  LetNextKernelStart();
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
  const int own_head = is_query ? head : (head - num_heads) % kv_heads;  // Among its kind.
  const float* norm = is_query ? op.q_norm : op.k_norm;
  const float* factors = is_query ? op.query_factors : op.key_factors;
  if (factors != nullptr) factors += static_cast<int64_t>(own_head) * pairs;
  if (!is_value && norm != nullptr) {
    float square = 0.0f;
#pragma unroll
    for (int n = 0; n < kMostPairs; ++n) {
      if (lane + n * kWarp >= pairs) break;
      square = fmaf(low[n], low[n], square);
      square = fmaf(high[n], high[n], square);
    }
    square = OverWarp(square, Plus{});
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
    if (is_key && op.raw_k != nullptr) {
      float* const raw = op.raw_k + (row * kv_heads + own_head) * dim;
      raw[i] = low[n];
      raw[pairs + i] = high[n];
    }
    if (is_value) continue;
    const float2 rotation = rotations[i];
    const float x = low[n] * rotation.x - high[n] * rotation.y;
    high[n] = high[n] * rotation.x + low[n] * rotation.y;
    low[n] = x;
    if (factors != nullptr) {
      low[n] *= factors[i];
      high[n] *= factors[i];
    }
  }
  const size_t first_out =
      (static_cast<size_t>(row) * (is_query ? num_heads : kv_heads) + own_head) * dim;
  if (op.append.arena != nullptr) {
    AppendHead(op.append, row, is_query, is_value, own_head, dim, first_out, low, high);
    return;
  }
  float* const out = (is_query ? op.q : is_value ? op.v : op.k) + first_out;
#pragma unroll
  for (int n = 0; n < kMostPairs; ++n) {
    const int i = lane + n * kWarp;
    if (i >= pairs) break;
    out[i] = low[n];
    out[pairs + i] = high[n];
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

struct Silu {
  static constexpr char kName[] = "SiLU";
  static __device__ __forceinline__ float Mul(float gate, float up) { return SiluMul(gate, up); }
};
struct Gelu {
  static constexpr char kName[] = "GELU";
  static __device__ __forceinline__ float Mul(float gate, float up) { return GeluMul(gate, up); }
};

template <class Gate>
__global__ void __launch_bounds__(kThreads)
    GateMulFoursKernel(const __grid_constant__ ProductSums sums, int64_t width,
                       const __grid_constant__ ProductRows out) {
  LetNextKernelStart();
  WaitForEarlierKernel();
  const int64_t row = blockIdx.x;
  const int64_t four = static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x;
  if (four >= width / 4) return;
  const float4 gate = FourSumsOf(sums, 2 * width, row, four);
  const float4 up = FourSumsOf(sums, 2 * width, row, width / 4 + four);
  StoreFour(out, width, row, four,
            {Gate::Mul(gate.x, up.x), Gate::Mul(gate.y, up.y), Gate::Mul(gate.z, up.z),
             Gate::Mul(gate.w, up.w)});
}

template <class Gate>
__global__ void __launch_bounds__(kThreads)
    GateMulKernel(const __grid_constant__ ProductSums sums, int64_t width,
                  const __grid_constant__ ProductRows out) {
  const int64_t i = static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x;
  if (i >= width) return;
  const int64_t row = blockIdx.x;
  const float gate = SumOf(sums, 2 * width, row, i);
  const float up = SumOf(sums, 2 * width, row, width + i);
  Store(out, width, row, i, Gate::Mul(gate, up));
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

template <class Gate>
void GateMulRows(const ProductSums& sums, int64_t rows, int64_t width, const ProductRows& out,
                 Stream& stream) {
  if (rows == 0) return;
  CheckOut(out, rows);
  const internal::CudaDeviceScope scope(stream.device());
  if (width % 4 == 0) {
    LaunchEarly(GateMulFoursKernel<Gate>, RowPieces(rows, width / 4), kThreads, stream, Gate::kName,
                sums, width, out);
    return;
  }
  GateMulKernel<Gate><<<RowPieces(rows, width), kThreads, 0, stream.handle()>>>(sums, width, out);
  internal::CheckLaunch(Gate::kName);
}

}  // namespace
}  // namespace cuda

void EmbedRows(const std::byte* table, DType type, const int32_t* tokens, int64_t rows,
               int64_t width, float* x, Stream& stream, float factor, const Rotations& rotations) {
  if (rows == 0) return;
  const internal::CudaDeviceScope scope(stream.device());
  const unsigned rotating =
      rotations.data == nullptr ? 0 : cuda::BlocksOf(rows * rotations.pairs, cuda::kThreads);
  const auto launch = [&]<class T>(const T* typed) {
    cuda::EmbedKernel<T>
        <<<static_cast<unsigned>(rows) + rotating, cuda::kThreads, 0, stream.handle()>>>(
            typed, tokens, rows, width, x, factor, rotations);
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
  const auto blocks = static_cast<unsigned>(op.rows);
  if (op.sums.data != nullptr && op.sums_weight != nullptr) {
    cuda::LaunchEarly(cuda::NormedSumsKernel, blocks, cuda::kThreads, stream, "norms of rows", op);
  } else if (op.width % 4 == 0 && op.width / 4 <= cuda::kMostFours) {
    const int64_t warps = (op.width / 4 + cuda::kWarp - 1) / cuda::kWarp;
    const auto threads =
        static_cast<unsigned>(std::min<int64_t>(warps * cuda::kWarp, cuda::kNormThreads));
    cuda::LaunchEarly(cuda::NormFoursKernel, blocks, threads, stream, "norms of rows", op);
  } else {
    cuda::LaunchEarly(cuda::NormKernel, blocks, cuda::kThreads, stream, "norms of rows", op);
  }
}

void MakeRotations(const Rotations& rotations, int64_t rows, Stream& stream) {
  if (rows == 0) return;
  const internal::CudaDeviceScope scope(stream.device());
  cuda::RotationsKernel<<<cuda::BlocksOf(rows * rotations.pairs, cuda::kThreads), cuda::kThreads, 0,
                          stream.handle()>>>(rotations, rows);
  internal::CheckLaunch("rotations");
}

void MakeHeadRows(const HeadRows& op, Stream& stream) {
  if (op.rows == 0) return;
  PMKVQ_CHECK(op.head_dim % 2 == 0 && op.head_dim <= 2 * cuda::kWarp * cuda::kMostPairs);
  const internal::CudaDeviceScope scope(stream.device());
  const dim3 grid(static_cast<unsigned>(op.rows),
                  cuda::BlocksOf(op.num_heads + 2 * op.num_kv_heads, cuda::kHeadsPerBlock));
  cuda::LaunchEarly(cuda::HeadKernel, grid, cuda::kHeadsPerBlock * cuda::kWarp, stream,
                    "queries, keys and values", op);
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
  cuda::GateMulRows<cuda::Silu>(sums, rows, width, out, stream);
}

void GeluMulRows(const ProductSums& sums, int64_t rows, int64_t width, const ProductRows& out,
                 Stream& stream) {
  cuda::GateMulRows<cuda::Gelu>(sums, rows, width, out, stream);
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
  PMKVQ_CHECK(width == 64 || width == 128 || width == 256);
  const internal::CudaDeviceScope scope(stream.device());
  const auto kernel = width == 64    ? cuda::HadamardKernel<64>
                      : width == 128 ? cuda::HadamardKernel<128>
                                     : cuda::HadamardKernel<256>;
  kernel<<<cuda::BlocksOf(count, cuda::kHeadsPerBlock), cuda::kHeadsPerBlock * cuda::kWarp, 0,
           stream.handle()>>>(x, count);
  internal::CheckLaunch("rotating heads");
}

}  // namespace pmkvq
