// What methods that evict tokens share: when they do, whom they keep, and what that takes.
//
// A rule runs after every `every` tokens, counted from token 0, as if tokens came one by one: an
// append of many tokens is gone through from one such place to the next, so that the choice
// among n tokens does not depend on how they were cut into chunks. (The rows of an append have seen
// all tokens before them all the same.)
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "pmkvq/kv/simulated/cache_method.h"
#include "pmkvq/research/methods/simulated_method.h"

namespace pmkvq {

// Of each KV head `capacity` tokens are kept after every `every` tokens. In between, more.
struct PeriodicEviction {
  int64_t capacity = 0;
  int64_t every = 1;

  // Tokens of a KV head that are kept once `num_tokens` were appended.
  int64_t NumKept(int64_t num_tokens) const {
    const int64_t place = num_tokens / every * every;
    return place > capacity ? capacity + num_tokens - place : num_tokens;
  }
  ByteGrowth Growth() const { return {1, every}; }

  // Calls function(n) for every place n in first + 1 .. first + count where the rule runs.
  template <class Function>
  void ForEachPlace(int64_t first, int64_t count, const Function& function) const {
    for (int64_t n = (first / every + 1) * every; n <= first + count; n += every) function(n);
  }
};

// Tokens of a KV head that are kept, of the first `end`, oldest first.
std::vector<int64_t> KeptTokens(const SimulatedBlock& block, int64_t head, int64_t end);

// Evicts all of `tokens` but the `num_kept` with the largest scores; of equal scores the first
// token stays. scores[i] is that of tokens[i].
void KeepLargest(std::span<const double> scores, std::span<const int64_t> tokens, int64_t num_kept,
                 int64_t head, SimulatedBlock& block);

// Bytes of one token of one KV head at full precision, K and V.
inline int64_t HeadTokenBytes(const MethodContext& context) {
  return 2 * context.FloatBytes(1) / context.geometry.num_kv_heads;
}

// Queries of the newest tokens of a block, at most `window` of them.
class RecentQueries {
 public:
  explicit RecentQueries(int64_t window) : window_(window) {}

  // What came before; then the tokens of an append are looked at by At, and Push keeps the newest.
  void Push(const AppendedTokens& tokens, int64_t row_size);
  void Truncate(int64_t num_tokens, int64_t row_size);
  // [H, D] of a token of the last Push or of the append under way; null where it is not known.
  const float* At(int64_t token, const AppendedTokens& tokens, int64_t row_size) const;
  // Bytes of the queries of `num_tokens` tokens, which a cache would keep at full precision.
  static int64_t Bytes(const MethodContext& context, int64_t num_tokens);

 private:
  int64_t window_;
  int64_t first_ = 0;           // Token of the first row.
  std::vector<float> queries_;  // [tokens, H, D]
};

// SnapKV's score of tokens by the newest queries (arXiv 2404.14469, as published in code).
struct SnapScore {
  int64_t window = 8;         // Queries.
  int64_t kernel = 7;         // Of pooling, odd.
  bool takes_largest = true;  // Of a kernel; else the mean, zeros beyond the ends counting.

  // Of tokens `kept` (oldest first, all of the KV head before `end`) that lie before the window,
  // the last `window` tokens before `end`. For each query head of the KV head, the softmax weights
  // that the window's queries give (scale 1 / sqrt(D), each over the kept tokens up to its place)
  // are summed over queries and pooled along the tokens; the heads add up.
  std::vector<double> Of(int64_t head, std::span<const int64_t> kept, int64_t end,
                         const AppendedTokens& tokens, const RecentQueries& queries,
                         const UniformKvGeometry& geometry, const SimulatedBlock& block) const;
};

// Keys that several methods have: capacity, window, kernel, pool, every.
SpecKey CapacityKey(const std::string& fallback);
SpecKey EveryKey(const std::string& fallback, const std::string& help);
std::vector<SpecKey> SnapScoreKeys();
SnapScore ReadSnapScore(const MethodSpec& spec);
// Throws InvalidInput naming --kv where a part that is always kept does not leave room for others.
void CheckCapacity(const MethodSpec& spec, int64_t capacity, int64_t always_kept,
                   const std::string& what);

}  // namespace pmkvq
