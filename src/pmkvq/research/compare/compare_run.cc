#include "pmkvq/research/compare/compare_run.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <utility>

#include "pmkvq/base/error.h"
#include "pmkvq/io/file.h"
#include "pmkvq/kv/plan.h"
#include "pmkvq/kv/spec/packed_spec.h"
#include "pmkvq/research/compare/compare_files.h"
#include "pmkvq/research/compare/compare_list.h"
#include "pmkvq/research/eval/fan_out.h"

namespace pmkvq {
namespace {

void CheckCompareOptions(const CompareOptions& options) {
  if (options.specs.empty()) throw InvalidInput("--kv", "found none, expected one SPEC or more");
  if (options.budget_bytes.empty()) {
    throw InvalidInput("--kv-budget", "found none, expected what one sequence may take");
  }
  std::set<std::string> specs;
  for (const std::string& spec : options.specs) {
    if (!specs.insert(spec).second) {
      throw InvalidInput("--kv", fmt::format("'{}' is given twice", spec));
    }
  }
  std::set<int64_t> budgets;
  for (const int64_t bytes : options.budget_bytes) {
    if (bytes <= 0 || !budgets.insert(bytes).second) {
      throw InvalidInput("--kv-budget",
                         fmt::format("found {} bytes {}", bytes, bytes <= 0 ? "" : "twice"));
    }
  }
  if (!options.against.empty() && !specs.contains(options.against)) {
    throw InvalidInput("--against",
                       fmt::format("found '{}', expected one of the --kv", options.against));
  }
}

}  // namespace

// What all jobs of a Run have in common.
struct ComparisonRun::Work {
  const Benchmark& benchmark;
  const std::vector<ProblemRow>& problems;
  const std::shared_ptr<const Tokenizer>& tokenizer;
  const EvaluationOptions& evaluation;
  CompareProgress* progress;
  const CancelFlag* cancel;

  int64_t num_expected() const { return std::ssize(problems) * evaluation.num_responses; }
};

ComparisonRun::ComparisonRun(CompareOptions options, std::shared_ptr<const Model> model)
    : options_(std::move(options)), model_(std::move(model)) {
  CheckCompareOptions(options_);
  max_len_ = options_.engine.max_len > 0 ? options_.engine.max_len
                                         : model_->config().max_position_embeddings;
  const auto named = std::find_if(options_.specs.begin(), options_.specs.end(), IsBaselineMethod);
  baseline_ = MakeJob(named == options_.specs.end() ? "fp16" : *named, 0);
  for (const int64_t budget : options_.budget_bytes) {
    for (const std::string& spec : options_.specs) {
      if (spec != baseline_.spec) jobs_.push_back(MakeJob(spec, budget));
    }
  }
}

CompareJob ComparisonRun::MakeJob(const std::string& spec, int64_t budget_bytes) const {
  CompareJob job;
  job.spec = spec;
  job.budget_bytes = budget_bytes;
  job.engine = options_.engine;
  job.engine.kv.spec = spec;
  job.engine.kv.budget_bytes = budget_bytes;
  job.engine.kv = ApplySpecKeys(job.engine.kv);
  const KvOptions& kv = job.engine.kv;
  if (kv.plan != nullptr) {
    CheckPlanMatches(*kv.plan, model_->checkpoint().Identity(), kv.plan_path);
  }
  // A SPEC that is wrong shows now, not after hours.
  if (budget_bytes > 0) {
    const KvRequirements requirements = RequirementsOf(*model_, job.engine);
    job.fit = FitBudget(kv, requirements, requirements.max_len);
  } else {
    job.fit.starts = job.fit.holds = CheckKvOptions(*model_, job.engine).total_bytes() > 0;
  }
  return job;
}

MethodRun ComparisonRun::RunJob(const CompareJob& job, const Work& work) const {
  MethodRun run;
  run.method = job.spec;
  run.is_simulated = IsSimulatedMethod(job.spec);
  run.needed_bytes = job.fit.needed_bytes;
  run.needed_tokens = job.fit.needed_bytes > 0 ? max_len_ : 0;
  run.num_expected = work.num_expected();
  if (!IsRun(job)) {
    run.status = MethodStatus::kDoesNotFit;
    return run;
  }
  if (job.budget_bytes > 0 && AnyIsCancelled(work.cancel)) {
    run.status = MethodStatus::kInterrupted;
    return run;
  }
  EvaluationOptions evaluation = work.evaluation;
  evaluation.engine = job.engine;
  const KvOptions& kv = job.engine.kv;
  SharedRun shared(
      options_.out.empty() ? "" : JoinPath(options_.out, RunFolder(job.spec, job.budget_bytes)),
      MakeRunSettings(work.benchmark, *model_, evaluation,
                      kv.plan != nullptr ? kv.plan_path : std::string()),
      options_.shard, options_.ranks);
  const EvaluationOptions part = shared.PartOf(evaluation);
  ResponseLog& log = shared.log();
  std::vector<Response> present;
  int64_t num_shown = run.num_expected;
  if (part.shard.is_whole()) {
    present = ResponsesTo(log, work.problems, evaluation.num_responses);
  } else {
    num_shown = NumPending(*work.tokenizer, work.problems, part, log);
  }
  double seconds = 0;
  if (std::ssize(present) < num_shown) {
    CompareProgress* const progress = work.progress;
    if (progress != nullptr) progress->Begin(job, num_shown, present);
    const ResponseCallback report = [&](const Response& response) {
      if (progress != nullptr) progress->OnResponse(response);
    };
    seconds = Evaluate(model_, work.tokenizer, work.benchmark.grading, work.problems, part, log,
                       progress == nullptr ? nullptr : progress->observer(), report, work.cancel);
    if (progress != nullptr) progress->End();
  }
  shared.Finish(0, seconds);
  run.outcomes = OutcomesOf(ResponsesTo(log, work.problems, evaluation.num_responses));
  if (std::ssize(run.outcomes) < run.num_expected) run.status = MethodStatus::kInterrupted;
  return run;
}

// Ranks go on or end together.
bool ComparisonRun::AnyIsCancelled(const CancelFlag* cancel) const {
  const bool mine = IsCancelled(cancel);
  return options_.ranks == nullptr ? mine : !options_.ranks->AllTrue(!mine);
}

// So that compare --from can make the same table again.
void ComparisonRun::SaveList(const Work& work) const {
  ComparisonList list;
  list.benchmark = work.benchmark.name;
  list.model = model_->checkpoint().Identity();
  for (const ProblemRow& problem : work.problems) list.problems.push_back(problem.id);
  list.num_responses = work.evaluation.num_responses;
  list.against = options_.against;
  list.values_per_token = model_->kv_geometry().values();
  list.runs.push_back({baseline_.spec, 0, true, 0, 0});
  for (const CompareJob& job : jobs_) {
    list.runs.push_back({job.spec, job.budget_bytes, IsRun(job), job.fit.needed_bytes,
                         job.fit.needed_bytes > 0 ? max_len_ : 0});
  }
  const std::string path = JoinPath(options_.out, "comparison.json");
  if (FileExists(path)) list = MergeLists(list, ParseComparisonList(ReadFile(path), path));
  WriteFileAtomically(path, ComparisonListJson(list) + "\n");
}

Comparison ComparisonRun::Run(const Benchmark& benchmark, const std::vector<ProblemRow>& problems,
                              const std::shared_ptr<const Tokenizer>& tokenizer,
                              const EvaluationOptions& evaluation, CompareProgress* progress,
                              const CancelFlag* cancel) const {
  const Work work{benchmark, problems, tokenizer, evaluation, progress, cancel};
  const MethodRun baseline = RunJob(baseline_, work);
  const bool is_first = options_.ranks == nullptr || options_.ranks->rank() == 0;
  if (!options_.out.empty() && is_first) SaveList(work);
  if (baseline.status == MethodStatus::kInterrupted) ThrowIfCancelled(cancel, "compare");
  std::vector<BudgetRuns> budgets;
  for (const int64_t bytes : options_.budget_bytes) {
    BudgetRuns& budget = budgets.emplace_back();
    budget.budget_bytes = bytes;
    for (const CompareJob& job : jobs_) {
      if (job.budget_bytes == bytes) budget.runs.push_back(RunJob(job, work));
    }
  }

  const UncancelledScope whole;  // What is finished makes a table, too.
  // What the whole comparison has in common; sampling and limits are those of the baseline.
  EvaluationOptions common = evaluation;
  common.engine = baseline_.engine;
  const RunSettings settings = MakeRunSettings(benchmark, *model_, common, "");
  Comparison comparison;
  comparison.benchmark = benchmark.name;
  comparison.model = settings.model_identity;
  comparison.baseline = baseline.method;
  comparison.against = options_.against;
  comparison.num_ranks = options_.ranks == nullptr ? 1 : options_.ranks->size();
  comparison.num_problems = std::ssize(problems);
  comparison.num_responses = evaluation.num_responses;
  comparison.max_len = max_len_;
  comparison.values_per_token = model_->kv_geometry().values();
  for (const auto& option : settings.options) {
    if (option.first != "--kv-budget") comparison.settings.push_back(option);
  }
  comparison.tables = MakeTables(baseline, budgets, options_.against);
  return comparison;
}

}  // namespace pmkvq
