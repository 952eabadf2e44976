#include "pmkvq/model/blocks/mlp_moe.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "pmkvq/comm/thread_communicator.h"
#include "pmkvq/model/ranks/shard.h"
#include "support/block_weights.h"
#include "support/tiny_model.h"

namespace pmkvq {
namespace {

using testing_support::BindRandomWeights;
using testing_support::ExpectGradientIsAFiniteDifference;
using testing_support::NormalDraw;

constexpr int64_t kExperts = 8;

ModelConfig ConfigOf(const MoeConfig& moe) {
  ModelConfig config;
  config.hidden_size = 24;
  config.moe = moe;
  config.moe->num_experts = kExperts;
  config.moe->num_chosen = 3;
  config.moe->expert_size = 20;
  config.moe->blocks = {true};
  return config;
}

// The rules of the families.
std::vector<std::pair<std::string, MoeConfig>> Rules() {
  std::vector<std::pair<std::string, MoeConfig>> rules = {{"Qwen3Moe", {}}, {"Mixtral", {}}};
  rules[1].second.normalize = true;
  MoeConfig v2;
  v2.weight_factor = 2;
  v2.num_groups = 4;
  v2.num_chosen_groups = 2;
  v2.shared_size = 30;
  rules.emplace_back("DeepSeekV2", v2);
  MoeConfig v3 = v2;
  v3.score = ExpertScore::kSigmoid;
  v3.normalize = true;
  v3.choice_bias = true;
  v3.group_top = 2;
  v3.shared_size = 16;  // Smaller than an expert.
  rules.emplace_back("DeepSeekV3", v3);
  return rules;
}

// A mixture with random weights, bound by its declarations alone.
class MlpMoeTest : public testing::TestWithParam<std::pair<std::string, MoeConfig>> {
 protected:
  MlpMoeTest() : mlp_(config_) {
    mlp_.Declare(list_);
    tensors_ = BindRandomWeights(list_, random_);
  }

  int64_t hidden() const { return config_.hidden_size; }
  int64_t num_chosen() const { return config_.moe->num_chosen; }

  template <class Real>
  std::vector<Real> RandomRows(int64_t num_rows) {
    std::vector<Real> values(static_cast<size_t>(num_rows * hidden()));
    for (Real& value : values) value = static_cast<Real>(NormalDraw(random_));
    return values;
  }

  template <class Real>
  SequenceRows<Real> Rows(int64_t num_tokens, Scratch<Real>& scratch) {
    positions_.resize(static_cast<size_t>(num_tokens));
    return {positions_, &scratch, 2};
  }

  // A step's rows, each of one token; of them those of `read` are computed.
  std::vector<float> Forward(std::vector<float> x, const RowSlice& read, int num_threads) {
    Scratch<float> scratch;
    const RowSlice all{0, std::ssize(x) / hidden()};
    ForwardRows rows;
    rows.num_rows = all.num_rows;
    rows.slices = {&all, 1};
    rows.read_slices = {&read, 1};
    rows.max_slice_rows = all.num_rows;
    rows.scratch = &scratch;
    rows.num_threads = num_threads;
    mlp_.Forward(rows, x.data());
    return x;
  }
  std::vector<float> Forward(const std::vector<float>& x, int num_threads = 1) {
    return Forward(x, {0, std::ssize(x) / hidden()}, num_threads);
  }

  std::vector<double> Linear(const WeightView& weight, const std::vector<double>& x) {
    std::vector<double> y(static_cast<size_t>(weight.rows));
    ref::MatMul(x.data(), 1, weight, nullptr, y.data());
    return y;
  }

  std::vector<double> Normed(std::vector<double> x) {
    double squares = 0;
    for (const double value : x) squares += value * value;
    const double root = std::sqrt(squares / static_cast<double>(x.size()) + config_.rms_norm_eps);
    for (size_t i = 0; i < x.size(); ++i) x[i] *= double{mlp_.weights().norm[i]} / root;
    return x;
  }

  // One row by the formula, expert by expert: no sorting, and no rows at once.
  std::vector<double> Oracle(std::vector<double> x) {
    const MlpMoeWeights& weights = mlp_.weights();
    const std::vector<double> h = Normed(x);
    const auto run = [&](const MlpMoeWeights::Expert& expert, double weight) {
      std::vector<double> inner = Linear(expert.gate, h);
      const std::vector<double> up = Linear(expert.up, h);
      for (size_t j = 0; j < inner.size(); ++j) {
        inner[j] = inner[j] / (1 + std::exp(-inner[j])) * up[j];
      }
      const std::vector<double> y = Linear(expert.down, inner);
      for (size_t j = 0; j < y.size(); ++j) x[j] += weight * y[j];
    };
    const std::vector<double> scores = Scores(Linear(weights.router, h));
    const std::vector<size_t> chosen = Chosen(scores);
    double sum = 0;
    for (const size_t expert : chosen) sum += scores[expert];
    const MoeConfig& moe = *config_.moe;
    for (const size_t expert : chosen) {
      run(weights.experts[expert], scores[expert] * moe.weight_factor / (moe.normalize ? sum : 1));
    }
    if (moe.shared_size > 0) run(weights.shared, 1);
    return x;
  }

  std::vector<double> Scores(std::vector<double> logits) const {
    double sum = 0;
    for (const double logit : logits) sum += std::exp(logit);
    const bool is_softmax = config_.moe->score == ExpertScore::kSoftmax;
    for (double& value : logits) {
      value = is_softmax ? std::exp(value) / sum : 1 / (1 + std::exp(-value));
    }
    return logits;
  }

  // By sorting groups, and then the experts of the best ones.
  std::vector<size_t> Chosen(std::vector<double> choice) const {
    const MoeConfig& moe = *config_.moe;
    if (moe.choice_bias) {
      for (size_t i = 0; i < choice.size(); ++i) choice[i] += double{mlp_.weights().router_bias[i]};
    }
    const auto size = static_cast<size_t>(kExperts / moe.num_groups);
    std::vector<std::pair<double, size_t>> groups;
    for (size_t group = 0; group < choice.size() / size; ++group) {
      const auto begin = choice.begin() + static_cast<int64_t>(group * size);
      std::vector<double> members(begin, begin + static_cast<int64_t>(size));
      std::sort(members.rbegin(), members.rend());
      groups.emplace_back(-std::accumulate(members.begin(), members.begin() + moe.group_top, 0.0),
                          group);
    }
    std::sort(groups.begin(), groups.end());
    std::vector<std::pair<double, size_t>> experts;
    for (int64_t i = 0; i < moe.num_chosen_groups; ++i) {
      const size_t first = groups[static_cast<size_t>(i)].second * size;
      for (size_t e = first; e < first + size; ++e) experts.emplace_back(-choice[e], e);
    }
    std::sort(experts.begin(), experts.end());
    std::vector<size_t> chosen;
    for (int64_t i = 0; i < num_chosen(); ++i) {
      chosen.push_back(experts[static_cast<size_t>(i)].second);
    }
    return chosen;
  }

  Random random_{5};
  const ModelConfig config_ = ConfigOf(GetParam().second);
  MlpMoe mlp_;
  WeightList list_;
  std::vector<Tensor> tensors_;
  std::vector<int64_t> positions_;
};

// 300 rows: more than are computed at once. Every expert has some of them.
TEST_P(MlpMoeTest, IsTheSumOverExpertsOfEachRow) {
  constexpr int64_t kRows = 300;
  const std::vector<double> x = RandomRows<double>(kRows);
  std::vector<double> result = x;
  Scratch<double> scratch;
  mlp_.Forward(Rows<double>(kRows, scratch), result.data());
  for (int64_t row = 0; row < kRows; ++row) {
    const auto begin = x.begin() + row * hidden();
    const std::vector<double> expected = Oracle({begin, begin + hidden()});
    for (int64_t i = 0; i < hidden(); ++i) {
      EXPECT_NEAR(result[static_cast<size_t>(row * hidden() + i)], expected[static_cast<size_t>(i)],
                  1e-12);
    }
  }
}

// The router's part is not small: without it the test fails.
TEST_P(MlpMoeTest, GradientIsAFiniteDifference) {
  ExpectGradientIsAFiniteDifference(mlp_, config_.hidden_size, random_);
}

TEST_P(MlpMoeTest, BatchedRowsHaveTheBitsOfASequence) {
  for (const int64_t rows : {1, 5, 70, 200}) {
    std::vector<float> sequence = RandomRows<float>(rows);
    std::vector<float> batched = RandomRows<float>(3);  // Rows that nobody reads stay.
    const std::vector<float> before = batched;
    batched.insert(batched.end(), sequence.begin(), sequence.end());
    Scratch<float> scratch;
    mlp_.Forward(Rows<float>(rows, scratch), sequence.data());
    const std::vector<float> result = Forward(batched, {3, rows}, 1);
    const auto begin = result.begin() + std::ssize(before);
    EXPECT_EQ(std::vector<float>(result.begin(), begin), before);
    EXPECT_EQ(std::vector<float>(begin, result.end()), sequence);
  }
}

// Rows of a step are alone at each expert, or beside any others.
TEST_P(MlpMoeTest, BitsOfARowDependNeitherOnOthersNorOnThreads) {
  const std::vector<float> x = RandomRows<float>(kDecodeRows);
  const std::vector<float> together = Forward(x);
  EXPECT_EQ(Forward(x, 3), together);
  for (int64_t row = 0; row < kDecodeRows; ++row) {
    const auto begin = x.begin() + row * hidden();
    const auto expected = together.begin() + row * hidden();
    EXPECT_EQ(Forward(std::vector<float>(begin, begin + hidden())),
              std::vector<float>(expected, expected + hidden()))
        << row;
  }
  for (const int64_t size : {2, 7, 40}) {
    const std::vector<float> some = Forward(std::vector<float>(x.end() - size * hidden(), x.end()));
    EXPECT_TRUE(std::equal(some.begin(), some.end(), together.end() - size * hidden())) << size;
  }
}

// In chunks in which some experts have more rows than one product takes, too.
TEST_P(MlpMoeTest, BitsOfARowOfALongChunkAreItsOwn) {
  constexpr int64_t kRows = 400;  // 150 for an expert, 400 for the shared one.
  const std::vector<float> x = RandomRows<float>(kRows);
  const std::vector<float> together = Forward(x);
  for (int64_t row = 0; row < kRows; ++row) {
    const auto begin = x.begin() + row * hidden();
    const auto expected = together.begin() + row * hidden();
    ASSERT_EQ(Forward(std::vector<float>(begin, begin + hidden())),
              std::vector<float>(expected, expected + hidden()))
        << row;
  }
}

// A long chunk gives an expert more rows than the kernels for few rows take.
TEST_P(MlpMoeTest, LongChunksAreThoseOfTheOracle) {
  constexpr int64_t kRows = 400;
  const std::vector<float> x = RandomRows<float>(kRows);
  const std::vector<float> result = Forward(x);
  EXPECT_EQ(Forward(x, 2), result);
  double worst = 0;
  for (int64_t row = 0; row < kRows; ++row) {
    const auto begin = x.begin() + row * hidden();
    const std::vector<double> expected = Oracle({begin, begin + hidden()});
    for (int64_t i = 0; i < hidden(); ++i) {
      worst = std::max(worst, std::abs(double{result[static_cast<size_t>(row * hidden() + i)]} -
                                       expected[static_cast<size_t>(i)]));
    }
  }
  // Three sums of up to 30 products near 1, in float, for each of four experts.
  EXPECT_LT(worst, 2e-5);
}

// Whatever chunk it is in: beyond kDecodeRows rows products of BLAS have other bits.
TEST_P(MlpMoeTest, RoutingOfARowDependsOnItAlone) {
  constexpr int64_t kRows = 200;
  const std::vector<float> h = RandomRows<float>(kRows);
  const auto route = [&](int64_t first, int64_t rows) {
    std::vector<float> scores(static_cast<size_t>(rows * config_.moe->num_experts));
    std::vector<float> weights(static_cast<size_t>(rows * num_chosen()));
    std::vector<int32_t> experts(weights.size());
    mlp_.Route(h.data() + first * hidden(), rows, scores.data(), experts.data(), weights.data(), 1);
    return std::make_pair(std::move(scores), std::move(experts));
  };
  const auto [scores, experts] = route(0, kRows);
  for (int64_t row = 0; row < kRows; ++row) {
    const auto [alone, chosen] = route(row, 1);
    EXPECT_TRUE(
        std::equal(alone.begin(), alone.end(), scores.begin() + row * config_.moe->num_experts))
        << row;
    EXPECT_TRUE(std::equal(chosen.begin(), chosen.end(), experts.begin() + row * num_chosen()));
  }
}

// Matrices of experts that no row has chosen may not even be there.
TEST_P(MlpMoeTest, ReadsNoExpertThatIsNotChosen) {
  const std::vector<float> x = RandomRows<float>(2);
  const std::vector<float> expected = Forward(x);
  std::set<int32_t> chosen;
  for (int64_t row = 0; row < 2; ++row) {
    const auto begin = x.begin() + row * hidden();
    const std::vector<double> h = Normed({begin, begin + hidden()});
    std::vector<double> scores(static_cast<size_t>(config_.moe->num_experts));
    std::vector<double> weights(static_cast<size_t>(num_chosen()));
    std::vector<int32_t> experts(weights.size());
    mlp_.Route(h.data(), 1, scores.data(), experts.data(), weights.data(), 1);
    chosen.insert(experts.begin(), experts.end());
  }
  ASSERT_LT(std::ssize(chosen), config_.moe->num_experts) << "an expert is left out";
  for (const WeightSlot& slot : list_.slots()) {
    if (slot.role != WeightRole::kExpert) continue;
    const int32_t expert = slot.name[std::string("mlp.experts.").size()] - '0';
    if (!chosen.contains(expert)) slot.matrix->data = nullptr;
  }
  EXPECT_EQ(Forward(x), expected);
}

TEST_P(MlpMoeTest, CountsItsScratch) {
  for (const int64_t num_rows : {1, 30}) {
    std::vector<float> x = RandomRows<float>(num_rows);
    Scratch<float> counted = Scratch<float>::CountOnly();
    Scratch<float> used;
    const RowSlice all{0, num_rows};
    ForwardRows rows;
    rows.num_rows = num_rows;
    rows.read_slices = {&all, 1};
    rows.max_slice_rows = num_rows;
    rows.scratch = &used;
    mlp_.Forward(rows, x.data());
    rows.scratch = &counted;
    mlp_.CountScratch(rows);
    EXPECT_EQ(counted.num_bytes(), used.num_bytes());
    const size_t bytes = used.num_bytes();
    rows.scratch = &used;
    mlp_.Forward(rows, x.data());
    EXPECT_EQ(used.num_bytes(), bytes);
  }
}

// Equal slices of what a rank has.
SliceRange RangeOf(int64_t size, int64_t slices, const Communicator& comm) {
  SliceRange range;
  for (int64_t i = 0; i <= slices; ++i) range.begins.push_back(size * i / slices);
  const auto of_rank = static_cast<size_t>(slices / comm.size());
  range.first = static_cast<size_t>(comm.rank()) * of_rank;
  range.last = range.first + of_rank;
  return range;
}

// What `num_ranks` ranks make of x: each has its experts, and its part of the shared one.
TEST_P(MlpMoeTest, RanksThatShareTheExpertsGiveTheBitsOfOne) {
  const std::vector<float> x = RandomRows<float>(70);
  const auto of_ranks = [&](int num_ranks) {
    std::vector<float> result;
    RunRanks(num_ranks, [&](Communicator& comm) {
      ModelShard shard;
      shard.rank = comm.rank();
      shard.size = comm.size();
      if (comm.size() > 1) shard.comm = &comm;
      shard.experts = RangeOf(kExperts, 8, comm);
      shard.shared = RangeOf(config_.moe->shared_size, 8, comm);
      shard.local = config_;
      shard.local.moe->shared_size = shard.shared.size();
      MlpMoe part(shard.local, &shard);
      WeightList list;
      list.SetPrefix("blocks.0.");
      part.Declare(list);
      std::vector<AlignedVector<float>> columns;
      ASSERT_EQ(list.slots().size(), list_.slots().size());
      for (size_t i = 0; i < list.slots().size(); ++i) {
        const WeightSlot& slot = list.slots()[i];
        const WeightSlot& whole = list_.slots()[i];
        if (slot.vector != nullptr) {
          *slot.vector = *whole.vector;
          continue;
        }
        const WeightCut cut = CutOf(shard, slot.name);
        *slot.matrix = *whole.matrix;
        if (cut.along == WeightCut::Along::kAbsent) *slot.matrix = {};
        if (cut.along == WeightCut::Along::kRows) {
          slot.matrix->data += cut.range->begin() * RowBytes(WeightFormat::kF32, whole.shape[1]);
          slot.matrix->rows = cut.range->size();
        }
        if (cut.along != WeightCut::Along::kColumns) continue;
        for (size_t slice = 0; slice < cut.range->num_slices(); ++slice) {
          AlignedVector<float>& copy = columns.emplace_back();
          const auto* const from = reinterpret_cast<const float*>(whole.matrix->data);
          const int64_t first = cut.range->begin() + cut.range->offset(slice);
          for (int64_t row = 0; row < whole.shape[0]; ++row) {
            const float* const begin = from + row * whole.shape[1] + first;
            copy.insert(copy.end(), begin, begin + cut.range->size(slice));
          }
          slot.slices->push_back({reinterpret_cast<const std::byte*>(copy.data()),
                                  WeightFormat::kF32, whole.shape[0], cut.range->size(slice)});
        }
        *slot.matrix = {nullptr, WeightFormat::kF32, slot.shape[0], slot.shape[1]};
      }
      Scratch<float> scratch;
      const RowSlice all{0, 70};
      ForwardRows rows;
      rows.num_rows = rows.max_slice_rows = 70;
      rows.slices = rows.read_slices = {&all, 1};
      rows.scratch = &scratch;
      std::vector<float> y = x;
      part.Forward(rows, y.data());
      if (comm.rank() == 0) result = y;
    });
    return result;
  };
  const std::vector<float> one = of_ranks(1);
  const std::vector<float> plain = Forward(x);
  ASSERT_EQ(one.size(), plain.size());
  // Sums in another order: some units in the last place of sums of 20 products.
  for (size_t i = 0; i < one.size(); ++i) ASSERT_NEAR(one[i], plain[i], 1e-4) << i;
  for (const int num_ranks : {2, 4, 8}) EXPECT_EQ(of_ranks(num_ranks), one) << num_ranks;
}

INSTANTIATE_TEST_SUITE_P(Rules, MlpMoeTest, testing::ValuesIn(Rules()),
                         [](const auto& each) { return each.param.first; });

}  // namespace
}  // namespace pmkvq
