// Scripts that complete the program's command line in a shell. Each is one text that the shell
// reads at its start; nothing of it runs the program. They offer commands, options, the choices of
// an option, and names of files or folders where an option takes one.
#pragma once

#include <string>

#include "command_tree.h"

namespace pmkvq::cli {

std::string BashCompletion(const CommandInfo& root);
std::string ZshCompletion(const CommandInfo& root);
std::string FishCompletion(const CommandInfo& root);

}  // namespace pmkvq::cli
