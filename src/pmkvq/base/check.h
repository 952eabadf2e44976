// Checks for caller bugs: conditions that no input from outside can break.
#pragma once

namespace pmkvq::internal {
[[noreturn]] void CheckFailed(const char* file, int line, const char* condition,
                              const char* message);
}  // namespace pmkvq::internal

// Aborts with file, line and message when `condition` is false. Always compiled in.
#define PMKVQ_CHECK_MSG(condition, message)                                                    \
  do {                                                                                         \
    if (!(condition)) ::pmkvq::internal::CheckFailed(__FILE__, __LINE__, #condition, message); \
  } while (false)
#define PMKVQ_CHECK(condition) PMKVQ_CHECK_MSG(condition, "")

// The same in debug builds only, for checks inside loops.
#ifdef NDEBUG
#define PMKVQ_DCHECK(condition) \
  do {                          \
  } while (false && (condition))
#else
#define PMKVQ_DCHECK(condition) PMKVQ_CHECK(condition)
#endif
