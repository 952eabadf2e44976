#include "leaders.h"

#include <chrono>
#include <cstdlib>
#include <thread>

#include "ranks.h"

namespace pmkvq::cli {

Communicator* Leaders() { return Ranks::OfProcess().leaders(); }

bool IsFirstLeader() { return Leaders() == nullptr || Leaders()->rank() == 0; }

void EndLeaders(const std::string& message) {
  Communicator* const leaders = Leaders();
  if (leaders == nullptr) return;
  // Whoever speaks first ends the others.
  constexpr std::chrono::seconds kOthersSpeakFirst(1);
  if (message.empty() || leaders->rank() > 0) std::this_thread::sleep_for(kOthersSpeakFirst);
  if (message.empty()) std::_Exit(1);
  leaders->Abort(message);
}

}  // namespace pmkvq::cli
