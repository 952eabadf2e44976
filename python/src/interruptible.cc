#include "interruptible.h"

#include <nanobind/nanobind.h>

#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <optional>
#include <thread>

namespace nb = nanobind;

namespace pmkvq::python {
namespace {

// How long a signal may wait for its handler.
constexpr std::chrono::milliseconds kPatience{50};

}  // namespace

void RunInterruptibly(const char* where,
                      const std::function<void(const CancelFlag* cancel)>& work) {
  CancelFlag cancel{false};
  std::exception_ptr error;
  std::mutex mutex;
  std::condition_variable ended;
  bool has_ended = false;
  std::thread worker([&] {
    try {
      const CancelScope scope(&cancel, where);
      work(&cancel);
    } catch (...) {
      error = std::current_exception();
    }
    const std::lock_guard lock(mutex);
    has_ended = true;
    ended.notify_one();
  });
  std::optional<nb::python_error> raised;
  for (bool waits = true; waits;) {
    {
      const nb::gil_scoped_release release;
      std::unique_lock lock(mutex);
      waits = !ended.wait_for(lock, kPatience, [&] { return has_ended; });
    }
    if (!raised && PyErr_CheckSignals() != 0) {
      raised.emplace();
      cancel = true;
    }
  }
  {
    const nb::gil_scoped_release release;
    worker.join();
  }
  if (raised) throw std::move(*raised);
  if (error) std::rethrow_exception(error);
}

}  // namespace pmkvq::python
