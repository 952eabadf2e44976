// The subcommands of the program. Each Add function declares one subcommand with its options on
// `app`; parsing the command line then runs it. Failures are thrown (base/error.h).
#pragma once

#include <CLI/CLI.hpp>

namespace pmkvq::cli {

void AddTokenize(CLI::App& app);
void AddTemplate(CLI::App& app);
void AddRun(CLI::App& app);
void AddLogits(CLI::App& app);
void AddPerplexity(CLI::App& app);
void AddSensitivity(CLI::App& app);
void AddMaxKeys(CLI::App& app);
void AddRepScales(CLI::App& app);
void AddAllocate(CLI::App& app);
void AddCalibrate(CLI::App& app);
void AddQuantize(CLI::App& app);
void AddEval(CLI::App& app);
// Of this one and AddAnalyze the arguments are shown on the pages that they made.
void AddCompare(CLI::App& app, int argc, const char* const* argv);
void AddJudge(CLI::App& app);
void AddDemo(CLI::App& app);
void AddAnalyze(CLI::App& app, int argc, const char* const* argv);
void AddInspect(CLI::App& app);
void AddMethods(CLI::App& app);
void AddDamage(CLI::App& app);
void AddFit(CLI::App& app);
void AddBench(CLI::App& app);
void AddDevices(CLI::App& app);
void AddServe(CLI::App& app);
void AddChat(CLI::App& app);
void AddCompletion(CLI::App& app);
void AddMan(CLI::App& app);

}  // namespace pmkvq::cli
