// Plain types that the model, the cache and the engine share.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "pmkvq/kv/kv_geometry.h"
#include "pmkvq/tensor/dtype.h"

namespace pmkvq {

// A sequence of a KvStore: 0 .. max_sequences - 1, reused after Close.
using SequenceId = int32_t;

// New tokens of one sequence in one Forward. The rows of all chunks lie behind one another.
struct BatchChunk {
  SequenceId seq = 0;
  int64_t num_tokens = 0;
  // Each token reads the ones before it as they are stored, as if it came alone in a Forward.
  // Only after KvStore::ReserveOneByOne.
  bool one_by_one = false;
  bool ends_prompt = false;  // It holds the last token of a prompt.
};
using Batch = std::vector<BatchChunk>;

// The four widths a stored page can have, widest first; indices into per-width arrays.
inline constexpr std::array<int, 4> kWidths = {16, 8, 4, 2};
constexpr size_t WidthIndex(int bits) { return bits == 16 ? 0 : bits == 8 ? 1 : bits == 4 ? 2 : 3; }

// Number of pages at 16, 8, 4, 2 bits.
using PagesPerWidth = std::array<int64_t, 4>;

// Of a latent block K means c and V means k_r, here and below.
struct KvLayerStats {
  PagesPerWidth k_pages{};  // Open page included, sink not.
  PagesPerWidth v_pages{};
  int64_t bytes = 0;  // Allocated now: codes, metadata, sink, open page.
  int64_t budget_bytes = 0;
  double kept_share = 1;  // As in KvSequenceStats, of this block.
};

struct KvSequenceStats {
  int64_t num_tokens = 0;
  int64_t bytes = 0;
  int64_t peak_bytes = 0;      // Largest `bytes` since Open, transient states included.
  int64_t budget_bytes = 0;    // Sum over blocks.
  PagesPerWidth pages{};       // K and V pages of all blocks.
  int64_t narrowed_bytes = 0;  // Of pages that were brought to lower widths since Open, as read.
  // Of the tokens of each block and KV head: those that attention still reads. Less than 1 where a
  // method evicts.
  double kept_share = 1;
};

// Closed pages of one block stepped from one width to half of it.
struct HalvingEvent {
  SequenceId seq = 0;
  int64_t layer = 0;
  int64_t num_tokens = 0;  // Length of the sequence when it happened.
  int from_bits = 0;
  int64_t num_k_pages = 0;
  int64_t num_v_pages = 0;
  double duration_us = 0;
  // The first of these pages, which follow one another; -1: the oldest ones that have from_bits.
  int64_t first_k_page = -1;
  int64_t first_v_page = -1;
};

// What a sequence asks of a pool that all sequences share.
struct KvPoolTerms {
  int min_bits = 2;   // None of its pages goes below it; the store's floor counts as well.
  double weight = 1;  // Of its pages' prices; less than 1: halved earlier than those of others.
};

struct KvPoolStats {
  int64_t bytes = 0;           // 0: there is no pool.
  int64_t used_bytes = 0;      // Memory that sequences or kept prompts share counts once.
  int64_t peak_bytes = 0;      // Largest used_bytes since the start, transient states included.
  int64_t narrowed_bytes = 0;  // Of pages that were brought to lower widths, as read.
  double water_level = 0;      // WaterLevel (packed/policy/pool_pressure.h).
  // Of prompts that are kept for later ones and that no sequence has, also counted in used_bytes.
  int64_t prefix_bytes = 0;
  int64_t prefix_tokens = 0;
  int64_t prefix_hits = 0;        // Sequences that took some, since the start.
  int64_t prefix_hit_tokens = 0;  // That they took.
};

struct KvStoreStats {
  size_t arena_bytes = 0;    // The fixed arena, all sequences.
  size_t scratch_bytes = 0;  // Working memory outside the arena, bounded by the chunk size.
  KvPoolStats pool = {};
};

enum class ReserveResult : uint8_t {
  kReserved,              // Room at the present widths.
  kReservedAfterHalving,  // Room was made by halving closed pages.
  kBudgetExhausted,       // No room even at the floor width; nothing was changed.
  kFailed,                // The sequence can only be closed; KvStore::FailureOf has the reason.
};

}  // namespace pmkvq
