// Code problems: LiveCodeBench's data, the prompt, and grading by running the tests in a sandbox
// (research/sandbox/code_sandbox.h). Formats: docs/formats.md, "Code problems".
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "pmkvq/io/dataset.h"
#include "pmkvq/research/judge/judged_text.h"
#include "pmkvq/research/sandbox/code_sandbox.h"

namespace pmkvq {

// Rows of LiveCodeBench's .jsonl, in the file's order: `id` is question_id, `task` platform,
// `level` 1, 2, 3 for easy, medium, hard (0: not given), `problem` the whole prompt, `answer` the
// tests, public ones first (CodeTests as JSON). Reads line by line: a file may have gigabytes.
// Throws InvalidInput naming file, line and field; packed private tests are refused with the name
// of the script that unpacks them. Throws IoError.
std::vector<ProblemRow> LoadCodeProblems(const std::string& path);
// `source` names file and line in errors. Fuzz entry point.
ProblemRow ParseCodeProblem(std::string_view line, const std::string& source);

enum class CodeTestKind : uint8_t {
  kStdin,      // The program reads `input` and prints `output`.
  kFunctional  // A function gets the JSON values of `input`, one a line; `output` is JSON.
};
struct CodeTest {
  CodeTestKind kind = CodeTestKind::kStdin;
  std::string input;
  std::string output;
};
// {"func_name":"f","tests":[{"input":"1","output":"2","testtype":"functional"}]}; func_name only
// where there are functional tests.
struct CodeTests {
  std::string function;  // Of class Solution, or of the module.
  std::vector<CodeTest> tests;
};
// Throws InvalidInput: not of this form, no tests, or a functional test without function.
CodeTests ParseCodeTests(std::string_view json, const std::string& source);

// The last closed block between ``` fences that is marked as Python; of unmarked blocks the last
// one where none is marked. Indentation of the fence is taken off the lines.
std::optional<std::string> ExtractCode(std::string_view response);

// Lines are equal but for white space around them, or where all their words are decimal numbers
// of equal value ("1.50 2" and "1.5 2.0"). No tolerance. White space around the whole is ignored.
bool SameOutput(std::string_view actual, std::string_view expected);
// Equal as Python compares: 1 == 1.0 == true, objects without order. Integers up to 64 bits are
// compared exactly, longer ones as doubles. Text that is not JSON equals nothing.
bool SameJson(std::string_view actual, std::string_view expected);

enum class CodeOutcome : uint8_t {
  kPassed,
  kNoCode,
  kWrongAnswer,
  kRuntimeError,  // Exception, exit code, crash, more files than allowed.
  kTimeOut,
  kMemoryLimit,
  kOutputLimit,
};
const char* CodeOutcomeName(CodeOutcome outcome);  // "passed", "wrong answer", ...

struct CodeVerdict {
  CodeOutcome outcome = CodeOutcome::kPassed;
  size_t failed_test = 0;  // Where not passed: index of the first that failed; later ones not run.
  std::string detail;      // kRuntimeError: the last line of standard error, or the signal.
};
// Runs the tests in turn, each in a new process, until one fails. Blocks for up to
// limits.wall_ms a test. May be called from several threads. Throws as PythonSandbox:
// then nothing is known about the code.
CodeVerdict RunCodeTests(std::string_view code, const CodeTests& tests,
                         const SandboxLimits& limits = {});

// `extracted` is the code; correct: it passes all tests. Throws like ParseCodeTests and
// RunCodeTests.
JudgedText JudgeCode(std::string_view response, std::string_view tests_json,
                     const SandboxLimits& limits = {});

}  // namespace pmkvq
