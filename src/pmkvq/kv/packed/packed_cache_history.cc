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

// Adds the events of the present length to `table`, which stands as the sequence does, or will do.
// Returns the index of the first event of more tokens. The sequence fails where an event is none
// that it can have.
size_t PackedKvCache::AddScripted(Sequence& seq, PoolSequence& table) const {
  const std::vector<HalvingEvent>& events = seq.script->events;
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
    if (layer == cached_layers_.end() || table.runs.empty()) return fail("it has no pages there");
    const auto index = static_cast<size_t>(layer - cached_layers_.begin());
    const size_t step = WidthIndex(event.from_bits);
    PMKVQ_CHECK(step < kHalvingSteps);
    for (const Side side : kSides) {
      const int64_t count = side == kKeys ? event.num_k_pages : event.num_v_pages;
      if (count == 0) continue;
      PoolRun& run = table.runs[2 * index + side];
      const int64_t available = step == 0 ? run.end - run.first : run.narrow[step - 1];
      const int floor = std::max(WidthOf(FloorWidths(config_, *layer), side), seq.terms.min_bits);
      if (count > available - run.narrow[step]) return fail("it has not so many pages");
      if (kWidths[step + 1] < floor) return fail("that is below the floor");
      run.narrow[step] += count;
    }
  }
  return next;
}

// Of a sequence whose chunk opens no page.
void PackedKvCache::NarrowAsScripted(Sequence& seq) {
  const PoolSequence before = TableOf(seq);
  PoolSequence after = before;
  const size_t next = AddScripted(seq, after);
  if (seq.failure) return;
  NarrowTo(seq, before, after);
  seq.script->next = next;
}

}  // namespace pmkvq
