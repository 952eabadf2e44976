// What the files of DeviceSide share. Private to this folder.
#pragma once

#include <cstddef>
#include <memory>

#include "pmkvq/kernels/attention/decode_attention.h"
#include "pmkvq/kernels/attention/latent_decode.h"
#include "pmkvq/kv/cache_config.h"
#include "pmkvq/kv/packed/page_codec.h"
#include "pmkvq/tensor/device/buffer.h"

namespace pmkvq::device_detail {

template <class T>
T* As(const std::unique_ptr<Buffer>& buffer, size_t offset = 0) {
  return reinterpret_cast<T*>(buffer->data() + offset);
}

inline SinkLayout SinkOf(const CacheConfig& config) {
  return {static_cast<int32_t>(config.sink_tokens / kPageTokens * kPageTokens),
          static_cast<int32_t>(config.sink_tokens % kPageTokens)};
}

// Of a block with keys and values.
inline DecodeShape ShapeOf(const CacheConfig& config, size_t layer) {
  const AttentionShape attention =
      AttentionShapeOf(config.geometry.blocks[layer], config.float_type);
  DecodeShape shape;
  shape.num_heads = attention.num_heads;
  shape.num_kv_heads = attention.num_kv_heads;
  shape.head_dim = attention.head_dim;
  shape.scale = attention.scale;
  shape.float_type = config.float_type;
  shape.sink = SinkOf(config);
  shape.sliding_window = config.geometry.blocks[layer].sliding_window;
  shape.keys_by_channel = config.k_axis == QuantAxis::kChannel;
  shape.has_unlike_widths = !config.static_widths && config.floor_bits < config.close_bits;
  return shape;
}

// Of a latent block.
inline LatentDecodeShape LatentShapeOnDevice(const CacheConfig& config, size_t layer) {
  const KvBlockGeometry& block = config.geometry.blocks[layer];
  LatentDecodeShape shape;
  shape.num_heads = block.num_heads;
  shape.latent = block.latent_width();
  shape.rope = block.rope_width();
  shape.float_type = config.float_type;
  shape.sink = SinkOf(config);
  return shape;
}

// Pages of one side of a block.
inline FragmentPageShape PageShapeOf(const CacheConfig& config, size_t layer, size_t side) {
  const KvBlockGeometry& block = config.geometry.blocks[layer];
  const KvStream& stream = block.streams[side];
  const bool is_second = side == 1;
  return {stream.heads, stream.width, is_second && !block.is_latent(),
          !is_second && config.k_axis == QuantAxis::kChannel};
}

}  // namespace pmkvq::device_detail
