// pmkvq tokenize: text to ids and back.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "commands.h"
#include "common_options.h"
#include "pmkvq/io/file.h"
#include "terminal.h"

namespace pmkvq::cli {
namespace {

struct Options {
  std::string model;
  std::string file;
  bool no_special = false;
  bool parse_special = false;
  bool decode = false;
};

void Tokenize(const Options& options) {
  const auto tokenizer = Tokenizer::Load(options.model);
  const bool from_stdin = options.file.empty() || options.file == "-";
  const std::string source = from_stdin ? "stdin" : options.file;
  const std::string input = from_stdin ? ReadStdin() : ReadFile(options.file);
  if (options.decode) {
    Print(tokenizer->Decode(ParseIds(input, source), options.no_special));
    return;
  }
  CheckUtf8(input, source);
  const std::vector<int32_t> ids = options.no_special
                                       ? tokenizer->Encode(input, options.parse_special)
                                       : tokenizer->EncodeWhole(input, options.parse_special);
  Print(fmt::format("{}\n", fmt::join(ids, " ")));
}

}  // namespace

void AddTokenize(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("tokenize", "print the token ids of a text on one line");
  command->add_option("--model", options->model, "folder with tokenizer.json")->required();
  command->add_option("--file", options->file, "text to read (default: standard input)");
  command->add_flag("--no-special", options->no_special,
                    "put no BOS in front and no EOS behind; with --decode, leave special tokens out");
  command->add_flag("--parse-special", options->parse_special,
                    "control tokens in the text (<|im_end|>) become their ids; without it they are "
                    "plain text");
  command->add_flag("--decode", options->decode, "the reverse: ids to text");
  command->callback([options] { Tokenize(*options); });
}

}  // namespace pmkvq::cli
