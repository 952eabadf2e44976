// Products with quantised weights on CUDA: the choice of the kernel, launches, expansion to plain
// rows.
#include <algorithm>
#include <array>
#include <atomic>

#include "pmkvq/base/check.h"
#include "pmkvq/kernels/cuda/launch.cuh"
#include "pmkvq/kernels/gemm/codes_product.cuh"
#include "pmkvq/kernels/gemm/device_codes.h"
#include "pmkvq/tensor/device/cuda_runtime.h"

namespace pmkvq {
namespace cuda {
namespace {

// Formats with codes: those of code_tile::FormatOf.
#define PMKVQ_CODE_FORMATS(X) \
  X(Q8)                       \
  X(Q8_0)                     \
  X(Q4_0)                     \
  X(Q4_1)                     \
  X(Q5_0)                     \
  X(Q5_1)                     \
  X(Q4_K)                     \
  X(Q5_K)                     \
  X(Q6_K)                     \
  X(IQ4_NL)                   \
  X(IQ4_XS)

CodesArguments ArgumentsOf(const DeviceCodesProduct& product, int stages) {
  const DeviceCodes& w = product.w;
  return {.x = reinterpret_cast<const __half*>(product.x.data),
          .w = reinterpret_cast<const uint8_t*>(w.data),
          .y = product.y,
          .y_stride = product.y_stride,
          .part_rows = static_cast<int>(product.x.part_rows),
          .rows = static_cast<int>(product.rows),
          .n = static_cast<int>(w.n),
          .k = static_cast<int>(w.k),
          .num_strips = static_cast<int>(code_tile::StripsOf(w.n)),
          .tiles_across = static_cast<int>(code_tile::TilesAcross(w.k)),
          .stages = stages};
}

constexpr char kWhat[] = "a product with quantised weights";

// What a device holds of a kernel at once, and in how many stages its weights come; no stages: not
// one fits.
struct Residency {
  int blocks = 0;
  int stages = 0;
};

template <WeightFormat kFormat, int kTiles, int kStrips>
Residency AskResidency(int device) {
  using Shape = CodesShape<kFormat, kTiles, kStrips>;
  constexpr auto kKernel = CodesKernel<kFormat, kTiles, kStrips>;
  int stages = Shape::kStages;
  while (stages > 0 && Shape::Bytes(stages) > FactsOf(device).shared_bytes) --stages;
  if (stages == 0) return {};
  const int bytes = Shape::Bytes(stages);
  internal::CheckCuda(
      cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), kWhat);
  int per_multiprocessor = 0;
  internal::CheckCuda(cudaOccupancyMaxActiveBlocksPerMultiprocessor(
                          &per_multiprocessor, kKernel, kCodesThreads, static_cast<size_t>(bytes)),
                      kWhat);
  return {per_multiprocessor * FactsOf(device).multiprocessors, stages};
}

// Asked once per device: the answer never changes.
template <WeightFormat kFormat, int kTiles, int kStrips>
Residency ResidencyOf(int device) {
  constexpr size_t kMostDevices = 64;
  constexpr int kUnit = 16;
  static std::array<std::atomic<int>, kMostDevices> known{};  // 1 + blocks * kUnit + stages
  const auto index = static_cast<size_t>(device);
  PMKVQ_CHECK(index < kMostDevices);
  int packed = known[index].load();
  if (packed == 0) {
    const Residency asked = AskResidency<kFormat, kTiles, kStrips>(device);
    packed = 1 + asked.blocks * kUnit + asked.stages;
    known[index].store(packed);
  }
  return {(packed - 1) / kUnit, (packed - 1) % kUnit};
}

template <WeightFormat kFormat, int kTiles, int kStrips>
bool Fits(int device) {
  return ResidencyOf<kFormat, kTiles, kStrips>(device).stages > 0;
}

template <WeightFormat kFormat, int kTiles, int kStrips>
void LaunchProduct(const DeviceCodesProduct& product, Stream& stream) {
  const internal::CudaDeviceScope scope(stream.device());
  const Residency residency = ResidencyOf<kFormat, kTiles, kStrips>(stream.device().index);
  PMKVQ_CHECK(residency.stages > 0);
  const CodesArguments arguments = ArgumentsOf(product, residency.stages);
  const int blocks = std::min(residency.blocks, (arguments.num_strips + kStrips - 1) / kStrips);
  LaunchEarlyWith(
      CodesKernel<kFormat, kTiles, kStrips>, dim3(static_cast<unsigned>(blocks)),
      dim3(kCodesThreads),
      static_cast<size_t>(CodesShape<kFormat, kTiles, kStrips>::Bytes(residency.stages)), stream,
      kWhat, arguments);
}

// The more rows, the more outputs a warp has at a time, so that x is read less often; also where so
// many outputs are there that each multiprocessor has items for all its blocks. Beyond 16 rows the
// weight is read again (beyond 8 on devices with little shared memory): x would come from the
// second-level cache more often than that.
template <WeightFormat kFormat>
void MultiplyRows(const DeviceCodesProduct& product, Stream& stream) {
  constexpr int kStrips = CodeFacts<kFormat>::kHasMinima ? 2 : 4;
  const int device = stream.device().index;
  const int64_t most = Fits<kFormat, 4, kStrips>(device) ? 16 : 8;
  const int64_t wide = int64_t{FactsOf(device).multiprocessors} * 2 * 2 * code_tile::kRows * 2;
  for (int64_t first = 0; first < product.rows; first += most) {
    DeviceCodesProduct part = product;
    part.rows = std::min(most, product.rows - first);
    part.x.data += first * product.w.k * static_cast<int64_t>(sizeof(__half));
    part.y += first * product.y_stride;
    if (part.rows > 8) {
      LaunchProduct<kFormat, 4, kStrips>(part, stream);
    } else if (part.rows > 4) {
      LaunchProduct<kFormat, 2, 2>(part, stream);
    } else if (part.w.n >= wide) {
      LaunchProduct<kFormat, 1, 2>(part, stream);
    } else {
      LaunchProduct<kFormat, 1, 1>(part, stream);
    }
  }
}

constexpr int kExpandWarps = 8;

// Four values side by side.
__device__ __forceinline__ void StoreFour(const float (&v)[4], float* out) {
  *reinterpret_cast<float4*>(out) = make_float4(v[0], v[1], v[2], v[3]);
}
template <class T>
__device__ __forceinline__ void StoreFour(const float (&v)[4], T* out) {
  uint32_t words[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    typename Pair<T>::Type pair;
    pair.x = Round<T>(v[2 * i]);
    pair.y = Round<T>(v[2 * i + 1]);
    words[i] = AsWord(pair);
  }
  *reinterpret_cast<uint2*>(out) = make_uint2(words[0], words[1]);
}

// A warp for each tile.
template <WeightFormat kFormat, class T>
__global__ void __launch_bounds__(32 * kExpandWarps)
    ExpandKernel(const uint8_t* w, int n, int k, int tiles_across, int64_t num_tiles, T* out) {
  using Facts = CodeFacts<kFormat>;
  const int64_t number = int64_t{blockIdx.x} * kExpandWarps + threadIdx.x / 32;
  if (number >= num_tiles) return;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const uint8_t* const tile = w + number * Facts::kTileBytes;
  const int64_t first_row = number / tiles_across * code_tile::kRows + lane / 4;
  const auto first_col = static_cast<int>(number % tiles_across) * code_tile::kCols + lane % 4 * 4;
  LaneScales<kFormat> scales;
  LaneCodes<kFormat> codes;
#pragma unroll
  for (int group = 0; group < code_tile::kGroups; ++group) {
    if (group % 2 == 0) {
      scales.Load(tile, lane / 4, group / 2);
      codes.Load(tile, lane, group / 2);
    }
    uint32_t expanded[2][4];
    codes.Expand(group % 2, expanded);
#pragma unroll
    for (int sixteenth = 0; sixteenth < 2; ++sixteenth) {
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        const float scale = scales.Scale(group % 2, sixteenth, side);
        float values[4];
#pragma unroll
        for (int pair = 0; pair < 2; ++pair) {
          const float2 v = ToFloats(AsPair<__half>(expanded[sixteenth][2 * pair + side]));
          values[2 * pair] = __fmul_rn(v.x, scale);
          values[2 * pair + 1] = __fmul_rn(v.y, scale);
        }
        if constexpr (Facts::kHasMinima) {
          const float minimum = scales.Minimum(group % 2, side);
#pragma unroll
          for (float& value : values) value = __fadd_rn(value, minimum);
        }
        const int64_t row = first_row + 8 * side;
        const int col = first_col + group * code_tile::kGroup + 16 * sixteenth;
        if (row < n && col < k) StoreFour(values, out + row * k + col);
      }
    }
  }
}

template <WeightFormat kFormat, class T>
void Expand(const DeviceCodes& w, std::byte* out, Stream& stream) {
  const internal::CudaDeviceScope scope(stream.device());
  const auto across = static_cast<int>(code_tile::TilesAcross(w.k));
  const int64_t tiles = code_tile::StripsOf(w.n) * across;
  const auto blocks = static_cast<unsigned>((tiles + kExpandWarps - 1) / kExpandWarps);
  CUstream_st* const handle = stream.handle();
  ExpandKernel<kFormat, T><<<blocks, 32 * kExpandWarps, 0, handle>>>(
      reinterpret_cast<const uint8_t*>(w.data), static_cast<int>(w.n), static_cast<int>(w.k),
      across, tiles, reinterpret_cast<T*>(out));
  internal::CheckLaunch("expanding quantised weights");
}

template <class T>
void ExpandTo(const DeviceCodes& w, std::byte* out, Stream& stream) {
  switch (w.format) {
#define PMKVQ_CASE(id)      \
  case WeightFormat::k##id: \
    return Expand<WeightFormat::k##id, T>(w, out, stream);
    PMKVQ_CODE_FORMATS(PMKVQ_CASE)
#undef PMKVQ_CASE
    default:
      PMKVQ_CHECK_MSG(false, "a format without codes");
  }
}

}  // namespace
}  // namespace cuda

namespace internal {

void MultiplyCodesCuda(const DeviceCodesProduct& product, Stream& stream) {
  switch (product.w.format) {
#define PMKVQ_CASE(id)      \
  case WeightFormat::k##id: \
    return cuda::MultiplyRows<WeightFormat::k##id>(product, stream);
    PMKVQ_CODE_FORMATS(PMKVQ_CASE)
#undef PMKVQ_CASE
    default:
      PMKVQ_CHECK_MSG(false, "a format without codes");
  }
}

void ExpandCodesCuda(const DeviceCodes& w, DType type, std::byte* out, Stream& stream) {
  switch (type) {
    case DType::kF16:
      return cuda::ExpandTo<__half>(w, out, stream);
    case DType::kBF16:
      return cuda::ExpandTo<__nv_bfloat16>(w, out, stream);
    default:
      return cuda::ExpandTo<float>(w, out, stream);
  }
}

}  // namespace internal
}  // namespace pmkvq
