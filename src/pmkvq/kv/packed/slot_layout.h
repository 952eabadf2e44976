// The layout of a cache's arena: the size of an extent, the slot classes that its blocks use, and
// the number of extents with which no allocation within the budgets fails (slot_allocator.h).
// Blocks of different shapes share the arena; codes of one size are one class, and so is metadata
// of one size.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "pmkvq/kv/cache_config.h"

namespace pmkvq {

enum Side : size_t { kKeys = 0, kValues = 1 };
inline constexpr std::array<Side, 2> kSides = {kKeys, kValues};

// Of the keys, or the values, of one block; of a latent block, c or k_r (kv_geometry.h). All zero
// in a block without cache.
struct StreamSlots {
  std::array<int64_t, 4> page_bytes{};  // Of one page at each width, with metadata, by WidthIndex.
  std::array<int, 4> code_class{};      // By WidthIndex.
  int metadata_class = 0;
  QuantAxis axis = QuantAxis::kToken;  // Of quantised pages.
  Side side = kKeys;
};

// The sink lies in pieces of kPageTokens tokens, which are 16-bit pages, and a shorter rest.
struct SinkSlots {
  int64_t bytes = 0;       // The whole sink of the block.
  size_t rest_bytes = 0;   // K and V of the rest; 0: none.
  size_t rest_stride = 0;  // From K to V where they share a slot.
  int rest_class = 0;
  int num_rest_slots = 0;  // 1 for K and V of the rest together, 2 where that passes an extent.
};

struct BlockSlots {
  std::array<StreamSlots, 2> sides;  // By Side.
  SinkSlots sink;
};

struct SlotLayout {
  size_t extent_bytes = 0;
  int64_t num_extents = 0;
  std::vector<size_t> slot_bytes;  // By class.
  std::vector<BlockSlots> blocks;  // By layer.
};

// The configuration must be valid. Throws Unsupported where the blocks' pages differ so much in
// size that one extent cannot serve them.
SlotLayout MakeSlotLayout(const CacheConfig& config);
// Of the arena of such a cache, all sequences.
int64_t ArenaBytes(const CacheConfig& config);

}  // namespace pmkvq
