#include "pmkvq/engine/kv_history.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <map>
#include <tuple>

#include "pmkvq/base/error.h"
#include "pmkvq/io/hash.h"

namespace pmkvq {
namespace {

constexpr int64_t kMostTokens = int64_t{1} << 40;

// Later in the form that histories have: pages go down step by step.
bool ComesBehind(const KvHistoryEvent& a, const KvHistoryEvent& b) {
  return std::tuple(a.layer, -a.from_bits) > std::tuple(b.layer, -b.from_bits);
}

// Runs of pages: how many from which one on. Those whose first page is not told are one run, of -1.
using PageRuns = std::map<int64_t, int64_t>;

void AddRun(int64_t first, int64_t count, PageRuns& runs) {
  if (count == 0) return;
  if (first < 0) {
    runs[-1] += count;
    return;
  }
  const auto place = runs.emplace(first, 0).first;
  place->second += count;
  const auto next = std::next(place);
  if (next != runs.end() && next->first == first + place->second) {
    place->second += next->second;
    runs.erase(next);
  }
  if (place == runs.begin()) return;
  const auto before = std::prev(place);
  if (before->first < 0 || before->first + before->second != first) return;
  before->second += place->second;
  runs.erase(place);
}

void AddRuns(const KvHistoryEvent& event, PageRuns& k_runs, PageRuns& v_runs) {
  AddRun(event.first_k_page, event.num_k_pages, k_runs);
  AddRun(event.first_v_page, event.num_v_pages, v_runs);
}

std::string TextOf(const KvHistoryEvent& event) {
  if (event.is_resume()) return fmt::format("resume {}\n", event.num_tokens);
  std::string text = fmt::format("{} {} {} {} {}", event.num_tokens, event.layer, event.from_bits,
                                 event.num_k_pages, event.num_v_pages);
  if (event.first_k_page >= 0 || event.first_v_page >= 0) {
    text += fmt::format(" {} {}", event.first_k_page, event.first_v_page);
  }
  return text + "\n";
}

// Drops the halvings at the end that stand at so many tokens.
void DropUnread(int64_t num_tokens, KvHistory& history) {
  while (!history.empty() && !history.back().is_resume() &&
         history.back().num_tokens == num_tokens) {
    history.pop_back();
  }
}

}  // namespace

void AddHalving(const HalvingEvent& event, KvHistory& history) {
  const KvHistoryEvent added = {event.num_tokens,  event.layer,       event.from_bits,
                                event.num_k_pages, event.num_v_pages, event.first_k_page,
                                event.first_v_page};
  // Where those of this length, block and width begin and end.
  auto end = history.end();
  while (end != history.begin()) {
    const KvHistoryEvent& before = *(end - 1);
    if (before.is_resume() || before.num_tokens != added.num_tokens) break;
    if (!ComesBehind(before, added)) break;
    --end;
  }
  auto begin = end;
  while (begin != history.begin()) {
    const KvHistoryEvent& before = *(begin - 1);
    if (before.num_tokens != added.num_tokens || before.layer != added.layer ||
        before.from_bits != added.from_bits) {
      break;
    }
    --begin;
  }
  PageRuns k_runs;
  PageRuns v_runs;
  for (auto it = begin; it != end; ++it) AddRuns(*it, k_runs, v_runs);
  AddRuns(added, k_runs, v_runs);
  const auto at = history.erase(begin, end) - history.begin();
  KvHistory joined;
  auto k = k_runs.begin();
  auto v = v_runs.begin();
  while (k != k_runs.end() || v != v_runs.end()) {
    KvHistoryEvent& one = joined.emplace_back();
    one = {added.num_tokens, added.layer, added.from_bits};
    if (k != k_runs.end()) std::tie(one.first_k_page, one.num_k_pages) = *k++;
    if (v != v_runs.end()) std::tie(one.first_v_page, one.num_v_pages) = *v++;
  }
  history.insert(history.begin() + at, joined.begin(), joined.end());
}

void AddPreemption(int64_t num_tokens, bool was_prefilling, KvHistory& history) {
  if (was_prefilling) {
    while (!history.empty() && !history.back().is_resume()) history.pop_back();
    return;
  }
  DropUnread(num_tokens, history);
  history.push_back({num_tokens});
}

void EndHistory(int64_t num_tokens, KvHistory& history) { DropUnread(num_tokens, history); }

std::string DigestOf(const KvHistory& history) {
  if (history.empty()) return "";
  Hash128 hash;
  for (const KvHistoryEvent& event : history) {
    hash.Update(TextOf(event));
  }
  return hash.HexDigest().substr(0, 16);
}

std::vector<HalvingEvent> HalvingsFrom(const KvHistory& history, size_t begin) {
  std::vector<HalvingEvent> halvings;
  for (size_t i = begin; i < history.size() && !history[i].is_resume(); ++i) {
    const KvHistoryEvent& event = history[i];
    halvings.push_back({0, event.layer, event.num_tokens, event.from_bits, event.num_k_pages,
                        event.num_v_pages, 0, event.first_k_page, event.first_v_page});
  }
  return halvings;
}

void CheckHistory(const KvHistory& history, int64_t num_layers, int floor_bits) {
  int64_t tokens = 0;
  for (size_t i = 0; i < history.size(); ++i) {
    const KvHistoryEvent& event = history[i];
    const auto fail = [&](const char* field, int64_t found, const std::string& expected) {
      throw InvalidInput("kv_replay", fmt::format("event {}: {}: found {}, expected {}", i, field,
                                                  found, expected));
    };
    if (event.num_tokens < tokens || event.num_tokens > kMostTokens) {
      fail("tokens", event.num_tokens, fmt::format("{} or more, as before it", tokens));
    }
    tokens = event.is_resume() ? 0 : event.num_tokens;
    if (event.is_resume()) continue;
    if (event.layer < 0 || event.layer >= num_layers) {
      fail("layer", event.layer, fmt::format("0 to {}", num_layers - 1));
    }
    const bool is_step = event.from_bits == 16 || event.from_bits == 8 || event.from_bits == 4;
    if (!is_step || event.from_bits / 2 < floor_bits) {
      fail("from_bits", event.from_bits,
           fmt::format("16, 8 or 4, and no page below {} bits (--kv-floor)", floor_bits));
    }
    for (const int64_t pages : {event.num_k_pages, event.num_v_pages}) {
      if (pages < 0 || pages > kMostTokens) fail("pages", pages, "0 or more");
    }
    for (const int64_t first : {event.first_k_page, event.first_v_page}) {
      if (first < -1 || first > kMostTokens) fail("first page", first, "0 or more");
    }
  }
}

}  // namespace pmkvq
