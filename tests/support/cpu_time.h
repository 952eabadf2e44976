// Processor time of this process. Tests bound this time and not that of a clock, because a clock
// also runs while other processes have the processor.
#pragma once

#include <ctime>

namespace pmkvq::testing_support {

// Of all threads, also of those that have ended.
inline double CpuSeconds() {
  timespec now = {};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

}  // namespace pmkvq::testing_support
