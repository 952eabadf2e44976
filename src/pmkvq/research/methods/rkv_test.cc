// R-KV's choice against a scalar reading of the paper and the authors' code.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "support/evicting_driver.h"

namespace pmkvq {
namespace {

using testing_support::BytesAfter;
using testing_support::ExpectRefused;
using testing_support::kDriverGeometry;
using testing_support::Kept;
using testing_support::kTokenBytes;
using testing_support::MethodDriver;
using testing_support::Rows;

// One choice among `num_tokens` tokens, as the paper and the authors' code say.
std::vector<int64_t> RkvOracle(const Rows& rows, int64_t num_tokens, int64_t kv_head,
                               int64_t capacity, double lambda) {
  constexpr int64_t kWindow = 8;
  const int64_t num_old = num_tokens - kWindow;
  const auto key = [&](int64_t token, int64_t i) {
    return double{rows.k[static_cast<size_t>((token * 2 + kv_head) * 64 + i)]};
  };
  const auto softmax = [](std::vector<double> x) {
    const double total = std::accumulate(
        x.begin(), x.end(), 0.0, [](double sum, double value) { return sum + std::exp(value); });
    for (double& value : x) value = std::exp(value) / total;
    return x;
  };
  std::vector<double> importance(static_cast<size_t>(num_old), 0.0);
  for (int64_t row = num_old; row < num_tokens; ++row) {
    std::vector<double> scores;
    for (int64_t token = 0; token < num_old; ++token) {
      double largest = -1e300;
      for (int64_t head = 2 * kv_head; head < 2 * kv_head + 2; ++head) {
        double score = 0;
        for (int64_t i = 0; i < 64; ++i) {
          score += double{rows.q[static_cast<size_t>((row * 4 + head) * 64 + i)]} * key(token, i);
        }
        largest = std::max(largest, score / 8);
      }
      scores.push_back(largest);
    }
    const std::vector<double> weights = softmax(scores);
    for (size_t i = 0; i < weights.size(); ++i) importance[i] += weights[i] / kWindow;
  }
  std::vector<double> means(static_cast<size_t>(num_tokens), 0.0);
  for (int64_t row = 0; row < num_tokens; ++row) {
    std::vector<double> cosines;
    int64_t newest = 0;
    for (int64_t token = 0; token < num_tokens; ++token) {
      double product = 0, a = 0, b = 0;
      for (int64_t i = 0; i < 64; ++i) {
        product += key(row, i) * key(token, i);
        a += key(row, i) * key(row, i);
        b += key(token, i) * key(token, i);
      }
      cosines.push_back(token == row ? 0 : product / std::sqrt(a * b));
      if (cosines.back() > 0.5) newest = token;
    }
    cosines[static_cast<size_t>(newest)] = 0;
    for (size_t i = 0; i < cosines.size(); ++i) {
      means[i] += cosines[i] / static_cast<double>(num_tokens);
    }
  }
  const std::vector<double> redundancy = softmax(means);
  std::vector<std::pair<double, int64_t>> ranked;
  for (int64_t token = 0; token < num_old; ++token) {
    double pooled = 0;
    for (int64_t i = std::max<int64_t>(0, token - 3); i <= std::min(num_old - 1, token + 3); ++i) {
      pooled = std::max(pooled, importance[static_cast<size_t>(i)]);
    }
    ranked.emplace_back(-(lambda * pooled - (1 - lambda) * redundancy[static_cast<size_t>(token)]),
                        token);
  }
  std::sort(ranked.begin(), ranked.end());
  std::vector<int64_t> kept;
  for (int64_t i = 0; i < capacity - kWindow; ++i) {
    kept.push_back(ranked[static_cast<size_t>(i)].second);
  }
  for (int64_t token = num_old; token < num_tokens; ++token) kept.push_back(token);
  std::sort(kept.begin(), kept.end());
  return kept;
}

// Besides values, the newest queries of four heads.
TEST(Rkv, CountsItsQueries) {
  EXPECT_EQ(BytesAfter("rkv:capacity=48+every=32", 5), 5 * kTokenBytes + 5 * 4 * 64 * 2);
  EXPECT_EQ(BytesAfter("rkv:capacity=48+every=32", 70), (48 + 6) * kTokenBytes + 8 * 4 * 64 * 2);
  ExpectRefused("rkv:capacity=16+window=20", "expected more than the 20 tokens of the window");
}

TEST(Rkv, KeepsWhatMattersAndIsNotRedundant) {
  const Rows rows = testing_support::MakeRows(kDriverGeometry, 3, 0, 0, 96);
  for (const auto& [spec, lambda] : {std::pair("rkv:capacity=40+every=96", 0.1),
                                     std::pair("rkv:capacity=40+every=96+reference", 0.07),
                                     std::pair("rkv:capacity=40+every=96+lambda=1", 1.0),
                                     std::pair("rkv:capacity=40+every=96+lambda=0", 0.0)}) {
    MethodDriver driver(spec, kDriverGeometry, DType::kF32);
    driver.Append(90);
    driver.Append(6);
    for (int64_t head = 0; head < 2; ++head) {
      EXPECT_EQ(Kept(driver, head), RkvOracle(rows, 96, head, 40, lambda)) << spec;
    }
  }
}

}  // namespace
}  // namespace pmkvq
