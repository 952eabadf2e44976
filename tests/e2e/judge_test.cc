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
  const std::string cases = folder.Write(
      "cases.jsonl",
      R"({"response":"so \\boxed{\\frac{1}{2}}","gold":"0.5"})"
      "\n"
      R"({"response":"the answer is (1,2)","gold":"[1,2]"
})"
      "\n"
      R"({"response":"I do not know","gold":"3"})"
      "\n");
const ProgramResult result = RunProgram({"judge", "--cases", cases, "--json", "-"});
EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(result.out,
            R"({"correct":[true,false,false],"extracted":["\\frac{1}{2}","(1,2)",""]
  })"
            "\n");
  EXPECT_EQ(RunProgram({"judge", "--cases", cases}).out, "correct: 1 of 3\n");
  }

  TEST(Judge, FolderOfResponses) {
    const TempFolder folder;
    folder.Write("responses.jsonl",
                 R"({"id":"a","answer":"4","text":"\\boxed{4}","response":0,"output_tokens":10,)"
                 R"("finish_reason":"stop"})"
                 "\n"
                 R"({"id":"a","answer":"4","text":"\\boxed{2^2}","response":1,"output_tokens":20,)"
                 R"("finish_reason":"stop"})"
                 "\n"
                 R"({"id":"b","answer":"9","text":"\\boxed{9}","response":0,"output_tokens":30,)"
                 R"("finish_reason":"stop"})"
                 "\n"
                 R"({"id":"b","answer":"9","text":"hm","response":1,"output_tokens":40,)"
                 R"("finish_reason":"length"})"
                 "\n");
    const ProgramResult result = RunProgram({"judge", folder.path(), "--json", "-"});
    ASSERT_EQ(result.exit_code, 0) << result.err;
    EXPECT_EQ(result.out, R"({"n":2,"responses":4,"pass_at_1":0.75,"std":0.25,"voting":1.0,)"
                          R"("mean_output_tokens":25.0,"cut_by_length":0.25,"cut_by_budget":0.0})"
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
