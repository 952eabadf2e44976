#include "pmkvq/research/eval/evaluation.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "pmkvq/base/error.h"
#include "pmkvq/base/random.h"
#include "support/engine_fixture.h"
#include "support/expect_error.h"
#include "support/temp_folder.h"

namespace pmkvq {
namespace {

using testing_support::ByteTokenizer;
using testing_support::ExpectError;
using testing_support::LoadTinyLlama;
using testing_support::TempFolder;

using Key = std::pair<std::string, int64_t>;

std::vector<ProblemRow> MakeProblems(int64_t count) {
  std::vector<ProblemRow> problems;
  for (int64_t i = 0; i < count; ++i) {
    ProblemRow row;
    row.id = "p" + std::to_string(i);
    row.task = "noise";
    row.level = i;
    row.problem = "problem number " + std::to_string(i * 7919);
    row.answer = "1";
    problems.push_back(row);
  }
  return problems;
}

// Sampled replies of a random model.
EvaluationOptions MakeOptions(int64_t batch) {
  EvaluationOptions options;
  options.engine.max_sequences = batch;
  options.engine.max_len = 128;
  options.engine.num_threads = 1;
  options.sampling.temperature = 0.6;
  options.num_responses = 3;
  options.max_tokens = 20;
  return options;
}

class EvaluationTest : public ::testing::Test {
 protected:
  double Run(const std::vector<ProblemRow>& problems, const EvaluationOptions& options,
             ResponseLog& log, const ResponseCallback& on_response = {},
             const CancelFlag* cancel = nullptr) {
    return Evaluate(model_, tokenizer_, Grading::kAnswer, problems, options, log, nullptr,
                    on_response, cancel);
  }

  RunSettings Settings(const std::vector<ProblemRow>& problems, const EvaluationOptions& options) {
    return MakeRunSettings({"jsonl", Grading::kAnswer, problems}, *model_, options, "");
  }

  static std::map<Key, std::string> Texts(const ResponseLog& log) {
    std::map<Key, std::string> texts;
    for (const Response& response : log.responses()) {
      EXPECT_TRUE(texts.emplace(Key(response.id, response.response), response.text).second);
    }
    return texts;
  }

  std::shared_ptr<const Model> model_ = LoadTinyLlama();
  std::shared_ptr<const Tokenizer> tokenizer_ = ByteTokenizer();
};

TEST(ResponseSeed, IsAStreamOfSeedProblemAndIndex) {
  // FNV-1a 64 of "a" by its published test vector.
  EXPECT_EQ(ResponseSeed(42, "a", 3), StreamSeed(StreamSeed(42, 0xaf63dc4c8601ec8cull), 3));
  EXPECT_NE(ResponseSeed(42, "a", 3), ResponseSeed(42, "a", 4));
  EXPECT_NE(ResponseSeed(42, "a", 3), ResponseSeed(42, "b", 3));
  EXPECT_NE(ResponseSeed(42, "a", 3), ResponseSeed(43, "a", 3));
}

TEST_F(EvaluationTest, FillsInTheResponse) {
  ResponseLog log;
  std::vector<ProblemRow> problems = MakeProblems(2);
  int64_t num_called = 0;
  const double seconds = Run(problems, MakeOptions(2), log, [&](const Response& response) {
    ++num_called;
    EXPECT_TRUE(log.Has(response.id, response.response));
  });
  EXPECT_GT(seconds, 0);
  EXPECT_EQ(num_called, 6);
  const std::vector<Response> responses = ResponsesTo(log, problems, 3);
  ASSERT_EQ(responses.size(), 6u);
  const Response& last = responses.back();
  EXPECT_EQ(last.id, "p1");
  EXPECT_EQ(last.response, 2);
  EXPECT_EQ(last.task, "noise");
  EXPECT_EQ(last.level, 1);
  EXPECT_EQ(last.answer, "1");
  EXPECT_EQ(last.finish_reason, "length");
  EXPECT_EQ(last.prompt_tokens, static_cast<int64_t>(problems[1].problem.size()));
  EXPECT_EQ(last.output_tokens, 20);
  EXPECT_GT(last.peak_bytes, 0);
  EXPECT_GE(last.budget_bytes, last.peak_bytes);
  EXPECT_GT(last.final_pages[0], 0);
  EXPECT_EQ(Run(problems, MakeOptions(2), log), 0) << "all are there";
}

TEST_F(EvaluationTest, BatchOrderAndSelectionChangeNothing) {
  const std::vector<ProblemRow> problems = MakeProblems(5);
  ResponseLog one;
  Run(problems, MakeOptions(1), one);
  ResponseLog eight;
  Run({problems.rbegin(), problems.rend()}, MakeOptions(8), eight);
  ResponseLog parts;
  Run({problems.begin() + 3, problems.end()}, MakeOptions(4), parts);
  EvaluationOptions fewer = MakeOptions(4);
  fewer.num_responses = 1;
  Run(problems, fewer, parts);
  Run(problems, MakeOptions(3), parts);
  const auto texts = Texts(one);
  EXPECT_EQ(texts.size(), 15u);
  EXPECT_EQ(Texts(eight), texts);
  EXPECT_EQ(Texts(parts), texts);
  // Sampled: the responses to one problem are not the same.
  EXPECT_NE(texts.at({"p0", 0}), texts.at({"p0", 1}));
}

TEST_F(EvaluationTest, ShardsMakeWhatOneProcessMakes) {
  std::vector<ProblemRow> problems = MakeProblems(4);
  problems[2].reference_chain = std::string(300, '7');  // The longest comes first.
  ResponseLog whole;
  EvaluationOptions options = MakeOptions(4);
  Run(problems, options, whole);
  // In memory: what a shard does depends on no other one.
  std::map<Key, std::string> texts;
  for (int64_t index = 0; index < 5; ++index) {
    options.shard = {index, 5};
    ResponseLog log;
    EXPECT_EQ(NumPending(*tokenizer_, problems, options, log), index < 2 ? 3 : 2);
    Run(problems, options, log);
    for (const auto& [key, text] : Texts(log)) EXPECT_TRUE(texts.emplace(key, text).second);
  }
  EXPECT_EQ(texts, Texts(whole));

  // On disk, in another number of parts each time.
  const TempFolder folder;
  const RunSettings settings = Settings(problems, options);
  for (const Shard shard : {Shard{1, 2}, Shard{0, 3}, Shard{1, 3}, Shard{2, 3}}) {
    ResponseLog log(folder.path(), settings, shard);
    options.shard = shard;
    Run(problems, options, log);
    EXPECT_TRUE(log.Close());
  }
  EXPECT_EQ(Texts(ResponseLog(folder.path(), settings)), Texts(whole));
}

// Ranks that begin together share out what an earlier run left.
TEST_F(EvaluationTest, ShardsOfTheMissingResponsesAreEven) {
  const std::vector<ProblemRow> problems = MakeProblems(4);
  ResponseLog log;
  EvaluationOptions options = MakeOptions(4);
  options.shard = {0, 2};
  Run(problems, options, log);
  ASSERT_EQ(log.responses().size(), 6u);
  EXPECT_EQ(NumPending(*tokenizer_, problems, options, log), 0);
  ResponseKeys present;
  for (const Response& response : log.responses()) {
    present.insert({response.id, response.response});
  }
  options.not_dealt = std::make_shared<const ResponseKeys>(present);
  EXPECT_EQ(NumPending(*tokenizer_, problems, options, log), 3);
  options.shard = {1, 2};
  EXPECT_EQ(NumPending(*tokenizer_, problems, options, log), 3);
}

TEST_F(EvaluationTest, EnginesSideBySideChangeNothing) {
  std::vector<ProblemRow> problems = MakeProblems(12);
  problems[3].problem = std::string(200, 'x');  // More than --max-len.
  ResponseLog one;
  Run(problems, MakeOptions(4), one);
  const auto texts = Texts(one);
  EXPECT_EQ(texts.size(), 36u);
  for (const int64_t replicas : {2, 3, 7}) {
    for (const int num_threads : {1, 2, 4}) {
      EvaluationOptions options = MakeOptions(7);
      options.replicas = replicas;
      options.engine.num_threads = num_threads;
      ResponseLog log;
      int64_t num_called = 0;
      Run(problems, options, log, [&](const Response&) { ++num_called; });
      EXPECT_EQ(num_called, 36);
      EXPECT_EQ(Texts(log), texts) << replicas << " engines, " << num_threads << " threads";
      for (const Response& response : ResponsesTo(log, problems, 3)) {
        EXPECT_EQ(response.output_tokens == 0, response.id == "p3");
      }
    }
  }
  EvaluationOptions too_many = MakeOptions(2);
  too_many.replicas = 3;
  ResponseLog log;
  ExpectError<InvalidInput>([&] { Run(problems, too_many, log); }, {"--replicas", "found 3", "2"});
}

// What the callback throws ends all engines, and the responses so far are kept.
TEST_F(EvaluationTest, AnErrorEndsAllEngines) {
  const std::vector<ProblemRow> problems = MakeProblems(12);
  EvaluationOptions options = MakeOptions(6);
  options.replicas = 3;
  const TempFolder folder;
  {
    ResponseLog log(folder.path(), Settings(problems, options));
    EXPECT_THROW(Run(problems, options, log,
                     [](const Response&) { throw InvalidInput("callback", "no more"); }),
                 InvalidInput);
  }
  ResponseLog whole;
  Run(problems, options, whole);
  ResponseLog log(folder.path(), Settings(problems, options));
  EXPECT_LT(log.responses().size(), 36u);
  Run(problems, options, log);
  EXPECT_EQ(Texts(log), Texts(whole));
}

class EvaluationResumeTest : public EvaluationTest,
                             public ::testing::WithParamInterface<int64_t> {};
INSTANTIATE_TEST_SUITE_P(Replicas, EvaluationResumeTest, ::testing::Values(1, 3));

TEST_P(EvaluationResumeTest, WithoutRepeatingOrLosingAResponse) {
  const std::vector<ProblemRow> problems = MakeProblems(4);
  EvaluationOptions options = MakeOptions(3);
  options.replicas = GetParam();
  ResponseLog whole;
  Run(problems, options, whole);
  const TempFolder folder;
  size_t num_present = 0;
  for (int run = 0; num_present < 12; ++run) {
    ASSERT_LT(run, 12) << "no run brought it further";
    ResponseLog log(folder.path(), Settings(problems, options));
    EXPECT_EQ(log.responses().size(), num_present);
    CancelFlag cancel{false};
    Run(
        problems, options, log, [&](const Response&) { cancel = true; }, &cancel);
    EXPECT_GT(log.responses().size(), num_present);
    num_present = log.responses().size();
  }
  ResponseLog log(folder.path(), Settings(problems, options));
  EXPECT_EQ(Texts(log), Texts(whole));
}

TEST_F(EvaluationTest, TheReferenceChainLimitsTheReplyAndTheLongestComesFirst) {
  std::vector<ProblemRow> problems = MakeProblems(3);
  problems[0].reference_chain = std::string(10, 'x');  // 10 byte tokens: 10.4 up, + 48.
  problems[1].reference_chain = std::string(25, 'x');  // 26 + 48
  EvaluationOptions options = MakeOptions(1);
  options.num_responses = 1;
  options.max_tokens = 0;
  ResponseLog log;
  Run(problems, options, log);
  ASSERT_EQ(log.responses().size(), 3u);
  EXPECT_EQ(log.responses()[0].id, "p2");
  EXPECT_EQ(log.responses()[0].prompt_tokens + log.responses()[0].output_tokens, 128);
  EXPECT_EQ(log.responses()[1].id, "p1");
  EXPECT_EQ(log.responses()[1].output_tokens, 74);
  EXPECT_EQ(log.responses()[2].id, "p0");
  EXPECT_EQ(log.responses()[2].output_tokens, 59);
}

TEST_F(EvaluationTest, PromptsThatDoNotFitAreUnsolvedResponses) {
  std::vector<ProblemRow> problems = MakeProblems(4);
  problems[0].problem = std::string(200, 'x');  // More than --max-len.
  problems[2].problem = std::string(128, 'x');  // No room for a token.
  EvaluationOptions options = MakeOptions(2);
  options.num_responses = 2;
  ResponseLog log;
  int64_t num_called = 0;
  Run(problems, options, log, [&](const Response&) { ++num_called; });
  EXPECT_EQ(num_called, 8);
  const std::vector<Response> responses = ResponsesTo(log, problems, 2);
  ASSERT_EQ(responses.size(), 8u);
  for (const Response& response : responses) {
    const bool fits = response.id == "p1" || response.id == "p3";
    EXPECT_EQ(response.output_tokens > 0, fits) << response.id;
    if (!fits) {
      EXPECT_EQ(response.finish_reason, "length");
    }
    EXPECT_GT(response.budget_bytes, 0);
    EXPECT_EQ(response.text.empty(), !fits);
    EXPECT_FALSE(response.correct && !fits);
    EXPECT_EQ(ResponseLine(ParseResponse(ResponseLine(response), "line")), ResponseLine(response));
  }
  EXPECT_EQ(responses[0].prompt_tokens, 200);
  const ResponseSummary summary = SummarizeResponses(responses);
  EXPECT_EQ(summary.num_prompts_too_long, 4);
  EXPECT_GE(summary.num_cut_by_length, 4);

  // A budget that holds the other prompts, but not this one even at 2 bits.
  options.engine.max_len = 3000;
  options.engine.kv.spec = "pm-kvq";
  options.engine.kv.budget_bytes = 50000;
  problems[0].problem = std::string(2500, 'x');
  ResponseLog budgeted;
  Run(problems, options, budgeted);
  const std::vector<Response> rows = ResponsesTo(budgeted, problems, 2);
  ASSERT_EQ(rows.size(), 8u);
  EXPECT_EQ(rows[0].finish_reason, "kv_budget");
  EXPECT_EQ(rows[0].output_tokens, 0);
  EXPECT_EQ(rows[0].budget_bytes, 50000);
  EXPECT_EQ(rows[2].finish_reason, "length");
  EXPECT_EQ(rows[2].output_tokens, 20);
  EXPECT_EQ(SummarizeResponses(rows).num_prompts_too_long, 2);
}

TEST_F(EvaluationTest, SettingsHoldWhatChangesResponses) {
  const std::vector<ProblemRow> problems = MakeProblems(2);
  const EvaluationOptions options = MakeOptions(1);
  const std::string base = RunSettingsJson(Settings(problems, options));
  EvaluationOptions same = MakeOptions(8);
  same.engine.num_threads = 2;
  same.num_responses = 16;
  EXPECT_EQ(RunSettingsJson(Settings(problems, same)), base);
  const auto differs = [&](auto change) {
    EvaluationOptions other = options;
    change(other);
    return RunSettingsJson(Settings(problems, other)) != base;
  };
  EXPECT_TRUE(differs([](EvaluationOptions& o) { o.seed = 43; }));
  EXPECT_TRUE(differs([](EvaluationOptions& o) { o.max_tokens = 21; }));
  EXPECT_TRUE(differs([](EvaluationOptions& o) { o.sampling.temperature = 0.7; }));
  EXPECT_TRUE(differs([](EvaluationOptions& o) { o.sampling.top_p = 0.9; }));
  EXPECT_TRUE(differs([](EvaluationOptions& o) { o.sampling.top_k = 9; }));
  EXPECT_TRUE(differs([](EvaluationOptions& o) { o.sampling.min_p = 0.1; }));
  EXPECT_TRUE(differs([](EvaluationOptions& o) { o.engine.chunk = 64; }));
  EXPECT_TRUE(differs([](EvaluationOptions& o) { o.engine.max_len = 64; }));
  EXPECT_TRUE(differs([](EvaluationOptions& o) { o.engine.kv.spec = "static-4"; }));
  EXPECT_TRUE(differs([](EvaluationOptions& o) { o.engine.kv.budget_bytes = 9; }));
  EXPECT_TRUE(differs([](EvaluationOptions& o) { o.engine.kv.sink_tokens = 4; }));
  EXPECT_TRUE(differs([](EvaluationOptions& o) { o.engine.kv.kv_dtype = DType::kBF16; }));
  EXPECT_TRUE(
      differs([](EvaluationOptions& o) { o.chat_template = ChatTemplate::BuiltIn("chatml"); }));
  std::vector<ProblemRow> edited = problems;
  edited[1].answer = "2";
  EXPECT_NE(RunSettingsJson(Settings(edited, options)), base);
}

TEST_F(EvaluationTest, SettingsFollowTheContentOfFiles) {
  const TempFolder folder;
  const std::string file = folder.Write("plan.json", "one");
  const Benchmark benchmark = {"jsonl", Grading::kAnswer, MakeProblems(1)};
  EvaluationOptions options = MakeOptions(1);
  options.engine.kv.spec = "rotatekv:from=" + file;
  const RunSettings before = MakeRunSettings(benchmark, *model_, options, file);
  folder.Write("plan.json", "two");
  const RunSettings after = MakeRunSettings(benchmark, *model_, options, file);
  EXPECT_NE(after.plan_hash, before.plan_hash);
  EXPECT_EQ(before.options.at(1).first, "--kv from");
  EXPECT_NE(after.options.at(1).second, before.options.at(1).second);
}

TEST(SummarizeResponses, CountsByHand) {
  const auto make = [](const std::string& id, int64_t index, const std::string& extracted,
                       bool correct, const std::string& reason, int64_t tokens, int64_t peak) {
    Response response;
    response.id = id;
    response.response = index;
    response.extracted = extracted;
    response.correct = correct;
    response.finish_reason = reason;
    response.output_tokens = tokens;
    response.peak_bytes = peak;
    response.budget_bytes = 100;
    response.final_pages = {1, 0, 0, 2};
    response.longest_pause_us = static_cast<double>(peak);
    response.kept_share = id == "a" ? 0.5 : 1.0;
    return response;
  };
  const ResponseSummary summary = SummarizeResponses({
      make("a", 0, "4", true, "stop", 10, 50),
      make("a", 1, "2^2", true, "stop", 20, 70),
      make("a", 2, "5", false, "stop", 30, 60),
      make("b", 0, "", false, "length", 40, 40),
      make("b", 1, "9", true, "stop", 50, 30),
      make("b", 2, "", false, "kv_budget", 60, 20),
  });
  EXPECT_EQ(summary.num_correct, 3);
  EXPECT_EQ(summary.judged.num_problems, 2);
  EXPECT_EQ(summary.judged.num_responses, 6);
  EXPECT_DOUBLE_EQ(summary.judged.pass_at_1, 0.5);
  // Accuracies 1/2, 1, 0 of the three responses: variance (0 + 1/4 + 1/4) / 3.
  EXPECT_DOUBLE_EQ(summary.judged.standard_deviation, std::sqrt(0.5 / 3));
  EXPECT_DOUBLE_EQ(summary.judged.voting, 1);
  EXPECT_EQ(summary.output_tokens, 210);
  EXPECT_DOUBLE_EQ(summary.judged.mean_output_tokens, 35);
  EXPECT_EQ(summary.num_cut_by_length, 1);
  EXPECT_EQ(summary.num_cut_by_budget, 1);
  EXPECT_EQ(summary.peak_bytes, 70);
  EXPECT_DOUBLE_EQ(summary.kept_share, 0.75);
  EXPECT_EQ(summary.budget_bytes, 100);
  EXPECT_EQ(summary.final_pages, (PagesPerWidth{6, 0, 0, 12}));
  EXPECT_EQ(summary.longest_pause_us, 70);
  EXPECT_EQ(SummarizeResponses({}).judged.num_problems, 0);
}

}  // namespace
}  // namespace pmkvq
