// pmkvq eval: a benchmark with one cache method, response by response, resumable.
#include <fmt/format.h>

#include "benchmark_options.h"
#include "commands.h"
#include "common_options.h"
#include "device_cache.h"
#include "fan_out_options.h"
#include "file_options.h"
#include "help_format.h"
#include "leaders.h"
#include "pmkvq/base/wrap_text.h"
#include "pmkvq/io/file.h"
#include "pmkvq/io/json.h"
#include "pmkvq/research/eval/fan_out.h"
#include "ranks.h"
#include "solve_table.h"
#include "terminal.h"
#include "weight_options.h"

namespace pmkvq::cli {
namespace {

struct Options {
  BenchmarkCommandOptions run;
  std::string out;
  std::string json;
  WeightCommandOptions weights;
  KvCommandOptions kv;
  FanOutCommandOptions fan_out;
};

// The summary, and one column per property with an entry per response, for paired tests.
std::string SummaryJson(const Options& options, const std::vector<Response>& responses,
                        const ResponseSummary& summary, const FanOutFigures& figures) {
  JsonWriter json;
  json.BeginObject();
  json.Key("benchmark").String(options.run.benchmark);
  json.Key("kv").String(options.kv.spec);
  json.Key("plan").String(options.kv.plan_path);
  json.Key("policy").String(NameOf(options.kv.settings.policy));
  json.Key("problems").Int(summary.judged.num_problems);
  json.Key("responses").Int(summary.judged.num_responses);
  json.Key("correct").Int(summary.num_correct);
  json.Key("pass_at_1").Number(summary.judged.pass_at_1);
  json.Key("interval")
      .Array(std::vector<double>{summary.judged.interval.low, summary.judged.interval.high});
  json.Key("std").Number(summary.judged.standard_deviation);
  json.Key("voting").Number(summary.judged.voting);
  json.Key("output_tokens").Int(summary.output_tokens);
  json.Key("mean_output_tokens").Number(summary.judged.mean_output_tokens);
  json.Key("peak_bytes").Int(summary.peak_bytes);
  if (summary.kept_share < 1) json.Key("kept_share").Number(summary.kept_share);
  json.Key("budget_bytes").Int(summary.budget_bytes);
  json.Key("cut_by_length").Int(summary.num_cut_by_length);
  json.Key("cut_by_budget").Int(summary.num_cut_by_budget);
  json.Key("prompts_too_long").Int(summary.num_prompts_too_long);
  json.Key("longest_pause_us").Number(summary.longest_pause_us);
  json.Key("seconds").Number(figures.seconds);
  json.Key("ranks").Int(Ranks::OfProcess().size());
  json.Key("responses_per_second").Number(figures.responses_per_second());
  json.Key("columns").BeginObject();
  const auto column = [&](const char* name, auto write) {
    json.Key(name).BeginArray();
    for (const Response& response : responses) write(response);
    json.EndArray();
  };
  column("id", [&](const Response& response) { json.String(response.id); });
  column("level", [&](const Response& response) { json.Int(response.level); });
  column("response", [&](const Response& response) { json.Int(response.response); });
  column("correct", [&](const Response& response) { json.Bool(response.correct); });
  column("output_tokens", [&](const Response& response) { json.Int(response.output_tokens); });
  column("finish_reason", [&](const Response& response) { json.String(response.finish_reason); });
  column("peak_bytes", [&](const Response& response) { json.Int(response.peak_bytes); });
  if (summary.kept_share < 1) {
    column("kept_share", [&](const Response& response) { json.Number(response.kept_share); });
  }
  column("decode_seconds", [&](const Response& response) { json.Number(response.decode_seconds); });
  json.EndObject().EndObject();
  return json.text();
}

std::string Describe(const ResponseSummary& summary) {
  constexpr size_t kColumns = 78;  // Those of the table above it.
  std::string text =
      WrapList(fmt::format("pass@1 {:.2f} +- {:.2f} % (95 %: {:.1f} to {:.1f}), majority vote "
                           "{:.2f} %, {:.1f} output "
                           "tokens on average, cut by length {}, by budget {}",
                           100 * summary.judged.pass_at_1, 100 * summary.judged.standard_deviation,
                           100 * summary.judged.interval.low, 100 * summary.judged.interval.high,
                           100 * summary.judged.voting, summary.judged.mean_output_tokens,
                           summary.num_cut_by_length, summary.num_cut_by_budget),
               kColumns) +
      "\n";
  if (summary.num_prompts_too_long > 0) {
    text += WrapList(fmt::format("of these, {} whose prompt left no room for an answer (--max-len, "
                                 "--kv-budget): unsolved",
                                 summary.num_prompts_too_long),
                     kColumns) +
            "\n";
  }
  return text;
}

// "2 ranks: 40 responses in 20.1 s, 1.99 per second; ranks were busy 98.2 % of the time"
std::string DescribeFanOut(const FanOutFigures& figures) {
  return fmt::format(
      "{} ranks: {} responses in {:.1f} s, {:.3g} per second; ranks were busy {:.1f} % of the "
      "time\n",
      Ranks::OfProcess().size(), figures.num_responses, figures.seconds,
      figures.responses_per_second(), 100 * figures.busy_share);
}

void Report(const Options& options, const std::vector<Response>& responses,
            const FanOutFigures& figures) {
  const ResponseSummary summary = SummarizeResponses(responses);
  const std::string json = SummaryJson(options, responses, summary, figures);
  if (!options.out.empty()) {
    // A run that found everything there knows nothing of the time that it took.
    const std::string path = JoinPath(options.out, "summary.json");
    if (figures.seconds > 0 || !FileExists(path)) WriteFileAtomically(path, json + "\n");
  }
  WriteJson(options.json, json);
  if (options.json == "-") return;
  const double rate =
      figures.seconds > 0 ? static_cast<double>(figures.num_tokens) / figures.seconds : 0;
  Print(FormatSolveTable({{options.kv.spec, summary, rate}}) + Describe(summary) +
        (figures.num_ranks > 1 ? DescribeFanOut(figures) : ""));
}

// "3 of 20 responses are there, 5 more begun (2310 tokens)"
std::string Progress(int64_t num_present, int64_t total, const UnfinishedResponses& unfinished) {
  std::string text = fmt::format("{} of {} responses are there", num_present, total);
  int64_t num_tokens = 0;
  for (const auto& [key, begun] : unfinished.begun()) num_tokens += std::ssize(begun.tokens);
  if (num_tokens > 0) {
    text += fmt::format(", {} more begun ({} tokens)", unfinished.begun().size(), num_tokens);
  }
  return text;
}

// What a part says that is not the last one.
std::string DescribePart(const Options& options, const FanOutFigures& figures, int64_t num_present,
                         int64_t total) {
  return fmt::format(
      "{}: part {} is done, {} responses in {:.1f} s, {:.3g} per second; {} of {} are there, {}",
      options.out, TextOf(options.fan_out.shard), figures.num_responses, figures.seconds,
      figures.responses_per_second(), num_present, total,
      num_present == total ? "a part that still runs prints the summary"
                           : "the last part prints the summary");
}

void Run(const Options& options) {
  Communicator* const ranks = options.fan_out.Open(!options.out.empty());
  const Benchmark benchmark = options.run.Load();
  const std::vector<ProblemRow> problems =
      SelectProblems(benchmark.problems, options.run.selection);
  const std::shared_ptr<const Model> model =
      options.weights.Load(options.run.model, options.kv.threads, [&](const Model& loaded) {
        return CacheBytesOnDevice(loaded, options.kv.Parse(options.run.batch));
      });
  const auto tokenizer = options.run.tokenizer.Load(options.run.model);
  const SpecEngineOptions engine = options.kv.Resolve(options.run.batch);
  CheckKvOptions(*model, engine);  // Before the folder is made.
  options.kv.PrintPlanHint(engine.kv, options.run.model);
  const EvaluationOptions evaluation = options.run.Resolve(engine, *model);
  const int64_t total = std::ssize(problems) * evaluation.num_responses;

  // The plan in use: that of --plan, or the SPEC's own.
  const RunSettings settings =
      MakeRunSettings(benchmark, *model, evaluation,
                      engine.kv.plan != nullptr ? engine.kv.plan_path : std::string());
  SharedRun run(options.out, settings, options.fan_out.shard, ranks);
  ResponseLog& log = run.log();
  const std::vector<Response> present = ResponsesTo(log, problems, evaluation.num_responses);
  if (!present.empty() || !log.unfinished().begun().empty()) {
    PrintError(fmt::format("{}: {}{}", options.out,
                           Progress(std::ssize(present), total, log.unfinished()),
                           std::ssize(present) == total ? "" : ", going on"));
  }
  const EvaluationOptions part = run.PartOf(evaluation);
  const bool is_part = !part.shard.is_whole();
  const int64_t num_pending =
      is_part ? NumPending(*tokenizer, problems, part, log) : total - std::ssize(present);
  double seconds = 0;
  int64_t num_new_tokens = 0;
  if (num_pending > 0) {
    EvalProgress progress(options.kv.spec + options.fan_out.Suffix(), is_part ? num_pending : total,
                          is_part ? std::vector<Response>() : present);
    seconds = Evaluate(
        model, tokenizer, benchmark.grading, problems, part, log, &progress,
        [&](const Response& response) { progress.Add(response); }, InterruptFlag());
    progress.End();
    num_new_tokens = progress.num_tokens();
  }
  const FanOutFigures figures = run.Finish(num_new_tokens, seconds);
  if (!IsFirstLeader()) return ExitIfInterrupted("eval");
  const std::vector<Response> responses = ResponsesTo(log, problems, evaluation.num_responses);
  const bool is_complete = std::ssize(responses) == total;
  if (options.fan_out.is_part() && !IsCancelled(InterruptFlag()) &&
      !(is_complete && run.is_merged())) {
    PrintError(DescribePart(options, figures, std::ssize(responses), total));
    return;
  }
  if (!is_complete) {
    if (options.out.empty()) {
      PrintError("nothing is kept; with --out DIR the same command goes on after a Ctrl-C");
    } else {
      PrintError(fmt::format("{}: {}; the same command goes on", options.out,
                             Progress(std::ssize(responses), total, log.unfinished())));
    }
    ExitIfInterrupted("eval");
  }
  Report(options, responses, figures);
}

}  // namespace

void AddEval(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("eval", "solve a benchmark with one cache method");
  options->run.Register(*command);
  command->get_option("--model")->required();
  NamesFile(command->add_option(
                "--out", options->out,
                "folder for the responses; the same command again goes on with what is missing"),
            FileKind::kOutputFolder);
  AddJson(*command, options->json, "write the summary as JSON");
  options->fan_out.Register(*command, "responses", "--out");
  options->weights.RegisterWithRanks(*command);
  options->kv.Register(*command);
  AddExamples(
      *command,
      {"pmkvq eval --model models/longcot-10m --per-cell 1 --kv static-4 --out results/mine",
       "pmkvq eval --model MODEL --benchmark aime --data aime/ --kv pm-kvq --plan plan.json",
       "pmkvq eval --model MODEL --kv static-4 --out results/mine --shard 2/8"});
  command->callback([options] { Run(*options); });
}

}  // namespace pmkvq::cli
