// Runs that end in the middle of responses, and go on with them.
#include "pmkvq/research/eval/unfinished.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "pmkvq/base/error.h"
#include "pmkvq/base/random.h"
#include "pmkvq/research/eval/evaluation.h"
#include "support/engine_fixture.h"
#include "support/expect_error.h"
#include "support/temp_folder.h"

namespace pmkvq {
namespace {

using testing_support::ByteTokenizer;
using testing_support::ExpectError;
using testing_support::LoadTinyLlama;
using testing_support::Slurp;
using testing_support::TempFolder;

constexpr auto kNoneIsDone = [](const UnfinishedResponses::Key&) { return false; };

TEST(UnfinishedResponses, AppendsReadsAndForgets) {
  const TempFolder folder;
  const std::string path = folder.File("unfinished.jsonl");
  {
    UnfinishedResponses unfinished(path, {}, kNoneIsDone);
    EXPECT_FALSE(std::filesystem::exists(path)) << "nothing to keep yet";
    unfinished.Append({"a \"b\"", 0}, {5, 6}, 0.5);
    unfinished.Append({"c", 3}, {7}, 0.25);
    unfinished.Append({"a \"b\"", 0}, {8}, 1.5);
    EXPECT_EQ(Slurp(path), R"({"id":"a \"b\"","response":0,"first":0,"tokens":[5,6],"seconds":0.5})"
                           "\n"
                           R"({"id":"c","response":3,"first":0,"tokens":[7],"seconds":0.25})"
                           "\n"
                           R"({"id":"a \"b\"","response":0,"first":2,"tokens":[8],"seconds":1.5})"
                           "\n");
  }
  {
    UnfinishedResponses unfinished(path, {}, kNoneIsDone);
    ASSERT_EQ(unfinished.begun().size(), 2u);
    EXPECT_EQ(unfinished.begun().at({"a \"b\"", 0}).tokens, (std::vector<int32_t>{5, 6, 8}));
    EXPECT_EQ(unfinished.begun().at({"a \"b\"", 0}).seconds, 1.5);
    unfinished.Append({"c", 3}, {9}, 2);
    unfinished.Finish({"a \"b\"", 0});
    unfinished.Compact();
    EXPECT_EQ(Slurp(path), R"({"id":"c","response":3,"first":0,"tokens":[7,9],"seconds":2.0})"
                           "\n");
    unfinished.Append({"c", 3}, {1}, 3);
  }
  // A kill cuts a line short.
  folder.Write("unfinished.jsonl", Slurp(path) + R"({"id":"c","response":3,"first":3,"tok)");
  {
    UnfinishedResponses unfinished(path, {}, kNoneIsDone);
    EXPECT_EQ(unfinished.begun().at({"c", 3}).tokens, (std::vector<int32_t>{7, 9, 1}));
  }
  const UnfinishedResponses done(path, {}, [](const auto& key) { return key.first == "c"; });
  EXPECT_TRUE(done.begun().empty());
  EXPECT_FALSE(std::filesystem::exists(path)) << "nothing is left";
}

TEST(UnfinishedResponses, DamageIsNamed) {
  const TempFolder folder;
  const auto expect = [&](const std::string& line, std::initializer_list<std::string> parts) {
    const std::string path = folder.Write("u.jsonl", line + "\n");
    ExpectError<InvalidInput>([&] { UnfinishedResponses(path, {}, kNoneIsDone); }, parts);
  };
  expect("[]", {"u.jsonl:1", "an object"});
  expect(R"({"id":"a","response":0,"first":1,"tokens":[5],"seconds":0})", {"first", "0"});
  expect(R"({"id":"a","response":0,"first":0,"tokens":[-5],"seconds":0})", {"tokens", "-5"});
  expect(R"({"id":"a","response":0,"first":0,"tokens":5,"seconds":0})", {"tokens", "array"});
  expect(R"({"id":"a","response":0,"first":0,"tokens":[5],"seconds":-1})", {"seconds", "-1"});
}

// Sets a flag after so many tokens.
class CancelAfter : public EngineObserver {
 public:
  CancelAfter(int64_t num_tokens, CancelFlag* flag) : rest_(num_tokens), flag_(flag) {}
  void OnToken(RequestId, int32_t, const std::string&) override {
    ++num_drawn;
    if (--rest_ == 0) *flag_ = true;
  }

  int64_t num_drawn = 0;

 private:
  int64_t rest_;
  CancelFlag* flag_;
};

class ContinuedRun : public ::testing::TestWithParam<std::string> {
 protected:
  static std::vector<ProblemRow> Problems() {
    std::vector<ProblemRow> problems;
    for (int64_t i = 0; i < 3; ++i) {
      ProblemRow row;
      row.id = "p" + std::to_string(i);
      row.problem = "problem number " + std::to_string(i * 7919);
      row.answer = "1";
      problems.push_back(row);
    }
    return problems;
  }

  EvaluationOptions Options() const {
    EvaluationOptions options;
    options.engine.kv.spec = GetParam();
    // Halved several times on the way.
    if (GetParam() == "pm-kvq") options.engine.kv.budget_bytes = 60000;
    options.engine.max_sequences = 4;
    options.engine.max_len = 700;
    options.engine.num_threads = 1;
    options.sampling.temperature = 0.7;
    options.num_responses = 2;
    options.max_tokens = 400;
    return options;
  }

  // A response without the times, which differ.
  static std::string WithoutTimes(Response response) {
    response.decode_seconds = 0;
    response.longest_pause_us = 0;
    return ResponseLine(response);
  }

  static std::vector<std::string> Lines(const ResponseLog& log,
                                        const std::vector<ProblemRow>& problems) {
    std::vector<std::string> lines;
    for (const Response& response : ResponsesTo(log, problems, 2)) {
      lines.push_back(WithoutTimes(response));
    }
    return lines;
  }

  std::shared_ptr<const Model> model_ = LoadTinyLlama();
  std::shared_ptr<const Tokenizer> tokenizer_ = ByteTokenizer();
};

TEST_P(ContinuedRun, EqualsAnUninterruptedOneAndDrawsNoTokenTwice) {
  const std::vector<ProblemRow> problems = Problems();
  const EvaluationOptions options = Options();
  const auto run = [&](ResponseLog& log, EngineObserver* observer, const CancelFlag* cancel) {
    Evaluate(model_, tokenizer_, Grading::kAnswer, problems, options, log, observer, {}, cancel);
  };
  ResponseLog whole;
  run(whole, nullptr, nullptr);
  const ResponseSummary summary = SummarizeResponses(whole.responses());

  const TempFolder folder;
  const RunSettings settings =
      MakeRunSettings({"jsonl", Grading::kAnswer, problems}, *model_, options, "");
  Random random(11);
  int64_t num_drawn = 0;
  size_t num_done = 0;
  int num_runs = 0;
  while (num_done < 6) {
    ASSERT_LT(++num_runs, 60);
    ResponseLog log(folder.path(), settings);
    CancelFlag cancel{false};
    CancelAfter observer(1 + static_cast<int64_t>(random.Below(400)), &cancel);
    run(log, &observer, &cancel);
    num_drawn += observer.num_drawn;
    num_done = log.responses().size();
  }
  EXPECT_GT(num_runs, 4);
  EXPECT_EQ(num_drawn, summary.output_tokens);
  ResponseLog log(folder.path(), settings);
  EXPECT_EQ(Lines(log, problems), Lines(whole, problems));
  EXPECT_FALSE(std::filesystem::exists(folder.File("unfinished.jsonl")));
}

INSTANTIATE_TEST_SUITE_P(Caches, ContinuedRun, ::testing::Values("fp16", "pm-kvq", "kivi"),
                         [](const auto& one) {
                           std::string name = one.param;
                           std::erase(name, '-');
                           return name;
                         });

}  // namespace
}  // namespace pmkvq
