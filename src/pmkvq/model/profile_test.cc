#include "pmkvq/model/profile.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <memory>

#include "pmkvq/base/error.h"
#include "support/expect_error.h"
#include "support/temp_folder.h"
#include "support/tiny_model.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;
using testing_support::MakeTinyWeights;
using testing_support::RandomTokens;
using testing_support::TempFolder;
using testing_support::TinyModel;
using testing_support::TinyModelOracle;
using testing_support::TinyModels;
using testing_support::TinyWeights;
using testing_support::WriteTinyModel;

struct LoadedTinyModel {
  explicit LoadedTinyModel(const TinyModel& tiny)
      : spec(tiny), weights(MakeTinyWeights(tiny)), folder(std::make_unique<TempFolder>()) {
    WriteTinyModel(spec, weights, *folder);
    model = Model::Load(folder->path());
  }

  TinyModel spec;
  TinyWeights weights;
  std::unique_ptr<TempFolder> folder;
  std::shared_ptr<const Model> model;
};

// Copies of one block's states.
struct Captured {
  std::vector<double> q, k, v, dk, dv;
};

template <class Real>
Captured Capture(const Model& model, const BlockStates<Real>& states) {
  const auto copy = [](const Real* values, int64_t count) {
    return values == nullptr ? std::vector<double>() : std::vector<double>(values, values + count);
  };
  const KvGeometry geometry = model.kv_geometry();
  const int64_t k = states.num_tokens * geometry.block(states.layer).k().values();
  const int64_t v = states.num_tokens * geometry.block(states.layer).v().values();
  return {copy(states.q, states.num_tokens * model.config().q_dim()), copy(states.k, k),
          copy(states.v, v), copy(states.dk, k), copy(states.dv, v)};
}

template <class Real>
std::vector<Captured> Gradients(const Model& model, const std::vector<int32_t>& tokens,
                                const std::vector<int64_t>& positions, int threads, double* loss) {
  std::vector<Captured> captured(static_cast<size_t>(model.config().num_layers));
  Profile<Real> profile(model, threads);
  *loss = profile.ForwardBackward(tokens, positions, [&](const BlockStates<Real>& states) {
    captured[static_cast<size_t>(states.layer)] = Capture(model, states);
  });
  return captured;
}

double Norm(const std::vector<double>& values) {
  double sum = 0.0;
  for (const double value : values) sum += value * value;
  return std::sqrt(sum);
}

double Distance(const std::vector<double>& a, const std::vector<double>& b) {
  std::vector<double> difference = a;
  for (size_t i = 0; i < a.size(); ++i) difference[i] -= b[i];
  return Norm(difference);
}

class ProfileOfEach : public testing::TestWithParam<std::string> {
 protected:
  LoadedTinyModel loaded_{TinyModels().at(GetParam())};
};

TEST_P(ProfileOfEach, LossIsThatOfTheOracle) {
  const std::vector<int32_t> tokens = RandomTokens(loaded_.spec.vocab, 19, 7);
  const std::vector<double> logits = TinyModelOracle(loaded_.spec, loaded_.weights).Logits(tokens);
  double expected = 0.0;
  const auto vocab = static_cast<size_t>(loaded_.spec.vocab);
  for (size_t t = 0; t + 1 < tokens.size(); ++t) {
    double sum = 0.0;
    for (size_t i = 0; i < vocab; ++i) sum += std::exp(logits[t * vocab + i]);
    expected += std::log(sum) - logits[t * vocab + static_cast<size_t>(tokens[t + 1])];
  }
  expected /= static_cast<double>(tokens.size() - 1);

  const std::vector<int64_t> positions = StretchedPositions(19, 19);
  EXPECT_NEAR(Profile<double>(*loaded_.model, 1).Forward(tokens, positions, nullptr), expected,
              1e-6 * expected);
  EXPECT_NEAR(Profile<float>(*loaded_.model, 1).Forward(tokens, positions, nullptr), expected,
              1e-5 * expected);
}

// Central differences of the loss, (L(x + e) - L(x - e)) / 2e: the error of the difference is
// about e^2 / 6 times the third derivative plus 1e-15 / e, both far below 1e-5 of the gradient.
TEST_P(ProfileOfEach, GradientsAreFiniteDifferences) {
  const int64_t num_tokens = 12;
  const std::vector<int32_t> tokens = RandomTokens(loaded_.spec.vocab, num_tokens, 3);
  const std::vector<int64_t> positions = StretchedPositions(num_tokens, 5 * num_tokens);
  double loss = 0.0;
  const std::vector<Captured> gradients =
      Gradients<double>(*loaded_.model, tokens, positions, 1, &loss);
  Profile<double> profile(*loaded_.model, 1);
  EXPECT_DOUBLE_EQ(profile.PerturbedLoss(tokens, positions, 0, nullptr, nullptr), loss);

  Random random(11);
  for (int64_t layer = 0; layer < loaded_.spec.layers; ++layer) {
    for (const bool of_keys : {true, false}) {
      const Captured& captured = gradients[static_cast<size_t>(layer)];
      const std::vector<double>& gradient = of_keys ? captured.dk : captured.dv;
      const auto slope = [&](const std::vector<double>& direction, double step) {
        std::vector<double> delta = direction;
        for (double& value : delta) value *= step;
        const double up =
            profile.PerturbedLoss(tokens, positions, layer, of_keys ? delta.data() : nullptr,
                                  of_keys ? nullptr : delta.data());
        for (double& value : delta) value = -value;
        const double down =
            profile.PerturbedLoss(tokens, positions, layer, of_keys ? delta.data() : nullptr,
                                  of_keys ? nullptr : delta.data());
        return (up - down) / (2 * step);
      };
      for (int trial = 0; trial < 6; ++trial) {
        const auto i = static_cast<size_t>(random.Below(gradient.size()));
        std::vector<double> direction(gradient.size());
        direction[i] = 1.0;
        EXPECT_NEAR(slope(direction, 1e-4), gradient[i], 1e-5 * std::abs(gradient[i]) + 1e-10)
            << "block " << layer << (of_keys ? " key " : " value ") << i;
      }
      // Along the gradient itself every coordinate counts.
      std::vector<double> direction = gradient;
      for (double& value : direction) value /= Norm(gradient);
      EXPECT_NEAR(slope(direction, 1e-4), Norm(gradient), 1e-5 * Norm(gradient));
    }
  }
}

TEST_P(ProfileOfEach, FloatFollowsDoubleForAnyNumberOfThreads) {
  const std::vector<int32_t> tokens = RandomTokens(loaded_.spec.vocab, 300, 5);
  const std::vector<int64_t> positions = StretchedPositions(300, 300);
  double exact_loss = 0.0;
  double loss = 0.0;
  double threaded_loss = 0.0;
  const auto exact = Gradients<double>(*loaded_.model, tokens, positions, 1, &exact_loss);
  const auto single = Gradients<float>(*loaded_.model, tokens, positions, 1, &loss);
  const auto threaded = Gradients<float>(*loaded_.model, tokens, positions, 2, &threaded_loss);
  EXPECT_NEAR(loss, exact_loss, 1e-5 * exact_loss);
  EXPECT_EQ(loss, threaded_loss);
  for (size_t layer = 0; layer < exact.size(); ++layer) {
    SCOPED_TRACE(layer);
    EXPECT_LT(Distance(single[layer].dk, exact[layer].dk), 1e-4 * Norm(exact[layer].dk));
    EXPECT_LT(Distance(single[layer].dv, exact[layer].dv), 1e-4 * Norm(exact[layer].dv));
    EXPECT_EQ(single[layer].dk, threaded[layer].dk);
    EXPECT_EQ(single[layer].dv, threaded[layer].dv);
  }
}

// dL/dW of key and value projections. W is changed on disk, as float32, so the difference is taken
// over what the file then holds; L(W) is evaluated in double. The slope along the gradient itself
// is the gradient's norm.
TEST_P(ProfileOfEach, ProjectionGradientsAreFiniteDifferences) {
  TinyModel spec = TinyModels().at(GetParam());
  spec.dtype = DType::kF32;
  if (spec.is_mla()) GTEST_SKIP() << "one matrix makes both: attention_mla_test.cc";
  const LoadedTinyModel loaded(spec);
  const std::vector<int32_t> tokens = RandomTokens(spec.vocab, 12, 3);
  const std::vector<int64_t> positions = StretchedPositions(12, 36);
  std::map<std::string, std::vector<double>> gradients;
  Profile<double> profile(*loaded.model, 1);
  const auto name = [](int64_t layer, const char* side) {
    return fmt::format("model.layers.{}.self_attn.{}_proj.weight", layer, side);
  };
  const double loss = profile.ProjectionBackward(tokens, positions, [&](const auto& each) {
    const int64_t count = spec.kv_dim() * spec.hidden;
    gradients[name(each.layer, "k")].assign(each.k, each.k + count);
    gradients[name(each.layer, "v")].assign(each.v, each.v + count);
  });
  EXPECT_EQ(loss, profile.ForwardBackward(tokens, positions, nullptr));
  ASSERT_EQ(gradients.size(), static_cast<size_t>(2 * spec.layers));

  // The loss with the weight moved by `step` along `direction`, and the step that the file holds.
  const auto loss_at = [&](const std::string& weight, const std::vector<double>& direction,
                           double step, double* moved) {
    TinyWeights weights = loaded.weights;
    float* values = weights.at(weight).As<float>();
    *moved = 0;
    for (size_t i = 0; i < direction.size(); ++i) {
      const float before = values[i];
      values[i] = static_cast<float>(before + step * direction[i]);
      *moved += direction[i] * (double{values[i]} - before);
    }
    TempFolder folder;
    WriteTinyModel(spec, weights, folder);
    return Profile<double>(*Model::Load(folder.path()), 1).Forward(tokens, positions, nullptr);
  };
  for (const auto& [weight, gradient] : gradients) {
    std::vector<double> direction = gradient;
    for (double& value : direction) value /= Norm(gradient);
    double up_step = 0;
    double down_step = 0;
    const double up = loss_at(weight, direction, 1e-3, &up_step);
    const double down = loss_at(weight, direction, -1e-3, &down_step);
    // The curvature cancels; what rounding to float adds across the direction does not: 1e-7 of
    // each weight against a step of 1e-3.
    EXPECT_NEAR((up - down) / (up_step - down_step), Norm(gradient), 1e-4 * Norm(gradient))
        << weight;
    std::vector<double> single(gradient.size());
    const auto largest = std::max_element(gradient.begin(), gradient.end(), [](double a, double b) {
      return std::abs(a) < std::abs(b);
    });
    const auto at = static_cast<size_t>(largest - gradient.begin());
    single[at] = 1.0;
    const double single_up = loss_at(weight, single, 1e-3, &up_step);
    const double single_down = loss_at(weight, single, -1e-3, &down_step);
    EXPECT_NEAR((single_up - single_down) / (up_step - down_step), gradient[at],
                1e-4 * std::abs(gradient[at]))
        << weight << " " << at;
  }
}

std::vector<std::string> Names() {
  std::vector<std::string> names;
  for (const auto& [name, tiny] : TinyModels()) names.push_back(name);
  return names;
}

INSTANTIATE_TEST_SUITE_P(All, ProfileOfEach, testing::ValuesIn(Names()),
                         [](const auto& each) { return each.param; });

TEST(Profile, VisitsForwardAndBackwardInOrderWithTheSameStates) {
  LoadedTinyModel loaded{TinyModel{}};
  const std::vector<int32_t> tokens = RandomTokens(loaded.spec.vocab, 9, 2);
  const std::vector<int64_t> positions = StretchedPositions(9, 18);
  Profile<float> profile(*loaded.model, 1);
  std::vector<Captured> forward;
  const double loss = profile.Forward(tokens, positions, [&](const BlockStates<float>& states) {
    EXPECT_EQ(states.layer, static_cast<int64_t>(forward.size()));
    EXPECT_EQ(states.num_tokens, 9);
    forward.push_back(Capture(*loaded.model, states));
    EXPECT_TRUE(forward.back().dk.empty());
  });
  ASSERT_EQ(forward.size(), 3u);
  size_t remaining = forward.size();
  const double again =
      profile.ForwardBackward(tokens, positions, [&](const BlockStates<float>& states) {
        const Captured captured = Capture(*loaded.model, states);
        --remaining;
        EXPECT_EQ(states.layer, static_cast<int64_t>(remaining));
        EXPECT_EQ(captured.q, forward[remaining].q);
        EXPECT_EQ(captured.k, forward[remaining].k);
        EXPECT_EQ(captured.v, forward[remaining].v);
        EXPECT_EQ(captured.dk.size(), captured.k.size());
      });
  EXPECT_EQ(remaining, 0u);
  EXPECT_EQ(loss, again);
  EXPECT_EQ(profile.ForwardBackward(tokens, positions, nullptr), loss);
}

// A shorter sequence after a longer one uses the front of the same buffers.
TEST(Profile, IsReusableForOtherLengths) {
  LoadedTinyModel loaded{TinyModels().at("qwen3_f32")};
  const std::vector<int32_t> tokens = RandomTokens(loaded.spec.vocab, 40, 2);
  const std::vector<int32_t> front(tokens.begin(), tokens.begin() + 11);
  const auto gradients = [&](Profile<double>& profile) {
    std::vector<double> result;
    profile.ForwardBackward(front, StretchedPositions(11, 11), [&](const auto& states) {
      const Captured captured = Capture(*loaded.model, states);
      result.insert(result.end(), captured.dk.begin(), captured.dk.end());
    });
    return result;
  };
  Profile<double> used(*loaded.model, 1);
  used.ForwardBackward(tokens, StretchedPositions(40, 40), nullptr);
  Profile<double> fresh(*loaded.model, 1);
  EXPECT_EQ(gradients(used), gradients(fresh));
}

TEST(Profile, ProjectAttentionIsTheProductWithoutBias) {
  LoadedTinyModel loaded{TinyModels().at("llama_bias_bf16")};
  const TinyModel& tiny = loaded.spec;
  const int64_t n = 5;
  Random random(4);
  std::vector<double> attention(static_cast<size_t>(n * tiny.q_dim()));
  for (double& value : attention) value = testing_support::NormalDraw(random);
  std::vector<double> out(static_cast<size_t>(n * tiny.hidden));
  Profile<double> profile(*loaded.model, 1);
  profile.ProjectAttention(1, n, attention.data(), out.data());

  const std::vector<double> weight =
      testing_support::Values(loaded.weights.at("model.layers.1.self_attn.o_proj.weight"));
  for (int64_t t = 0; t < n; ++t) {
    for (int64_t e = 0; e < tiny.hidden; ++e) {
      double expected = 0.0;
      for (int64_t i = 0; i < tiny.q_dim(); ++i) {
        expected += weight[static_cast<size_t>(e * tiny.q_dim() + i)] *
                    attention[static_cast<size_t>(t * tiny.q_dim() + i)];
      }
      EXPECT_NEAR(out[static_cast<size_t>(t * tiny.hidden + e)], expected, 1e-12);
    }
  }
}

TEST(Profile, NamesThePlaceOfNotFiniteWeights) {
  struct Case {
    const char* tensor;
    const char* place;
  };
  const Case cases[] = {{"model.layers.1.mlp.down_proj.weight", "block 1"},
                        {"model.layers.0.self_attn.v_proj.weight", "block 0"},
                        {"model.layers.2.input_layernorm.weight", "block 2"},
                        {"model.embed_tokens.weight", "embedding"},
                        {"lm_head.weight", "output head"}};
  for (const Case& each : cases) {
    SCOPED_TRACE(each.tensor);
    const TinyModel tiny;
    TinyWeights weights = MakeTinyWeights(tiny);
    weights[each.tensor].As<float>()[5] = std::numeric_limits<float>::quiet_NaN();
    TempFolder folder;
    WriteTinyModel(tiny, weights, folder);
    const std::shared_ptr<const Model> model = Model::Load(folder.path());
    Profile<float> profile(*model, 1);
    const std::vector<int32_t> tokens = {0, 1, 2, 0};
    const std::vector<int64_t> positions = StretchedPositions(4, 4);
    ExpectError<InvalidInput>([&] { profile.Forward(tokens, positions, nullptr); },
                              {folder.path(), each.place, "nan", "finite"});
    ExpectError<InvalidInput>([&] { profile.ForwardBackward(tokens, positions, nullptr); },
                              {folder.path(), each.place, "nan", "finite"});
  }
}

TEST(Profile, StretchedPositionsAreMultiplesOfTheStep) {
  EXPECT_EQ(StretchedPositions(4, 4), (std::vector<int64_t>{0, 1, 2, 3}));
  EXPECT_EQ(StretchedPositions(4, 12), (std::vector<int64_t>{0, 3, 6, 9}));
}

TEST(ProfileDeath, ChecksItsArguments) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");  // Workers of earlier tests are alive.
  LoadedTinyModel loaded{TinyModel{}};
  Profile<float> profile(*loaded.model, 1);
  const std::vector<int64_t> positions = {0, 1};
  const std::vector<int32_t> one = {1};
  const std::vector<int32_t> too_large = {1, 48};
  EXPECT_DEATH(profile.Forward(one, positions, nullptr), "tokens.size");
  EXPECT_DEATH(profile.Forward(too_large, positions, nullptr), "token id out of range");
  EXPECT_DEATH(StretchedPositions(4, 6), "effective_len % num_tokens");
}

}  // namespace
}  // namespace pmkvq
