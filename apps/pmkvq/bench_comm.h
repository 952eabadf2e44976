// pmkvq bench comm: what exchanges between ranks cost.
#pragma once

#include <CLI/CLI.hpp>

#include <string>

#include "pmkvq/comm/communicator.h"

namespace pmkvq::cli {

// The part of `pmkvq bench comm` that all ranks run at once (ModelRanks::RunTask).
void RunCommTask(Communicator& comm, const std::string& arguments);
void AddCommBench(CLI::App& bench);

}  // namespace pmkvq::cli
