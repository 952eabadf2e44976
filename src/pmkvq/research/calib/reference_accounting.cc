#include "pmkvq/research/calib/reference_accounting.h"

#include <algorithm>

#include "pmkvq/io/limits.h"

namespace pmkvq {
namespace {

constexpr char kWhere[] = "kv cache";

}  // namespace

int64_t ReferenceBlockBytes(const KvBlockGeometry& block, int64_t max_len, int k_bits, int v_bits) {
  if (!block.has_cache()) return 0;
  return CheckedProduct(kWhere, {k_bits + v_bits, block.k().values(), max_len}) / 8;
}

int64_t ReferencePayloadBytes(const CacheConfig& config, size_t layer, int64_t num_tokens,
                              int k_bits, int v_bits) {
  const KvBlockGeometry& block = config.geometry.blocks[layer];
  if (!block.has_cache()) return 0;
  const int64_t paged = std::max<int64_t>(0, num_tokens - config.sink_tokens);
  const int64_t closed = paged / kPageTokens * kPageTokens;
  const int64_t float_tokens = num_tokens - closed;
  const int64_t bits = CheckedSum(kWhere, {CheckedProduct(kWhere, {2 * 16, float_tokens}),
                                           CheckedProduct(kWhere, {k_bits + v_bits, closed})});
  return CheckedProduct(kWhere, {block.k().values(), bits}) / 8;
}

int64_t ReferenceFloorBytes(const CacheConfig& config, size_t layer, int64_t num_tokens) {
  const PageWidths floor = FloorWidths(config, layer);
  return ReferencePayloadBytes(config, layer, num_tokens, floor.k, floor.v);
}

}  // namespace pmkvq
