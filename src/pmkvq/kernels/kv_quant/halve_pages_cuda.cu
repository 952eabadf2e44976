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

// Codes come through a ring of pieces in shared memory, filled by a warp's copies, so that reading
// goes on while codes are halved and written.
constexpr int kThreads = 256;
constexpr int kPieceBytes = 16384;
constexpr int kStages = 3;
constexpr int kBlocks = 4;  // Of a multiprocessor.

// A block's pieces. Of pages that stay where they are a block has all pieces in their order: what
// is written then lies in pieces that have been read, or before them.
class Pieces {
 public:
  __device__ Pieces(const MoveList& list, int num_moves, int page_bytes, bool are_in_place)
      : list_(list), page_bytes_(page_bytes), are_in_place_(are_in_place) {
    of_page_ = (page_bytes + kPieceBytes - 1) / kPieceBytes;
    const int whole = are_in_place ? num_moves : num_moves * of_page_;
    const int own = (whole - static_cast<int>(blockIdx.x) + static_cast<int>(gridDim.x) - 1) /
                    static_cast<int>(gridDim.x);
    count_ = are_in_place ? own * of_page_ : own;
  }
  __device__ int count() const { return count_; }

  struct Piece {
    Move move;
    int begin;  // In bytes of the page.
    int num_bytes;
  };
  __device__ Piece At(int i) const {
    const int block = static_cast<int>(blockIdx.x);
    const int grid = static_cast<int>(gridDim.x);
    const int piece =
        are_in_place_ ? (block + i / of_page_ * grid) * of_page_ + i % of_page_ : block + i * grid;
    const int begin = piece % of_page_ * kPieceBytes;
    return {list_.moves[piece / of_page_], begin, min(kPieceBytes, page_bytes_ - begin)};
  }

 private:
  const MoveList& list_;
  int page_bytes_;
  bool are_in_place_;
  int of_page_;
  int count_;
};

template <int kFrom, int kTo>
__global__ void __launch_bounds__(kThreads)
    HalveKernel(const __grid_constant__ MoveList list, uint8_t* arena, int num_moves,
                int page_bytes, bool are_in_place) {
  constexpr int kRatio = kFrom / kTo;
  constexpr int kOwn = kPieceBytes / 16 / kRatio / kThreads;  // Vectors of the target.
  extern __shared__ __align__(128) uint8_t ring[];
  __shared__ __align__(8) uint64_t barriers[kStages];
  LetNextKernelStart();
  const Pieces pieces(list, num_moves, page_bytes, are_in_place);
  const int lane = threadIdx.x % fragment::kLanes;
  const bool copies = threadIdx.x < fragment::kLanes;
  const auto copy = [&](int i) {
    const Pieces::Piece piece = pieces.At(i);
    const uint32_t barrier = SharedAddress(&barriers[i % kStages]);
    const auto num_bytes = static_cast<uint32_t>(piece.num_bytes);
    BeginCopy(barrier, num_bytes, lane);
    CopyBytes(SharedAddress(ring + i % kStages * kPieceBytes),
              arena + static_cast<size_t>(piece.move.source) * fragment::kArenaUnit + piece.begin,
              num_bytes, barrier, lane);
    EndCopy(barrier);
  };
  if (copies) {
    for (uint64_t& barrier : barriers) InitBarrier(SharedAddress(&barrier), lane);
    __syncwarp();
    for (int i = 0; i < min(kStages, pieces.count()); ++i) copy(i);
  }
  __syncthreads();
  for (int i = 0; i < pieces.count(); ++i) {
    Wait(SharedAddress(&barriers[i % kStages]), i / kStages & 1);
    const Pieces::Piece piece = pieces.At(i);
    const uint8_t* const rows = ring + i % kStages * kPieceBytes;
    const int vectors = piece.num_bytes / 16 / kRatio;
    uint4 made[kOwn];
#pragma unroll
    for (int k = 0; k < kOwn; ++k) {
      const int vector = k * kThreads + static_cast<int>(threadIdx.x);
      if (vector >= vectors) break;
      uint4 in[kRatio];
#pragma unroll
      for (int r = 0; r < kRatio; ++r) {
        in[r] = *reinterpret_cast<const uint4*>(
            rows + (vector / fragment::kLanes * kRatio + r) * kRow + lane * 16);
      }
      made[k] = NarrowRows<kFrom, kTo>(in);
    }
    __syncthreads();
    if (copies && i + kStages < pieces.count()) copy(i + kStages);
    uint8_t* const target = arena + static_cast<size_t>(piece.move.target) * fragment::kArenaUnit +
                            piece.begin / kRatio;
#pragma unroll
    for (int k = 0; k < kOwn; ++k) {
      const int vector = k * kThreads + static_cast<int>(threadIdx.x);
      if (vector < vectors) StoreOnce(target + static_cast<size_t>(vector) * 16, made[k]);
    }
  }
  WaitForEarlierKernel();
}

template <int kFrom, int kTo>
void Halve(const FragmentPageShape& shape, bool are_in_place, std::span<const PageMove> moves,
           std::byte* arena, Stream& stream) {
  const internal::CudaDeviceScope scope(stream.device());
  constexpr int kMemory = kStages * kPieceBytes;
  const auto kernel = HalveKernel<kFrom, kTo>;
  internal::CheckCuda(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kMemory),
      "shared memory of halving");
  const auto page_bytes =
      static_cast<int>(shape.heads * fragment::BlockBytes(kFrom, static_cast<int>(shape.head_dim)));
  const int of_page = are_in_place ? 1 : (page_bytes + kPieceBytes - 1) / kPieceBytes;
  const int most = kBlocks * FactsOf(stream.device().index).multiprocessors;
  int count = 0;
  LaunchGrids(
      kernel, kThreads, kMemory, moves, stream,
      [&](uint32_t, int num_moves) {
        count = num_moves;
        return static_cast<unsigned>(std::min(most, num_moves * of_page));
      },
      reinterpret_cast<uint8_t*>(arena), count, page_bytes, are_in_place);
}

void HalveBits(const FragmentPageShape& shape, int from_bits, int to_bits, bool are_in_place,
               std::span<const PageMove> moves, std::byte* arena, Stream& stream) {
  PMKVQ_CHECK(fragment::IsRowWidth(shape.head_dim));
  if (from_bits == 8 && to_bits == 4) return Halve<8, 4>(shape, are_in_place, moves, arena, stream);
  if (from_bits == 4 && to_bits == 2) return Halve<4, 2>(shape, are_in_place, moves, arena, stream);
  PMKVQ_CHECK(from_bits == 8 && to_bits == 2);
  Halve<8, 2>(shape, are_in_place, moves, arena, stream);
}

}  // namespace
}  // namespace cuda

void HalvePages(const FragmentPageShape& shape, int from_bits, int to_bits,
                std::span<const PageMove> moves, std::byte* arena, Stream& stream) {
  cuda::HalveBits(shape, from_bits, to_bits, false, moves, arena, stream);
}

void HalvePagesInPlace(const FragmentPageShape& shape, int from_bits, int to_bits,
                       std::span<const PageMove> moves, std::byte* arena, Stream& stream) {
  for (const PageMove& move : moves) PMKVQ_CHECK(move.source == move.target);
  cuda::HalveBits(shape, from_bits, to_bits, true, moves, arena, stream);
}

}  // namespace pmkvq
