#include "pmkvq/kernels/attention/decode_attention.h"

#include <fmt/format.h>

#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"
#include "pmkvq/kernels/attention/decode_runs.h"

namespace pmkvq {
namespace internal {

void CheckDecodeShape(const DecodeShape& shape, DeviceId device) {
  PMKVQ_CHECK(shape.num_kv_heads > 0 && shape.num_heads % shape.num_kv_heads == 0);
  PMKVQ_CHECK(shape.sink.piece_tokens % fragment::kTokens == 0);
  PMKVQ_CHECK(0 <= shape.sink.rest_tokens && shape.sink.rest_tokens < fragment::kTokens);
  const auto refuse = [&](const std::string& what) {
    throw Unsupported(NameOf(device), "attention: " + what + "; use --device cpu");
  };
  if (!fragment::IsHeadDim(shape.head_dim)) {
    refuse(fmt::format("found heads of {} values, expected 64, 128 or 256", shape.head_dim));
  }
  if (shape.float_type != DType::kF16 && shape.float_type != DType::kBF16) {
    refuse(fmt::format("found a cache of {}, expected F16 or BF16 (--kv-dtype f16)",
                       NameOf(shape.float_type)));
  }
}

}  // namespace internal

int DecodeParts(const DecodeShape& shape) {
  constexpr int64_t kMostHeads = 8;
  return static_cast<int>((shape.num_heads / shape.num_kv_heads + kMostHeads - 1) / kMostHeads);
}

size_t DecodeScratchBytes(const DecodeShape& shape, int64_t num_sequences, int64_t max_pages) {
  const int64_t sequences = std::min(num_sequences, internal::kMostDecodeSequences);
  const int64_t parts = DecodeParts(shape);
  const int64_t items =
      sequences * shape.num_kv_heads * parts * internal::MostDecodeRuns(shape, max_pages);
  const int64_t heads = (shape.num_heads / shape.num_kv_heads + parts - 1) / parts;
  return static_cast<size_t>(items * heads * (shape.head_dim + 2)) * sizeof(float);
}

void RunDecodeAttention(const DecodeShape& shape, const DecodeOperands& operands,
                        const DeviceBytes& scratch, Stream& stream) {
  internal::CheckDecodeShape(shape, stream.device());
  PMKVQ_CHECK(scratch.num_bytes >=
              DecodeScratchBytes(shape, operands.num_sequences, operands.max_pages));
  PMKVQ_CHECK(shape.sink.rest_tokens == 0 || operands.sink_rests != nullptr);
  const int64_t values = shape.num_heads * shape.head_dim;
  internal::ForEachLaunch(operands, values, values, [&](const DecodeOperands& part) {
    internal::RunDecodeAttentionCuda(shape, part, scratch, stream);
  });
}

}  // namespace pmkvq
