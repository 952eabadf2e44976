// MiKV against a scalar reading of the paper: accumulated attention, who is important, demotion.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "pmkvq/research/methods/affine.h"
#include "support/method_rule.h"

namespace pmkvq {
namespace {

using testing_support::BytesAfter;
using testing_support::ExpectRefused;
using testing_support::KeysAndValues;
using testing_support::MakeRows;
using testing_support::MethodDriver;
using testing_support::Rows;

constexpr UniformKvGeometry kGeometry{1, 4, 2, 16};
constexpr size_t kDim = 16;
constexpr size_t kHeads = 4;
constexpr size_t kKvHeads = 2;

struct Rule {
  int bits;
  int high;
  double ratio;
  int64_t group;
  bool reference;
};

// Keeps its own copy of what is stored, written for clarity: sets, and one loop per sentence.
class Oracle {
 public:
  explicit Oracle(const Rule& rule) : rule_(rule), scores_(kKvHeads), demoted_(kKvHeads) {}

  // `rows`: q, k, v of the new tokens, as handed over; `stored`: the same, k and v in f16.
  void Append(const Rows& rows, const Rows& stored, size_t count) {
    AddAttention(rows, count);
    k.insert(k.end(), stored.k.begin(), stored.k.end());
    v.insert(v.end(), stored.v.begin(), stored.v.end());
    const size_t old_size = size_;
    size_ += count;
    for (size_t i = 0; i < rows.q.size() && beta_.empty(); ++i) {
      float& most = max_q_[i / kDim % kHeads / 2][i % kDim];
      most = std::max(most, std::abs(rows.q[i]));
    }
    for (size_t i = 0; i < stored.k.size() && beta_.empty(); ++i) {
      float& most = max_k_[i / kDim % kKvHeads][i % kDim];
      most = std::max(most, std::abs(stored.k[i]));
    }
    if (size_ < 32) return;
    size_t first_narrow = old_size;
    if (beta_.empty()) {
      first_narrow = 0;
      for (size_t i = 0; i < kKvHeads * kDim; ++i) {
        beta_.push_back(std::sqrt(max_q_[i / kDim][i % kDim] / max_k_[i / kDim][i % kDim]));
      }
    }
    for (size_t head = 0; head < kKvHeads; ++head) {
      if (rule_.high == 8) {
        for (size_t t = first_narrow; t < size_; ++t) Quantize(t, head, 8);
      }
      std::set<size_t>& demoted = demoted_[head];
      for (const size_t t : Unimportant(head)) {
        if (demoted.insert(t).second) Quantize(t, head, rule_.bits);
      }
    }
  }

  std::vector<float> k, v;

 private:
  void AddAttention(const Rows& rows, size_t count) {
    for (auto& scores : scores_) scores.resize(size_ + count);
    for (size_t row = 0; row < count; ++row) {
      for (size_t head = 0; head < kHeads; ++head) {
        std::vector<double> weights;
        for (size_t m = 0; m <= size_ + row; ++m) {
          const float* key = m < size_ ? k.data() + m * 32 : rows.k.data() + (m - size_) * 32;
          double score = 0;
          for (size_t i = 0; i < kDim; ++i) {
            score +=
                double{rows.q[(row * kHeads + head) * kDim + i]} * double{key[head / 2 * kDim + i]};
          }
          weights.push_back(std::exp(score / 4));
        }
        double total = 0;
        for (const double weight : weights) total += weight;
        for (size_t m = 0; m < weights.size(); ++m) {
          for (size_t kv_head = 0; kv_head < kKvHeads; ++kv_head) {
            if (rule_.reference || kv_head == head / 2) scores_[kv_head][m] += weights[m] / total;
          }
        }
      }
    }
  }

  // Everything but the newest half and the heaviest other tokens that have not been demoted yet.
  std::vector<size_t> Unimportant(size_t head) const {
    const auto important = static_cast<size_t>(rule_.ratio * static_cast<double>(size_));
    const size_t newest = rule_.reference ? 0 : important - important / 2;
    std::vector<size_t> older;
    for (size_t t = 0; t < size_ - newest; ++t) {
      if (!demoted_[head].contains(t)) older.push_back(t);
    }
    std::sort(older.begin(), older.end(),
              [&](size_t a, size_t b) { return scores_[head][a] > scores_[head][b]; });
    const size_t heavy = std::min(older.size(), important - newest);
    return {older.begin() + static_cast<std::ptrdiff_t>(heavy), older.end()};
  }

  void Quantize(size_t token, size_t head, int bits) {
    float* key = k.data() + (token * kKvHeads + head) * kDim;
    const float* beta = beta_.data() + head * kDim;
    for (size_t i = 0; i < kDim; ++i) key[i] *= beta[i];
    DamageRow({bits, DType::kF16}, rule_.group, 16, key);
    for (size_t i = 0; i < kDim; ++i) key[i] /= beta[i];
    DamageRow({bits, DType::kF16}, rule_.group, 16, v.data() + (token * kKvHeads + head) * kDim);
  }

  Rule rule_;
  size_t size_ = 0;
  std::vector<std::vector<double>> scores_;
  std::vector<std::set<size_t>> demoted_;
  float max_q_[kKvHeads][kDim] = {};
  float max_k_[kKvHeads][kDim] = {};
  std::vector<float> beta_;
};

struct Case {
  const char* spec;
  Rule rule;
};

class MikvTest : public testing::TestWithParam<Case> {};

TEST_P(MikvTest, FollowsThePaperTokenByToken) {
  const auto& [spec, rule] = GetParam();
  MethodDriver driver(spec, kGeometry);
  Oracle oracle(rule);
  std::vector<int64_t> chunks = {9, 31, 5};
  chunks.insert(chunks.end(), 60, 1);
  int64_t first = 0;
  for (const int64_t chunk : chunks) {
    driver.Append(chunk);
    Rows stored = MakeRows(kGeometry, 3, 0, first, chunk);
    const Rows rows = stored;
    for (float& x : stored.k) x = ToFloat(ToF16(x));
    for (float& x : stored.v) x = ToFloat(ToF16(x));
    oracle.Append(rows, stored, static_cast<size_t>(chunk));
    first += chunk;
    const KeysAndValues found = driver.Stored();
    ASSERT_EQ(found.first.size(), oracle.k.size());
    for (size_t i = 0; i < oracle.k.size(); ++i) {
      ASSERT_NEAR(found.first[i], oracle.k[i], 1e-5f) << first << " tokens, token " << i / 32;
      ASSERT_NEAR(found.second[i], oracle.v[i], 1e-5f) << first << " tokens, token " << i / 32;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Specs, MikvTest,
    testing::Values(Case{"mikv", {2, 16, 0.2, 8, false}},
                    Case{"mikv:bits=4+high=8+ratio=0.5", {4, 8, 0.5, 8, false}},
                    Case{"mikv:reference", {2, 16, 0.0, 16, true}},
                    Case{"mikv:reference+ratio=0.3+bits=3", {3, 16, 0.3, 16, true}}));

TEST(Mikv, BytesByHand) {
  // 2 KV heads of 64, groups of 32. A token at 16 bits takes 512 bytes, at 2 bits 2 * 4 groups *
  // (8 + 4) = 96, at 8 bits 2 * 4 * (32 + 4) = 288. The balancer takes 256, its maxima 512.
  EXPECT_EQ(BytesAfter("mikv", 10), 10 * 512 + /*tags*/ 3 + /*scores*/ 80 + 512);
  EXPECT_EQ(BytesAfter("mikv", 31), 31 * 512 + 8 + 248 + 512);
  EXPECT_EQ(BytesAfter("mikv", 32), 6 * 512 + 26 * 96 + 8 + 48 + 256);
  EXPECT_EQ(BytesAfter("mikv", 500), 100 * 512 + 400 * 96 + 125 + 800 + 256);
  EXPECT_EQ(BytesAfter("mikv:high=8", 500), 100 * 288 + 400 * 96 + 125 + 800 + 256);
  // One group a head: 2 * 2 * (16 + 4) = 80; no tags and no scores where all tokens are alike.
  EXPECT_EQ(BytesAfter("mikv:reference", 500), 500 * 80 + 256);
  EXPECT_EQ(BytesAfter("mikv:reference+ratio=0.5", 500), 250 * 512 + 250 * 80 + 63 + 1000 + 256);
}

TEST(Mikv, ContinuesAfterTruncate) {
  MethodDriver driver("mikv");
  driver.Append(100);
  const int64_t bytes = driver.BlockBytes();
  driver.store().Truncate(driver.seq(), 40);
  EXPECT_EQ(driver.store().NumTokens(driver.seq()), 40);
  driver.Append(60);
  for (const float x : driver.Stored().first) ASSERT_TRUE(std::isfinite(x));
  EXPECT_EQ(driver.BlockBytes(), bytes);
}

TEST(Mikv, ChannelsOfZerosStayZero) {
  MethodDriver driver("mikv");
  const std::vector<float> zeros(40 * 4 * 64, 0.0f);
  std::vector<float> out(zeros.size());
  ASSERT_EQ(driver.store().Reserve(driver.seq(), 40), ReserveResult::kReserved);
  driver.store().BeginForward({{driver.seq(), 40}});
  driver.store().AppendAndAttend(0, zeros.data(), zeros.data(), zeros.data(), out.data());
  driver.store().EndForward();
  EXPECT_EQ(driver.Stored().first, std::vector<float>(40 * 2 * 64, 0.0f));
  EXPECT_EQ(driver.Stored().second, std::vector<float>(40 * 2 * 64, 0.0f));
}

TEST(Mikv, NamesWhatIsWrong) {
  ExpectRefused("mikv:bits=8", "bits=8, expected one of 4, 3, 2");
  ExpectRefused("mikv:high=4", "high=4, expected one of 16, 8");
  ExpectRefused("mikv:ratio=1.5", "ratio=1.5, expected a number in [0, 1]");
  ExpectRefused("mikv:window=1",
                "unknown key 'window' for mikv, expected bits=, high=, ratio=, reference");
}

}  // namespace
}  // namespace pmkvq
