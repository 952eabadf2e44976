// How --help reads: wrapped to the terminal, the short value name beside the option, its default
// and whether it is required in words behind the description, examples at the end.
#pragma once

#include <CLI/CLI.hpp>

#include <string>
#include <vector>

namespace pmkvq::cli {

class HelpFormatter : public CLI::Formatter {
 public:
  // `columns`: width of the page.
  explicit HelpFormatter(int columns) : columns_(columns) {}

  std::string make_help(const CLI::App* app, std::string name,
                        CLI::AppFormatMode mode) const override;

 private:
  std::string Row(const std::string& left, const std::string& text) const;
  std::string OptionRow(const CLI::Option* option) const;

  int columns_;
};

// " FILE" or " {8,4,2}" as --help shows it behind the names of `option`; "" for a flag.
std::string OptionValueText(const CLI::Option* option);
// Its description, with its default or "[required]".
std::string OptionHelp(const CLI::Option* option);

// Columns of the terminal that stdout is, or 80: for a pipe, and where the terminal does not say.
int HelpColumns();

// Puts "Examples:" with these command lines, each given as one line, at the end of the help of
// `command`.
void AddExamples(CLI::App& command, const std::vector<std::string>& examples);

}  // namespace pmkvq::cli
