// The product: a cache of real packed codes in one fixed arena. Runs pm-kvq, static-8|4|2, fp16.
#pragma once

#include <memory>

#include "pmkvq/kv/cache_config.h"
#include "pmkvq/kv/kv_store.h"

namespace pmkvq {

// Throws InvalidInput (ValidateCacheConfig) or IoError (arena memory refused).
//
// Arena: max_sequences * sum(budget_bytes), rounded up to extents per sequence, plus the extents
// that partly filled slot classes may waste; allocated once, never exceeded. For f16 the bits of
// an appended value are its rounding to f16, so that pm-kvq equals fp16 until the budget bites.
std::unique_ptr<KvStore> MakePackedKvCache(const CacheConfig& config);

}  // namespace pmkvq
