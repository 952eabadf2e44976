// pmkvq compare: cache methods at equal real bytes, the same problems and seeds, one table.
#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <set>

#include "benchmark_options.h"
#include "commands.h"
#include "common_options.h"
#include "compare_counts.h"
#include "device_cache.h"
#include "fan_out_options.h"
#include "file_options.h"
#include "help_format.h"
#include "kv_effects.h"
#include "leaders.h"
#include "option_values.h"
#include "page_origin.h"
#include "pmkvq/base/byte_size.h"
#include "pmkvq/base/error.h"
#include "pmkvq/base/interrupt.h"
#include "pmkvq/io/file.h"
#include "pmkvq/model/model_size.h"
#include "pmkvq/research/compare/compare_files.h"
#include "pmkvq/research/compare/compare_report.h"
#include "pmkvq/research/compare/compare_run.h"
#include "ranks.h"
#include "terminal.h"
#include "weight_options.h"

namespace pmkvq::cli {
namespace {

struct Options {
  BenchmarkCommandOptions run;
  std::vector<std::string> specs;
  WeightCommandOptions weights;
  KvCommandOptions kv;  // Its spec is not used, its budget is a list.
  FanOutCommandOptions fan_out;
  std::vector<std::string> from;
  std::string counts;
  std::string against;
  std::string out;
  std::string json;
  std::string markdown;
  std::string html;
  std::string command_line;  // Shown on the page.
  bool allow_partial = false;
  bool by_level = false;
};

// Runs that are there are shown as they were made.
void WarnOfUnusedRunOptions(const CLI::App& command) {
  static const std::set<std::string> kOfReports = {
      "help", "from", "model", "max-len", "against", "json", "markdown", "html", "by-level"};
  for (const CLI::Option* option : command.get_options()) {
    if (option->count() == 0 || option->get_lnames().empty()) continue;
    const std::string& name = option->get_lnames().front();
    if (kOfReports.contains(name)) continue;
    WarnWithoutEffect(command, {"--" + name}, "--from shows runs as they were made");
  }
}

void CheckOptions(const Options& options, const CLI::App& command) {
  const auto refuse = [](const char* option, const std::string& what) {
    throw CLI::ValidationError(option, what);
  };
  if (!options.from.empty()) {
    WarnOfUnusedRunOptions(command);
    if (!options.specs.empty() || !options.kv.budget.empty() || !options.out.empty()) {
      refuse("--from", "found --kv, --kv-budget or --out beside it, expected finished runs only");
    }
    return;
  }
  if (options.run.model.empty())
    refuse("--model", "found none, expected a model folder, or --from");
  if (options.specs.empty()) refuse("--kv", "found none, expected one SPEC or more, or --from");
  if (options.kv.budget.empty()) {
    refuse("--kv-budget", "found none, expected what one sequence may take (6MiB, say)");
  }
  std::set<std::string> seen;
  for (const std::string& spec : options.specs) {
    if (!seen.insert(spec).second) refuse("--kv", fmt::format("'{}' is given twice", spec));
  }
  if (!options.against.empty() && !seen.contains(options.against)) {
    refuse("--against", fmt::format("found '{}', expected one of the --kv", options.against));
  }
}

// "4MiB,6MiB"
std::vector<int64_t> ParseBudgets(const std::string& text) {
  std::vector<int64_t> budgets;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    const int64_t bytes = ParseKvBudget(text.substr(begin, end - begin));
    if (std::find(budgets.begin(), budgets.end(), bytes) != budgets.end()) {
      throw CLI::ValidationError("--kv-budget",
                                 fmt::format("found {} bytes twice in '{}'", bytes, text));
    }
    budgets.push_back(bytes);
    begin = end + 1;
  }
  return budgets;
}

CompareOptions ResolveComparison(const Options& options) {
  // Options of all methods; those of pages speak of packed ones only, so no method is warned of.
  KvCommandOptions common = options.kv;
  common.spec = "pm-kvq";
  common.budget.clear();
  CompareOptions resolved;
  resolved.specs = options.specs;
  resolved.budget_bytes = ParseBudgets(options.kv.budget);
  resolved.against = options.against;
  resolved.engine = common.Resolve(options.run.batch, options.specs);
  resolved.allow_partial = options.allow_partial;
  resolved.out = options.out;
  resolved.shard = options.fan_out.shard;
  return resolved;
}

void AnnounceMisfits(const ComparisonRun& run) {
  for (const CompareJob& job : run.jobs()) {
    if (job.fit.holds) continue;
    PrintError(fmt::format("{}: {} does not hold {} tokens, it needs {}; {}", job.spec,
                           FormatByteSize(job.budget_bytes), run.max_len(),
                           FormatByteSize(job.fit.needed_bytes),
                           run.IsRun(job)   ? "run all the same, sequences end with kv_budget"
                           : job.fit.starts ? "not run (--allow-partial runs it)"
                                            : "not run"));
  }
}

// A bar for each run.
class Bars : public CompareProgress {
 public:
  explicit Bars(std::string suffix) : suffix_(std::move(suffix)) {}
  void Begin(const CompareJob& job, int64_t total, const std::vector<Response>& present) override {
    std::string title = job.spec;
    if (job.budget_bytes > 0) title += " " + FormatByteSize(job.budget_bytes);
    title += suffix_;
    bar_.emplace(title, total, present);
  }
  void OnResponse(const Response& response) override { bar_->Add(response); }
  EngineObserver* observer() override { return &*bar_; }
  void End() override { bar_->End(); }

 private:
  std::string suffix_;  // Of a part.
  std::optional<EvalProgress> bar_;
};

void Report(const Options& options, const Comparison& comparison) {
  WriteJson(options.json, FormatComparisonJson(comparison));
  if (!options.markdown.empty()) {
    WriteFileAtomically(options.markdown, FormatComparisonMarkdown(comparison));
  }
  if (!options.html.empty()) {
    WriteFileAtomically(
        options.html,
        ComparisonPage(comparison, MakePageOrigin(options.command_line, options.run.model,
                                                  options.kv.plan_path))
            .Render());
  }
  if (options.json == "-") return;
  Print(FormatComparisonText(comparison, options.by_level));
  if (!options.html.empty()) Print(fmt::format("page: {}\n", options.html));
}

void CompareRuns(const Options& options) {
  Communicator* const ranks = options.fan_out.Open(!options.out.empty());
  const Benchmark benchmark = options.run.Load();
  const std::vector<ProblemRow> problems =
      SelectProblems(benchmark.problems, options.run.selection);
  const std::shared_ptr<const Model> model =
      options.weights.Load(options.run.model, options.kv.threads, [&](const Model& loaded) {
        SpecEngineOptions largest = options.kv.Parse(options.run.batch);  // The baseline.
        largest.kv.spec = "fp16";
        return CacheBytesOnDevice(loaded, largest);
      });
  CompareOptions resolved = ResolveComparison(options);
  resolved.ranks = ranks;
  const ComparisonRun run(std::move(resolved), model);
  const EvaluationOptions evaluation = options.run.Resolve(run.baseline().engine, *model);
  AnnounceMisfits(run);
  for (const CompareJob& job : run.jobs()) {
    if (job.budget_bytes == run.jobs().front().budget_bytes) {
      options.kv.PrintPlanHint(job.engine.kv, options.run.model);
    }
  }

  Bars bars(options.fan_out.Suffix());
  Comparison comparison =
      run.Run(benchmark, problems, options.run.tokenizer.Load(options.run.model), evaluation, &bars,
              InterruptFlag());
  if (!IsFirstLeader()) return ExitIfInterrupted("compare");
  comparison.num_ranks = Ranks::OfProcess().size();
  const UncancelledScope
      whole;  // After Ctrl-C the table of the finished responses is still written.
  if (options.fan_out.is_part() && IsIncomplete(comparison) && !IsCancelled(InterruptFlag())) {
    PrintError(fmt::format("{}: part {} is done; the last part that ends prints the table",
                           options.out, TextOf(options.fan_out.shard)));
    return;
  }
  Report(options, comparison);
  if (IsCancelled(InterruptFlag()) && !options.out.empty()) {
    PrintError(options.out + " holds what is finished; the same command goes on");
  }
  ExitIfInterrupted("compare");
}

void CompareFiles(const Options& options) {
  Comparison comparison = CompareSavedRuns(LoadRuns(options.from), options.against);
  if (!options.run.model.empty()) {
    const Checkpoint model = Checkpoint::Open(options.run.model);
    if (!comparison.model.empty() && comparison.model != model.Identity()) {
      throw InvalidInput("--model", fmt::format("found {}, but the runs are of another model ({})",
                                                model.Identity(), comparison.model));
    }
    comparison.values_per_token = KvGeometryOf(model.config()).values();
    if (options.kv.max_len > 0) comparison.max_len = options.kv.max_len;
  }
  Report(options, comparison);
}

void Compare(const Options& options, const CLI::App& command) {
  if (!options.counts.empty()) {
    CompareCounts(options.counts, command);
    return;
  }
  CheckOptions(options, command);
  if (options.from.empty()) {
    CompareRuns(options);
  } else {
    CompareFiles(options);
  }
}

// The cache options as other commands have them, but for several methods and budgets.
void RegisterKv(CLI::App& command, Options& options) {
  options.kv.Register(command);
  const std::string group = command.get_option("--kv")->get_group();
  command.remove_option(command.get_option("--kv"));
  command.remove_option(command.get_option("--recipe"));
  command.remove_option(command.get_option("--kv-budget"));
  command
      .add_option("--kv", options.specs,
                  "give one for each method; fp16 is run in any case; " + KvHelp())
      ->allow_extra_args(false)
      ->type_name("SPEC")
      ->transform(KnownMethod())
      ->group(group);
  // After --kv, whose values replace the list.
  AddRecipe(command, [&options](const std::string& spec) { options.specs.push_back(spec); });
  command
      .add_option("--kv-budget", options.kv.budget,
                  "bytes that one sequence may take, all blocks, of every method but fp16; "
                  "several with commas give a table each: 4MiB,6MiB; without a unit: bytes")
      ->type_name("SIZE,...")
      ->transform(KvBudgetSizes())
      ->group(group);
}

}  // namespace

void AddCompare(CLI::App& app, int argc, const char* const* argv) {
  auto options = std::make_shared<Options>();
  options->command_line = CommandLineOf(argc, argv);
  CLI::App* command =
      app.add_subcommand("compare", "several cache methods at equal real bytes, one table");
  options->run.Register(*command);
  options->fan_out.Register(*command, "responses", "--out");
  options->weights.RegisterWithRanks(*command);
  RegisterKv(*command, *options);
  const std::string group = "Comparison";
  NamesFile(
      command
          ->add_option("--from", options->from,
                       "compare finished runs: folders of eval or compare, or --json files of eval "
                       "(with --model: effective bits, too)")
          ->group(group),
      FileKind::kInputs);
  NamesFile(command
                ->add_option(
                    kCountsOption, options->counts,
                    "intervals and p-values of counts, nothing else: a line of JSON for each line "
                    "{\"solved\",\"responses\"} or "
                    "{\"both\",\"only_other\",\"only_method\",\"neither\"} (- for stdin)")
                ->group(group),
            FileKind::kInputOrStdin);
  command
      ->add_option("--against", options->against,
                   "pair every method with this one of the --kv, too")
      ->type_name("SPEC")
      ->group(group);
  command
      ->add_flag("--allow-partial", options->allow_partial,
                 "run methods whose budget does not hold --max-len tokens; sequences end with "
                 "kv_budget")
      ->group(group);
  command->add_flag("--by-level", options->by_level, "print shares per level, too")->group(group);
  NamesFile(command
                ->add_option(
                    "--out", options->out,
                    "folder for the responses; the same command again goes on with what is missing")
                ->group(group),
            FileKind::kOutputFolder);
  NamesFile(command
                ->add_option("--json", options->json,
                             "write all counts and intervals as JSON (- for stdout)")
                ->group(group),
            FileKind::kOutputOrStdout);
  NamesFile(command->add_option("--markdown", options->markdown, "write the tables as Markdown")
                ->group(group),
            FileKind::kOutput);
  NamesFile(command
                ->add_option("--html", options->html,
                             "write one self-contained page: right answers against bytes, and the "
                             "tables")
                ->group(group),
            FileKind::kOutput);
  AddExamples(*command,
              {"pmkvq compare --model models/longcot-10m --per-cell 1 --min-level 4 --max-level 4 "
               "--max-len 4096 --kv pm-kvq --kv kivi:group=64 --plan models/longcot-10m/plan.json "
               "--kv-budget 4.875MiB --out results/mine",
               "pmkvq compare --from results/mine --model models/longcot-10m --by-level"});
  command->callback([options, command] { Compare(*options, *command); });
}

}  // namespace pmkvq::cli
