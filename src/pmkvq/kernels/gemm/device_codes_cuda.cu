// Products with quantised weights on CUDA: the choice of the kernel, launches, expansion to plain
// rows.
#include <algorithm>
#include <array>
#include <atomic>

#include "pmkvq/base/check.h"
#include "pmkvq/kernels/cuda/launch.cuh"
#include "pmkvq/kernels/gemm/codes_wide.cuh"
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

// An answer for each device, asked for once: it never changes.
template <class Ask>
Residency OfDevice(int device, std::array<std::atomic<int>, 64>& known, const Ask& ask) {
  constexpr int kUnit = 16;
  const auto index = static_cast<size_t>(device);
  PMKVQ_CHECK(index < known.size());
  int packed = known[index].load();
  if (packed == 0) {
    const Residency asked = ask();
    packed = 1 + asked.blocks * kUnit + asked.stages;
    known[index].store(packed);
  }
  return {(packed - 1) / kUnit, (packed - 1) % kUnit};
}

template <class Shape>
Residency AskResidency(int device) {
  constexpr auto kKernel = CodesKernel<Shape>;
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

template <class Shape>
void LaunchFew(const DeviceCodesProduct& product, Stream& stream) {
  static std::array<std::atomic<int>, 64> known{};
  const internal::CudaDeviceScope scope(stream.device());
  const int device = stream.device().index;
  const Residency residency = OfDevice(device, known, [&] { return AskResidency<Shape>(device); });
  PMKVQ_CHECK(residency.stages > 0);
  const CodesArguments arguments = ArgumentsOf(product, residency.stages);
  const int blocks =
      std::min(residency.blocks, (arguments.num_strips + Shape::kStrips - 1) / Shape::kStrips);
  LaunchEarlyWith(CodesKernel<Shape>, dim3(static_cast<unsigned>(blocks)), dim3(kCodesThreads),
                  static_cast<size_t>(Shape::Bytes(residency.stages)), stream, kWhat, arguments);
}

// How CodesWideKernel is launched.
struct WideCut {
  int warps = 0;
  int split = 1;
  int blocks = 0;
};

// The cut that takes the fewest clocks by a rough count: of a block's start, and for each tile of
// what a tile costs and of the products of the warps that share a quarter of a multiprocessor.
template <class Shape>
WideCut CutOf(const CodesArguments& a, const DeviceFacts& facts) {
  constexpr int64_t kStart = 4000;
  constexpr int64_t kTile = 300;
  constexpr int64_t kProducts = Shape::kStrips * (144 + 128 * Shape::kTiles);
  WideCut best;
  int64_t least = 0;
  for (int warps = Shape::kShares; warps <= kMostWideWarps; warps += Shape::kShares) {
    if (Shape::Bytes(warps, a.stages) > facts.shared_bytes) break;
    for (const int split : {1, kCodesParts}) {
      if (split > 1 && !facts.is_sm90) continue;
      const int strips = warps / Shape::kShares * Shape::kStrips;
      const int blocks = (a.num_strips + strips - 1) / strips * split;
      const int at_once = std::max(1, facts.multiprocessors / split * split);
      const int64_t rounds = (blocks + at_once - 1) / at_once;
      const int64_t tiles = (a.tiles_across + split - 1) / split;
      const int64_t clocks = rounds * (kStart + tiles * (kTile + (warps + 3) / 4 * kProducts));
      if (best.warps == 0 || clocks < least) {
        best = {warps, split, blocks};
        least = clocks;
      }
    }
  }
  return best;
}

template <class Shape>
bool FitsWide(int device) {
  return Shape::Bytes(Shape::kShares, Shape::kStages) <= FactsOf(device).shared_bytes;
}

template <class Shape>
void LaunchWide(const DeviceCodesProduct& product, Stream& stream) {
  static std::array<std::atomic<int>, 64> known{};
  const internal::CudaDeviceScope scope(stream.device());
  const int device = stream.device().index;
  const DeviceFacts& facts = FactsOf(device);
  OfDevice(device, known, [&] {
    internal::CheckCuda(
        cudaFuncSetAttribute(
            CodesWideKernel<Shape>, cudaFuncAttributeMaxDynamicSharedMemorySize,
            std::min(facts.shared_bytes, Shape::Bytes(kMostWideWarps, Shape::kStages))),
        kWhat);
    return Residency{};
  });
  const CodesArguments arguments = ArgumentsOf(product, Shape::kStages);
  const WideCut cut = CutOf<Shape>(arguments, facts);
  PMKVQ_CHECK(cut.warps > 0);
  std::array<cudaLaunchAttribute, 2> attributes{};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {static_cast<unsigned>(cut.split), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(cut.blocks));
  config.blockDim = dim3(static_cast<unsigned>(32 * cut.warps));
  config.dynamicSmemBytes = static_cast<size_t>(Shape::Bytes(cut.warps, Shape::kStages));
  config.stream = stream.handle();
  config.attrs = attributes.data();
  config.numAttrs = !facts.is_sm90 ? 0 : cut.split == 1 ? 1 : 2;
  internal::CheckCuda(cudaLaunchKernelEx(&config, CodesWideKernel<Shape>, arguments, cut.split),
                      kWhat);
}

// As many blocks of a multiprocessor as registers allow without spills, and about 200 KiB of
// stages.
template <WeightFormat kFormat, int kStrips>
struct FewShapeOf {
  using Facts = CodeFacts<kFormat>;
  static constexpr int kBits = Facts::kF.bits;
  static constexpr int kStageTiles = kStrips == 2 && kBits >= 6 ? 1 : 2;
  static constexpr int kStages = kStrips == 1 ? (kBits == 8 ? 2 : 3) : kStageTiles == 1 ? 3 : 2;
  static constexpr int kBlocks = kStrips == 1 && !Facts::kHasMinima ? 3 : 2;
  using Shape = CodesShape<kFormat, kStrips, kStageTiles, kStages, kBlocks>;
};

// Up to four rows: where so many outputs are there that each multiprocessor has items for all its
// blocks, warps take two strips, so that x is read less often, unless codes are places in a table
// (a block of Qwen2-7B: 69 us with one strip, 75 with two). More rows: up to 32 at a time, or 16 on
// devices with little shared memory; then the weight is read again.
template <WeightFormat kFormat>
void MultiplyRows(const DeviceCodesProduct& product, Stream& stream) {
  constexpr code_tile::Format kF = CodeFacts<kFormat>::kF;
  const int device = stream.device().index;
  const int64_t most = FitsWide<WideShape<kFormat, 4, 2, 2, 3>>(device) ? 32 : 16;
  const int64_t wide = int64_t{FactsOf(device).multiprocessors} * 2 * 2 * code_tile::kRows * 2;
  for (int64_t first = 0; first < product.rows; first += most) {
    DeviceCodesProduct part = product;
    part.rows = std::min(most, product.rows - first);
    part.x.data += first * product.w.k * static_cast<int64_t>(sizeof(__half));
    part.y += first * product.y_stride;
    if (part.rows > 16) {
      LaunchWide<WideShape<kFormat, 4, 2, 2, 3>>(part, stream);
    } else if (part.rows > 8) {
      LaunchWide<WideShape<kFormat, 4, 1, 2, 3>>(part, stream);
    } else if (part.rows > 4) {
      LaunchWide<WideShape<kFormat, 2, 1, 2, 3>>(part, stream);
    } else if (!kF.is_table && part.w.n >= wide) {
      LaunchFew<typename FewShapeOf<kFormat, kF.is_table ? 1 : 2>::Shape>(part, stream);
    } else {
      LaunchFew<typename FewShapeOf<kFormat, 1>::Shape>(part, stream);
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
    codes.Expand(group % 2, CodesArguments{}.one, expanded);
#pragma unroll
    for (int sixteenth = 0; sixteenth < 2; ++sixteenth) {
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        const float scale = scales.Scale(group % 2, sixteenth, side);
        const float unit = side == 0 ? 1.0f : 1.0f / Facts::kSidePower;
        float values[4];
#pragma unroll
        for (int pair = 0; pair < 2; ++pair) {
          const float2 v = ToFloats(AsPair<__half>(expanded[sixteenth][2 * pair + side]));
          values[2 * pair] = __fmul_rn(v.x * unit, scale);
          values[2 * pair + 1] = __fmul_rn(v.y * unit, scale);
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
