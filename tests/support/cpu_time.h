// Processor time of this process. A bound on it holds whatever else the machine does, and while the
// process is stopped; one on the time of a clock does not.
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
