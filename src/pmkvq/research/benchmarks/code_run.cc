// Runs the tests of a code problem and compares outputs with the expected ones.
#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "pmkvq/base/error.h"
#include "pmkvq/base/interrupt.h"
#include "pmkvq/base/strings.h"
#include "pmkvq/io/json.h"
#include "pmkvq/research/benchmarks/code_problem.h"

namespace pmkvq {
namespace {

constexpr std::string_view kBlanks = " \t\r\n\v\f";

// Runs solution.py as contest code expects it: the usual names imported, deep recursion, long
// integers in decimal. Python 3.12 and 3.13 end recursion through C code, such as the memoising
// wrapper of functools, at a fixed depth that setrecursionlimit does not change; there the wrapper
// written in Python is used, which takes two frames a call. {0}: name of the module; {1}: code
// behind the import, which may use `module`.
constexpr const char* kScript = R"(
import _thread, sys, types
_thread.stack_size(64 << 20)
sys.setrecursionlimit(50000)
if hasattr(sys, "set_int_max_str_digits"): sys.set_int_max_str_digits(50000)
if (3, 12) <= sys.version_info < (3, 14):
    import _functools, functools, importlib
    wrapper = _functools._lru_cache_wrapper
    del _functools._lru_cache_wrapper
    importlib.reload(functools)
    _functools._lru_cache_wrapper = wrapper
    sys.setrecursionlimit(100000)
module = types.ModuleType("{0}")
module.__file__ = "solution.py"
sys.modules["{0}"] = module
prelude = ["import " + name for name in (
    "bisect, collections, copy, datetime, functools, heapq, itertools, json, math, operator, "
    "random, re, string, statistics, sys").split(", ")]
prelude += ["from " + name + " import *" for name in (
    "string re datetime collections heapq bisect copy math random statistics itertools functools "
    "operator io sys json builtins typing").split()]
exec("\n".join(prelude), module.__dict__)
import random
random.seed(0)
with open("solution.py", encoding="utf-8") as file: source = file.read()
def run(): exec(compile(source, "solution.py", "exec"), module.__dict__)
{1})";

constexpr const char* kRunProgram = "run()\n";

// {}: the function's name. The result is written to a separate descriptor, since the code may
// print.
constexpr const char* kCallFunction = R"(
import json
arguments = [json.loads(line) for line in sys.stdin.read().split("\n") if line.strip()]
run()
owner = module.Solution() if hasattr(module, "Solution") else module
result = json.dumps(getattr(owner, "{}")(*arguments))
with open(3, "w") as report: report.write(result)
)";

// Takes the part of `text` before the next separator off it.
std::string_view Next(std::string_view* text, std::string_view separators) {
  const size_t end = std::min(text->find_first_of(separators), text->size());
  const std::string_view part = text->substr(0, end);
  text->remove_prefix(std::min(end + 1, text->size()));
  return part;
}

// A decimal number by its value: 0.digits x 10^exponent, no zeros at either end of the digits.
struct Decimal {
  bool negative = false;
  std::string digits;  // "" for zero.
  int64_t exponent = 0;
  bool operator==(const Decimal&) const = default;
};

size_t CountDigits(std::string_view text) {
  return std::min(text.find_first_not_of("0123456789"), text.size());
}

// The exponent behind "e"; nothing when it is no number of reasonable size.
std::optional<int64_t> ParseExponent(std::string_view text) {
  const bool negative = !text.empty() && text[0] == '-';
  if (!text.empty() && (text[0] == '-' || text[0] == '+')) text.remove_prefix(1);
  if (text.empty() || text.size() > 9 || CountDigits(text) != text.size()) return std::nullopt;
  int64_t value = 0;
  for (const char c : text) value = value * 10 + (c - '0');
  return negative ? -value : value;
}

std::optional<Decimal> ParseDecimal(std::string_view text) {
  Decimal number;
  number.negative = !text.empty() && text[0] == '-';
  if (!text.empty() && (text[0] == '-' || text[0] == '+')) text.remove_prefix(1);
  const size_t whole = CountDigits(text);
  number.digits = text.substr(0, whole);
  text.remove_prefix(whole);
  if (!text.empty() && text[0] == '.') {
    text.remove_prefix(1);
    const size_t fraction = CountDigits(text);
    number.digits += text.substr(0, fraction);
    text.remove_prefix(fraction);
  }
  if (number.digits.empty()) return std::nullopt;
  number.exponent = static_cast<int64_t>(whole);
  if (!text.empty()) {
    if (text[0] != 'e' && text[0] != 'E') return std::nullopt;
    const std::optional<int64_t> exponent = ParseExponent(text.substr(1));
    if (!exponent) return std::nullopt;
    number.exponent += *exponent;
  }
  const size_t first = std::min(number.digits.find_first_not_of('0'), number.digits.size());
  number.digits.erase(0, first);
  number.exponent -= static_cast<int64_t>(first);
  number.digits.erase(number.digits.find_last_not_of('0') + 1);
  return number.digits.empty() ? Decimal{} : number;
}

bool SameNumbers(std::string_view actual, std::string_view expected) {
  actual = Trim(actual, kBlanks);
  expected = Trim(expected, kBlanks);
  while (!actual.empty() && !expected.empty()) {
    const std::optional<Decimal> left = ParseDecimal(Next(&actual, kBlanks));
    const std::optional<Decimal> right = ParseDecimal(Next(&expected, kBlanks));
    if (!left || !right || !(*left == *right)) return false;
    actual = Trim(actual, kBlanks);
    expected = Trim(expected, kBlanks);
  }
  return actual.empty() && expected.empty();
}

bool SameLine(std::string_view actual, std::string_view expected) {
  return Trim(actual, kBlanks) == Trim(expected, kBlanks) || SameNumbers(actual, expected);
}

// ---- Values ----

bool IsNumeric(const JsonValue& value) { return value.IsNumber() || value.IsBool(); }
bool IsExact(const JsonValue& value) { return value.IsInteger() || value.IsBool(); }
int64_t ExactValue(const JsonValue& value) {
  return value.IsBool() ? (value.AsBool() ? 1 : 0) : value.AsInt();
}
double DoubleValue(const JsonValue& value) {
  return IsExact(value) ? static_cast<double>(ExactValue(value)) : value.AsDouble();
}

std::vector<std::string> SortedKeys(const JsonValue& object) {
  std::vector<std::string> keys = object.Keys();
  std::sort(keys.begin(), keys.end());
  return keys;
}

// JsonValue bounds the nesting, and with it the recursion.
bool SameValue(const JsonValue& a, const JsonValue& b) {
  if (IsNumeric(a) && IsNumeric(b)) {
    if (IsExact(a) && IsExact(b)) return ExactValue(a) == ExactValue(b);
    return DoubleValue(a) == DoubleValue(b);
  }
  if (a.kind() != b.kind() || a.size() != b.size()) return false;
  if (a.IsString()) return a.AsString() == b.AsString();
  if (a.IsArray()) {
    for (size_t i = 0; i < a.size(); ++i) {
      if (!SameValue(a.At(i), b.At(i))) return false;
    }
  }
  if (a.IsObject()) {
    if (SortedKeys(a) != SortedKeys(b)) return false;
    for (const std::string& key : a.Keys()) {
      if (!SameValue(a.At(key), b.At(key))) return false;
    }
  }
  return true;
}

// ---- Running ----

std::string LastLine(std::string_view text) {
  text = Trim(text, kBlanks);
  return std::string(text.substr(text.rfind('\n') + 1));
}

CodeOutcome Outcome(const SandboxResult& result, const CodeTest& test) {
  switch (result.end) {
    case SandboxEnd::kTimeOut:
      return CodeOutcome::kTimeOut;
    case SandboxEnd::kMemoryLimit:
      return CodeOutcome::kMemoryLimit;
    case SandboxEnd::kOutputLimit:
      return CodeOutcome::kOutputLimit;
    case SandboxEnd::kSignal:
    case SandboxEnd::kFolderLimit:
    case SandboxEnd::kThreadLimit:
      return CodeOutcome::kRuntimeError;
    case SandboxEnd::kExited:
      break;
  }
  if (result.exit_code != 0) return CodeOutcome::kRuntimeError;
  const bool same = test.kind == CodeTestKind::kStdin ? SameOutput(result.output, test.output)
                                                      : SameJson(result.report, test.output);
  return same ? CodeOutcome::kPassed : CodeOutcome::kWrongAnswer;
}

std::string Detail(const SandboxResult& result) {
  if (result.end == SandboxEnd::kSignal) return fmt::format("signal {}", result.signal);
  if (result.end == SandboxEnd::kFolderLimit) return "too many or too large files";
  if (result.end == SandboxEnd::kThreadLimit) return "too many threads";
  const std::string last = LastLine(result.errors);
  return last.empty() ? fmt::format("exit code {}", result.exit_code) : last;
}

}  // namespace

bool SameOutput(std::string_view actual, std::string_view expected) {
  actual = Trim(actual, kBlanks);
  expected = Trim(expected, kBlanks);
  while (!actual.empty() || !expected.empty()) {
    CancelPoint();
    // Both end together: after Trim the last line of neither is empty.
    if (actual.empty() || expected.empty()) return false;
    if (!SameLine(Next(&actual, "\n"), Next(&expected, "\n"))) return false;
  }
  return true;
}

bool SameJson(std::string_view actual, std::string_view expected) {
  try {
    return SameValue(JsonValue::Parse(actual, "actual"), JsonValue::Parse(expected, "expected"));
  } catch (const InvalidInput&) {
    return false;
  }
}

const char* CodeOutcomeName(CodeOutcome outcome) {
  switch (outcome) {
    case CodeOutcome::kPassed:
      return "passed";
    case CodeOutcome::kNoCode:
      return "no code";
    case CodeOutcome::kWrongAnswer:
      return "wrong answer";
    case CodeOutcome::kRuntimeError:
      return "runtime error";
    case CodeOutcome::kTimeOut:
      return "time-out";
    case CodeOutcome::kMemoryLimit:
      return "memory limit";
    case CodeOutcome::kOutputLimit:
      return "output limit";
  }
  return "";
}

CodeVerdict RunCodeTests(std::string_view code, const CodeTests& tests,
                         const SandboxLimits& limits) {
  const PythonSandbox& sandbox = PythonSandbox::Shared();
  const std::string program = fmt::format(kScript, "__main__", kRunProgram);
  const std::string function =
      fmt::format(kScript, "solution", fmt::format(kCallFunction, tests.function));
  CodeVerdict verdict;
  if (Trim(code, kBlanks).empty()) {
    verdict.outcome = CodeOutcome::kNoCode;
    return verdict;
  }
  for (size_t i = 0; i < tests.tests.size(); ++i) {
    const CodeTest& test = tests.tests[i];
    const bool is_program = test.kind == CodeTestKind::kStdin;
    const SandboxResult result =
        sandbox.Run({is_program ? program : function, code, test.input}, limits);
    verdict.outcome = Outcome(result, test);
    if (verdict.outcome == CodeOutcome::kPassed) continue;
    verdict.failed_test = i;
    if (verdict.outcome == CodeOutcome::kRuntimeError) verdict.detail = Detail(result);
    return verdict;
  }
  return verdict;
}

}  // namespace pmkvq
