// pmkvq bench as its user runs it, in sizes that take a moment.
#include <gtest/gtest.h>

#include <cstdlib>

#include "pmkvq/io/json.h"
#include "support/run_program.h"

namespace pmkvq {
namespace {

using testing_support::ProgramResult;
using testing_support::RunProgram;

JsonValue RunBench(std::vector<std::string> args) {
  args.insert(args.begin(), "bench");
  args.insert(args.end(), {"--json", "-", "--repeat", "2", "--threads", "2"});
  const ProgramResult result = RunProgram(args);
  EXPECT_EQ(result.exit_code, 0) << result.err;
  return JsonValue::Parse(result.out, "bench.json");
}

// Ceilings are there, and no percentage hides a unit that is wrong by a thousand.
void ExpectCeilings(const JsonValue& json) {
  for (const char* name : {"read_gb_per_s", "copy_gb_per_s"}) {
    EXPECT_GT(json.At(name).AsDouble(), 0.01);
    EXPECT_LT(json.At(name).AsDouble(), 20000.0);
  }
  EXPECT_EQ(json.At("threads").AsInt(), 2);
}

void ExpectPositive(const JsonValue& row, const std::vector<std::string>& names) {
  for (const std::string& name : names) EXPECT_GT(row.At(name).AsDouble(), 0.0) << name;
}

TEST(Bench, AttentionOfOneCaseIsFlat) {
  for (const std::string mode : {"fast", "accurate"}) {
    const JsonValue json = RunBench(
        {"attention", "--shape", "longcot", "--bits", "4", "--depth", "1024", "--attention", mode});
    ExpectCeilings(json);
    ExpectPositive(json, {"ns_per_token_head", "gb_per_s", "percent_of_read"});
    EXPECT_EQ(json.At("attention").AsString(), mode);
    ASSERT_EQ(json.At("rows").size(), 1u);
    // One KV head, one block: bytes over time, two ways.
    const double from_time =
        json.At("stored_bytes").AsDouble() / 1024.0 / json.At("ns_per_token_head").AsDouble();
    EXPECT_NEAR(json.At("gb_per_s").AsDouble(), from_time, 1e-6 * from_time);
  }
}

// Keys of 4 bits and values of 2, in groups of a token or of a channel, beside plain pages.
TEST(Bench, AttentionOverKeysAndValuesOfUnlikeWidths) {
  for (const std::string axis : {"token", "channel"}) {
    const JsonValue json = RunBench({"attention", "--shape", "longcot", "--bits", "4,2", "--apart",
                                     "4:2,2:4", "--axis", axis, "--depth", "1024"});
    const JsonValue& rows = json.At("rows");
    ASSERT_EQ(rows.size(), 4u);
    EXPECT_EQ(rows.At(2).At("bits").AsString(), "4:2");
    EXPECT_EQ(rows.At(3).At("bits").AsString(), "2:4");
    const auto bytes = [&](size_t row) { return rows.At(row).At("stored_bytes").AsInt(); };
    // Codes of a page half as wide, and the same metadata.
    EXPECT_EQ(2 * bytes(2), bytes(0) + bytes(1)) << axis;
    EXPECT_EQ(bytes(3), bytes(2)) << axis;
    for (size_t row = 0; row < 4; ++row) ExpectPositive(rows.At(row), {"ns_per_token_head"});
  }
}

// Latents have a shape of their own, and a share of what bytes and arithmetic allow.
TEST(Bench, AttentionOverLatents) {
  const JsonValue json =
      RunBench({"attention", "--shape", "minicpm3", "--bits", "4", "--depth", "1024"});
  ExpectCeilings(json);
  ExpectPositive(json, {"ns_per_token_head", "gb_per_s", "gmac_per_s", "percent_of_allowed"});
  // 40 heads, 2 x 256 + 32 multiply-adds each.
  EXPECT_NEAR(json.At("gmac_per_s").AsDouble() * json.At("ns_per_token_head").AsDouble(),
              40 * (2 * 256 + 32), 1.0);
}

// PMKVQ_TARGET chooses the instruction set. A name that there is not is refused with those that
// there are, of which the last is the least.
TEST(Bench, RunsOnTheInstructionSetOfTheEnvironment) {
  setenv("PMKVQ_TARGET", "PDP11", 1);
  const ProgramResult unknown = RunProgram({"bench", "attention"});
  unsetenv("PMKVQ_TARGET");
  EXPECT_EQ(unknown.exit_code, 1);
  EXPECT_NE(unknown.err.find("[PMKVQ_TARGET] found \"PDP11\", expected one of "), std::string::npos)
      << unknown.err;
  std::string least = unknown.err.substr(unknown.err.rfind(' ') + 1);
  while (!least.empty() && least.back() == '\n') least.pop_back();
  ASSERT_FALSE(least.empty());

  setenv("PMKVQ_TARGET", least.c_str(), 1);
  const JsonValue json =
      RunBench({"attention", "--shape", "longcot", "--bits", "4", "--depth", "1024"});
  unsetenv("PMKVQ_TARGET");
  const std::string machine = json.At("machine").AsString();
  EXPECT_TRUE(machine.ends_with(", " + least)) << machine;
}

TEST(Bench, DecodeHasARowPerDepthAndWidth) {
  const JsonValue json = RunBench({"decode", "--shape", "longcot", "--layers", "2", "--bits",
                                   "16,2", "--depth", "0,512", "--batch", "2"});
  ExpectCeilings(json);
  const JsonValue rows = json.At("rows");
  ASSERT_EQ(rows.size(), 4u);
  for (size_t i = 0; i < rows.size(); ++i) {
    const JsonValue row = rows.At(i);
    EXPECT_EQ(row.At("depth").AsInt(), i < 2 ? 0 : 512);
    EXPECT_EQ(row.At("bits").AsInt(), i % 2 == 0 ? 16 : 2);
    ExpectPositive(row, {"tokens_per_s", "attention_ms", "gb_per_s"});
    EXPECT_LT(row.At("attention_ms").AsDouble(), row.At("ms_per_step").AsDouble());
    EXPECT_NEAR(row.At("tokens_per_s").AsDouble() * row.At("ms_per_step").AsDouble(), 2000.0, 1e-3);
  }
}

TEST(Bench, GemvPrefillHalveAndCalibrate) {
  const JsonValue gemv =
      RunBench({"gemv", "--shape", "longcot", "--layers", "2", "--batch", "1,4"});
  ASSERT_EQ(gemv.At("rows").size(), 2u);
  ExpectPositive(gemv.At("rows").At(size_t{1}), {"ms", "gb_per_s", "times_batch_1", "times_bound"});

  const JsonValue blocks = RunBench(
      {"gemv", "--shape", "longcot", "--layers", "2", "--batch", "1", "--weights", "Q4_K,Q8_0"});
  ASSERT_EQ(blocks.At("rows").size(), 2u);
  EXPECT_EQ(blocks.At("rows").At(size_t{0}).At("weights").AsString(), "Q4_K");
  EXPECT_EQ(blocks.At("rows").At(size_t{1}).At("weights").AsString(), "Q8_0");

  const JsonValue prefill = RunBench({"prefill", "--shape", "longcot", "--tokens", "96", "--chunk",
                                      "64", "--depth", "256", "--bits", "4"});
  ExpectPositive(prefill, {"tokens_per_s", "percent_of_sgemm", "sgemm_gflop_per_s"});

  const JsonValue halve = RunBench({"halve", "--shape", "longcot", "--layers", "2", "--depth",
                                    "1024", "--budget-tokens", "1024"});
  ASSERT_EQ(halve.At("rows").size(), 3u);
  for (size_t i = 0; i < 3; ++i) ExpectPositive(halve.At("rows").At(i), {"gb_per_s"});
  ASSERT_EQ(halve.At("pauses").size(), 2u);
  EXPECT_EQ(halve.At("pauses").At(size_t{0}).At("policy").AsString(), "oldest-first");
  ExpectPositive(halve.At("pauses").At(size_t{0}), {"longest_ms", "halved_pages"});

  const JsonValue calibrate =
      RunBench({"calibrate", "--model", PMKVQ_SOURCE_DIR "/models/longcot-10m", "--n-samples", "2",
                "--seq-len", "32"});
  ASSERT_EQ(calibrate.At("rows").size(), 5u);
  EXPECT_EQ(calibrate.At("tokens").AsInt(), 64);
  ExpectPositive(calibrate, {"total_seconds"});
}

TEST(Bench, SamplingHasARowPerBatchAndMode) {
  const JsonValue json = RunBench({"sampling", "--vocab", "5000", "--batch", "1,3"});
  ExpectCeilings(json);
  const JsonValue rows = json.At("rows");
  ASSERT_EQ(rows.size() % 2, 0u);
  for (size_t i = 0; i < rows.size(); ++i) {
    const JsonValue row = rows.At(i);
    EXPECT_EQ(row.At("batch").AsInt(), i < rows.size() / 2 ? 1 : 3);
    EXPECT_EQ(row.At("mode").AsString(), rows.At(i % (rows.size() / 2)).At("mode").AsString());
    ExpectPositive(row, {"us", "us_least", "cpu_us", "gb_per_s"});
    EXPECT_LE(row.At("us_least").AsDouble(), row.At("us").AsDouble());
  }
}

TEST(Bench, TypicalMistakesAreNamed) {
  const struct {
    std::vector<std::string> args;
    std::string part;
  } mistakes[] = {
      {{"attention", "--shape", "gpt-9"}, "expected one of qwen2-7b"},
      {{"attention", "--depth", "0", "--bits", "4"}, "--depth"},
      {{"attention", "--attention", "quick"}, "expected one of accurate, fast"},
      {{"attention", "--apart", "4"}, "found '4', expected the width of keys, a colon"},
      {{"attention", "--apart", "4:3"}, "found '3', expected widths out of 16, 8, 4, 2"},
      {{"attention", "--apart", "4:"}, "--apart"},
      {{"attention", "--axis", "head"}, "expected one of token, channel"},
      {{"attention", "--shape", "minicpm3", "--apart", "4:2"}, "found --apart or --axis channel"},
      {{"gemv", "--weights", "BF16,Q7"}, "found 'Q7', expected some of F32, F16, BF16, Q8, Q8_0"},
      {{"decode", "--weights", "q3"}, "expected one of as-stored, q8, q4"},
      {{"decode", "--bits", "3"}, "--bits"},
      {{"decode", "--layers", "1000"}, "--layers"},
      {{"halve", "--depth", "100"}, "--depth"},
      {{"sampling", "--vocab", "3"}, "--vocab"},
      {{"decode", "--json", "/nowhere/out.json"}, "/nowhere"},
  };
  for (const auto& mistake : mistakes) {
    std::vector<std::string> args = mistake.args;
    args.insert(args.begin(), "bench");
    const ProgramResult result = RunProgram(args);
    EXPECT_NE(result.exit_code, 0) << mistake.part;
    EXPECT_NE(result.err.find(mistake.part), std::string::npos) << result.err;
    EXPECT_EQ(result.out, "");
  }
}

}  // namespace
}  // namespace pmkvq
