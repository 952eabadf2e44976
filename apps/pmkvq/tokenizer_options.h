// --tokenizer, of every command that turns text into tokens or back.
#pragma once

#include <CLI/CLI.hpp>

#include <memory>
#include <string>

#include "pmkvq/text/tokenizer.h"

namespace pmkvq::cli {

// What follows for a command that reads rows of text or of token ids.
inline constexpr char kNoText[] = "rows with text cannot be read";

struct TokenizerCommandOptions {
  std::string path;  // A folder, tokenizer.json or tokenizer.model; "": the model's.

  // This must outlive the parsing of `command`. `group`: of the help; "": the command's own.
  void Register(CLI::App& command, const std::string& group = "");

  // The tokenizer for `model`. Throws as Tokenizer::Load.
  std::shared_ptr<const Tokenizer> Load(const std::string& model) const;
  // The same for a command that may do without: null where there is none, and where it is refused,
  // with a warning on stderr that ends in `consequence`.
  std::shared_ptr<const Tokenizer> LoadIfReadable(const std::string& model,
                                                  const std::string& consequence) const;
};

}  // namespace pmkvq::cli
