// pmkvq demo: the shipped model solves problems while its KV cache steps down inside a budget.
#include <fmt/format.h>

#include <filesystem>
#include <stdexcept>

#include "commands.h"
#include "common_options.h"
#include "file_options.h"
#include "help_format.h"
#include "option_values.h"
#include "pmkvq/base/byte_size.h"
#include "pmkvq/io/file.h"
#include "pmkvq/research/calib/calibrate.h"
#include "pmkvq/research/eval/evaluation.h"
#include "solve_table.h"
#include "terminal.h"
#include "weight_options.h"

namespace pmkvq::cli {
namespace {

constexpr char kShippedModel[] = "models/longcot-10m";

struct Options {
  std::string model = kShippedModel;
  std::string plan;
  int64_t num_problems = 5;
  int threads = 0;
};

// The demo's plan: half of the blocks end at 4 bits at most, calibrated on real long chains with
// positions as they are.
constexpr int64_t kMaxLen = 4096;
constexpr double kBudgetMib = 4.9;

// Prints text as it comes, and a line about the cache whenever page widths change.
class LadderObserver : public EngineObserver {
 public:
  void Attach(const Engine* engine) { engine_ = engine; }

  void OnToken(RequestId id, int32_t, const std::string& text) override {
    Print(text);
    if (engine_ == nullptr) return;
    const std::optional<SequenceId> seq = engine_->SequenceOf(id);
    if (!seq) return;
    const KvSequenceStats kv = engine_->store().SequenceStats(*seq);
    status_.Update(fmt::format(" {} tokens | KV {} of {} | pages {}", kv.num_tokens,
                               FormatByteSize(kv.bytes), FormatByteSize(kv.budget_bytes),
                               FormatPages(kv.pages)));
    if (kv.num_tokens >= next_snapshot_) {
      snapshots_.push_back(kv);
      next_snapshot_ = kv.num_tokens + kSnapshotTokens;
    }
  }
  void OnFinished(const Completion& completion) override {
    snapshots_.push_back(completion.kv);
    Print("\n");
  }

  // One bar per snapshot: its length is the bytes, its letters the widths they stand at.
  std::string FormatLadder() const {
    std::string text =
        "tokens   KV bytes      pages at 16, 8, 4, 2 bits (one mark: 1/64 of all pages)\n";
    for (const KvSequenceStats& kv : snapshots_) {
      int64_t total = 0;
      for (const int64_t count : kv.pages) total += count;
      std::string bar;
      int64_t seen = 0;
      for (size_t i = 0; i < kWidths.size(); ++i) {
        seen += kv.pages[i];
        constexpr char kMarks[] = {'#', '8', '4', '2'};
        while (static_cast<int64_t>(bar.size()) * total < seen * kBarCells) bar += kMarks[i];
      }
      text += fmt::format("{:>6}   {:>10}    {}\n", kv.num_tokens, FormatByteSize(kv.bytes), bar);
    }
    return text;
  }

 private:
  static constexpr int64_t kSnapshotTokens = 256;
  static constexpr int64_t kBarCells = 64;

  const Engine* engine_ = nullptr;
  StatusLine status_;
  int64_t next_snapshot_ = kSnapshotTokens;
  std::vector<KvSequenceStats> snapshots_;
};

void CalibrateIfMissing(const Options& options, const Model& model, const Tokenizer& tokenizer) {
  if (FileExists(options.plan)) return;
  PrintError("no plan at " + options.plan + " yet: calibrating");
  StderrLog log;
  ProgressBar progress;
  CalibrateOptions calibrate;
  calibrate.samples.dataset = JoinPath(options.model, "calibration.jsonl");
  calibrate.samples.packing = Packing::kSingle;
  calibrate.samples.num_samples = 16;
  calibrate.samples.seq_len = 1024;
  calibrate.allocation.max_len = kMaxLen;
  calibrate.allocation.memory_budget_bytes = static_cast<int64_t>(kBudgetMib * 1048576.0);
  calibrate.num_threads = ResolveThreads(options.threads);
  calibrate.plan_path = options.plan;
  calibrate.progress = &progress;
  calibrate.log = &log;
  calibrate.cancel = InterruptFlag();
  Calibrate(calibrate, model, &tokenizer);
}

EvaluationOptions MakeEvaluationOptions(const Options& options, const std::string& spec,
                                        PolicyKind policy, const std::shared_ptr<const Plan>& plan,
                                        int64_t batch) {
  EvaluationOptions evaluation;
  evaluation.engine.kv.spec = spec;
  evaluation.engine.kv.plan = plan;
  evaluation.engine.kv.policy = policy;
  evaluation.engine.max_sequences = batch;
  evaluation.engine.max_len = kMaxLen;
  evaluation.engine.num_threads = ResolveThreads(options.threads);
  evaluation.chat_template = LoadChatTemplate(options.model);
  return evaluation;
}

// One problem, streamed, with the ladder of its cache.
void ShowOneProblem(const Options& options, const std::shared_ptr<const Model>& model,
                    const std::shared_ptr<const Tokenizer>& tokenizer,
                    const std::shared_ptr<const Plan>& plan, const ProblemRow& problem) {
  Print(fmt::format("== One problem, pm-kvq\n\n{}\n\n", problem.problem));
  const EvaluationOptions evaluation =
      MakeEvaluationOptions(options, "pm-kvq", PolicyKind::kLayerBudget, plan, 1);
  LadderObserver observer;
  Engine engine = OpenEngine(model, tokenizer, evaluation.engine);
  observer.Attach(&engine);
  Request request;
  request.prompt_ids =
      tokenizer->Encode(evaluation.chat_template.Render({{"user", problem.problem}}, true));
  const std::vector<Completion> completions =
      engine.Generate({std::move(request)}, &observer, InterruptFlag());
  ExitIfInterrupted("demo");
  const Completion& completion = completions.front();
  if (completion.finish_reason == FinishReason::kError) throw std::runtime_error(completion.error);
  Print(fmt::format("\nexpected answer: {}\n\n== Its KV cache\n\n{}\n", problem.answer,
                    observer.FormatLadder()));
  Print(fmt::format("peak {} of a budget of {}; longest pause caused by halving {:.2f} ms\n\n",
                    FormatByteSize(completion.kv.peak_bytes),
                    FormatByteSize(completion.kv.budget_bytes),
                    completion.longest_pause_us / 1000));
}

// The shipped model of the repository that this program was built in: a parent of its folder.
std::string ShippedModelOfProgram() {
  std::error_code error;
  std::filesystem::path folder = std::filesystem::read_symlink("/proc/self/exe", error);
  while (!error && folder.has_relative_path()) {
    folder = folder.parent_path();
    const std::filesystem::path model = folder / kShippedModel;
    if (FileExists(model / "config.json")) return model;
  }
  return "";
}

void Demo(const Options& given) {
  Options options = given;
  if (options.plan.empty()) options.plan = JoinPath(options.model, "plan.json");
  if (!FileExists(options.plan)) CheckWritable(options.plan);  // Before it is calibrated.
  const std::shared_ptr<const Model> model = LoadModel(options.model);
  const auto tokenizer = Tokenizer::Load(options.model);
  CalibrateIfMissing(options, *model, *tokenizer);
  const auto plan = std::make_shared<const Plan>(LoadPlan(options.plan));
  CheckPlanMatches(*plan, model->checkpoint().Identity(), options.plan);
  Print(fmt::format("plan {}\n{}\n", options.plan, FormatPlan(*plan)));

  // Longest chains first, in which the cache has to step down; one of every task, then the next.
  std::vector<ProblemRow> problems = LoadProblems(JoinPath(options.model, "heldout-40.jsonl"));
  const auto order = [](const ProblemRow& row) {
    return std::pair(-row.level, row.id.substr(row.id.rfind('-') + 1));
  };
  std::stable_sort(problems.begin(), problems.end(),
                   [&](const ProblemRow& a, const ProblemRow& b) { return order(a) < order(b); });
  if (options.num_problems < std::ssize(problems)) {
    problems.resize(static_cast<size_t>(options.num_problems));
  }
  ShowOneProblem(options, model, tokenizer, plan, problems.front());

  struct Method {
    std::string title;
    std::string spec;
    PolicyKind policy;
  };
  const std::vector<Method> methods = {
      {"fp16", "fp16", PolicyKind::kLayerBudget},
      {"pm-kvq, layer-budget", "pm-kvq", PolicyKind::kLayerBudget},
      {"pm-kvq, oldest-first", "pm-kvq", PolicyKind::kOldestFirst},
      {"static-2", "static-2", PolicyKind::kLayerBudget},
  };
  std::vector<SolveRow> rows;
  for (const Method& method : methods) {
    // Only pm-kvq has the plan's budgets; the budgets of the others hold the longest chain.
    const bool progressive = method.spec == "pm-kvq";
    const EvaluationOptions evaluation =
        MakeEvaluationOptions(options, method.spec, method.policy, progressive ? plan : nullptr, 8);
    ProgressBar progress;
    progress.Begin(method.title, std::ssize(problems), 0);
    ResponseLog log;
    const double seconds = Evaluate(
        model, tokenizer, Grading::kAnswer, problems, evaluation, log, nullptr,
        [&](const Response&) { progress.Advance(1); }, InterruptFlag());
    progress.End();
    ExitIfInterrupted("demo");
    const ResponseSummary summary = SummarizeResponses(log.responses());
    rows.push_back({method.title, summary, static_cast<double>(summary.output_tokens) / seconds});
  }
  Print(fmt::format("\n== {} held-out problems, greedy, 8 at a time\n\n{}", problems.size(),
                    FormatSolveTable(rows)));
}

}  // namespace

void AddDemo(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand(
      "demo", "solve held-out problems with fp16 and pm-kvq and compare; calibrates when needed");
  NamesFile(command->add_option("--model", options->model, "model folder with heldout-40.jsonl")
                ->capture_default_str(),
            FileKind::kModel);
  command->add_option("--plan", options->plan,
                      "plan file (default: plan.json of the model folder)");
  command->add_option("--problems", options->num_problems, "how many problems to solve")
      ->transform(WholeNumber(1, 40))
      ->capture_default_str();
  AddThreads(*command, options->threads);
  AddExamples(*command, {"pmkvq demo", "pmkvq demo --problems 1 --plan plan.json"});
  command->callback([options, command] {
    if (command->count("--model") == 0 && !FileExists(options->model)) {
      options->model = ShippedModelOfProgram();
    }
    if (options->model.empty()) {
      throw IoError(kShippedModel,
                    "no such folder; run in the repository, or name the model with --model");
    }
    if (options->plan == "-") {
      throw CLI::ValidationError("--plan", "found '-', expected the name of a file");
    }
    Demo(*options);
  });
}

}  // namespace pmkvq::cli
