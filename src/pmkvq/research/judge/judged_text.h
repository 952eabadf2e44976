// The grade of one response: its answer, and whether that equals the gold one.
#pragma once

#include <string>
#include <string_view>

namespace pmkvq {

struct JudgedText {
  std::string extracted;  // ExtractAnswer, "" when there is none.
  bool correct = false;   // EquivalentAnswers(extracted, ExtractGold(gold))
};
JudgedText JudgeText(std::string_view response, std::string_view gold);

}  // namespace pmkvq
