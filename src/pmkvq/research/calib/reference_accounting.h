// Bytes as the Python reference counts them: payload only (codes, sink, open tokens as used), no
// metadata, and pages that close when they are full. For comparison with its numbers; a packed
// cache counts everything it allocates (kv/cache_config.h).
#pragma once

#include <cstdint>

#include "pmkvq/kv/cache_config.h"

namespace pmkvq {

// The reference's budget: bits * Hkv * D * max_len / 8 for K and for V. 0 for a block without
// cache. This and the following throw InvalidInput for counts beyond int64_t.
int64_t ReferenceBlockBytes(const KvBlockGeometry& block, int64_t max_len, int k_bits, int v_bits);

// What a block takes: codes of closed pages, sink and open tokens at 16 bits as used.
int64_t ReferencePayloadBytes(const CacheConfig& config, size_t layer, int64_t num_tokens,
                              int k_bits, int v_bits);

// The same at the block's floor; a BytesAtFloor.
int64_t ReferenceFloorBytes(const CacheConfig& config, size_t layer, int64_t num_tokens);

}  // namespace pmkvq
