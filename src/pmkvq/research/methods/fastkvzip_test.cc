// The gate, its training, and the choice over all blocks and heads.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "pmkvq/base/error.h"
#include "pmkvq/base/random.h"
#include "pmkvq/research/methods/fastkvzip_gate.h"
#include "pmkvq/research/methods/registry.h"
#include "support/calibration_support.h"
#include "support/damage_rows.h"
#include "support/expect_error.h"
#include "support/method_rule.h"
#include "support/temp_folder.h"

namespace pmkvq {
namespace {

using testing_support::Damaged;
using testing_support::ExpectError;
using testing_support::NamedTensors;
using testing_support::RandomSamples;
using testing_support::TempFolder;
using testing_support::TinyFolder;
using testing_support::TinyModel;

std::vector<float> RandomFloats(int64_t count, double least, double most, uint64_t seed) {
  Random random(seed);
  std::vector<float> values;
  for (int64_t i = 0; i < count; ++i) {
    values.push_back(static_cast<float>(least + (most - least) * random.Uniform()));
  }
  return values;
}

// tests/golden/methods/fastkvzip.safetensors: two blocks, two KV heads of three query heads.
class FastKvZipGolden : public testing::Test {
 protected:
  FastKvZipGolden()
      : file_(
            SafetensorsFile::Open(PMKVQ_SOURCE_DIR "/tests/golden/methods/fastkvzip.safetensors")) {
    for (const auto& [name, view] : file_.tensors()) {
      if (name.rfind("gate.", 0) != 0) continue;
      Tensor tensor(DType::kF32, view.shape);
      std::copy_n(view.As<float>(), view.num_elements(), tensor.As<float>());
      gates_.emplace(name, std::move(tensor));
    }
    data_.method = "fastkvzip";
    data_.spec = "fastkvzip";
    data_.geometry = {2, 6, 2, 8};
    data_.tensors = gates_;
    path_ = folder_.File("gates.safetensors");
  }
  // Keys and values of any kind, and the golden's inputs.
  NamedTensors Tensors() const {
    NamedTensors tensors;
    for (const auto& [name, heads] : {std::pair("q", 6), {"k", 2}, {"v", 2}}) {
      Tensor tensor(DType::kF32, {2, heads, 60, 8});
      const std::vector<float> values = RandomFloats(tensor.num_elements(), -1, 1, 5);
      std::copy(values.begin(), values.end(), tensor.As<float>());
      tensors.emplace(name, std::move(tensor));
    }
    Tensor input(DType::kF32, {2, 60, 48});
    for (int64_t layer = 0; layer < 2; ++layer) {
      const TensorView& hidden =
          file_.Get("hidden." + std::to_string(layer), DType::kF32, {60, 48});
      std::copy_n(hidden.As<float>(), hidden.num_elements(), input.As<float>() + layer * 60 * 48);
    }
    tensors.emplace("attention_input", std::move(input));
    return tensors;
  }
  std::string Spec() const { return "fastkvzip:from=" + path_ + "+capacity=24+window=8+first=4"; }

  SafetensorsFile file_;
  NamedTensors gates_;
  MethodData data_;
  TempFolder folder_;
  std::string path_;
};

TEST_F(FastKvZipGolden, ScoresAreEqual) {
  for (int64_t layer = 0; layer < 2; ++layer) {
    const std::string index = std::to_string(layer);
    const FastKvZipGate gate(gates_, "gate." + index + ".", 2, 3, "golden");
    const TensorView& hidden = file_.Get("hidden." + index, DType::kF32, {60, 48});
    const TensorView& expected = file_.Get("score." + index, DType::kF32, {2, 60});
    std::vector<float> scores(2 * 60);
    gate.Score(hidden.As<float>(), 60, scores.data());
    for (size_t token = 0; token < 60; ++token) {
      for (size_t head = 0; head < 2; ++head) {
        EXPECT_NEAR(scores[token * 2 + head], expected.As<float>()[head * 60 + token], 1e-4f);
      }
    }
  }
}

TEST_F(FastKvZipGolden, KeepsTheSamePairs) {
  SaveMethodData(data_, path_);
  const DamageResult result = Damaged(Tensors(), Spec(), 60);
  const TensorView& keep = file_.Get("keep", DType::kU8, {2, 2, 60});
  EXPECT_TRUE(std::equal(keep.As<uint8_t>(), keep.As<uint8_t>() + 240, result.kept.As<uint8_t>()));
  // 96 pairs, each of two rows of 8 values and a score.
  EXPECT_EQ(result.bytes.back(), 96 * (2 * 8 * 4 + 4));
  EXPECT_DOUBLE_EQ(result.kept_share, 96.0 / 240);
  EXPECT_EQ(result.peak_bytes, 240 * (2 * 8 * 4 + 4)) << "fewer than capacity and every";
}

TEST_F(FastKvZipGolden, RunsAfterSoManyTokens) {
  SaveMethodData(data_, path_);
  const DamageResult result = Damaged(Tensors(), Spec() + "+every=20");
  constexpr int64_t kPair = 2 * 8 * 4 + 4;
  EXPECT_EQ(result.bytes[38], 39 * 4 * kPair);
  EXPECT_EQ(result.bytes[39], 24 * 4 * kPair);
  EXPECT_EQ(result.bytes[58], (24 + 19) * 4 * kPair);
  EXPECT_EQ(result.bytes[59], 24 * 4 * kPair);
  EXPECT_EQ(result.peak_bytes, 44 * 4 * kPair);
  const auto* const kept = result.kept.As<uint8_t>();
  for (int64_t head = 0; head < 4; ++head) {
    for (const int64_t token : {0, 1, 2, 3, 52, 53, 54, 55, 56, 57, 58, 59}) {
      EXPECT_EQ(kept[head * 60 + token], 1) << token;
    }
  }
}

TEST_F(FastKvZipGolden, BoundsAreOfTheWholeSequence) {
  SaveMethodData(data_, path_);
  KvOptions options;
  options.spec = Spec();
  const KvBudget budget = ResolveKvBudget(options, {data_.geometry, 1, 4096, 1});
  constexpr int64_t kPair = 2 * 8 * 2 + 4;
  EXPECT_EQ(budget.total_bytes(), (24 + 128) * 4 * kPair);
  EXPECT_TRUE(budget.Holds(int64_t{1} << 40));
  options.budget_bytes = 100 * 4 * kPair;
  const KvBudget small = ResolveKvBudget(options, {data_.geometry, 1, 4096, 1});
  EXPECT_TRUE(small.Holds(99));
  EXPECT_FALSE(small.Holds(101));
}

TEST_F(FastKvZipGolden, NamesWhatIsWrongWithGates) {
  data_.tensors.erase("gate.1.b");
  SaveMethodData(data_, path_);
  ExpectError<InvalidInput>([&] { Damaged(Tensors(), Spec(), 60); },
                            {path_, "'gate.1.b'", "found none"});
  data_.tensors["gate.1.b"] = Tensor(DType::kF32, {2, 1, 2});
  SaveMethodData(data_, path_);
  ExpectError<InvalidInput>([&] { Damaged(Tensors(), Spec(), 60); },
                            {path_, "'gate.1.b'", "[2, 1, 2]", "[2, 1, 3]"});
}

TEST(FastKvZip, NamesWhatItNeeds) {
  testing_support::ExpectRefused("fastkvzip:capacity=132", "expected more than the 132 tokens");
  testing_support::ExpectRefused("fastkvzip", "pmkvq calibrate --kv fastkvzip");
}

TEST(FastKvZipGateTest, GradientIsThatOfTheLoss) {
  constexpr int64_t kRows = 7;
  FastKvZipGate gate(2, 3, 10, 4);
  // Away from the start, where biases are 0 and norms 1.
  const std::vector<float> noise = RandomFloats(std::ssize(gate.parameters()), -0.2, 0.2, 9);
  for (size_t i = 0; i < noise.size(); ++i) gate.parameters()[i] += noise[i];
  const std::vector<float> h = RandomFloats(kRows * 10, -1, 1, 1);
  const std::vector<float> targets = RandomFloats(kRows * 2, 0, 1, 2);
  const std::vector<float> gradient = gate.Gradient(h.data(), kRows, targets.data());
  double largest = 0;
  for (const float value : gradient) largest = std::max(largest, std::abs(double{value}));
  for (size_t i = 0; i < gradient.size(); i += 3) {
    const float kept = gate.parameters()[i];
    constexpr float kStep = 1e-2f;
    gate.parameters()[i] = kept + kStep;
    const double above = gate.Loss(h.data(), kRows, targets.data());
    gate.parameters()[i] = kept - kStep;
    const double below = gate.Loss(h.data(), kRows, targets.data());
    gate.parameters()[i] = kept;
    // Float sums of some hundred terms, and a third derivative times 1e-4 / 6.
    EXPECT_NEAR(gradient[i], (above - below) / 0.02, 2e-3 * largest + 1e-4) << i;
  }
}

TEST(FastKvZipGateTest, TrainingLearnsATarget) {
  constexpr int64_t kRows = 200;
  FastKvZipGate gate(1, 2, 12, 4);
  const std::vector<float> h = RandomFloats(kRows * 12, -1, 1, 1);
  std::vector<float> targets;
  for (int64_t row = 0; row < kRows; ++row) {
    targets.push_back(h[static_cast<size_t>(row * 12)] > 0.2f ? 0.9f : 0.05f);
  }
  const double before = gate.Loss(h.data(), kRows, targets.data());
  for (int64_t step = 0; step < 400; ++step) gate.Step(h.data(), kRows, targets.data(), 0.2f, 0.9f);
  const double after = gate.Loss(h.data(), kRows, targets.data());
  // The targets' own entropy is 0.25: a constant answer has 0.67.
  EXPECT_LT(after, 0.5 * before);
  EXPECT_LT(after, 0.45);
}

TEST(FastKvZipCalibration, MakesGatesThatAModelRunsWith) {
  const TinyModel tiny;
  const TinyFolder folder(tiny);
  const std::shared_ptr<const Model> model = folder.Load();
  const Samples samples = RandomSamples(tiny.vocab, {40, 30}, 7);
  CalibrationContext calibration;
  calibration.model = model.get();
  calibration.samples = &samples;
  const CalibrationRecord record{"texts", "concat", 2, 40, 40, 42};
  const MethodData data = CalibrateMethod("fastkvzip:steps=20", DType::kF16, calibration, record);
  EXPECT_EQ(data.tensors.size(), static_cast<size_t>(7 * tiny.layers));
  const MethodData again = CalibrateMethod("fastkvzip:steps=20", DType::kF16, calibration, record);
  for (const auto& [name, tensor] : data.tensors) {
    const Tensor& other = again.tensors.at(name);
    EXPECT_TRUE(std::equal(tensor.As<float>(), tensor.As<float>() + tensor.num_elements(),
                           other.As<float>()))
        << name;
  }
  const TempFolder files;
  const std::string path = files.File("gates.safetensors");
  SaveMethodData(data, path);

  KvOptions options;
  options.spec = "fastkvzip:from=" + path + "+capacity=30+window=8+every=10";
  const KvRequirements needs{model->kv_geometry(), 1, 200, 1, &model->rope(), &model->checkpoint()};
  const std::unique_ptr<KvStore> store = MakeKvStore(options, needs);
  const SequenceId seq = *store->Open();
  ForwardWorkspace workspace;
  const std::vector<int32_t> tokens = testing_support::RandomTokens(tiny.vocab, 100, 3);
  for (int64_t token = 0; token < 100; ++token) {
    ASSERT_EQ(store->Reserve(seq, 1), ReserveResult::kReserved);
    const ForwardChunk chunk{seq, {tokens.data() + token, 1}, token, ForwardChunk::Logits::kNone};
    ThrowIfFailed(model->Forward({&chunk, 1}, *store, workspace, 1));
  }
  EXPECT_DOUBLE_EQ(store->SequenceStats(seq).kept_share, 0.3);
}

}  // namespace
}  // namespace pmkvq
