// Decode attention on CUDA: arguments, and the choice by head size and kind.
#include "pmkvq/kernels/attention/decode_arguments.cuh"

#include <climits>

#include <cuda_bf16.h>

#include "pmkvq/kernels/cuda/launch.cuh"

namespace pmkvq::internal {
namespace {

template <int kDim>
void LaunchKind(const cuda::DecodeArguments& arguments, bool is_plain, int most_items,
                Stream& stream) {
  if (is_plain) {
    cuda::LaunchDecode<kDim, cuda::DecodeKind::kPlain>(arguments, most_items, stream);
  } else {
    cuda::LaunchDecode<kDim, cuda::DecodeKind::kGeneral>(arguments, most_items, stream);
  }
}

template <class T>
void LaunchFloat(const cuda::DecodeArguments& arguments, int64_t head_dim, int most_items,
                 Stream& stream) {
  if (head_dim == 256) return cuda::LaunchFloatDecode<T, 256>(arguments, most_items, stream);
  if (head_dim == 128) return cuda::LaunchFloatDecode<T, 128>(arguments, most_items, stream);
  cuda::LaunchFloatDecode<T, 64>(arguments, most_items, stream);
}

// Blocks a multiprocessor, at most: three, or two where the last round of runs would leave many of
// three idle, as two are nearly as fast. Not so with pages of unlike widths: runs then end at
// unlike times anyway, and narrow pages wait for instructions. Not so with many rounds: the last
// one is a small part of them, and the blocks that are left in it are faster. `runs`: of all heads
// and sequences.
int MostBlocks(int runs, int multiprocessors, bool has_unlike_widths) {
  const int two = 2 * multiprocessors;
  const int three = 3 * multiprocessors;
  if (runs <= two || has_unlike_widths) return 3;
  constexpr int kFaster = 104;  // Three against two, in per cent, where neither is idle.
  constexpr int kManyRounds = 5;
  const int rounds = (runs + three - 1) / three;
  if (rounds >= kManyRounds) return 3;
  const int rounds_of_two = (runs + two - 1) / two;
  return 2 * kFaster * rounds_of_two < 3 * 100 * rounds ? 2 : 3;
}

}  // namespace

void RunDecodeAttentionCuda(const DecodeShape& shape, const DecodeOperands& operands,
                            const DeviceBytes& scratch, Stream& stream) {
  constexpr float kLog2E = 1.44269504f;
  const auto max_pages = static_cast<int>(operands.max_pages);
  const auto group = static_cast<int>(shape.num_heads / shape.num_kv_heads);
  const int parts = DecodeParts(shape);
  const int part_heads = (group + parts - 1) / parts;
  const int groups = static_cast<int>(operands.num_sequences * shape.num_kv_heads) * parts;
  const int most_items = groups * MostDecodeRuns(shape, max_pages);
  auto* partial = reinterpret_cast<float*>(scratch.data);
  cuda::DecodeArguments arguments = cuda::ArgumentsOf(operands, shape.sink);
  arguments.partial_out = partial;
  arguments.partial_sums = partial + int64_t{most_items} * part_heads * shape.head_dim;
  arguments.num_heads = static_cast<int>(shape.num_heads);
  arguments.num_kv_heads = static_cast<int>(shape.num_kv_heads);
  arguments.group = group;
  arguments.parts = parts;
  arguments.part_heads = part_heads;
  arguments.scale = shape.scale * kLog2E;
  arguments.deals_pages = DealsPages(shape);
  const cuda::DeviceFacts& facts = cuda::FactsOf(stream.device().index);
  // Of full tables; runs with pages to come do not count.
  const int runs = std::max(1, max_pages >> RunPagesLog2(max_pages));
  arguments.most_blocks = MostBlocks(groups * runs, facts.multiprocessors, shape.has_unlike_widths);
  // A block for each head where all of them run at once; with more sequences than one, where there
  // is more to do than to come together.
  constexpr int kFewRuns = 4;
  const int head_blocks = groups * part_heads;
  arguments.merges_heads = head_blocks <= facts.multiprocessors ||
                           (head_blocks <= 2 * facts.multiprocessors && runs > kFewRuns);
  arguments.window = shape.sliding_window == 0
                         ? INT_MAX
                         : static_cast<int>(std::min<int64_t>(shape.sliding_window, INT_MAX));
  arguments.keys_by_channel = shape.keys_by_channel;
  if (shape.float_type == DType::kBF16)
    return LaunchFloat<__nv_bfloat16>(arguments, shape.head_dim, most_items, stream);
  if (shape.head_dim == 256)
    return LaunchFloat<__half>(arguments, shape.head_dim, most_items, stream);
  const bool is_plain = shape.sliding_window == 0 && !shape.keys_by_channel;
  if (shape.head_dim == 128) {
    LaunchKind<128>(arguments, is_plain, most_items, stream);
  } else {
    LaunchKind<64>(arguments, is_plain, most_items, stream);
  }
}

}  // namespace pmkvq::internal
