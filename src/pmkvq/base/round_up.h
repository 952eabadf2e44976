// The least multiple that is not below a value.
#pragma once

#include <cstdint>

namespace pmkvq {

constexpr int64_t RoundUpTo(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

}  // namespace pmkvq
