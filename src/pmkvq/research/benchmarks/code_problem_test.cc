#include "pmkvq/research/benchmarks/code_problem.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "pmkvq/base/error.h"
#include "pmkvq/io/json.h"
#include "support/expect_error.h"
#include "support/temp_folder.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;
using testing_support::TempFolder;

// A row as LiveCodeBench writes it; fields left empty are left out.
struct Row {
  std::string id = "abc301_a";
  std::string question = "Add two numbers.";
  std::string starter;
  std::string difficulty = "easy";
  std::string public_tests = R"([{"input":"1 2\n","output":"3\n","testtype":"stdin"}])";
  std::string private_tests = R"([{"input":"5 6","output":"11","testtype":"stdin"}])";
  std::string metadata = "{}";

  std::string Line() const {
    JsonWriter json;
    json.BeginObject().Key("question_title").String("Sum").Key("platform").String("atcoder");
    const std::vector<std::pair<std::string, std::string>> fields = {
        {"question_id", id},
        {"question_content", question},
        {"starter_code", starter},
        {"difficulty", difficulty},
        {"metadata", metadata},
        {"public_test_cases", public_tests},
        {"private_test_cases", private_tests}};
    for (const auto& [key, value] : fields) {
      if (!value.empty()) json.Key(key).String(value);
    }
    return json.EndObject().text();
  }
};

Row FunctionRow() {
  Row row;
  row.id = "2777";
  row.starter = "class Solution:\n    def add(self, a: int, b: int) -> int:\n        ";
  row.public_tests = R"([{"input":"1\n2","output":"3","testtype":"functional"}])";
  row.private_tests = "";
  row.metadata = R"({"func_name": "add"})";
  return row;
}

TEST(CodeProblemTest, ProgramRow) {
  const ProblemRow row = ParseCodeProblem(Row().Line(), "t:1");
  EXPECT_EQ(row.id, "abc301_a");
  EXPECT_EQ(row.task, "atcoder");
  EXPECT_EQ(row.level, 1);
  EXPECT_NE(row.problem.find("Add two numbers."), std::string::npos);
  EXPECT_NE(row.problem.find("standard input"), std::string::npos);
  EXPECT_NE(row.problem.find("```python"), std::string::npos);
  const CodeTests tests = ParseCodeTests(row.answer, "answer");
  ASSERT_EQ(tests.tests.size(), 2U);  // Public first.
  EXPECT_EQ(tests.tests[0].input, "1 2\n");
  EXPECT_EQ(tests.tests[1].output, "11");
  EXPECT_EQ(tests.tests[1].kind, CodeTestKind::kStdin);
}

TEST(CodeProblemTest, FunctionRow) {
  const ProblemRow row = ParseCodeProblem(FunctionRow().Line(), "t:1");
  EXPECT_NE(row.problem.find("def add(self, a: int, b: int) -> int:\n```\n"), std::string::npos);
  EXPECT_EQ(row.problem.find("standard input"), std::string::npos);
  const CodeTests tests = ParseCodeTests(row.answer, "answer");
  EXPECT_EQ(tests.function, "add");
  ASSERT_EQ(tests.tests.size(), 1U);
  EXPECT_EQ(tests.tests[0].kind, CodeTestKind::kFunctional);
}

TEST(CodeProblemTest, RowsThatAreWrong) {
  const auto parse = [](const Row& row) {
    return [row] { ParseCodeProblem(row.Line(), "lcb.jsonl:7"); };
  };
  Row row;
  row.private_tests = "eJxrYJmqxQABPTIZqcWpyfl5";  // What base64 of zlib looks like.
  ExpectError<InvalidInput>(parse(row),
                            {"lcb.jsonl:7", "private_test_cases", "tools/unpack_livecodebench.py"});
  row.private_tests = "[{]";
  ExpectError<InvalidInput>(parse(row), {"lcb.jsonl:7 private_test_cases"});
  row.private_tests = R"([{"input":"1","output":"2","testtype":"socket"}])";
  ExpectError<InvalidInput>(parse(row), {"[0].testtype", "socket", "functional"});
  row.private_tests = R"([{"input":"1","testtype":"stdin"}])";
  ExpectError<InvalidInput>(parse(row), {"[0].output"});
  row.private_tests = row.public_tests = "[]";
  ExpectError<InvalidInput>(parse(row), {"lcb.jsonl:7", "tests", "at least one"});
  row = {};
  row.difficulty = "nasty";
  ExpectError<InvalidInput>(parse(row), {"difficulty", "nasty", "hard"});
  row = {};
  row.question = "";
  ExpectError<InvalidInput>(parse(row), {"question_content"});
  row = FunctionRow();
  row.metadata = "{}";
  ExpectError<InvalidInput>(parse(row), {"func_name"});
  row.metadata = R"({"func_name":"f(); import os"})";
  ExpectError<InvalidInput>(parse(row), {"func_name", "import os"});
}

TEST(CodeProblemTest, Files) {
  const TempFolder folder;
  const std::string good =
      folder.Write("good.jsonl", Row().Line() + "\n\n" + FunctionRow().Line() + "\n");
  const std::vector<ProblemRow> rows = LoadCodeProblems(good);
  ASSERT_EQ(rows.size(), 2U);
  EXPECT_EQ(rows[1].id, "2777");
  const std::string twice = folder.Write("twice.jsonl", Row().Line() + "\n" + Row().Line());
  ExpectError<InvalidInput>([&] { LoadCodeProblems(twice); },
                            {"twice.jsonl:2", "question_id", "abc301_a"});
  const std::string empty = folder.Write("empty.jsonl", "\n");
  ExpectError<InvalidInput>([&] { LoadCodeProblems(empty); }, {"empty.jsonl", "at least one"});
  ExpectError<IoError>([&] { LoadCodeProblems(folder.File("none.jsonl")); },
                       {"none.jsonl", "No such file"});
  ExpectError<IoError>([&] { LoadCodeProblems(folder.path()); }, {folder.path()});
}

// The script turns a packed row into one that loads, and runs nothing that a pickle names.
TEST(CodeProblemTest, UnpackingScript) {
  const TempFolder folder;
  const std::string make = folder.Write("make.py", R"(
import base64, json, os, pickle, sys, zlib
class Evil:
    def __reduce__(self): return (os.system, ("touch " + sys.argv[1] + "/evil",))
def row(value, date):
    return json.dumps({"question_id": date, "question_content": "q", "contest_date": date,
                       "public_test_cases": "[]", "private_test_cases":
                       base64.b64encode(zlib.compress(pickle.dumps(value))).decode()})
tests = json.dumps([{"input": "é", "output": "2", "testtype": "stdin"}] * 3)
print("\n".join([row(tests, "2024-08-01T00:00:00"), row(tests, "2025-01-02T00:00:00")])
      if len(sys.argv) == 2 else row(Evil(), "2024-08-01"))
)");
  const auto shell = [](const std::string& command) { return std::system(command.c_str()); };
  const std::string script = "python3 " PMKVQ_SOURCE_DIR "/tools/unpack_livecodebench.py ";
  const std::string packed = folder.File("packed.jsonl");
  const std::string plain = folder.File("plain.jsonl");
  const std::string log = folder.File("log");
  ASSERT_EQ(shell("python3 " + make + " " + folder.path() + " > " + packed), 0);
  ExpectError<InvalidInput>([&] { LoadCodeProblems(packed); }, {"unpack_livecodebench.py"});
  ASSERT_EQ(shell(script + packed + " > " + plain + " 2> " + log), 0);
  ASSERT_EQ(LoadCodeProblems(plain).size(), 2U);
  const CodeTests tests = ParseCodeTests(LoadCodeProblems(plain)[0].answer, "answer");
  ASSERT_EQ(tests.tests.size(), 3U);
  EXPECT_EQ(tests.tests[0].input, "é");
  ASSERT_EQ(shell(script + "--from 2025-01-01 " + plain + " > " + packed + " 2> " + log), 0);
  EXPECT_EQ(LoadCodeProblems(packed).size(), 1U);

  ASSERT_EQ(shell("python3 " + make + " " + folder.path() + " evil > " + packed), 0);
  EXPECT_NE(shell(script + packed + " > " + plain + " 2> " + log), 0);
  EXPECT_EQ(shell("grep -q system " + log), 0);
  EXPECT_NE(shell("test -e " + folder.File("evil")), 0);
}

TEST(ExtractCodeTest, Blocks) {
  const auto extract = [](std::string_view text) { return ExtractCode(text).value_or("none"); };
  EXPECT_EQ(extract("So:\n```python\nprint(1)\n```\n"), "print(1)\n");
  EXPECT_EQ(extract("```python\na\n```\nbetter:\n```py\nb\n```"), "b\n");
  // The example behind it is no code; nor is another language.
  EXPECT_EQ(extract("```python\na\n```\nprints\n```\n3\n```"), "a\n");
  EXPECT_EQ(extract("```Python3\na\n```\n```cpp\nint x;\n```"), "a\n");
  EXPECT_EQ(extract("```\na\n```"), "a\n");
  EXPECT_EQ(extract("```cpp\nint x;\n```"), "none");
  EXPECT_EQ(extract("no code"), "none");
  EXPECT_EQ(extract(""), "none");
  // Cut off: what was finished before counts.
  EXPECT_EQ(extract("```python\na\n```\n```python\nb"), "a\n");
  EXPECT_EQ(extract("```python\nb"), "none");
  EXPECT_EQ(extract("```python\nforgotten\n```python\nb\n```"), "b\n");
  EXPECT_EQ(extract("```\nforgotten\n```python\nb\n```"), "b\n");
  // Inside a list, with tabs, with attributes, with a longer fence, with Windows line ends.
  EXPECT_EQ(extract("1. x\n   ```python\n   if a:\n     b\n   ```"), "if a:\n  b\n");
  EXPECT_EQ(extract("```python {.numbered}\na\n```"), "a\n");
  EXPECT_EQ(extract("````python\n```\nx\n```\n````"), "```\nx\n```\n");
  EXPECT_EQ(extract("```python\r\na\r\n```\r\n"), "a\r\n");
  EXPECT_EQ(extract("```python\n\n\n```"), "\n\n");
  EXPECT_EQ(extract("Use ```x``` here"), "none");
}

TEST(SameOutputTest, LinesWordsAndNumbers) {
  EXPECT_TRUE(SameOutput("3\n", "3"));
  EXPECT_TRUE(SameOutput("  1 2  \n3\t\n\n", "1 2\n3\n"));
  EXPECT_TRUE(SameOutput("1\r\n2\r\n", "1\n2"));
  EXPECT_TRUE(SameOutput("", "\n"));
  EXPECT_TRUE(SameOutput("a\n\nb", "a\n\nb"));
  EXPECT_TRUE(SameOutput("日本", "日本 "));
  EXPECT_TRUE(SameOutput("1.50 -0", "1.5 0.0"));
  EXPECT_TRUE(SameOutput("1e3", "1000.000"));
  EXPECT_TRUE(SameOutput(".5 5.", "0.5 5"));
  EXPECT_TRUE(SameOutput("1  2", "1 2"));  // Numbers: the space between does not count.
  EXPECT_TRUE(SameOutput("+00012.5E-1", "1.25"));
  EXPECT_TRUE(SameOutput("100000000000000000000000", "1e23"));

  EXPECT_FALSE(SameOutput("a  b", "a b"));
  EXPECT_FALSE(SameOutput("a\nb", "a b"));
  EXPECT_FALSE(SameOutput("a\n\nb", "a\nb"));
  EXPECT_FALSE(SameOutput("1\n2\n", "1"));
  EXPECT_FALSE(SameOutput("1", "1\n2"));
  EXPECT_FALSE(SameOutput("", "0"));
  EXPECT_FALSE(SameOutput("Yes", "YES"));
  EXPECT_FALSE(SameOutput("0.3333333", "0.3333334"));
  EXPECT_FALSE(SameOutput("100000000000000000000000", "100000000000000000000001"));
  EXPECT_FALSE(SameOutput("1 2", "1"));
  EXPECT_FALSE(SameOutput("-1", "1"));
  EXPECT_FALSE(SameOutput("10", "1"));
  EXPECT_FALSE(SameOutput("1e", "1"));
  EXPECT_FALSE(SameOutput("0x1", "1"));
  EXPECT_FALSE(SameOutput("1 x", "1.0 x"));  // One word is no number: the line is text.
  EXPECT_FALSE(SameOutput("1e9999999999", "1e99999999999"));
}

TEST(SameJsonTest, AsPythonCompares) {
  EXPECT_TRUE(SameJson("[1, 2]", "[1,2]"));
  EXPECT_TRUE(SameJson("1.0", "1"));
  EXPECT_TRUE(SameJson("true", "1"));
  EXPECT_TRUE(SameJson("\"\\u00e9\"", "\"é\""));
  EXPECT_TRUE(SameJson("{\"a\": 1, \"b\": null}", "{\"b\": null, \"a\": 1}"));
  EXPECT_TRUE(SameJson("null", "null"));
  EXPECT_TRUE(SameJson("2.00000", "2"));

  EXPECT_FALSE(SameJson("[1, 2]", "[2, 1]"));
  EXPECT_FALSE(SameJson("[1]", "[1, 2]"));
  EXPECT_FALSE(SameJson("\"1\"", "1"));
  EXPECT_FALSE(SameJson("0", "null"));
  EXPECT_FALSE(SameJson("{\"a\": null}", "{\"b\": null}"));
  EXPECT_FALSE(SameJson("9007199254740993", "9007199254740992"));
  EXPECT_FALSE(SameJson("0.30000000000000004", "0.3"));
  EXPECT_FALSE(SameJson("[]", "{}"));
  EXPECT_FALSE(SameJson("", "null"));
  EXPECT_FALSE(SameJson("NaN", "NaN"));
  EXPECT_FALSE(SameJson("1 1", "1"));
}

// ---- With the sandbox ----

SandboxLimits Limits(int64_t cpu_seconds = 10) {  // Enough on a busy machine.
  SandboxLimits limits;
  limits.cpu_seconds = cpu_seconds;
  limits.wall_ms = 60'000;
  return limits;
}

CodeVerdict RunProgram(const std::string& code,
                       const std::vector<std::pair<std::string, std::string>>& cases,
                       const SandboxLimits& limits = Limits()) {
  CodeTests tests;
  for (const auto& [input, output] : cases) {
    tests.tests.push_back({CodeTestKind::kStdin, input, output});
  }
  return RunCodeTests(code, tests, limits);
}

CodeVerdict RunFunction(const std::string& code, const std::string& input,
                        const std::string& output) {
  CodeTests tests;
  tests.function = "add";
  tests.tests.push_back({CodeTestKind::kFunctional, input, output});
  return RunCodeTests(code, tests, Limits());
}

TEST(RunCodeTestsTest, Programs) {
  const std::string add = "a, b = map(int, input().split())\nprint(a + b)\n";
  EXPECT_EQ(RunProgram(add, {{"1 2\n", "3\n"}, {"5 -6", "-1"}}).outcome, CodeOutcome::kPassed);
  const CodeVerdict wrong = RunProgram(add, {{"1 2", "3"}, {"2 2", "5"}, {"x", "y"}});
  EXPECT_EQ(wrong.outcome, CodeOutcome::kWrongAnswer);
  EXPECT_EQ(wrong.failed_test, 1U);
  const CodeVerdict error = RunProgram(add, {{"1 x", "3"}});
  EXPECT_EQ(error.outcome, CodeOutcome::kRuntimeError);
  EXPECT_NE(error.detail.find("ValueError"), std::string::npos) << error.detail;
  EXPECT_EQ(RunProgram("pass", {{"", "1"}}).outcome, CodeOutcome::kWrongAnswer);
  EXPECT_EQ(RunProgram("pass", {{"", ""}}).outcome, CodeOutcome::kPassed);
  EXPECT_EQ(RunProgram("print(3)\nraise SystemExit(1)", {{"", "3"}}).outcome,
            CodeOutcome::kRuntimeError);
  EXPECT_EQ(RunProgram("print(3)\nexit()", {{"", "3"}}).outcome, CodeOutcome::kPassed);
  EXPECT_EQ(RunProgram("while True: pass", {{"", "3"}}, Limits(1)).outcome, CodeOutcome::kTimeOut);
  EXPECT_EQ(RunProgram("x = 'a' * (1 << 40)", {{"", "3"}}).outcome, CodeOutcome::kMemoryLimit);
  EXPECT_EQ(RunProgram("print('x' * (17 << 20))", {{"", "3"}}).outcome, CodeOutcome::kOutputLimit);
  EXPECT_EQ(RunProgram("if x\n", {{"", "3"}}).outcome, CodeOutcome::kRuntimeError);
  EXPECT_EQ(RunProgram(" \n", {{"", ""}}).outcome, CodeOutcome::kNoCode);
  const CodeVerdict crash = RunProgram("import ctypes\nctypes.string_at(0)", {{"", ""}});
  EXPECT_EQ(crash.outcome, CodeOutcome::kRuntimeError);
  EXPECT_EQ(crash.detail, "signal 11");
}

// What contest code takes for granted.
TEST(RunCodeTestsTest, SurroundingsOfPrograms) {
  EXPECT_EQ(RunProgram(R"(from __future__ import annotations
def main(numbers: List[int]) -> int:
    queue = deque(numbers)
    return math.gcd(*queue) + pow(2, 5, 7) + len(list(accumulate(queue)))
if __name__ == "__main__":
    print(main(list(map(int, sys.stdin.read().split()))))
)",
                       {{"12 18\n", "12"}})
                .outcome,
            CodeOutcome::kPassed);
  EXPECT_EQ(RunProgram(R"(
@lru_cache(None)
def depth(n): return 0 if n == 0 else 1 + depth(n - 1)
print(depth(9000))
def plain(n): return 0 if n == 0 else 1 + plain(n - 1)
print(plain(40000))
print(len(str(10 ** 9999)))
import threading
threading.Thread(target=lambda: print(plain(30000))).start()
)",
                       {{"", "9000\n40000\n10000\n30000"}})
                .outcome,
            CodeOutcome::kPassed);
  EXPECT_EQ(RunProgram("import pickle\nclass A: pass\nprint(type(pickle.loads(pickle.dumps(A())))"
                       " is A, input())",
                       {{"é", "True é"}})
                .outcome,
            CodeOutcome::kPassed);
}

TEST(RunCodeTestsTest, Functions) {
  const std::string method =
      "class Solution:\n    def add(self, a: List[int], b: int) -> List[int]:\n"
      "        print('chatter')\n        return [x + b for x in a]\n";
  EXPECT_EQ(RunFunction(method, "[1, 2]\n3", "[4, 5]").outcome, CodeOutcome::kPassed);
  EXPECT_EQ(RunFunction(method, "[1, 2]\n3\n", "[4, 6]").outcome, CodeOutcome::kWrongAnswer);
  EXPECT_EQ(RunFunction("def add(a, b): return (a, b)", "\"x\"\nnull", "[\"x\", null]").outcome,
            CodeOutcome::kPassed);
  EXPECT_EQ(RunFunction("def add(a): a.append(a)", "[]", "null").outcome, CodeOutcome::kPassed);
  const CodeVerdict missing = RunFunction("def sub(a): return a", "1", "1");
  EXPECT_EQ(missing.outcome, CodeOutcome::kRuntimeError);
  EXPECT_NE(missing.detail.find("add"), std::string::npos) << missing.detail;
  EXPECT_EQ(RunFunction("def add(a): return {1}", "1", "[1]").outcome, CodeOutcome::kRuntimeError);
  // Ending early gives no result, whatever was printed.
  EXPECT_EQ(RunFunction("import os\nprint(1)\nos._exit(0)", "1", "1").outcome,
            CodeOutcome::kWrongAnswer);
}

TEST(JudgeCodeTest, Responses) {
  const std::string tests = ParseCodeProblem(Row().Line(), "t:1").answer;
  const JudgedText right = JudgeCode(
      "<think>\n```python\nprint(0)\n```\n</think>\n```python\nprint(sum(map(int, "
      "input().split())))\n```",
      tests, Limits());
  EXPECT_TRUE(right.correct);
  EXPECT_EQ(right.extracted, "print(sum(map(int, input().split())))\n");
  const JudgedText wrong = JudgeCode("```python\nprint(3)\n```", tests, Limits());
  EXPECT_FALSE(wrong.correct);
  EXPECT_EQ(wrong.extracted, "print(3)\n");
  const JudgedText none = JudgeCode("I give up.", tests, Limits());
  EXPECT_FALSE(none.correct);
  EXPECT_EQ(none.extracted, "");
  ExpectError<InvalidInput>([] { JudgeCode("", "42"); }, {"tests", "42"});
}

}  // namespace
}  // namespace pmkvq
