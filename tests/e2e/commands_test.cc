// Every subcommand as its user runs it, in the exact shapes that the README documents.
#include <gtest/gtest.h>
#include <sys/prctl.h>

#include <filesystem>
#include <sstream>

#include "pmkvq/io/json.h"
#include "pmkvq/io/safetensors.h"
#include "support/run_program.h"

namespace pmkvq {
namespace {

using testing_support::Interrupt;
using testing_support::ProgramResult;
using testing_support::RunProgram;
using testing_support::Slurp;
using testing_support::TempFolder;

const std::string kModel = PMKVQ_SOURCE_DIR "/models/longcot-10m";
const std::string kTiny = PMKVQ_SOURCE_DIR "/tests/golden/tiny-llama";
const std::string kGolden = PMKVQ_SOURCE_DIR "/tests/golden/";

JsonValue ParseOut(const ProgramResult& result) {
  EXPECT_EQ(result.exit_code, 0) << result.err;
  return JsonValue::Parse(result.out, "stdout");
}

std::string JoinIds(const TensorView& ids) {
  std::string text;
  for (int64_t i = 0; i < ids.num_elements(); ++i) {
    text += (i > 0 ? "," : "") + std::to_string(ids.As<int64_t>()[i]);
  }
  return text;
}

// A data set of the golden calibration ids, one row each.
std::string WriteGoldenDataset(const TempFolder& folder, const std::string& model) {
  const SafetensorsFile golden = SafetensorsFile::Open(kGolden + model + ".safetensors");
  const TensorView& ids = *golden.Find("calib_ids");
  std::string lines;
  for (int64_t row = 0; row < ids.shape[0]; ++row) {
    JsonWriter json;
    const int64_t* begin = ids.As<int64_t>() + row * ids.shape[1];
    json.BeginObject().Key("input_ids").Array(std::vector<int64_t>(begin, begin + ids.shape[1]));
    lines += json.EndObject().text() + "\n";
  }
  return folder.Write("calibration.jsonl", lines);
}

TEST(Tokenize, PrintsIdsAndReadsThemBack) {
  const std::string text = "What is x after 05 steps? <think>é\n";
  const ProgramResult ids = RunProgram({"tokenize", "--model", kModel}, text);
  ASSERT_EQ(ids.exit_code, 0) << ids.err;
  EXPECT_EQ(ids.out.find_first_not_of("0123456789 \n"), std::string::npos);
  EXPECT_EQ(ids.out.find('\n'), ids.out.size() - 1);
  const ProgramResult back = RunProgram({"tokenize", "--model", kModel, "--decode"}, ids.out);
  EXPECT_EQ(back.out, text);
}

TEST(Tokenize, SpecialTokensAreTextUnlessAskedFor) {
  const std::string text = "<|im_start|>";
  EXPECT_EQ(RunProgram({"tokenize", "--model", kModel, "--parse-special"}, text).out, "543\n");
  EXPECT_NE(RunProgram({"tokenize", "--model", kModel}, text).out, "543\n");
}

TEST(Run, GreedyJsonEqualsTheReference) {
  const SafetensorsFile golden = SafetensorsFile::Open(kGolden + "default-model.safetensors");
  const TensorView& expected = *golden.Find("greedy_ids");
  const JsonValue json = ParseOut(
      RunProgram({"run", "--model", kModel, "--prompt-ids", JoinIds(*golden.Find("prompt_ids")),
                  "--max-tokens", "64", "--temperature", "0", "--kv", "fp16", "--kv-dtype", "f32",
                  "--json", "-"}));
  const JsonValue sequence = json.At("sequences").At(size_t{0});
  const std::vector<int64_t> ids = sequence.At("output_ids").AsIntArray();
  EXPECT_EQ(ids, std::vector<int64_t>(expected.As<int64_t>(), expected.As<int64_t>() + ids.size()));
  EXPECT_GT(ids.size(), 0u);
  EXPECT_TRUE(sequence.Has("text"));
  const JsonValue kv = sequence.At("kv");
  EXPECT_LE(kv.At("peak_bytes").AsInt(), kv.At("budget_bytes").AsInt());
  EXPECT_GT(kv.At("pages").At("16").AsInt(), 0);
  EXPECT_EQ(kv.At("pages").At("2").AsInt(), 0);
}

TEST(Run, WorksWithoutTokenizerWhenIdsAreGiven) {
  const JsonValue json =
      ParseOut(RunProgram({"run", "--model", kTiny, "--prompt-ids", "1,2,3", "--max-tokens", "20",
                           "--temperature", "0", "--ignore-eos", "--json", "-"}));
  EXPECT_EQ(json.At("sequences").At(size_t{0}).At("output_ids").size(), 20u);
  EXPECT_EQ(json.At("sequences").At(size_t{0}).At("finish_reason").AsString(), "length");
}

TEST(Run, PenaltiesBiasesAndLogprobs) {
  const std::vector<std::string> base = {"run",   "--model",      kTiny,    "--prompt-ids",
                                         "1,2,3", "--max-tokens", "8",      "--temperature",
                                         "0",     "--ignore-eos", "--json", "-"};
  const auto run = [&](std::vector<std::string> more) {
    more.insert(more.begin(), base.begin(), base.end());
    return ParseOut(RunProgram(more)).At("sequences").At(size_t{0});
  };
  EXPECT_FALSE(run({}).Has("logprobs"));
  const JsonValue forced = run({"--logit-bias", "7=10000", "--logprobs", "2"});
  EXPECT_EQ(forced.At("output_ids").Dump(), "[7,7,7,7,7,7,7,7]");
  const JsonValue logprobs = forced.At("logprobs");
  ASSERT_EQ(logprobs.size(), 8u);
  EXPECT_EQ(logprobs.At(size_t{0}).At("token").AsInt(), 7);
  EXPECT_LT(logprobs.At(size_t{0}).At("logprob").AsDouble(), 0);
  EXPECT_EQ(logprobs.At(size_t{0}).At("top").size(), 2u);
  const JsonValue once = run({"--presence-penalty", "900"}).At("output_ids");
  for (size_t i = 0; i < once.size(); ++i) {
    for (size_t j = 0; j < i; ++j) EXPECT_NE(once.At(i).AsInt(), once.At(j).AsInt());
  }
  for (const std::string wrong : {"7", "7=", "=1", "x=1", "-1=2", "7=nan", "7=1x"}) {
    const ProgramResult result =
        RunProgram({"run", "--model", kTiny, "--prompt-ids", "1", "--logit-bias", wrong});
    EXPECT_EQ(result.exit_code, 2) << wrong;
    EXPECT_NE(result.err.find("--logit-bias"), std::string::npos) << result.err;
  }
}

// Of prompt tokens: as text before the answer, and in the JSON; the loss is that of `perplexity`.
TEST(Run, PromptLogprobs) {
  const TempFolder folder;
  std::string ids;
  for (int i = 0; i < 60; ++i) ids += (i > 0 ? "," : "") + std::to_string(i * 7 % 250 + 3);
  const std::vector<std::string> base = {"run", "--model",      kTiny, "--prompt-ids",
                                         ids,   "--max-tokens", "4",   "--ignore-eos"};
  const auto run = [&](std::vector<std::string> more) {
    more.insert(more.begin(), base.begin(), base.end());
    return RunProgram(more);
  };
  const JsonValue asked = ParseOut(run({"--prompt-logprobs", "2", "--chunk", "1", "--json", "-"}));
  const JsonValue sequence = asked.At("sequences").At(size_t{0});
  const JsonValue logprobs = sequence.At("prompt_logprobs");
  ASSERT_EQ(logprobs.size(), 60u);
  EXPECT_TRUE(logprobs.At(size_t{0}).IsNull());
  double sum = 0;
  for (size_t i = 1; i < 60; ++i) {
    const JsonValue one = logprobs.At(i);
    EXPECT_EQ(one.At("token").AsInt(), sequence.At("prompt_ids").At(i).AsInt());
    ASSERT_EQ(one.At("top").size(), 2u);
    EXPECT_GE(one.At("top").At(size_t{0}).At("logprob").AsDouble(), one.At("logprob").AsDouble());
    sum += one.At("logprob").AsDouble();
  }
  const std::string dataset = folder.Write("rows.jsonl", "{\"input_ids\":[" + ids + "]}\n");
  const JsonValue perplexity =
      ParseOut(RunProgram({"perplexity", "--model", kTiny, "--dataset", dataset, "--json", "-"}));
  EXPECT_NEAR(-sum, perplexity.At("loss").AsDouble() * 59, 1e-4);

  const JsonValue silent = ParseOut(run({"--chunk", "1", "--json", "-"}));
  EXPECT_FALSE(silent.At("sequences").At(size_t{0}).Has("prompt_logprobs"));
  EXPECT_EQ(silent.At("sequences").At(size_t{0}).At("output_ids").Dump(),
            sequence.At("output_ids").Dump());

  // A line per token and one for the sum, once for all samples.
  const ProgramResult text = run({"--prompt-logprobs", "1", "--n-samples", "3"});
  EXPECT_EQ(text.exit_code, 0) << text.err;
  EXPECT_EQ(text.out.find("     0           -  3\n     1  "), 0u) << text.out;
  EXPECT_NE(text.out.find("  10    likeliest: "), std::string::npos) << text.out;
  const size_t summary = text.out.find("[prompt] 60 tokens, log-probability -");
  ASSERT_NE(summary, std::string::npos) << text.out;
  EXPECT_EQ(text.out.find("[prompt]", summary + 1), std::string::npos);
  EXPECT_LT(summary, text.out.find("--- sample 1"));
  const ProgramResult words =
      RunProgram({"run", "--model", kModel, "--max-tokens", "2", "--chat-template", "none",
                  "--prompt-logprobs", "0", "What\nis 12?"});
  EXPECT_NE(words.out.find("  \"\\n\"\n"), std::string::npos) << words.out;
}

TEST(Run, SimulatedMethodsCountTheirBytes) {
  // 2 blocks, 2 KV heads of 16: 64 bytes of K or V a token at 16 bits. 39 tokens are stored.
  const std::vector<std::pair<std::string, int64_t>> cases = {
      {"rtn:bits=4", 2 * 39 * 2 * 2 * (8 + 4)},
      {"kivi:bits=2+residual=32", 2 * ((32 * 12 + 7 * 64) + (7 * 16 + 32 * 64))},
      {"mikv", 2 * (7 * 128 + 32 * 2 * 4 * (2 + 4) + /*tags*/ 10 + /*scores*/ 56 + 64)},
      {"rotatekv", 2 * (20 * (128 + 4) + 19 * 2 * 2 * (4 + 4) + 64)}};
  for (const auto& [spec, bytes] : cases) {
    const JsonValue json = ParseOut(RunProgram(
        {"run", "--model", kTiny, "--prompt-ids", "1,2,3,4,5,6,7,8,9,10", "--max-tokens", "30",
         "--max-len", "64", "--temperature", "0", "--ignore-eos", "--kv", spec, "--json", "-"}));
    const JsonValue sequence = json.At("sequences").At(size_t{0});
    EXPECT_EQ(sequence.At("output_ids").size(), 30u) << spec;
    const JsonValue kv = sequence.At("kv");
    EXPECT_EQ(kv.At("bytes").AsInt(), bytes) << spec;
    EXPECT_LE(kv.At("peak_bytes").AsInt(), kv.At("budget_bytes").AsInt()) << spec;
  }
}

TEST(Run, SamplesAreIndependentOfTheBatch) {
  const std::vector<std::string> base = {
      "run",          "--model", kTiny,          "--prompt-ids", "5,6,7",
      "--max-tokens", "30",      "--ignore-eos", "--json",       "-"};
  std::vector<std::string> three = base;
  three.insert(three.end(), {"--n-samples", "3"});
  std::vector<std::string> five = base;
  five.insert(five.end(), {"--n-samples", "5", "--threads", "1"});
  const JsonValue a = ParseOut(RunProgram(three));
  const JsonValue b = ParseOut(RunProgram(five));
  ASSERT_EQ(a.At("sequences").size(), 3u);
  ASSERT_EQ(b.At("sequences").size(), 5u);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(a.At("sequences").At(i).At("output_ids").AsIntArray(),
              b.At("sequences").At(i).At("output_ids").AsIntArray());
  }
  EXPECT_NE(a.At("sequences").At(size_t{0}).At("output_ids").AsIntArray(),
            a.At("sequences").At(size_t{1}).At("output_ids").AsIntArray());
}

TEST(Run, StreamsTextToStdoutAndOneLineToStderr) {
  const ProgramResult result = RunProgram(
      {"run", "--model", kModel, "--max-tokens", "40", "--temperature", "0"}, "What is 12*12?");
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_FALSE(result.out.empty());
  EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
  EXPECT_EQ(result.out.find('\033'), std::string::npos);
  EXPECT_EQ(result.err.find('\033'), std::string::npos);
}

TEST(Run, StopStringEndsTheText) {
  const ProgramResult all = RunProgram(
      {"run", "--model", kModel, "--max-tokens", "60", "--temperature", "0", "--prompt", "Hello"});
  ASSERT_GT(all.out.size(), 12u);
  const std::string stop = all.out.substr(6, 4);
  const ProgramResult cut = RunProgram({"run", "--model", kModel, "--max-tokens", "60",
                                        "--temperature", "0", "--prompt", "Hello", "--stop", stop});
  EXPECT_EQ(cut.out, all.out.substr(0, all.out.find(stop)) + "\n");
}

TEST(Run, StatsShowTheLadderAndStayInsideTheBudget) {
  const TempFolder folder;
  const std::string stats = folder.File("stats.jsonl");
  const ProgramResult result = RunProgram(
      {"run", "--model", kModel, "--prompt", "Hello", "--max-tokens", "2300", "--ignore-eos",
       "--temperature", "0", "--kv", "pm-kvq", "--kv-budget", "4MiB", "--stats", stats});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_NE(result.err.find("longest pause"), std::string::npos);
  std::istringstream lines(Slurp(stats));
  std::string line;
  std::vector<int64_t> halved_from;
  int64_t num_tokens = 0;
  while (std::getline(lines, line)) {
    const JsonValue row = JsonValue::Parse(line, stats);
    const std::string event = row.At("event").AsString();
    if (event == "token") {
      ++num_tokens;
      EXPECT_LE(row.At("bytes").AsInt(), 4 << 20);
    } else if (event == "halving") {
      halved_from.push_back(row.At("from_bits").AsInt());
      EXPECT_GE(row.At("microseconds").AsDouble(), 0);
    } else {
      EXPECT_LE(row.At("peak_bytes").AsInt(), 4 << 20);
      EXPECT_GT(row.At("pages").At(size_t{3}).AsInt(), 0) << "no page at 2 bits";
    }
  }
  EXPECT_EQ(num_tokens, 2300);
  // 12 blocks step down three times, widest first.
  EXPECT_TRUE(std::is_sorted(halved_from.rbegin(), halved_from.rend()));
  EXPECT_EQ(std::count(halved_from.begin(), halved_from.end(), 16), 12);
  EXPECT_EQ(std::count(halved_from.begin(), halved_from.end(), 4), 12);
}

TEST(Run, SpentBudgetIsAFinishReason) {
  const ProgramResult result = RunProgram(
      {"run", "--model", kModel, "--prompt", "Hello", "--max-tokens", "3000", "--ignore-eos",
       "--temperature", "0", "--kv", "pm-kvq:plan=none", "--kv-budget", "1.6MiB", "--json", "-"});
  const JsonValue sequence = ParseOut(result).At("sequences").At(size_t{0});
  EXPECT_EQ(sequence.At("finish_reason").AsString(), "kv_budget");
  EXPECT_GT(sequence.At("output_ids").size(), 100u);
  EXPECT_NE(result.err.find("KV budget"), std::string::npos);
  EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
}

TEST(Run, PipedMessageIsTheOneGivenAsArgument) {
  const std::vector<std::string> piped = {"run", "--model",      kModel, "--json",
                                          "-",   "--max-tokens", "1"};
  std::vector<std::string> argument = piped;
  argument.insert(argument.end(), {"--prompt", "Hello\nyou"});
  const auto prompt_of = [](const ProgramResult& result) {
    return ParseOut(result).At("sequences").At(size_t{0}).At("prompt_ids").AsIntArray();
  };
  EXPECT_EQ(prompt_of(RunProgram(piped, "Hello\nyou\n")), prompt_of(RunProgram(argument)));
}

TEST(Run, TextHeldBackForAStopStringIsPrintedWhenTheBudgetEnds) {
  const std::vector<std::string> args = {
      "run", "--model",      kModel, "--prompt", "Hello",  "--ignore-eos", "--temperature",
      "0",   "--max-tokens", "3000", "--kv",     "pm-kvq", "--kv-budget",  "1.6MiB"};
  std::vector<std::string> as_json = args;
  as_json.insert(as_json.end(), {"--json", "-"});
  const std::string text =
      ParseOut(RunProgram(as_json)).At("sequences").At(size_t{0}).At("text").AsString();
  ASSERT_FALSE(text.empty());
  std::vector<std::string> streamed = args;
  streamed.insert(streamed.end(), {"--stop", text.substr(text.size() - 1) + " never"});
  EXPECT_EQ(RunProgram(streamed).out, text + "\n");
}

TEST(Run, WarnsWhereABudgetIsNotSteppedDownInside) {
  const std::vector<std::string> args = {"run", "--model",      kModel, "--prompt",
                                         "a",   "--max-tokens", "1"};
  const auto err_of = [&](const std::vector<std::string>& more) {
    std::vector<std::string> all = args;
    all.insert(all.end(), more.begin(), more.end());
    return RunProgram(all).err;
  };
  EXPECT_NE(err_of({"--kv-budget", "2MiB"}).find("warning: --kv fp16"), std::string::npos);
  EXPECT_NE(err_of({"--plan", kModel + "/plan.json"}).find("--kv pm-kvq"), std::string::npos);
  EXPECT_EQ(err_of({"--kv", "pm-kvq", "--kv-budget", "2MiB"}).find("warning"), std::string::npos);
}

TEST(Run, ChatKeepsTheConversation) {
  const ProgramResult result =
      RunProgram({"run", "--model", kModel, "--chat", "--max-tokens", "8", "--temperature", "0"},
                 "Hello\n/reset\nHello\n/exit\n");
  EXPECT_EQ(result.exit_code, 0) << result.err;
  // The same question after a reset has the same answer.
  const std::string half = result.out.substr(0, result.out.size() / 2);
  EXPECT_EQ(result.out, half + half);
}

TEST(Run, ChatGoesOnAfterAMessageThatDoesNotFit) {
  const ProgramResult result =
      RunProgram({"run", "--model", kModel, "--chat", "--max-tokens", "8", "--temperature", "0",
                  "--max-len", "64"},
                 "Hello\n" + std::string(200, '7') + "\n\xff\n/reset\nHello\n/exit\n");
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_NE(result.err.find("--max-len"), std::string::npos) << result.err;
  EXPECT_NE(result.err.find("UTF-8"), std::string::npos) << result.err;
  const std::string half = result.out.substr(0, result.out.size() / 2);
  EXPECT_FALSE(half.empty());
  EXPECT_EQ(result.out, half + half);
}

TEST(Run, InterruptKeepsWhatWasMade) {
  const ProgramResult result = RunProgram({"run", "--model", kModel, "--prompt", "Hello",
                                           "--max-tokens", "8000", "--ignore-eos", "--json", "-"},
                                          "", Interrupt{.after_cpu_ms = 700});
  EXPECT_EQ(result.exit_code, 130);
  const JsonValue sequence = JsonValue::Parse(result.out, "stdout").At("sequences").At(size_t{0});
  EXPECT_EQ(sequence.At("finish_reason").AsString(), "cancelled");
}

TEST(Run, OneCtrlCThatArrivesTwiceLosesNothing) {
  ProgramResult result;
  do {  // From 0.3 s on they are two.
    result = RunProgram({"run", "--model", kModel, "--prompt", "Hello", "--max-tokens", "8000",
                         "--ignore-eos", "--json", "-"},
                        "", Interrupt{.after_cpu_ms = 700, .doubled = true});
  } while (result.ms_between_signals > 200);
  EXPECT_EQ(result.exit_code, 130);
  EXPECT_TRUE(JsonValue::Parse(result.out, "stdout").Has("sequences"));
}

TEST(Logits, MatchTheReference) {
  const TempFolder folder;
  const SafetensorsFile golden = SafetensorsFile::Open(kGolden + "tiny-llama.safetensors");
  const ProgramResult result =
      RunProgram({"logits", "--model", kTiny, "--prompt-ids", JoinIds(*golden.Find("prompt_ids")),
                  "--out", folder.File("logits.safetensors")});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(result.out, "");
  const SafetensorsFile file = SafetensorsFile::Open(folder.File("logits.safetensors"));
  const TensorView& logits = file.Get("logits", DType::kF32, {64, 256});
  const TensorView& expected = *golden.Find("logits");
  for (int64_t i = 0; i < logits.num_elements(); ++i) {
    ASSERT_NEAR(logits.As<float>()[i], expected.As<float>()[i], 2e-4);
  }
}

TEST(Perplexity, FewerBitsDriftFurtherFromFp16) {
  const TempFolder folder;
  std::string ids;
  for (int i = 0; i < 400; ++i) ids += (i > 0 ? "," : "") + std::to_string(i * 7 % 250);
  const std::string dataset = folder.Write("rows.jsonl", "{\"input_ids\":[" + ids + "]}\n");
  std::vector<double> kl;
  for (const char* kv : {"fp16", "static-8", "static-2"}) {
    const JsonValue json = ParseOut(RunProgram(
        {"perplexity", "--model", kTiny, "--dataset", dataset, "--kv", kv, "--json", "-"}));
    EXPECT_EQ(json.At("tokens").AsInt(), 399);
    EXPECT_GT(json.At("loss").AsDouble(), 0);
    kl.push_back(json.At("kl_to_fp16").AsDouble());
  }
  EXPECT_EQ(kl[0], 0);
  EXPECT_GT(kl[1], 0);
  EXPECT_GT(kl[2], 10 * kl[1]);
}

TEST(Calibration, TheFourStepsAgreeWithTheReference) {
  const TempFolder folder;
  const std::string dataset = WriteGoldenDataset(folder, "tiny-llama");
  const std::vector<std::string> data = {"--model",     kTiny, "--dataset", dataset,
                                         "--n-samples", "4",   "--seq-len", "128"};
  const auto with = [&](std::vector<std::string> args, std::vector<std::string> more) {
    args.insert(args.end(), data.begin(), data.end());
    args.insert(args.end(), more.begin(), more.end());
    return args;
  };
  const JsonValue golden = JsonValue::ParseFile(kGolden + "tiny-llama.json").At("plain");

  const std::string sensitivity = folder.File("sensitivity.json");
  ASSERT_EQ(RunProgram(with({"sensitivity"}, {"--json", sensitivity})).exit_code, 0);
  const JsonValue measured = JsonValue::ParseFile(sensitivity);
  for (const char* bits : {"16", "8", "4", "2"}) {
    const auto got = measured.At("k").At(bits).AsDoubleArray();
    const auto expected = golden.At("k_sensitivity").At(bits).AsDoubleArray();
    ASSERT_EQ(got.size(), expected.size());
    for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i] / expected[i], 1, 1e-3) << bits;
  }

  const std::string max_keys = folder.File("max_keys.safetensors");
  ASSERT_EQ(RunProgram(with({"max-keys"}, {"--out", max_keys})).exit_code, 0);
  const ProgramResult scales = RunProgram(
      with({"rep-scales"}, {"--max-keys", max_keys, "--k-bits", "4", "--v-bits", "4", "--grid",
                            "20", "--out", folder.File("scales.safetensors"), "--json", "-"}));
  const auto alpha = ParseOut(scales).At("alpha").AsDoubleArray();
  const auto expected = golden.At("rep_scales").At("alpha").AsDoubleArray();
  ASSERT_EQ(alpha.size(), expected.size());
  for (size_t i = 0; i < alpha.size(); ++i) EXPECT_NEAR(alpha[i], expected[i], 1e-9);
  EXPECT_TRUE(std::filesystem::exists(folder.File("scales.safetensors")));

  const JsonValue allocation = ParseOut(
      RunProgram({"allocate", "--model", kTiny, "--sensitivity", sensitivity, "--memory-budget",
                  "0.1", "--fbit-choices", "4,2", "--max-len", "1024", "--json", "-"}));
  EXPECT_EQ(allocation.At("bits").size(), 2u);
  EXPECT_LE(allocation.At("total_bytes").AsInt(), 104857);
}

TEST(Calibration, InterruptedCalibrationResumesToTheSamePlan) {
  const TempFolder folder;
  const std::string dataset = kModel + "/calibration.jsonl";
  const auto calibrate = [&](const std::string& plan) {
    return std::vector<std::string>{
        "calibrate", "--model",     kModel, "--dataset", dataset, "--pack",
        "single",    "--n-samples", "6",    "--seq-len", "256",   "--memory-budget",
        "4.9",       "--max-len",   "4096", "--plan",    plan};
  };
  ASSERT_EQ(RunProgram(calibrate(folder.File("whole.json"))).exit_code, 0);
  ProgramResult result =
      RunProgram(calibrate(folder.File("pieces.json")), "", {.after_cpu_ms = 600});
  for (int tries = 0; result.exit_code == 130 && tries < 50; ++tries) {
    EXPECT_FALSE(std::filesystem::exists(folder.File("pieces.json")));
    result =
        RunProgram(calibrate(folder.File("pieces.json")), "", {.after_cpu_ms = 600 + 600 * tries});
  }
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(Slurp(folder.File("whole.safetensors")), Slurp(folder.File("pieces.safetensors")));
  EXPECT_EQ(Slurp(folder.File("whole.json")), Slurp(folder.File("pieces.json")));
  // Plans and nothing else: no temporary file, no checkpoint.
  EXPECT_EQ(folder.NumEntries(), 4u);
}

TEST(Inspect, TellsWhatIsThere) {
  const JsonValue model = ParseOut(RunProgram({"inspect", kModel, "--json", "-"}));
  EXPECT_EQ(model.At("parameters").AsInt(), 9597184);
  EXPECT_EQ(model.At("kv_bytes_per_token_at_16_bit").AsInt(), 12288 / 2);
  const ProgramResult plan = RunProgram({"inspect", kModel + "/plan.json"});
  EXPECT_EQ(plan.exit_code, 0) << plan.err;
  EXPECT_NE(plan.out.find("block"), std::string::npos);
  EXPECT_EQ(RunProgram({"inspect", kGolden + "tiny-llama.safetensors"}).exit_code, 0);
}

TEST(Inspect, JsonGoesToStdoutWithoutAName) {
  const JsonValue model = ParseOut(RunProgram({"inspect", kModel, "--json"}));
  EXPECT_EQ(model.At("kind").AsString(), "model");
}

TEST(Inspect, ShowsSensitivities) {
  const TempFolder folder;
  const std::string path = folder.Write(
      "s.json", R"({"bits":[4,2],"k":{"4":[0.25,1],"2":[2,2]},"v":{"4":[1,1],"2":[2,0.5]}})");
  const ProgramResult result = RunProgram({"inspect", path});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  for (const char* part : {"K @4", "V @2", "2.500e-01", "5.000e-01"}) {
    EXPECT_NE(result.out.find(part), std::string::npos) << result.out;
  }
}

TEST(Eval, SolvesAnEasyProblemUnderPmKvq) {
  const TempFolder folder;
  const ProgramResult result =
      RunProgram({"eval", "--model", kModel, "--data", kModel + "/problems.jsonl", "--per-cell",
                  "1", "--max-level", "1", "--kv", "pm-kvq:bits=4", "--max-len", "4096", "--json",
                  "-", "--out", folder.File("run")});
  const JsonValue json = ParseOut(result);
  EXPECT_EQ(json.At("problems").AsInt(), 5);
  EXPECT_EQ(json.At("correct").AsInt(), 5);
  EXPECT_LE(json.At("peak_bytes").AsInt(), json.At("budget_bytes").AsInt());
}

// Resident memory follows the budget, not the context.
TEST(Memory, ResidentMemoryDoesNotGrowWithTheContext) {
  // Also for the programs: where the system gives huge pages to all, memory would grow by 2 MiB.
  prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
  const auto peak_kib = [](const std::string& kv, const std::string& tokens) {
    std::vector<std::string> args = {
        "run", "--model",      kModel, "--prompt", "Hello", "--ignore-eos", "--temperature",
        "0",   "--max-tokens", tokens, "--kv",     kv,      "--json",       "-"};
    if (kv == "pm-kvq") args.insert(args.end(), {"--kv-budget", "4MiB"});
    const ProgramResult result = RunProgram(args);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return result.peak_rss_kib;
  };
  const int64_t short_run = peak_kib("pm-kvq", "500");
  const int64_t long_run = peak_kib("pm-kvq", "3500");
  const int64_t unbounded = peak_kib("fp16", "3500");
  RecordProperty("pm_kvq_500_tokens_kib", std::to_string(short_run));
  RecordProperty("pm_kvq_3500_tokens_kib", std::to_string(long_run));
  RecordProperty("fp16_3500_tokens_kib", std::to_string(unbounded));
  // 3,000 more tokens are 18 MiB at 16 bit; the budget leaves at most 1 MiB to grow into.
  prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0);
  EXPECT_LT(long_run - short_run, 3 * 1024);
  EXPECT_GT(unbounded - long_run, 10 * 1024);
}

}  // namespace
}  // namespace pmkvq
