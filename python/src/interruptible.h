// Long work that Ctrl-C ends.
#pragma once

#include <functional>

#include "pmkvq/base/interrupt.h"

namespace pmkvq::python {

// Runs `work` on another thread and waits for its end without the GIL. `work` is called inside a
// CancelScope named `where`. Meanwhile Python's handlers of signals run in the calling thread,
// where that is the main thread; when one of them raises (Ctrl-C: KeyboardInterrupt), the flag is
// set, and its exception is thrown once `work` has ended. Otherwise throws what `work` throws.
// Called with the GIL; `work` takes it for the time in which it needs it.
void RunInterruptibly(const char* where, const std::function<void(const CancelFlag* cancel)>& work);

}  // namespace pmkvq::python
