// How many threads to use; base/parallel.h uses them. Every operation takes the number, and no
// result depends on it.
#pragma once

namespace pmkvq {

// Threads to use when the user names none: the processors this process may run on.
int DefaultThreads();

}  // namespace pmkvq
