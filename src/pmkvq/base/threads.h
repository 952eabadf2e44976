// How many threads to use; base/parallel.h uses them. Every operation takes the number, and no
// result depends on it.
#pragma once

#include <optional>

namespace pmkvq {

// Threads to use when the user names none: the processors that this process may run on (affinity),
// but no more than its CPU quota (base/cpu_quota.h), rounded up. Read at each call.
int DefaultThreads();

// The rule: `num_processors` and a quota in processors, if any. At least 1.
int ThreadsFor(int num_processors, std::optional<double> quota);

}  // namespace pmkvq
