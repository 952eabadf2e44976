#include "pmkvq/comm/watchdog.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <utility>

namespace pmkvq {
namespace {

using Clock = std::chrono::steady_clock;

void PrintAndExit(const std::string& message) {
  std::fprintf(stderr, "error: %s\n", message.c_str());
  std::fflush(stderr);
  _exit(1);
}

}  // namespace

CommWatchdog::CommWatchdog(const Communicator& comm, std::chrono::milliseconds timeout,
                           std::function<void(const std::string&)> expired)
    : comm_(comm), expired_(expired ? std::move(expired) : PrintAndExit) {
  if (comm.size() > 1 && timeout.count() > 0)
    thread_ = std::thread([this, timeout] { Watch(timeout); });
}

CommWatchdog::~CommWatchdog() {
  {
    const std::lock_guard lock(mutex_);
    end_ = true;
  }
  ended_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void CommWatchdog::Watch(std::chrono::milliseconds timeout) {
  const auto pause =
      std::clamp(timeout / 10, std::chrono::milliseconds(1), std::chrono::milliseconds(1000));
  int64_t seen = -1;
  Clock::time_point since = Clock::now();
  std::unique_lock lock(mutex_);
  while (!ended_.wait_for(lock, pause, [&] { return end_; })) {
    const int64_t begun = comm_.num_begun();
    const char* operation = comm_.current_operation();
    if (operation == nullptr || begun != seen) {
      seen = begun;
      since = Clock::now();
      continue;
    }
    if (Clock::now() - since < timeout) continue;
    char host[256] = "";
    gethostname(host, sizeof(host) - 1);
    lock.unlock();
    expired_(fmt::format(
        "[comm] rank {} of {} ({}) waits for another rank since {:.1f} s: {} (exchange {}); a rank "
        "hangs or the network is gone (--comm-timeout)",
        comm_.rank(), comm_.size(), host,
        std::chrono::duration<double>(Clock::now() - since).count(), operation, begun));
    return;
  }
}

}  // namespace pmkvq
