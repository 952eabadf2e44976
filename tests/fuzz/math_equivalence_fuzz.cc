// Answers to compare, as models write them. Input: two answers with a zero byte between them.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "pmkvq/research/judge/answer.h"
#include "pmkvq/research/judge/math_equivalence.h"
#include "pmkvq/research/judge/math_normalize.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const size_t middle = text.find('\0');
  const std::string_view a = text.substr(0, middle);
  const std::string_view b =
      middle == std::string_view::npos ? std::string_view() : text.substr(middle + 1);
  if (pmkvq::EquivalentAnswers(a, b) != pmkvq::EquivalentAnswers(b, a)) std::abort();
  // An answer is itself, unless nothing is left of it.
  if (pmkvq::EquivalentAnswers(a, a) == pmkvq::NormalizeAnswer(a).text.empty()) std::abort();
  (void)pmkvq::ExtractAnswer(a);
  (void)pmkvq::ExtractGold(b);
  return 0;
}
