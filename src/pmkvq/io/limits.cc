#include "pmkvq/io/limits.h"

#include <fmt/format.h>

#include <limits>

#include "pmkvq/base/error.h"

namespace pmkvq {
namespace {

[[noreturn]] void FailTooLarge(const char* what) {
  throw InvalidInput(what, fmt::format("found a size beyond {} bytes, expected less",
                                       std::numeric_limits<int64_t>::max()));
}

}  // namespace

int64_t CheckedProduct(const char* what, std::initializer_list<int64_t> factors) {
  int64_t product = 1;
  bool zero = false;  // A factor of 0 must not hide the overflow of the others.
  for (const int64_t factor : factors) {
    if (factor == 0) {
      zero = true;
    } else if (__builtin_mul_overflow(product, factor, &product)) {
      FailTooLarge(what);
    }
  }
  return zero ? 0 : product;
}

int64_t CheckedSum(const char* what, std::initializer_list<int64_t> terms) {
  int64_t sum = 0;
  for (const int64_t term : terms) {
    if (__builtin_add_overflow(sum, term, &sum)) FailTooLarge(what);
  }
  return sum;
}

}  // namespace pmkvq
