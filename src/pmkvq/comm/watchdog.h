// Ends a rank whose exchange does not return: another rank hangs, or the network is gone.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

#include "pmkvq/comm/communicator.h"

namespace pmkvq {

// While it lives, a thread looks at `comm`. When the same exchange has lasted for `timeout` it
// calls `expired` once with one line: the rank, its host, the exchange. Communicator::WaitForString
// does not count, since it may last for hours.
//
// Without `expired` it prints the line as an error and ends the process with exit code 1 (_exit:
// the thread that hangs in MPI cannot be woken). The launcher then ends the other ranks. `comm`
// must outlive the watchdog. A timeout of 0 watches nothing.
class CommWatchdog {
 public:
  CommWatchdog(const Communicator& comm, std::chrono::milliseconds timeout,
               std::function<void(const std::string&)> expired = {});
  ~CommWatchdog();
  CommWatchdog(const CommWatchdog&) = delete;
  CommWatchdog& operator=(const CommWatchdog&) = delete;

 private:
  void Watch(std::chrono::milliseconds timeout);

  const Communicator& comm_;
  std::function<void(const std::string&)> expired_;
  std::mutex mutex_;
  std::condition_variable ended_;
  bool end_ = false;
  std::thread thread_;
};

}  // namespace pmkvq
