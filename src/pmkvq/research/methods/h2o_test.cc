// H2O against a scalar reading, token by token.
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <set>

#include "support/evicting_driver.h"

namespace pmkvq {
namespace {

using testing_support::BytesAfter;
using testing_support::kDriverGeometry;
using testing_support::Kept;
using testing_support::kTokenBytes;
using testing_support::MethodDriver;
using testing_support::Rows;

// Token by token: attention over who is left, sums, the smallest of the old ones goes.
std::set<int64_t> H2oOracle(const Rows& rows, int64_t num_tokens, int64_t kv_head, int64_t capacity,
                            int64_t num_recent) {
  std::set<int64_t> kept;
  std::map<int64_t, double> sums;
  for (int64_t row = 0; row < num_tokens; ++row) {
    kept.insert(row);
    for (int64_t head = 2 * kv_head; head < 2 * kv_head + 2; ++head) {
      std::map<int64_t, double> weights;
      double total = 0;
      for (const int64_t token : kept) {
        double score = 0;
        for (int64_t i = 0; i < 64; ++i) {
          score += double{rows.q[static_cast<size_t>((row * 4 + head) * 64 + i)]} *
                   double{rows.k[static_cast<size_t>((token * 2 + kv_head) * 64 + i)]};
        }
        total += weights[token] = std::exp(score / 8);
      }
      for (const auto& [token, weight] : weights) sums[token] += weight / total;
    }
    if (std::ssize(kept) <= capacity) continue;
    int64_t smallest = -1;
    for (const int64_t token : kept) {
      if (token > row - num_recent) break;
      if (smallest < 0 || sums[token] <= sums[smallest]) smallest = token;
    }
    kept.erase(smallest);
  }
  return kept;
}

TEST(H2o, CountsASumOfEachKeptToken) {
  EXPECT_EQ(BytesAfter("h2o:capacity=50", 20), 20 * (kTokenBytes + 2 * 4));
  EXPECT_EQ(BytesAfter("h2o:capacity=50", 200), 50 * (kTokenBytes + 2 * 4));
}

TEST(H2o, KeepsHeavyHittersAndTheNewest) {
  MethodDriver driver("h2o:capacity=30+recent=0.4", kDriverGeometry, DType::kF32);
  for (int64_t n = 0; n < 120; ++n) driver.Append(1);
  const Rows rows = testing_support::MakeRows(kDriverGeometry, 3, 0, 0, 120);
  for (int64_t head = 0; head < 2; ++head) {
    const std::set<int64_t> expected = H2oOracle(rows, 120, head, 30, 12);
    EXPECT_EQ(Kept(driver, head), (std::vector<int64_t>(expected.begin(), expected.end())));
  }
}

}  // namespace
}  // namespace pmkvq
