// pmkvq analyze: experiments around the cache, each with JSON and one page of charts.
#include "analyze.h"

#include <fmt/format.h>

#include "commands.h"
#include "file_options.h"
#include "help_format.h"
#include "option_values.h"
#include "page_origin.h"
#include "pmkvq/base/error.h"
#include "pmkvq/io/file.h"
#include "pmkvq/research/analysis/placement.h"
#include "terminal.h"
#include "weight_options.h"

namespace pmkvq::cli {

void AnalysisOptions::Register(CLI::App& command, const std::string& data_text) {
  NamesFile(command.add_option("--model", model, "model folder or .gguf file")->required(),
            FileKind::kModel);
  weights.Register(command);
  NamesFile(command.add_option("--data", data, data_text), FileKind::kInput);
  chat_template.Register(command);
  tokenizer.Register(command);
  command.add_flag("--quick", quick, "small sizes: shows that it works, not what is true");
  AddJson(command, json, "write the result as JSON");
  NamesFile(command.add_option("--html", html, "write one self-contained page with charts"),
            FileKind::kOutput);
}

void AnalysisOptions::CheckOutputs() const {
  if (json.empty() && html.empty()) throw CLI::RequiredError("--json or --html");
}

PageOrigin AnalysisOptions::Origin(const std::string& plan) const {
  return MakePageOrigin(command_line, model, plan);
}

void AnalysisOptions::Write(const std::string& json_text, HtmlPage page) const {
  WriteJson(json, json_text);
  if (quick && json != "-") {
    Print("--quick: sizes are small, so these numbers show that it works, not what is true\n");
  }
  if (html.empty()) return;
  if (quick) {
    page.SetWarning(
        "Made with --quick: a few short texts, so these numbers show that the analysis works and "
        "mean little else. Run it without --quick before you conclude anything.");
  }
  WriteFileAtomically(html, page.Render());
  if (json != "-") Print(fmt::format("page: {}\n", html));
}

std::string AnalysisOptions::DataPath(const std::string& path, const char* name,
                                      const char* option) const {
  if (!path.empty()) return path;
  std::string shipped = JoinPath(model, name);
  if (!FileExists(shipped)) {
    throw InvalidInput(option,
                       fmt::format("not given, and {} is not there; expected a file", shipped));
  }
  return shipped;
}

void PlacementOptions::Register(CLI::App& command, const std::string& max_len_text) {
  command
      .add_option("--chunk", chunk,
                  "tokens per step of the evaluation; 1 is exactly what decoding does")
      ->transform(WholeNumber(1, kMostTokens))
      ->capture_default_str();
  AddThreads(command, threads);
  allocation.allocation.max_len = 0;
  allocation.Register(command);
  command.get_option("--memory-budget")
      ->required(false)
      ->description(
          "for one sequence, all blocks: 4.75MiB, 512KiB; without a unit: MiB (default: a quarter "
          "of the blocks at the widest choice, the others at the narrowest)");
  command.get_option("--max-len")->description(max_len_text)->default_str("");
}

AllocationOptions PlacementOptions::Resolve(const Model& model, int64_t default_max_len) const {
  AllocationCommandOptions given = allocation;
  if (given.allocation.max_len == 0) given.allocation.max_len = default_max_len;
  const bool has_budget = !given.memory_budget.empty();
  if (!has_budget) given.memory_budget = "1";  // Replaced below.
  AllocationOptions resolved = given.Resolve();
  resolved.cache.geometry = model.kv_geometry();
  if (!has_budget) resolved.memory_budget_bytes = ChoosingBudget(resolved);
  return resolved;
}

std::vector<int32_t> TextIds(const Tokenizer& tokenizer, const std::string& text) {
  return tokenizer.EncodeWhole(text, /*parse_special=*/true);
}

void AddAnalyze(CLI::App& app, int argc, const char* const* argv) {
  CLI::App* analyze = app.add_subcommand(
      "analyze", "experiments: error growth along a chain, transfer between tasks, interpolation");
  analyze->require_subcommand(1);
  AddExamples(*analyze,
              {"pmkvq analyze error-growth --model models/longcot-10m --quick --html growth.html",
               "pmkvq analyze transfer --help"});
  const std::string command_line = CommandLineOf(argc, argv);
  AddErrorGrowth(*analyze, command_line);
  AddTransfer(*analyze, command_line);
  AddInterpolation(*analyze, command_line);
}

}  // namespace pmkvq::cli
