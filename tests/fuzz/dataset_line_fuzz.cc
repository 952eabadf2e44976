// One line of a data set. Input: a byte that picks the kind of line, then the line.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "pmkvq/base/error.h"
#include "pmkvq/io/dataset.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view line(reinterpret_cast<const char*>(data) + 1, size - 1);
  try {
    if (data[0] % 2 == 0) {
      const pmkvq::TextRow row = pmkvq::ParseTextRow(line, "fuzz:1");
      if (!row.text.empty() && !row.input_ids.empty()) std::abort();
      for (const int32_t id : row.input_ids) {
        if (id < 0) std::abort();
      }
    } else if (pmkvq::ParseProblemRow(line, "fuzz:1").problem.empty()) {
      std::abort();
    }
  } catch (const pmkvq::Error&) {
  }
  return 0;
}
