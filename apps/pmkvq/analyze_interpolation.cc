// pmkvq analyze interpolation: calibration with stretched positions, measured on long texts.
#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "analyze.h"
#include "file_options.h"
#include "help_format.h"
#include "option_values.h"
#include "pmkvq/base/error.h"
#include "pmkvq/research/analysis/interpolation.h"
#include "pmkvq/research/analysis/placement.h"
#include "pmkvq/research/analysis/texts.h"
#include "terminal.h"
#include "weight_options.h"

namespace pmkvq::cli {
namespace {

// What evaluation texts and budgets are for.
constexpr int64_t kFullMaxLen = 4096;
constexpr int64_t kQuickMaxLen = 640;

struct Options {
  AnalysisOptions common;
  std::string dataset;
  std::string pack = "concat";
  std::string seq_lens;
  std::string factors;
  int64_t num_samples = 0;
  int64_t num_texts = 0;
  int64_t grid = 0;
  uint64_t seed = 42;
  PlacementOptions placement;
};

// Distinct positive numbers, ascending.
std::vector<int64_t> ParseList(const std::string& text, const char* option, int64_t least) {
  std::vector<int64_t> values = ParseWholeNumbers(text, option, least, kMostTokens);
  std::sort(values.begin(), values.end());
  values.erase(std::unique(values.begin(), values.end()), values.end());
  return values;
}

// The longest chains that fit, as many of each task as of any other.
std::vector<std::vector<int32_t>> EvaluationTexts(const Options& options,
                                                  const Tokenizer& tokenizer, int64_t per_task,
                                                  int64_t max_len) {
  const std::string path = options.common.DataPath(options.common.data, "problems.jsonl", "--data");
  const ChatTemplate chat_template =
      ResolveChatTemplate(options.common.chat_template, options.common.model);
  std::map<std::string, std::vector<ProblemRow>> rows;
  for (ProblemRow& row : LoadProblems(path)) {
    if (!row.reference_chain.empty()) rows[row.task].push_back(std::move(row));
  }
  std::vector<std::vector<int32_t>> texts;
  for (auto& [task, problems] : rows) {
    std::stable_sort(problems.begin(), problems.end(), [](const auto& a, const auto& b) {
      return a.reference_chain.size() > b.reference_chain.size();
    });
    // In characters, so that few are tokenised; the longest of those that fit are near.
    std::vector<std::vector<int32_t>> fitting;
    for (const ProblemRow& problem : problems) {
      if (std::ssize(fitting) == 2 * per_task) break;
      std::vector<int32_t> ids = TextIds(tokenizer, ProblemText(problem, chat_template));
      if (std::ssize(ids) <= max_len) fitting.push_back(std::move(ids));
    }
    for (std::vector<int32_t>& ids : LongestTexts(fitting, per_task, max_len)) {
      texts.push_back(std::move(ids));
    }
  }
  if (texts.empty()) {
    throw InvalidInput(path, fmt::format("found no problem whose reference_chain fits --max-len "
                                         "{}, expected one at least",
                                         max_len));
  }
  return texts;
}

Samples SamplesOf(const Options& options, const Model& model, const Tokenizer& tokenizer,
                  int64_t seq_len, int64_t num_samples, LogSink* log) {
  SampleOptions samples;
  samples.dataset = options.common.DataPath(options.dataset, "calibration.jsonl", "--dataset");
  samples.packing = ParsePacking(options.pack);
  samples.num_samples = num_samples;
  samples.seq_len = seq_len;
  samples.seed = options.seed;
  return DrawSamples(samples, model.config(), &tokenizer, log);
}

void PrintTable(const Interpolation& interpolation) {
  std::string text =
      fmt::format("{:>8} {:>7} {:>17} {:>11} {:>11} {:>20}  {}\n", "context", "factor",
                  "calibration loss", "mean alpha", "KL to fp16", "KL, placement only", "bits");
  for (const InterpolationPoint& point : interpolation.points) {
    double alpha = 0;
    for (const double value : point.alpha) alpha += value;
    text +=
        fmt::format("{:>8} {:>7} {:>17} {:>11.3f} {:>11} {:>20}  {}\n", point.seq_len, point.factor,
                    FormatNumber(point.calibration_loss),
                    alpha / static_cast<double>(point.alpha.size()), FormatNumber(point.cache.kl),
                    FormatNumber(point.placement_only.kl), WidthsText(point.k_bits, point.v_bits));
  }
  Print(text);
}

void Run(const Options& options) {
  options.common.CheckOutputs();
  const bool quick = options.common.quick;
  const std::shared_ptr<const Model> model =
      options.common.weights.Load(options.common.model, options.placement.threads);
  const int64_t positions = model->config().max_position_embeddings;
  InterpolationOptions analysis;
  analysis.allocation =
      options.placement.Resolve(*model, quick ? kQuickMaxLen : std::min(kFullMaxLen, positions));
  analysis.factors = ParseList(
      Chosen<std::string>(options.factors, "", quick, "1,2,4,8,16,32", "1,4"), "--factors", 1);
  analysis.rep_scales.grid = static_cast<int>(Chosen<int64_t>(options.grid, 0, quick, 20, 4));
  analysis.chunk = options.placement.chunk;
  analysis.num_threads = ResolveThreads(options.placement.threads);
  ProgressBar progress;
  StderrLog log;
  analysis.progress = &progress;
  analysis.log = &log;
  analysis.cancel = InterruptFlag();

  const auto tokenizer = options.common.tokenizer.Load(options.common.model);
  for (const int64_t seq_len :
       ParseList(Chosen<std::string>(options.seq_lens, "", quick, "1024,2048", "128,256"),
                 "--seq-len", 2)) {
    if (seq_len > positions) {
      throw InvalidInput("--seq-len", fmt::format("found {}, expected at most the model's {} "
                                                  "positions",
                                                  seq_len, positions));
    }
    analysis.samples.push_back(SamplesOf(options, *model, *tokenizer, seq_len,
                                         Chosen<int64_t>(options.num_samples, 0, quick, 2, 1),
                                         &log));
  }
  analysis.texts =
      EvaluationTexts(options, *tokenizer, Chosen<int64_t>(options.num_texts, 0, quick, 1, 1),
                      analysis.allocation.max_len);
  if (quick) analysis.texts.resize(1);
  const Interpolation interpolation = MeasureInterpolation(model, analysis);
  if (options.common.json != "-") {
    PrintTable(interpolation);
    Print("bits: final widths are digits, one a block, from the first\n" +
          InterpolationVerdict(interpolation) + "\n");
  }
  options.common.Write(InterpolationJson(interpolation, options.common.command_line),
                       InterpolationPage(interpolation, options.common.Origin("")));
}

}  // namespace

void AddInterpolation(CLI::App& analyze, const std::string& command_line) {
  auto options = std::make_shared<Options>();
  options->common.command_line = command_line;
  CLI::App* command = analyze.add_subcommand(
      "interpolation", "calibration at stretched positions, measured on long texts");
  options->common.Register(*command,
                           "problems with reference_chain to evaluate on, .jsonl (default: "
                           "problems.jsonl in the model folder)");
  NamesFile(command->add_option("--dataset", options->dataset,
                                "calibration texts: .jsonl (text or input_ids) or .txt (default: "
                                "calibration.jsonl in the model folder)"),
            FileKind::kInput);
  command
      ->add_option("--pack", options->pack,
                   "concat: cut the joined texts; single: one text per sample")
      ->transform(OneOf({"concat", "single"}))
      ->capture_default_str();
  command->add_option("--factors", options->factors,
                      "position distances between tokens (default: 1,2,4,8,16,32)");
  command->add_option("--seq-len", options->seq_lens,
                      "tokens per calibration sequence, one or more (default: 1024,2048)");
  command->add_option("--n-samples", options->num_samples, "sequences of each length (0: 2)")
      ->transform(WholeNumber(0));
  command
      ->add_option("--n-texts", options->num_texts,
                   "texts to evaluate on, per task: the longest that fit --max-len (0: 1)")
      ->transform(WholeNumber(0));
  command->add_option("--grid", options->grid, "grid points of the scale search (0: 20)")
      ->transform(WholeNumber(0, 1000));
  command->add_option("--seed", options->seed, "seed of the shuffle of calibration texts")
      ->capture_default_str();
  options->placement.Register(
      *command, "tokens that the budget is for, and of the longest text (default: 4096)");
  AddExamples(
      *command,
      {"pmkvq analyze interpolation --model models/longcot-10m --quick --html page.html",
       "pmkvq analyze interpolation --model MODEL --factors 1,2,4 --seq-len 1024 --json -"});
  command->callback([options] { Run(*options); });
}

}  // namespace pmkvq::cli
