// pmkvq run: generate or chat in the terminal, with live cache statistics.
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <stdexcept>

#include "chat.h"
#include "chat_template_options.h"
#include "commands.h"
#include "common_options.h"
#include "device_cache.h"
#include "file_options.h"
#include "help_format.h"
#include "kv_effects.h"
#include "logprobs_output.h"
#include "option_values.h"
#include "pmkvq/base/byte_size.h"
#include "pmkvq/base/random.h"
#include "pmkvq/io/file.h"
#include "pmkvq/io/json.h"
#include "pmkvq/io/utf8.h"
#include "pmkvq/kv/kv_budget.h"
#include "pmkvq/kv/spec/packed_spec.h"
#include "pmkvq/kv/spec/spec.h"
#include "prompt_cache.h"
#include "run_observer.h"
#include "sampling_options.h"
#include "stats_file.h"
#include "terminal.h"
#include "token_ids.h"
#include "tokenizer_options.h"
#include "weight_options.h"

namespace pmkvq::cli {
namespace {

constexpr double kDefaultTemperature = 0.6;
constexpr double kDefaultTopP = 0.95;

struct Options {
  std::string model;
  std::string prompt;
  std::string prompt_ids;
  std::string file;
  std::string system;
  ChatTemplateCommandOptions chat_template;
  std::string json;
  std::string stats;
  bool prompt_given = false;
  bool parse_special = false;
  bool ids_given = false;
  bool chat = false;
  bool ignore_eos = false;
  int64_t num_samples = 1;
  int64_t max_tokens = 0;
  std::vector<std::string> stop;
  LogitRules rules;
  std::vector<std::string> logit_bias;
  int64_t min_tokens = 0;
  int64_t num_logprobs = -1;
  int64_t num_prompt_logprobs = -1;
  PromptCache prompt_cache;
  SamplingCommandOptions sampling;
  TokenizerCommandOptions tokenizer;
  WeightCommandOptions weights;
  KvCommandOptions kv;
};

// "39=-2.5": token id, and the number that is added to its logit.
std::pair<int32_t, float> ParseLogitBias(const std::string& text) {
  const size_t equals = std::min(text.find('='), text.size());
  const auto read = [](std::string_view part, auto* value) {
    const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), *value);
    return error == std::errc() && end == part.data() + part.size();
  };
  int32_t token = -1;
  float bias = 0;
  const std::string_view whole = text;
  if (equals == text.size() || !read(whole.substr(0, equals), &token) || token < 0 ||
      !read(whole.substr(equals + 1), &bias) || !std::isfinite(bias)) {
    throw CLI::ValidationError(
        "--logit-bias", fmt::format("found '{}', expected a token id and a number: 39=-2.5", text));
  }
  return {token, bias};
}

void WriteResult(const Options& options, const std::vector<Completion>& completions) {
  if (options.json.empty()) return;
  JsonWriter json;
  json.BeginObject().Key("sequences").BeginArray();
  for (const Completion& completion : completions) {
    json.BeginObject();
    json.Key("prompt_ids").Array(completion.prompt_ids);
    json.Key("output_ids").Array(completion.output_ids);
    json.Key("text").String(completion.text);
    json.Key("finish_reason").String(NameOf(completion.finish_reason));
    if (completion.finish_reason == FinishReason::kError)
      json.Key("error").String(completion.error);
    if (options.num_prompt_logprobs >= 0) {
      json.Key("prompt_logprobs").BeginArray().Null();  // Nothing is before the first token.
      for (const TokenLogprobs& token : completion.prompt_logprobs) WriteLogprobs(json, token);
      json.EndArray();
    }
    if (options.num_logprobs >= 0) {
      json.Key("logprobs").BeginArray();
      for (const TokenLogprobs& token : completion.logprobs) WriteLogprobs(json, token);
      json.EndArray();
    }
    json.Key("kv").BeginObject();
    json.Key("bytes").Int(completion.kv.bytes);
    json.Key("budget_bytes").Int(completion.kv.budget_bytes);
    json.Key("peak_bytes").Int(completion.kv.peak_bytes);
    if (completion.kv.kept_share < 1) json.Key("kept_share").Number(completion.kv.kept_share);
    json.Key("pages").BeginObject();
    for (const int bits : kWidths) {
      json.Key(fmt::format("{}", bits)).Int(completion.kv.pages[WidthIndex(bits)]);
    }
    json.EndObject().EndObject();
    json.Key("longest_pause_us").Number(completion.longest_pause_us);
    json.EndObject();
  }
  json.EndArray();
  if (Ranks::OfProcess().size() > 1) json.Key("ranks").Int(Ranks::OfProcess().size());
  json.EndObject();
  WriteJson(options.json, json.text());
}

Request MakeRequest(const Options& options, std::vector<int32_t> prompt_ids) {
  Request request;
  request.prompt_ids = std::move(prompt_ids);
  request.sampling = options.sampling.Resolve(kDefaultTemperature, kDefaultTopP);
  request.max_tokens = options.max_tokens;
  request.stop = options.stop;
  request.ignore_eos = options.ignore_eos;
  request.rules = options.rules;
  for (const std::string& bias : options.logit_bias) {
    request.rules.bias.push_back(ParseLogitBias(bias));
  }
  request.min_tokens = options.min_tokens;
  request.num_logprobs = options.json.empty() ? -1 : options.num_logprobs;
  request.num_prompt_logprobs = options.num_prompt_logprobs;
  return request;
}

// Text of the one prompt: from --prompt, --file or standard input.
std::string ReadPrompt(const Options& options, std::string* source) {
  *source = "--prompt";
  if (options.prompt_given) return options.prompt;
  *source = options.file.empty() || options.file == "-" ? "stdin" : options.file;
  return PlainText(*source == "stdin" ? ReadStdin() : ReadFile(options.file), *source);
}

std::vector<int32_t> EncodePrompt(const Options& options, const Tokenizer& tokenizer) {
  std::string source;
  const std::string text = ReadPrompt(options, &source);
  if (text.empty()) throw InvalidInput(source, "the prompt is empty; expected some text");
  CheckUtf8(text, source);
  const ChatTemplate chat_template = ResolveChatTemplate(options.chat_template, options.model);
  if (chat_template.IsNone()) {
    return tokenizer.EncodeWhole(text, options.parse_special);
  }
  std::vector<ChatMessage> messages;
  if (!options.system.empty()) messages.push_back({"system", options.system});
  messages.push_back({"user", text});
  const MarkedText prompt = chat_template.Render(messages, true);
  return options.parse_special ? tokenizer.Encode(prompt.text, true) : tokenizer.Encode(prompt);
}

std::vector<int32_t> PromptIds(const Options& options, const Tokenizer* tokenizer) {
  if (options.ids_given) return ParseIds(options.prompt_ids, "--prompt-ids");
  if (tokenizer == nullptr) {
    throw InvalidInput(options.model,
                       "has no tokenizer; expected one, --tokenizer, or --prompt-ids");
  }
  return EncodePrompt(options, *tokenizer);
}

// OpenEngine refuses a budget that does not hold a first page; Submit one that does not hold the
// prompt. This checks both at once, so that the budget named in the message is enough.
void CheckBudgetHoldsPrompt(const SpecEngineOptions& engine, const Model& model,
                            int64_t num_tokens) {
  const KvOptions& kv = engine.kv;
  const bool is_packed = FindPackedMethod(ParseMethodSpec(kv.spec).name) != nullptr;
  if (!is_packed || kv.budget_bytes == 0 || kv.reference_accounting) return;
  SpecEngineOptions roomy = engine;
  roomy.kv.budget_bytes = (int64_t{1} << 42) / engine.max_sequences;
  const int64_t needed = CheckKvOptions(model, roomy).SmallestThatHolds(num_tokens);
  if (kv.budget_bytes >= needed) return;
  throw InvalidInput(
      "--kv-budget",
      fmt::format("found {}, expected at least {} bytes ({}KiB) for this prompt of {} "
                  "tokens",
                  FormatByteSize(kv.budget_bytes), needed, (needed + 1023) / 1024, num_tokens));
}

// What a spent budget is answered with: the budget is --kv-budget's, or the plan's.
std::string BudgetRemedy(const KvOptions& kv) {
  if (!PlanSetsBudget(kv)) return "raise --kv-budget for longer output";
  return fmt::format(
      "the plan {} is for {} tokens: for longer output give --kv-budget, or make another plan with "
      "calibrate --from {} --max-len N",
      kv.plan_path, kv.plan->max_len, kv.plan_path);
}

// Returns why samples ended with an error; "" when none did.
std::string RunOnce(const Options& options, Engine& engine, const Tokenizer* tokenizer,
                    const std::vector<int32_t>& prompt_ids, const std::string& budget_remedy,
                    StatsFile* stats) {
  std::vector<uint64_t> seeds;
  for (int64_t i = 0; i < options.num_samples; ++i) {
    seeds.push_back(StreamSeed(options.sampling.seed, static_cast<uint64_t>(i)));
  }
  Request request = MakeRequest(options, prompt_ids);
  if (options.prompt_cache.IsUsed()) {
    request.session = PromptCache::kSession;
    options.prompt_cache.Load(engine, prompt_ids);
  }
  std::vector<Completion> completions;
  {
    RunOutput output;
    output.streams = options.num_samples == 1 && options.json != "-";
    output.prints = output.reports_all = options.json != "-";
    output.several = options.num_samples > 1;
    output.budget_remedy = budget_remedy;
    output.tokenizer = tokenizer;
    output.first_token = prompt_ids.empty() ? 0 : prompt_ids.front();  // Submit refuses no tokens.
    output.in_thinking = tokenizer != nullptr && EndsInThinking(*tokenizer, prompt_ids);
    RunObserver observer(engine, output, stats);
    if (options.prompt_cache.IsUsed()) {  // One sample, which keeps its sequence.
      request.seed = seeds.front();
      completions = engine.Generate({std::move(request)}, &observer, InterruptFlag());
    } else {
      completions = engine.GenerateSamples(request, seeds, &observer, InterruptFlag());
    }
  }
  WriteResult(options, completions);
  if (completions.front().finish_reason != FinishReason::kError) {
    options.prompt_cache.Save(engine, "");
  }
  std::string error;
  for (const Completion& completion : completions) {
    if (completion.finish_reason != FinishReason::kError || completion.error == error) continue;
    if (!error.empty()) PrintError(error);
    error = completion.error;
  }
  return error;
}

void RunChat(const Options& options, Engine& engine, const Tokenizer& tokenizer,
             const std::string& budget_remedy, StatsFile* stats) {
  ChatOptions chat;
  chat.budget_remedy = budget_remedy;
  chat.system = options.system;
  chat.chat_template = ResolveChatTemplate(options.chat_template, options.model);
  if (chat.chat_template.IsNone()) {
    throw InvalidInput("--chat-template", "chat needs a chat template, and " + options.model +
                                              " has none; name one with --chat-template");
  }
  chat.request = MakeRequest(options, {});
  chat.request.seed = options.sampling.seed;
  chat.prompt_cache = options.prompt_cache;
  Chat(chat, engine, tokenizer, stats);
}

void Run(const Options& options) {
  const bool has_prompt = options.prompt_given || options.ids_given || !options.file.empty();
  const bool chat = options.chat || (!has_prompt && StdinIsTerminal());
  if (chat &&
      (options.num_samples > 1 || options.num_prompt_logprobs >= 0 || !options.json.empty())) {
    throw CLI::ValidationError(!options.json.empty()     ? "--json"
                               : options.num_samples > 1 ? "--n-samples"
                                                         : "--prompt-logprobs",
                               "not for a chat, expected --prompt, --file or piped input with it");
  }
  if (options.prompt_cache.IsUsed() && options.num_samples > 1) {
    throw CLI::ValidationError("--n-samples", "found more than 1, expected 1 with --prompt-cache");
  }
  const std::shared_ptr<const Model> model =
      options.weights.Load(options.model, options.kv.threads, [&](const Model& loaded) {
        return CacheBytesOnDevice(loaded, options.kv.Parse(chat ? 1 : options.num_samples));
      });
  const auto tokenizer = options.ids_given ? options.tokenizer.LoadIfReadable(
                                                 options.model, "the output has ids and no text")
                                           : options.tokenizer.Load(options.model);
  if (options.ids_given) {
    CheckPrompt(ParseIds(options.prompt_ids, "--prompt-ids"), model->config(), "--prompt-ids");
  }
  const SpecEngineOptions engine_options = options.kv.Resolve(chat ? 1 : options.num_samples);
  options.prompt_cache.CheckMethod(engine_options.kv.spec);
  CheckPlan(engine_options, *model);
  std::vector<int32_t> prompt_ids;
  if (!chat) {
    prompt_ids = PromptIds(options, tokenizer.get());
    CheckBudgetHoldsPrompt(engine_options, *model, std::ssize(prompt_ids));
  }
  // With --max-len the warning of a short plan has been given.
  if (PlanSetsBudget(engine_options.kv) && engine_options.max_len == 0 &&
      engine_options.kv.plan->max_len < model->config().max_position_embeddings) {
    PrintError(fmt::format("the plan's budgets hold {} tokens; --kv-budget allows more",
                           engine_options.kv.plan->max_len));
  }
  Engine engine = OpenEngine(model, tokenizer, engine_options);
  std::unique_ptr<StatsFile> stats;
  if (!options.stats.empty()) stats = std::make_unique<StatsFile>(options.stats);
  std::string error;
  if (chat) {
    RunChat(options, engine, *tokenizer, BudgetRemedy(engine_options.kv), stats.get());
  } else {
    error = RunOnce(options, engine, tokenizer.get(), prompt_ids, BudgetRemedy(engine_options.kv),
                    stats.get());
  }
  if (stats != nullptr) stats->Commit();
  options.kv.PrintPlanHint(engine_options.kv, options.model);
  if (!error.empty()) throw std::runtime_error(error);
  ExitIfInterrupted("run");
}

// Warns on stderr: a prompt of ids is complete, and "none" has no place for a system message.
void WarnOfUnusedOptions(const Options& options, const CLI::App& command) {
  if (options.ids_given) {
    WarnWithoutEffect(command, {"--system", "--chat-template", "--chat-template-kwargs"},
                      "--prompt-ids are taken as they are");
  } else if (options.chat_template.name == "none") {
    WarnWithoutEffect(command, {"--system"}, "--chat-template none has no place for it");
  }
  options.sampling.WarnOfUnused(kDefaultTemperature);
  if (options.json.empty()) {
    WarnWithoutEffect(command, {"--logprobs"}, "they are shown in --json only");
  }
  if (options.num_samples > 1 &&
      options.sampling.Resolve(kDefaultTemperature, kDefaultTopP).temperature == 0) {
    PrintError("warning: --temperature 0 makes all samples equal");
  }
}

}  // namespace

void AddRun(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("run", "generate from a prompt, or chat");
  NamesFile(command
                ->add_option("--model", options->model,
                             "model folder (Hugging Face layout) or .gguf file")
                ->required(),
            FileKind::kModel);
  auto* prompt =
      command->add_option("text,--prompt,-p", options->prompt,
                          "prompt text; --prompt may be left out (default: standard input)");
  auto* file = NamesFile(
      command->add_option("--file,-f", options->file, "file with the prompt text (- for stdin)"),
      FileKind::kInputOrStdin);
  auto* ids = command->add_option("--prompt-ids", options->prompt_ids, "prompt as token ids: 1,2,3")
                  ->transform(TokenIds());
  prompt->excludes(file)->excludes(ids);
  file->excludes(ids);
  command->add_flag(
      "--parse-special", options->parse_special,
      "control tokens that are typed in a prompt (<|im_end|>) act as such; without it "
      "they are plain text");
  command->add_flag("--chat", options->chat, "chat loop (default without a prompt, in a terminal)")
      ->excludes(prompt)
      ->excludes(file)
      ->excludes(ids);
  command->add_option("--system", options->system, "system message");
  options->chat_template.Register(*command);
  options->tokenizer.Register(*command);
  command
      ->add_option("--n-samples", options->num_samples,
                   "samples of one prompt, which is computed once; decoded as one batch")
      ->transform(WholeNumber(1, kMostBatch))
      ->capture_default_str();
  command->add_option("--max-tokens", options->max_tokens, "output tokens (0: as many as fit)")
      ->transform(WholeNumber(0, kMostTokens))
      ->capture_default_str();
  command->add_option("--stop", options->stop, "stop string (may be repeated)")
      ->take_all()
      ->allow_extra_args(false);
  command->add_flag("--ignore-eos", options->ignore_eos, "go on after end-of-sequence tokens");
  command
      ->add_option("--min-tokens", options->min_tokens,
                   "output tokens before which no end-of-sequence token is drawn")
      ->transform(WholeNumber(0, kMostTokens))
      ->capture_default_str();
  command
      ->add_option("--logprobs", options->num_logprobs,
                   "with --json: log-probabilities of each token and of this many of the likeliest")
      ->transform(WholeNumber(0, 100));
  command
      ->add_option("--prompt-logprobs", options->num_prompt_logprobs,
                   "log-probabilities of each token of the prompt and of this many of the "
                   "likeliest in its place, before the answer and in --json")
      ->transform(WholeNumber(0, 100));
  constexpr double kMostPenalty = 1000;
  command
      ->add_option("--repetition-penalty", options->rules.repetition_penalty,
                   "> 1: tokens of prompt and output come again less often")
      ->transform(DecimalNumber(0.001, kMostPenalty))
      ->capture_default_str();
  command
      ->add_option("--frequency-penalty", options->rules.frequency_penalty,
                   "> 0: the same by how often a token is in the output")
      ->transform(DecimalNumber(-kMostPenalty, kMostPenalty))
      ->capture_default_str();
  command
      ->add_option("--presence-penalty", options->rules.presence_penalty,
                   "> 0: the same once for a token that is in the output")
      ->transform(DecimalNumber(-kMostPenalty, kMostPenalty))
      ->capture_default_str();
  command
      ->add_option("--logit-bias", options->logit_bias,
                   "ID=VALUE: added to the logit of a token (may be repeated)")
      ->type_name("ID=VALUE")
      ->take_all()
      ->allow_extra_args(false);
  options->sampling.Register(*command, "0.6", "0.95", "seed of the first sample; each has its own");
  AddJson(*command, options->json, "write the result as JSON");
  NamesFile(command->add_option("--stats", options->stats,
                                "file for the history of the cache, as JSON lines"),
            FileKind::kOutput);
  options->prompt_cache.Register(*command);
  options->weights.RegisterWithRanks(*command);
  options->kv.Register(*command);
  AddExamples(*command,
              {"pmkvq run --model models/longcot-10m --file models/longcot-10m/example.txt "
               "--temperature 0 --kv pm-kvq --plan models/longcot-10m/plan.json "
               "--stats stats.jsonl",
               "pmkvq run --model models/longcot-10m --chat --kv static-4 --temperature 0",
               "pmkvq run --model models/longcot-10m --file models/longcot-10m/example.txt "
               "--n-samples 4 --json samples.json"});
  command->callback([options, command, prompt, ids] {
    options->prompt_given = prompt->count() > 0;
    options->ids_given = ids->count() > 0;
    WarnOfUnusedOptions(*options, *command);
    Run(*options);
  });
}

}  // namespace pmkvq::cli
