// Key ranges and key scales of latent blocks: against sums written out here in double.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>

#include "pmkvq/model/profile.h"
#include "pmkvq/research/calib/calibrate.h"
#include "pmkvq/research/calib/calibration.h"
#include "support/calibration_support.h"

namespace pmkvq {
namespace {

using testing_support::MakeTinyWeights;
using testing_support::RandomSamples;
using testing_support::TinyFolder;
using testing_support::TinyModels;

struct Case {
  const char* model;
  bool in_pairs;  // RoPE turns channels 2i and 2i + 1.
};

class LatentScales : public testing::TestWithParam<Case> {
 protected:
  LatentScales() {
    context_.model = model_.get();
    context_.samples = &samples_;
    context_.num_threads = 1;
  }

  // What blocks cache of a sample: rows of c and of k_r per block.
  struct States {
    std::vector<std::vector<double>> c, rope;
  };
  States StatesOf(const std::vector<int32_t>& tokens) const {
    States states;
    Profile<double> profile(*model_, 1);
    profile.Forward(tokens, PositionsOf(tokens), [&](const BlockStates<double>& block) {
      const KvBlockGeometry& geometry = geometry_.block(block.layer);
      states.c.emplace_back(block.k, block.k + block.num_tokens * geometry.latent_width());
      states.rope.emplace_back(block.v, block.v + block.num_tokens * geometry.rope_width());
    });
    return states;
  }

  static std::vector<int64_t> PositionsOf(const std::vector<int32_t>& tokens) {
    return StretchedPositions(std::ssize(tokens), std::ssize(tokens));
  }

  // Q_b(x / s) s of rows of one group each.
  static std::vector<double> Damaged(std::vector<double> x, std::span<const float> scales,
                                     int bits) {
    const size_t width = scales.size();
    for (size_t row = 0; row < x.size(); row += width) {
      const std::span<double> values = std::span(x).subspan(row, width);
      for (size_t i = 0; i < width; ++i) values[i] /= double{scales[i]};
      const auto [low, high] = std::minmax_element(values.begin(), values.end());
      const double least = *low;
      const double step = (*high - least) / ((1 << bits) - 1);
      for (size_t i = 0; i < width; ++i) {
        values[i] = (std::nearbyint((values[i] - least) / step) * step + least) * double{scales[i]};
      }
    }
    return x;
  }

  // Sums over samples of the mean squared error of the attention output, per block, with these
  // scales; of c at bits[0] and of k_r at bits[1], where 16 is as it is.
  std::vector<double> Losses(const std::vector<Tensor>& scales, std::pair<int, int> bits) const {
    std::vector<double> losses(scales.size());
    Profile<double> profile(*model_, 1);
    for (const std::vector<int32_t>& tokens : samples_.tokens) {
      const States states = StatesOf(tokens);
      const auto count = tokens.size() * static_cast<size_t>(model_->config().hidden_size);
      std::vector<double> exact(count);
      std::vector<double> damaged(count);
      profile.Forward(tokens, PositionsOf(tokens), [&](const BlockStates<double>& block) {
        const auto layer = static_cast<size_t>(block.layer);
        const std::span<const float> of_block(scales[layer].As<float>(),
                                              static_cast<size_t>(scales[layer].num_elements()));
        const auto latent = static_cast<size_t>(geometry_.block(block.layer).latent_width());
        std::vector<double> c = states.c[layer];
        std::vector<double> rope = states.rope[layer];
        if (bits.first < 16) c = Damaged(std::move(c), of_block.first(latent), bits.first);
        if (bits.second < 16) {
          rope = Damaged(std::move(rope), of_block.subspan(latent), bits.second);
        }
        profile.AttentionOf(states.c[layer].data(), states.rope[layer].data(), exact.data());
        profile.AttentionOf(c.data(), rope.data(), damaged.data());
        double sum = 0;
        for (size_t i = 0; i < count; ++i) {
          sum += (damaged[i] - exact[i]) * (damaged[i] - exact[i]);
        }
        losses[layer] += sum / static_cast<double>(count);
      });
    }
    return losses;
  }

  std::vector<Tensor> Ones() const {
    std::vector<Tensor> ones;
    for (const KvBlockGeometry& block : geometry_.blocks) {
      ones.emplace_back(DType::kF32, KeyScales::ShapeOf(block));
      std::fill_n(ones.back().As<float>(), ones.back().num_elements(), 1.0f);
    }
    return ones;
  }

  testing_support::TinyModel tiny_ = TinyModels().at(GetParam().model);
  TinyFolder folder_{tiny_};
  std::shared_ptr<const Model> model_ = folder_.Load();
  KvGeometry geometry_ = model_->kv_geometry();
  Samples samples_ = RandomSamples(tiny_.vocab, {40, 40, 17}, 7);
  CalibrationContext context_;
};

TEST_P(LatentScales, MaxKeysAreThoseOfChannelsAndOfRopePairs) {
  const std::vector<Tensor> max_keys = MeasureMaxKeys(context_);
  ASSERT_EQ(std::ssize(max_keys), tiny_.layers);
  for (size_t layer = 0; layer < max_keys.size(); ++layer) {
    const KvBlockGeometry& block = geometry_.blocks[layer];
    const auto latent = static_cast<size_t>(block.latent_width());
    const auto rope = static_cast<size_t>(block.rope_width());
    ASSERT_EQ(max_keys[layer].shape(), (Shape{block.latent_width() + block.rope_width()}));
    std::vector<double> expected(latent + rope);
    for (const std::vector<int32_t>& tokens : samples_.tokens) {
      const States states = StatesOf(tokens);
      for (size_t i = 0; i < states.c[layer].size(); ++i) {
        double& largest = expected[i % latent];
        largest = std::max(largest, std::abs(states.c[layer][i]));
      }
      for (size_t i = 0; i < states.rope[layer].size(); ++i) {
        const size_t channel = i % rope;
        const size_t partner = GetParam().in_pairs ? channel ^ 1 : (channel + rope / 2) % rope;
        for (const size_t each : {channel, partner}) {
          double& largest = expected[latent + each];
          largest = std::max(largest, std::abs(states.rope[layer][i]));
        }
      }
    }
    for (size_t i = 0; i < expected.size(); ++i) {
      EXPECT_NEAR(max_keys[layer].As<float>()[i], expected[i], 1e-4 * expected[i]) << i;
    }
  }
  const SensitivityAndKeys both = MeasureSensitivityAndKeys(context_);
  for (size_t layer = 0; layer < max_keys.size(); ++layer) {
    EXPECT_TRUE(std::equal(max_keys[layer].As<float>(),
                           max_keys[layer].As<float>() + max_keys[layer].num_elements(),
                           both.max_keys[layer].As<float>()));
  }
}

// Losses are those of the definition, the least one is taken, and it is no more than without
// scales. Codes of floats and doubles differ where a value lies next to a tie: 5 %.
TEST_P(LatentScales, TheSearchTakesTheLeastLoss) {
  const RepScaleOptions options = {.k_bits = 4, .v_bits = 2, .grid = 4};
  const std::vector<Tensor> max_keys = MeasureMaxKeys(context_);
  const RepScales found = SearchRepScales(context_, max_keys, options);
  const std::vector<double> of_c = Losses(found.scales, {options.k_bits, 16});
  const std::vector<double> of_rope = Losses(found.scales, {16, options.v_bits});
  const std::vector<double> plain_c = Losses(Ones(), {options.k_bits, 16});
  const std::vector<double> plain_rope = Losses(Ones(), {16, options.v_bits});
  const std::vector<double> both = Losses(found.scales, {options.k_bits, options.v_bits});
  const std::vector<double> plain = Losses(Ones(), {options.k_bits, options.v_bits});
  for (size_t layer = 0; layer < max_keys.size(); ++layer) {
    const auto check = [&](const std::vector<double>& loss, double alpha, double expected,
                           double without) {
      ASSERT_EQ(loss.size(), 5u);
      const auto best = std::min_element(loss.begin(), loss.end());
      EXPECT_EQ(alpha, 1.0 - static_cast<double>(best - loss.begin()) / options.grid);
      EXPECT_NEAR(*best, expected, 0.05 * expected);
      EXPECT_NEAR(loss.back(), without, 0.05 * without) << "alpha 0";
      EXPECT_LE(expected, without);
    };
    check(found.loss[layer], found.alpha[layer], of_c[layer], plain_c[layer]);
    check(found.rope_loss[layer], found.rope_alpha[layer], of_rope[layer], plain_rope[layer]);
    EXPECT_LE(both[layer], 1.05 * plain[layer]) << "errors of c and k_r add up";
    const int64_t latent = geometry_.blocks[layer].latent_width();
    for (int64_t i = 0; i < max_keys[layer].num_elements(); ++i) {
      const double alpha = i < latent ? found.alpha[layer] : found.rope_alpha[layer];
      const double expected = std::pow(max_keys[layer].As<float>()[i], alpha);
      EXPECT_NEAR(found.scales[layer].As<float>()[i], expected, 1e-6 * expected);
    }
  }
  context_.num_threads = 3;
  const RepScales threads = SearchRepScales(context_, max_keys, options);
  EXPECT_EQ(threads.loss, found.loss);
  EXPECT_EQ(threads.rope_loss, found.rope_loss);
}

// The weights of the latents' norm make one channel in eight thirty times as large.
TEST_P(LatentScales, LargeChannelsAreTamed) {
  testing_support::TinyWeights weights = MakeTinyWeights(tiny_);
  Tensor& norm = weights.at("model.layers.1.self_attn.kv_a_layernorm.weight");
  ASSERT_EQ(norm.num_elements(), tiny_.latent);
  for (int64_t i = 3; i < tiny_.latent; i += 8) {
    if (norm.dtype() == DType::kBF16) {
      norm.As<BF16>()[i] = ToBF16(30.0f);
    } else {
      norm.As<float>()[i] = 30.0f;
    }
  }
  const TinyFolder folder(tiny_, weights);
  model_ = folder.Load();
  context_.model = model_.get();
  const RepScales found = SearchRepScales(context_, MeasureMaxKeys(context_), {});
  const double chosen = *std::min_element(found.loss[1].begin(), found.loss[1].end());
  EXPECT_GE(found.alpha[1], 0.25);
  EXPECT_LT(1.5 * chosen, found.loss[1].back()) << "alpha 0: no scaling";
}

INSTANTIATE_TEST_SUITE_P(Models, LatentScales,
                         testing::Values(Case{"deepseek2_f32", true},
                                         Case{"deepseek3_bf16", false}),
                         [](const auto& each) { return std::string(each.param.model); });

}  // namespace
}  // namespace pmkvq
