// What happened to the cache of a request, in as far as its tokens depend on it: halvings of its
// pages, and resumes. Two requests with equal seeds and equal histories draw equal tokens.
//
// A history is in one form: events of one length are sorted and joined, and halvings that no
// Forward has read are left out. It does not say which pages were shared, nor for whose need they
// were halved. So the same bits have the same history.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "pmkvq/kv/kv_types.h"

namespace pmkvq {

struct KvHistoryEvent {
  static constexpr int64_t kResume = -1;

  // That the sequence held when pages were halved, before the next Forward; of a resume, when the
  // request gave up its place: all of them, and the newest drawn one, were then computed as a
  // prompt's tokens.
  int64_t num_tokens = 0;
  int64_t layer = kResume;
  int from_bits = 0;  // 16, 8 or 4.
  int64_t num_k_pages = 0;
  int64_t num_v_pages = 0;
  // The first of these pages, which follow one another; -1: the oldest ones that have from_bits.
  int64_t first_k_page = -1;
  int64_t first_v_page = -1;

  bool is_resume() const { return layer == kResume; }
  bool operator==(const KvHistoryEvent&) const = default;
};
using KvHistory = std::vector<KvHistoryEvent>;

void AddHalving(const HalvingEvent& event, KvHistory& history);
// The request gives up its place with so many tokens. One that computed its prompt begins anew, as
// if nothing had been halved since it began.
void AddPreemption(int64_t num_tokens, bool was_prefilling, KvHistory& history);
// It has ended with so many tokens: what was halved since it came to them, nothing has read.
void EndHistory(int64_t num_tokens, KvHistory& history);

// 16 hex digits; "" of an empty one.
std::string DigestOf(const KvHistory& history);

// The halvings from `begin` on, up to the next resume.
std::vector<HalvingEvent> HalvingsFrom(const KvHistory& history, size_t begin);

// Throws InvalidInput naming "kv_replay" and the event where it is no history of a model with so
// many blocks in a cache with this floor.
void CheckHistory(const KvHistory& history, int64_t num_layers, int floor_bits);

}  // namespace pmkvq
