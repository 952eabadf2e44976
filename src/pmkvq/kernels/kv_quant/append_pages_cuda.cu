// Floats into pages: one token of each sequence, and codes back to floats of 16 bits.
#include "pmkvq/kernels/cuda/float16.cuh"
#include "pmkvq/kernels/kv_quant/append_token.cuh"
#include "pmkvq/kernels/kv_quant/page_moves.cuh"

namespace pmkvq {
namespace cuda {
namespace {

// A thread makes the words of one lane for one step of one tile: 8 values, of two rows and four
// columns.
template <class T>
__global__ void __launch_bounds__(256)
    ExpandKernel(const __grid_constant__ MoveList list, uint8_t* arena, int heads, int head_dim,
                 bool is_values, bool by_channel, int bits) {
  LetNextKernelStart();
  const int head = blockIdx.x % heads;
  const Move move = list.moves[blockIdx.x / heads];
  const uint8_t* codes = arena + static_cast<size_t>(move.source) * fragment::kArenaUnit +
                         static_cast<size_t>(head) * fragment::BlockBytes(bits, head_dim);
  uint8_t* out = arena + static_cast<size_t>(move.target) * fragment::kArenaUnit +
                 static_cast<size_t>(head) * fragment::BlockBytes(16, head_dim);
  const int groups = fragment::GroupsOfHead(head_dim, by_channel);
  const int of_token = fragment::GroupsOfToken(head_dim);
  const T* mins =
      reinterpret_cast<const T*>(arena + static_cast<size_t>(move.metadata) * fragment::kArenaUnit +
                                 static_cast<size_t>(head) * fragment::MetadataBytes(groups));
  const fragment::BlockShape shape = fragment::ShapeOf(is_values, head_dim);
  const int steps = shape.cols / 16;
  const float max_code = static_cast<float>((1 << bits) - 1);
  const int num_words = shape.rows / 16 * steps * fragment::kLanes;
  for (int i = threadIdx.x; i < num_words; i += blockDim.x) {
    const int lane = i % fragment::kLanes;
    const int step = i / fragment::kLanes % steps;
    const int tile = i / fragment::kLanes / steps;
    const int first_row = shape.rows / 8 * (lane / 4) + 2 * tile;
    const int first_col = shape.cols / 4 * (lane % 4) + 2 * step;
    T values[8];
#pragma unroll
    for (int n = 0; n < 8; ++n) {  // half + 2 y of the word, x of the half-word.
      const int row = first_row + (n >> 1 & 1);
      const int col = first_col + (n >> 2) + shape.cols / 8 * (n & 1);
      const fragment::Place place = fragment::PlaceOf(bits, shape, row, col);
      const uint32_t word = *reinterpret_cast<const uint32_t*>(codes + place.byte);
      const uint32_t code =
          (fragment::RotateRight(word, place.rotation) >> place.shift) & ((1u << bits) - 1u);
      const int token = is_values ? col : row;
      const int dim = is_values ? row : col;
      const int group = by_channel ? dim : token * of_token + dim * of_token / head_dim;
      const float range = ToFloat(mins[groups + group]);
      float value = __fadd_rn(__fmul_rn(static_cast<float>(code), __fdiv_rn(range, max_code)),
                              ToFloat(mins[group]));
      // A range rounded up may end just beyond the largest F16.
      if constexpr (sizeof(T) == sizeof(__half) && MaxFinite<T>() < 1e5f) {
        value = fminf(fmaxf(value, -MaxFinite<T>()), MaxFinite<T>());
      }
      values[n] = Round<T>(value);
    }
    StoreOnce(out + (tile * steps + step) * fragment::kRowBytes + lane * 16,
              *reinterpret_cast<const uint4*>(values));
  }
  WaitForEarlierKernel();
}

// Blocks: sequences x (keys of all heads, values of all heads, query heads); a thread per dim.
template <class T>
__global__ void __launch_bounds__(256) AppendKernel(AppendOperands op, int kv_heads) {
  const int sequence = blockIdx.x;
  const int dim = threadIdx.x;
  const int head_dim = blockDim.x;
  const int part = blockIdx.y;
  const AppendTarget target = op.targets[sequence];
  if (target.capacity == AppendTarget::kNothing) return;
  bool finite = true;
  UnfitRow kind = UnfitRow::kQuery;
  if (part >= 2 * kv_heads) {
    const size_t at =
        (static_cast<size_t>(sequence) * op.num_heads + part - 2 * kv_heads) * head_dim + dim;
    finite = StoreQuery(op, at, op.q[at]);
  } else {
    const bool is_values = part >= kv_heads;
    kind = is_values ? UnfitRow::kValue : UnfitRow::kKey;
    const int head = is_values ? part - kv_heads : part;
    const float* rows = is_values ? op.v : op.k;
    const TokenPlace place(op, target, is_values, head_dim);
    if (place.BeginsPage()) {
      place.ZeroHead(head, threadIdx.x, head_dim);
      __syncthreads();
    }
    finite = place.Store<T>(
        head, dim, rows[(static_cast<size_t>(sequence) * kv_heads + head) * head_dim + dim]);
  }
  if (!finite) SayUnfit(op, sequence, kind);
}

}  // namespace
}  // namespace cuda

void ExpandPages(const FragmentPageShape& shape, DType float_type, int bits,
                 std::span<const PageMove> moves, std::byte* arena, Stream& stream) {
  PMKVQ_CHECK(fragment::IsRowWidth(shape.head_dim));
  PMKVQ_CHECK(bits == 8 || bits == 4 || bits == 2);
  PMKVQ_CHECK(float_type == DType::kF16 || float_type == DType::kBF16);
  const auto kernel =
      float_type == DType::kF16 ? cuda::ExpandKernel<__half> : cuda::ExpandKernel<__nv_bfloat16>;
  auto* bytes = reinterpret_cast<uint8_t*>(arena);
  int heads = static_cast<int>(shape.heads);
  int head_dim = static_cast<int>(shape.head_dim);
  bool is_values = shape.is_values;
  bool by_channel = shape.by_channel;
  cuda::LaunchParts(
      kernel, static_cast<unsigned>(heads), 256, moves, stream, [](uint32_t) {}, bytes, heads,
      head_dim, is_values, by_channel, bits);
}

void AppendTokens(int64_t num_kv_heads, int64_t head_dim, DType float_type,
                  const AppendOperands& operands, Stream& stream) {
  PMKVQ_CHECK(fragment::IsHeadDim(head_dim));
  PMKVQ_CHECK(float_type == DType::kF16 || float_type == DType::kBF16);
  if (operands.num_sequences == 0) return;
  const internal::CudaDeviceScope scope(stream.device());
  const int64_t parts = 2 * num_kv_heads + (operands.q == nullptr ? 0 : operands.num_heads);
  const dim3 grid(static_cast<unsigned>(operands.num_sequences), static_cast<unsigned>(parts));
  const auto threads = static_cast<unsigned>(head_dim);
  const auto heads = static_cast<int>(num_kv_heads);
  if (float_type == DType::kF16) {
    cuda::AppendKernel<__half><<<grid, threads, 0, stream.handle()>>>(operands, heads);
  } else {
    cuda::AppendKernel<__nv_bfloat16><<<grid, threads, 0, stream.handle()>>>(operands, heads);
  }
  internal::CheckLaunch("storing tokens");
}

}  // namespace pmkvq
