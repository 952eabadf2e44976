// What an op runs with: how many threads on the CPU. A device backend adds its stream here, so that
// no op's signature changes with it.
#pragma once

namespace pmkvq {

struct ExecContext {
  // A number of threads is a context: the CPU needs nothing more.
  ExecContext(int threads) : num_threads(threads) {}  // NOLINT: implicit, for callers on the CPU.

  // An op uses as many or fewer (base/parallel.h); its bits do not depend on it.
  int num_threads = 1;
};

}  // namespace pmkvq
