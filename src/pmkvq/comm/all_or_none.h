// Work of all ranks of which one may fail, before they exchange anything more.
#pragma once

#include <functional>

#include "pmkvq/base/error.h"
#include "pmkvq/comm/communicator.h"

namespace pmkvq {

// Another rank failed, and says why itself.
class OtherRankFailed : public Error {
 public:
  using Error::Error;
};

// Runs `work` on this rank. Where it throws on any rank, throws on all of them: its own exception
// on the first rank that failed; on the others Cancelled if that was cancelled, else
// OtherRankFailed with that rank and its message. So no rank goes on to an exchange that others
// never enter. Collective. Work may take hours on some rank: the others sleep meanwhile. `ranks`
// may be null: one rank.
void AllOrNone(Communicator* ranks, const std::function<void()>& work);

// Returns when all ranks have called it. As Communicator::Barrier, but sleeps, and no watchdog
// counts it: for waiting for work. Costs size() small broadcasts.
void WaitForAll(Communicator& ranks);

}  // namespace pmkvq
