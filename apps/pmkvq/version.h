// What --version prints.
#pragma once

#include <string>

namespace pmkvq::cli {

// "0.1.0 (0a44a04be1)"; without the commit where the program was not built from a repository.
std::string ShortVersion();
// Version, commit, compiler, instruction sets of this machine and the one in use, features; lines
// that end with a newline.
std::string VersionText();
// The same as one JSON object on a line, for reports of bugs.
std::string VersionJson();

}  // namespace pmkvq::cli
