// Code problems and what is compared when they are judged; nothing is run. Input: a byte that
// picks the part, then its text; for the comparisons a zero byte parts the two sides.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>

#include "pmkvq/base/error.h"
#include "pmkvq/research/benchmarks/code_problem.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  const size_t middle = text.find('\0');
  const std::string_view left = text.substr(0, middle);
  const std::string_view right =
      middle == std::string_view::npos ? std::string_view() : text.substr(middle + 1);
  try {
    switch (data[0] % 4) {
      case 0: {
        const pmkvq::ProblemRow row = pmkvq::ParseCodeProblem(text, "fuzz:1");
        if (pmkvq::ParseCodeTests(row.answer, "fuzz").tests.empty()) std::abort();
        break;
      }
      case 1: {
        const std::optional<std::string> code = pmkvq::ExtractCode(text);
        if (code && code->size() > text.size()) std::abort();
        break;
      }
      case 2:
        if (pmkvq::SameOutput(left, right) != pmkvq::SameOutput(right, left)) std::abort();
        if (!pmkvq::SameOutput(left, left)) std::abort();
        break;
      default:
        if (pmkvq::SameJson(left, right) != pmkvq::SameJson(right, left)) std::abort();
    }
  } catch (const pmkvq::Error&) {
  }
  return 0;
}
