// pmkvq eval: solve a problem set with one cache method and count the right answers.
#include <fmt/format.h>

#include <optional>

#include "commands.h"
#include "common_options.h"
#include "pmkvq/eval/solve.h"
#include "pmkvq/io/file.h"
#include "pmkvq/io/json.h"
#include "solve_table.h"
#include "terminal.h"

namespace pmkvq::cli {
namespace {

struct Options {
  std::string model;
  std::string data;
  std::string chat_template;
  std::string out;
  std::string json;
  int64_t per_cell = 0;
  int64_t min_level = 0;
  int64_t max_level = 1000;
  int64_t batch = 16;
  int64_t max_tokens = 0;
  uint64_t seed = 42;
  SamplingParams sampling;
  KvCommandOptions kv;
};

std::string ResponseLine(const SolvedProblem& solved) {
  const Completion& completion = solved.completion;
  JsonWriter json;
  json.BeginObject();
  json.Key("id").String(solved.problem.id);
  json.Key("task").String(solved.problem.task);
  json.Key("level").Int(solved.problem.level);
  json.Key("answer").String(solved.problem.answer);
  json.Key("extracted").String(solved.extracted);
  json.Key("correct").Bool(solved.correct);
  json.Key("finish_reason").String(NameOf(completion.finish_reason));
  json.Key("output_tokens").Int(static_cast<int64_t>(completion.output_ids.size()));
  json.Key("peak_bytes").Int(completion.kv.peak_bytes);
  json.Key("budget_bytes").Int(completion.kv.budget_bytes);
  json.Key("text").String(completion.text);
  json.EndObject();
  return json.text();
}

void WriteSummary(const Options& options, const SolveSummary& summary) {
  if (options.json.empty()) return;
  JsonWriter json;
  json.BeginObject();
  json.Key("kv").String(options.kv.spec);
  json.Key("plan").String(options.kv.plan_path);
  json.Key("policy").String(options.kv.policy);
  json.Key("problems").Int(summary.num_problems);
  json.Key("correct").Int(summary.num_correct);
  json.Key("output_tokens").Int(summary.output_tokens);
  json.Key("peak_bytes").Int(summary.peak_bytes);
  json.Key("budget_bytes").Int(summary.budget_bytes);
  json.Key("cut_by_length").Int(summary.num_cut_by_length);
  json.Key("cut_by_budget").Int(summary.num_cut_by_budget);
  json.Key("longest_pause_us").Number(summary.longest_pause_us);
  json.Key("seconds").Number(summary.seconds);
  json.EndObject();
  WriteJson(options.json, json.text());
}

void Evaluate(const Options& options) {
  CheckFileName(options.out, "--out");
  CheckWritable(options.out);
  CheckWritable(options.json);
  const std::shared_ptr<Model> model = Model::Load(options.model);
  const auto tokenizer = Tokenizer::Load(options.model);
  const std::vector<ProblemRow> problems = SelectProblems(
      LoadProblems(options.data), options.per_cell, options.min_level, options.max_level);
  if (problems.empty()) throw InvalidInput(options.data, "no problem is left after the selection");
  SolveOptions solve;
  solve.engine = options.kv.Resolve(options.batch);
  CheckPlan(solve.engine, options.kv, *model);
  solve.chat_template = ResolveChatTemplate(options.chat_template, options.model);
  solve.sampling = options.sampling;
  solve.seed = options.seed;
  solve.max_tokens = options.max_tokens;

  std::optional<AtomicFileWriter> out;
  if (!options.out.empty()) out.emplace(options.out);
  ProgressBar progress;
  progress.Begin(options.kv.spec, static_cast<int64_t>(problems.size()), 0);
  int64_t num_correct = 0;
  int64_t num_done = 0;
  const auto on_solved = [&](const SolvedProblem& solved) {
    num_correct += solved.correct ? 1 : 0;
    ++num_done;
    if (out) {
      const std::string line = ResponseLine(solved) + "\n";
      out->Append(line.data(), line.size());
    }
    progress.SetNote(fmt::format("solved {}/{}", num_correct, num_done));
    progress.Advance(1);
  };
  double seconds = 0;
  const std::vector<SolvedProblem> solved = SolveProblems(
      model, tokenizer, problems, solve, nullptr, on_solved, InterruptFlag(), &seconds);
  progress.End();
  if (out) out->Commit();
  const SolveSummary summary = Summarize(solved, seconds);
  WriteSummary(options, summary);
  if (options.json != "-") Print(FormatSolveTable({{options.kv.spec, summary}}));
  ExitIfInterrupted("eval");
}

}  // namespace

void AddEval(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("eval", "solve a problem set, count right boxed answers");
  command->add_option("--model", options->model, "model folder")->required();
  command->add_option("--data", options->data, ".jsonl with problem and answer")->required();
  command->add_option("--per-cell", options->per_cell, "problems per task and level (0: all)")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--min-level", options->min_level, "least level")->capture_default_str();
  command->add_option("--max-level", options->max_level, "greatest level")->capture_default_str();
  command->add_option("--batch", options->batch, "problems decoded together")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  command
      ->add_option("--max-tokens", options->max_tokens,
                   "output tokens (0: by the reference chain, or as many as fit)")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--temperature", options->sampling.temperature, "0: greedy")
      ->check(CLI::Range(0.0, 100.0))
      ->capture_default_str();
  command->add_option("--top-p", options->sampling.top_p, "1: off")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  command->add_option("--seed", options->seed, "seed; each problem has its own stream")
      ->capture_default_str();
  command->add_option("--chat-template", options->chat_template, "see pmkvq run --help");
  command->add_option("--out", options->out, "write one JSON line per response");
  command->add_option("--json", options->json, "write the summary as JSON (- for stdout)");
  options->kv.Register(*command);
  command->callback([options] { Evaluate(*options); });
}

}  // namespace pmkvq::cli
