// Latent blocks of a packed cache on a device: key scales and rotation, then storing and attending.
//
// As packed_cache_latent.cc: c' = R (c / s), q' = R (s q) over the same channels, and out = s R^T
// out'. k_r and its part of q are scaled only.
#include "pmkvq/kernels/kv_quant/latent_rows.h"
#include "pmkvq/kv/packed/device_side.h"
#include "pmkvq/kv/packed/device_side_detail.h"

namespace pmkvq {

void DeviceSide::LaunchLatents(size_t layer, int64_t num_rows, const DeviceBlockRows& rows,
                               bool attends) {
  const LatentDecodeShape shape = device_detail::LatentShapeOnDevice(config_, layer);
  const auto index = static_cast<int64_t>(layer);
  const float* const by = query_factors(index);
  const float* const divided_by = key_factors(index);
  const int64_t rotated = config_.rotate_keys ? shape.latent : 0;
  const int64_t num_queries = num_rows * shape.num_heads;
  if (attends) TurnLatents({rows.q, num_queries, shape.key_values(), by, rotated}, stream());
  TurnLatents({rows.k, num_rows, shape.latent, divided_by, rotated}, stream());
  const float* const rope_by = divided_by == nullptr ? nullptr : divided_by + shape.latent;
  TurnLatents({rows.v, num_rows, shape.rope, rope_by, 0}, stream());

  const bool turns_back = by != nullptr || rotated > 0;
  if (rows.decode_rows > 0) {
    AppendOperands append = AppendTo(layer, rows.decode_rows);
    append.q = attends ? rows.q : nullptr;
    append.k = rows.k;
    append.v = rows.v;
    AppendLatents({shape.latent, shape.rope}, append, stream());
    if (attends) {
      DecodeOperands decode = DecodingOf(layer, rows);
      if (turns_back) decode.operand = {};
      RunLatentDecode(shape, decode, decode_scratch_->view(), stream());
    }
  }
  LaunchChunks(layer, rows, attends);
  if (!turns_back || !attends) return;
  TurnLatents({rows.out, num_queries, shape.latent, by, rotated, /*factors_last=*/true}, stream());
  if (rows.operand.data != nullptr) {
    RoundRows(rows.out, rows.decode_rows, shape.num_heads * shape.latent, rows.operand, stream());
  }
}

}  // namespace pmkvq
