#include "pmkvq/research/benchmarks/code_problem.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <set>
#include <utility>

#include "pmkvq/base/descriptor.h"
#include "pmkvq/base/error.h"
#include "pmkvq/base/strings.h"
#include "pmkvq/io/json.h"
#include "pmkvq/io/json_lines.h"

namespace pmkvq {
namespace {

constexpr std::string_view kBlanks = " \t\r\n";

// Prompt: the question, then how the answer is given.
constexpr const char* kStdinPrompt =
    R"(Solve the following programming problem with a Python program.

### Question
{}

### Format
The program reads its input from standard input and prints its answer to standard output. Do not run it on the examples only: it has to solve every valid input. Give the whole program in one block:
```python
# your program
```

### Answer
)";
constexpr const char* kStarterPrompt =
    R"(Solve the following programming problem with Python code.

### Question
{}

### Format
Complete this code. Keep its names and parameters; it is called from outside, so print nothing. Give the whole completed code in one block:
```python
{}
```

### Answer
)";

std::string OptionalText(const JsonValue& json, const std::string& key) {
  return json.Has(key) ? json.At(key).AsString() : "";
}

int64_t Level(const JsonValue& json) {
  const std::string difficulty = OptionalText(json, "difficulty");
  if (difficulty.empty()) return 0;
  if (difficulty == "easy") return 1;
  if (difficulty == "medium") return 2;
  if (difficulty == "hard") return 3;
  json.At("difficulty").Fail("easy, medium or hard");
}

// Base64 of a compressed Python pickle: LiveCodeBench's form of long tests.
bool LooksPacked(std::string_view text) {
  constexpr std::string_view kDigits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=";
  return text.size() >= 8 && text.find_first_not_of(kDigits) == std::string_view::npos;
}

CodeTest ParseTest(const JsonValue& json) {
  if (!json.IsObject()) json.Fail("an object with \"input\", \"output\" and \"testtype\"");
  CodeTest test;
  test.input = json.Find("input").AsString();
  test.output = json.Find("output").AsString();
  const std::string kind = json.Find("testtype").AsString();
  if (kind != "stdin" && kind != "functional") {
    json.At("testtype").Fail("\"stdin\" or \"functional\"");
  }
  test.kind = kind == "stdin" ? CodeTestKind::kStdin : CodeTestKind::kFunctional;
  return test;
}

void ParseTests(const JsonValue& array, std::vector<CodeTest>* tests) {
  if (!array.IsArray()) array.Fail("an array of tests");
  for (size_t i = 0; i < array.size(); ++i) tests->push_back(ParseTest(array.At(i)));
}

// A field that holds tests as JSON text.
void ParseTestField(const JsonValue& row, const std::string& key, const std::string& source,
                    std::vector<CodeTest>* tests) {
  if (!row.Has(key)) return;
  const JsonValue field = row.At(key);
  const std::string text = field.AsString();
  if (text.find_first_not_of(kBlanks) == std::string::npos) return;
  if (LooksPacked(text)) {
    throw InvalidInput(source, fmt::format("{}: found packed tests, expected JSON text: unpack the "
                                           "file with tools/unpack_livecodebench.py",
                                           key));
  }
  ParseTests(JsonValue::Parse(text, source + " " + key), tests);
}

std::string FunctionName(const JsonValue& row, const std::string& source) {
  const std::string text = OptionalText(row, "metadata");
  if (text.find_first_not_of(kBlanks) == std::string::npos) return "";
  const JsonValue metadata = JsonValue::Parse(text, source + " metadata");
  if (!metadata.IsObject()) metadata.Fail("an object with \"func_name\"");
  return OptionalText(metadata, "func_name");
}

bool IsIdentifier(std::string_view name) {
  for (const char c : name) {
    const auto byte = static_cast<unsigned char>(c);
    if (c != '_' && byte < 0x80 && std::isalnum(byte) == 0) return false;
  }
  return !name.empty() && std::isdigit(static_cast<unsigned char>(name[0])) == 0;
}

void CheckTests(const CodeTests& tests, const std::string& source) {
  if (tests.tests.empty()) {
    throw InvalidInput(source, "tests: found none, expected at least one");
  }
  for (const CodeTest& test : tests.tests) {
    if (test.kind == CodeTestKind::kFunctional && !IsIdentifier(tests.function)) {
      throw InvalidInput(source, fmt::format("func_name: found '{}', expected the name of the "
                                             "function that the tests call",
                                             tests.function));
    }
  }
}

std::string TestsAsJson(const CodeTests& tests) {
  JsonWriter json;
  json.BeginObject();
  if (!tests.function.empty()) json.Key("func_name").String(tests.function);
  json.Key("tests").BeginArray();
  for (const CodeTest& test : tests.tests) {
    const bool functional = test.kind == CodeTestKind::kFunctional;
    json.BeginObject().Key("input").String(test.input).Key("output").String(test.output);
    json.Key("testtype").String(functional ? "functional" : "stdin").EndObject();
  }
  json.EndArray().EndObject();
  return json.text();
}

// ---- Code in a response ----

struct Fence {
  size_t indent = 0;
  size_t length = 0;      // Of the run of back ticks; 0: the line is no fence.
  std::string_view mark;  // The word behind it.
};

Fence ParseFence(std::string_view line) {
  line = TrimEnd(line);
  Fence fence;
  fence.indent = line.find_first_not_of(" \t");
  if (fence.indent == std::string_view::npos) return {};
  const size_t end = line.find_first_not_of('`', fence.indent);
  const size_t length = (end == std::string_view::npos ? line.size() : end) - fence.indent;
  if (length < 3) return {};
  fence.length = length;
  if (end == std::string_view::npos) return fence;
  fence.mark = line.substr(end);
  if (fence.mark.find('`') != std::string_view::npos) return {};  // Code within a line.
  const size_t word = fence.mark.find_first_not_of(" \t");
  fence.mark.remove_prefix(word);
  fence.mark = fence.mark.substr(0, fence.mark.find_first_of(" \t{"));
  return fence;
}

bool IsPythonMark(std::string_view mark) {
  std::string lower(mark);
  for (char& c : lower) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return lower == "python" || lower == "python3" || lower == "py" || lower == "py3";
}

std::string_view Unindent(std::string_view line, size_t indent) {
  const size_t blanks = std::min(line.find_first_not_of(" \t"), line.size());
  return line.substr(std::min(indent, blanks));
}

}  // namespace

ProblemRow ParseCodeProblem(std::string_view line, const std::string& source) {
  const JsonValue json = JsonValue::Parse(line, source);
  if (!json.IsObject()) json.Fail("an object with \"question_content\" and tests");
  ProblemRow row;
  row.id = json.Find("question_id").AsString();
  if (row.id.empty()) json.At("question_id").Fail("a string that is not empty");
  row.task = OptionalText(json, "platform");
  row.level = Level(json);
  const std::string question = json.Find("question_content").AsString();
  if (question.empty()) json.At("question_content").Fail("a string that is not empty");
  const std::string starter = OptionalText(json, "starter_code");
  const std::string starter_lines(TrimEnd(starter));
  row.problem = starter_lines.empty() ? fmt::format(kStdinPrompt, question)
                                      : fmt::format(kStarterPrompt, question, starter_lines);
  CodeTests tests;
  ParseTestField(json, "public_test_cases", source, &tests.tests);
  ParseTestField(json, "private_test_cases", source, &tests.tests);
  tests.function = FunctionName(json, source);
  CheckTests(tests, source);
  row.answer = TestsAsJson(tests);
  return row;
}

std::vector<ProblemRow> LoadCodeProblems(const std::string& path) {
  std::vector<ProblemRow> rows;
  std::set<std::string> ids;
  ForEachLine(path, [&](std::string_view line, const std::string& source, int64_t) {
    rows.push_back(ParseCodeProblem(line, source));
    if (!ids.insert(rows.back().id).second) {
      throw InvalidInput(source, fmt::format("question_id: found '{}' again, expected every id "
                                             "once",
                                             rows.back().id));
    }
  });
  if (rows.empty()) throw InvalidInput(path, "rows: found none, expected at least one JSON line");
  return rows;
}

CodeTests ParseCodeTests(std::string_view json, const std::string& source) {
  const JsonValue value = JsonValue::Parse(json, source);
  if (!value.IsObject()) value.Fail("an object with \"tests\"");
  CodeTests tests;
  tests.function = OptionalText(value, "func_name");
  ParseTests(value.Find("tests"), &tests.tests);
  CheckTests(tests, source);
  return tests;
}

std::optional<std::string> ExtractCode(std::string_view response) {
  std::optional<std::string> marked;
  std::optional<std::string> unmarked;
  Fence open;  // Length 0: none.
  std::string block;
  while (!response.empty()) {
    const size_t end = std::min(response.find('\n'), response.size());
    const std::string_view line = response.substr(0, end);
    response.remove_prefix(std::min(end + 1, response.size()));
    const Fence fence = ParseFence(line);
    if (open.length > 0 && fence.length >= open.length && fence.mark.empty()) {
      if (IsPythonMark(open.mark)) marked = block;
      if (open.mark.empty()) unmarked = block;
      open = {};
    } else if (fence.length > 0 && (open.length == 0 || IsPythonMark(fence.mark))) {
      // A marked fence opens a block even where the one before was left open.
      open = fence;
      block.clear();
    } else if (open.length > 0) {
      block += Unindent(line, open.indent);
      block += '\n';
    }
  }
  return marked ? marked : unmarked;
}

JudgedText JudgeCode(std::string_view response, std::string_view tests_json,
                     const SandboxLimits& limits) {
  const CodeTests tests = ParseCodeTests(tests_json, "tests");
  const std::optional<std::string> code = ExtractCode(response);
  if (!code) return {};
  const CodeVerdict verdict = RunCodeTests(*code, tests, limits);
  return {*code, verdict.outcome == CodeOutcome::kPassed};
}

}  // namespace pmkvq
