// pmkvq completion and pmkvq man: what is made from the commands and their options.
#include <fmt/format.h>

#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <memory>

#include "command_tree.h"
#include "commands.h"
#include "completion_scripts.h"
#include "file_options.h"
#include "help_format.h"
#include "manual_page.h"
#include "option_values.h"
#include "pmkvq/base/error.h"
#include "pmkvq/io/file.h"
#include "terminal.h"

namespace pmkvq::cli {
namespace {

// Today, or the day of SOURCE_DATE_EPOCH, so that a package can be built twice with the same bytes.
std::string Today() {
  std::time_t seconds = std::time(nullptr);
  const char* const epoch = std::getenv("SOURCE_DATE_EPOCH");
  if (epoch != nullptr && *epoch != '\0') seconds = std::strtoll(epoch, nullptr, 10);
  std::tm day = {};
  gmtime_r(&seconds, &day);
  return fmt::format("{:04}-{:02}-{:02}", day.tm_year + 1900, day.tm_mon + 1, day.tm_mday);
}

void PrintCompletion(const CLI::App& app, const std::string& shell) {
  const CommandInfo root = DescribeCommands(app);
  if (shell == "bash") Print(BashCompletion(root));
  if (shell == "zsh") Print(ZshCompletion(root));
  if (shell == "fish") Print(FishCompletion(root));
}

void WritePages(const CommandInfo& root, const std::string& folder) {
  std::filesystem::create_directories(folder);
  for (const CommandInfo* command : ListCommands(root)) {
    AtomicFileWriter file(std::filesystem::path(folder) / (ManualPageName(*command) + ".1"));
    const std::string page = ManualPage(root, *command, PMKVQ_VERSION, Today());
    file.Append(page.data(), page.size());
    file.Commit();
  }
}

void PrintPage(const CommandInfo& root, const std::vector<std::string>& names) {
  std::string path = root.path;
  for (const std::string& name : names) path += " " + name;
  for (const CommandInfo* command : ListCommands(root)) {
    if (command->path == path) {
      Print(ManualPage(root, *command, PMKVQ_VERSION, Today()));
      return;
    }
  }
  throw CLI::ValidationError("COMMAND", fmt::format("there is no '{}'; `pmkvq help` lists the "
                                                    "commands",
                                                    path));
}

}  // namespace

void AddCompletion(CLI::App& app) {
  auto shell = std::make_shared<std::string>();
  CLI::App* command =
      app.add_subcommand("completion", "print a script that completes command lines in a shell");
  command->add_option("SHELL", *shell, "shell that reads the script")
      ->transform(OneOf({"bash", "zsh", "fish"}))
      ->required();
  AddExamples(*command, {"source <(pmkvq completion bash)    # in ~/.bashrc",
                         "pmkvq completion zsh > ~/.zfunc/_pmkvq    # ~/.zfunc is in fpath",
                         "pmkvq completion fish > ~/.config/fish/completions/pmkvq.fish"});
  command->callback([&app, shell] { PrintCompletion(app, *shell); });
}

void AddMan(CLI::App& app) {
  struct Settings {
    std::vector<std::string> names;
    std::string folder;
  };
  auto settings = std::make_shared<Settings>();
  CLI::App* command =
      app.add_subcommand("man", "print the manual page of a command, or write all of them");
  command->add_option("COMMAND", settings->names, "command, two words for those of bench")
      ->expected(0, 4);
  NamesFile(command->add_option("--out", settings->folder, "folder to write all pages to"),
            FileKind::kOutputFolder);
  AddExamples(*command, {"pmkvq man run | man -l -", "pmkvq man --out man1"});
  command->callback([&app, settings] {
    const CommandInfo root = DescribeCommands(app);
    if (settings->folder.empty()) {
      PrintPage(root, settings->names);
    } else {
      WritePages(root, settings->folder);
    }
  });
}

}  // namespace pmkvq::cli
