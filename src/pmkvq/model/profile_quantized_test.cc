// Calibration's passes with weights that are codes: those of the decoded weights as floats.
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "pmkvq/io/gguf/tensor_types.h"
#include "pmkvq/model/profile.h"
#include "support/gguf_model.h"
#include "support/temp_folder.h"

namespace pmkvq {
namespace {

using namespace testing_support;

// What a forward and a backward pass give.
struct Passes {
  double loss = 0;
  std::vector<double> gradients;  // dk and dv of all blocks.
};

template <class Real>
Passes PassesOf(const Model& model, const std::vector<int32_t>& tokens) {
  const auto num_tokens = static_cast<int64_t>(tokens.size());
  Passes passes;
  Profile<Real> profile(model, 2);
  const std::vector<int64_t> positions = StretchedPositions(num_tokens, 2 * num_tokens);
  passes.loss = profile.ForwardBackward(tokens, positions, [&](const BlockStates<Real>& states) {
    const int64_t count = num_tokens * model.config().kv_dim();
    passes.gradients.insert(passes.gradients.end(), states.dk, states.dk + count);
    passes.gradients.insert(passes.gradients.end(), states.dv, states.dv + count);
  });
  return passes;
}

double Norm(const std::vector<double>& values) {
  double squares = 0;
  for (const double value : values) squares += value * value;
  return std::sqrt(squares);
}

double RelativeDistance(const std::vector<double>& found, const std::vector<double>& expected) {
  std::vector<double> difference = found;
  for (size_t i = 0; i < found.size(); ++i) difference[i] -= expected.at(i);
  return Norm(difference) / Norm(expected);
}

// Rows of whole blocks of 256; those of q and k lie in pairs in the file.
TinyModel WideModel() {
  TinyModel tiny;
  tiny.hidden = 256;
  tiny.inner = 512;
  tiny.layers = 2;
  tiny.heads = 8;
  tiny.kv_heads = 4;
  tiny.head_dim = 32;
  return tiny;
}

class ProfileOfType : public testing::TestWithParam<size_t> {};

// In double both models do the same operations with the same weights. In float they differ by the
// order of sums of up to 512 products: the bounds are those of profile_test.cc for float against
// double. Rounding x to 8 bits would change gradients by 1e-2. 40 tokens are few rows everywhere;
// 300 end in few rows in the MLP and the head.
TEST_P(ProfileOfType, GradientsAreThoseOfTheDecodedWeights) {
  const TinyModel tiny = WideModel();
  TinyWeights decoded = MakeTinyWeights(tiny);
  const TempFolder folder;
  const std::string file = folder.Write(
      "model.gguf", RandomGgufOf(tiny, static_cast<GgufTensorType>(GetParam()), decoded).Bytes());
  const std::shared_ptr<const Model> model = Model::Load(file);
  const TempFolder float_folder;
  WriteTinyModel(tiny, decoded, float_folder);
  const std::shared_ptr<const Model> as_floats = Model::Load(float_folder.path());
  for (const int64_t num_tokens : {40, 300}) {
    SCOPED_TRACE(num_tokens);
    const std::vector<int32_t> tokens = RandomTokens(tiny.vocab, num_tokens, 3);
    const Passes exact = PassesOf<double>(*as_floats, tokens);
    const Passes in_double = PassesOf<double>(*model, tokens);
    EXPECT_EQ(in_double.loss, exact.loss);
    EXPECT_EQ(in_double.gradients, exact.gradients);
    const Passes in_float = PassesOf<float>(*model, tokens);
    EXPECT_NEAR(in_float.loss, exact.loss, 1e-5 * exact.loss);
    EXPECT_LT(RelativeDistance(in_float.gradients, exact.gradients), 1e-4);
  }
}

std::string TypeName(const testing::TestParamInfo<size_t>& info) {
  return std::string(kGgufTensorLayouts[info.param].name);
}
INSTANTIATE_TEST_SUITE_P(Profile, ProfileOfType, testing::Range(size_t{0}, kNumGgufTensorTypes),
                         TypeName);

class ProfileOfMode : public testing::TestWithParam<WeightMode> {};

// --weights q8 and q4: gradients are those of the loss with these weights. Central differences of
// the loss in double along the gradient (profile_test.cc), which float follows.
TEST_P(ProfileOfMode, GradientsAreFiniteDifferences) {
  const TinyModel tiny = WideModel();
  const TempFolder folder;
  WriteTinyModel(tiny, MakeTinyWeights(tiny), folder);
  const std::shared_ptr<const Model> model = Model::Load(folder.path(), {GetParam(), 1});
  ASSERT_EQ(model->weights(), GetParam());
  const std::vector<int32_t> tokens = RandomTokens(tiny.vocab, 40, 3);
  const Passes in_double = PassesOf<double>(*model, tokens);
  const Passes in_float = PassesOf<float>(*model, tokens);
  EXPECT_NEAR(in_float.loss, in_double.loss, 1e-5 * in_double.loss);
  EXPECT_LT(RelativeDistance(in_float.gradients, in_double.gradients), 1e-4);
  EXPECT_NE(PassesOf<double>(*Model::Load(folder.path()), tokens).loss, in_double.loss);

  const std::vector<int64_t> positions = StretchedPositions(40, 80);
  std::vector<double> gradient;
  Profile<double> profile(*model, 1);
  profile.ForwardBackward(tokens, positions, [&](const BlockStates<double>& states) {
    if (states.layer != 0) return;
    gradient.assign(states.dv, states.dv + states.num_tokens * tiny.kv_dim());
  });
  const double norm = Norm(gradient);
  const auto loss_at = [&](double step) {
    std::vector<double> delta = gradient;
    for (double& value : delta) value *= step / norm;
    return profile.PerturbedLoss(tokens, positions, 0, nullptr, delta.data());
  };
  EXPECT_NEAR((loss_at(1e-4) - loss_at(-1e-4)) / 2e-4, norm, 1e-5 * norm);
}

INSTANTIATE_TEST_SUITE_P(Profile, ProfileOfMode, testing::Values(WeightMode::kQ8, WeightMode::kQ4),
                         [](const auto& mode) { return NameOf(mode.param); });

}  // namespace
}  // namespace pmkvq
