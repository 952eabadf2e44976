// A command's manual page in man's language (roff), made from the same tables as its --help.
#pragma once

#include <string>

#include "command_tree.h"

namespace pmkvq::cli {

// "pmkvq-bench-gemv", the name of the page of "pmkvq bench gemv".
std::string ManualPageName(const CommandInfo& command);

// The page of `command`, one of `root` or below. `version` and `date` ("2026-11-30", or "") stand
// at its foot.
std::string ManualPage(const CommandInfo& root, const CommandInfo& command,
                       const std::string& version, const std::string& date);

}  // namespace pmkvq::cli
