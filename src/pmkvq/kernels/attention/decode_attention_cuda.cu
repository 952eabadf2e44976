// Decode attention on CUDA: arguments, and the choice by head size and kind.
#include "pmkvq/kernels/attention/decode_arguments.cuh"

#include <climits>

#include <cuda_bf16.h>

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

}  // namespace

void RunDecodeAttentionCuda(const DecodeShape& shape, const DecodeOperands& operands,
                            const DeviceBytes& scratch, Stream& stream) {
  constexpr float kLog2E = 1.44269504f;
  const auto max_pages = static_cast<int>(operands.max_pages);
  const auto group = static_cast<int>(shape.num_heads / shape.num_kv_heads);
  const int parts = DecodeParts(shape);
  const int part_heads = (group + parts - 1) / parts;
  const int most_items = static_cast<int>(operands.num_sequences * shape.num_kv_heads) * parts *
                         std::max(1, MostRuns(max_pages));
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
  arguments.has_unlike_widths = shape.has_unlike_widths;
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
