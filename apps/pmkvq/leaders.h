// The processes that share a command's units of work: the leaders of mpirun's ranks (ranks.h).
#pragma once

#include <string>

#include "pmkvq/comm/communicator.h"

namespace pmkvq::cli {

// Null where there are not several. All but the first are muted (terminal.h): they show no progress
// and print no notes and results.
Communicator* Leaders();
// This process prints and writes what the command has made.
bool IsFirstLeader();

// At the end of a command that failed: prints "error: rank R of P (HOST): message" and ends all
// ranks. Leaders that have the same error, a file that is missing, say, leave it to the first one
// to say it. `message` "": another leader says it. Returns where there are not several.
void EndLeaders(const std::string& message);

}  // namespace pmkvq::cli
