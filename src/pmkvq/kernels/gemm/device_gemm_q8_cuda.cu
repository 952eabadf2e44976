// Products with q8 weights on CUDA: the choice of the kernel, launches, expansion to plain rows.
#include <algorithm>
#include <array>
#include <atomic>

#include "pmkvq/base/check.h"
#include "pmkvq/kernels/gemm/q8_product.cuh"
#include "pmkvq/tensor/device/cuda_runtime.h"

namespace pmkvq {
namespace cuda {
namespace {

using device_q8::kCodeBytes;
using device_q8::kCols;
using device_q8::kRows;
using device_q8::kTileBytes;

// What a device holds of a kernel at once, and in how many stages its weights come.
struct Residency {
  int blocks;
  int stages;
};

template <class X, int kTiles, int kStrips>
Residency AskResidency(int device) {
  const auto ask = [&](cudaDeviceAttr attribute) {
    int value = 0;
    internal::CheckCuda(cudaDeviceGetAttribute(&value, attribute, device), "asking for a device");
    return value;
  };
  const auto kernel = Q8Kernel<X, kTiles, kStrips>;
  int stages = kQ8MostStages;
  while (stages > 1 && Q8SharedBytes(stages) > ask(cudaDevAttrMaxSharedMemoryPerBlockOptin)) {
    --stages;
  }
  const int bytes = Q8SharedBytes(stages);
  internal::CheckCuda(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
      "shared memory of a product");
  int per_multiprocessor = 0;
  internal::CheckCuda(cudaOccupancyMaxActiveBlocksPerMultiprocessor(
                          &per_multiprocessor, kernel, kQ8Threads, static_cast<size_t>(bytes)),
                      "occupancy of a product");
  return {per_multiprocessor * ask(cudaDevAttrMultiProcessorCount), stages};
}

// Asked once per device: the answer never changes.
template <class X, int kTiles, int kStrips>
Residency ResidencyOf(int device) {
  constexpr size_t kMostDevices = 64;
  constexpr int kUnit = kQ8MostStages + 1;
  static std::array<std::atomic<int>, kMostDevices> known{};  // blocks * kUnit + stages
  const auto index = static_cast<size_t>(device);
  PMKVQ_CHECK(index < kMostDevices);
  int packed = known[index].load();
  if (packed == 0) {
    const Residency asked = AskResidency<X, kTiles, kStrips>(device);
    packed = asked.blocks * kUnit + asked.stages;
    known[index].store(packed);
  }
  return {packed / kUnit, packed % kUnit};
}

template <class X, int kTiles, int kStrips>
void LaunchProduct(const DeviceQ8Product& product, Stream& stream) {
  const internal::CudaDeviceScope scope(stream.device());
  const Residency residency = ResidencyOf<X, kTiles, kStrips>(stream.device().index);
  const int strips = static_cast<int>((product.n + kRows - 1) / kRows);
  const Q8Arguments arguments{.x = product.x,
                              .w = reinterpret_cast<const uint8_t*>(product.w),
                              .y = product.y,
                              .rows = static_cast<int>(product.rows),
                              .n = static_cast<int>(product.n),
                              .k = static_cast<int>(product.k),
                              .num_strips = strips,
                              .tiles_across = static_cast<int>((product.k + kCols - 1) / kCols),
                              .stages = residency.stages,
                              .accumulate = product.accumulate};
  const int blocks = std::min(residency.blocks, (strips + kStrips - 1) / kStrips);
  const auto bytes = static_cast<size_t>(Q8SharedBytes(residency.stages));
  CUstream_st* const handle = stream.handle();
  Q8Kernel<X, kTiles, kStrips>
      <<<static_cast<unsigned>(blocks), kQ8Threads, bytes, handle>>>(arguments);
  internal::CheckLaunch("a product with q8 weights");
}

// With one unit of 8 rows a block takes 16 outputs at a time, so that small matrices keep all
// multiprocessors busy; with more, 32, so that x is read half as often.
template <class X>
void MultiplyRows(const DeviceQ8Product& product, Stream& stream) {
  if (product.rows <= 8) return LaunchProduct<X, 1, 1>(product, stream);
  if (product.rows <= 16) return LaunchProduct<X, 2, 2>(product, stream);
  if (product.rows <= 32) return LaunchProduct<X, 4, 2>(product, stream);
  LaunchProduct<X, 8, 2>(product, stream);
}

constexpr int kExpandThreads = 256;
constexpr int kPieces = kCodeBytes / 8;  // Of a tile: eight codes of a row.

// Eight values, two at a time.
__device__ __forceinline__ void StoreValues(const float (&values)[8], float* out) {
  auto* target = reinterpret_cast<float4*>(out);
  target[0] = make_float4(values[0], values[1], values[2], values[3]);
  target[1] = make_float4(values[4], values[5], values[6], values[7]);
}
template <class T>
__device__ __forceinline__ void StoreValues(const float (&values)[8], T* out) {
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    typename Pair<T>::Type pair;
    pair.x = Round<T>(values[2 * i]);
    pair.y = Round<T>(values[2 * i + 1]);
    words[i] = AsWord(pair);
  }
  *reinterpret_cast<uint4*>(out) = make_uint4(words[0], words[1], words[2], words[3]);
}

template <class T>
__global__ void __launch_bounds__(kExpandThreads)
    ExpandKernel(const uint8_t* w, int n, int k, int tiles_across, int64_t num_pieces, T* out) {
  const int64_t piece = int64_t{blockIdx.x} * kExpandThreads + threadIdx.x;
  if (piece >= num_pieces) return;
  const int64_t tile = piece / kPieces;
  const int half = static_cast<int>(piece % kPieces) / 32;
  const int lane = static_cast<int>(piece % 32);
  const int64_t row = tile / tiles_across * kRows + half * 8 + lane / 4;
  const uint8_t* bytes = w + tile * kTileBytes;
  const int64_t col = tile % tiles_across * kCols + lane % 4 * 8;
  if (row >= n || col >= k) return;
  const uint2 codes = *reinterpret_cast<const uint2*>(bytes + piece % kPieces * 8);
  const uint32_t scales = *reinterpret_cast<const uint32_t*>(bytes + kCodeBytes + lane / 4 * 4);
  const float scale = __uint_as_float(half == 0 ? scales << 16 : scales & 0xffff0000u);
  float values[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const uint32_t code = (i < 4 ? codes.x : codes.y) >> (8 * (i % 4)) & 0xffu;
    const auto magnitude = static_cast<float>(code & 0x7fu);
    values[i] = ((code & 0x80u) != 0 ? -magnitude : magnitude) * scale;
  }
  StoreValues(values, out + row * k + col);
}

template <class T>
void Expand(const std::byte* w, int64_t n, int64_t k, std::byte* out, Stream& stream) {
  const internal::CudaDeviceScope scope(stream.device());
  const int64_t across = (k + kCols - 1) / kCols;
  const int64_t pieces = (n + kRows - 1) / kRows * across * kPieces;
  const auto blocks = static_cast<unsigned>((pieces + kExpandThreads - 1) / kExpandThreads);
  CUstream_st* const handle = stream.handle();
  ExpandKernel<T><<<blocks, kExpandThreads, 0, handle>>>(
      reinterpret_cast<const uint8_t*>(w), static_cast<int>(n), static_cast<int>(k),
      static_cast<int>(across), pieces, reinterpret_cast<T*>(out));
  internal::CheckLaunch("expanding q8 weights");
}

}  // namespace
}  // namespace cuda

namespace internal {

void MultiplyQ8Cuda(const DeviceQ8Product& product, Stream& stream) {
  switch (product.type) {
    case DType::kF16:
      return cuda::MultiplyRows<__half>(product, stream);
    case DType::kBF16:
      return cuda::MultiplyRows<__nv_bfloat16>(product, stream);
    default:
      return cuda::MultiplyRows<float>(product, stream);
  }
}

void ExpandQ8Cuda(const std::byte* w, int64_t n, int64_t k, DType type, std::byte* out,
                  Stream& stream) {
  switch (type) {
    case DType::kF16:
      return cuda::Expand<__half>(w, n, k, out, stream);
    case DType::kBF16:
      return cuda::Expand<__nv_bfloat16>(w, n, k, out, stream);
    default:
      return cuda::Expand<float>(w, n, k, out, stream);
  }
}

}  // namespace internal
}  // namespace pmkvq
