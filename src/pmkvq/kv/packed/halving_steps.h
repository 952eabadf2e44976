// Collects the halvings of one block's pages and tells them as events.
#pragma once

#include <array>
#include <vector>

#include "pmkvq/kv/kv_types.h"
#include "pmkvq/kv/packed/slot_layout.h"

namespace pmkvq {

class HalvingSteps {
 public:
  // A page goes from one width to a lower one; each halving on the way counts. Pages of one side
  // and width come in order of their numbers.
  void Add(Side side, size_t page, int from_bits, int to_bits);
  // Appends events for each width from which pages stepped, made of `event`, which names the
  // sequence, the block and its length. The events share `duration_us` evenly, since pages that go
  // down several steps do so at once. `with_first`: an event for each run of pages, which says
  // where it begins; else one for each width.
  void AppendEvents(HalvingEvent event, double duration_us, bool with_first,
                    std::vector<HalvingEvent>& events) const;

 private:
  struct PageRun {
    int64_t first = 0;
    int64_t count = 0;
  };
  // By side and the width stepped from.
  std::array<std::array<std::vector<PageRun>, kWidths.size()>, 2> runs_;
};

}  // namespace pmkvq
