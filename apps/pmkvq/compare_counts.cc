#include "compare_counts.h"

#include <fmt/format.h>

#include <fstream>
#include <iostream>

#include "pmkvq/base/error.h"
#include "pmkvq/base/interrupt.h"
#include "pmkvq/io/json_lines.h"
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
  constexpr uint64_t kMostLineBytes = 1 << 20;  // Counts take less than a kilobyte.
  std::string line;
  for (int64_t number = 1;; ++number) {
    CancelPoint();
    const std::string where = fmt::format("{}:{}", name, number);
    if (!ReadLine(lines, where, &line, kMostLineBytes)) break;
    Print(FormatFiguresOf(line, where) + "\n");
  }
  CancelPoint();  // A signal ends reading as the end of the input does.
}

}  // namespace pmkvq::cli
