#include "leaders.h"

#include <chrono>
#include <cstdlib>
#include <memory>
#include <thread>

#include "pmkvq/comm/launch.h"
#include "terminal.h"

namespace pmkvq::cli {
namespace {

// Never destroyed but by LeaveLeaders: a process that ends early must not wait for the others.
std::unique_ptr<Communicator>& Opened() {
  static auto* const opened = new std::unique_ptr<Communicator>();
  return *opened;
}

bool HasSeveral() { return Opened() != nullptr && Opened()->size() > 1; }

}  // namespace

Communicator* Leaders() {
  if (Opened() == nullptr) {
    Opened() = OpenCommunicator();
    if (Opened()->rank() > 0) MuteOutput();
  }
  return HasSeveral() ? Opened().get() : nullptr;
}

bool IsFirstLeader() { return Opened() == nullptr || Opened()->rank() == 0; }

void LeaveLeaders() { Opened().reset(); }

void EndLeaders(const std::string& message) {
  if (!HasSeveral()) return;
  // Whoever speaks first ends the others.
  constexpr std::chrono::seconds kOthersSpeakFirst(1);
  if (message.empty() || Opened()->rank() > 0) std::this_thread::sleep_for(kOthersSpeakFirst);
  if (message.empty()) std::_Exit(1);
  Opened()->Abort(message);
}

}  // namespace pmkvq::cli
