// Attention over latents on CUDA: launches of decoding, and the steps around the products of
// chunks.
#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <string>

#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"
#include "pmkvq/kernels/attention/latent_combine.cuh"
#include "pmkvq/kernels/attention/latent_decode.h"
#include "pmkvq/kernels/attention/latent_kernel.cuh"
#include "pmkvq/kernels/cuda/float16.cuh"
#include "pmkvq/kernels/cuda/launch.cuh"
#include "pmkvq/tensor/device/cuda_runtime.h"

namespace pmkvq {
namespace cuda {
namespace {

// Blocks that a device holds at once. Asked once per device: the answer never changes.
template <int kGroups, int kRopeDims>
int ResidentLatentBlocks(int device) {
  constexpr size_t kMostDevices = 64;
  static std::array<std::atomic<int>, kMostDevices> known{};
  const auto index = static_cast<size_t>(device);
  PMKVQ_CHECK(index < kMostDevices);
  int blocks = known[index].load();
  if (blocks != 0) return blocks;
  constexpr int kMemory = LatentMemory<kGroups, kRopeDims>::kBytes;
  if (kMemory > FactsOf(device).shared_bytes) {  // sm_86 and sm_89.
    throw Unsupported(NameOf({Device::kCuda, device}),
                      "attention over latents: found " +
                          std::to_string(FactsOf(device).shared_bytes) +
                          " bytes of shared memory for a block, expected " +
                          std::to_string(kMemory) + " or more; use --device cpu");
  }
  pmkvq::internal::CheckCuda(
      cudaFuncSetAttribute(LatentKernel<kGroups, kRopeDims>,
                           cudaFuncAttributeMaxDynamicSharedMemorySize, kMemory),
      "shared memory of attention over latents");
  pmkvq::internal::CheckCuda(
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, LatentKernel<kGroups, kRopeDims>,
                                                    32 * (kGroups + 1), kMemory),
      "occupancy of attention over latents");
  blocks *= FactsOf(device).multiprocessors;
  PMKVQ_CHECK(blocks > 0);
  known[index].store(blocks);
  return blocks;
}

template <int kGroups, int kRopeDims>
void LaunchLatents(const DecodeArguments& arguments, int most_items, Stream& stream) {
  const pmkvq::internal::CudaDeviceScope scope(stream.device());
  const int resident = ResidentLatentBlocks<kGroups, kRopeDims>(stream.device().index);
  const auto blocks = static_cast<unsigned>(std::min(resident, most_items));
  LatentKernel<kGroups, kRopeDims>
      <<<blocks, 32 * (kGroups + 1), LatentMemory<kGroups, kRopeDims>::kBytes, stream.handle()>>>(
          arguments);
  pmkvq::internal::CheckLaunch("attention over latents");
  LaunchEarly(LatentCombineKernel<kGroups, kRopeDims>,
              dim3(static_cast<unsigned>(arguments.num_sequences * arguments.parts), kGroups),
              kLatentCombineThreads, stream, "merging attention over latents", arguments);
}

constexpr int kChunkThreads = 256;

struct PackLatentArguments {
  ChunkOperands op;
  __half* q;
  __half* keys;
  int heads;
  int latent;
  int rope;
  int rest;
  int rest_capacity;
};

// Blocks: y = 0: queries of token x; 1: key of column x.
__global__ void __launch_bounds__(kChunkThreads)
    PackLatentKernel(const __grid_constant__ PackLatentArguments a) {
  const int64_t x = blockIdx.x;
  const int width = a.latent + a.rope;
  if (blockIdx.y == 0) {
    if (x >= a.op.num_rows) return;
    bool has_unfit = false;
    const int64_t count = static_cast<int64_t>(a.heads) * width;
    for (int64_t i = threadIdx.x; i < count; i += kChunkThreads) {
      const __half value = Round<__half>(a.op.q[x * count + i]);
      a.q[x * count + i] = value;
      has_unfit |= !isfinite(ToFloat(value));
    }
    if (has_unfit) {
      atomicMin(a.op.unfit, kUnfitKinds * a.op.block + static_cast<uint32_t>(UnfitRow::kQuery));
    }
    return;
  }
  const int64_t row = x - a.rest;
  for (int i = threadIdx.x; i < width; i += kChunkThreads) {
    const bool is_rope = i >= a.latent;
    const int channel = is_rope ? i - a.latent : i;
    __half value = Round<__half>(0.0f);
    if (row < 0) {
      const uint32_t slot = is_rope ? a.op.rest_v : a.op.rest_k;
      const int dims = is_rope ? a.rope : static_cast<int>(kLatentGroup);
      const int64_t line = channel / dims * a.rest_capacity + x;
      value = reinterpret_cast<const __half*>(
          a.op.arena +
          static_cast<size_t>(slot) * fragment::kArenaUnit)[line * dims + channel % dims];
    } else if (row < a.op.num_rows) {
      const float* const from = is_rope ? a.op.v + row * a.rope : a.op.k + row * a.latent;
      value = Round<__half>(from[channel]);
      if (!isfinite(ToFloat(value))) {
        const UnfitRow kind = is_rope ? UnfitRow::kValue : UnfitRow::kKey;
        atomicMin(a.op.unfit, kUnfitKinds * a.op.block + static_cast<uint32_t>(kind));
      }
    }
    a.keys[x * width + i] = value;
  }
}

// A block per (token, page); a thread per channel.
__global__ void __launch_bounds__(kChunkThreads)
    GatherLatentKernel(const __grid_constant__ internal::GatherLatents op, int latent, int rope) {
  const int page = blockIdx.y;
  const int token = blockIdx.x;
  const int64_t at = static_cast<int64_t>(page) * fragment::kTokens + token;
  auto* const out = reinterpret_cast<__half*>(op.keys) + at * (latent + rope);
  const PageEntry entry = op.entries[page];
  const PageBits widths = op.bits[page];
  for (int i = threadIdx.x; i < latent + rope; i += kChunkThreads) {
    if (at >= op.num_tokens) {
      out[i] = Round<__half>(0.0f);
      continue;
    }
    const bool is_rope = i >= latent;
    const int dims = is_rope ? rope : static_cast<int>(kLatentGroup);
    const int channel = is_rope ? i - latent : i;
    const int head = channel / dims;
    const int bits = is_rope ? widths.v : widths.k;
    const fragment::Place place =
        fragment::PlaceOf(bits, fragment::ShapeOf(false, dims), token, channel % dims);
    const auto slot = [&](uint32_t units) {
      return op.arena + static_cast<size_t>(units) * fragment::kArenaUnit;
    };
    const uint32_t word = *reinterpret_cast<const uint32_t*>(
        slot(is_rope ? entry.v : entry.k) +
        static_cast<size_t>(head) * fragment::BlockBytes(bits, dims) + place.byte);
    if (bits == 16) {
      const auto half = static_cast<unsigned short>(word >> place.shift);
      out[i] = __ushort_as_half(half);
      continue;
    }
    const uint32_t code =
        (fragment::RotateRight(word, place.rotation) >> place.shift) & ((1u << bits) - 1u);
    const auto* const bounds = reinterpret_cast<const __half*>(
        slot(is_rope ? entry.v_metadata : entry.k_metadata) + head * fragment::MetadataBytes());
    const float step =
        __fdiv_rn(ToFloat(bounds[fragment::kTokens + token]), static_cast<float>((1 << bits) - 1));
    const float value =
        __fadd_rn(__fmul_rn(static_cast<float>(code), step), ToFloat(bounds[token]));
    constexpr float kMost = MaxFinite<__half>();
    out[i] = Round<__half>(fminf(fmaxf(value, -kMost), kMost));
  }
}

}  // namespace
}  // namespace cuda

namespace internal {

void RunLatentDecodeCuda(const LatentDecodeShape& shape, const DecodeOperands& operands,
                         const DeviceBytes& scratch, Stream& stream) {
  const auto max_pages = static_cast<int>(operands.max_pages);
  const auto parts = static_cast<int>((shape.num_heads + kLatentPartHeads - 1) / kLatentPartHeads);
  const int most_items =
      static_cast<int>(operands.num_sequences) * parts * std::max(1, MostRuns(max_pages));
  auto* const partial = reinterpret_cast<float*>(scratch.data);
  cuda::DecodeArguments arguments = cuda::ArgumentsOf(operands, shape.sink);
  arguments.partial_out = partial;
  arguments.partial_sums = partial + int64_t{most_items} * kLatentPartHeads * shape.latent;
  arguments.num_heads = static_cast<int>(shape.num_heads);
  arguments.num_kv_heads = 1;
  arguments.group = static_cast<int>(shape.num_heads);
  arguments.parts = parts;
  arguments.part_heads = static_cast<int>(kLatentPartHeads);
  arguments.scale = 1.0f;
  // The sizes of CheckLatentDecodeShape.
  if (shape.rope == 32) return cuda::LaunchLatents<2, 32>(arguments, most_items, stream);
  if (shape.groups() == 1) return cuda::LaunchLatents<1, 64>(arguments, most_items, stream);
  if (shape.groups() == 2) return cuda::LaunchLatents<2, 64>(arguments, most_items, stream);
  cuda::LaunchLatents<4, 64>(arguments, most_items, stream);
}

void PackLatentChunk(const LatentDecodeShape& shape, const ChunkOperands& operands, int64_t rest,
                     int64_t columns, const ChunkMemory& memory, Stream& stream) {
  const CudaDeviceScope scope(stream.device());
  const cuda::PackLatentArguments arguments{.op = operands,
                                            .q = reinterpret_cast<__half*>(memory.q),
                                            .keys = reinterpret_cast<__half*>(memory.k),
                                            .heads = static_cast<int>(shape.num_heads),
                                            .latent = static_cast<int>(shape.latent),
                                            .rope = static_cast<int>(shape.rope),
                                            .rest = static_cast<int>(rest),
                                            .rest_capacity = shape.sink.rest_tokens};
  const dim3 grid(static_cast<unsigned>(columns), 2);
  cuda::PackLatentKernel<<<grid, cuda::kChunkThreads, 0, stream.handle()>>>(arguments);
  CheckLaunch("packing a chunk");
}

void GatherLatentPages(const LatentDecodeShape& shape, const GatherLatents& pages, Stream& stream) {
  if (pages.num_pages == 0) return;
  const CudaDeviceScope scope(stream.device());
  const dim3 grid(fragment::kTokens, static_cast<unsigned>(pages.num_pages));
  cuda::GatherLatentKernel<<<grid, cuda::kChunkThreads, 0, stream.handle()>>>(
      pages, static_cast<int>(shape.latent), static_cast<int>(shape.rope));
  CheckLaunch("reading latents");
}

}  // namespace internal
}  // namespace pmkvq
