// pmkvq eval: a benchmark with one cache method, response by response, resumable.
#include <fmt/format.h>

#include <optional>

#include "commands.h"
#include "common_options.h"
#include "pmkvq/eval/benchmark.h"
#include "pmkvq/eval/evaluation.h"
#include "pmkvq/io/file.h"
#include "pmkvq/io/json.h"
#include "sampling_options.h"
#include "solve_table.h"
#include "terminal.h"

namespace pmkvq::cli {
namespace {

struct Options {
  std::string model;
  std::string benchmark = "longcot";
  std::string data;
  std::string chat_template;
  std::string out;
  std::string json;
  ProblemSelection selection;
  int64_t batch = 16;
  std::optional<int64_t> num_responses;  // Empty: as the benchmark has it.
  std::optional<int64_t> max_tokens;
  SamplingCommandOptions sampling;
  KvCommandOptions kv;
};

// Shows solved responses and the speed of this run beside the bar.
class EvalProgress : public EngineObserver {
 public:
  EvalProgress(const std::string& title, int64_t total, const std::vector<Response>& present)
      : num_done_(static_cast<int64_t>(present.size())) {
    for (const Response& response : present) num_correct_ += response.correct ? 1 : 0;
    bar_.Begin(title, total, num_done_);
  }

  void OnToken(RequestId, int32_t, const std::string&) override {
    ++num_tokens_;
    // Long chains finish rarely; the bar moves on with their tokens.
    if (num_tokens_ % kTokensPerUpdate == 0) Update(0);
  }
  void OnHalving(RequestId, const HalvingEvent&) override {}
  void OnFinished(const Completion&) override {}

  void Add(const Response& response) {
    ++num_done_;
    num_correct_ += response.correct ? 1 : 0;
    Update(1);
  }
  void End() { bar_.End(); }

  int64_t num_tokens() const { return num_tokens_; }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr int64_t kTokensPerUpdate = 16;

  void Update(int64_t units) {
    const double seconds = std::chrono::duration<double>(Clock::now() - start_).count();
    bar_.SetNote(fmt::format("solved {}/{}  {:.0f} tok/s", num_correct_, num_done_,
                             static_cast<double>(num_tokens_) / seconds));
    bar_.Advance(units);
  }

  ProgressBar bar_;
  int64_t num_done_ = 0;
  int64_t num_correct_ = 0;
  int64_t num_tokens_ = 0;
  Clock::time_point start_ = Clock::now();
};

// The summary, and one column per property with an entry per response, for paired tests.
std::string SummaryJson(const Options& options, const std::vector<Response>& responses,
                        const ResponseSummary& summary, double seconds) {
  JsonWriter json;
  json.BeginObject();
  json.Key("benchmark").String(options.benchmark);
  json.Key("kv").String(options.kv.spec);
  json.Key("plan").String(options.kv.plan_path);
  json.Key("policy").String(options.kv.policy);
  json.Key("problems").Int(summary.judged.num_problems);
  json.Key("responses").Int(summary.judged.num_responses);
  json.Key("correct").Int(summary.num_correct);
  json.Key("pass_at_1").Number(summary.judged.pass_at_1);
  json.Key("std").Number(summary.judged.standard_deviation);
  json.Key("voting").Number(summary.judged.voting);
  json.Key("output_tokens").Int(summary.output_tokens);
  json.Key("mean_output_tokens").Number(summary.judged.mean_output_tokens);
  json.Key("peak_bytes").Int(summary.peak_bytes);
  json.Key("budget_bytes").Int(summary.budget_bytes);
  json.Key("cut_by_length").Int(summary.num_cut_by_length);
  json.Key("cut_by_budget").Int(summary.num_cut_by_budget);
  json.Key("longest_pause_us").Number(summary.longest_pause_us);
  json.Key("seconds").Number(seconds);
  json.Key("columns").BeginObject();
  const auto column = [&](const char* name, auto write) {
    json.Key(name).BeginArray();
    for (const Response& response : responses) write(response);
    json.EndArray();
  };
  column("id", [&](const Response& response) { json.String(response.id); });
  column("response", [&](const Response& response) { json.Int(response.response); });
  column("correct", [&](const Response& response) { json.Bool(response.correct); });
  column("output_tokens", [&](const Response& response) { json.Int(response.output_tokens); });
  column("finish_reason", [&](const Response& response) { json.String(response.finish_reason); });
  column("peak_bytes", [&](const Response& response) { json.Int(response.peak_bytes); });
  json.EndObject().EndObject();
  return json.text();
}

Benchmark Load(const Options& options) {
  FindBenchmark(options.benchmark);
  if (options.data.empty() && options.benchmark != "longcot") {
    throw CLI::ValidationError(
        "--data", "found none, expected the file or folder of --benchmark " + options.benchmark);
  }
  return LoadBenchmark(options.benchmark, options.data.empty() ? options.model : options.data);
}

EvaluationOptions Resolve(const Options& options, const Model& model) {
  const BenchmarkInfo protocol = FindBenchmark(options.benchmark);
  EvaluationOptions evaluation;
  evaluation.engine = options.kv.Resolve(options.batch);
  CheckPlan(evaluation.engine, options.kv, model);
  evaluation.chat_template = ResolveChatTemplate(options.chat_template, options.model);
  evaluation.sampling = options.sampling.Resolve(protocol.temperature, protocol.top_p);
  evaluation.seed = options.sampling.seed;
  evaluation.num_responses = options.num_responses.value_or(protocol.num_responses);
  evaluation.max_tokens = options.max_tokens.value_or(protocol.max_tokens);
  const int64_t max_len = evaluation.engine.max_len > 0 ? evaluation.engine.max_len
                                                        : model.config().max_position_embeddings;
  if (evaluation.max_tokens >= max_len) {
    PrintError(
        fmt::format("--max-tokens {} is more than there is room for: prompt and output "
                    "together end at {} tokens ({})",
                    evaluation.max_tokens, max_len,
                    evaluation.engine.max_len > 0 ? "--max-len" : "the model's maximum"));
  }
  if (evaluation.num_responses > 1 && evaluation.sampling.temperature == 0) {
    PrintError(fmt::format("warning: --temperature 0 gives {} equal responses to each problem",
                           evaluation.num_responses));
  }
  return evaluation;
}

std::string Describe(const ResponseSummary& summary) {
  return fmt::format(
      "pass@1 {:.2f} +- {:.2f} %, majority vote {:.2f} %, {:.1f} output tokens on "
      "average, cut by length {}, by budget {}\n",
      100 * summary.judged.pass_at_1, 100 * summary.judged.standard_deviation,
      100 * summary.judged.voting, summary.judged.mean_output_tokens, summary.num_cut_by_length,
      summary.num_cut_by_budget);
}

void Report(const Options& options, const std::vector<Response>& responses, int64_t num_new_tokens,
            double seconds) {
  const ResponseSummary summary = SummarizeResponses(responses);
  const std::string json = SummaryJson(options, responses, summary, seconds);
  if (!options.out.empty()) {
    // A run that found everything there knows nothing of the time that it took.
    const std::string path = JoinPath(options.out, "summary.json");
    if (seconds > 0 || !FileExists(path)) WriteFileAtomically(path, json + "\n");
  }
  WriteJson(options.json, json);
  if (options.json == "-") return;
  const double rate = seconds > 0 ? static_cast<double>(num_new_tokens) / seconds : 0;
  Print(FormatSolveTable({{options.kv.spec, summary, rate}}) + Describe(summary));
}

void Run(const Options& options) {
  CheckFileName(options.out, "--out");
  CheckWritable(options.json);
  const Benchmark benchmark = Load(options);
  const std::vector<ProblemRow> problems = SelectProblems(benchmark.problems, options.selection);
  const std::shared_ptr<Model> model = Model::Load(options.model);
  const auto tokenizer = Tokenizer::Load(options.model);
  const EvaluationOptions evaluation = Resolve(options, *model);
  const int64_t total = std::ssize(problems) * evaluation.num_responses;

  std::optional<ResponseLog> log;
  if (options.out.empty()) {
    log.emplace();
  } else {
    log.emplace(options.out, MakeRunSettings(benchmark, *model, evaluation, options.kv.plan_path));
  }
  const std::vector<Response> present = ResponsesTo(*log, problems, evaluation.num_responses);
  if (!present.empty()) {
    PrintError(fmt::format("{}: {} of {} responses are there{}", options.out, present.size(), total,
                           std::ssize(present) == total ? "" : ", going on"));
  }
  double seconds = 0;
  int64_t num_new_tokens = 0;
  if (std::ssize(present) < total) {
    EvalProgress progress(options.kv.spec, total, present);
    seconds = Evaluate(
        model, tokenizer, benchmark.grading, problems, evaluation, *log, &progress,
        [&](const Response& response) { progress.Add(response); }, InterruptFlag());
    progress.End();
    num_new_tokens = progress.num_tokens();
  }
  const std::vector<Response> responses = ResponsesTo(*log, problems, evaluation.num_responses);
  if (std::ssize(responses) < total) {
    if (!options.out.empty()) {
      PrintError(fmt::format("{}: {} of {} responses are there; the same command goes on",
                             options.out, responses.size(), total));
    }
    ExitIfInterrupted("eval");
  }
  Report(options, responses, num_new_tokens, seconds);
}

std::string BenchmarkHelp() {
  std::string text = "what to solve:";
  for (const BenchmarkInfo& info : ListBenchmarks()) {
    text += "\n  " + info.name + ": " + info.description;
  }
  return text;
}

void RegisterSelection(CLI::App& command, ProblemSelection& selection) {
  const std::string group = "Problems";
  command.add_option("--start", selection.start, "first problem, counted from 0")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str()
      ->group(group);
  command.add_option("--end", selection.end, "one past the last problem")
      ->check(CLI::NonNegativeNumber)
      ->default_str("all")
      ->group(group);
  command
      .add_option("--per-cell", selection.per_cell,
                  "only so many of each task and level (0: all); --start and --end count these")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str()
      ->group(group);
  command.add_option("--min-level", selection.min_level, "least level")
      ->capture_default_str()
      ->group(group);
  command.add_option("--max-level", selection.max_level, "greatest level")
      ->capture_default_str()
      ->group(group);
}

}  // namespace

void AddEval(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("eval", "solve a benchmark with one cache method");
  command->add_option("--model", options->model, "model folder")->required();
  command->add_option("--benchmark", options->benchmark, BenchmarkHelp())->capture_default_str();
  command->add_option("--data", options->data, "file or folder of the benchmark");
  command
      ->add_option("--out", options->out,
                   "folder for the responses; the same command again goes on with what is missing")
      ->type_name("DIR");
  command->add_option("--json", options->json, "write the summary as JSON (- for stdout)");
  command->add_option("--batch", options->batch, "responses decoded together")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  command->add_option("--chat-template", options->chat_template, "see pmkvq run --help");
  RegisterSelection(*command, options->selection);
  const std::string group = "Sampling";
  command->add_option("-n,--n-responses", options->num_responses, "responses to each problem")
      ->check(CLI::Range(1, 4096))
      ->default_str("16; longcot, jsonl: 1")
      ->group(group);
  command
      ->add_option("--max-tokens", options->max_tokens,
                   "output tokens (0: by the reference chain, or as many as fit)")
      ->check(CLI::NonNegativeNumber)
      ->default_str("32768; longcot, jsonl: 0")
      ->group(group);
  options->sampling.Register(*command, "0.6; longcot, jsonl: 0", "0.95; longcot, jsonl: 1",
                             "each problem and response draws from a stream of its own");
  options->kv.Register(*command);
  command->callback([options] { Run(*options); });
}

}  // namespace pmkvq::cli
