// What a sequence may take of a cache, and which lengths that holds; known without making the
// cache, and the same question for packed and simulated ones.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "pmkvq/kv/cache_config.h"
#include "pmkvq/kv/simulated/simulated_cache.h"

namespace pmkvq {

class KvBudget {
 public:
  explicit KvBudget(const CacheConfig& packed);
  // Of a store that counts bytes at the floor in its own way and is asked token by token whether it
  // has room, so that any length may be tried.
  KvBudget(const CacheConfig& packed, BytesAtFloor floor_bytes);
  KvBudget(const SimulatedConfig& simulated, std::shared_ptr<const CacheMethod> method);

  // Of one sequence, all blocks; of a pool, which one sequence alone may have whole.
  int64_t total_bytes() const;
  bool has_pool() const { return method_ == nullptr && packed_.pool.bytes > 0; }
  // Whether `num_tokens` tokens fit every block at the least that the method can do, or any length
  // may be tried.
  bool Holds(int64_t num_tokens) const;
  // The smallest --kv-budget, or --kv-pool, that holds `num_tokens` tokens. Call when this one does
  // not.
  int64_t SmallestThatHolds(int64_t num_tokens) const;
  // For messages: " even at 2 bits", or nothing for a method of fixed rate.
  std::string AtBest() const;

  // The packed cache's configuration; null for a simulated cache.
  const CacheConfig* packed() const { return method_ == nullptr ? &packed_ : nullptr; }

 private:
  const std::vector<int64_t>& block_budgets() const {
    return method_ == nullptr ? packed_.budget_bytes : simulated_.budget_bytes;
  }
  // Most that a block takes at any length up to `num_tokens`, at the least the method can do.
  int64_t BlockNeeds(int64_t layer, int64_t num_tokens) const;
  // Of all blocks, where the method bounds them together.
  std::optional<int64_t> SequenceNeeds(int64_t num_tokens) const;

  CacheConfig packed_;
  BytesAtFloor floor_bytes_ = FloorBytes;
  bool any_length_ = false;
  SimulatedConfig simulated_;
  std::shared_ptr<const CacheMethod> method_;  // Null: packed.
};

}  // namespace pmkvq
