#include "pmkvq/research/benchmarks/contest.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "pmkvq/base/error.h"
#include "support/expect_error.h"
#include "support/temp_folder.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;
using testing_support::TempFolder;

using Answers = std::vector<std::pair<std::string, std::string>>;

void WriteContest(const TempFolder& folder, const std::string& name, const std::string& config) {
  std::filesystem::create_directories(folder.File(name + "/problems"));
  folder.Write(name + "/answers.csv", "id,answer\n2,5\n1,\"(1,2)\"\n");
  folder.Write(name + "/problems/1.tex", "What is the pair?\n\n");
  folder.Write(name + "/problems/2.tex", "What is $2+3$?");
  if (!config.empty()) folder.Write(name + "/config.yaml", config);
}

TEST(Contest, ProblemsInTheOrderOfTheAnswersWithTheInstructionBehind) {
  const TempFolder folder;
  WriteContest(folder, "cup_2", R"(instruction: "Put it\nwithin \\boxed{{}}.")");
  const std::vector<ProblemRow> rows = LoadContests(folder.File("cup_2"));
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0].id, "cup_2.2");
  EXPECT_EQ(rows[0].task, "cup_2");
  EXPECT_EQ(rows[0].answer, "5");
  EXPECT_EQ(rows[0].problem, "What is $2+3$?\nPut it\nwithin \\boxed{}.");
  EXPECT_EQ(rows[1].answer, "(1,2)");
  EXPECT_EQ(rows[1].problem, "What is the pair?\nPut it\nwithin \\boxed{}.");
}

TEST(Contest, FolderOfSeveralIsTakenByNameAndAContestWithoutConfigHasTheReferencesWords) {
  const TempFolder folder;
  WriteContest(folder, "cup_2", "");
  WriteContest(folder, "cup_1", "");
  folder.Write("readme.txt", "not a contest");
  const std::vector<ProblemRow> rows = LoadContests(folder.path() + "/");
  ASSERT_EQ(rows.size(), 4u);
  EXPECT_EQ(rows[0].id, "cup_1.2");
  EXPECT_EQ(rows[3].id, "cup_2.1");
  EXPECT_EQ(rows[0].problem,
            "What is $2+3$?\nPlease reason step by step, and put your final answer within "
            "\\boxed{}.");
  // A trailing slash takes nothing from the name.
  EXPECT_EQ(LoadContests(folder.File("cup_1/")).front().id, "cup_1.2");
}

TEST(Contest, NamesWhatIsMissing) {
  const TempFolder folder;
  ExpectError<InvalidInput>([&] { LoadContests(folder.path()); }, {"answers.csv"});
  ExpectError<InvalidInput>([&] { LoadContests(folder.File("none")); }, {"none", "folder"});
  WriteContest(folder, "cup", "");
  std::filesystem::remove(folder.File("cup/problems/1.tex"));
  ExpectError<IoError>([&] { LoadContests(folder.path()); }, {"1.tex"});
  folder.Write("cup/problems/1.tex", " \n");
  ExpectError<InvalidInput>([&] { LoadContests(folder.path()); }, {"1.tex", "empty"});
  folder.Write("cup/problems/1.tex", "\xff");
  ExpectError<InvalidInput>([&] { LoadContests(folder.path()); }, {"1.tex", "0xff", "UTF-8"});
}

TEST(AnswersCsv, ReadsQuotesLineEndsAndOtherColumns) {
  EXPECT_EQ(ParseAnswersCsv("id,answer\r\n1,025\r\n2,-90\r\n", "a"),
            (Answers{{"1", "025"}, {"2", "-90"}}));
  EXPECT_EQ(ParseAnswersCsv("answer,kind,id\n\"a \"\"b\"\",c\",x,7\n\n", "a"),
            (Answers{{"7", "a \"b\",c"}}));
  EXPECT_EQ(ParseAnswersCsv("id,answer\n1,\\frac{\\sqrt{6}}{3}", "a"),
            (Answers{{"1", "\\frac{\\sqrt{6}}{3}"}}));
}

TEST(AnswersCsv, NamesTheBadLine) {
  const auto expect = [](const std::string& text, std::initializer_list<std::string> parts) {
    ExpectError<InvalidInput>([&] { ParseAnswersCsv(text, "a.csv"); }, parts);
  };
  expect("", {"a.csv:1", "'id'"});
  expect("id,gold\n1,2\n", {"a.csv:1", "'answer'"});
  expect("id,answer\n", {"none"});
  expect("id,answer\n1,2\n2,(1,3)\n", {"a.csv:3", "3 fields", "quotes"});
  expect("id,answer\n\"1\n\",2\n1,2\n", {"a.csv:4", "'1' again"});
  expect("id,answer\n../../x,2\n", {"a.csv:2", "../../x"});
  expect("id,answer\n1,\n", {"a.csv:2", "answer"});
  expect("id,answer\n1,\"2\n", {"a.csv:2", "without an end"});
  expect("id,answer\n1,\"2\"3\n", {"a.csv:2", "behind a quoted field"});
}

TEST(Instruction, ReadsFlatYaml) {
  EXPECT_EQ(
      ParseInstruction("# words\nn_problems: 15\n\ninstruction: \"a\\\\b \\\"c\\\" {{}}\"  # d\n"
                       "date: \"2024-02-01\"\r\nstrict_parsing: true",
                       "c"),
      "a\\b \"c\" {}");
  EXPECT_EQ(ParseInstruction("instruction: 'it''s \\boxed{{x}}'", "c"), "it's \\boxed{x}");
  EXPECT_EQ(ParseInstruction("---\ninstruction: Answer briefly. # please\n", "c"),
            "Answer briefly.");
}

TEST(Instruction, RefusesWhatItDoesNotUnderstand) {
  const auto expect = [](const std::string& text, std::initializer_list<std::string> parts) {
    ExpectError<InvalidInput>([&] { ParseInstruction(text, "c.yaml"); }, parts);
  };
  expect("date: today\n", {"c.yaml", "instruction", "none"});
  expect("date: today\ninstruction: |\n  Block.\n", {"c.yaml:2", "'|'"});
  expect("instruction: \"one\n  two\"\n", {"c.yaml:1", "without an end"});
  expect("instruction: 'one\n", {"c.yaml:1", "without an end"});
  expect("instruction: \"\\x41\"\n", {"c.yaml:1", "\\x"});
  expect("instruction: \"a\" b\n", {"c.yaml:1", "'b'"});
  expect("instruction: \"in \\\\boxed{}\" \n", {"c.yaml:1", "single '{'"});
  expect("instruction: \"x}\"\n", {"c.yaml:1", "single '}'"});
  expect("instruction: a\ninstruction: b\n", {"c.yaml:2", "again"});
  expect("list:\n  - a\n", {"c.yaml:1"});
  expect("just words\n", {"c.yaml:1", "key: value"});
}

}  // namespace
}  // namespace pmkvq
