#include "pmkvq/research/methods/reference_cache.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"
#include "pmkvq/kernels/linalg/hadamard.h"
#include "pmkvq/kv/packed/halving_steps.h"
#include "pmkvq/kv/packed/policy/layer_budget.h"
#include "pmkvq/research/calib/reference_accounting.h"

namespace pmkvq {
namespace {

const float* Rotated(const float* x, int64_t count, int64_t head_dim,
                     AlignedVector<float>& memory) {
  memory.assign(x, x + count);
  HadamardHeads(memory.data(), count, head_dim);
  return memory.data();
}

const CacheConfig& Validated(const CacheConfig& config) {
  ValidateReferenceConfig(config);
  return config;
}

// With budgets that hold the pages of all tokens that fit at the floor, all at 16 bits.
CacheConfig ArenaConfig(const CacheConfig& config) {
  CacheConfig arena = config;
  for (size_t layer = 0; layer < config.budget_bytes.size(); ++layer) {
    const KvBlockGeometry& block = config.geometry.blocks[layer];
    if (!block.has_cache()) continue;
    const PageWidths floor = FloorWidths(config, layer);
    const int64_t closed_bytes = ReferenceBlockBytes(block, kPageTokens, floor.k, floor.v);
    const int64_t pages = 2 * (config.budget_bytes[layer] / closed_bytes + 1);
    arena.budget_bytes[layer] =
        pages * PageBytes(block.k(), config.float_type, 16) + SinkBytes(config, layer);
  }
  return arena;
}

}  // namespace

void ValidateReferenceConfig(const CacheConfig& config) {
  RefuseLatents(config.geometry, "--reference-accounting");
  if (config.policy != PolicyKind::kLayerBudget || config.window_tokens != kPageTokens) {
    throw InvalidInput("--reference-accounting",
                       fmt::format("found --policy {} and --n-window-token {}, expected "
                                   "layer-budget and {}, as in the reference",
                                   NameOf(config.policy), config.window_tokens, kPageTokens));
  }
  ValidateCacheConfig(config, ReferenceFloorBytes);
}

ReferenceKvCache::ReferenceKvCache(const CacheConfig& config)
    : config_(Validated(config)),
      store_(ArenaConfig(config)),
      sequences_(static_cast<size_t>(config.max_sequences)) {}

ReferenceKvCache::Sequence& ReferenceKvCache::At(SequenceId id) {
  return const_cast<Sequence&>(std::as_const(*this).At(id));
}

const ReferenceKvCache::Sequence& ReferenceKvCache::At(SequenceId id) const {
  PMKVQ_CHECK(id >= 0 && static_cast<size_t>(id) < sequences_.size());
  const Sequence& seq = sequences_[static_cast<size_t>(id)];
  PMKVQ_CHECK_MSG(seq.is_open, "the sequence is not open");
  return seq;
}

std::optional<SequenceId> ReferenceKvCache::Open() {
  const auto free = std::find_if(sequences_.begin(), sequences_.end(),
                                 [](const Sequence& seq) { return !seq.is_open; });
  if (free == sequences_.end()) return std::nullopt;
  *free = Sequence{};
  free->is_open = true;
  free->blocks.resize(config_.geometry.blocks.size());
  for (size_t layer = 0; layer < free->blocks.size(); ++layer) SetPresentWidths(*free, layer);
  return static_cast<SequenceId>(free - sequences_.begin());
}

void ReferenceKvCache::Close(SequenceId id) {
  Sequence& seq = At(id);
  PMKVQ_CHECK(!IsInForward(seq));
  store_.ReleaseAll(seq);
  seq.is_open = false;
}

// All closed pages stand at one width, at which the next ones close. A block without quantised
// pages starts afresh.
void ReferenceKvCache::SetPresentWidths(Sequence& seq, size_t layer) const {
  BlockPages& block = seq.blocks[layer];
  block.present = CloseWidths(config_, layer);
  for (const PagePair& page : block.pages) block.present = Narrower(block.present, WidthsOf(page));
}

ReserveResult ReferenceKvCache::Reserve(SequenceId id, int64_t num_tokens) {
  Sequence& seq = At(id);
  PMKVQ_CHECK(!IsInForward(seq) && num_tokens >= 0);
  if (seq.failure) return ReserveResult::kFailed;
  if (seq.reserved_tokens > 0) Truncate(id, seq.num_tokens);
  const int64_t num_after = seq.num_tokens + num_tokens;
  for (size_t layer = 0; layer < seq.blocks.size(); ++layer) {
    if (ReferenceFloorBytes(config_, layer, num_after) > config_.budget_bytes[layer]) {
      return ReserveResult::kBudgetExhausted;
    }
  }
  const auto pages_after = static_cast<size_t>(NumPages(config_, num_after));
  for (size_t layer = 0; layer < seq.blocks.size(); ++layer) {
    if (!config_.geometry.blocks[layer].has_cache()) continue;
    BlockPages& block = seq.blocks[layer];
    if (block.sink.empty() && num_after > 0) store_.AllocateSink(seq, layer);
    while (block.pages.size() < pages_after) {
      block.pages.emplace_back();
      for (const Side side : kSides) {
        store_.Allocate(seq, layer, block.pages.size() - 1, side, 16);
      }
    }
  }
  seq.reserved_tokens = num_tokens;
  return ReserveResult::kReserved;
}

void ReferenceKvCache::BeginForward(const Batch& batch) {
  PMKVQ_CHECK_MSG(!forward_.is_open, "EndForward is missing");
  forward_.chunks.clear();
  int64_t first_row = 0;
  for (const BatchChunk& part : batch) {
    Sequence& seq = At(part.seq);
    PMKVQ_CHECK_MSG(!seq.failure && part.num_tokens == seq.reserved_tokens, "Reserve is missing");
    if (part.num_tokens == 0) continue;
    PMKVQ_CHECK(!IsInForward(seq));
    forward_.chunks.push_back({&seq, part.num_tokens, first_row});
    first_row += part.num_tokens;
  }
  forward_.is_open = true;
}

const KvFailure* ReferenceKvCache::FailureOf(SequenceId id) const {
  const Sequence& seq = At(id);
  return seq.failure ? &*seq.failure : nullptr;
}

void ReferenceKvCache::AppendAndAttend(int64_t layer_idx, const float* q, const float* k,
                                       const float* v, float* out) {
  PMKVQ_CHECK(forward_.is_open && layer_idx >= 0 && layer_idx < config_.geometry.num_layers());
  const auto layer = static_cast<size_t>(layer_idx);
  const KvBlockGeometry& shape = config_.geometry.blocks[layer];
  PMKVQ_CHECK_MSG(shape.has_cache(), "a block without cache");
  if (forward_.chunks.empty()) return;
  const int64_t num_rows = forward_.chunks.back().first_row + forward_.chunks.back().num_tokens;
  const int64_t q_dim = shape.q_values();
  const int64_t kv_dim = shape.k().values();
  const int64_t head_dim = shape.k().width;
  if (config_.rotate_keys) {
    q = Rotated(q, num_rows * q_dim, head_dim, rotated_[0]);
    k = Rotated(k, num_rows * kv_dim, head_dim, rotated_[1]);
  }
  if (config_.rotate_values) v = Rotated(v, num_rows * kv_dim, head_dim, rotated_[2]);

  attention_sequences_.clear();
  first_views_.clear();
  for (const Chunk& chunk : forward_.chunks) {
    const int64_t row = chunk.first_row;
    Sequence& seq = *chunk.seq;
    for (const Side side : kSides) {
      const float* rows = (side == kKeys ? k : v) + row * kv_dim;
      if (seq.failure) continue;
      seq.failure = store_.FindUnfitValue(layer, side, rows, chunk.num_tokens, seq.num_tokens);
    }
    if (seq.failure) continue;
    seq.views.clear();
    seq.page_tokens.clear();
    store_.AddViews(seq.blocks[layer], layer, seq.views);
    store_.AddPageTokens(seq.num_tokens, seq.page_tokens);
    attention_sequences_.push_back({seq.page_tokens, chunk.num_tokens, row});
    first_views_.push_back(seq.views.data());
  }
  if (!attention_sequences_.empty()) {
    PlanAttention(AttentionShapeOf(shape, config_.float_type), attention_sequences_,
                  config_.num_threads, config_.attention, attention_plan_);
    RunAttention(attention_plan_, {first_views_, q, k, v, out}, attention_scratch_);
  }
  for (const Chunk& chunk : forward_.chunks) {
    if (chunk.seq->failure) continue;
    StoreRows(chunk, layer, kKeys, k + chunk.first_row * kv_dim);
    StoreRows(chunk, layer, kValues, v + chunk.first_row * kv_dim);
  }
  if (config_.rotate_values) HadamardHeads(out, num_rows * q_dim, head_dim);
}

void ReferenceKvCache::StoreRows(const Chunk& chunk, size_t layer, Side side, const float* rows) {
  const BlockPages& block = chunk.seq->blocks[layer];
  const PageCodec& codec = store_.codec(layer, side);
  const int64_t kv_dim = config_.geometry.blocks[layer].streams[side].values();
  const int64_t end = chunk.seq->num_tokens + chunk.num_tokens;
  int64_t num_rows = 0;
  for (int64_t position = chunk.seq->num_tokens; position < end; position += num_rows) {
    if (position < config_.sink_tokens) {
      const int64_t piece = position / kPageTokens;
      const int64_t capacity = store_.SinkPieceTokens(piece);
      num_rows = std::min(end, piece * kPageTokens + capacity) - position;
      codec.WriteRows(rows, num_rows, position % kPageTokens, capacity,
                      store_.SinkData(block, layer, piece, side));
    } else {
      const int64_t paged = position - config_.sink_tokens;
      const auto page = static_cast<size_t>(paged / kPageTokens);
      const int64_t first = paged % kPageTokens;
      num_rows = std::min(end - position, kPageTokens - first);
      codec.WriteRows(rows, num_rows, first, kPageTokens, store_.Data(block.pages[page][side]));
      const int close_bits = WidthOf(block.present, side);
      if (first + num_rows == kPageTokens && close_bits < 16) {
        NarrowStep step{page, side, close_bits};
        store_.Narrow(*chunk.seq, layer, {&step, 1});
      }
    }
    rows += num_rows * kv_dim;
  }
}

void ReferenceKvCache::EndForward() {
  PMKVQ_CHECK(forward_.is_open);
  forward_.is_open = false;
  for (const Chunk& chunk : forward_.chunks) {
    Sequence& seq = *chunk.seq;
    if (seq.failure) continue;
    seq.num_tokens += chunk.num_tokens;
    seq.reserved_tokens = 0;
    for (size_t layer = 0; layer < seq.blocks.size(); ++layer) {
      if (config_.geometry.blocks[layer].has_cache()) Halve(seq, layer);
    }
  }
}

// One step of all closed pages of the block where its payload passes the budget.
void ReferenceKvCache::Halve(Sequence& seq, size_t layer) {
  BlockPages& block = seq.blocks[layer];
  if (ReferencePayloadBytes(config_, layer, seq.num_tokens, block.present.k, block.present.v) <=
      config_.budget_bytes[layer]) {
    return;
  }
  const auto start = std::chrono::steady_clock::now();
  BlockLimits limits;
  limits.floor = FloorWidths(config_, layer);
  const PageWidths planned = PlannedWidths(config_, layer);
  limits.planned_k_bits = planned.k;
  limits.planned_v_bits = planned.v;
  block.present = NextLayerWidths(limits, block.present);
  HalvingSteps counts;
  std::vector<NarrowStep> steps;
  const int64_t num_closed =
      std::max<int64_t>(0, seq.num_tokens - config_.sink_tokens) / kPageTokens;
  for (size_t page = 0; page < static_cast<size_t>(num_closed); ++page) {
    for (const Side side : kSides) {
      const int old_bits = block.pages[page][side].bits;
      const int bits = std::min(old_bits, WidthOf(block.present, side));
      if (bits < old_bits) steps.push_back({page, side, bits});
      counts.Add(side, page, old_bits, bits);
    }
  }
  store_.Narrow(seq, layer, steps);
  const std::chrono::duration<double, std::micro> duration =
      std::chrono::steady_clock::now() - start;
  counts.AppendEvents({static_cast<SequenceId>(&seq - sequences_.data()),
                       static_cast<int64_t>(layer), seq.num_tokens},
                      duration.count(), false, halving_events_);
}

void ReferenceKvCache::Truncate(SequenceId id, int64_t num_tokens) {
  Sequence& seq = At(id);
  PMKVQ_CHECK(!IsInForward(seq) && num_tokens >= 0 && num_tokens <= seq.num_tokens);
  const bool cuts = num_tokens < seq.num_tokens || seq.reserved_tokens > 0;
  seq.reserved_tokens = 0;
  if (!cuts) return;
  const auto pages_after = static_cast<size_t>(NumPages(config_, num_tokens));
  const bool cuts_page = pages_after > 0 && (num_tokens - config_.sink_tokens) % kPageTokens != 0;
  for (size_t layer = 0; layer < seq.blocks.size(); ++layer) {
    if (!config_.geometry.blocks[layer].has_cache()) continue;
    BlockPages& block = seq.blocks[layer];
    store_.ReleaseFrom(seq, layer, pages_after);
    for (const Side side : kSides) {
      if (cuts_page && block.pages.back()[side].bits < 16) {
        store_.Reopen(seq, layer, pages_after - 1, side);
      }
    }
    if (num_tokens == 0) store_.ReleaseSink(seq, layer);
    SetPresentWidths(seq, layer);
  }
  seq.num_tokens = num_tokens;
}

KvSequenceStats ReferenceKvCache::SequenceStats(SequenceId id) const {
  const Sequence& seq = At(id);
  return StatsOf(seq, seq.num_tokens, config_.budget_bytes);
}

KvLayerStats ReferenceKvCache::LayerStats(SequenceId id, int64_t layer) const {
  PMKVQ_CHECK(layer >= 0 && layer < config_.geometry.num_layers());
  const auto i = static_cast<size_t>(layer);
  return StatsOf(At(id).blocks[i], config_.budget_bytes[i]);
}

KvStoreStats ReferenceKvCache::StoreStats() const {
  size_t rotated = 0;
  for (const AlignedVector<float>& rows : rotated_) rotated += rows.capacity();
  return {store_.slots().arena_bytes(),
          store_.scratch_bytes() + attention_scratch_.num_bytes() + rotated * sizeof(float)};
}

std::vector<HalvingEvent> ReferenceKvCache::TakeHalvingEvents() {
  return std::exchange(halving_events_, {});
}

void ReferenceKvCache::ReadTokens(SequenceId id, int64_t layer, float* k_out, float* v_out) const {
  const Sequence& seq = At(id);
  PMKVQ_CHECK(!IsInForward(seq) && seq.reserved_tokens == 0);
  PMKVQ_CHECK(layer >= 0 && layer < config_.geometry.num_layers());
  store_.ReadTokens(seq, static_cast<size_t>(layer), seq.num_tokens, k_out, v_out);
}

}  // namespace pmkvq
