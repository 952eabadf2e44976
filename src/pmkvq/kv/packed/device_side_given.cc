// Tokens that another library computed, stored and attended to on a device without a copy.
#include "pmkvq/base/check.h"
#include "pmkvq/kv/packed/device_side.h"
#include "pmkvq/kv/packed/device_side_detail.h"
#include "pmkvq/kv/packed/packed_cache.h"

namespace pmkvq {

void DeviceSide::LaunchGiven(int64_t layer, const DeviceGivenRows& rows) {
  PMKVQ_CHECK(is_open_ && !has_looked_ && rows.first_row >= 0 &&
              rows.first_row + rows.num_rows <= num_decode_rows_);
  PMKVQ_CHECK(!config_.rotate_keys && !config_.rotate_values &&
              !config_.geometry.block(layer).is_latent());
  const auto index = static_cast<size_t>(layer);
  const DecodeShape shape = device_detail::ShapeOf(config_, index);
  AppendOperands append = AppendTo(index, rows.num_rows);
  append.targets += rows.first_row;
  append.unfit += rows.first_row;
  AppendGivenHeads(shape.num_kv_heads, shape.head_dim, shape.float_type, rows.heads, append,
                   stream());
  if (rows.heads.q == nullptr) return;
  DeviceBlockRows decoding;
  decoding.operand = rows.out;
  decoding.decode_rows = rows.num_rows;
  DecodeOperands decode = DecodingOf(index, decoding);
  decode.num_tokens += rows.first_row;
  decode.table_rows += rows.first_row;
  RunDecodeAttention(shape, decode, decode_scratch_->view(), stream());
}

void PackedKvCache::LaunchGiven(int64_t layer, const DeviceGivenRows& rows) {
  PMKVQ_CHECK(device_ != nullptr && forward_.is_open);
  PMKVQ_CHECK(layer >= 0 && layer < config_.geometry.num_layers());
  device_->LaunchGiven(layer, rows);
}

}  // namespace pmkvq
