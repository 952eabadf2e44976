// Where a page comes from, for its head.
#pragma once

#include <string>

#include "pmkvq/research/report/html_page.h"

namespace pmkvq::cli {

// The arguments as they would be typed.
std::string CommandLineOf(int argc, const char* const* argv);

// With the present date, this program's version and its commit. `model` and `plan` may be "".
PageOrigin MakePageOrigin(const std::string& command_line, const std::string& model,
                          const std::string& plan);

}  // namespace pmkvq::cli
