#include "pmkvq/kv/packed/halving_steps.h"

namespace pmkvq {

void HalvingSteps::Add(Side side, int from_bits, int to_bits) {
  for (int bits = from_bits; bits > to_bits; bits /= 2) ++num_pages_[side][WidthIndex(bits)];
}

void HalvingSteps::AppendEvents(HalvingEvent event, double duration_us,
                                std::vector<HalvingEvent>& events) const {
  const auto has_steps = [&](size_t i) {
    return num_pages_[kKeys][i] + num_pages_[kValues][i] > 0;
  };
  int num_events = 0;
  for (size_t i = 0; i < kWidths.size(); ++i) num_events += has_steps(i) ? 1 : 0;
  for (size_t i = 0; i < kWidths.size(); ++i) {
    if (!has_steps(i)) continue;
    event.from_bits = kWidths[i];
    event.num_k_pages = num_pages_[kKeys][i];
    event.num_v_pages = num_pages_[kValues][i];
    event.duration_us = duration_us / num_events;
    events.push_back(event);
  }
}

}  // namespace pmkvq
