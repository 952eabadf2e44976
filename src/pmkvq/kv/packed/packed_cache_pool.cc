// Sequences that share a pool: reserving for all of them at once.
//
// A reservation counts what the chunks need, asks PoolPressure what to halve, and carries it out:
// first all halvings, of whatever sequence, then the new pages. So bytes rise only towards the
// decided total, which lies within the pool. Pages that close in a chunk take part in the decision:
// they are stored at their widths at once.
#include <algorithm>

#include "pmkvq/base/check.h"
#include "pmkvq/kv/packed/packed_cache.h"

namespace pmkvq {
namespace {

// Tokens of each sequence for whose pages room is kept.
constexpr int64_t kTokensAhead = 16;

// Where no sensitivities are known: as in measured plans, keys are worth two times values, and the
// loss rises 17-fold from 8 to 4 bits and 5-fold from there to 2.
constexpr std::array<double, 4> kUsualSensitivity = {0, 1, 17, 85};

PoolStream StreamOf(const StreamSlots& slots, const std::array<int64_t, 4>& code_bytes,
                    const std::array<double, 4>& sensitivity, int floor_bits) {
  PoolStream stream;
  stream.page_bytes = slots.page_bytes;
  stream.code_bytes = code_bytes;
  stream.sensitivity = sensitivity;
  stream.floor_bits = floor_bits;
  return stream;
}

int WidthIn(const PoolRun& run, int64_t page) {
  for (size_t step = kHalvingSteps; step-- > 0;) {
    if (page - run.first < run.narrow[step]) return kWidths[step + 1];
  }
  return kWidths[0];
}

}  // namespace

void PackedKvCache::MakePressure() {
  std::vector<PoolStream> streams;
  for (const size_t layer : cached_layers_) {
    for (const Side side : kSides) {
      std::array<int64_t, 4> code_bytes{};
      for (const int bits : kWidths) {
        code_bytes[WidthIndex(bits)] = static_cast<int64_t>(store_.CodeBytes(layer, side, bits));
      }
      const auto& measured =
          side == kKeys ? config_.pool.k_sensitivity : config_.pool.v_sensitivity;
      std::array<double, 4> sensitivity = kUsualSensitivity;
      for (double& value : sensitivity) value *= side == kKeys ? 2 : 1;
      if (!measured.empty()) sensitivity = measured[layer];
      const double share = ShareOfValues(config_.geometry.blocks[layer], side);
      for (double& value : sensitivity) value *= share;
      const StreamSlots& slots = store_.SlotsOf(layer, side);
      streams.push_back(
          StreamOf(slots, code_bytes, sensitivity, WidthOf(FloorWidths(config_, layer), side)));
      column_bytes_ += slots.page_bytes[WidthIndex(16)];
    }
  }
  pressure_ = std::make_unique<PoolPressure>(std::move(streams));
}

// Pages that are closed once there are `pages_after` of them, the first of them freed.
size_t PackedKvCache::NumClosedAfter(size_t layer, int64_t num_tokens, int64_t pages_after) const {
  const int64_t window_pages = config_.window_tokens / kPageTokens;
  return std::max(FirstSeen(layer, num_tokens),
                  static_cast<size_t>(std::max<int64_t>(0, pages_after - window_pages)));
}

// Before anything is halved for a chunk.
PageWidths PackedKvCache::WidthsAfter(const Sequence& seq, size_t layer, size_t page,
                                      size_t num_closed) const {
  const BlockPages& block = seq.blocks[layer];
  const PageWidths widths = page < block.pages.size() ? WidthsOf(block.pages[page]) : PageWidths{};
  return page < num_closed ? Narrower(widths, block.present) : widths;
}

int64_t PackedKvCache::BytesAfter(const Opening& opening) const {
  int64_t bytes = 0;
  for (size_t index = 0; index < cached_layers_.size(); ++index) {
    const size_t layer = cached_layers_[index];
    const BlockLimits limits = LimitsOf(layer);
    const size_t first = FirstSeen(layer, opening.seq->num_tokens);
    const size_t num_closed = NumClosedAfter(layer, opening.seq->num_tokens, opening.pages_after);
    bytes += SinkBytes(config_, layer);
    for (size_t page = first; page < static_cast<size_t>(opening.pages_after); ++page) {
      bytes += limits.BytesOf(WidthsAsDecided(opening, index, page, num_closed));
    }
  }
  return bytes;
}

// Not those of a Forward under way, which would read them at two widths.
bool PackedKvCache::GivesPages(const Sequence& seq) const {
  return !seq.script && seq.is_open && !seq.failure && !IsInForward(seq) &&
         seq.reserved_tokens == 0;
}

// Of the pages that it has to itself.
PoolSequence PackedKvCache::TableOf(const Sequence& seq) const {
  PoolSequence table;
  table.key = seq.opened_as;
  table.num_tokens = seq.num_tokens;
  table.sink_tokens = config_.sink_tokens;
  table.weight = seq.terms.weight;
  table.floor_bits = seq.terms.min_bits;
  if (NumPagesOf(seq) == 0) return table;
  for (const size_t layer : cached_layers_) {
    const BlockPages& block = seq.blocks[layer];
    const auto window_pages = config_.window_tokens / kPageTokens;
    const size_t num_shared = seq.columns.size();
    const auto first = static_cast<int64_t>(std::max(block.num_freed, num_shared));
    const int64_t end = std::max(first, std::ssize(block.pages) - window_pages);
    for (const Side side : kSides) {
      PagesPerWidth counts = block.page_counts[side];
      for (size_t page = block.num_freed; page < num_shared; ++page) {
        --counts[WidthIndex(block.pages[page][side].bits)];
      }
      PoolRun run = {first, end, {}};
      int64_t narrow = 0;
      for (size_t step = kHalvingSteps; step-- > 0;) {
        narrow += counts[step + 1];
        run.narrow[step] = narrow;
      }
      // The last page, full and halved: taken over from a kept prompt that ends with it.
      run.end = std::max(run.end, run.first + run.narrow[0]);
      table.runs.push_back(run);
    }
  }
  return table;
}

PoolSequence PackedKvCache::TableAfter(const Opening& opening) const {
  const Sequence& seq = *opening.seq;
  PoolSequence table;
  table.key = seq.opened_as;
  table.num_tokens = opening.num_tokens;
  table.sink_tokens = config_.sink_tokens;
  table.weight = seq.terms.weight;
  table.floor_bits = seq.terms.min_bits;
  for (const size_t layer : cached_layers_) {
    const size_t first = std::max(FirstSeen(layer, seq.num_tokens), seq.columns.size());
    const size_t num_closed = NumClosedAfter(layer, seq.num_tokens, opening.pages_after);
    for (const Side side : kSides) {
      PoolRun run = {
          static_cast<int64_t>(first), static_cast<int64_t>(std::max(first, num_closed)), {}};
      for (size_t page = first; page < num_closed; ++page) {
        const int bits = WidthOf(WidthsAfter(seq, layer, page, num_closed), side);
        for (size_t step = 0; step < kHalvingSteps && bits <= kWidths[step + 1]; ++step) {
          ++run.narrow[step];
        }
      }
      table.runs.push_back(run);
    }
  }
  return table;
}

void PackedKvCache::FillPoolTables() {
  pool_tables_.clear();
  table_owners_.clear();
  FindColumnReaders();
  for (Opening& opening : openings_) {
    if (opening.script) continue;
    opening.table = pool_tables_.size();
    pool_tables_.push_back(TableAfter(opening));
    table_owners_.push_back({opening.seq});
  }
  for (Sequence& seq : sequences_) {
    if (OpeningOf(seq) != nullptr || !GivesPages(seq) || NumPagesOf(seq) == 0) continue;
    pool_tables_.push_back(TableOf(seq));
    table_owners_.push_back({&seq});
  }
  AddSharedTables();
}

// Of the pages that the next tokens open, and of one chunk of a prompt.
int64_t PackedKvCache::OpeningSoonBytes() const {
  int64_t columns = (config_.chunk_tokens + kPageTokens - 1) / kPageTokens;
  for (const Sequence& seq : sequences_) {
    if (!seq.is_open || seq.num_tokens == 0) continue;
    const auto num_pages = static_cast<int64_t>(NumPagesOf(seq));
    const int64_t room = config_.sink_tokens + num_pages * kPageTokens - seq.num_tokens;
    if (room < kTokensAhead) ++columns;
  }
  return columns * column_bytes_;
}

// Halves pages on paper from 16 to 8 bits until so many bytes less are read for each token.
void PackedKvCache::PayForReading(int64_t excess_bytes, int64_t most_read_bytes) {
  std::vector<int> floors;
  for (PoolSequence& table : pool_tables_) {
    floors.push_back(table.floor_bits);
    table.floor_bits = std::max(table.floor_bits, 8);
    table.copies = 1 + std::ssize(table.others);  // Each of its readers reads it.
  }
  pressure_->Free(0, excess_bytes, most_read_bytes, pool_tables_);
  for (size_t i = 0; i < floors.size(); ++i) pool_tables_[i].floor_bits = floors[i];
}

// Bytes that decoding reads beyond the limit, once there are `new_bytes` more. What sequences share
// each of them reads.
int64_t PackedKvCache::ExcessOfReading(int64_t new_bytes) const {
  if (config_.pool.read_limit_bytes == 0) return 0;
  int64_t bytes = new_bytes - config_.pool.read_limit_bytes;
  for (const Sequence& seq : sequences_) bytes += seq.is_open ? seq.bytes : 0;
  return bytes;
}

// Gives up kept prompts, and then halves pages, those that a sequence of openings_ has to itself
// only on paper, until `new_bytes` more fit; and some more to keep room for tokens to come. False:
// they do not fit; no sequence was changed.
bool PackedKvCache::PayInPool(int64_t new_bytes) {
  int64_t free = config_.pool.bytes - store_.used_bytes() - new_bytes;
  const PoolReserve reserve = ReserveOfPool(OpeningSoonBytes(), config_.pool.bytes);
  for (Opening& opening : openings_) opening.table.reset();
  if (free < reserve.least_bytes) free += GiveUpPrefixes(reserve.least_bytes - free, NowSeconds());
  int64_t excess = ExcessOfReading(new_bytes);
  if (free >= reserve.least_bytes && excess <= 0) return true;
  FillPoolTables();
  tables_before_ = pool_tables_;
  int64_t most_read = config_.pool.step_bytes;
  if (free < reserve.least_bytes) {
    const auto pay = [&] {
      return pressure_->Free(-free, reserve.enough_bytes - free, most_read, pool_tables_);
    };
    PoolPayment payment = pay();
    if (!payment.is_enough) {
      const int64_t dropped = DropAllPrefixes();
      if (dropped == 0) return false;
      free += dropped;
      payment = pay();
      if (!payment.is_enough) return false;
    }
    water_level_.Raise(payment.highest_price);
    excess -= payment.freed_bytes;
    most_read -= payment.read_bytes;
  }
  if (excess > 0) PayForReading(excess, most_read);
  for (size_t table = 0; table < pool_tables_.size(); ++table) {
    const bool opens = std::any_of(openings_.begin(), openings_.end(),
                                   [&](const Opening& opening) { return opening.table == table; });
    if (!opens) NarrowTo(table_owners_[table], tables_before_[table], pool_tables_[table]);
  }
  return true;
}

// Pages of sequences that open none, and shared ones: those between the old and the new counts.
void PackedKvCache::NarrowTo(const Readers& readers, const PoolSequence& before,
                             const PoolSequence& after) {
  if (after.runs.empty()) return;
  for (size_t i = 0; i < cached_layers_.size(); ++i) {
    int64_t begin = -1;
    int64_t end = -1;
    std::array<const PoolRun*, 2> runs{};
    for (const Side side : kSides) {
      const PoolRun& from = before.runs[2 * i + side];
      const PoolRun& to = after.runs[2 * i + side];
      runs[side] = &to;
      for (size_t step = 0; step < kHalvingSteps; ++step) {
        if (from.narrow[step] == to.narrow[step]) continue;
        const int64_t first = from.first + from.narrow[step];
        begin = begin < 0 ? first : std::min(begin, first);
        end = std::max(end, from.first + to.narrow[step]);
      }
    }
    if (begin < 0) continue;
    const size_t layer = cached_layers_[i];
    const PageWidths present = readers.front()->blocks[layer].present;
    const NarrowingStart start = StartNarrowing();
    for (int64_t page = begin; page < end; ++page) {
      const PageWidths widths = {WidthIn(*runs[kKeys], page), WidthIn(*runs[kValues], page)};
      const auto number = static_cast<size_t>(page);
      AddNarrowSteps(PairOf(readers, layer, number), number, widths, present);
    }
    FinishNarrowing(readers, layer, start);
  }
}

// Of a page after the chunk.
PageWidths PackedKvCache::WidthsAsDecided(const Opening& opening, size_t index, size_t page,
                                          size_t num_closed) const {
  if (opening.script) return script_tables_[*opening.script][index][page];
  // Shared pages are halved before.
  if (!opening.table || page >= num_closed || page < opening.seq->columns.size()) {
    return WidthsAfter(*opening.seq, cached_layers_[index], page, num_closed);
  }
  const std::vector<PoolRun>& runs = pool_tables_[*opening.table].runs;
  const auto number = static_cast<int64_t>(page);
  return {WidthIn(runs[2 * index + kKeys], number), WidthIn(runs[2 * index + kValues], number)};
}

// Fills decided_ of the block with the widths of all pages after the chunk.
void PackedKvCache::DecideAsTable(const Opening& opening, size_t index) {
  const size_t layer = cached_layers_[index];
  const Sequence& seq = *opening.seq;
  const size_t num_closed = NumClosedAfter(layer, seq.num_tokens, opening.pages_after);
  std::vector<PageWidths>& decided = decided_[layer];
  decided.assign(static_cast<size_t>(opening.pages_after), PageWidths{});
  for (size_t page = FirstSeen(layer, seq.num_tokens); page < decided.size(); ++page) {
    decided[page] = WidthsAsDecided(opening, index, page, num_closed);
  }
}

void PackedKvCache::NarrowBeforeOpening(const Opening& opening) {
  Sequence& seq = *opening.seq;
  const size_t pages_before = NumPagesOf(seq);
  const bool last_is_partial =
      pages_before > 0 && (seq.num_tokens - config_.sink_tokens) % kPageTokens != 0;
  const size_t num_full = pages_before - (last_is_partial ? 1 : 0);
  for (size_t i = 0; i < cached_layers_.size(); ++i) {
    const size_t layer = cached_layers_[i];
    BlockPages& block = seq.blocks[layer];
    const size_t first = FirstSeen(layer, seq.num_tokens);
    store_.FreeBefore(seq, layer, first);
    DecideAsTable(opening, i);
    const std::vector<PageWidths>& decided = decided_[layer];
    const NarrowingStart start = StartNarrowing();
    for (size_t page = first; page < num_full; ++page) {
      AddNarrowSteps(block.pages[page], page, decided[page], block.present);
    }
    // Those that close in the chunk, stored at their widths at once, count as halved.
    for (size_t page = std::max(first, num_full); page < decided.size(); ++page) {
      for (const Side side : kSides) {
        const int closed_at = WidthOf(block.present, side);
        const int bits = WidthOf(decided[page], side);
        if (bits < closed_at) steps_.Add(side, page, closed_at, bits);
      }
    }
    FinishNarrowing(seq, layer, start);
  }
}

void PackedKvCache::OpenPages(const Opening& opening) {
  Sequence& seq = *opening.seq;
  for (size_t i = 0; i < cached_layers_.size(); ++i) {
    const size_t layer = cached_layers_[i];
    DecideAsTable(opening, i);
    if (seq.blocks[layer].sink.empty()) store_.AllocateSink(seq, layer);
    MakeNewPages(seq, layer, static_cast<size_t>(opening.pages_after));
    UpdatePresentWidths(seq.blocks[layer], layer);
  }
  if (opening.script) seq.script->next = opening.script_next;
}

ReserveResult PackedKvCache::ReserveAll(std::span<const BatchChunk> chunks) {
  PMKVQ_CHECK_MSG(pressure_ != nullptr, "the store has no pool");
  openings_.clear();
  script_tables_.clear();
  const size_t events_before = halving_events_.size();
  int64_t new_bytes = 0;
  for (const BatchChunk& chunk : chunks) {
    Sequence& seq = At(chunk.seq);
    PMKVQ_CHECK(!IsInForward(seq) && chunk.num_tokens >= 0);
    if (seq.failure) continue;
    if (seq.reserved_tokens > 0) Truncate(chunk.seq, seq.num_tokens);
    const int64_t num_tokens = seq.num_tokens + chunk.num_tokens;
    const int64_t pages_after = NumPages(config_, num_tokens);
    const bool is_first = seq.num_tokens == 0 && chunk.num_tokens > 0;
    if (!is_first && pages_after == static_cast<int64_t>(NumPagesOf(seq))) {
      if (seq.script) NarrowAsScripted(seq);
      continue;
    }
    openings_.push_back({&seq, num_tokens, pages_after, std::nullopt, std::nullopt, 0});
    if (seq.script) {
      ScriptTable table = ScriptTableOf(seq, &openings_.back());
      openings_.back().script_next = AddScripted(seq, &openings_.back(), table);
      if (seq.failure) {
        openings_.pop_back();
        continue;
      }
      openings_.back().script = script_tables_.size();
      script_tables_.push_back(std::move(table));
    }
    new_bytes += BytesAfter(openings_.back()) - seq.bytes + SharedFreedBytes(openings_.back());
  }
  if (!PayInPool(new_bytes)) return ReserveResult::kBudgetExhausted;
  for (const Opening& opening : openings_) {
    if (!opening.seq->failure) NarrowBeforeOpening(opening);
  }
  for (const Opening& opening : openings_) {
    if (!opening.seq->failure) OpenPages(opening);
  }
  water_level_.Tick(store_.used_bytes() - store_.unread_bytes(), config_.pool.bytes);
  for (const BatchChunk& chunk : chunks) {
    if (Sequence& seq = At(chunk.seq); !seq.failure) seq.reserved_tokens = chunk.num_tokens;
  }
  return halving_events_.size() > events_before ? ReserveResult::kReservedAfterHalving
                                                : ReserveResult::kReserved;
}

}  // namespace pmkvq
