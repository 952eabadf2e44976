#include "pmkvq/base/threads.h"

#include <omp.h>

#include <algorithm>

namespace pmkvq {

int DefaultThreads() { return std::max(1, omp_get_num_procs()); }

}  // namespace pmkvq
