#include "pmkvq/engine/forced_output.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "support/engine_fixture.h"
#include "support/expect_error.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;
using testing_support::MakeRequest;
using testing_support::RandomPrompt;
using testing_support::RunOne;
using testing_support::TinyLlama;

SpecEngineOptions OptionsOf(const char* spec) {
  SpecEngineOptions options;
  options.kv.spec = spec;
  options.max_sequences = 2;
  options.max_len = 600;
  options.num_threads = 1;
  return options;
}

int64_t VocabSize() { return TinyLlama()->config().vocab_size; }

Completion RunForced(const char* spec, std::vector<int32_t> prompt, std::vector<int32_t> output) {
  Engine engine = OpenEngine(TinyLlama(), nullptr, OptionsOf(spec));
  return RunOne(engine, MakeForcedRequest(std::move(prompt), std::move(output), VocabSize()));
}

// What a request drew has the log-probabilities that it had when it was drawn: the cache is at the
// same widths, also where it has halved pages.
TEST(ForcedOutput, HasTheLogprobsOfTheRequestThatDrewIt) {
  for (const char* spec : {"fp16", "static-4", "pm-kvq:bits=2"}) {
    Request drawn = MakeRequest(RandomPrompt(40, 1), 300, 3);
    drawn.sampling.temperature = 2;
    drawn.num_logprobs = 1;
    Engine engine = OpenEngine(TinyLlama(), nullptr, OptionsOf(spec));
    const Completion expected = RunOne(engine, drawn);
    const Completion forced = RunForced(spec, drawn.prompt_ids, expected.output_ids);
    EXPECT_EQ(forced.output_ids, expected.output_ids) << spec;
    ASSERT_EQ(forced.logprobs.size(), expected.logprobs.size()) << spec;
    for (size_t i = 0; i < forced.logprobs.size(); ++i) {
      EXPECT_EQ(forced.logprobs[i].drawn.logprob, expected.logprobs[i].drawn.logprob) << spec << i;
      EXPECT_EQ(forced.logprobs[i].top[0].token, expected.logprobs[i].top[0].token) << spec << i;
    }
  }
}

// Each token may be the first, the last, repeated, or an end-of-sequence token.
TEST(ForcedOutput, DrawsAnyTokens) {
  const auto last = static_cast<int32_t>(VocabSize() - 1);
  std::vector<int32_t> output = {0, last, last, 0, 7, last, 7, 7};
  for (const int64_t id : TinyLlama()->config().eos_token_ids) {
    output.push_back(static_cast<int32_t>(id));
  }
  output.push_back(1);
  const Completion completion = RunForced("fp16", {5, 6, 7}, output);
  EXPECT_EQ(completion.output_ids, output);
  EXPECT_EQ(completion.finish_reason, FinishReason::kLength);
}

TEST(ForcedOutput, WrongTokensAreNamed) {
  ExpectError<InvalidInput>([] { MakeForcedRequest({1}, {}, 100); }, {"output_ids", "no tokens"});
  ExpectError<InvalidInput>([] { MakeForcedRequest({1}, {5, 100}, 100); }, {"output_ids", "100"});
  ExpectError<InvalidInput>([] { MakeForcedRequest({1}, {-1}, 100); }, {"output_ids", "-1"});
}

}  // namespace
}  // namespace pmkvq
