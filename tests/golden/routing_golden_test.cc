// Routing rules of five model families against their published definitions (README.md here).
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "pmkvq/io/safetensors.h"
#include "pmkvq/kernels/routing/routing.h"

namespace pmkvq {
namespace {

// Weights of up to 8 are stored as floats, and computed in 20 roundings of 6e-8.
constexpr double kTolerance = 1e-5;

TEST(RoutingGolden, ExpertsAndWeights) {
  const auto file = SafetensorsFile::Open(PMKVQ_SOURCE_DIR "/tests/golden/moe-routing.safetensors");
  const TensorView& logits = file.tensors().at("logits");
  const int64_t rows = logits.shape.at(0);
  RoutingRule plain;
  plain.num_experts = logits.shape.at(1);
  plain.num_chosen = file.tensors().at("greedy.experts").shape.at(1);
  RoutingRule normalized = plain;
  normalized.normalize = true;
  RoutingRule groups = plain;
  groups.num_groups = 4;
  groups.num_chosen_groups = 2;
  groups.factor = 16;
  RoutingRule sigmoid = groups;
  sigmoid.score = RouterScore::kSigmoid;
  sigmoid.group_top = 2;
  sigmoid.normalize = true;
  sigmoid.factor = 2.5;
  const std::map<std::string, RoutingRule> rules = {{"greedy", plain},
                                                    {"qwen3_moe", normalized},
                                                    {"mixtral", normalized},
                                                    {"group_limited_greedy", groups},
                                                    {"noaux_tc", sigmoid}};
  for (const auto& [name, rule] : rules) {
    SCOPED_TRACE(name);
    std::vector<float> scores(logits.As<float>(), logits.As<float>() + logits.num_elements());
    std::vector<int32_t> experts(static_cast<size_t>(rows * rule.num_chosen));
    std::vector<float> weights(experts.size());
    const float* const bias = name == "noaux_tc" ? file.tensors().at("bias").As<float>() : nullptr;
    RouteRows(rule, bias, rows, scores.data(), experts.data(), weights.data());
    const auto* const expected_experts = file.tensors().at(name + ".experts").As<int32_t>();
    const auto* const expected_weights = file.tensors().at(name + ".weights").As<float>();
    for (size_t i = 0; i < experts.size(); ++i) {
      EXPECT_EQ(experts[i], expected_experts[i]) << i;
      EXPECT_NEAR(weights[i], expected_weights[i], kTolerance) << i;
    }
  }
}

}  // namespace
}  // namespace pmkvq
