// A block of threads per (piece or page, head, side).
#include <cuda_runtime.h>

#include <algorithm>

#include "pmkvq/base/check.h"
#include "pmkvq/kernels/cuda/float16.cuh"
#include "pmkvq/kernels/kv_quant/fragment_layout.h"
#include "pmkvq/kernels/kv_quant/page_rows.h"
#include "pmkvq/tensor/device/cuda_runtime.h"

namespace pmkvq {
namespace cuda {
namespace {

constexpr int kThreads = 256;
// Blocks that a multiprocessor is to hold; registers follow.
constexpr int kResident = 4;

// Pieces travel with the launch, as its parameter. A chunk of 512 tokens has six at most.
constexpr int kPiecesPerLaunch = 64;
struct PieceList {
  RowPiece pieces[kPiecesPerLaunch];
};

template <class T>
__global__ void __launch_bounds__(kThreads, kResident)
    StoreRowsKernel(const __grid_constant__ PieceList list,
                    const __grid_constant__ StoreRowsOperands op, int kv_heads, int head_dim) {
  const RowPiece piece = list.pieces[blockIdx.x];
  const int head = blockIdx.y;
  const bool is_values = blockIdx.z == 1;
  if ((is_values ? piece.v : piece.k) == RowPiece::kNone) return;
  const float* const rows = (is_values ? op.v : op.k) +
                            (static_cast<int64_t>(piece.first_row) * kv_heads + head) * head_dim;
  std::byte* const slot =
      op.arena + static_cast<size_t>(is_values ? piece.v : piece.k) * fragment::kArenaUnit;
  const int count = piece.num_rows * head_dim;
  if (piece.capacity > 0) {
    T* const out = reinterpret_cast<T*>(slot) + (head * piece.capacity + piece.index) * head_dim;
    for (int i = threadIdx.x; i < count; i += kThreads) {
      out[i] =
          Round<T>(rows[static_cast<int64_t>(i / head_dim) * kv_heads * head_dim + i % head_dim]);
    }
    return;
  }
  std::byte* const block = slot + static_cast<size_t>(head) * fragment::BlockBytes(16, head_dim);
  const fragment::BlockShape shape = fragment::ShapeOf(is_values, head_dim);
  const auto place = [&](int token, int dim) {
    const fragment::Place at = is_values ? fragment::PlaceOf(16, shape, dim, token)
                                         : fragment::PlaceOf(16, shape, token, dim);
    return reinterpret_cast<T*>(block + at.byte + at.shift / 8);
  };
  for (int i = threadIdx.x; i < count; i += kThreads) {
    const int token = i / head_dim;
    const int dim = i % head_dim;
    *place(piece.index + token, dim) =
        Round<T>(rows[static_cast<int64_t>(token) * kv_heads * head_dim + dim]);
  }
  if (!is_values || piece.index != 0) return;
  for (int i = count + threadIdx.x; i < fragment::kTokens * head_dim; i += kThreads) {
    *place(i / head_dim, i % head_dim) = Round<T>(0.0f);
  }
}

// What values of pages become.
template <class T>
struct RowType {
  using Type = T;
};
template <>
struct RowType<__nv_bfloat16> {
  using Type = float;
};
__device__ __forceinline__ void PutValue(__half* out, __half value) { *out = value; }
__device__ __forceinline__ void PutValue(float* out, __nv_bfloat16 value) { *out = ToFloat(value); }
__device__ __forceinline__ void PutCode(__half* out, float value) {
  constexpr float kMost = MaxFinite<__half>();
  *out = Round<__half>(fminf(fmaxf(value, -kMost), kMost));
}
__device__ __forceinline__ void PutCode(float* out, float value) { *out = value; }

// Minimum and step of each token, or channel.
struct Bounds {
  float min[kThreads];
  float step[kThreads];
};

// Values of a head's block, which lies in shared memory.
template <class T, int kBits, bool kIsValues, int kDim>
__device__ __forceinline__ void PickValues(const std::byte* block, const Bounds& bounds,
                                           bool by_channel, int tokens,
                                           typename RowType<T>::Type* out) {
  constexpr fragment::BlockShape shape = fragment::ShapeOf(kIsValues, kDim);
#pragma unroll 1
  for (int i = threadIdx.x; i < fragment::kTokens * kDim; i += kThreads) {
    const int token = i / kDim;
    const int dim = i % kDim;
    const fragment::Place at = kIsValues ? fragment::PlaceOf(kBits, shape, dim, token)
                                         : fragment::PlaceOf(kBits, shape, token, dim);
    if (token >= tokens) {
      PutValue(out + i, Round<T>(0.0f));
    } else if constexpr (kBits == 16) {
      PutValue(out + i, *reinterpret_cast<const T*>(block + at.byte + at.shift / 8));
    } else {
      const uint32_t word = *reinterpret_cast<const uint32_t*>(block + at.byte);
      const uint32_t code =
          (fragment::RotateRight(word, at.rotation) >> at.shift) & ((1u << kBits) - 1u);
      constexpr int kOfToken = fragment::GroupsOfToken(kDim);
      const int group = by_channel ? dim : token * kOfToken + dim * kOfToken / kDim;
      PutCode(out + i, __fadd_rn(__fmul_rn(static_cast<float>(code), bounds.step[group]),
                                 bounds.min[group]));
    }
  }
}

template <class T>
__device__ __forceinline__ void FindBounds(const T* mins, int groups, int bits, Bounds& bounds) {
  const int group = threadIdx.x;
  if (group >= groups) return;
  bounds.min[group] = ToFloat(mins[group]);
  bounds.step[group] =
      __fdiv_rn(ToFloat(mins[groups + group]), static_cast<float>((1 << bits) - 1));
}

template <class T, bool kIsValues, int kDim>
__device__ __forceinline__ void GatherPage(const GatherPagesOperands& op, std::byte* memory) {
  const int page = blockIdx.x;
  const int head = blockIdx.y;
  const PageEntry entry = op.entries[page];
  const PageBits widths = op.bits[page];
  const int bits = kIsValues ? widths.v : widths.k;
  const int bytes = fragment::BlockBytes(bits, kDim);
  const std::byte* const source =
      op.arena + static_cast<size_t>(kIsValues ? entry.v : entry.k) * fragment::kArenaUnit +
      static_cast<size_t>(head) * bytes;
  for (int i = threadIdx.x * 16; i < bytes; i += kThreads * 16) {
    *reinterpret_cast<uint4*>(memory + i) = *reinterpret_cast<const uint4*>(source + i);
  }
  const bool by_channel = !kIsValues && op.keys_by_channel;
  const int groups = fragment::GroupsOfHead(kDim, by_channel);
  const T* const mins = reinterpret_cast<const T*>(
      op.arena +
      static_cast<size_t>(kIsValues ? entry.v_metadata : entry.k_metadata) * fragment::kArenaUnit +
      static_cast<size_t>(head) * fragment::MetadataBytes(groups));
  __shared__ Bounds bounds;
  if (bits < 16) FindBounds(mins, groups, bits, bounds);
  __syncthreads();
  const int64_t tokens = op.num_tokens - static_cast<int64_t>(page) * fragment::kTokens;
  const int shown = static_cast<int>(tokens < fragment::kTokens ? tokens : fragment::kTokens);
  auto* const out = reinterpret_cast<typename RowType<T>::Type*>(kIsValues ? op.v : op.k) +
                    (head * op.num_pages + page) * fragment::kTokens * kDim;
  switch (bits) {
    case 16:
      return PickValues<T, 16, kIsValues, kDim>(memory, bounds, by_channel, shown, out);
    case 8:
      return PickValues<T, 8, kIsValues, kDim>(memory, bounds, by_channel, shown, out);
    case 4:
      return PickValues<T, 4, kIsValues, kDim>(memory, bounds, by_channel, shown, out);
    default:
      return PickValues<T, 2, kIsValues, kDim>(memory, bounds, by_channel, shown, out);
  }
}

template <class T, int kDim>
__global__ void __launch_bounds__(kThreads, kResident)
    GatherKernel(const __grid_constant__ GatherPagesOperands op) {
  extern __shared__ __align__(16) std::byte memory[];
  if (blockIdx.z == 1) {
    GatherPage<T, true, kDim>(op, memory);
  } else {
    GatherPage<T, false, kDim>(op, memory);
  }
}

__global__ void __launch_bounds__(kThreads, kResident)
    PatchKernel(const PagePatch* patches, int64_t count, PageEntry* entries, PageBits* bits) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count) return;
  const PagePatch patch = patches[i];
  entries[patch.index] = patch.entry;
  bits[patch.index] = patch.bits;
}

void CheckKind(int64_t head_dim, DType float_type) {
  PMKVQ_CHECK(fragment::IsHeadDim(head_dim));
  PMKVQ_CHECK(float_type == DType::kF16 || float_type == DType::kBF16);
}

}  // namespace
}  // namespace cuda

void StoreRows(int64_t num_kv_heads, int64_t head_dim, DType float_type,
               std::span<const RowPiece> pieces, const StoreRowsOperands& operands,
               Stream& stream) {
  PMKVQ_CHECK(fragment::IsRowWidth(head_dim));
  PMKVQ_CHECK(float_type == DType::kF16 || float_type == DType::kBF16);
  const internal::CudaDeviceScope scope(stream.device());
  const auto kernel = float_type == DType::kF16 ? cuda::StoreRowsKernel<__half>
                                                : cuda::StoreRowsKernel<__nv_bfloat16>;
  for (size_t first = 0; first < pieces.size(); first += cuda::kPiecesPerLaunch) {
    const size_t count = std::min<size_t>(cuda::kPiecesPerLaunch, pieces.size() - first);
    cuda::PieceList list;
    std::copy_n(pieces.begin() + static_cast<std::ptrdiff_t>(first), count, list.pieces);
    const dim3 grid(static_cast<unsigned>(count), static_cast<unsigned>(num_kv_heads), 2);
    kernel<<<grid, cuda::kThreads, 0, stream.handle()>>>(
        list, operands, static_cast<int>(num_kv_heads), static_cast<int>(head_dim));
    internal::CheckLaunch("storing tokens");
  }
}

void GatherPages(int64_t num_kv_heads, int64_t head_dim, DType float_type,
                 const GatherPagesOperands& operands, Stream& stream) {
  cuda::CheckKind(head_dim, float_type);
  if (operands.num_pages == 0) return;
  const internal::CudaDeviceScope scope(stream.device());
  const dim3 grid(static_cast<unsigned>(operands.num_pages), static_cast<unsigned>(num_kv_heads),
                  2);
  const auto memory = static_cast<size_t>(fragment::BlockBytes(16, static_cast<int>(head_dim)));
  constexpr size_t kPlainSharedBytes = size_t{48} << 10;  // What a kernel may take unasked.
  const auto launch = [&](auto* kernel) {
    if (memory > kPlainSharedBytes) {
      internal::CheckCuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                               static_cast<int>(memory)),
                          "shared memory of reading pages");
    }
    kernel<<<grid, cuda::kThreads, memory, stream.handle()>>>(operands);
  };
  const bool is_f16 = float_type == DType::kF16;
  if (head_dim == 256) {
    launch(is_f16 ? cuda::GatherKernel<__half, 256> : cuda::GatherKernel<__nv_bfloat16, 256>);
  } else if (head_dim == 128) {
    launch(is_f16 ? cuda::GatherKernel<__half, 128> : cuda::GatherKernel<__nv_bfloat16, 128>);
  } else {
    launch(is_f16 ? cuda::GatherKernel<__half, 64> : cuda::GatherKernel<__nv_bfloat16, 64>);
  }
  internal::CheckLaunch("reading pages");
}

void PatchPageTables(const PagePatch* patches, int64_t count, PageEntry* entries, PageBits* bits,
                     Stream& stream) {
  if (count == 0) return;
  const internal::CudaDeviceScope scope(stream.device());
  const auto blocks = static_cast<unsigned>((count + cuda::kThreads - 1) / cuda::kThreads);
  cuda::PatchKernel<<<blocks, cuda::kThreads, 0, stream.handle()>>>(patches, count, entries, bits);
  internal::CheckLaunch("changing page tables");
}

}  // namespace pmkvq
