// pmkvq: runs reasoning models inside a fixed KV-cache budget. Exit codes: 0 fine, 1 failed,
// 2 wrong usage, 130 interrupted.
#include <algorithm>
#include <csignal>
#include <cstdio>
#include <exception>
#include <new>

#include "commands.h"
#include "config_file.h"
#include "file_options.h"
#include "help_format.h"
#include "leaders.h"
#include "option_aliases.h"
#include "option_values.h"
#include "pmkvq/base/error.h"
#include "pmkvq/base/interrupt.h"
#include "pmkvq/comm/all_or_none.h"
#include "pmkvq/kernels/process_target.h"
#include "ranks.h"
#include "terminal.h"
#include "usage_error.h"
#include "version.h"

namespace pmkvq::cli {
namespace {

constexpr int kInterrupted = 130;

int Fail(const char* message, int code) {
  if (code != kInterrupted) EndLeaders(message);
  std::fprintf(stderr, "pmkvq: %s\n", message);
  return code;
}

void AddCommands(CLI::App& app, int argc, char** argv) {
  AddRun(app);
  AddServe(app);
  AddChat(app);
  AddCalibrate(app);
  AddSensitivity(app);
  AddMaxKeys(app);
  AddRepScales(app);
  AddAllocate(app);
  AddQuantize(app);
  AddEval(app);
  AddCompare(app, argc, argv);
  AddJudge(app);
  AddPerplexity(app);
  AddAnalyze(app, argc, argv);
  AddLogits(app);
  AddTokenize(app);
  AddTemplate(app);
  AddInspect(app);
  AddMethods(app);
  AddDamage(app);
  AddFit(app);
  AddBench(app);
  AddDevices(app);
  AddDemo(app);
  AddCompletion(app);
  AddMan(app);
}

// "pmkvq bench" of "pmkvq bench gemv", which CLI11 puts in front of a command's own name.
std::string ParentOf(const std::string& path) {
  const size_t last = path.rfind(' ');
  return last == std::string::npos ? "" : path.substr(0, last);
}

// pmkvq help [COMMAND...]. Throws CLI::ValidationError for a command that does not exist.
void PrintHelpOf(CLI::App& app, const std::vector<std::string>& names) {
  CLI::App* command = &app;
  std::string path = "pmkvq";
  for (const std::string& name : names) {
    const std::vector<CLI::App*> commands = command->get_subcommands({});
    const auto next = std::find_if(commands.begin(), commands.end(), [&](const CLI::App* other) {
      return other->get_name() == name;
    });
    if (next == commands.end()) {
      throw CLI::ValidationError(DescribeUnknownCommand(*command, path, name));
    }
    command = *next;
    path += " " + name;
  }
  Print(command->help(ParentOf(path)));
}

int Run(int argc, char** argv) {
  CLI::App app("Runs long chain-of-thought models inside a fixed KV-cache budget (PM-KVQ).",
               "pmkvq");
  app.set_help_flag("-h,--help", "this text");
  app.set_version_flag("--version", "", "version, commit, compiler, instruction sets, features");
  bool is_json = false;
  app.add_flag("--json", is_json, "with --version: as JSON, for a bug report")
      ->needs(app.get_option("--version"));
  app.require_subcommand(1);
  app.formatter(std::make_shared<HelpFormatter>(HelpColumns()));
  AddCommands(app, argc, argv);
  ApplyValueRules(app);
  app.footer(
      "Examples:\n"
      "  pmkvq run --model models/longcot-10m --file models/longcot-10m/example.txt\n"
      "  pmkvq help run    # or pmkvq run --help\n\n"
      "Sizes are a number and a unit: 6MiB, 512k, 1.5GB, 2TiB. Without a unit\n"
      "--kv-budget counts bytes and --memory-budget counts MiB.\n\n"
      "Names of llama.cpp are understood: -m, -c, -n, -t, -s, --temp, -ctk, -ctv.");
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  std::vector<std::string> ours;  // Empty until aliases are replaced.
  try {
    if (!arguments.empty() && arguments.front() == "help") {
      PrintHelpOf(app, {arguments.begin() + 1, arguments.end()});
      return 0;
    }
    RefuseEmptyAssignments(app, arguments);
    RefuseSplitSizes(arguments);
    app.parse_complete_callback([&] { CheckFiles(*FindChosenCommand(app).app); });
    ours = WithOptionsOfConfig(app, ReplaceAliases(app, arguments));
    app.parse(std::vector<std::string>(ours.rbegin(), ours.rend()));
  } catch (const CLI::CallForHelp& help) {
    if (HasForeignShortOption(ours)) {
      std::fputs(DescribeUsageError(app, help, ours).c_str(), stderr);
      return 2;
    }
    const ChosenCommand command = FindChosenCommand(app);
    Print(command.app->help(ParentOf(command.path)));
  } catch (const CLI::CallForVersion&) {
    Print(app.get_option("--json")->count() > 0 ? VersionJson() : VersionText());
  } catch (const CLI::ParseError& error) {
    const ChosenCommand command = FindChosenCommand(app);
    const bool is_group = command.app->get_require_subcommand_min() > 0;
    if (is_group && command.app->remaining().empty() && error.get_name() == "RequiredError") {
      Print(command.app->help(ParentOf(command.path)));
      return 0;
    }
    if (IsFirstLeader()) std::fputs(DescribeUsageError(app, error, ours).c_str(), stderr);
    return 2;
  }
  return 0;
}

}  // namespace
}  // namespace pmkvq::cli

namespace {

// Runs `body` and turns what it throws into a line and an exit code. `close` is called before the
// process ends by a signal.
template <class Body, class Close>
int ExitCodeOf(const Body& body, const Close& close) {
  try {
    return body();
  } catch (const pmkvq::Cancelled& error) {
    return pmkvq::cli::Fail(error.what(), pmkvq::cli::kInterrupted);
  } catch (const pmkvq::cli::ClosedPipe&) {
    // As other tools end whose reader is gone: silently, by the signal.
    close(1);
    std::signal(SIGPIPE, SIG_DFL);
    std::raise(SIGPIPE);
    return 1;
  } catch (const pmkvq::OtherRankFailed&) {
    pmkvq::cli::EndLeaders("");
    return 1;
  } catch (const std::bad_alloc&) {
    return pmkvq::cli::Fail("out of memory", 1);
  } catch (const pmkvq::Error& error) {
    return pmkvq::cli::Fail(error.what(), pmkvq::cli::IsWrongUsage(error) ? 2 : 1);
  } catch (const std::exception& error) {
    return pmkvq::cli::Fail(error.what(), 1);
  }
}

}  // namespace

int main(int argc, char** argv) {
  pmkvq::cli::InstallInterruptHandler();
  const pmkvq::CancelScope interruptible(pmkvq::cli::InterruptFlag(), argc > 1 ? argv[1] : "pmkvq");
  pmkvq::cli::Ranks& ranks = pmkvq::cli::Ranks::OfProcess();
  const int code = ExitCodeOf(
      [&] {
        pmkvq::UseTargetOfEnvironment();
        ranks.Open(argc, argv);
        return ranks.is_leader() ? pmkvq::cli::Run(argc, argv) : ranks.Serve();
      },
      [&](int exit_code) { ranks.Close(exit_code); });
  // Whoever cannot tell the others that all is over ends them.
  return ExitCodeOf(
      [&] {
        ranks.Close(code);
        return code;
      },
      [](int) {});
}
