#include "pmkvq/kv/packed/halving_steps.h"

#include <algorithm>

namespace pmkvq {

void HalvingSteps::Add(Side side, size_t page, int from_bits, int to_bits) {
  const auto number = static_cast<int64_t>(page);
  for (int bits = from_bits; bits > to_bits; bits /= 2) {
    std::vector<PageRun>& runs = runs_[side][WidthIndex(bits)];
    if (!runs.empty() && runs.back().first + runs.back().count == number) {
      ++runs.back().count;
    } else {
      runs.push_back({number, 1});
    }
  }
}

void HalvingSteps::AppendEvents(HalvingEvent event, double duration_us, bool with_first,
                                std::vector<HalvingEvent>& events) const {
  const size_t begin = events.size();
  for (size_t i = 0; i < kWidths.size(); ++i) {
    const std::vector<PageRun>& k_runs = runs_[kKeys][i];
    const std::vector<PageRun>& v_runs = runs_[kValues][i];
    event.from_bits = kWidths[i];
    if (!with_first) {
      event.num_k_pages = 0;
      event.num_v_pages = 0;
      for (const PageRun& run : k_runs) event.num_k_pages += run.count;
      for (const PageRun& run : v_runs) event.num_v_pages += run.count;
      if (event.num_k_pages + event.num_v_pages > 0) events.push_back(event);
      continue;
    }
    for (size_t n = 0; n < std::max(k_runs.size(), v_runs.size()); ++n) {
      const PageRun k = n < k_runs.size() ? k_runs[n] : PageRun{};
      const PageRun v = n < v_runs.size() ? v_runs[n] : PageRun{};
      event.num_k_pages = k.count;
      event.num_v_pages = v.count;
      event.first_k_page = k.first;
      event.first_v_page = v.first;
      events.push_back(event);
    }
  }
  const auto count = static_cast<double>(events.size() - begin);
  for (size_t n = begin; n < events.size(); ++n) events[n].duration_us = duration_us / count;
}

}  // namespace pmkvq
