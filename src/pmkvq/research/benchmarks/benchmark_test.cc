#include "pmkvq/research/benchmarks/benchmark.h"

#include <gtest/gtest.h>

#include "pmkvq/base/error.h"
#include "support/expect_error.h"
#include "support/temp_folder.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;
using testing_support::TempFolder;

constexpr const char* kWords =
    "\nPlease reason step by step, and put your final answer within \\boxed{}.";

TEST(Benchmark, LongcotAndJsonlStandAsTheyAre) {
  const TempFolder folder;
  const std::string path = folder.Write(
      "problems.jsonl", R"({"id":"a","problem":"1+1?","answer":2,"task":"sum","level":3})"
                        "\n"
                        R"({"problem":"2+2?","answer":"4","reference_chain":"2+2=4"})"
                        "\n");
  for (const auto& [name, data] :
       {std::pair{"longcot", folder.path()}, {"longcot", path}, {"jsonl", path}}) {
    const Benchmark benchmark = LoadBenchmark(name, data);
    EXPECT_EQ(benchmark.name, name);
    EXPECT_EQ(benchmark.grading, Grading::kAnswer);
    ASSERT_EQ(benchmark.problems.size(), 2u);
    EXPECT_EQ(benchmark.problems[0].problem, "1+1?");
    EXPECT_EQ(benchmark.problems[0].answer, "2");
    EXPECT_EQ(benchmark.problems[0].level, 3);
    EXPECT_EQ(benchmark.problems[1].id, "2");
    EXPECT_EQ(benchmark.problems[1].reference_chain, "2+2=4");
  }
}

TEST(Benchmark, Gsm8kTakesTheNumberBehindTheMarks) {
  const TempFolder folder;
  folder.Write("test.jsonl", R"({"question":"How many?","answer":"2+2 = <<2+2=4>>4\n#### 1,004"})"
                             "\n");
  const Benchmark benchmark = LoadBenchmark("gsm8k", folder.path());
  ASSERT_EQ(benchmark.problems.size(), 1u);
  EXPECT_EQ(benchmark.problems[0].id, "gsm8k.1");
  EXPECT_EQ(benchmark.problems[0].problem, std::string("How many?") + kWords);
  EXPECT_EQ(benchmark.problems[0].answer, "1,004");
  ExpectError<InvalidInput>([] { ParseGsm8kRow(R"({"question":"q","answer":"4"})", "f:3"); },
                            {"f:3", "answer", "####"});
  ExpectError<InvalidInput>([] { ParseGsm8kRow(R"({"question":"","answer":"#### 4"})", "f:3"); },
                            {"f:3", "question"});
  ExpectError<InvalidInput>([] { ParseGsm8kRow("[]", "f:3"); }, {"f:3", "object"});
}

TEST(Benchmark, Math500KeepsSubjectAndLevel) {
  const TempFolder folder;
  const std::string row = R"({"problem":"Half of 1?","solution":"s","answer":"\\frac{1}{2}",)"
                          R"("subject":"Algebra","level":2,"unique_id":"test/7.json"})"
                          "\n";
  const std::string path = folder.Write("rows.jsonl", row);
  const Benchmark benchmark = LoadBenchmark("math500", path);
  ASSERT_EQ(benchmark.problems.size(), 1u);
  EXPECT_EQ(benchmark.problems[0].id, "test/7.json");
  EXPECT_EQ(benchmark.problems[0].task, "Algebra");
  EXPECT_EQ(benchmark.problems[0].level, 2);
  EXPECT_EQ(benchmark.problems[0].answer, "\\frac{1}{2}");
  EXPECT_EQ(benchmark.problems[0].problem, std::string("Half of 1?") + kWords);
  folder.Write("rows.jsonl", row + row);
  ExpectError<InvalidInput>([&] { LoadBenchmark("math500", path); },
                            {"rows.jsonl:2", "test/7.json", "again"});
}

TEST(Benchmark, NamesWhatIsWrong) {
  const TempFolder folder;
  ExpectError<InvalidInput>([&] { LoadBenchmark("imo", folder.path()); },
                            {"--benchmark", "'imo'", "longcot", "aime", "jsonl"});
  ExpectError<InvalidInput>([&] { LoadBenchmark("gsm8k", folder.path()); }, {"no test.jsonl"});
  ExpectError<InvalidInput>([&] { LoadBenchmark("jsonl", folder.path()); }, {"a .jsonl file"});
  ExpectError<IoError>([&] { LoadBenchmark("gsm8k", folder.File("x")); }, {"x"});
  folder.Write("test.jsonl", "\n");
  ExpectError<InvalidInput>([&] { LoadBenchmark("math500", folder.path()); }, {"none"});
}

TEST(Benchmark, ListedOnesHaveTheProtocolOfThePaper) {
  for (const BenchmarkInfo& info : ListBenchmarks()) {
    SCOPED_TRACE(info.name);
    const bool greedy = info.name == "longcot" || info.name == "jsonl";
    EXPECT_EQ(info.temperature, greedy ? 0 : 0.6);
    EXPECT_EQ(info.top_p, greedy ? 1 : 0.95);
    EXPECT_EQ(info.num_responses, greedy ? 1 : info.name == "livecodebench" ? 4 : 16);
    EXPECT_EQ(info.max_tokens, greedy ? 0 : 32768);
  }
}

std::vector<std::string> Ids(const std::vector<ProblemRow>& problems) {
  std::vector<std::string> ids;
  for (const ProblemRow& problem : problems) ids.push_back(problem.id);
  return ids;
}

TEST(SelectProblems, LevelsAndCellsFirstThenTheRange) {
  std::vector<ProblemRow> problems;
  for (const char* id : {"a1x", "a1y", "a2x", "b1x", "b1y", "b3x"}) {
    ProblemRow row;
    row.id = id;
    row.task = id[0];
    row.level = id[1] - '0';
    problems.push_back(row);
  }
  using Names = std::vector<std::string>;
  EXPECT_EQ(Ids(SelectProblems(problems, {})), Ids(problems));
  ProblemSelection selection;
  selection.per_cell = 1;
  EXPECT_EQ(Ids(SelectProblems(problems, selection)), (Names{"a1x", "a2x", "b1x", "b3x"}));
  selection.start = 1;
  selection.end = 3;
  EXPECT_EQ(Ids(SelectProblems(problems, selection)), (Names{"a2x", "b1x"}));
  selection.end = 30;
  EXPECT_EQ(Ids(SelectProblems(problems, selection)), (Names{"a2x", "b1x", "b3x"}));
  selection.min_level = 2;
  selection.max_level = 2;
  ExpectError<InvalidInput>([&] { SelectProblems(problems, selection); }, {"--start", "found 1"});
  selection.start = selection.end = 0;
  ExpectError<InvalidInput>([&] { SelectProblems(problems, selection); }, {"--end", "found 0"});
  selection.min_level = 4;
  ExpectError<InvalidInput>([&] { SelectProblems(problems, selection); },
                            {"--min-level", "4 to 2"});
}

}  // namespace
}  // namespace pmkvq
