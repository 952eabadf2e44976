#include "compare_counts.h"

#include <fmt/format.h>

#include <fstream>
#include <iostream>

#include "pmkvq/base/error.h"
#include "pmkvq/base/interrupt.h"
#include "pmkvq/research/compare/compare_report.h"
#include "terminal.h"

namespace pmkvq::cli {

void CompareCounts(const std::string& path, const CLI::App& command) {
  for (const CLI::Option* option : command.get_options()) {
    if (option->count() > 0 && !option->check_lname("counts")) {
      throw CLI::ValidationError(
          kCountsOption, fmt::format("found {} beside it, expected nothing", option->get_name()));
    }
  }
  std::ifstream file;
  if (path != "-") {
    file.open(path);
    if (!file) throw IoError(path, "cannot be read");
  }
  std::istream& lines = path == "-" ? std::cin : file;
  const std::string name = path == "-" ? "stdin" : path;
  std::string line;
  for (int64_t number = 1; std::getline(lines, line); ++number) {
    CancelPoint();
    Print(FormatFiguresOf(line, fmt::format("{}:{}", name, number)) + "\n");
  }
  CancelPoint();  // A signal ends reading as the end of the input does.
}

}  // namespace pmkvq::cli
