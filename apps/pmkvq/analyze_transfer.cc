// pmkvq analyze transfer: bits placed by one task's sensitivities, measured on the others.
#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "analyze.h"
#include "file_options.h"
#include "help_format.h"
#include "option_values.h"
#include "pmkvq/base/error.h"
#include "pmkvq/research/analysis/placement.h"
#include "pmkvq/research/analysis/transfer.h"
#include "terminal.h"
#include "weight_options.h"

namespace pmkvq::cli {
namespace {

struct Options {
  AnalysisOptions common;
  std::vector<std::string> tasks;
  std::string plan;
  int64_t min_level = 4;
  int64_t max_level = 5;
  int64_t num_samples = 0;
  int64_t num_texts = 0;
  int64_t seq_len = 0;
  PlacementOptions placement;
};

using Texts = std::vector<std::vector<int32_t>>;

// Task names in the order of their first row, with their texts.
std::vector<std::pair<std::string, Texts>> TasksOfProblems(const Options& options,
                                                           const Tokenizer& tokenizer) {
  const std::string path = options.common.DataPath(options.common.data, "problems.jsonl", "--data");
  const ChatTemplate chat_template =
      ResolveChatTemplate(options.common.chat_template, options.common.model);
  std::vector<std::pair<std::string, Texts>> tasks;
  for (const ProblemRow& row : LoadProblems(path)) {
    if (row.reference_chain.empty() || row.level < options.min_level ||
        row.level > options.max_level) {
      continue;
    }
    auto task = std::find_if(tasks.begin(), tasks.end(),
                             [&](const auto& other) { return other.first == row.task; });
    if (task == tasks.end()) task = tasks.insert(tasks.end(), {row.task, {}});
    task->second.push_back(TextIds(tokenizer, ProblemText(row, chat_template)));
  }
  if (tasks.empty()) {
    throw InvalidInput(path, fmt::format("found no problem of levels {} to {} with a "
                                         "reference_chain, expected some",
                                         options.min_level, options.max_level));
  }
  return tasks;
}

std::vector<std::pair<std::string, Texts>> TasksOfFiles(const Options& options,
                                                        const Tokenizer* tokenizer,
                                                        const ModelConfig& config) {
  std::vector<std::pair<std::string, Texts>> tasks;
  for (const std::string& task : options.tasks) {
    const size_t equals = task.find('=');
    if (equals == 0 || equals == std::string::npos || equals + 1 == task.size()) {
      throw InvalidInput("--task", fmt::format("found '{}', expected NAME=FILE", task));
    }
    const std::string path = task.substr(equals + 1);
    tasks.emplace_back(task.substr(0, equals), Texts());
    for (TextRow& row : LoadTextRows(path)) {
      if (row.input_ids.empty() && tokenizer == nullptr) {
        throw InvalidInput(path,
                           "a row has text, and the model folder has no tokenizer; "
                           "expected input_ids");
      }
      tasks.back().second.push_back(row.input_ids.empty() ? TextIds(*tokenizer, row.text)
                                                          : std::move(row.input_ids));
      for (const int32_t id : tasks.back().second.back()) {
        if (id >= 0 && id < config.vocab_size) continue;
        throw InvalidInput(path, fmt::format("token id {} is out of range, expected 0 to {}", id,
                                             config.vocab_size - 1));
      }
    }
  }
  return tasks;
}

void PrintMatrix(const Transfer& transfer) {
  std::string text = fmt::format("{:<28}", "KL to fp16, measured on");
  for (const TaskTexts& task : transfer.tasks) text += fmt::format(" {:>10}", task.name);
  text += "\n";
  for (const TransferRow& row : transfer.rows) {
    text += fmt::format("{:<28}",
                        row.is_reference ? row.name : fmt::format("calibrated on {}", row.name));
    for (const CacheMeans& means : row.on_task) {
      text += fmt::format(" {:>10}", FormatNumber(means.kl));
    }
    text += row.k_bits.empty() ? "  even budgets\n"
                               : fmt::format("  {}\n", WidthsText(row.k_bits, row.v_bits));
  }
  Print(text);
}

void Run(const Options& options) {
  options.common.CheckOutputs();
  const bool quick = options.common.quick;
  const std::shared_ptr<const Model> model =
      options.common.weights.Load(options.common.model, options.placement.threads);
  TransferOptions transfer_options;
  TaskTextOptions texts;
  texts.seq_len = Chosen<int64_t>(options.seq_len, 0, quick, 2048, 320);
  texts.num_samples = Chosen<int64_t>(options.num_samples, 0, quick, 8, 1);
  texts.num_evaluation = Chosen<int64_t>(options.num_texts, 0, quick, 4, 1);
  // Budgets that bite within the texts.
  transfer_options.allocation = options.placement.Resolve(*model, texts.seq_len);
  if (transfer_options.allocation.max_len < texts.seq_len) {
    throw InvalidInput("--max-len",
                       fmt::format("found {}, expected --seq-len {} or more",
                                   transfer_options.allocation.max_len, texts.seq_len));
  }
  if (!options.plan.empty()) {
    const Plan plan = LoadPlan(options.plan);
    CheckPlanMatches(plan, model->checkpoint().Identity(), options.plan);
    transfer_options.key_scales = plan.key_scales;
  }
  transfer_options.chunk = options.placement.chunk;
  transfer_options.num_threads = ResolveThreads(options.placement.threads);
  ProgressBar progress;
  StderrLog log;
  transfer_options.progress = &progress;
  transfer_options.log = &log;
  transfer_options.cancel = InterruptFlag();

  const TokenizerCommandOptions& asked = options.common.tokenizer;
  const auto tokenizer = options.tasks.empty()
                             ? asked.Load(options.common.model)
                             : asked.LoadIfReadable(options.common.model, kNoText);
  std::vector<TaskTexts> tasks;
  for (const auto& [name, ids] : options.tasks.empty()
                                     ? TasksOfProblems(options, *tokenizer)
                                     : TasksOfFiles(options, tokenizer.get(), model->config())) {
    tasks.push_back(SplitTask(name, ids, texts));
  }
  const Transfer transfer = MeasureTransfer(model, std::move(tasks), transfer_options);
  if (options.common.json != "-") {
    PrintMatrix(transfer);
    Print("final widths are digits, one a block, from the first\n" + TransferVerdict(transfer) +
          "\n");
  }
  options.common.Write(TransferJson(transfer, options.common.command_line),
                       TransferPage(transfer, options.common.Origin(options.plan)));
}

}  // namespace

void AddTransfer(CLI::App& analyze, const std::string& command_line) {
  auto options = std::make_shared<Options>();
  options->common.command_line = command_line;
  CLI::App* command = analyze.add_subcommand(
      "transfer", "bits placed by the sensitivities of one task, measured on every task");
  options->common.Register(*command,
                           "problems with task, level and reference_chain, .jsonl (default: "
                           "problems.jsonl in the model folder)");
  command->add_option("--task", options->tasks,
                      "NAME=FILE, texts of one task (.jsonl with text or input_ids, or .txt); may "
                      "be given several times (default: the tasks of --data)");
  command->add_option("--min-level", options->min_level, "of --data: least level")
      ->capture_default_str();
  command->add_option("--max-level", options->max_level, "of --data: greatest level")
      ->capture_default_str();
  command->add_option("--n-samples", options->num_samples, "calibration sequences per task (0: 8)")
      ->transform(WholeNumber(0));
  command
      ->add_option("--n-texts", options->num_texts,
                   "evaluation texts per task, of other rows (0: 4)")
      ->transform(WholeNumber(0));
  command
      ->add_option("--seq-len", options->seq_len,
                   "tokens per calibration sequence; evaluation texts are cut here, too (0: 2048)")
      ->transform(WholeNumber(0, kMostTokens));
  NamesFile(
      command->add_option("--plan", options->plan, "use this plan's key scales in every cache"),
      FileKind::kInput);
  options->placement.Register(*command, "tokens that the budget is for (default: --seq-len)");
  AddExamples(
      *command,
      {"pmkvq analyze transfer --model models/longcot-10m --quick --html transfer.html",
       "pmkvq analyze transfer --model MODEL --task maths=a.jsonl --task code=b.jsonl --json -"});
  command->callback([options] { Run(*options); });
}

}  // namespace pmkvq::cli
