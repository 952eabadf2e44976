// pmkvq judge: grade responses against reference answers.
#include "pmkvq/research/eval/scored_responses.h"
#include "pmkvq/research/judge/judged_text.h"

#include <fmt/format.h>

#include "commands.h"
#include "common_options.h"
#include "file_options.h"
#include "help_format.h"
#include "pmkvq/base/error.h"
#include "pmkvq/io/json.h"
#include "terminal.h"

namespace pmkvq::cli {
namespace {

struct Options {
  std::string responses;
  std::string cases;
  std::string json;
};

void JudgeCases(const Options& options) {
  std::vector<JudgedText> judged;
  int64_t num_correct = 0;
  for (const JudgeCase& row : LoadJudgeCases(options.cases)) {
    judged.push_back(JudgeText(row.response, row.gold));
    num_correct += judged.back().correct ? 1 : 0;
  }
  JsonWriter json;
  json.BeginObject().Key("correct").BeginArray();
  for (const JudgedText& row : judged) json.Bool(row.correct);
  json.EndArray().Key("extracted").BeginArray();
  for (const JudgedText& row : judged) json.String(row.extracted);
  json.EndArray().EndObject();
  WriteJson(options.json, json.text());
  if (options.json != "-") Print(fmt::format("correct: {} of {}\n", num_correct, judged.size()));
}

std::string Describe(const JudgeSummary& summary) {
  std::string text =
      fmt::format("{} problems, {} responses\n", summary.num_problems, summary.num_responses);
  text += fmt::format("pass@1              {:.2f} +- {:.2f} %\n", 100 * summary.pass_at_1,
                      100 * summary.standard_deviation);
  text += fmt::format("majority vote       {:.2f} %\n", 100 * summary.voting);
  text += fmt::format("mean output tokens  {:.1f}\n", summary.mean_output_tokens);
  text += fmt::format("cut by length       {:.2f} %\n", 100 * summary.cut_by_length);
  text += fmt::format("cut by budget       {:.2f} %\n", 100 * summary.cut_by_budget);
  return text;
}

void JudgeRun(const Options& options) {
  const JudgeSummary summary = JudgeResponses(LoadResponses(options.responses));
  JsonWriter json;
  json.BeginObject();
  json.Key("n").Int(summary.num_problems);
  json.Key("responses").Int(summary.num_responses);
  json.Key("pass_at_1").Number(summary.pass_at_1);
  json.Key("std").Number(summary.standard_deviation);
  json.Key("voting").Number(summary.voting);
  json.Key("mean_output_tokens").Number(summary.mean_output_tokens);
  json.Key("cut_by_length").Number(summary.cut_by_length);
  json.Key("cut_by_budget").Number(summary.cut_by_budget);
  json.EndObject();
  WriteJson(options.json, json.text());
  if (options.json != "-") Print(Describe(summary));
}

void Judge(const Options& options) {
  if (options.cases.empty() == options.responses.empty()) {
    throw CLI::ValidationError("judge",
                               fmt::format("found {} of DIR and --cases, expected exactly one",
                                           options.cases.empty() ? "none" : "both"));
  }
  if (options.cases.empty()) {
    JudgeRun(options);
  } else {
    JudgeCases(options);
  }
}

}  // namespace

void AddJudge(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("judge", "grade responses against reference answers");
  CLI::Option* responses =
      NamesFile(command->add_option("responses", options->responses,
                                    "response file of eval, or a folder of such .jsonl files"),
                FileKind::kInputs);
  NamesFile(command->add_option("--cases", options->cases,
                                ".jsonl with response and gold: grade each row by itself"),
            FileKind::kInput)
      ->excludes(responses);
  AddJson(*command, options->json, "write the result as JSON");
  AddExamples(*command, {"pmkvq judge results/mine", "pmkvq judge --cases cases.jsonl --json -"});
  command->callback([options] { Judge(*options); });
}

}  // namespace pmkvq::cli
