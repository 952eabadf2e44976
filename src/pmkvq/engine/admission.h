// Which requests a pool has room for, and which one gives up its place where it has none. Pure
// decisions: knows no store and no requests, only their lengths.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "pmkvq/engine/length_forecast.h"
#include "pmkvq/engine/pool_schedule.h"
#include "pmkvq/kv/cache_config.h"

namespace pmkvq {

// A request as admission sees it.
struct PoolLoad {
  int64_t num_held = 0;   // Tokens that it holds, or will hold before it draws the next.
  int64_t num_drawn = 0;  // Of these.
  int64_t most_held = 0;  // When it has drawn all that it may.
  int min_bits = 0;       // No page of it goes below; 0: the pool's floor.
};

// One that may give up its place.
struct PoolHolder {
  int64_t id = 0;
  int64_t priority = 0;  // Higher ones give up first.
  int64_t num_drawn = 0;
  int64_t num_preemptions = 0;
};

// A request that has given up its place so often comes back only where it will not have to again.
inline constexpr int64_t kMostPreemptions = 2;

class Admission {
 public:
  // `target_bits`: 4 to 16, a mean width. Throws InvalidInput (--kv-target, --kv-floor) where the
  // floor of pages that can be halved does not lie below it.
  Admission(const CacheConfig& config, PoolAdmission kind, double target_bits, int64_t max_len);

  // Whether one more request fits beside those that run. `is_guaranteed`: by the rule of
  // kGuaranteed, whatever the kind. One alone always does.
  bool Admits(std::span<const PoolLoad> running, const PoolLoad& candidate,
              bool is_guaranteed) const;
  // The most bytes that these requests are expected to take together, at the target width:
  // max over h of the sum of bytes(held + h) * L(drawn + h) / L(drawn).
  double ExpectedBytes(std::span<const PoolLoad> loads) const;
  // What they take at the floor with all the tokens that they may hold.
  int64_t GuaranteedBytes(std::span<const PoolLoad> loads) const;
  // The smallest pool that holds so many tokens, 1 to max_len, of a request.
  int64_t SmallestPool(int64_t num_tokens, int min_bits) const;

  // The length of an answer that has ended.
  void AddLength(int64_t num_tokens, bool was_cut) { forecast_.Add(num_tokens, was_cut); }

 private:
  size_t NumPagesOf(int64_t num_tokens) const;

  CacheConfig config_;
  PoolAdmission kind_;
  int64_t max_len_;
  LengthForecast forecast_;
  // By WidthIndex of the least width, then by number of pages.
  std::array<std::vector<double>, 4> bytes_at_target_;
  std::array<std::vector<int64_t>, 4> bytes_at_floor_;
};

// The one that gives up its place: first one that has not done so kMostPreemptions times, then the
// highest priority value, then the fewest drawn tokens, then the youngest. Nothing where there are
// less than two: one alone has the pool to itself.
std::optional<int64_t> ChooseVictim(std::span<const PoolHolder> holders);

}  // namespace pmkvq
