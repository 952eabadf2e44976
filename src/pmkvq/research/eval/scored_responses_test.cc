#include "pmkvq/research/eval/scored_responses.h"

#include <gtest/gtest.h>

#include <cmath>

#include "pmkvq/base/error.h"
#include "support/expect_error.h"
#include "support/temp_folder.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;
using testing_support::TempFolder;

ResponseRow Row(const std::string& id, int64_t response, const std::string& answer,
                const std::string& text) {
  ResponseRow row;
  row.id = id;
  row.answer = answer;
  row.text = text;
  row.response = response;
  row.finish_reason = "stop";
  return row;
}

std::string Line(const std::string& id, const std::string& answer, const std::string& more = "") {
  return "{\"id\":\"" + id + "\",\"answer\":\"" + answer + "\",\"text\":\"\\\\boxed{1}\"" + more +
         "}\n";
}

// Two problems, three responses each. Accuracies of the responses: 1/2, 1, 0; their mean is 1/2
// and their variance (0 + 1/4 + 1/4) / 3 = 1/6.
TEST(JudgeResponses, CountsByHand) {
  std::vector<ResponseRow> rows = {
      Row("a", 0, "0.5", "\\boxed{1/2}"), Row("a", 1, "0.5", "\\boxed{\\frac12}"),
      Row("a", 2, "0.5", "\\boxed{2}"),   Row("b", 0, "7", "\\boxed{8}"),
      Row("b", 1, "7", "\\boxed{7}"),     Row("b", 2, "7", "\\boxed{8.0}"),
  };
  for (size_t i = 0; i < rows.size(); ++i) rows[i].output_tokens = static_cast<int64_t>(10 * i);
  rows[2].finish_reason = "length";
  rows[3].finish_reason = "kv_budget";
  rows[5].finish_reason = "kv_budget";
  const JudgeSummary summary = JudgeResponses(rows);
  EXPECT_EQ(summary.num_problems, 2);
  EXPECT_EQ(summary.num_responses, 6);
  EXPECT_DOUBLE_EQ(summary.pass_at_1, 0.5);
  EXPECT_DOUBLE_EQ(summary.standard_deviation, std::sqrt(1.0 / 6));
  // "a": 1/2 and \frac12 are one answer with two votes; "b": 8 and 8.0 outvote the right one.
  EXPECT_DOUBLE_EQ(summary.voting, 0.5);
  EXPECT_DOUBLE_EQ(summary.mean_output_tokens, 25);
  EXPECT_DOUBLE_EQ(summary.cut_by_length, 1.0 / 6);
  EXPECT_DOUBLE_EQ(summary.cut_by_budget, 2.0 / 6);
}

TEST(JudgeResponses, TheFirstOfEquallyFrequentAnswersWins) {
  EXPECT_DOUBLE_EQ(
      JudgeResponses({Row("a", 0, "1", "\\boxed{1}"), Row("a", 1, "1", "\\boxed{2}")}).voting, 1);
  EXPECT_DOUBLE_EQ(
      JudgeResponses({Row("a", 0, "1", "\\boxed{2}"), Row("a", 1, "1", "\\boxed{1}")}).voting, 0);
  // By index, not by the order of finishing.
  EXPECT_DOUBLE_EQ(
      JudgeResponses({Row("a", 1, "1", "\\boxed{2}"), Row("a", 0, "1", "\\boxed{1}")}).voting, 1);
}

TEST(JudgeResponses, NoAnswerIsNoVote) {
  const JudgeSummary summary = JudgeResponses(
      {Row("a", 0, "1", "hm"), Row("a", 1, "1", "hm"), Row("a", 2, "1", "\\boxed{1}")});
  EXPECT_DOUBLE_EQ(summary.voting, 1);
  EXPECT_DOUBLE_EQ(summary.pass_at_1, 1.0 / 3);
  EXPECT_DOUBLE_EQ(JudgeResponses({Row("a", 0, "1", "hm")}).voting, 0);
}

TEST(JudgeResponses, NothingGivesZeros) {
  const JudgeSummary summary = JudgeResponses({});
  EXPECT_EQ(summary.num_responses, 0);
  EXPECT_EQ(summary.pass_at_1, 0);
  EXPECT_EQ(summary.standard_deviation, 0);
}

TEST(LoadResponses, ReadsAFileAndAFolder) {
  const TempFolder folder;
  const std::string a = folder.Write("a.jsonl", Line("p", "1",
                                                     ",\"response\":3,\"finish_reason\":\"length\","
                                                     "\"output_tokens\":9,\"level\":2") +
                                                    "\n" + Line("q", "2"));
  folder.Write("b.jsonl", Line("q", "2"));
  folder.Write("summary.json", "{}");
  const std::vector<ResponseRow> file = LoadResponses(a);
  ASSERT_EQ(file.size(), 2u);
  EXPECT_EQ(file[0].response, 3);
  EXPECT_EQ(file[0].finish_reason, "length");
  EXPECT_EQ(file[0].output_tokens, 9);
  EXPECT_EQ(file[0].text, "\\boxed{1}");
  const std::vector<ResponseRow> all = LoadResponses(folder.path());
  ASSERT_EQ(all.size(), 3u);
  // Without an index they are numbered as they come.
  EXPECT_EQ(all[1].response, 0);
  EXPECT_EQ(all[2].response, 1);
}

TEST(LoadResponses, NumbersAreAnswersToo) {
  const ResponseRow row = ParseResponseRow(R"({"id":7,"answer":12,"text":""})", "x:1");
  EXPECT_EQ(row.id, "7");
  EXPECT_EQ(row.answer, "12");
}

TEST(LoadResponses, RefusesBadRows) {
  const TempFolder folder;
  const auto load = [&](const std::string& lines) {
    LoadResponses(folder.Write("bad.jsonl", lines));
  };
  ExpectError<InvalidInput>([&] { load("{\"id\":\"p\",\"answer\":\"1\"}\n"); },
                            {"bad.jsonl:1", "text", "expected"});
  ExpectError<InvalidInput>([&] { load("{\"id\":\"p\",\"text\":\"1\"}\n"); },
                            {"bad.jsonl:1", "answer"});
  ExpectError<InvalidInput>([&] { load("[]\n"); }, {"bad.jsonl:1", "an object"});
  ExpectError<InvalidInput>([&] { load(Line("p", "1") + Line("p", "2")); },
                            {"bad.jsonl:2", "answer: found \"2\"", "\"1\""});
  ExpectError<InvalidInput>(
      [&] { load(Line("p", "1", ",\"response\":4") + Line("p", "1", ",\"response\":4")); },
      {"bad.jsonl:2", "response: found 4", "second time"});
  ExpectError<InvalidInput>([&] { load(Line("p", "1", ",\"response\":-1")); }, {"response", "-1"});
  ExpectError<InvalidInput>([&] { load(""); }, {"found none"});
  ExpectError<IoError>([&] { LoadResponses(folder.File("missing")); }, {"missing"});
  const TempFolder empty;
  ExpectError<InvalidInput>([&] { LoadResponses(empty.path()); }, {"found no .jsonl"});
}

TEST(LoadJudgeCases, ReadsRowsAndRefusesBadOnes) {
  const TempFolder folder;
  const std::vector<JudgeCase> cases = LoadJudgeCases(folder.Write(
      "c.jsonl", "{\"response\":\"r\",\"gold\":\"g\"}\n{\"response\":\"\",\"gold\":3}"));
  ASSERT_EQ(cases.size(), 2u);
  EXPECT_EQ(cases[0].response, "r");
  EXPECT_EQ(cases[1].gold, "3");
  ExpectError<InvalidInput>(
      [&] { LoadJudgeCases(folder.Write("d.jsonl", "{\"response\":\"r\"}\n")); },
      {"d.jsonl:1", "gold"});
  ExpectError<InvalidInput>([&] { LoadJudgeCases(folder.Write("e.jsonl", "\n")); }, {"found none"});
}

// Four equal responses to each of three problems: the interval of three, not of twelve.
TEST(SummarizeGraded, IntervalTakesTheResponsesToAProblemTogether) {
  std::vector<GradedResponse> responses;
  for (const char* id : {"a", "b", "c"}) {
    for (int64_t response = 0; response < 4; ++response) {
      GradedResponse row;
      row.id = id;
      row.response = response;
      row.correct = true;
      responses.push_back(row);
    }
  }
  EXPECT_NEAR(SummarizeGraded(responses).interval.low, WilsonInterval(3, 3).low, 1e-12);
}

}  // namespace
}  // namespace pmkvq
