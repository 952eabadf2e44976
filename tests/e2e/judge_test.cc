// pmkvq judge as its user runs it.
#include <gtest/gtest.h>

#include "pmkvq/io/json.h"
#include "support/run_program.h"

namespace pmkvq {
namespace {

using testing_support::ProgramResult;
using testing_support::RunProgram;
using testing_support::TempFolder;

TEST(Judge, CasesGiveOneVerdictEach) {
  const TempFolder folder;
  const std::string cases =
      folder.Write("cases.jsonl", R"json({"response":"so \\boxed{\\frac{1}{2}}","gold":"0.5"})json"
                                  "\n"
                                  R"json({"response":"the answer is (1,2)","gold":"[1,2]"})json"
                                  "\n"
                                  R"json({"response":"I do not know","gold":"3"})json"
                                  "\n");
  const ProgramResult result = RunProgram({"judge", "--cases", cases, "--json", "-"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(result.out,
            R"json({"correct":[true,false,false],"extracted":["\\frac{1}{2}","(1,2)",""]})json"
            "\n");
  EXPECT_EQ(RunProgram({"judge", "--cases", cases}).out, "correct: 1 of 3\n");
}

TEST(Judge, FolderOfResponses) {
  const TempFolder folder;
  folder.Write(
      "responses.jsonl",
      R"json({"id":"a","answer":"4","text":"\\boxed{4}","response":0,"output_tokens":10,)json"
      R"json("finish_reason":"stop"})json"
      "\n"
      R"json({"id":"a","answer":"4","text":"\\boxed{2^2}","response":1,"output_tokens":20,)json"
      R"json("finish_reason":"stop"})json"
      "\n"
      R"json({"id":"b","answer":"9","text":"\\boxed{9}","response":0,"output_tokens":30,)json"
      R"json("finish_reason":"stop"})json"
      "\n"
      R"json({"id":"b","answer":"9","text":"hm","response":1,"output_tokens":40,)json"
      R"json("finish_reason":"length"})json"
      "\n");
  const ProgramResult result = RunProgram({"judge", folder.path(), "--json", "-"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(result.out,
            R"json({"n":2,"responses":4,"pass_at_1":0.75,"std":0.25,"voting":1.0,)json"
            R"json("mean_output_tokens":25.0,"cut_by_length":0.25,"cut_by_budget":0.0})json"
            "\n");
  const ProgramResult text = RunProgram({"judge", folder.File("responses.jsonl")});
  EXPECT_NE(text.out.find("75.00 +- 25.00 %"), std::string::npos) << text.out;
}

TEST(Judge, NeedsExactlyOneInput) {
  for (const std::vector<std::string>& args :
       {std::vector<std::string>{"judge"}, {"judge", "x", "--cases", "y"}}) {
    const ProgramResult result = RunProgram(args);
    EXPECT_NE(result.exit_code, 0);
    EXPECT_NE(result.err.find("expected exactly one"), std::string::npos) << result.err;
  }
}

TEST(Judge, NamesTheBadLine) {
  const TempFolder folder;
  folder.Write("r.jsonl", "{\"id\":\"a\",\"answer\":\"1\"}\n");
  const ProgramResult result = RunProgram({"judge", folder.path()});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_NE(result.err.find("r.jsonl:1"), std::string::npos) << result.err;
}

}  // namespace
}  // namespace pmkvq
