// pmkvq tokenize: text to ids and back.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "commands.h"
#include "common_options.h"
#include "file_options.h"
#include "help_format.h"
#include "pmkvq/io/file.h"
#include "pmkvq/io/utf8.h"
#include "terminal.h"

namespace pmkvq::cli {
namespace {

struct Options {
  std::string model;
  std::string text;
  std::string file;
  bool text_given = false;
  bool no_special = false;
  bool parse_special = false;
  bool decode = false;
};

void Tokenize(const Options& options) {
  const auto tokenizer = Tokenizer::Load(options.model);
  const bool from_stdin = options.file.empty() || options.file == "-";
  const std::string source = options.text_given ? "text" : from_stdin ? "stdin" : options.file;
  const std::string input = options.text_given ? options.text
                            : from_stdin       ? ReadStdin()
                                               : ReadFile(options.file);
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
  NamesFile(
      command->add_option("--model", options->model, "folder with tokenizer.json, or .gguf file")
          ->required(),
      FileKind::kInputs);
  auto* text = command->add_option("text", options->text, "text (default: --file)");
  NamesFile(
      command->add_option("--file", options->file, "text to read (- or none: standard input)"),
      FileKind::kInputOrStdin)
      ->excludes(text);
  command->add_flag(
      "--no-special", options->no_special,
      "put no BOS in front and no EOS behind; with --decode, leave special tokens out");
  command->add_flag("--parse-special", options->parse_special,
                    "control tokens in the text (<|im_end|>) become their ids; without it they are "
                    "plain text");
  command->add_flag("--decode", options->decode, "the reverse: ids to text");
  AddExamples(*command,
              {"pmkvq tokenize --model models/longcot-10m \"Sort these numbers: 523, 118.\"",
               "echo 39 68 508 78 | pmkvq tokenize --model models/longcot-10m --decode"});
  command->callback([options, text] {
    options->text_given = text->count() > 0;
    Tokenize(*options);
  });
}

}  // namespace pmkvq::cli
