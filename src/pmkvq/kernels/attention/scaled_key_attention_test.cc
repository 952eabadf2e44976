#include "pmkvq/kernels/attention/scaled_key_attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "pmkvq/kernels/attention/causal_tiles.h"
#include "pmkvq/kernels/kv_quant/kv_quant.h"
#include "support/target_suite.h"

namespace pmkvq {
namespace {

PMKVQ_TARGET_SUITE(ScaledKeyAttentionTest, internal::CausalTilesTarget,
                   "kernels/attention/causal_tiles.cc", "kernels/kv_quant/fake_quant_columns.cc");

struct Sequence {
  Sequence(int64_t tokens, int64_t heads, int64_t kv_heads, int64_t dim, int64_t window = 0)
      : shape{tokens, heads, kv_heads, dim, 1.0 / std::sqrt(static_cast<double>(dim)), window},
        q(Normal(tokens * heads * dim)),
        k(Normal(tokens * kv_heads * dim)),
        v(Normal(tokens * kv_heads * dim)),
        reference(Normal(tokens * heads * dim)),
        scales(Normal(kv_heads * dim / 2)) {
    for (float& scale : scales) scale = std::exp(scale);
  }
  std::vector<float> Normal(int64_t count) {
    std::normal_distribution<float> normal;
    std::vector<float> x(static_cast<size_t>(count));
    for (float& value : x) value = normal(random);
    return x;
  }
  float Scale(int64_t kv_head, int64_t i) const {
    const int64_t half = shape.head_dim / 2;
    return scales[static_cast<size_t>(kv_head * half + i % half)];
  }
  std::vector<float> Run(int64_t group, int bits, int threads) const {
    ScaledKeyAttention attention;
    attention.SetSequence(shape, group, k.data(), v.data(), threads);
    std::vector<float> out(q.size());
    attention.Run(q.data(), scales.data(), bits, reference.data(), out.data(), threads);
    return out;
  }

  std::mt19937 random{7};
  CausalAttentionShape shape;
  std::vector<float> q, k, v, reference, scales;
};

// The definition in double, from scaled queries and keys that are quantised row by row.
std::vector<double> Expected(const Sequence& s, int64_t group, int bits) {
  const auto [tokens, heads, kv_heads, dim, scale, window] = s.shape;
  std::vector<float> keys = s.k;
  for (size_t i = 0; i < keys.size(); ++i) {
    const auto index = static_cast<int64_t>(i);
    keys[i] /= s.Scale(index / dim % kv_heads, index % dim);
  }
  FakeQuantize({.group = group, .bits = bits}, keys.data(), tokens * kv_heads * dim / group,
               keys.data());
  std::vector<double> q(s.q.begin(), s.q.end());
  for (size_t i = 0; i < q.size(); ++i) {
    const auto index = static_cast<int64_t>(i);
    q[i] *= static_cast<double>(s.Scale(index / dim % heads / (heads / kv_heads), index % dim));
  }
  const std::vector<double> k(keys.begin(), keys.end());
  const std::vector<double> v(s.v.begin(), s.v.end());
  std::vector<double> out(q.size());
  CausalAttention(s.shape, q.data(), k.data(), v.data(), out.data(), 1);
  for (size_t i = 0; i < out.size(); ++i) out[i] -= static_cast<double>(s.reference[i]);
  return out;
}

// Values are of order 1. A score sums D products of scaled queries and keys that add up to some
// hundred, so that it is off by about 1e-5, and a weight by that share of itself.
constexpr double kTolerance = 2e-4;

TEST_P(ScaledKeyAttentionTest, MatchesTheDefinition) {
  struct Case {
    int64_t tokens, heads, kv_heads, dim, group, window = 0;
  };
  for (const Case& c : {Case{1, 1, 1, 8, 8}, Case{33, 4, 2, 24, 24}, Case{129, 6, 2, 40, 40},
                        Case{70, 2, 1, 256, 128}, Case{129, 6, 2, 40, 40, 50}}) {
    const Sequence sequence(c.tokens, c.heads, c.kv_heads, c.dim, c.window);
    for (const int bits : {16, 8, 4, 2}) {
      const std::vector<float> found = sequence.Run(c.group, bits, 1);
      const std::vector<double> expected = Expected(sequence, c.group, bits);
      for (size_t i = 0; i < found.size(); ++i) {
        ASSERT_NEAR(found[i], expected[i], kTolerance)
            << c.tokens << " tokens, D " << c.dim << ", " << bits << " bits, at " << i;
      }
    }
  }
}

TEST_P(ScaledKeyAttentionTest, BitsDoNotDependOnThreads) {
  const Sequence sequence(150, 4, 2, 32);
  EXPECT_EQ(sequence.Run(32, 4, 1), sequence.Run(32, 4, 3));
}

}  // namespace
}  // namespace pmkvq
