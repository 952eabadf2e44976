#include "tokenizer_options.h"

#include <fmt/format.h>

#include "file_options.h"
#include "pmkvq/base/error.h"
#include "terminal.h"

namespace pmkvq::cli {

void TokenizerCommandOptions::Register(CLI::App& command, const std::string& group) {
  CLI::Option* option =
      NamesFile(command.add_option("--tokenizer", path,
                                   "folder, tokenizer.json or tokenizer.model to use in place of "
                                   "the model's own tokenizer"),
                FileKind::kInputs);
  if (!group.empty()) option->group(group);
}

std::shared_ptr<const Tokenizer> TokenizerCommandOptions::Load(const std::string& model) const {
  return Tokenizer::Load(path.empty() ? model : path);
}

std::shared_ptr<const Tokenizer> TokenizerCommandOptions::LoadIfReadable(
    const std::string& model, const std::string& consequence) const {
  if (path.empty() && !Tokenizer::IsIn(model)) return nullptr;
  const auto warn = [&](const char* reason) {
    PrintError(fmt::format("warning: {}; {}", reason, consequence));
    return nullptr;
  };
  try {
    return Load(model);
  } catch (const InvalidInput& error) {
    return warn(error.what());
  } catch (const Unsupported& error) {
    return warn(error.what());
  }
}

}  // namespace pmkvq::cli
