#include "pmkvq/base/check.h"

#include <cstdio>
#include <cstdlib>

namespace pmkvq::internal {

void CheckFailed(const char* file, int line, const char* condition, const char* message) {
  std::fprintf(stderr, "pmkvq: internal error at %s:%d: check failed: %s %s\n", file, line,
               condition, message);
  std::abort();
}

}  // namespace pmkvq::internal
