#include "pmkvq/base/threads.h"

#include <sched.h>

#include <algorithm>
#include <thread>

namespace pmkvq {

int DefaultThreads() {
  cpu_set_t processors;
  if (sched_getaffinity(0, sizeof(processors), &processors) == 0) {
    return std::max(1, CPU_COUNT(&processors));
  }
  // More processors than the set can name.
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

}  // namespace pmkvq
