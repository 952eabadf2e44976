// OldestFirst: halvings that make room for the next page. Where they are too much for the token
// that opens the page, the tokens before it do a part (policy/oldest_first.h).
//
// The widths for the next page are decided once, right after a page was opened. Halvings ahead
// carry out a part of that decision; the rest follows when the page is opened. So the widths at
// that moment are those of halving all at once. A Truncate drops the decision; pages that were
// halved for it stay halved.
#include "pmkvq/kv/packed/packed_cache.h"
#include "pmkvq/kv/packed/policy/spread.h"

namespace pmkvq {

// For a chunk that opens no page.
void PackedKvCache::NarrowAhead(Sequence& seq, int64_t num_tokens) {
  NextPage& next = seq.next;
  const auto num_pages = static_cast<int64_t>(NumPagesOf(seq));
  const int64_t opened_by = config_.sink_tokens + num_pages * kPageTokens + 1;
  const int64_t tokens_before = opened_by - (seq.num_tokens + num_tokens);
  if (num_tokens == 0) return;
  if (!next.is_planned) PlanNextPage(seq, tokens_before);

  while (next.num_done < next.steps.size() &&
         next.steps[next.num_done].tokens_before >= tokens_before) {
    const size_t layer = next.steps[next.num_done].layer;
    const NarrowingStart start = StartNarrowing();
    for (; next.num_done < next.steps.size(); ++next.num_done) {
      const AheadStep& step = next.steps[next.num_done];
      if (step.layer != layer || step.tokens_before < tokens_before) break;
      const StoredPage& page = seq.blocks[layer].pages[step.narrow.page][step.narrow.side];
      steps_.Add(step.narrow.side, step.narrow.page, page.bits, step.narrow.bits);
      narrow_steps_.push_back(step.narrow);
    }
    FinishNarrowing(seq, layer, start);
  }
}

// How many tokens, the one reserved now included, come before the next one that halves ahead, or
// that decides what to halve.
int64_t PackedKvCache::TokensToNextStep(const Sequence& seq) const {
  const NextPage& next = seq.next;
  if (!next.is_planned) return 1;
  const auto num_pages = static_cast<int64_t>(NumPagesOf(seq));
  const int64_t to_page = config_.sink_tokens + num_pages * kPageTokens - seq.num_tokens;
  if (next.num_done == next.steps.size()) return to_page;
  return to_page - next.steps[next.num_done].tokens_before;
}

// tokens_before: how many tokens before the one that opens the page come after those reserved now,
// and the last of these; all of them can take part in the work.
void PackedKvCache::PlanNextPage(Sequence& seq, int64_t tokens_before) {
  NextPage& next = seq.next;
  next.is_planned = true;
  next.widths.clear();
  next.steps.clear();
  next.num_done = 0;
  const size_t num_pages = NumPagesOf(seq);
  next.opened_at = config_.sink_tokens + static_cast<int64_t>(num_pages) * kPageTokens;
  if (!DecideAllWidths(seq, next.opened_at, static_cast<int64_t>(num_pages) + 1)) return;
  next.widths = decided_;

  // Pages of the window stay as they are until they leave it.
  const auto window_pages = static_cast<size_t>(config_.window_tokens / kPageTokens);
  std::vector<int64_t> piece_bytes;
  int64_t bytes_at_event = 0;
  for (const size_t layer : cached_layers_) {
    for (size_t page = 0; page < num_pages; ++page) {
      for (const Side side : kSides) {
        const int bits = WidthOf(next.widths[layer][page], side);
        const int old_bits = seq.blocks[layer].pages[page][side].bits;
        if (bits == old_bits) continue;
        const auto bytes = static_cast<int64_t>(store_.CodeBytes(layer, side, old_bits));
        if (page + window_pages < num_pages) {
          next.steps.push_back({layer, {page, side, bits, 0}, 0});
          piece_bytes.push_back(bytes);
        } else {
          bytes_at_event += bytes;
        }
      }
    }
  }
  const std::vector<int64_t> tokens =
      SpreadBackwards(piece_bytes, bytes_at_event, config_.most_bytes_per_token, tokens_before);
  for (size_t i = 0; i < tokens.size(); ++i) next.steps[i].tokens_before = tokens[i];
}

}  // namespace pmkvq
