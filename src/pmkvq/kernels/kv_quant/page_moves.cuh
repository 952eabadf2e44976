// What the kernels on pages share: how moves reach them, loads and stores that leave the cache to
// others, and the launch over all moves.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <span>

#include "pmkvq/base/check.h"
#include "pmkvq/kernels/cuda/copy.cuh"
#include "pmkvq/kernels/cuda/launch.cuh"
#include "pmkvq/kernels/kv_quant/fragment_layout.h"
#include "pmkvq/kernels/kv_quant/page_moves.h"
#include "pmkvq/tensor/device/cuda_runtime.h"

namespace pmkvq::cuda {

// Moves travel with the launch, as its parameter: nothing to upload, nothing to keep until the
// launch has run. 1,024 moves of 8 heads are eight times as many blocks as an H200 runs at once.
constexpr int kMovesPerLaunch = 1024;
struct Move {  // In units of fragment::kArenaUnit.
  uint32_t source;
  uint32_t target;
  uint32_t metadata;
};
struct MoveList {
  Move moves[kMovesPerLaunch];
};

__device__ __forceinline__ uint4 LoadOnce(const uint8_t* p) {
  return __ldcs(reinterpret_cast<const uint4*>(p));
}
__device__ __forceinline__ void StoreOnce(uint8_t* p, uint4 value) {
  __stcs(reinterpret_cast<uint4*>(p), value);
}

inline uint32_t UnitsOf(size_t offset) {
  PMKVQ_CHECK(offset % fragment::kArenaUnit == 0);
  return static_cast<uint32_t>(offset / fragment::kArenaUnit);
}

// Launches kernel(list, arguments...) for parts of the moves, with `shared_bytes` of dynamic shared
// memory. `grid` gets the index of a part's first move and the number of its moves, and gives the
// number of blocks. Parts do not depend on each other: one starts while the one before it ends,
// where the chip can do that. Such a kernel must begin with LetNextKernelStart and end with
// WaitForEarlierKernel, so that whatever comes behind the last part finds all of them done.
template <class Kernel, class Grid, class... Arguments>
void LaunchGrids(Kernel* kernel, unsigned threads, size_t shared_bytes,
                 std::span<const PageMove> moves, Stream& stream, const Grid& grid,
                 const Arguments&... arguments) {
  const internal::CudaDeviceScope scope(stream.device());
  const bool has_early = FactsOf(stream.device().index).is_sm90;
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  for (size_t first = 0; first < moves.size(); first += kMovesPerLaunch) {
    const size_t count = std::min<size_t>(kMovesPerLaunch, moves.size() - first);
    MoveList list;
    for (size_t i = 0; i < count; ++i) {
      const PageMove& move = moves[first + i];
      list.moves[i] = {UnitsOf(move.source), UnitsOf(move.target), UnitsOf(move.metadata)};
    }
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(grid(static_cast<uint32_t>(first), static_cast<int>(count)));
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream.handle();
    config.attrs = &early;
    config.numAttrs = first > 0 && has_early ? 1 : 0;
    internal::CheckCuda(cudaLaunchKernelEx(&config, kernel, list, arguments...),
                        "an operation on pages");
  }
}
// So many blocks a move, without dynamic shared memory.
template <class Kernel, class Prepare, class... Arguments>
void LaunchParts(Kernel* kernel, unsigned blocks_per_move, unsigned threads,
                 std::span<const PageMove> moves, Stream& stream, const Prepare& prepare,
                 const Arguments&... arguments) {
  LaunchGrids(
      kernel, threads, 0, moves, stream,
      [&](uint32_t first, int count) {
        prepare(first);
        return static_cast<unsigned>(count) * blocks_per_move;
      },
      arguments...);
}

}  // namespace pmkvq::cuda
