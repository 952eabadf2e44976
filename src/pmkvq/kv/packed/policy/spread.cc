#include "pmkvq/kv/packed/policy/spread.h"

#include <algorithm>
#include <numeric>

#include "pmkvq/base/check.h"

namespace pmkvq {
namespace {

std::vector<int64_t> LayOutBackwards(std::span<const int64_t> piece_bytes, int64_t bytes_at_event,
                                     int64_t limit_bytes) {
  std::vector<int64_t> tokens(piece_bytes.size());
  int64_t token = 0;
  int64_t token_bytes = bytes_at_event;
  for (size_t i = piece_bytes.size(); i-- > 0;) {
    if (token_bytes > 0 && token_bytes + piece_bytes[i] > limit_bytes) {
      ++token;
      token_bytes = 0;
    }
    token_bytes += piece_bytes[i];
    tokens[i] = token;
  }
  return tokens;
}

}  // namespace

std::vector<int64_t> SpreadBackwards(std::span<const int64_t> piece_bytes, int64_t bytes_at_event,
                                     int64_t limit_bytes, int64_t tokens_before) {
  PMKVQ_CHECK(tokens_before >= 0);
  std::vector<int64_t> tokens = LayOutBackwards(piece_bytes, bytes_at_event, limit_bytes);
  if (tokens.empty() || tokens.front() <= tokens_before) return tokens;
  // Every token but the earliest has less room left than the largest piece takes, so with this
  // limit each does more than an even share.
  const int64_t largest = *std::max_element(piece_bytes.begin(), piece_bytes.end());
  const int64_t sum = std::accumulate(piece_bytes.begin(), piece_bytes.end(), int64_t{0});
  const int64_t share = (sum + bytes_at_event) / (tokens_before + 1) + largest;
  tokens = LayOutBackwards(piece_bytes, bytes_at_event, std::max(limit_bytes, share));
  PMKVQ_CHECK(tokens.front() <= tokens_before);
  return tokens;
}

}  // namespace pmkvq
