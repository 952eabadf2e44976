// Grammars of outputs.
#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "pmkvq/engine/engine.h"
#include "support/engine_fixture.h"
#include "support/tiny_model.h"

namespace pmkvq {
namespace {

using testing_support::LoadTinyLlama;
using testing_support::MakeRequest;
using testing_support::RandomPrompt;
using testing_support::RunOne;

// Tokens that grow, by 5 at most.
class Rising : public OutputGrammar {
 public:
  explicit Rising(int32_t vocab_size) : vocab_size_(vocab_size) {}

  class Mask : public TokenMask {
   public:
    explicit Mask(int32_t vocab_size) : vocab_size_(vocab_size) {}
    std::span<const int32_t> Forbidden() override {
      forbidden_.clear();
      for (int32_t id = 0; id < vocab_size_; ++id) {
        if (id <= last_ || id > last_ + 5) forbidden_.push_back(id);
      }
      return forbidden_;
    }
    void Accept(int32_t token) override { last_ = token; }

   private:
    int32_t vocab_size_;
    int32_t last_ = 0;
    std::vector<int32_t> forbidden_;
  };
  std::unique_ptr<TokenMask> Start() const override { return std::make_unique<Mask>(vocab_size_); }

 private:
  int32_t vocab_size_;
};

class EngineMask : public testing::Test {
 protected:
  EngineMask() : model_(LoadTinyLlama()) {
    options_.kv.spec = "fp16";
    options_.max_sequences = 4;
    options_.max_len = 200;
    options_.num_threads = 1;
    request_ = MakeRequest(RandomPrompt(20, 1), 12, 3);
    request_.sampling.temperature = 2;
    request_.ignore_eos = true;
    request_.grammar = std::make_shared<Rising>(static_cast<int32_t>(model_->config().vocab_size));
  }
  Completion RunAlone(const Request& request) {
    Engine engine = OpenEngine(model_, nullptr, options_);
    return RunOne(engine, request);
  }
  static void ExpectRising(const Completion& completion) {
    EXPECT_EQ(completion.output_ids.size(), 12U);
    int32_t last = 0;
    for (const int32_t id : completion.output_ids) {
      EXPECT_GT(id, last);
      EXPECT_LE(id, last + 5);
      last = id;
    }
  }

  std::shared_ptr<const Model> model_;
  SpecEngineOptions options_;
  Request request_;
};

TEST_F(EngineMask, OnlyAllowedTokensAreDrawn) { ExpectRising(RunAlone(request_)); }

TEST_F(EngineMask, SamplesHaveMasksOfTheirOwn) {
  Engine engine = OpenEngine(model_, nullptr, options_);
  const std::vector<uint64_t> seeds = {1, 2, 3};
  const std::vector<Completion> all = engine.GenerateSamples(request_, seeds, nullptr, nullptr);
  for (const Completion& completion : all) ExpectRising(completion);
  EXPECT_NE(all[0].output_ids, all[1].output_ids);
}

TEST_F(EngineMask, ReplayedTokensCount) {
  const Completion whole = RunAlone(request_);
  request_.replay_ids = {whole.output_ids.begin(), whole.output_ids.begin() + 5};
  EXPECT_EQ(RunAlone(request_).output_ids, whole.output_ids);
}

TEST_F(EngineMask, OthersKeepTheirBitsAndLogprobsAreOfTheModel) {
  Request free = MakeRequest(RandomPrompt(20, 1), 1, 3);
  free.num_logprobs = 3;
  request_.num_logprobs = 3;
  const Completion alone = RunAlone(free);
  Engine engine = OpenEngine(model_, nullptr, options_);
  const std::vector<Completion> both = engine.Generate({free, request_}, nullptr, nullptr);
  EXPECT_EQ(both[0].output_ids, alone.output_ids);
  EXPECT_EQ(both[1].logprobs[0].top[0].logprob, alone.logprobs[0].top[0].logprob);
}

}  // namespace
}  // namespace pmkvq
