#include "pmkvq/base/threads.h"

#include <sched.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <thread>
#include <vector>

#include "pmkvq/base/cpu_quota.h"

namespace pmkvq {
namespace {

// The kernel refuses sets that are smaller than its own, so the size grows until it accepts.
int NumProcessors() {
  constexpr size_t kMaxSets = 64;  // Of 1024 processors each.
  for (size_t num_sets = 1; num_sets <= kMaxSets; num_sets *= 2) {
    std::vector<cpu_set_t> sets(num_sets);
    const size_t size = num_sets * sizeof(cpu_set_t);
    if (sched_getaffinity(0, size, sets.data()) == 0) return CPU_COUNT_S(size, sets.data());
    if (errno != EINVAL) break;
  }
  return static_cast<int>(std::thread::hardware_concurrency());
}

}  // namespace

int ThreadsFor(int num_processors, std::optional<double> quota) {
  double threads = num_processors;
  if (quota) threads = std::min(threads, std::ceil(*quota));
  return std::max(1, static_cast<int>(threads));
}

int DefaultThreads() { return ThreadsFor(NumProcessors(), CpuQuota()); }

}  // namespace pmkvq
