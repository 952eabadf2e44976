// pmkvq analyze error-growth: how far caches move from fp16 along one chain of thought.
#include <fmt/format.h>

#include <algorithm>

#include "analyze.h"
#include "file_options.h"
#include "help_format.h"
#include "option_values.h"
#include "pmkvq/base/byte_size.h"
#include "pmkvq/base/error.h"
#include "pmkvq/io/file.h"
#include "pmkvq/research/analysis/equal_bytes.h"
#include "pmkvq/research/analysis/error_growth.h"
#include "pmkvq/research/analysis/texts.h"
#include "terminal.h"
#include "weight_options.h"

namespace pmkvq::cli {
namespace {

constexpr int64_t kFullMaxLen = 4096;
constexpr int64_t kQuickMaxLen = 640;

struct Options {
  AnalysisOptions common;
  std::vector<std::string> specs;
  std::string problem;
  std::string prompt;
  std::string chain;
  int64_t max_tokens = 0;
  int64_t stride = 16;
  int64_t bins = 48;
  KvCommandOptions kv;
};

struct ChosenProblem {
  std::string name;
  std::vector<int32_t> prompt;
};

// The problem with the longest reference chain of those that fit, or the one that was asked for.
ChosenProblem ChooseProblem(const Options& options, const Tokenizer& tokenizer,
                            const ChatTemplate& chat_template, int64_t max_len) {
  const std::string path = options.common.DataPath(options.common.data, "problems.jsonl", "--data");
  std::vector<ProblemRow> problems = LoadProblems(path);
  if (!options.problem.empty()) {
    std::erase_if(problems, [&](const ProblemRow& row) { return row.id != options.problem; });
    if (problems.empty()) {
      throw InvalidInput("--problem", fmt::format("found no '{}' in {}, expected one of its ids",
                                                  options.problem, path));
    }
  }
  std::stable_sort(problems.begin(), problems.end(), [](const auto& a, const auto& b) {
    return a.reference_chain.size() > b.reference_chain.size();
  });
  // Room for the end of the reply, which a reference chain does not hold.
  constexpr size_t kReplyEnd = 128;
  for (const ProblemRow& row : problems) {
    const size_t tokens = TextIds(tokenizer, ProblemText(row, chat_template)).size();
    if (options.problem.empty() && tokens + kReplyEnd > static_cast<size_t>(max_len)) continue;
    return {row.id, tokenizer.Encode(chat_template.Render({{"user", row.problem}}, true))};
  }
  throw InvalidInput(path, fmt::format("found no problem whose chain fits --max-len {}, expected "
                                       "one at least",
                                       max_len));
}

Chain MakeChain(const Options& options, const std::shared_ptr<const Model>& model,
                const Tokenizer& tokenizer, int64_t max_len, int num_threads) {
  const ChatTemplate chat_template =
      ResolveChatTemplate(options.common.chat_template, options.common.model);
  ChosenProblem problem;
  if (options.prompt.empty()) {
    problem = ChooseProblem(options, tokenizer, chat_template, max_len);
  } else {
    const std::string text = PlainTextFile(options.prompt);
    problem = {options.prompt, tokenizer.Encode(chat_template.Render({{"user", text}}, true))};
  }
  CheckPrompt(problem.prompt, model->config(), problem.name);
  Chain chain;
  if (options.chain.empty()) {
    StderrLog().Info(fmt::format("generating the chain of {} with fp16", problem.name));
    chain = GenerateChain(model, problem.prompt, max_len, options.max_tokens, num_threads,
                          InterruptFlag());
  } else {
    const std::string text = PlainTextFile(options.chain);
    chain.origin = options.chain;
    chain.tokens = problem.prompt;
    chain.prompt_tokens = std::ssize(problem.prompt);
    std::vector<int32_t> ids = tokenizer.Encode(text);
    if (options.max_tokens > 0 && std::ssize(ids) > options.max_tokens) {
      ids.resize(static_cast<size_t>(options.max_tokens));
    }
    chain.tokens.insert(chain.tokens.end(), ids.begin(), ids.end());
  }
  chain.problem = problem.name;
  return chain;
}

void PrintTable(const ErrorGrowth& growth, const KvGeometry& geometry) {
  std::string text =
      fmt::format("{}: {} + {} tokens\n{:<20} {:>6} {:>10} {:>14} {:>12} {:>9}\n",
                  growth.chain.problem, growth.chain.prompt_tokens, growth.chain.chain_tokens(),
                  "cache", "bits", "mean KL", "attention KL", "late/early", "differs");
  for (const CacheGrowth& cache : growth.caches) {
    text += fmt::format("{:<20} {:>6.2f} {:>10} {:>14} {:>12} {:>9}\n", cache.spec,
                        EffectiveBitsOf(growth, cache, geometry), FormatNumber(cache.mean_kl),
                        FormatNumber(cache.mean_attention), FormatLateOverEarly(cache),
                        cache.disagreements.size());
  }
  text +=
      "bits: per stored value, at the largest size; KL in nats from fp16; late/early: mean KL of "
      "the last quarter\nof the chain over that of the first; differs: tokens that are not fp16's "
      "choice\n";
  Print(text + ErrorGrowthVerdict(growth, geometry) + "\n");
}

void Run(Options options) {
  options.common.CheckOutputs();
  const std::shared_ptr<const Model> model =
      options.common.weights.Load(options.common.model, options.kv.threads);
  const auto tokenizer = options.common.tokenizer.Load(options.common.model);
  const int64_t max_len =
      Chosen<int64_t>(options.kv.max_len, 0, options.common.quick,
                      std::min(kFullMaxLen, model->config().max_position_embeddings), kQuickMaxLen);
  // One group of options for all methods; some leave a part of it unused, and say so in --help.
  options.kv.spec = "pm-kvq";
  const SpecEngineOptions engine = options.kv.Resolve(1, options.specs);
  CheckPlan(engine, *model);

  const auto requirements = [&](int64_t num_tokens) {
    return KvRequirements{model->kv_geometry(), 1, num_tokens, engine.num_threads, &model->rope(),
                          &model->checkpoint()};
  };
  ErrorGrowthOptions growth_options;
  for (const std::string& spec : options.specs) {
    growth_options.caches.push_back(engine.kv);
    growth_options.caches.back().spec = spec;
    // A mistake in a SPEC must not wait until the chain is there.
    ResolveKvBudget(growth_options.caches.back(), requirements(max_len));
  }
  growth_options.attention_stride = options.stride;
  growth_options.num_bins = options.bins;
  growth_options.num_threads = engine.num_threads;
  ProgressBar progress;
  growth_options.progress = &progress;
  growth_options.cancel = InterruptFlag();
  const Chain chain = MakeChain(options, model, *tokenizer, max_len, engine.num_threads);
  // Budgets by width are for the chain, so that caches of one width take equal bytes in the end.
  growth_options.max_len = options.kv.max_len > 0 ? max_len : std::ssize(chain.tokens);
  if (options.specs.empty()) {
    EqualBytes equal =
        CachesAtEqualBytes(engine.kv, requirements(growth_options.max_len), options.common.quick);
    StderrLog().Info(fmt::format("each cache may take {}", FormatByteSize(equal.budget_bytes)));
    growth_options.caches = std::move(equal.caches);
  }
  const ErrorGrowth growth = MeasureErrorGrowth(model, chain, growth_options);

  if (options.common.json != "-") {
    PrintTable(growth, model->kv_geometry());
  }
  options.common.Write(ErrorGrowthJson(growth, options.common.command_line),
                       ErrorGrowthPage(growth, model->kv_geometry(), tokenizer.get(),
                                       options.common.Origin(options.kv.plan_path)));
}

}  // namespace

void AddErrorGrowth(CLI::App& analyze, const std::string& command_line) {
  auto options = std::make_shared<Options>();
  options->common.command_line = command_line;
  CLI::App* command = analyze.add_subcommand(
      "error-growth",
      "one fp16 chain through other caches: KL of next-token and attention distributions by "
      "position");
  options->common.Register(*command,
                           "problems, .jsonl (default: problems.jsonl in the model folder)");
  command->add_option("--problem", options->problem,
                      "id of a problem (default: the longest whose chain fits --max-len)");
  CLI::Option* prompt = NamesFile(
      command->add_option("--prompt", options->prompt, "text file with the problem, instead"),
      FileKind::kInput);
  prompt->excludes("--problem");
  NamesFile(command->add_option("--chain", options->chain,
                                "text file with the chain (default: what fp16 answers, greedily)"),
            FileKind::kInput);
  command
      ->add_option("--max-tokens", options->max_tokens,
                   "tokens of the chain (0: all that fit --max-len)")
      ->transform(WholeNumber(0, kMostTokens))
      ->capture_default_str();
  command
      ->add_option("--stride", options->stride,
                   "compare attention every so many tokens (reads all stored keys)")
      ->transform(WholeNumber(1, kMostTokens))
      ->capture_default_str();
  command->add_option("--bins", options->bins, "means over position, for charts and fits")
      ->transform(WholeNumber(1, 1000))
      ->capture_default_str();
  options->kv.Register(*command);
  // The group is for one method; here there are several.
  command->remove_option(command->get_option("--kv"));
  command->remove_option(command->get_option("--recipe"));
  command
      ->add_option(
          "--kv", options->specs,
          "may be given several times; default: static widths, kivi, rtn and pm-kvq "
          "inside the same bytes, those of --kv-budget or --plan, else what 2 bits take; " +
              KvHelp())
      ->type_name("SPEC")
      ->transform(KnownMethod())
      ->group("KV cache");
  // After --kv, whose values replace the list.
  AddRecipe(*command, [options](const std::string& spec) { options->specs.push_back(spec); });
  command->get_option("--max-len")
      ->description(
          fmt::format("the chain must fit, and budgets by width are for so many tokens (0: the "
                      "chain fits {}, budgets are for its length)",
                      kFullMaxLen));
  AddExamples(*command,
              {"pmkvq analyze error-growth --model models/longcot-10m --quick --html growth.html",
               "pmkvq analyze error-growth --model MODEL --kv static-4 --kv kivi --json -"});
  command->callback([options] { Run(*options); });
}

}  // namespace pmkvq::cli
