// Steady decoding allocates nothing: no step between two pages, on any thread.
#include <gtest/gtest.h>

#include <cctype>
#include <string>

#include "pmkvq/engine/engine.h"
#include "support/allocation_peak.h"
#include "support/engine_fixture.h"

namespace pmkvq {
namespace {

using testing_support::LoadTinyLlama;
using testing_support::MakeRequest;
using testing_support::RandomPrompt;

class EngineAllocation : public testing::TestWithParam<std::string> {};

TEST_P(EngineAllocation, SteadyDecodingAllocatesNothing) {
  SpecEngineOptions options;
  options.kv.spec = GetParam();
  if (GetParam().starts_with("pm-kvq")) options.kv.budget_bytes = 100000;
  options.max_sequences = 4;
  options.max_len = 2000;
  options.num_threads = 2;
  options.prefill_share = 1;  // All prompts before the measurement.
  Engine engine = OpenEngine(LoadTinyLlama(), nullptr, options);
  for (uint64_t i = 0; i < 4; ++i) {
    Request request = MakeRequest(RandomPrompt(700, i), 1000, i);
    if (i % 2 == 1) {
      request.sampling.temperature = 0.8;
      request.sampling.top_k = 20;
      request.sampling.top_p = 0.95;
    }
    engine.Submit(std::move(request));
  }
  for (int i = 0; i < 4; ++i) engine.Step(nullptr);  // The prompts.
  // Past the next page, so that everything has the size that it keeps.
  const SequenceId seq = engine.SequenceOf(1).value();
  while (engine.store().NumTokens(seq) < 1 + 6 * kPageTokens + 20) engine.Step(nullptr);
  const size_t before = testing_support::num_allocations;
  while (engine.store().NumTokens(seq) < 1 + 6 * kPageTokens + 100) engine.Step(nullptr);
  EXPECT_EQ(testing_support::num_allocations - before, 0u);
  EXPECT_EQ(engine.stats().num_running, 4);
}

INSTANTIATE_TEST_SUITE_P(Stores, EngineAllocation,
                         testing::Values("fp16", "static-4", "pm-kvq", "pm-kvq:policy=oldest-first",
                                         "pm-kvq:axis=channel+rotate=both"),
                         [](const auto& store) {
                           std::string name = store.param;
                           std::erase_if(name, [](char c) {
                             return std::isalnum(static_cast<unsigned char>(c)) == 0;
                           });
                           return name;
                         });

}  // namespace
}  // namespace pmkvq
