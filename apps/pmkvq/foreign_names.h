// Options and commands of llama.cpp, vLLM, transformers and MLX-LM, with their names in this
// program.
#pragma once

#include <functional>
#include <span>
#include <string_view>

namespace pmkvq::cli {

struct ForeignName {
  // What a command does with it that has the option `ours`.
  enum class Use {
    kAnswer,     // Refuses it and says the name of ours.
    kAlias,      // Takes it as ours: the same meaning, the same values.
    kKeyType,    // -ctk: with kValueType it becomes a --kv (option_aliases.h).
    kValueType,  // -ctv
  };
  std::string_view name;
  std::string_view ours;  // The option or command that does the same, or "".
  std::string_view note;  // A remark, or the replacement where there is no such option.
  Use use = Use::kAnswer;
};

std::span<const ForeignName> ForeignOptions();

// With dashes ("--ctx-size", "-ngl"); null for a name that is not in the table.
const ForeignName* FindForeignOption(std::string_view name);
// For a command that has the options `has_option` says: of several rows the last one whose
// replacement it has (servers' rows come last), else the first one.
const ForeignName* FindForeignOption(std::string_view name,
                                     const std::function<bool(std::string_view)>& has_option);
// The first argument of the program ("serve").
const ForeignName* FindForeignCommand(std::string_view name);

}  // namespace pmkvq::cli
