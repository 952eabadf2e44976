// README's first command: the answer is right, and the cache steps down inside its budget.
#include <gtest/gtest.h>

#include <algorithm>
#include <sstream>

#include "pmkvq/io/json.h"
#include "support/run_program.h"

namespace pmkvq {
namespace {

using testing_support::ProgramResult;
using testing_support::RunProgram;
using testing_support::Slurp;

const std::string kModel = PMKVQ_SOURCE_DIR "/models/longcot-10m";

// "697, 103" of the text behind `mark`, up to `end`.
std::vector<std::string> NumbersBehind(const std::string& text, const std::string& mark, char end) {
  const size_t begin = text.rfind(mark);
  if (begin == std::string::npos) return {};
  std::istringstream list(
      text.substr(begin + mark.size(), text.find(end, begin) - begin - mark.size()));
  std::vector<std::string> numbers;
  for (std::string number; std::getline(list >> std::ws, number, ',');) numbers.push_back(number);
  return numbers;
}

TEST(Readme, TheFirstAnswerIsRight) {
  const std::string example = kModel + "/example.txt";
  const ProgramResult result = RunProgram(
      {"run", "--model", kModel, "--file", example, "--temperature", "0", "--kv", "pm-kvq",
       "--plan", kModel + "/plan.json", "--kv-budget", "4.75MiB", "--json", "-"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const JsonValue answer = JsonValue::Parse(result.out, "stdout").At("sequences").At(size_t{0});
  std::vector<std::string> expected = NumbersBehind(Slurp(example), "merge sort: ", '.');
  ASSERT_EQ(expected.size(), 26u);
  std::sort(expected.begin(), expected.end());  // All of three digits.
  EXPECT_EQ(NumbersBehind(answer.At("text").AsString(), "boxed{", '}'), expected);
  const JsonValue kv = answer.At("kv");
  EXPECT_LE(kv.At("peak_bytes").AsInt(), kv.At("budget_bytes").AsInt());
  EXPECT_GT(kv.At("pages").At("2").AsInt(), 0);
}

}  // namespace
}  // namespace pmkvq
