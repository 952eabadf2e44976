// How long answers become: the part of them that is longer than so many tokens.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

namespace pmkvq {

// The survival function of lengths by Kaplan and Meier, in buckets of 128 tokens, over the last
// 2,000 requests. An answer that was cut (cancelled, max_tokens, the pool) is known to be at least
// as long as it is. Before there are any, lengths are taken to be lognormal, with a median of 6,144
// tokens and a sigma of 0.9; that counts as much as 20 requests.
class LengthForecast {
 public:
  // Answers are no longer than this.
  explicit LengthForecast(int64_t max_tokens);

  void Add(int64_t num_tokens, bool was_cut);
  // Of answers longer than 0 tokens the part that is longer than `num_tokens`: 1 at 0, falling.
  double Survival(int64_t num_tokens) const;

 private:
  struct Length {
    size_t bucket = 0;
    bool was_cut = false;
  };
  void Update() const;

  std::vector<double> prior_;  // Survival at the begin of each bucket; one more than buckets.
  std::deque<Length> lengths_;
  std::vector<int64_t> ended_;  // By bucket.
  std::vector<int64_t> cut_;
  mutable std::vector<double> survival_;  // As prior_.
  mutable bool is_current_ = false;
};

}  // namespace pmkvq
