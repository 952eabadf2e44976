// The processes that share a command's units of work: the ranks that mpirun or srun started
// (comm/launch.h).
#pragma once

#include <string>

#include "pmkvq/comm/communicator.h"

namespace pmkvq::cli {

// Opened by the first call; null where nothing or one rank was launched. All ranks but the first
// are muted from then on (terminal.h): they show no progress and print no notes and results. Throws
// as OpenCommunicator.
Communicator* Leaders();
// This process prints and writes what the command has made.
bool IsFirstLeader();

// At the end of a command that was successful on this rank: waits for the others. Does nothing
// where Leaders opened none.
void LeaveLeaders();
// At the end of one that failed: prints "error: rank R of P (HOST): message" and ends all ranks.
// Ranks that have the same error, a file that is missing, say, leave it to rank 0 to say it.
// `message` "": another rank says it. Returns where there are no ranks.
void EndLeaders(const std::string& message);

}  // namespace pmkvq::cli
