// A method that has weights in place of the model's: everything that runs a SPEC runs with them.
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "pmkvq/research/methods/prompt_logits.h"
#include "pmkvq/research/methods/registry.h"
#include "support/engine_fixture.h"

namespace pmkvq {
namespace {

using testing_support::MakeRequest;
using testing_support::RandomPrompt;
using testing_support::RunOne;
using testing_support::TinyLlama;

// Keeps everything at full precision.
class Exact final : public CacheMethod {
 public:
  explicit Exact(const MethodContext& context) : context_(context) {}
  void OnAppend(int64_t, const AppendedTokens&, SimulatedBlock&, MethodState*) const override {}
  int64_t BlockBytes(int64_t, int64_t num_tokens) const override {
    return 2 * context_.FloatBytes(num_tokens);
  }
  ByteGrowth Growth(int64_t) const override { return {}; }

 private:
  MethodContext context_;
};

std::map<std::string, Tensor> OtherValues(const Model& model) {
  const ModelConfig& config = model.config();
  Tensor values(DType::kF32, {config.kv_dim(), config.hidden_size});
  for (int64_t i = 0; i < values.num_elements(); ++i) {
    values.As<float>()[i] = 0.01f * static_cast<float>(i % 13 - 6);
  }
  std::map<std::string, Tensor> tensors;
  tensors.emplace("blocks.1.attn.v", std::move(values));
  return tensors;
}

class Replacements : public testing::Test {
 protected:
  Replacements() {
    SimulatedMethod method;
    method.name = "replacing";
    method.make = [](const MethodSpec&, const MethodContext& context) {
      return std::make_shared<const Exact>(context);
    };
    method.replacements = [](const MethodSpec&, const MethodContext&) {
      return OtherValues(*TinyLlama());
    };
    AddMethod(method);
    method.name = "plain";
    method.replacements = nullptr;
    AddMethod(method);
  }
  ~Replacements() override {
    RemoveMethod("replacing");
    RemoveMethod("plain");
  }
  static SpecEngineOptions Options(const std::string& spec) {
    SpecEngineOptions options;
    options.kv.spec = spec;
    options.max_len = 64;
    return options;
  }
};

TEST_F(Replacements, LogitsAreThoseOfTheChangedModel) {
  const std::vector<int32_t> ids = RandomPrompt(20, 3);
  const auto changed = TinyLlama()->WithWeights(OtherValues(*TinyLlama()), 1);
  const auto logits = [&](const Model& model, const std::string& spec) {
    const Tensor tensor = PromptLogits(model, ids, Options(spec), nullptr);
    return std::vector<float>(tensor.As<float>(), tensor.As<float>() + tensor.num_elements());
  };
  EXPECT_EQ(logits(*TinyLlama(), "replacing"), logits(*changed, "plain"));
  EXPECT_NE(logits(*TinyLlama(), "replacing"), logits(*TinyLlama(), "plain"));
  EXPECT_EQ(ModelWithWeightsOf(Options("plain").kv, *TinyLlama(), 1), nullptr);
  EXPECT_EQ(ModelWithWeightsOf(Options("fp16").kv, *TinyLlama(), 1), nullptr);
}

TEST_F(Replacements, AnEngineOutlivesTheModelThatItWasGiven) {
  const auto changed = TinyLlama()->WithWeights(OtherValues(*TinyLlama()), 1);
  const auto run = [&](std::shared_ptr<const Model> model, const std::string& spec) {
    Engine engine = OpenEngine(std::move(model), nullptr, Options(spec));
    return RunOne(engine, MakeRequest(RandomPrompt(20, 3), 20)).output_ids;
  };
  EXPECT_EQ(run(testing_support::LoadTinyLlama(), "replacing"), run(changed, "plain"));
}

}  // namespace
}  // namespace pmkvq
