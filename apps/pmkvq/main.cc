// pmkvq: runs reasoning models inside a fixed KV-cache budget. Exit codes: 0 fine, 1 failed,
// 2 wrong usage, 130 interrupted.
#include <cstdio>
#include <exception>
#include <new>

#include "commands.h"
#include "help_format.h"
#include "pmkvq/base/error.h"
#include "pmkvq/base/interrupt.h"
#include "pmkvq/kernels/process_target.h"
#include "terminal.h"

namespace {

int Fail(const char* message, int code) {
  std::fprintf(stderr, "pmkvq: %s\n", message);
  return code;
}

int Run(int argc, char** argv) {
  CLI::App app("Runs long chain-of-thought models inside a fixed KV-cache budget (PM-KVQ).");
  app.set_version_flag("--version", PMKVQ_VERSION);
  app.require_subcommand(1);
  app.failure_message(pmkvq::cli::FormatUsageError);
  app.formatter(std::make_shared<pmkvq::cli::HelpFormatter>());
  pmkvq::cli::AddRun(app);
  pmkvq::cli::AddCalibrate(app);
  pmkvq::cli::AddSensitivity(app);
  pmkvq::cli::AddMaxKeys(app);
  pmkvq::cli::AddRepScales(app);
  pmkvq::cli::AddAllocate(app);
  pmkvq::cli::AddEval(app);
  pmkvq::cli::AddCompare(app, argc, argv);
  pmkvq::cli::AddJudge(app);
  pmkvq::cli::AddPerplexity(app);
  pmkvq::cli::AddAnalyze(app, argc, argv);
  pmkvq::cli::AddLogits(app);
  pmkvq::cli::AddTokenize(app);
  pmkvq::cli::AddTemplate(app);
  pmkvq::cli::AddInspect(app);
  pmkvq::cli::AddBench(app);
  pmkvq::cli::AddDemo(app);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const int code = app.exit(error);
    return code == 0 ? 0 : 2;
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  pmkvq::cli::InstallInterruptHandler();
  const pmkvq::CancelScope interruptible(pmkvq::cli::InterruptFlag(), argc > 1 ? argv[1] : "pmkvq");
  try {
    pmkvq::UseTargetOfEnvironment();
    return Run(argc, argv);
  } catch (const pmkvq::Cancelled& error) {
    return Fail(error.what(), 130);
  } catch (const std::bad_alloc&) {
    return Fail("out of memory", 1);
  } catch (const std::exception& error) {
    return Fail(error.what(), 1);
  }
}
