// Counts the halvings of one block's pages and tells them as events.
#pragma once

#include <array>
#include <vector>

#include "pmkvq/kv/kv_types.h"
#include "pmkvq/kv/packed/slot_layout.h"

namespace pmkvq {

class HalvingSteps {
 public:
  // A page goes from one width to a lower one; each halving on the way counts.
  void Add(Side side, int from_bits, int to_bits);
  // Appends an event for each width from which pages stepped, made of `event`, which names the
  // sequence, the block and its length. The events share `duration_us` evenly, since pages that go
  // down several steps do so at once.
  void AppendEvents(HalvingEvent event, double duration_us,
                    std::vector<HalvingEvent>& events) const;

 private:
  std::array<PagesPerWidth, 2> num_pages_{};  // By side and the width stepped from.
};

}  // namespace pmkvq
