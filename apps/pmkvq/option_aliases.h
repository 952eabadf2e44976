// Short names that users of llama.cpp, vLLM and transformers type without thinking: -m, -c, -n, -t,
// -s, --temp, -ctk, -ctv and more. Which ones: the rows of foreign_names.cc that are aliases.
#pragma once

#include <CLI/CLI.hpp>

#include <string>
#include <vector>

namespace pmkvq::cli {

// The arguments of `app`, without the program's name, with aliases replaced by the options of the
// command that they choose. An alias of an option that the command does not have stays as it is,
// and so do values and everything behind "--".
//
// Types of llama.cpp's cache become a --kv: q8_0 for both is static-8, q4_0 static-4, f16 fp16; K
// and V apart are "pm-kvq:static+k=8+v=4". As in llama.cpp, one alone leaves the other at 16 bits.
// Throws CLI::ValidationError for a type that no cache here has.
std::vector<std::string> ReplaceAliases(CLI::App& app, const std::vector<std::string>& arguments);

}  // namespace pmkvq::cli
