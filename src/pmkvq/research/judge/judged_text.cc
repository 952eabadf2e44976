#include "pmkvq/research/judge/judged_text.h"

#include "pmkvq/base/interrupt.h"
#include "pmkvq/research/judge/answer.h"
#include "pmkvq/research/judge/math_equivalence.h"

namespace pmkvq {

JudgedText JudgeText(std::string_view response, std::string_view gold) {
  CancelPoint();
  JudgedText judged;
  judged.extracted = ExtractAnswer(response).value_or("");
  judged.correct = EquivalentAnswers(judged.extracted, ExtractGold(gold));
  return judged;
}

}  // namespace pmkvq
