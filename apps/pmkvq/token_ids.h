// --prompt-ids, checked while the command line is read.
#pragma once

#include <CLI/CLI.hpp>

namespace pmkvq::cli {

// A list as ParseIds reads it. Whether the model has the ids is asked later.
CLI::Validator TokenIds();

}  // namespace pmkvq::cli
