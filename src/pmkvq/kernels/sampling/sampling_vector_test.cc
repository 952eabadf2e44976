#include "pmkvq/kernels/sampling/sampling_vector.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "pmkvq/base/random.h"
#include "pmkvq/kernels/sampling/batch_sampler.h"
#include "pmkvq/kernels/sampling/candidates.h"
#include "pmkvq/kernels/sampling/logit_rules.h"
#include "pmkvq/kernels/sampling/sampling.h"
#include "support/target_suite.h"

namespace pmkvq {
namespace {

PMKVQ_TARGET_SUITE(SamplingVectorTest, internal::SamplingKernelTarget,
                   "kernels/sampling/sampling_vector.cc");

constexpr float kInf = std::numeric_limits<float>::infinity();

// Sum of twelve uniform numbers: near enough to a normal distribution, with tails.
std::vector<float> NormalValues(int64_t count, double deviation, uint64_t seed) {
  Random random(seed);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) {
    double sum = -6.0;
    for (int i = 0; i < 12; ++i) sum += random.Uniform();
    value = static_cast<float>(sum * deviation);
  }
  return values;
}

const int64_t kCounts[] = {1, 2, 15, 16, 17, 255, 256, 257, 511, 1000, 5003};

TEST_P(SamplingVectorTest, ScanFindsMaximaAndMagnitude) {
  for (const int64_t count : kCounts) {
    auto x = NormalValues(count, 3.0, 1);
    std::vector<float> block_max(static_cast<size_t>(internal::NumSampleBlocks(count)));
    const auto largest = [&] {
      uint32_t magnitude = 0;
      for (const float v : x) {
        magnitude = std::max(magnitude, std::bit_cast<uint32_t>(v) & 0x7fffffffu);
      }
      return magnitude;
    };
    ASSERT_EQ(internal::ScanBlocks(x.data(), count, block_max.data()), largest());
    for (size_t b = 0; b < block_max.size(); ++b) {
      const auto begin = x.begin() + static_cast<std::ptrdiff_t>(b) * internal::kSampleBlock;
      const auto end = std::min(begin + internal::kSampleBlock, x.end());
      ASSERT_EQ(block_max[b], *std::max_element(begin, end)) << count << ", block " << b;
    }
    for (const float odd : {-kInf, kInf, std::nanf(""), -std::nanf("")}) {
      for (const int64_t place : {int64_t{0}, count / 2, count - 1}) {
        const float before = std::exchange(x[static_cast<size_t>(place)], odd);
        ASSERT_EQ(internal::ScanBlocks(x.data(), count, block_max.data()), largest())
            << count << ", " << odd << " at " << place;
        x[static_cast<size_t>(place)] = before;
      }
    }
  }
}

TEST_P(SamplingVectorTest, BlockSumsHaveTheBitsOfTheDefinition) {
  for (const int64_t count : kCounts) {
    for (const double deviation : {0.0, 1.0, 8.0, 60.0, 1e8}) {
      auto x = NormalValues(count, deviation, 5);
      if (count > 20) x[7] = -kInf;
      if (count > 300) x[290] = x[270];
      const auto num_blocks = static_cast<size_t>(internal::NumSampleBlocks(count));
      std::vector<float> block_max(num_blocks);
      internal::ScanBlocks(x.data(), count, block_max.data());
      std::vector<double> sums(num_blocks);
      std::vector<double> expected(num_blocks);
      internal::BlockExpSums(x.data(), count, block_max.data(), sums.data());
      ref::BlockExpSums(x.data(), count, block_max.data(), expected.data());
      ASSERT_EQ(sums, expected) << count << ", deviation " << deviation;
      for (size_t b = 0; b < num_blocks; ++b) {
        double exact = 0.0;
        for (int64_t i = static_cast<int64_t>(b) * internal::kSampleBlock;
             i < std::min<int64_t>(count, static_cast<int64_t>(b + 1) * internal::kSampleBlock);
             ++i) {
          const float value = x[static_cast<size_t>(i)];
          exact += std::exp(static_cast<double>(value) - static_cast<double>(block_max[b]));
        }
        ASSERT_NEAR(sums[b], exact, 4e-7 * exact);
      }
    }
  }
  // A block of one value: its exponential is exactly 1 each time.
  const std::vector<float> same(600, 3.25f);
  const std::vector<float> block_max(3, 3.25f);
  std::vector<double> sums(3);
  internal::BlockExpSums(same.data(), 600, block_max.data(), sums.data());
  EXPECT_EQ(sums, (std::vector<double>{256, 256, 88}));
}

TEST_P(SamplingVectorTest, FineSumsHaveTheBitsOfTheDefinition) {
  for (const int64_t count : kCounts) {
    for (const double deviation : {0.0, 1.0, 8.0, 1e8}) {
      auto x = NormalValues(count, deviation, 2);
      if (count > 20) x[7] = -kInf;
      const float max = *std::max_element(x.begin(), x.end());
      const auto num_blocks = static_cast<size_t>(internal::NumSampleBlocks(count));
      std::vector<float> block_max(num_blocks);
      internal::ScanBlocks(x.data(), count, block_max.data());
      for (const double scale : {1.0, 1.0 / 0.6, 0.5}) {
        const float cut = internal::FloatNotBelow(static_cast<double>(max) - 44.0 / scale);
        std::vector<double> sums(num_blocks);
        std::vector<double> expected(num_blocks);
        internal::FineExpSums(x.data(), count, block_max.data(), max, scale, cut, sums.data());
        ref::ExpSums(x.data(), count, max, scale, cut, expected.data());
        ASSERT_EQ(sums, expected) << count << ", deviation " << deviation;
        for (size_t b = 0; b < num_blocks; ++b) {
          double exact = 0.0;
          for (int64_t i = static_cast<int64_t>(b) * internal::kSampleBlock;
               i < std::min<int64_t>(count, static_cast<int64_t>(b + 1) * internal::kSampleBlock);
               ++i) {
            const float value = x[static_cast<size_t>(i)];
            if (value < cut) continue;
            exact += std::exp((static_cast<double>(value) - static_cast<double>(max)) * scale);
          }
          ASSERT_NEAR(sums[b], exact, 4e-14 * exact);
        }
      }
    }
  }
}

TEST_P(SamplingVectorTest, RoughSumsStayWithinTheirBound) {
  for (const int64_t count : kCounts) {
    for (const double deviation : {0.0, 0.01, 1.0, 3.0, 12.0, 1e4, 1e30}) {
      for (const double temperature : {1e-6, 0.1, 0.6, 1.0, 7.0, 1e9}) {
        auto x = NormalValues(count, deviation, 3);
        if (deviation == 1e4) {  // Far from 0, where products of value and 1 / temperature are.
          for (float& value : x) value = 3e4f + value / 1e4f;
        }
        if (count > 20) x[7] = -kInf;
        const float max = *std::max_element(x.begin(), x.end());
        const auto num_blocks = static_cast<size_t>(internal::NumSampleBlocks(count));
        std::vector<float> block_max(num_blocks);
        internal::ScanBlocks(x.data(), count, block_max.data());
        const float cut = internal::FloatNotBelow(static_cast<double>(max) - 30.0 * temperature);
        std::vector<double> sums(num_blocks);
        const float lowest_block =
            std::max(cut, internal::FloatNotBelow(static_cast<double>(max) - 4.0 * temperature));
        internal::RoughExpSums(x.data(), count, block_max.data(), max, 1.0 / temperature, cut,
                               lowest_block, sums.data());
        for (size_t b = 0; b < num_blocks; ++b) {
          double exact = 0.0;
          for (int64_t i = static_cast<int64_t>(b) * internal::kSampleBlock;
               i < std::min<int64_t>(count, static_cast<int64_t>(b + 1) * internal::kSampleBlock);
               ++i) {
            const float value = x[static_cast<size_t>(i)];
            if (value >= cut) exact += internal::WeightOf(value, max, temperature);
          }
          if (block_max[b] < lowest_block) exact = 0.0;
          ASSERT_NEAR(sums[b], exact, internal::kRoughSumError * exact)
              << count << ", deviation " << deviation << ", temperature " << temperature;
        }
      }
    }
  }
}

TEST_P(SamplingVectorTest, GatherTakesWhatReachesTheThreshold) {
  for (const int64_t count : kCounts) {
    auto x = NormalValues(count, 3.0, 4);
    x[static_cast<size_t>(count / 3)] = -kInf;
    for (const float threshold : {-100.0f, 0.0f, x[0], 4.0f, 100.0f}) {
      std::vector<int32_t> ids(static_cast<size_t>(count));
      ids.resize(static_cast<size_t>(
          internal::GatherAtLeast(x.data(), count, threshold, 1000, ids.data())));
      std::vector<int32_t> expected;
      for (int64_t i = 0; i < count; ++i) {
        if (x[static_cast<size_t>(i)] >= threshold) {
          expected.push_back(1000 + static_cast<int32_t>(i));
        }
      }
      ASSERT_EQ(ids, expected) << count << ", threshold " << threshold;
    }
  }
}

// Rows of all kinds that the bounds may get wrong.
std::vector<std::vector<float>> OddRows() {
  std::vector<std::vector<float>> rows;
  rows.push_back({0.5f});
  rows.push_back(std::vector<float>(3000, 0.5f));
  rows.push_back({-kInf, 0.0f, -kInf, 0.0f});
  rows.push_back({0.0f, 1e-30f, -1e-30f, 1e-20f});
  rows.push_back({3e38f, -3e38f, 2.9e38f, 3e38f});
  rows.push_back({-3.4e38f, -3.3e38f, -3.4e38f});
  for (const double deviation : {1e-7, 0.1, 1.0, 3.0, 10.0}) {
    for (const int64_t count : {7, 300, 2000, 20000}) {
      rows.push_back(NormalValues(count, deviation, static_cast<uint64_t>(count)));
      auto coarse = rows.back();  // Many ties.
      for (float& value : coarse) value = std::round(value * 2.0f) / 2.0f;
      rows.push_back(coarse);
      for (size_t i = 0; i < coarse.size(); i += 2) coarse[i] = -kInf;
      coarse[1] += 20.0f;  // One that is nearly certain.
      rows.push_back(coarse);
    }
  }
  return rows;
}

TEST_P(SamplingVectorTest, EveryTokenIsThatOfTheDefinition) {
  std::vector<SamplingParams> all;
  for (const double temperature : {0.0, 1e-40, 1e-6, 0.6, 1.0, 3.0, 1e8, 1e40}) {
    for (const int64_t top_k : {0, 1, 20, 300, 100000}) {
      for (const double top_p : {1e-9, 0.5, 0.95, 1.0 - 1e-12, 1.0}) {
        for (const double min_p : {0.0, 1e-310, 0.05, 1.0}) {
          all.push_back({temperature, top_k, top_p, min_p});
        }
      }
    }
  }
  const auto rows = OddRows();
  Random choice(11);
  for (size_t r = 0; r < rows.size(); ++r) {
    const std::vector<float>& row = rows[r];
    const int num_draws = row.size() > 10000 ? 60 : 300;
    for (int draw = 0; draw < num_draws; ++draw) {
      const SamplingParams& params = all[choice.Below(all.size())];
      Random random(choice.Next());
      Random same = random;
      const auto token = SampleToken(params, row.data(), static_cast<int64_t>(row.size()), random);
      const auto expected =
          ref::SampleToken(params, row.data(), static_cast<int64_t>(row.size()), same);
      ASSERT_EQ(token, expected) << "row " << r << ", temperature " << params.temperature
                                 << ", top_k " << params.top_k << ", top_p " << params.top_p
                                 << ", min_p " << params.min_p;
      ASSERT_EQ(random.Next(), same.Next());
    }
  }
}

// Also where many tokens are as likely as the last of the likeliest.
TEST_P(SamplingVectorTest, LogprobsHaveTheBitsOfTheDefinition) {
  BatchSampler sampler;
  Random choice(12);
  for (std::vector<float>& logits : OddRows()) {
    const auto vocab_size = static_cast<int64_t>(logits.size());
    if (std::find(logits.begin(), logits.end(), -kInf) != logits.end()) continue;
    for (const int64_t num_top : {0, 1, 5, 20, 300}) {
      const SamplingParams params{1.0, 0, 1.0, 0.0};
      Random random(choice.Next());
      SamplingRow row;
      row.logits = logits.data();
      row.params = &params;
      row.random = &random;
      row.num_logprobs = num_top;
      const SampledRow drawn = sampler.Sample({&row, 1}, vocab_size, 2).front();
      ASSERT_EQ(drawn.outcome, SamplingOutcome::kDrawn);
      const TokenLogprobs& found = drawn.logprobs.value();
      const TokenLogprobs expected =
          ref::LogprobsOf(logits.data(), vocab_size, drawn.token, num_top);
      ASSERT_EQ(found.drawn.logprob, expected.drawn.logprob) << "V " << vocab_size;
      ASSERT_EQ(found.top.size(), expected.top.size());
      for (size_t i = 0; i < expected.top.size(); ++i) {
        ASSERT_EQ(found.top[i].token, expected.top[i].token) << i << " of V " << vocab_size;
        ASSERT_EQ(found.top[i].logprob, expected.top[i].logprob);
      }
      // Against the plain formula, where doubles tell the logits apart.
      const double max = static_cast<double>(*std::max_element(logits.begin(), logits.end()));
      if (std::abs(max) > 1e6) continue;
      double sum = 0.0;
      for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - max);
      ASSERT_NEAR(
          found.drawn.logprob,
          static_cast<double>(logits[static_cast<size_t>(drawn.token)]) - max - std::log(sum),
          ref::kLogprobError);
    }
  }
}

// The usual settings on rows like a language model's, many draws of each row.
TEST_P(SamplingVectorTest, ManyDrawsOfUsualRows) {
  constexpr int64_t kVocab = 4000;
  for (uint64_t seed = 0; seed < 4; ++seed) {
    const auto row = NormalValues(kVocab, 3.0, seed);
    for (const SamplingParams& params : {SamplingParams{0.6, 0, 0.95, 0},
                                         {1.0, 0, 1.0, 0},
                                         {0.6, 20, 0.95, 0},
                                         {0.8, 0, 1.0, 0.05}}) {
      Random random(seed);
      Random same(seed);
      for (int draw = 0; draw < 500; ++draw) {
        ASSERT_EQ(SampleToken(params, row.data(), kVocab, random),
                  ref::SampleToken(params, row.data(), kVocab, same));
      }
    }
  }
}

}  // namespace
}  // namespace pmkvq
