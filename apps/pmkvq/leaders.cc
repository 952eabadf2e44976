#include "leaders.h"

#include <memory>

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

void AbortLeaders(const std::string& message) {
  if (HasSeveral()) Opened()->Abort(message);
}

}  // namespace pmkvq::cli
