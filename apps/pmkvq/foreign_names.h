// Options and commands that people know from llama.cpp, vLLM, transformers and MLX-LM, with what
// they are called here.
#pragma once

#include <string>
#include <string_view>

namespace pmkvq::cli {

struct ForeignName {
  std::string_view name;
  std::string_view ours;  // The option or command that does the same, or "".
  std::string_view note;  // What else to say, or what there is instead.
};

// With dashes ("--ctx-size", "-ngl"); null for a name that is not in the table.
const ForeignName* FindForeignOption(std::string_view name);
// The first argument of the program ("serve").
const ForeignName* FindForeignCommand(std::string_view name);

}  // namespace pmkvq::cli
