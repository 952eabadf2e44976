#include "page_origin.h"

#include <ctime>
#include <vector>

#include "version.h"

namespace pmkvq::cli {

std::string CommandLineOf(int argc, const char* const* argv) {
  std::vector<std::string> arguments = {"pmkvq"};
  for (int i = 1; i < argc; ++i) arguments.emplace_back(argv[i]);
  return ShellCommand(arguments);
}

PageOrigin MakePageOrigin(const std::string& command_line, const std::string& model,
                          const std::string& plan) {
  const std::time_t now = std::time(nullptr);
  std::tm time = {};
  gmtime_r(&now, &time);
  char date[32] = "";
  std::strftime(date, sizeof(date), "%Y-%m-%d %H:%M UTC", &time);
  return {command_line, model, plan, ShortVersion(), date};
}

}  // namespace pmkvq::cli
