// A thread per value, each sum in one fixed order.
#include <cuda_runtime.h>

#include <algorithm>
#include <bit>

#include "pmkvq/base/check.h"
#include "pmkvq/kernels/cuda/launch.cuh"
#include "pmkvq/kernels/device_rows/product_rows.cuh"
#include "pmkvq/kernels/device_rows/rank_rows.h"
#include "pmkvq/tensor/device/cuda_runtime.h"

namespace pmkvq {
namespace cuda {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    RoundColumnsKernel(const float* x, int64_t x_width, int64_t first, int64_t width,
                       const __grid_constant__ ProductRows out) {
  const int64_t i = static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x;
  if (i < width) Store(out, width, blockIdx.x, i, x[blockIdx.x * x_width + first + i]);
}

struct AddedSums {
  ProductSums sums[kMostAddedSums];
};

// kLevels: 2^kLevels sums. A partial sum waits for its right neighbour at each level.
template <int kLevels>
__global__ void __launch_bounds__(kThreads)
    AddInTreeKernel(const __grid_constant__ AddedSums added, int64_t width, float* out) {
  const int64_t i = static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x;
  if (i >= width) return;
  float waiting[kLevels + 1];
#pragma unroll
  for (int n = 0; n < 1 << kLevels; ++n) {
    const ProductSums& sums = added.sums[n];
    float value = sums.data == nullptr ? 0.0f : SumOf(sums, width, blockIdx.x, i);
#pragma unroll
    for (int level = 0; level < kLevels; ++level) {
      // The n-th sum ends a subtree of 2^(level + 1) where all lower bits of n are set.
      if ((n >> level & 1) == 0 || (n & ((1 << level) - 1)) != (1 << level) - 1) continue;
      value = waiting[level] + value;
    }
    // Kept at the level of the subtree that it ends.
    int kept = 0;
#pragma unroll
    for (int level = 0; level < kLevels; ++level) {
      if ((n & ((2 << level) - 1)) == (2 << level) - 1) kept = level + 1;
    }
    waiting[kept] = value;
  }
  out[blockIdx.x * width + i] = waiting[kLevels];
}

struct Joined {
  JoinedColumns pieces[kMostJoined];
};

__global__ void __launch_bounds__(kThreads)
    JoinKernel(const __grid_constant__ Joined joined, float* out, int64_t out_width) {
  const JoinedColumns& piece = joined.pieces[blockIdx.z];
  const int64_t i = static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x;
  if (i >= piece.width) return;
  out[blockIdx.x * out_width + piece.at + i] =
      SumOf(piece.sums, piece.sums_width, blockIdx.x, piece.from + i);
}

unsigned BlocksOf(int64_t count) {
  return static_cast<unsigned>((count + kThreads - 1) / kThreads);
}
dim3 RowPieces(int64_t rows, int64_t width) {
  return {static_cast<unsigned>(rows), BlocksOf(width)};
}

template <int kLevels>
void LaunchTree(int levels, const AddedSums& added, int64_t rows, int64_t width, float* out,
                Stream& stream) {
  if constexpr (kLevels > 0) {
    if (levels < kLevels) {
      return LaunchTree<kLevels - 1>(levels, added, rows, width, out, stream);
    }
  }
  AddInTreeKernel<kLevels>
      <<<RowPieces(rows, width), kThreads, 0, stream.handle()>>>(added, width, out);
}

}  // namespace
}  // namespace cuda

void RoundColumns(const float* x, int64_t rows, int64_t x_width, int64_t first, int64_t width,
                  const ProductRows& out, Stream& stream) {
  if (rows == 0 || width == 0) return;
  PMKVQ_CHECK(rows <= out.part_rows && first + width <= x_width);
  const internal::CudaDeviceScope scope(stream.device());
  cuda::RoundColumnsKernel<<<cuda::RowPieces(rows, width), cuda::kThreads, 0, stream.handle()>>>(
      x, x_width, first, width, out);
  internal::CheckLaunch("rounding columns");
}

void AddSumsInTree(std::span<const ProductSums> sums, int64_t rows, int64_t width, float* out,
                   Stream& stream) {
  if (rows == 0) return;
  PMKVQ_CHECK(std::has_single_bit(sums.size()) && sums.size() <= kMostAddedSums);
  const internal::CudaDeviceScope scope(stream.device());
  cuda::AddedSums added{};
  std::copy(sums.begin(), sums.end(), added.sums);
  constexpr int kMostLevels = std::bit_width(kMostAddedSums) - 1;
  cuda::LaunchTree<kMostLevels>(static_cast<int>(std::bit_width(sums.size())) - 1, added, rows,
                                width, out, stream);
  internal::CheckLaunch("adding slices");
}

void JoinColumns(std::span<const JoinedColumns> pieces, int64_t rows, float* out, int64_t out_width,
                 Stream& stream) {
  if (rows == 0) return;
  const internal::CudaDeviceScope scope(stream.device());
  while (!pieces.empty()) {
    const auto some = pieces.first(std::min(pieces.size(), kMostJoined));
    pieces = pieces.subspan(some.size());
    cuda::Joined joined{};
    std::copy(some.begin(), some.end(), joined.pieces);
    int64_t widest = 1;
    for (const JoinedColumns& piece : some) widest = std::max(widest, piece.width);
    dim3 grid = cuda::RowPieces(rows, widest);
    grid.z = static_cast<unsigned>(some.size());
    cuda::JoinKernel<<<grid, cuda::kThreads, 0, stream.handle()>>>(joined, out, out_width);
    internal::CheckLaunch("joining columns");
  }
}

}  // namespace pmkvq
