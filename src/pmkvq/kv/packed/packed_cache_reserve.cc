// Reserve and Truncate: everything that changes page tables and widths.
//
// Budget: Reserve first decides the widths of all pages of all blocks after the new tokens, then
// carries them out in an order in which bytes rise only towards the decided total. The page that
// was open and closes within the chunk below 16 bits cannot be quantised before its last rows are
// there; its 16-bit slot becomes that of the new open page at once (BlockPages::open_rows_moved),
// so that no moment needs a slot more than the decided total.
#include <algorithm>

#include "pmkvq/base/check.h"
#include "pmkvq/kv/packed/packed_cache.h"
#include "pmkvq/kv/packed/policy/layer_budget.h"
#include "pmkvq/kv/packed/policy/oldest_first.h"

namespace pmkvq {
BlockLimits PackedKvCache::LimitsOf(size_t layer) const {
  BlockLimits limits;
  limits.budget_bytes = config_.budget_bytes[layer];
  limits.k_page_bytes = store_.SlotsOf(layer, kKeys).page_bytes;
  limits.v_page_bytes = store_.SlotsOf(layer, kValues).page_bytes;
  limits.floor = FloorWidths(config_, layer);
  const PageWidths planned = PlannedWidths(config_, layer);
  limits.planned_k_bits = planned.k;
  limits.planned_v_bits = planned.v;
  return limits;
}

ReserveResult PackedKvCache::Reserve(SequenceId id, int64_t num_tokens) {
  Sequence& seq = At(id);
  if (config_.pool.bytes > 0) {
    const BatchChunk chunk = {id, num_tokens};
    const ReserveResult result = ReserveAll({&chunk, 1});
    return seq.failure ? ReserveResult::kFailed : result;
  }
  PMKVQ_CHECK(!IsInForward(seq) && num_tokens >= 0);
  if (seq.failure) return ReserveResult::kFailed;
  if (seq.reserved_tokens > 0) Truncate(id, seq.num_tokens);

  const int64_t pages_after = NumPages(config_, seq.num_tokens + num_tokens);
  const bool is_first = seq.num_tokens == 0 && num_tokens > 0;
  const auto pages_before = static_cast<int64_t>(NumPagesOf(seq));
  const size_t events_before = halving_events_.size();
  if (is_first || pages_after != pages_before) {
    if (!DecideAllWidths(seq, seq.num_tokens, pages_after)) return ReserveResult::kBudgetExhausted;
    for (const size_t layer : cached_layers_) {
      ApplyWidths(seq, layer, pages_after);
    }
    seq.next.is_planned = false;
  } else if (config_.policy == PolicyKind::kOldestFirst && pages_before > 0) {
    NarrowAhead(seq, num_tokens);
  }
  if (seq.failure) return ReserveResult::kFailed;
  seq.reserved_tokens = num_tokens;
  return halving_events_.size() > events_before ? ReserveResult::kReservedAfterHalving
                                                : ReserveResult::kReserved;
}

int64_t PackedKvCache::ReserveOneByOne(SequenceId id, int64_t num_tokens) {
  PMKVQ_CHECK(num_tokens >= 1);
  const ReserveResult room = Reserve(id, 1);
  if (room == ReserveResult::kBudgetExhausted || room == ReserveResult::kFailed) return 0;
  Sequence& seq = At(id);
  const int64_t sink = config_.sink_tokens;
  const int64_t end =
      seq.num_tokens < sink ? sink : sink + NumPages(config_, seq.num_tokens + 1) * kPageTokens;
  int64_t count = end - seq.num_tokens;
  const bool halves_ahead = config_.policy == PolicyKind::kOldestFirst && config_.pool.bytes == 0;
  if (halves_ahead && seq.num_tokens >= sink) {
    count = std::min(count, TokensToNextStep(seq));
  }
  seq.reserved_tokens = std::min(count, num_tokens);
  return seq.reserved_tokens;
}

// Fills decided_ for all blocks: as planned when this is the page that was planned for. Pages are
// opened when `num_tokens` are stored.
bool PackedKvCache::DecideAllWidths(const Sequence& seq, int64_t num_tokens, int64_t pages_after) {
  const NextPage& next = seq.next;
  // A chunk may open the page earlier than planned, when a sliding window still has a page more.
  const bool is_same_window =
      std::all_of(cached_layers_.begin(), cached_layers_.end(), [&](size_t layer) {
        return FirstSeen(layer, num_tokens) == FirstSeen(layer, next.opened_at);
      });
  if (next.is_planned && !next.widths.empty() && is_same_window &&
      static_cast<int64_t>(next.widths[cached_layers_[0]].size()) == pages_after) {
    decided_ = next.widths;
    return true;
  }
  for (const size_t layer : cached_layers_) {
    if (!DecideWidths(seq, layer, num_tokens, pages_after)) return false;
  }
  return true;
}

// Fills decided_[layer] with the widths of all pages once there are `pages_after` of them; those of
// pages that are freed then mean nothing.
bool PackedKvCache::DecideWidths(const Sequence& seq, size_t layer, int64_t num_tokens,
                                 int64_t pages_after) {
  const BlockPages& block = seq.blocks[layer];
  std::vector<PageWidths>& decided = decided_[layer];
  decided.assign(static_cast<size_t>(pages_after), PageWidths{});
  for (size_t i = 0; i < block.pages.size(); ++i) decided[i] = WidthsOf(block.pages[i]);

  const int64_t window_pages = config_.window_tokens / kPageTokens;
  const size_t first = FirstSeen(layer, num_tokens);
  const size_t num_closed =
      std::max(first, static_cast<size_t>(std::max<int64_t>(0, pages_after - window_pages)));
  BlockLimits limits = LimitsOf(layer);
  limits.fixed_bytes = SinkBytes(config_, layer);
  for (size_t i = num_closed; i < decided.size(); ++i) {
    limits.fixed_bytes += limits.BytesOf(decided[i]);
  }

  closed_pages_.clear();
  for (size_t i = first; i < num_closed; ++i) {
    closed_pages_.push_back(Narrower(decided[i], block.present));
  }
  const bool fits = config_.policy == PolicyKind::kLayerBudget
                        ? FitLayerBudget(limits, block.present, closed_pages_)
                        : FitOldestFirst(limits, closed_pages_);
  if (!fits) return false;
  std::copy(closed_pages_.begin(), closed_pages_.end(),
            decided.begin() + static_cast<std::ptrdiff_t>(first));
  return true;
}

void PackedKvCache::ApplyWidths(Sequence& seq, size_t layer, int64_t pages_after) {
  BlockPages& block = seq.blocks[layer];
  const std::vector<PageWidths>& decided = decided_[layer];
  const size_t pages_before = block.pages.size();
  const bool last_is_partial =
      pages_before > 0 && (seq.num_tokens - config_.sink_tokens) % kPageTokens != 0;
  const size_t num_full = pages_before - (last_is_partial ? 1 : 0);
  const size_t first = FirstSeen(layer, seq.num_tokens);
  store_.FreeBefore(seq, layer, first);

  const NarrowingStart start = StartNarrowing();
  for (size_t page = first; page < num_full; ++page) {
    AddNarrowSteps(block.pages[page], page, decided[page], block.present);
  }
  FinishNarrowing(seq, layer, start);

  if (block.sink.empty()) store_.AllocateSink(seq, layer);
  MakeNewPages(seq, layer, static_cast<size_t>(pages_after));
  UpdatePresentWidths(block, layer);
}

// Between the two, steps of one block are added to narrow_steps_ and counted.
PackedKvCache::NarrowingStart PackedKvCache::StartNarrowing() {
  steps_ = {};
  narrow_steps_.clear();
  return std::chrono::steady_clock::now();
}

void PackedKvCache::FinishNarrowing(const Readers& readers, size_t layer, NarrowingStart start) {
  const bool is_pool = config_.pool.bytes > 0;
  if (is_pool) {
    NarrowStepByStep(readers, layer);
  } else {
    store_.Narrow(*readers.front(), layer, narrow_steps_);
  }
  const std::chrono::duration<double, std::micro> duration =
      std::chrono::steady_clock::now() - start;
  for (const Sequence* const reader : readers) {
    steps_.AppendEvents({IdOf(*reader), static_cast<int64_t>(layer), reader->num_tokens},
                        duration.count(), is_pool, halving_events_);
  }
}

// Of a pool, where a page may go down twice at one length of its sequence, or once by two widths,
// and a history does not tell which: floats that are rounded straight to 4 bits differ from those
// that were 8 bits before in one of some 10^8 values, where a product is rounded at a tie.
void PackedKvCache::NarrowStepByStep(const Readers& readers, size_t layer) {
  const PageWidths present = readers.front()->blocks[layer].present;
  const std::vector<SequencePages*> tables(readers.begin(), readers.end());
  std::vector<NarrowStep> steps;
  for (const int bits : {8, 4, 2}) {
    steps.clear();
    for (const NarrowStep& step : narrow_steps_) {
      const int old_bits = PairOf(readers, layer, step.page)[step.side].bits;
      // Pages close at this width at once.
      if (old_bits <= bits || step.bits > bits || bits > WidthOf(present, step.side)) continue;
      steps.push_back({step.page, step.side, bits, 0, KeptChunkOf(*readers.front(), step.page)});
    }
    if (!steps.empty()) store_.Narrow(tables, layer, steps);
  }
}

// Adds to narrow_steps_ the steps that bring a page to `widths`, and counts its halvings.
void PackedKvCache::AddNarrowSteps(const PagePair& pair, size_t page, const PageWidths& widths,
                                   const PageWidths& closed_at) {
  for (const Side side : kSides) {
    const int bits = WidthOf(widths, side);
    const int old_bits = pair[side].bits;
    if (bits == old_bits) continue;
    // Closing at the block's present width is not a halving; steps below that width are.
    steps_.Add(side, page, std::min(old_bits, WidthOf(closed_at, side)), bits);
    narrow_steps_.push_back({page, side, bits, 0});
  }
}

void PackedKvCache::MakeNewPages(Sequence& seq, size_t layer, size_t pages_after) {
  BlockPages& block = seq.blocks[layer];
  const std::vector<PageWidths>& decided = decided_[layer];
  const size_t pages_before = block.pages.size();
  block.pages.resize(pages_after);
  if (pages_after == pages_before) return;
  for (const Side side : kSides) {
    if (pages_before > 0) {
      // Still wider than decided: the partly filled open page, which closes in this chunk.
      StoredPage& open_page = block.pages[pages_before - 1][side];
      const int bits = WidthOf(decided[pages_before - 1], side);
      if (open_page.bits != bits) {
        block.pages.back()[side] = open_page;
        open_page = StoredPage{};
        store_.Allocate(seq, layer, pages_before - 1, side, bits);
        block.open_rows_moved[side] = true;
      }
    }
    for (size_t page = pages_before; page < pages_after; ++page) {
      if (block.pages[page][side].data != kNoSlot) continue;
      store_.Allocate(seq, layer, page, side, WidthOf(decided[page], side));
    }
  }
}

// LayerBudget: all closed pages stand at one width, at which the next ones close. Pages that a
// Truncate left behind bring their width along; a block without quantised pages starts afresh.
void PackedKvCache::UpdatePresentWidths(BlockPages& block, size_t layer) const {
  block.present = CloseWidths(config_, layer);
  if (config_.policy != PolicyKind::kLayerBudget) return;
  for (const PagePair& page : block.pages) block.present = Narrower(block.present, WidthsOf(page));
}

int64_t PackedKvCache::LongestTruncation(SequenceId id, int64_t num_tokens) const {
  const Sequence& seq = At(id);
  // Opening a page again would take room that a pool may not have.
  if (config_.pool.bytes > 0) return num_tokens == seq.num_tokens ? num_tokens : 0;
  const bool has_all = std::all_of(cached_layers_.begin(), cached_layers_.end(), [&](size_t layer) {
    return FirstSeen(layer, num_tokens) >= seq.blocks[layer].num_freed;
  });
  return has_all ? num_tokens : 0;
}

void PackedKvCache::Truncate(SequenceId id, int64_t num_tokens) {
  Sequence& seq = At(id);
  PMKVQ_CHECK(!IsInForward(seq));
  PMKVQ_CHECK(num_tokens >= 0 && num_tokens <= seq.num_tokens);
  PMKVQ_CHECK(LongestTruncation(id, num_tokens) == num_tokens);
  RestoreMovedRows(seq);
  store_.SettleUnfit();
  const bool cuts = num_tokens < seq.num_tokens || seq.reserved_tokens > 0;
  seq.reserved_tokens = 0;
  if (!cuts) return;
  CutPages(seq, num_tokens);
  seq.num_tokens = num_tokens;
}

// Gives the open page its 16-bit slot back where a reservation had passed it on and no rows were
// stored since.
void PackedKvCache::RestoreMovedRows(Sequence& seq) {
  const auto open_page = static_cast<size_t>(NumPages(config_, seq.num_tokens)) - 1;
  for (const size_t layer : cached_layers_) {
    BlockPages& block = seq.blocks[layer];
    for (const Side side : kSides) {
      if (!block.open_rows_moved[side]) continue;
      store_.Release(seq, layer, open_page, side);
      std::swap(block.pages[open_page][side], block.pages.back()[side]);
      block.open_rows_moved[side] = false;
    }
  }
}

// Bytes do not rise beyond the budget: a quantised page that is cut was closed, so a 16-bit open
// page stood behind it within the budget once, and closed pages only ever get narrower.
void PackedKvCache::CutPages(Sequence& seq, int64_t num_tokens) {
  const auto pages_after = static_cast<size_t>(NumPages(config_, num_tokens));
  const bool cuts_page = pages_after > 0 && (num_tokens - config_.sink_tokens) % kPageTokens != 0;
  for (const size_t layer : cached_layers_) {
    BlockPages& block = seq.blocks[layer];
    store_.ReleaseFrom(seq, layer, pages_after);
    for (const Side side : kSides) {
      if (!cuts_page) continue;
      if (block.pages.back()[side].bits < 16) {
        store_.Reopen(seq, layer, pages_after - 1, side);
      } else {
        store_.MakeExclusive(seq, layer, pages_after - 1, side);
      }
    }
    if (num_tokens < config_.sink_tokens) store_.MakeSinkExclusive(seq, layer);
    if (num_tokens == 0) store_.ReleaseSink(seq, layer);
    UpdatePresentWidths(block, layer);
  }
  seq.next.is_planned = false;
  ++seq.layout;
}

}  // namespace pmkvq
