// Halving of packed codes. Words are halved pair by pair (fragment_layout.h), so a kernel knows
// neither heads nor dims: a page is rows of 512 bytes, and 2 (or 4) of them make one.
#include "pmkvq/kernels/kv_quant/page_moves.cuh"

namespace pmkvq {
namespace cuda {
namespace {

using fragment::Halve4;
using fragment::Halve8;

constexpr int kRow = fragment::kRowBytes;

template <int kFrom>
__device__ __forceinline__ uint4 HalveRows(const uint4& low, const uint4& high) {
  if constexpr (kFrom == 8) {
    return {Halve8(low.x, low.y), Halve8(low.z, low.w), Halve8(high.x, high.y),
            Halve8(high.z, high.w)};
  } else {
    return {Halve4(low.x, low.y), Halve4(low.z, low.w), Halve4(high.x, high.y),
            Halve4(high.z, high.w)};
  }
}

// 16 bytes of every row of codes that `rows` has, as one row of the target.
template <int kFrom, int kTo>
__device__ __forceinline__ uint4 NarrowRows(const uint4* rows) {
  if constexpr (kFrom == 2 * kTo) {
    return HalveRows<kFrom>(rows[0], rows[1]);
  } else {
    return HalveRows<4>(HalveRows<8>(rows[0], rows[1]), HalveRows<8>(rows[2], rows[3]));
  }
}

// A block of threads makes kVectors times 16 bytes a thread, all of its loads in flight at once.
constexpr int kThreads = 128;

template <int kFrom, int kTo, int kVectors>
__global__ void __launch_bounds__(kThreads)
    HalveKernel(const __grid_constant__ MoveList list, uint8_t* arena, int blocks_per_page) {
  constexpr int kRatio = kFrom / kTo;
  LetNextKernelStart();
  const Move move = list.moves[blockIdx.x / blocks_per_page];
  const int first = blockIdx.x % blocks_per_page * kThreads * kVectors + threadIdx.x;
  const uint8_t* source = arena + static_cast<size_t>(move.source) * fragment::kArenaUnit;
  uint8_t* target = arena + static_cast<size_t>(move.target) * fragment::kArenaUnit;
  const int lane = threadIdx.x % fragment::kLanes;
  uint4 in[kVectors][kRatio];
#pragma unroll
  for (int k = 0; k < kVectors; ++k) {
    const int row = (first + k * kThreads) / fragment::kLanes * kRatio;
#pragma unroll
    for (int r = 0; r < kRatio; ++r) in[k][r] = LoadOnce(source + (row + r) * kRow + lane * 16);
  }
#pragma unroll
  for (int k = 0; k < kVectors; ++k) {
    const int vector = first + k * kThreads;
    StoreOnce(target + static_cast<size_t>(vector) * 16, NarrowRows<kFrom, kTo>(in[k]));
  }
  WaitForEarlierKernel();
}

// One block of threads holds a whole page in registers, then writes the slot's front.
constexpr int kPageThreads = 1024;
constexpr int kPageVectors = kMostBytesInPlace / 16 / kPageThreads;  // Of a thread.

// kOwn: what a thread writes, in units of 16 bytes.
template <int kFrom, int kTo, int kOwn>
__global__ void __launch_bounds__(kPageThreads)
    HalveInPlaceKernel(const __grid_constant__ MoveList list, uint8_t* arena, int target_vectors) {
  constexpr int kRatio = kFrom / kTo;
  LetNextKernelStart();
  uint8_t* page = arena + static_cast<size_t>(list.moves[blockIdx.x].source) * fragment::kArenaUnit;
  const int lane = threadIdx.x % fragment::kLanes;
  uint4 in[kOwn][kRatio];
#pragma unroll
  for (int k = 0; k < kOwn; ++k) {
    // Behind the page's end once more its last row: no load waits for a comparison.
    const int vector = min(k * kPageThreads + static_cast<int>(threadIdx.x),
                           target_vectors - fragment::kLanes + lane);
#pragma unroll
    for (int r = 0; r < kRatio; ++r) {
      in[k][r] = LoadOnce(page + (vector / fragment::kLanes * kRatio + r) * kRow + lane * 16);
    }
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < kOwn; ++k) {
    const int vector = k * kPageThreads + threadIdx.x;
    if (vector < target_vectors) {
      StoreOnce(page + static_cast<size_t>(vector) * 16, NarrowRows<kFrom, kTo>(in[k]));
    }
  }
  WaitForEarlierKernel();
}

int TargetVectors(const FragmentPageShape& shape, int to_bits) {
  return static_cast<int>(shape.heads *
                          fragment::BlockBytes(to_bits, static_cast<int>(shape.head_dim)) / 16);
}

template <int kFrom, int kTo, int kVectors>
void HalveBy(int vectors, std::span<const PageMove> moves, std::byte* arena, Stream& stream) {
  auto* bytes = reinterpret_cast<uint8_t*>(arena);
  int blocks = vectors / (kThreads * kVectors);
  LaunchParts(
      HalveKernel<kFrom, kTo, kVectors>, static_cast<unsigned>(blocks), kThreads, moves, stream,
      [](uint32_t) {}, bytes, blocks);
}

// A head has at least 128 vectors of the target, and a power of two.
template <int kFrom, int kTo>
void Halve(const FragmentPageShape& shape, std::span<const PageMove> moves, std::byte* arena,
           Stream& stream) {
  const int vectors = TargetVectors(shape, kTo);
  if (vectors % (4 * kThreads) == 0) return HalveBy<kFrom, kTo, 4>(vectors, moves, arena, stream);
  if (vectors % (2 * kThreads) == 0) return HalveBy<kFrom, kTo, 2>(vectors, moves, arena, stream);
  PMKVQ_CHECK(vectors % kThreads == 0);
  HalveBy<kFrom, kTo, 1>(vectors, moves, arena, stream);
}

template <int kFrom, int kTo>
void HalveInPlace(const FragmentPageShape& shape, std::span<const PageMove> moves, std::byte* arena,
                  Stream& stream) {
  auto* bytes = reinterpret_cast<uint8_t*>(arena);
  int vectors = TargetVectors(shape, kTo);
  PMKVQ_CHECK(static_cast<size_t>(vectors) * 16 * (kFrom / kTo) <= kMostBytesInPlace);
  constexpr int kMost = kPageVectors / (kFrom / kTo);
  const auto kernel = vectors <= kPageThreads ? HalveInPlaceKernel<kFrom, kTo, 1>
                                              : vectors <= 2 * kPageThreads
                          ? HalveInPlaceKernel < kFrom,
             kTo, kMost < 2 ? kMost : 2 > : HalveInPlaceKernel<kFrom, kTo, kMost>;
  LaunchParts(
      kernel, 1, kPageThreads, moves, stream, [](uint32_t) {}, bytes, vectors);
}

}  // namespace
}  // namespace cuda

void HalvePages(const FragmentPageShape& shape, int from_bits, int to_bits,
                std::span<const PageMove> moves, std::byte* arena, Stream& stream) {
  PMKVQ_CHECK(fragment::IsHeadDim(shape.head_dim));
  if (from_bits == 8 && to_bits == 4) return cuda::Halve<8, 4>(shape, moves, arena, stream);
  if (from_bits == 4 && to_bits == 2) return cuda::Halve<4, 2>(shape, moves, arena, stream);
  PMKVQ_CHECK(from_bits == 8 && to_bits == 2);
  cuda::Halve<8, 2>(shape, moves, arena, stream);
}

void HalvePagesInPlace(const FragmentPageShape& shape, int from_bits, int to_bits,
                       std::span<const PageMove> moves, std::byte* arena, Stream& stream) {
  PMKVQ_CHECK(fragment::IsHeadDim(shape.head_dim));
  if (from_bits == 8 && to_bits == 4) return cuda::HalveInPlace<8, 4>(shape, moves, arena, stream);
  if (from_bits == 4 && to_bits == 2) return cuda::HalveInPlace<4, 2>(shape, moves, arena, stream);
  PMKVQ_CHECK(from_bits == 8 && to_bits == 2);
  cuda::HalveInPlace<8, 2>(shape, moves, arena, stream);
}

}  // namespace pmkvq
