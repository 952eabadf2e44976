#include "pmkvq/research/eval/grader.h"

#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "pmkvq/base/error.h"
#include "pmkvq/research/benchmarks/benchmark.h"
#include "pmkvq/research/benchmarks/code_problem.h"
#include "support/expect_error.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;

Response Saying(const std::string& id, const std::string& text) {
  Response response;
  response.id = id;
  response.text = text;
  return response;
}

std::string Fenced(const std::string& code) { return "```python\n" + code + "\n```"; }

// One test: reads nothing, prints 1.
std::string PrintsOne() {
  return ParseCodeProblem(
             R"({"question_title":"One","question_id":"q","question_content":"Print 1.",)"
             R"("public_test_cases":"[{\"input\":\"\",\"output\":\"1\",\"testtype\":\"stdin\"}]",)"
             R"("private_test_cases":"[]","metadata":"{}"})",
             "t:1")
      .answer;
}

TEST(GraderTest, AnswersAreThereAtOnce) {
  Grader grader(Grading::kAnswer, 1, nullptr);
  grader.Add(Saying("a", "So \\boxed{0.5}."), "\\frac{1}{2}");
  grader.Add(Saying("b", "So \\boxed{3}."), "4");
  const std::vector<Response> graded = grader.TakeGraded();
  ASSERT_EQ(graded.size(), 2u);
  EXPECT_EQ(graded[0].id, "a");
  EXPECT_TRUE(graded[0].correct);
  EXPECT_EQ(graded[1].extracted, "3");
  EXPECT_FALSE(graded[1].correct);
  EXPECT_TRUE(grader.TakeGraded().empty());
  EXPECT_TRUE(grader.WaitForAll().empty());
}

TEST(GraderTest, CodeIsTestedMeanwhileAndInOrder) {
  const std::string gold = PrintsOne();
  Grader grader(Grading::kCode, 2, nullptr);
  grader.Add(Saying("slow", Fenced("import time\ntime.sleep(4)\nprint(1)")), gold);
  grader.Add(Saying("wrong", Fenced("print(2)")), gold);
  grader.Add(Saying("none", "I give up."), gold);
  EXPECT_TRUE(grader.TakeGraded().empty()) << "Add has waited for the slow one";
  const std::vector<Response> graded = grader.WaitForAll();
  ASSERT_EQ(graded.size(), 3u);
  EXPECT_EQ(graded[0].id, "slow");
  EXPECT_TRUE(graded[0].correct);
  EXPECT_EQ(graded[1].id, "wrong");
  EXPECT_FALSE(graded[1].correct);
  EXPECT_EQ(graded[1].extracted, "print(2)\n");
  EXPECT_EQ(graded[2].id, "none");
  EXPECT_TRUE(grader.WaitForAll().empty());
}

TEST(GraderTest, WhatWasJudgedComesBeforeAnError) {
  Grader grader(Grading::kCode, 2, nullptr);
  grader.Add(Saying("good", Fenced("print(1)")), PrintsOne());
  grader.Add(Saying("bad", Fenced("print(1)")), "42");  // No tests.
  grader.Add(Saying("behind", Fenced("print(1)")), PrintsOne());
  const std::vector<Response> graded = grader.WaitForAll();
  ASSERT_EQ(graded.size(), 1u);
  EXPECT_EQ(graded[0].id, "good");
  ExpectError<InvalidInput>([&] { grader.WaitForAll(); }, {"tests", "42"});
  EXPECT_TRUE(grader.WaitForAll().empty());
}

std::vector<std::string> Ids(const std::vector<Response>& responses) {
  std::vector<std::string> ids;
  for (const Response& response : responses) ids.push_back(response.id);
  return ids;
}

// Six programs that sleep for 20 s together, and for 8 s with three workers.
TEST(GraderTest, WorkersJudgeAtTheSameTimeAndResultsKeepTheirOrder) {
  const std::string gold = PrintsOne();
  constexpr int kResponses = 6;
  Grader grader(Grading::kCode, 3, nullptr);
  std::vector<std::string> expected;
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < kResponses; ++i) {
    // The first of three takes longest, so that the others are done before it.
    const std::string seconds = i % 3 == 0 ? "4" : "3";
    expected.push_back(std::to_string(i));
    grader.Add(
        Saying(expected.back(), Fenced("import time\ntime.sleep(" + seconds + ")\nprint(1)")),
        gold);
  }
  std::vector<std::string> ids;
  while (ids.size() < kResponses) {
    for (const Response& response : grader.TakeGraded()) {
      EXPECT_TRUE(response.correct) << response.id;
      ids.push_back(response.id);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  EXPECT_EQ(ids, expected);
  EXPECT_TRUE(grader.WaitForAll().empty());
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(19));
}

// Ids of what is there after a cancellation that comes `wait` after the programs were given.
std::vector<std::string> KeptByCancelling(std::chrono::seconds wait) {
  const std::string gold = PrintsOne();
  CancelFlag cancel = false;
  Grader grader(Grading::kCode, 2, &cancel);
  grader.Add(Saying("done", Fenced("print(1)")), gold);
  while (grader.TakeGraded().empty()) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  grader.Add(Saying("long", Fenced("import time\ntime.sleep(19)\nprint(1)")), gold);
  grader.Add(Saying("quick", Fenced("print(1)")), gold);
  for (int i = 0; i < 50; ++i) {
    grader.Add(Saying("waits", Fenced("import time\ntime.sleep(19)\nprint(1)")), gold);
  }
  std::this_thread::sleep_for(wait);
  EXPECT_TRUE(grader.TakeGraded().empty()) << "the long one comes first";
  const auto cancelled = std::chrono::steady_clock::now();
  cancel = true;
  const std::vector<std::string> kept = Ids(grader.WaitForAll());
  // 50 programs of 19 s by two workers.
  EXPECT_LT(std::chrono::steady_clock::now() - cancelled, std::chrono::seconds(60));
  EXPECT_TRUE(grader.WaitForAll().empty());
  grader.Add(Saying("late", Fenced("print(1)")), gold);
  EXPECT_TRUE(grader.WaitForAll().empty());
  return kept;
}

TEST(GraderTest, CancellingDropsTheBacklogAndKeepsWhatIsJudged) {
  std::vector<std::string> kept = KeptByCancelling(std::chrono::seconds(2));
  // On a busy machine the quick one may not have ended by then.
  if (kept.empty()) kept = KeptByCancelling(std::chrono::seconds(12));
  EXPECT_EQ(kept, std::vector<std::string>{"quick"});
}

TEST(GraderTest, CancelledAnswersGetNoGrade) {
  const CancelFlag cancel = true;
  Grader grader(Grading::kAnswer, 1, &cancel);
  grader.Add(Saying("a", "So \\boxed{1}."), "1");
  EXPECT_TRUE(grader.WaitForAll().empty());
}

TEST(GraderTest, CanBeGivenUp) {
  const std::string gold = PrintsOne();
  const auto start = std::chrono::steady_clock::now();
  {
    Grader grader(Grading::kCode, 2, nullptr);
    grader.Add(Saying("begun", Fenced("import time\ntime.sleep(0.5)\nprint(1)")), gold);
    for (int i = 0; i < 9; ++i) {
      grader.Add(Saying("waits", Fenced("import time\ntime.sleep(19)\nprint(1)")), gold);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(60)) << "of 90";
}

}  // namespace
}  // namespace pmkvq
