// Sequences of a pool whose pages are halved as a history says, and for nobody else's need.
//
// The events of one length are carried out by the reservation that meets it: those of pages that
// are full at once, those of pages that close in the chunk when it is stored, as ReserveAll does
// with what PoolPressure decides.
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "pmkvq/base/check.h"
#include "pmkvq/kv/packed/packed_cache.h"

namespace pmkvq {

void PackedKvCache::FollowHistory(SequenceId id, std::vector<HalvingEvent> events) {
  Sequence& seq = At(id);
  PMKVQ_CHECK(config_.pool.bytes > 0 && seq.num_tokens == 0 && seq.reserved_tokens == 0);
  seq.script.emplace(Script{std::move(events), 0});
}

// As the pages stand, or will stand after the chunk.
PackedKvCache::ScriptTable PackedKvCache::ScriptTableOf(const Sequence& seq,
                                                        const Opening* opening) const {
  ScriptTable table;
  for (const size_t layer : cached_layers_) {
    std::vector<PageWidths>& widths = table.emplace_back();
    const size_t num_pages = opening == nullptr ? seq.blocks[layer].pages.size()
                                                : static_cast<size_t>(opening->pages_after);
    const size_t num_closed =
        opening == nullptr ? 0 : NumClosedAfter(layer, seq.num_tokens, opening->pages_after);
    for (size_t page = 0; page < num_pages; ++page) {
      widths.push_back(WidthsAfter(seq, layer, page, num_closed));
    }
  }
  return table;
}

// Adds the events of the present length to `table`. Returns the index of the first event of more
// tokens. The sequence fails where an event is none that it can have.
size_t PackedKvCache::AddScripted(Sequence& seq, const Opening* opening, ScriptTable& table) const {
  const std::vector<HalvingEvent>& events = seq.script->events;
  const int64_t window_pages = config_.window_tokens / kPageTokens;
  size_t next = seq.script->next;
  for (; next < events.size() && events[next].num_tokens <= seq.num_tokens; ++next) {
    const HalvingEvent& event = events[next];
    const auto fail = [&](const char* why) {
      seq.failure = KvFailure{
          "kv_replay", fmt::format("{} tokens, block {}, from {} bits: {}; expected the history "
                                   "of this request with these settings of the server",
                                   event.num_tokens, event.layer, event.from_bits, why)};
      return next;
    };
    if (event.num_tokens < seq.num_tokens) return fail("no step of it begins with so many tokens");
    const auto layer =
        std::find(cached_layers_.begin(), cached_layers_.end(), static_cast<size_t>(event.layer));
    if (layer == cached_layers_.end() || table.front().empty()) {
      return fail("it has no pages there");
    }
    std::vector<PageWidths>& widths = table[static_cast<size_t>(layer - cached_layers_.begin())];
    const int64_t num_closed =
        opening == nullptr
            ? std::ssize(widths) - window_pages
            : static_cast<int64_t>(NumClosedAfter(*layer, seq.num_tokens, opening->pages_after));
    for (const Side side : kSides) {
      const int64_t count = side == kKeys ? event.num_k_pages : event.num_v_pages;
      if (count == 0) continue;
      const auto width = [&](int64_t page) -> int& {
        PageWidths& pair = widths[static_cast<size_t>(page)];
        return side == kKeys ? pair.k : pair.v;
      };
      int64_t first = side == kKeys ? event.first_k_page : event.first_v_page;
      if (first < 0) {  // The oldest ones of this width.
        first = 0;
        while (first < num_closed && width(first) != event.from_bits) ++first;
      }
      const int floor = std::max(WidthOf(FloorWidths(config_, *layer), side), seq.terms.min_bits);
      for (int64_t page = first; page - first < count; ++page) {
        const bool has_page = page < num_closed || (page < std::ssize(widths) && width(page) < 16);
        if (!has_page || width(page) != event.from_bits) return fail("it has not so many pages");
        if (event.from_bits / 2 < floor) return fail("that is below the floor");
        width(page) /= 2;
      }
    }
  }
  return next;
}

// Of a sequence whose chunk opens no page.
void PackedKvCache::NarrowAsScripted(Sequence& seq) {
  const std::vector<HalvingEvent>& events = seq.script->events;
  if (seq.script->next == events.size()) return;
  if (events[seq.script->next].num_tokens > seq.num_tokens) return;
  ScriptTable table = ScriptTableOf(seq, nullptr);
  const size_t next = AddScripted(seq, nullptr, table);
  if (seq.failure) return;
  for (size_t i = 0; i < cached_layers_.size(); ++i) {
    const BlockPages& block = seq.blocks[cached_layers_[i]];
    const NarrowingStart start = StartNarrowing();
    for (size_t page = block.num_freed; page < block.pages.size(); ++page) {
      AddNarrowSteps(block.pages[page], page, table[i][page], block.present);
    }
    FinishNarrowing(seq, cached_layers_[i], start);
  }
  seq.script->next = next;
}

}  // namespace pmkvq
