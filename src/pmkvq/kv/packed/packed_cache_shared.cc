// Pages that sequences of a pool share: forks, and prompts that were taken over.
//
// Such a page has one width. Its price for PoolPressure is the sum over its readers, its floor the
// highest of theirs, and when it is halved it becomes narrow for all of them at once, and for the
// chunk that keeps it: no copy is made, which would take memory exactly when there is none. Each
// reader is told so by an event of its present length.
//
// The first pages of a sequence, as many as SequencePages::columns, may be shared. Runs of them
// with the same readers have counts for themselves: shared prompts stay wide longer than what comes
// behind them. So a sequence's widths may fall towards its end, and events say which pages they
// mean. The readers of a page are found when memory is short: O(shared pages of all sequences).
#include <algorithm>

#include "pmkvq/kv/packed/packed_cache.h"

namespace pmkvq {

// Pages that close below 16 bits become narrow when they close, which sequences do at different
// times: then closed ones only are shared.
size_t PackedKvCache::NumSharedByFork(const Sequence& seq) const {
  const size_t num_pages = NumPagesOf(seq);
  if (num_pages == 0) return 0;
  const bool ends_in_page = (seq.num_tokens - config_.sink_tokens) % kPageTokens != 0;
  const size_t num_full = num_pages - (ends_in_page ? 1 : 0);
  if (config_.pool.bytes == 0) return num_full;
  const bool stays_wide =
      std::all_of(cached_layers_.begin(), cached_layers_.end(), [&](size_t layer) {
        return CloseWidths(config_, layer) == PageWidths{16, 16};
      });
  if (stays_wide) return num_full;
  const auto window_pages = static_cast<size_t>(config_.window_tokens / kPageTokens);
  return std::max(seq.columns.size(), num_pages - std::min(num_pages, window_pages));
}

const PackedKvCache::Opening* PackedKvCache::OpeningOf(const Sequence& seq) const {
  const auto found = std::find_if(openings_.begin(), openings_.end(),
                                  [&](const Opening& opening) { return opening.seq == &seq; });
  return found == openings_.end() ? nullptr : &*found;
}

// Of a reader that has not freed the page.
const PagePair& PackedKvCache::PairOf(const Readers& readers, size_t layer, size_t page) const {
  const auto owner = std::find_if(readers.begin(), readers.end(), [&](const Sequence* reader) {
    return reader->blocks[layer].pages[page][kKeys].data != kNoSlot;
  });
  return (owner == readers.end() ? readers.front() : *owner)->blocks[layer].pages[page];
}

// In any block and side.
bool PackedKvCache::IsNarrowerThan(const Readers& readers, size_t page, size_t other) const {
  return std::any_of(cached_layers_.begin(), cached_layers_.end(), [&](size_t layer) {
    const PagePair& a = PairOf(readers, layer, page);
    const PagePair& b = PairOf(readers, layer, other);
    if (a[kKeys].data == kNoSlot || b[kKeys].data == kNoSlot) return false;
    return a[kKeys].bits < b[kKeys].bits || a[kValues].bits < b[kValues].bits;
  });
}

void PackedKvCache::FindColumnReaders() {
  column_readers_.clear();
  for (Sequence& seq : sequences_) {
    if (!seq.is_open) continue;
    for (const int64_t column : seq.columns) column_readers_[column].push_back(&seq);
  }
  for (Sequence& seq : sequences_) {
    if (seq.is_open) TrimColumns(seq);
  }
}

// Pages that nobody else has any more are counted with the sequence's others again, from the last
// one on, as long as widths rise towards the end.
void PackedKvCache::TrimColumns(Sequence& seq) {
  while (!seq.columns.empty()) {
    const int64_t column = seq.columns.back();
    const size_t page = seq.columns.size() - 1;
    if (column_readers_[column].size() > 1 || column_nodes_.contains(column)) return;
    if (page + 1 < NumPagesOf(seq) && IsNarrowerThan({&seq}, page + 1, page)) return;
    seq.columns.pop_back();
    column_readers_.erase(column);
  }
}

// A table for each run of pages with the same readers in which widths never fall.
void PackedKvCache::AddSharedTables() {
  for (Sequence& seq : sequences_) {
    if (!seq.is_open) continue;
    for (size_t begin = 0; begin < seq.columns.size();) {
      const Readers& readers = column_readers_[seq.columns[begin]];
      size_t end = begin + 1;
      while (end < seq.columns.size() && column_readers_[seq.columns[end]] == readers &&
             !IsNarrowerThan(readers, end, end - 1)) {
        ++end;
      }
      if (readers.front() == &seq) {  // Else it is told already.
        if (std::optional<PoolSequence> table = SharedTable(readers, begin, end)) {
          pool_tables_.push_back(std::move(*table));
          table_owners_.push_back(readers);
        }
      }
      begin = end;
    }
  }
}

// Nothing where one of the readers cannot have it narrower now. A page that is not closed for all
// of them stays as it is.
std::optional<PoolSequence> PackedKvCache::SharedTable(const Readers& readers, size_t begin,
                                                       size_t end) const {
  PoolSequence table;
  table.key = readers.front()->opened_as;
  table.sink_tokens = config_.sink_tokens;
  for (const Sequence* const reader : readers) {
    if (!GivesPages(*reader)) return std::nullopt;
    const Opening* const opening = OpeningOf(*reader);
    const int64_t num_tokens = opening == nullptr ? reader->num_tokens : opening->num_tokens;
    table.key = std::min(table.key, reader->opened_as);
    table.floor_bits = std::max(table.floor_bits, reader->terms.min_bits);
    table.others.push_back({num_tokens, reader->terms.weight});
  }
  table.num_tokens = table.others.front().num_tokens;
  table.weight = table.others.front().weight;
  table.others.erase(table.others.begin());
  const int64_t window_pages = config_.window_tokens / kPageTokens;
  for (const size_t layer : cached_layers_) {
    size_t first = end;
    auto closed = static_cast<int64_t>(end);
    for (const Sequence* const reader : readers) {
      const BlockPages& block = reader->blocks[layer];
      if (const Opening* const opening = OpeningOf(*reader)) {
        first = std::min(first, FirstSeen(layer, reader->num_tokens));
        closed = std::min(closed, static_cast<int64_t>(NumClosedAfter(layer, reader->num_tokens,
                                                                      opening->pages_after)));
      } else {
        first = std::min(first, block.num_freed);
        closed = std::min(closed, std::ssize(block.pages) - window_pages);
      }
    }
    first = std::max(first, begin);
    for (const Side side : kSides) {
      PoolRun run = {static_cast<int64_t>(first), 0, {}};
      for (size_t page = first; page < end; ++page) {
        const int bits = PairOf(readers, layer, page)[side].bits;
        for (size_t step = 0; step < kHalvingSteps && bits <= kWidths[step + 1]; ++step) {
          ++run.narrow[step];
        }
      }
      run.end = std::max(closed, run.first + run.narrow[0]);
      table.runs.push_back(run);
    }
  }
  return table;
}

KeptChunk* PackedKvCache::KeptChunkOf(const Sequence& seq, size_t page) {
  if (page >= seq.columns.size()) return nullptr;
  const auto found = column_nodes_.find(seq.columns[page]);
  return found == column_nodes_.end() ? nullptr : &prefixes_->Kept(found->second);
}

// Of the pages that leave a window when the chunk opens pages, those that others still have.
int64_t PackedKvCache::SharedFreedBytes(const Opening& opening) const {
  int64_t bytes = 0;
  for (const size_t layer : cached_layers_) {
    const BlockPages& block = opening.seq->blocks[layer];
    const size_t end = std::min(block.pages.size(), FirstSeen(layer, opening.seq->num_tokens));
    for (size_t page = block.num_freed; page < end; ++page) {
      for (const Side side : kSides) {
        const StoredPage& stored = block.pages[page][side];
        if (store_.slots().num_references(stored.data) == 1) continue;
        bytes += store_.SlotsOf(layer, side).page_bytes[WidthIndex(stored.bits)];
      }
    }
  }
  return bytes;
}

}  // namespace pmkvq
