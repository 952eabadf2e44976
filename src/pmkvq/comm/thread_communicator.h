// Threads of one process as ranks: for tests, and the reference of what a transport must do.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "pmkvq/comm/communicator.h"

namespace pmkvq {

// The communicators of `num_ranks` ranks; the i-th is rank i's. Each is used by one thread. They
// share their state, and may be destroyed in any order.
std::vector<std::unique_ptr<Communicator>> ThreadCommunicators(int num_ranks);

// Calls body(communicator) on a thread per rank and waits for all of them. When one throws, the
// others' exchanges fail, and the exception of the first rank that threw is rethrown.
void RunRanks(int num_ranks, const std::function<void(Communicator&)>& body);

}  // namespace pmkvq
