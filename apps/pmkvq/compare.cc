// pmkvq compare: cache methods at equal real bytes, the same problems and seeds, one table.
#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <set>

#include "benchmark_options.h"
#include "commands.h"
#include "common_options.h"
#include "compare_counts.h"
#include "file_options.h"
#include "help_format.h"
#include "kv_effects.h"
#include "option_values.h"
#include "page_origin.h"
#include "pmkvq/base/byte_size.h"
#include "pmkvq/base/error.h"
#include "pmkvq/base/interrupt.h"
#include "pmkvq/io/file.h"
#include "pmkvq/kv/spec/packed_spec.h"
#include "pmkvq/model/model_size.h"
#include "pmkvq/research/compare/compare_files.h"
#include "pmkvq/research/compare/compare_fit.h"
#include "pmkvq/research/compare/compare_list.h"
#include "pmkvq/research/compare/compare_report.h"
#include "terminal.h"
#include "weight_options.h"

namespace pmkvq::cli {
namespace {

struct Options {
  BenchmarkCommandOptions run;
  std::vector<std::string> specs;
  WeightCommandOptions weights;
  KvCommandOptions kv;  // Its spec is not used, its budget is a list.
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

// One method at one budget.
struct Job {
  std::string spec;
  int64_t budget_bytes = 0;  // 0: the baseline.
  SpecEngineOptions engine;
  BudgetFit fit;
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

// The methods at one budget, in the order of --kv.
struct BudgetJobs {
  int64_t budget_bytes = 0;
  std::vector<Job> jobs;
};

// Everything that is known before a model is run.
struct Plans {
  Job baseline;
  std::vector<BudgetJobs> budgets;
  int64_t max_len = 0;
};

Job MakeJob(const std::string& spec, int64_t budget_bytes, const SpecEngineOptions& common,
            const Model& model) {
  Job job;
  job.spec = spec;
  job.budget_bytes = budget_bytes;
  job.engine = common;
  job.engine.kv.spec = spec;
  job.engine.kv.budget_bytes = budget_bytes;
  job.engine.kv = ApplySpecKeys(job.engine.kv);
  CheckPlan(job.engine, model);
  // A SPEC that is wrong shows now, not after hours.
  if (budget_bytes > 0) {
    const KvRequirements requirements = RequirementsOf(model, job.engine);
    job.fit = FitBudget(job.engine.kv, requirements, requirements.max_len);
  } else {
    job.fit.starts = job.fit.holds = CheckKvOptions(model, job.engine).total_bytes() > 0;
  }
  return job;
}

Plans MakePlans(const Options& options, const Model& model) {
  // Options of all methods; those of pages speak of packed ones only, so no method is warned of.
  KvCommandOptions common_options = options.kv;
  common_options.spec = "pm-kvq";
  common_options.budget.clear();
  const SpecEngineOptions common = common_options.Resolve(options.run.batch, options.specs);
  Plans plans;
  plans.max_len = common.max_len > 0 ? common.max_len : model.config().max_position_embeddings;
  const auto named = std::find_if(options.specs.begin(), options.specs.end(), IsBaselineMethod);
  const std::string baseline = named == options.specs.end() ? "fp16" : *named;
  plans.baseline = MakeJob(baseline, 0, common, model);
  for (const int64_t budget : ParseBudgets(options.kv.budget)) {
    BudgetJobs& jobs = plans.budgets.emplace_back();
    jobs.budget_bytes = budget;
    for (const std::string& spec : options.specs) {
      if (spec != baseline) jobs.jobs.push_back(MakeJob(spec, budget, common, model));
    }
  }
  return plans;
}

void AnnounceMisfits(const Plans& plans, bool allow_partial) {
  for (const BudgetJobs& jobs : plans.budgets) {
    for (const Job& job : jobs.jobs) {
      if (job.fit.holds) continue;
      const bool runs = allow_partial && job.fit.starts;
      PrintError(fmt::format("{}: {} does not hold {} tokens, it needs {}; {}", job.spec,
                             FormatByteSize(job.budget_bytes), plans.max_len,
                             FormatByteSize(job.fit.needed_bytes),
                             runs             ? "run all the same, sequences end with kv_budget"
                             : job.fit.starts ? "not run (--allow-partial runs it)"
                                              : "not run"));
    }
  }
}

// So that --from can make the same table again.
void SaveList(const Options& options, const Plans& plans, const Benchmark& benchmark,
              const std::vector<ProblemRow>& problems, const Model& model, int64_t num_responses) {
  ComparisonList list;
  list.benchmark = benchmark.name;
  list.model = model.checkpoint().Identity();
  for (const ProblemRow& problem : problems) list.problems.push_back(problem.id);
  list.num_responses = num_responses;
  list.against = options.against;
  list.values_per_token = model.kv_geometry().values();
  list.runs.push_back({plans.baseline.spec, 0, true, 0, 0});
  for (const BudgetJobs& jobs : plans.budgets) {
    for (const Job& job : jobs.jobs) {
      const bool is_run = job.fit.holds || (options.allow_partial && job.fit.starts);
      list.runs.push_back({job.spec, job.budget_bytes, is_run, job.fit.needed_bytes,
                           job.fit.needed_bytes > 0 ? plans.max_len : 0});
    }
  }
  const std::string path = JoinPath(options.out, "comparison.json");
  if (FileExists(path)) list = MergeLists(list, ParseComparisonList(ReadFile(path), path));
  WriteFileAtomically(path, ComparisonListJson(list) + "\n");
}

// Runs the methods one after another.
class Runner {
 public:
  Runner(const Options& options, const Benchmark& benchmark,
         const std::vector<ProblemRow>& problems, const std::shared_ptr<const Model>& model,
         const EvaluationOptions& evaluation)
      : options_(options),
        benchmark_(benchmark),
        problems_(problems),
        model_(model),
        tokenizer_(options.run.tokenizer.Load(options.run.model)),
        evaluation_(evaluation) {}

  MethodRun Run(const Job& job) {
    EvaluationOptions evaluation = evaluation_;
    evaluation.engine = job.engine;
    MethodRun run = Describe(job);
    std::optional<ResponseLog> log;
    if (options_.out.empty()) {
      log.emplace();
    } else {
      const KvOptions& kv = job.engine.kv;
      log.emplace(JoinPath(options_.out, RunFolder(job.spec, job.budget_bytes)),
                  MakeRunSettings(benchmark_, *model_, evaluation,
                                  kv.plan != nullptr ? kv.plan_path : std::string()));
    }
    const int64_t num_responses = evaluation.num_responses;
    const std::vector<Response> present = ResponsesTo(*log, problems_, num_responses);
    if (std::ssize(present) < run.num_expected) Evaluate(job, evaluation, present, *log);
    const std::vector<Response> responses = ResponsesTo(*log, problems_, num_responses);
    run.outcomes = OutcomesOf(responses);
    if (std::ssize(run.outcomes) < run.num_expected) run.status = MethodStatus::kInterrupted;
    return run;
  }

  // A method at a budget; the baseline has been run.
  MethodRun RunOrSay(const Job& job) {
    MethodRun run = Describe(job);
    if (!job.fit.holds && !(options_.allow_partial && job.fit.starts)) {
      run.status = MethodStatus::kDoesNotFit;
      return run;
    }
    if (IsCancelled(InterruptFlag())) {
      run.status = MethodStatus::kInterrupted;
      return run;
    }
    return Run(job);
  }

 private:
  MethodRun Describe(const Job& job) const {
    MethodRun run;
    run.method = job.spec;
    run.is_simulated = IsSimulatedMethod(job.spec);
    run.needed_bytes = job.fit.needed_bytes;
    run.needed_tokens = job.fit.needed_bytes > 0 ? MaxLen(job) : 0;
    run.num_expected = std::ssize(problems_) * evaluation_.num_responses;
    return run;
  }

  int64_t MaxLen(const Job& job) const {
    return job.engine.max_len > 0 ? job.engine.max_len : model_->config().max_position_embeddings;
  }

  void Evaluate(const Job& job, const EvaluationOptions& evaluation,
                const std::vector<Response>& present, ResponseLog& log) const {
    std::string title = job.spec;
    if (job.budget_bytes > 0) title += " " + FormatByteSize(job.budget_bytes);
    EvalProgress progress(title, std::ssize(problems_) * evaluation.num_responses, present);
    pmkvq::Evaluate(
        model_, tokenizer_, benchmark_.grading, problems_, evaluation, log, &progress,
        [&](const Response& response) { progress.Add(response); }, InterruptFlag());
    progress.End();
  }

  const Options& options_;
  const Benchmark& benchmark_;
  const std::vector<ProblemRow>& problems_;
  std::shared_ptr<const Model> model_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  EvaluationOptions evaluation_;
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

// What the whole comparison has in common; sampling and limits are those of the baseline.
Comparison DescribeComparison(const Options& options, const Benchmark& benchmark,
                              const Model& model, const EvaluationOptions& evaluation) {
  static const std::set<std::string> kOfOneMethod = {"--kv-budget"};
  const RunSettings settings = MakeRunSettings(benchmark, model, evaluation, "");
  Comparison comparison;
  comparison.benchmark = benchmark.name;
  comparison.model = settings.model_identity;
  comparison.against = options.against;
  comparison.num_responses = evaluation.num_responses;
  comparison.values_per_token = model.kv_geometry().values();
  for (const auto& option : settings.options) {
    if (!kOfOneMethod.contains(option.first)) comparison.settings.push_back(option);
  }
  return comparison;
}

void CompareRuns(const Options& options) {
  const Benchmark benchmark = options.run.Load();
  const std::vector<ProblemRow> problems =
      SelectProblems(benchmark.problems, options.run.selection);
  const std::shared_ptr<const Model> model =
      options.weights.Load(options.run.model, options.kv.threads);
  const Plans plans = MakePlans(options, *model);
  const EvaluationOptions evaluation = options.run.Resolve(plans.baseline.engine, *model);
  AnnounceMisfits(plans, options.allow_partial);
  for (const Job& job : plans.budgets.front().jobs) {
    options.kv.PrintPlanHint(job.engine.kv, options.run.model);
  }

  Runner runner(options, benchmark, problems, model, evaluation);
  const MethodRun baseline = runner.Run(plans.baseline);
  if (!options.out.empty()) {
    SaveList(options, plans, benchmark, problems, *model, evaluation.num_responses);
  }
  if (baseline.status == MethodStatus::kInterrupted) ExitIfInterrupted("compare");
  std::vector<BudgetRuns> budgets;
  for (const BudgetJobs& jobs : plans.budgets) {
    BudgetRuns& budget = budgets.emplace_back();
    budget.budget_bytes = jobs.budget_bytes;
    for (const Job& job : jobs.jobs) budget.runs.push_back(runner.RunOrSay(job));
  }
  const UncancelledScope
      whole;  // After Ctrl-C the table of the finished responses is still written.
  Comparison comparison = DescribeComparison(options, benchmark, *model, evaluation);
  comparison.baseline = baseline.method;
  comparison.num_problems = std::ssize(problems);
  comparison.max_len = plans.max_len;
  comparison.tables = MakeTables(baseline, budgets, options.against);
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
  options->weights.Register(*command);
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
