#include "pmkvq/engine/kv_history.h"

#include <fmt/format.h>

#include <algorithm>
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

// Drops the halvings at the end that stand at so many tokens.
void DropUnread(int64_t num_tokens, KvHistory& history) {
  while (!history.empty() && !history.back().is_resume() &&
         history.back().num_tokens == num_tokens) {
    history.pop_back();
  }
}

}  // namespace

void AddHalving(const HalvingEvent& event, KvHistory& history) {
  const KvHistoryEvent added = {event.num_tokens, event.layer, event.from_bits, event.num_k_pages,
                                event.num_v_pages};
  auto place = history.end();
  while (place != history.begin()) {
    const KvHistoryEvent& before = *(place - 1);
    if (before.is_resume() || before.num_tokens != added.num_tokens) break;
    if (!ComesBehind(before, added)) break;
    --place;
  }
  if (place != history.begin()) {
    KvHistoryEvent& before = *(place - 1);
    if (before.num_tokens == added.num_tokens && before.layer == added.layer &&
        before.from_bits == added.from_bits) {
      before.num_k_pages += added.num_k_pages;
      before.num_v_pages += added.num_v_pages;
      return;
    }
  }
  history.insert(place, added);
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
    hash.Update(event.is_resume()
                    ? fmt::format("resume {}\n", event.num_tokens)
                    : fmt::format("{} {} {} {} {}\n", event.num_tokens, event.layer,
                                  event.from_bits, event.num_k_pages, event.num_v_pages));
  }
  return hash.HexDigest().substr(0, 16);
}

std::vector<HalvingEvent> HalvingsFrom(const KvHistory& history, size_t begin) {
  std::vector<HalvingEvent> halvings;
  for (size_t i = begin; i < history.size() && !history[i].is_resume(); ++i) {
    const KvHistoryEvent& event = history[i];
    halvings.push_back({0, event.layer, event.num_tokens, event.from_bits, event.num_k_pages,
                        event.num_v_pages, 0});
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
  }
}

}  // namespace pmkvq
