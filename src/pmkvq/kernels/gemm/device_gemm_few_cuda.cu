// A block of 8 warps per multiprocessor takes tiles of up to 16 weight rows in turn, of as many as
// give all blocks the same number of rows. The columns of a
// tile are cut into units of 256; warp w has units w, w + 8, ... Each warp has a ring of units, or
// halves, in shared memory: the weight rows, and the same columns of x. It asks for the next one as
// soon as a place is free, across tiles, so that as many bytes as shared memory holds are under
// way. Warps' sums of a tile are added in their order, so a row's bits are the same for any number
// of rows, blocks and places in the ring.
//
// Weights come by tensor copies of 16 rows x 128 bytes. A copy for each row of a unit, of 512
// bytes, took 1.1 times as long for a block of Qwen2-7B, one of 256 bytes 1.4 times.
#include <cuda.h>

#include <algorithm>

#include "pmkvq/base/check.h"
#include "pmkvq/kernels/cuda/copy.cuh"
#include "pmkvq/kernels/cuda/launch.cuh"
#include "pmkvq/kernels/cuda/mma.cuh"
#include "pmkvq/kernels/device_rows/product_rows.cuh"
#include "pmkvq/kernels/gemm/device_gemm_few.h"
#include "pmkvq/tensor/device/cuda_runtime.h"

namespace pmkvq {
namespace cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kTileRows = 16;  // Of the weight, at most.
// Columns of a box: rows of 128 bytes, whose eight pieces of 16 bytes a tensor copy exchanges by
// the lowest three bits of the row's place in shared memory (in 128 bytes).
constexpr int kBox = 64;
constexpr int kBoxBytes = 2 * kBox;
constexpr int kWeightBytes = kTileRows * kBoxBytes;
constexpr int kUnitBoxes = 4;
constexpr int kMostStages = 4;
constexpr int kAlignment = 1024;  // Of boxes of weights: the pattern repeats.

struct FewRowsArguments {
  const uint8_t* x;  // [2 * part_rows, k]
  const uint8_t* w;  // [n, k]
  float* y;
  ProductRows gated;
  int first_row;
  int part_rows;
  int rows;
  int n;
  int k;
  int tile_rows;  // Of the output.
  int stages;     // Places in a warp's ring.
};

// For 1, 2, 4 or 8 rows of x.
template <int kRows>
struct FewRowsShape {
  static constexpr int kTiles = (kRows + 3) / 4;        // Of four rows, both parts: 8 columns.
  static constexpr int kRowsBytes = kRows * kBoxBytes;  // One part of a box.
  static constexpr int kBoxes = kRows == 8 ? 2 : 4;  // In a place of a ring: a unit or half of it.
  static constexpr int kPieces = kUnitBoxes / kBoxes;     // Of a unit.
  static constexpr int kWeights = kBoxes * kWeightBytes;  // Of a piece.
  static constexpr int kX = kBoxes * 2 * kRowsBytes;
};

// kGated: a tile has 8 rows of the gate and their 8 rows above.
template <class T, int kRows, bool kGated>
class FewRowsWarp {
 public:
  using Shape = FewRowsShape<kRows>;
  static constexpr int kBoxes = Shape::kBoxes;
  static constexpr int kMostOutRows = kGated ? kTileRows / 2 : kTileRows;  // Of a tile.

  __device__ FewRowsWarp(const FewRowsArguments& a, const CUtensorMap& w_map,
                         const CUtensorMap& x_map, uint8_t* memory, uint64_t* barriers)
      : a_(a),
        w_map_(&w_map),
        x_map_(&x_map),
        barriers_(SharedAddress(barriers)),
        lane_(threadIdx.x % 32),
        warp_(threadIdx.x / 32),
        units_((a.k + kUnitBoxes * kBox - 1) / (kUnitBoxes * kBox)),
        own_pieces_((units_ - warp_ + kWarps - 1) / kWarps * Shape::kPieces),
        weights_(memory + warp_ * a.stages * Shape::kWeights),
        x_(memory + kWarps * a.stages * Shape::kWeights + warp_ * a.stages * Shape::kX) {
    for (int stage = 0; stage < a.stages; ++stage) InitBarrier(Barrier(stage), lane_);
    __syncwarp();
  }

  // The first weights; later the rows of x beside them.
  __device__ void BeginWeights() {
    for (int i = 0; i < a_.stages && HasPiece(i); ++i) CopyWeights(i, i);
  }
  __device__ void BeginRows() {
    for (int i = 0; i < a_.stages && HasPiece(i); ++i) CopyRows(i, i);
  }

  // This warp's sums of the next tile: of weight rows g and g + 8, x rows 4 j + 2 t and the one
  // behind; in lanes with t below 2.
  __device__ void Multiply(float (&sums)[Shape::kTiles][4]) {
    const int g = lane_ / 4;
    const int t = lane_ % 4;
#pragma unroll
    for (int j = 0; j < Shape::kTiles; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[j][i] = 0.0f;
    }
    for (int i = 0; i < own_pieces_; ++i) {
      Wait(Barrier(stage_), turn_);
      const uint8_t* const w = weights_ + stage_ * Shape::kWeights + g * kBoxBytes;
      const uint8_t* const x = x_ + stage_ * Shape::kX;
      const int x_place = static_cast<int>(SharedAddress(x) / kBoxBytes);
      const int boxes = BoxesAt(ColumnAt(next_));
#pragma unroll
      for (int box = 0; box < kBoxes; ++box) {
        if (box >= boxes) break;
        // A lane's 16 columns are two pieces; the second one's place differs by one bit.
        const int piece = (2 * t ^ g) * 16;
        const uint8_t* const rows = w + box * kWeightBytes;
        const uint4 low[2] = {Load(rows + piece), Load(rows + (piece ^ 16))};
        const uint4 high[2] = {Load(rows + 8 * kBoxBytes + piece),
                               Load(rows + 8 * kBoxBytes + (piece ^ 16))};
#pragma unroll
        for (int j = 0; j < Shape::kTiles; ++j) {
          // Columns of the operand: four rows' first parts, their second ones. Columns without a
          // row repeat one: nobody reads their sums.
          const int row = box * 2 * kRows + g / 4 * kRows + (4 * j + g % 4) % kRows;
          const int x_piece = (2 * t ^ ((x_place + row) & 7)) * 16;
          const uint8_t* const x_row = x + row * kBoxBytes;
          const uint4 b[2] = {Load(x_row + x_piece), Load(x_row + (x_piece ^ 16))};
#pragma unroll
          for (int p = 0; p < 2; ++p) {
            MultiplyTile<T>(sums[j], {low[p].x, high[p].x, low[p].y, high[p].y}, b[p].x, b[p].y);
            MultiplyTile<T>(sums[j], {low[p].z, high[p].z, low[p].w, high[p].w}, b[p].z, b[p].w);
          }
        }
      }
      __syncwarp();
      if (HasPiece(next_ + a_.stages)) {
        CopyWeights(next_ + a_.stages, stage_);
        CopyRows(next_ + a_.stages, stage_);
      }
      ++next_;
      if (++stage_ == a_.stages) {
        stage_ = 0;
        turn_ ^= 1;
      }
    }
    // Second parts are two lanes further.
#pragma unroll
    for (int j = 0; j < Shape::kTiles; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[j][i] += __shfl_xor_sync(~0u, sums[j][i], 2);
    }
  }

 private:
  static __device__ __forceinline__ uint4 Load(const uint8_t* p) {
    return *reinterpret_cast<const uint4*>(p);
  }
  __device__ __forceinline__ uint32_t Barrier(int stage) const { return barriers_ + 8 * stage; }
  // Pieces of this warp are counted over all tiles of its block.
  __device__ __forceinline__ int TileAt(int i) const {
    return blockIdx.x + i / own_pieces_ * gridDim.x;
  }
  // In boxes.
  __device__ __forceinline__ int ColumnAt(int i) const {
    const int piece = i % own_pieces_;
    const int unit = warp_ + piece / Shape::kPieces * kWarps;
    return unit * kUnitBoxes + piece % Shape::kPieces * kBoxes;
  }
  __device__ __forceinline__ bool HasPiece(int i) const {
    return own_pieces_ > 0 && TileAt(i) * a_.tile_rows < a_.n;
  }
  // Of a piece that begins there; 0 behind the last one.
  __device__ __forceinline__ int BoxesAt(int column) const {
    return max(0, min(kBoxes, a_.k / kBox - column));
  }

  __device__ __forceinline__ void CopyWeights(int i, int stage) const {
    const int column = ColumnAt(i);
    const int boxes = BoxesAt(column);
    const int first = TileAt(i) * a_.tile_rows;
    const uint32_t target = SharedAddress(weights_) + stage * Shape::kWeights;
    constexpr int kHalves = kTileRows / kMostOutRows;
    constexpr int kHalfBytes = kMostOutRows * kBoxBytes;
    BeginCopy(Barrier(stage), boxes * (kHalves * a_.tile_rows * kBoxBytes + 2 * Shape::kRowsBytes),
              lane_);
    __syncwarp();  // The barrier must know the bytes before any of them comes.
    if constexpr (kHasBulkCopies) {
      if (lane_ < kHalves * boxes) {
        StreamBox(w_map_, target + lane_ * kHalfBytes, (column + lane_ / kHalves) * kBox,
                  first + lane_ % kHalves * a_.n, Barrier(stage));
      }
    } else {
      for (int i = 0; i < kHalves * boxes; ++i) {
        CopyBoxByLanes(target + i * kHalfBytes, a_.w, (column + i / kHalves) * kBox,
                       first + i % kHalves * a_.n, a_.tile_rows, (i % kHalves + 1) * a_.n);
      }
    }
  }
  // Behind CopyWeights.
  __device__ __forceinline__ void CopyRows(int i, int stage) const {
    const int column = ColumnAt(i);
    const int boxes = BoxesAt(column);
    const uint32_t target = SharedAddress(x_) + stage * Shape::kX;
    if constexpr (kHasBulkCopies) {
      if (lane_ < 2 * boxes) {
        CopyBox(x_map_, target + lane_ * Shape::kRowsBytes, (column + lane_ / 2) * kBox,
                a_.first_row + lane_ % 2 * a_.part_rows, Barrier(stage));
      }
    } else {
      for (int box = 0; box < 2 * boxes; ++box) {
        CopyBoxByLanes(target + box * Shape::kRowsBytes, a_.x, (column + box / 2) * kBox,
                       a_.first_row + box % 2 * a_.part_rows, kRows, 2 * a_.part_rows);
      }
    }
    EndCopy(Barrier(stage));
  }

  static __device__ __forceinline__ void CopyBox(const CUtensorMap* map, uint32_t target,
                                                 int column, int row, uint32_t barrier) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%2, %3}], [%4];" ::"r"(target),
        "l"(map), "r"(column), "r"(row), "r"(barrier)
        : "memory");
#endif
  }
  // Weights leave the second-level cache first: code, page tables and activations stay, which wait
  // for memory else with every launch.
  static __device__ __forceinline__ void StreamBox(const CUtensorMap* map, uint32_t target,
                                                   int column, int row, uint32_t barrier) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
    asm volatile(
        "{\n.reg .b64 first;\n"
        "createpolicy.fractional.L2::evict_first.b64 first, 1.0;\n"
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
        ".L2::cache_hint [%0], [%1, {%2, %3}], [%4], first;\n}\n" ::"r"(target),
        "l"(map), "r"(column), "r"(row), "r"(barrier)
        : "memory");
#endif
  }
  // The same in the same pattern; rows from `num_rows` on stay as they are.
  __device__ __forceinline__ void CopyBoxByLanes(uint32_t target, const uint8_t* matrix, int column,
                                                 int first_row, int rows, int num_rows) const {
    for (int i = lane_; i < rows * (kBoxBytes / 16); i += 32) {
      const int row = i / (kBoxBytes / 16);
      if (first_row + row >= num_rows) continue;
      const uint32_t to = target + row * kBoxBytes;
      const int piece = i % (kBoxBytes / 16) ^ (to / kBoxBytes & 7);
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to + piece * 16),
                   "l"(matrix + (static_cast<int64_t>(first_row + row) * a_.k + column) * 2 +
                       i % (kBoxBytes / 16) * 16)
                   : "memory");
    }
  }

  const FewRowsArguments& a_;
  const CUtensorMap* const w_map_;
  const CUtensorMap* const x_map_;
  const uint32_t barriers_;
  const int lane_;
  const int warp_;
  const int units_;
  const int own_pieces_;
  uint8_t* const weights_;
  uint8_t* const x_;
  int next_ = 0;       // Piece.
  int stage_ = 0;      // Its place,
  uint32_t turn_ = 0;  // and how often the ring has turned.
};

template <class T, int kRows, bool kGated>
__global__ void __launch_bounds__(kThreads, 1)
    FewRowsKernel(const __grid_constant__ FewRowsArguments a,
                  const __grid_constant__ CUtensorMap w_map,
                  const __grid_constant__ CUtensorMap x_map) {
  using Shape = FewRowsShape<kRows>;
  extern __shared__ uint8_t memory[];
  __shared__ __align__(8) uint64_t barriers[kWarps][kMostStages];
  __shared__ float merged[2][kWarps][kRows][kTileRows];
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const uint32_t misplaced = SharedAddress(memory) % kAlignment;
  FewRowsWarp<T, kRows, kGated> self(
      a, w_map, x_map, memory + (misplaced == 0 ? 0 : kAlignment - misplaced), barriers[warp]);
  self.BeginWeights();
  LetNextKernelStart();
  WaitForEarlierKernel();
  self.BeginRows();
  int buffer = 0;
  constexpr int kMostOutRows = FewRowsWarp<T, kRows, kGated>::kMostOutRows;
  for (int tile = blockIdx.x; tile * a.tile_rows < a.n; tile += gridDim.x, buffer ^= 1) {
    float sums[Shape::kTiles][4];
    self.Multiply(sums);
    if (lane % 4 < 2) {
#pragma unroll
      for (int j = 0; j < Shape::kTiles; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int row = 4 * j + 2 * (lane % 4) + i % 2;
          if (row < kRows) merged[buffer][warp][row][lane / 4 + i / 2 * 8] = sums[j][i];
        }
      }
    }
    // One barrier a tile: whoever comes to the next one has done with the other buffer.
    __syncthreads();
    if (threadIdx.x < kRows * kMostOutRows) {
      const int row = threadIdx.x / kMostOutRows;
      const int i = threadIdx.x % kMostOutRows;
      const int out = tile * a.tile_rows + i;
      const auto sum_of = [&](int at) {
        float sum = 0.0f;
#pragma unroll
        for (int w = 0; w < kWarps; ++w) sum += merged[buffer][w][row][at];
        return sum;
      };
      if (row < a.rows && i < a.tile_rows && out < a.n) {
        if constexpr (kGated) {
          Store(a.gated, a.n, a.first_row + row, out, SiluMul(sum_of(i), sum_of(i + kMostOutRows)));
        } else {
          a.y[static_cast<int64_t>(row) * a.n + out] = sum_of(i);
        }
      }
    }
  }
}

// How tensor copies read a matrix [rows, k] in boxes of `box_rows`. The driver makes maps, and the
// runtime knows the driver.
CUtensorMap MapOf(const uint8_t* matrix, int64_t rows, int64_t k, int box_rows) {
  using Encode = decltype(&cuTensorMapEncodeTiled);
  static const Encode encode = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result{};
    internal::CheckCuda(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000,
                                                         cudaEnableDefault, &result),
                        "asking the driver for tensor copies");
    PMKVQ_CHECK_MSG(result == cudaDriverEntryPointSuccess, "the driver has no tensor copies");
    return reinterpret_cast<Encode>(found);
  }();
  CUtensorMap map{};
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(k), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(k) * 2};
  const cuuint32_t box[2] = {kBox, static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[2] = {1, 1};
  const CUresult status =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_UINT16, 2, const_cast<uint8_t*>(matrix), sizes, strides,
             box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  PMKVQ_CHECK_MSG(status == CUDA_SUCCESS, "no tensor copies of such a matrix");
  return map;
}

// Of a tile of the output: with as many rounds of tiles as there must be, the fewest rows that do.
// Tiles below 8 rows are not worth their barriers.
int RowsOfTile(int n, int most, int multiprocessors) {
  const int rounds = (n + most * multiprocessors - 1) / (most * multiprocessors);
  const int fewest = (n + rounds * multiprocessors - 1) / (rounds * multiprocessors);
  return std::clamp(fewest, std::min(8, most), most);
}

template <class T, int kRows, bool kGated>
void LaunchFewRows(FewRowsArguments a, Stream& stream) {
  using Shape = FewRowsShape<kRows>;
  const DeviceFacts& facts = FactsOf(stream.device().index);
  a.tile_rows = RowsOfTile(a.n, FewRowsWarp<T, kRows, kGated>::kMostOutRows, facts.multiprocessors);
  const auto kernel = FewRowsKernel<T, kRows, kGated>;
  cudaFuncAttributes attributes{};
  internal::CheckCuda(cudaFuncGetAttributes(&attributes, kernel), "asking for a kernel");
  constexpr int kRings = kWarps * (Shape::kWeights + Shape::kX);
  const int most_bytes = facts.shared_bytes - static_cast<int>(attributes.sharedSizeBytes);
  a.stages = std::min((most_bytes - kAlignment) / kRings, kMostStages);
  PMKVQ_CHECK(a.stages >= 1);
  const int memory = a.stages * kRings + kAlignment;
  internal::CheckCuda(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, memory),
      "shared memory of a product");
  CUtensorMap w_map{};
  CUtensorMap x_map{};
  if (facts.is_sm90) {
    w_map = MapOf(a.w, kGated ? 2 * int64_t{a.n} : a.n, a.k, a.tile_rows);
    x_map = MapOf(a.x, 2 * int64_t{a.part_rows}, a.k, kRows);
  }
  const int tiles = (a.n + a.tile_rows - 1) / a.tile_rows;
  LaunchEarlyWith(kernel, static_cast<unsigned>(std::min(facts.multiprocessors, tiles)), kThreads,
                  static_cast<size_t>(memory), stream, "a product of few rows", a, w_map, x_map);
}

template <class T, bool kGated>
void LaunchForRows(const FewRowsArguments& a, Stream& stream) {
  if (a.rows == 1) return LaunchFewRows<T, 1, kGated>(a, stream);
  if (a.rows == 2) return LaunchFewRows<T, 2, kGated>(a, stream);
  if (a.rows <= 4) return LaunchFewRows<T, 4, kGated>(a, stream);
  LaunchFewRows<T, 8, kGated>(a, stream);
}

template <class T>
void LaunchForOutput(const FewRowsArguments& a, Stream& stream) {
  if (a.gated.data != nullptr) return LaunchForRows<T, true>(a, stream);
  LaunchForRows<T, false>(a, stream);
}

}  // namespace
}  // namespace cuda

void MultiplyFewRows(const FewRowsProduct& op, Stream& stream) {
  if (op.rows == 0) return;
  PMKVQ_CHECK(HasFewRowsProduct(op.x.type, op.k) && op.x.parts == 2);
  PMKVQ_CHECK(op.rows <= kMostFewRows && op.first_row + op.rows <= op.x.part_rows);
  PMKVQ_CHECK(op.n > 0 && op.n < INT32_MAX - 4096 && op.k > 0 && op.k < INT32_MAX - 4096);
  const internal::CudaDeviceScope scope(stream.device());
  cuda::FewRowsArguments a{};
  a.x = reinterpret_cast<const uint8_t*>(op.x.data);
  a.w = reinterpret_cast<const uint8_t*>(op.w);
  a.y = op.y;
  a.gated = op.gated;
  a.first_row = static_cast<int>(op.first_row);
  a.part_rows = static_cast<int>(op.x.part_rows);
  a.rows = static_cast<int>(op.rows);
  a.n = static_cast<int>(op.n);
  a.k = static_cast<int>(op.k);
  if (op.x.type == DType::kF16) {
    cuda::LaunchForOutput<__half>(a, stream);
  } else {
    cuda::LaunchForOutput<__nv_bfloat16>(a, stream);
  }
}

}  // namespace pmkvq
