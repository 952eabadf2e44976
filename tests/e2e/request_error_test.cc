// A model with a bad weight row, and one whose keys f16 cannot hold, under every command: one error
// line and exit code 1, or one unsolved response among others.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "pmkvq/io/json.h"
#include "support/run_program.h"
#include "support/small_tokenizer.h"
#include "support/tiny_model.h"

namespace pmkvq {
namespace {

using testing_support::MakeTinyWeights;
using testing_support::ProgramResult;
using testing_support::RunProgram;
using testing_support::Slurp;
using testing_support::SmallTokenizer;
using testing_support::TempFolder;
using testing_support::TinyModel;
using testing_support::TinyWeights;
using testing_support::WriteTinyModel;

constexpr char kOdd = '@';

class RequestErrorTest : public testing::Test {
 protected:
  RequestErrorTest() {
    folder_.Write("tokenizer.json", SmallTokenizer().Json());
    folder_.Write("generation_config.json", "{}");
  }

  // The embedding of the token `@` is not a number.
  void WriteModelWithOddToken() {
    TinyWeights weights = MakeTinyWeights(tiny_);
    std::fill_n(weights.at("model.embed_tokens.weight").As<float>() + kOdd * tiny_.hidden,
                tiny_.hidden, std::numeric_limits<float>::quiet_NaN());
    WriteTinyModel(tiny_, weights, folder_);
  }
  void WriteModelWithOddHead(float value) {
    TinyWeights weights = MakeTinyWeights(tiny_);
    std::fill_n(weights.at("lm_head.weight").As<float>(), tiny_.hidden, value);
    WriteTinyModel(tiny_, weights, folder_);
  }
  // Each key fits f16; groups of them do not.
  void WriteModelWithWideKeys() {
    TinyWeights weights = MakeTinyWeights(tiny_);
    for (int64_t layer = 0; layer < tiny_.layers; ++layer) {
      Tensor& keys =
          weights.at("model.layers." + std::to_string(layer) + ".self_attn.k_proj.weight");
      for (int64_t i = 0; i < keys.num_elements(); ++i) keys.As<float>()[i] *= 11000.0f;
    }
    WriteTinyModel(tiny_, weights, folder_);
  }

  ProgramResult Run(const std::string& command, std::vector<std::string> args,
                    const std::string& input = "") const {
    args.insert(args.begin(), {command, "--model", folder_.path()});
    args.insert(args.end(), {"--threads", "1"});
    return RunProgram(args, input);
  }

  static void ExpectOneLine(const ProgramResult& result, const std::vector<std::string>& parts) {
    EXPECT_EQ(result.exit_code, 1) << result.err;
    // One line is the message; steps that measure also write their progress.
    const size_t message = result.err.find("pmkvq: ");
    ASSERT_NE(message, std::string::npos) << result.err;
    EXPECT_EQ(result.err.find('\n', message), result.err.size() - 1) << result.err;
    for (const std::string& part : parts) {
      EXPECT_NE(result.err.find(part), std::string::npos) << part << ": " << result.err;
    }
  }

  static std::string Ids(int64_t count) {
    std::string ids = "3";
    for (int64_t i = 1; i < count; ++i) ids += "," + std::to_string(3 + i * 7 % 60);
    return ids;
  }

  const TinyModel tiny_{.vocab = 256};
  TempFolder folder_;
};

TEST_F(RequestErrorTest, RunPrintsTheMessageAndFails) {
  WriteModelWithOddToken();
  for (const std::string samples : {"1", "3"}) {
    const ProgramResult result =
        Run("run", {"--prompt", "ab@c", "--chat-template", "none", "--max-tokens", "4",
                    "--n-samples", samples, "--json", folder_.File("out.json")});
    EXPECT_EQ(result.exit_code, 1);
    EXPECT_NE(result.err.find("pmkvq: [kv cache, block 0, position 2] the model produced a "
                              "non-finite key: found nan"),
              std::string::npos)
        << result.err;
    const JsonValue sequence =
        JsonValue::Parse(Slurp(folder_.File("out.json")), "out").At("sequences").At(size_t{0});
    EXPECT_EQ(sequence.At("finish_reason").AsString(), "error");
    EXPECT_NE(sequence.At("error").AsString().find("position 2"), std::string::npos);
  }
}

TEST_F(RequestErrorTest, BadLogitsAreNoCrashAtAnyTemperature) {
  for (const float value :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    WriteModelWithOddHead(value);
    for (const std::string temperature : {"0", "1"}) {
      const ProgramResult result = Run("run", {"--prompt-ids", "5,6", "--max-tokens", "2",
                                               "--temperature", temperature, "--json", "-"});
      ExpectOneLine(result, {"output head, position 1", "logits are not finite"});
    }
    ExpectOneLine(Run("logits", {"--prompt-ids", "5,6,7", "--out", folder_.File("l.safetensors")}),
                  {"output head, position 0", "logits are not finite"});
  }
}

TEST_F(RequestErrorTest, WideKeysAreRefusedAndBf16HoldsThem) {
  WriteModelWithWideKeys();
  for (const std::string spec : {"static-8", "static-2", "rtn", "kivi", "pm-kvq:axis=channel"}) {
    for (const std::string type : {"f16", "bf16"}) {
      std::vector<std::string> args = {
          "--prompt-ids", Ids(420),     "--kv", spec,    "--chunk",
          "16",           "--kv-dtype", type,   "--out", folder_.File("l.safetensors")};
      if (spec.starts_with("pm-kvq")) args.insert(args.end(), {"--kv-budget", "110000"});
      const ProgramResult result = Run("logits", args);
      if (type == "bf16") {
        EXPECT_EQ(result.exit_code, 0) << spec << result.err;
      } else {
        ExpectOneLine(result, {"[kv cache, block ", "position", "does not fit f16",
                               "--kv-dtype bf16 holds it"});
      }
    }
  }
}

TEST_F(RequestErrorTest, TheChatGoesOn) {
  WriteModelWithOddToken();
  const ProgramResult result =
      Run("run", {"--chat", "--chat-template", "chatml", "--max-tokens", "3"}, "a\nb@\nc\n");
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_NE(result.err.find("non-finite key"), std::string::npos) << result.err;
  EXPECT_NE(result.err.find("the message is dropped"), std::string::npos) << result.err;
  size_t answers = 0;
  for (size_t at = 0; (at = result.err.find("[length]", at)) != std::string::npos; ++at) ++answers;
  EXPECT_EQ(answers, 2u) << result.err;
}

TEST_F(RequestErrorTest, AnEvaluationLogsItAndGoesOn) {
  WriteModelWithOddToken();
  const std::string data = folder_.Write("problems.jsonl",
                                         R"({"id":"a","problem":"one","answer":"1"}
{"id":"b","problem":"two @","answer":"2"}
{"id":"c","problem":"three","answer":"3"}
)");
  const std::vector<std::string> args = {"--benchmark",     "jsonl", "--data",       data,
                                         "--chat-template", "none",  "--max-tokens", "4",
                                         "--batch",         "3",     "--kv",         "fp16"};
  std::vector<std::string> with_out = args;
  with_out.insert(with_out.end(), {"--out", folder_.File("out")});
  const ProgramResult result = Run("eval", with_out);
  EXPECT_EQ(result.exit_code, 0) << result.err;
  const std::string lines = Slurp(folder_.File("out/responses.jsonl"));
  ASSERT_EQ(std::count(lines.begin(), lines.end(), '\n'), 3);
  int num_errors = 0;
  for (size_t begin = 0; begin < lines.size(); begin = lines.find('\n', begin) + 1) {
    const JsonValue line =
        JsonValue::Parse(lines.substr(begin, lines.find('\n', begin) - begin), "line");
    const bool is_odd = line.At("id").AsString() == "b";
    EXPECT_EQ(line.At("finish_reason").AsString() == "error", is_odd);
    EXPECT_EQ(line.Has("error"), is_odd);
    num_errors += is_odd ? 1 : 0;
    if (!is_odd) continue;
    EXPECT_FALSE(line.At("correct").AsBool());
    EXPECT_NE(line.At("error").AsString().find("[kv cache, block 0, position 4]"),
              std::string::npos);
  }
  EXPECT_EQ(num_errors, 1);
  // A second run finds all three.
  EXPECT_EQ(Run("eval", with_out).exit_code, 0);
  EXPECT_EQ(Slurp(folder_.File("out/responses.jsonl")), lines);
  const ProgramResult judged = RunProgram({"judge", folder_.File("out")});
  EXPECT_EQ(judged.exit_code, 0) << judged.err;
}

TEST_F(RequestErrorTest, MeasurementsEndWithOneLine) {
  WriteModelWithOddToken();
  const std::string rows = folder_.Write("rows.jsonl",
                                         "{\"input_ids\":[1,2,3,64,5,6,7,8]}\n"
                                         "{\"input_ids\":[1,2,3,64,5,6,7,8]}\n");
  const std::vector<std::string> samples = {"--dataset", rows,        "--n-samples",
                                            "2",         "--seq-len", "8"};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.begin(), samples.begin(), samples.end());
    return more;
  };
  ExpectOneLine(Run("perplexity", with({})), {"block 0", "position 3", "non-finite"});
  ExpectOneLine(Run("sensitivity", with({"--json", folder_.File("s.json")})), {"finite"});
  ExpectOneLine(Run("max-keys", with({"--out", folder_.File("m.safetensors")})), {"finite"});
  ExpectOneLine(Run("calibrate", with({"--memory-budget", "1MiB", "--max-len", "512", "--plan",
                                       folder_.File("plan.json")})),
                {"finite"});
  for (const std::string method : {"oscar", "kvtuner", "kvmix", "rotatekv"}) {
    ExpectOneLine(Run("calibrate", with({"--kv", method, "--out", folder_.File("x.safetensors")})),
                  {"expected"});
  }
}

}  // namespace
}  // namespace pmkvq
