// Passes for calibration on a CUDA device beside those of the CPU in double.
#include "pmkvq/model/device/device_profile.h"

#include <cmath>
#include <functional>
#include <limits>
#include <memory>

#include "pmkvq/base/error.h"
#include "pmkvq/model/profile.h"
#include "support/device_models.h"
#include "support/expect_error.h"
#include "support/gpu_test.h"

namespace pmkvq {
namespace {

using testing_support::MakeTinyWeights;
using testing_support::PlainDeviceModels;
using testing_support::RandomTokens;
using testing_support::TempFolder;
using testing_support::TinyModel;
using testing_support::TinyWeights;
using testing_support::WithHeads;
using testing_support::WriteTinyModel;
using Precision = DeviceProfile::Precision;

constexpr DeviceId kCuda{Device::kCuda, 0};

std::map<std::string, TinyModel> Models() {
  std::map<std::string, TinyModel> models = PlainDeviceModels();
  models["qwen3_bf16"] = WithHeads(
      {.architecture = "Qwen3ForCausalLM", .qk_norm = true, .dtype = DType::kBF16}, 6, 3, 64);
  return models;
}

std::shared_ptr<const Model> Load(const TinyModel& tiny, const TinyWeights& weights,
                                  DeviceId device) {
  TempFolder folder;
  WriteTinyModel(tiny, weights, folder);
  ModelOptions options;
  options.device = device;
  return Model::Load(folder.path(), options);
}

// States of one block, as the CPU lays them out: [N, heads, D].
struct States {
  std::vector<double> q, k, v, dk, dv;
};

// Copies rows of the device, whose queries are grouped by KV head.
class Download {
 public:
  Download(DeviceProfile& profile, const ModelConfig& config)
      : profile_(profile), config_(config) {}

  std::vector<double> Keys(const float* from, int64_t tokens) {
    return Copy(from, tokens * config_.kv_dim());
  }
  std::vector<double> Queries(const float* from, int64_t tokens, int64_t rows) {
    const std::vector<double> grouped = Copy(from, rows * config_.q_dim());
    const int64_t group = config_.num_heads / config_.num_kv_heads;
    std::vector<double> plain;
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t head = 0; head < config_.num_heads; ++head) {
        const int64_t row = (head / group * rows + t) * group + head % group;
        const auto begin = grouped.begin() + row * config_.head_dim;
        plain.insert(plain.end(), begin, begin + config_.head_dim);
      }
    }
    return plain;
  }

 private:
  std::vector<double> Copy(const float* from, int64_t count) {
    std::vector<float> host(static_cast<size_t>(count));
    CopyToHost(profile_.stream(), host.data(), reinterpret_cast<const std::byte*>(from),
               host.size() * sizeof(float));
    profile_.stream().Synchronize();
    return {host.begin(), host.end()};
  }

  DeviceProfile& profile_;
  const ModelConfig& config_;
};

struct Pass {
  double loss = 0.0;
  std::vector<States> forward, backward;
};

Pass RunOnCpu(const Model& model, const std::vector<int32_t>& tokens,
              const std::vector<int64_t>& positions) {
  Pass pass;
  const auto layers = static_cast<size_t>(model.config().num_layers);
  pass.forward.resize(layers);
  pass.backward.resize(layers);
  Profile<double> profile(model, 2);
  const auto copy = [](const double* from, int64_t count) {
    return std::vector<double>(from, from + count);
  };
  profile.Forward(tokens, positions, [&](const BlockStates<double>& states) {
    States& to = pass.forward[static_cast<size_t>(states.layer)];
    to.q = copy(states.q, states.num_tokens * model.config().q_dim());
    to.k = copy(states.k, states.num_tokens * model.config().kv_dim());
    to.v = copy(states.v, states.num_tokens * model.config().kv_dim());
  });
  pass.loss = profile.ForwardBackward(tokens, positions, [&](const BlockStates<double>& states) {
    States& to = pass.backward[static_cast<size_t>(states.layer)];
    to.dk = copy(states.dk, states.num_tokens * model.config().kv_dim());
    to.dv = copy(states.dv, states.num_tokens * model.config().kv_dim());
  });
  return pass;
}

Pass RunOnDevice(const Model& model, DeviceProfile& profile, const std::vector<int32_t>& tokens,
                 const std::vector<int64_t>& positions) {
  Pass pass;
  const auto layers = static_cast<size_t>(model.config().num_layers);
  pass.forward.resize(layers);
  pass.backward.resize(layers);
  Download download(profile, model.config());
  pass.loss = profile.ForwardBackward(
      tokens, positions,
      [&](const DeviceBlockStates& states) {
        States& to = pass.forward[static_cast<size_t>(states.layer)];
        to.q = download.Queries(states.q, states.num_tokens, states.rows);
        to.k = download.Keys(states.k, states.num_tokens);
        to.v = download.Keys(states.v, states.num_tokens);
      },
      [&](const DeviceBlockStates& states) {
        States& to = pass.backward[static_cast<size_t>(states.layer)];
        to.dk = download.Keys(states.dk, states.num_tokens);
        to.dv = download.Keys(states.dv, states.num_tokens);
      });
  return pass;
}

double Error(const std::vector<double>& got, const std::vector<double>& expected) {
  if (got.size() != expected.size()) return std::numeric_limits<double>::infinity();
  double difference = 0.0;
  double size = 0.0;
  for (size_t i = 0; i < got.size(); ++i) {
    difference += std::pow(got[i] - expected[i], 2);
    size += std::pow(expected[i], 2);
  }
  return std::sqrt(difference / size);
}

void ExpectError(const std::vector<double>& got, const std::vector<double>& expected,
                 double tolerance, const std::string& what) {
  const double error = Error(got, expected);
  EXPECT_LT(error, tolerance) << what;
}

class DeviceProfileTest : public GpuTest {};
class DeviceProfileSmallTest : public GpuTest {};

// Of the states: sums of floats in another order, in three blocks; and angles of RoPE as floats,
// which at position 6,336 are known to 2e-4 for the fastest of 32 pairs.
constexpr double kExactTolerance = 5e-5;
// Operands of 11 bits, 2^-12 each on average less; gradients go through all products of three
// blocks.
constexpr double kRoundedTolerance = 3e-3;

void CheckPasses(const TinyModel& tiny, int64_t num_tokens, DeviceProfile& profile,
                 const Model& cuda, const Model& cpu) {
  const std::vector<int32_t> tokens = RandomTokens(tiny.vocab, num_tokens, 7);
  const std::vector<int64_t> positions = StretchedPositions(num_tokens, 3 * num_tokens);
  const Pass expected = RunOnCpu(cpu, tokens, positions);
  const Pass got = RunOnDevice(cuda, profile, tokens, positions);
  const double gradients = tiny.dtype == DType::kF32 ? kExactTolerance : kRoundedTolerance;
  EXPECT_NEAR(got.loss, expected.loss, kExactTolerance * expected.loss);
  for (size_t layer = 0; layer < expected.forward.size(); ++layer) {
    const std::string block = "block " + std::to_string(layer);
    ExpectError(got.forward[layer].q, expected.forward[layer].q, kExactTolerance, block + " q");
    ExpectError(got.forward[layer].k, expected.forward[layer].k, kExactTolerance, block + " k");
    ExpectError(got.forward[layer].v, expected.forward[layer].v, kExactTolerance, block + " v");
    ExpectError(got.backward[layer].dk, expected.backward[layer].dk, gradients, block + " dk");
    ExpectError(got.backward[layer].dv, expected.backward[layer].dv, gradients, block + " dv");
  }

  // The fast forward pass, and the one that only measures.
  for (const bool with_loss : {true, false}) {
    std::vector<States> fast(expected.forward.size());
    Download download(profile, cuda.config());
    const double loss = profile.Forward(tokens, positions, Precision::kFast, with_loss,
                                        [&](const DeviceBlockStates& states) {
                                          States& to = fast[static_cast<size_t>(states.layer)];
                                          to.k = download.Keys(states.k, states.num_tokens);
                                          to.v = download.Keys(states.v, states.num_tokens);
                                        });
    const double tolerance = tiny.dtype == DType::kF32 ? kExactTolerance : kRoundedTolerance;
    if (with_loss) {
      EXPECT_NEAR(loss, expected.loss, tolerance * expected.loss);
    } else {
      EXPECT_EQ(loss, 0.0);
    }
    for (size_t layer = 0; layer < fast.size(); ++layer) {
      const std::string block = "fast block " + std::to_string(layer);
      ExpectError(fast[layer].k, expected.forward[layer].k, tolerance, block + " k");
      ExpectError(fast[layer].v, expected.forward[layer].v, tolerance, block + " v");
    }
  }
}

TEST_F(DeviceProfileTest, PassesAreThoseOfTheCpu) {
  for (const auto& [name, tiny] : Models()) {
    const TinyWeights weights = MakeTinyWeights(tiny);
    const auto cpu = Load(tiny, weights, {});
    const auto cuda = Load(tiny, weights, kCuda);
    DeviceProfile profile(*cuda);
    // Within one group of rows, and over two tiles of queries; then shorter again.
    for (const int64_t num_tokens : {19, 601, 64}) {
      SCOPED_TRACE(name + " " + std::to_string(num_tokens));
      CheckPasses(tiny, num_tokens, profile, *cuda, *cpu);
    }
    EXPECT_GT(profile.num_bytes(), 0);
  }
}

// More than 2,048 columns of scores are not kept in registers.
TEST_F(DeviceProfileTest, LongSequencesAreThoseOfTheCpu) {
  TinyModel tiny = WithHeads({.dtype = DType::kBF16}, 2, 1, 64);
  tiny.layers = 2;
  const TinyWeights weights = MakeTinyWeights(tiny);
  const auto cpu = Load(tiny, weights, {});
  const auto cuda = Load(tiny, weights, kCuda);
  DeviceProfile profile(*cuda);
  CheckPasses(tiny, 2113, profile, *cuda, *cpu);
}

// Small enough for a sanitizer.
TEST_F(DeviceProfileSmallTest, PassesAreThoseOfTheCpu) {
  const TinyModel tiny = WithHeads({.architecture = "Qwen3ForCausalLM",
                                    .qkv_bias = false,
                                    .qk_norm = true,
                                    .dtype = DType::kBF16},
                                   4, 2, 64);
  const TinyWeights weights = MakeTinyWeights(tiny);
  const auto cpu = Load(tiny, weights, {});
  const auto cuda = Load(tiny, weights, kCuda);
  DeviceProfile profile(*cuda);
  CheckPasses(tiny, 70, profile, *cuda, *cpu);
}

TEST_F(DeviceProfileTest, RunsAreRepeatable) {
  const TinyModel tiny = Models().at("qwen2_bf16_tied");
  const auto cuda = Load(tiny, MakeTinyWeights(tiny), kCuda);
  const std::vector<int32_t> tokens = RandomTokens(tiny.vocab, 200, 3);
  const std::vector<int64_t> positions = StretchedPositions(200, 200);
  DeviceProfile profile(*cuda);
  const Pass first = RunOnDevice(*cuda, profile, tokens, positions);
  const Pass second = RunOnDevice(*cuda, profile, tokens, positions);
  EXPECT_EQ(first.loss, second.loss);
  for (size_t layer = 0; layer < first.backward.size(); ++layer) {
    EXPECT_EQ(first.backward[layer].dk, second.backward[layer].dk);
    EXPECT_EQ(first.backward[layer].dv, second.backward[layer].dv);
  }
}

// Weights whose values are far from 1 keep their precision: F16 alone would lose them.
TEST_F(DeviceProfileTest, SmallAndLargeWeightsKeepTheirPrecision) {
  const TinyModel tiny = WithHeads({.dtype = DType::kBF16}, 4, 2, 64);
  TinyWeights weights = MakeTinyWeights(tiny);
  const auto scale = [&](const std::string& name, float factor) {
    auto* const values = weights.at(name).As<BF16>();
    for (int64_t i = 0; i < weights.at(name).num_elements(); ++i) {
      values[i] = ToBF16(ToFloat(values[i]) * factor);
    }
  };
  for (const auto& [block, factor] :
       {std::pair{"model.layers.0.", 0x1p40f}, {"model.layers.1.", 0x1p-40f}}) {
    const std::string prefix = block;
    scale(prefix + "input_layernorm.weight", factor);
    for (const char* name : {"q_proj", "k_proj", "v_proj"}) {
      scale(prefix + "self_attn." + name + ".weight", 1.0f / factor);
    }
    scale(prefix + "post_attention_layernorm.weight", factor);
    for (const char* name : {"gate_proj", "up_proj"}) {
      scale(prefix + "mlp." + name + ".weight", 1.0f / factor);
    }
  }
  // Within a matrix, and of the largest activations.
  scale("model.layers.2.mlp.up_proj.weight", 0x1p9f);
  scale("model.layers.2.mlp.down_proj.weight", 0x1p-9f);
  const auto cpu = Load(tiny, weights, {});
  const auto cuda = Load(tiny, weights, kCuda);
  DeviceProfile profile(*cuda);
  CheckPasses(tiny, 50, profile, *cuda, *cpu);
}

TEST_F(DeviceProfileTest, WhatThereIsNoGradientForIsRefusedByName) {
  TinyModel windows = WithHeads({.architecture = "MistralForCausalLM"}, 4, 2, 64);
  windows.window = 9;
  const auto model = Load(windows, MakeTinyWeights(windows), kCuda);
  testing_support::ExpectError<Unsupported>([&] { const DeviceProfile profile(*model); },
                                            {"calibration", "sliding windows", "--device cpu"});
}

TEST_F(DeviceProfileTest, WeightsThatAreNotFiniteAreNamed) {
  const TinyModel tiny = WithHeads({}, 4, 2, 64);
  const std::map<std::string, std::string> places = {
      {"model.embed_tokens.weight", "embedding"},
      {"model.layers.1.self_attn.k_proj.weight", "block 1"},
      {"model.layers.2.mlp.down_proj.weight", "block 2"},
      {"model.norm.weight", "output head"}};
  for (const auto& [tensor, place] : places) {
    TinyWeights weights = MakeTinyWeights(tiny);
    for (int64_t i = 0; i < weights.at(tensor).num_elements(); i += 3) {
      weights.at(tensor).As<float>()[i] = std::numeric_limits<float>::quiet_NaN();
    }
    const auto cuda = Load(tiny, weights, kCuda);
    DeviceProfile profile(*cuda);
    const std::vector<int32_t> tokens = RandomTokens(tiny.vocab, 30, 3);
    const std::vector<int64_t> positions = StretchedPositions(30, 30);
    SCOPED_TRACE(tensor);
    testing_support::ExpectError<InvalidInput>(
        [&] { profile.Forward(tokens, positions, Precision::kExact, true, nullptr); },
        {place, "finite"});
    testing_support::ExpectError<InvalidInput>(
        [&] { profile.ForwardBackward(tokens, positions, nullptr, nullptr); }, {place, "finite"});
  }
}

}  // namespace
}  // namespace pmkvq
