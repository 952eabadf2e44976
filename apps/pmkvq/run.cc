// pmkvq run: generate or chat in the terminal, with live cache statistics.
#include <fmt/format.h>

#include <chrono>
#include <iostream>
#include <limits>
#include <map>

#include "commands.h"
#include "common_options.h"
#include "pmkvq/base/byte_size.h"
#include "pmkvq/base/random.h"
#include "pmkvq/io/file.h"
#include "pmkvq/io/json.h"
#include "sampling_options.h"
#include "stats_file.h"
#include "terminal.h"
#include "weight_options.h"

namespace pmkvq::cli {
namespace {

struct Options {
  std::string model;
  std::string prompt;
  std::string prompt_ids;
  std::string file;
  std::string system;
  std::string chat_template;
  std::string json;
  std::string stats;
  bool prompt_given = false;
  bool ids_given = false;
  bool chat = false;
  bool ignore_eos = false;
  int64_t num_samples = 1;
  int64_t max_tokens = 0;
  std::vector<std::string> stop;
  SamplingCommandOptions sampling;
  WeightCommandOptions weights;
  KvCommandOptions kv;
};

// Prints text as it comes (one sample) or when a sample is done (several), keeps the status line
// and writes --stats.
class RunObserver : public EngineObserver {
 public:
  RunObserver(const Engine& engine, const Options& options, StatsFile* stats)
      : engine_(engine), options_(options), stats_(stats) {}

  void OnToken(RequestId id, int32_t, const std::string& text) override {
    ++num_tokens_;
    if (stats_ != nullptr) stats_->WriteToken(engine_, id);
    if (streams() && !text.empty()) Print(text);
    num_printed_ += text.size();
    if (status_.active()) status_.Update(StatusText(id));
  }
  void OnHalving(RequestId id, const HalvingEvent& event) override {
    if (stats_ != nullptr) stats_->WriteHalving(id, event);
  }
  void OnFinished(const Completion& completion) override {
    if (stats_ != nullptr) stats_->WriteFinish(engine_, completion);
    if (streams()) {
      // With the end of what was held back where the request ended between two tokens.
      Print(completion.text.substr(num_printed_) + "\n");
    } else if (options_.json != "-") {
      Print(fmt::format("--- sample {} ({})\n{}\n", completion.id, NameOf(completion.finish_reason),
                        completion.text));
    }
    Report(completion);
  }

 private:
  bool streams() const { return options_.num_samples == 1 && options_.json != "-"; }

  double TokensPerSecond() const {
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
    return static_cast<double>(num_tokens_) / seconds;
  }

  std::string StatusText(RequestId id) const {
    const std::optional<SequenceId> seq = engine_.SequenceOf(id);
    if (!seq) return "";
    const KvSequenceStats kv = engine_.store().SequenceStats(*seq);
    const std::string sample = options_.num_samples > 1 ? fmt::format(" sample {} |", id) : "";
    return fmt::format("{} {} tokens | {:.1f} tok/s | KV {} / {} | pages {}", sample, kv.num_tokens,
                       TokensPerSecond(), FormatByteSize(kv.bytes), FormatByteSize(kv.budget_bytes),
                       FormatPages(kv.pages));
  }

  // One line per sample on stderr when it is done.
  void Report(const Completion& completion) const {
    if (options_.json == "-" && completion.finish_reason != FinishReason::kKvBudget) return;
    const auto num_output = static_cast<int64_t>(completion.output_ids.size());
    const double rate = completion.decode_seconds > 0
                            ? static_cast<double>(num_output) / completion.decode_seconds
                            : 0;
    PrintError(fmt::format(
        "[{}] {} prompt + {} output tokens, {:.1f} tok/s, KV peak {} of {}, pages {}, longest "
        "halving pause {:.2f} ms{}",
        NameOf(completion.finish_reason), completion.prompt_ids.size(), num_output, rate,
        FormatByteSize(completion.kv.peak_bytes), FormatByteSize(completion.kv.budget_bytes),
        FormatPages(completion.kv.pages), completion.longest_pause_us / 1000,
        completion.finish_reason == FinishReason::kKvBudget
            ? "; the KV budget is spent at the floor width, raise --kv-budget for longer output"
            : ""));
  }

  const Engine& engine_;
  const Options& options_;
  StatsFile* stats_;
  StatusLine status_;
  int64_t num_tokens_ = 0;
  size_t num_printed_ = 0;  // Bytes of the one sample's text.
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

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
    json.Key("kv").BeginObject();
    json.Key("bytes").Int(completion.kv.bytes);
    json.Key("budget_bytes").Int(completion.kv.budget_bytes);
    json.Key("peak_bytes").Int(completion.kv.peak_bytes);
    json.Key("pages").BeginObject();
    for (const int bits : kWidths) {
      json.Key(fmt::format("{}", bits)).Int(completion.kv.pages[WidthIndex(bits)]);
    }
    json.EndObject().EndObject();
    json.Key("longest_pause_us").Number(completion.longest_pause_us);
    json.EndObject();
  }
  json.EndArray().EndObject();
  WriteJson(options.json, json.text());
}

Request MakeRequest(const Options& options, std::vector<int32_t> prompt_ids, int64_t sample) {
  Request request;
  request.prompt_ids = std::move(prompt_ids);
  request.sampling = options.sampling.Resolve(0.6, 0.95);
  request.seed = StreamSeed(options.sampling.seed, static_cast<uint64_t>(sample));
  request.max_tokens = options.max_tokens;
  request.stop = options.stop;
  request.ignore_eos = options.ignore_eos;
  return request;
}

// Text of the one prompt: from --prompt, --file or standard input.
std::string ReadPrompt(const Options& options, std::string* source) {
  *source = "--prompt";
  if (options.prompt_given) return options.prompt;
  *source = options.file.empty() || options.file == "-" ? "stdin" : options.file;
  return *source == "stdin" ? ReadStdin() : ReadFile(options.file);
}

std::vector<int32_t> EncodePrompt(const Options& options, const Tokenizer& tokenizer) {
  std::string source;
  const std::string text = ReadPrompt(options, &source);
  if (text.empty()) throw InvalidInput(source, "the prompt is empty; expected some text");
  CheckUtf8(text, source);
  const ChatTemplate chat_template = ResolveChatTemplate(options.chat_template, options.model);
  std::vector<int32_t> ids;
  if (chat_template.format == ChatFormat::kNone) {
    ids = tokenizer.prefix_ids();
    const std::vector<int32_t> text_ids = tokenizer.Encode(text);
    ids.insert(ids.end(), text_ids.begin(), text_ids.end());
    return ids;
  }
  std::vector<ChatMessage> messages;
  if (!options.system.empty()) messages.push_back({"system", options.system});
  // The newline that ends a file or what echo writes is no part of the message.
  const bool drop_newline = !options.prompt_given && text.ends_with('\n');
  messages.push_back({"user", text.substr(0, text.size() - (drop_newline ? 1 : 0))});
  return tokenizer.Encode(chat_template.Render(messages, true));
}

void RunOnce(const Options& options, Engine& engine, const Tokenizer* tokenizer, StatsFile* stats) {
  std::vector<int32_t> prompt_ids;
  if (options.ids_given) {
    prompt_ids = ParseIds(options.prompt_ids, "--prompt-ids");
  } else {
    if (tokenizer == nullptr) {
      throw InvalidInput(options.model, "has no tokenizer.json; expected one, or --prompt-ids");
    }
    prompt_ids = EncodePrompt(options, *tokenizer);
  }
  std::vector<Request> requests;
  for (int64_t i = 0; i < options.num_samples; ++i) {
    requests.push_back(MakeRequest(options, prompt_ids, i));
  }
  std::vector<Completion> completions;
  {
    RunObserver observer(engine, options, stats);
    completions = engine.Generate(std::move(requests), &observer, InterruptFlag());
  }
  WriteResult(options, completions);
}

void Chat(const Options& options, Engine& engine, const Tokenizer& tokenizer, StatsFile* stats) {
  const ChatTemplate chat_template = ResolveChatTemplate(options.chat_template, options.model);
  if (chat_template.format == ChatFormat::kNone) {
    throw InvalidInput("--chat-template", "chat needs a chat template, and " + options.model +
                                              " has none; name one with --chat-template");
  }
  std::vector<ChatMessage> messages;
  const auto reset = [&] {
    messages.clear();
    if (!options.system.empty()) messages.push_back({"system", options.system});
  };
  reset();
  PrintError("type a message; /reset starts over, /exit or Ctrl-D ends");
  std::string line;
  for (int64_t turn = 0;; ++turn) {
    if (StdoutIsTerminal()) Print("> ");
    if (!std::getline(std::cin, line) || line == "/exit") return;
    if (line == "/reset") reset();
    if (line.empty() || line == "/reset") continue;
    messages.push_back({"user", line});
    std::vector<Completion> completions;
    try {
      CheckUtf8(line, "stdin");
      Request request =
          MakeRequest(options, tokenizer.Encode(chat_template.Render(messages, true)), turn);
      request.session = 0;
      RunObserver observer(engine, options, stats);
      completions = engine.Generate({std::move(request)}, &observer, InterruptFlag());
    } catch (const InvalidInput& error) {  // Too long for the budget, say: the chat goes on.
      PrintError(std::string(error.what()) + "; the message is dropped, /reset starts over");
      messages.pop_back();
      continue;
    }
    messages.push_back({"assistant", completions.front().text});
    if (IsCancelled(InterruptFlag())) return;
  }
}

void Run(const Options& options) {
  const bool has_prompt = options.prompt_given || options.ids_given || !options.file.empty();
  const bool chat = options.chat || (!has_prompt && StdinIsTerminal());
  if (chat && (options.num_samples > 1 || !options.json.empty())) {
    throw CLI::ValidationError(options.json.empty() ? "--n-samples" : "--json",
                               "not for a chat, expected --prompt, --file or piped input with it");
  }
  CheckFileName(options.stats, "--stats");
  CheckWritable(options.stats);
  CheckWritable(options.json);
  const std::shared_ptr<Model> model = options.weights.Load(options.model, options.kv.threads);
  const auto tokenizer =
      options.ids_given ? LoadTokenizerIfPresent(options.model) : Tokenizer::Load(options.model);
  if (options.ids_given) {
    CheckPrompt(ParseIds(options.prompt_ids, "--prompt-ids"), model->config(), "--prompt-ids");
  }
  const EngineOptions engine_options = options.kv.Resolve(chat ? 1 : options.num_samples);
  CheckPlan(engine_options, *model);
  Engine engine(model, tokenizer, engine_options);
  std::unique_ptr<StatsFile> stats;
  if (!options.stats.empty()) stats = std::make_unique<StatsFile>(options.stats);
  if (chat) {
    Chat(options, engine, *tokenizer, stats.get());
  } else {
    RunOnce(options, engine, tokenizer.get(), stats.get());
  }
  if (stats != nullptr) stats->Commit();
  ExitIfInterrupted("run");
}

}  // namespace

void AddRun(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("run", "generate from a prompt, or chat");
  command->add_option("--model", options->model, "model folder (Hugging Face layout)")->required();
  auto* prompt =
      command->add_option("--prompt,-p", options->prompt, "prompt text (default: standard input)");
  auto* file =
      command->add_option("--file,-f", options->file, "file with the prompt text (- for stdin)");
  auto* ids =
      command->add_option("--prompt-ids", options->prompt_ids, "prompt as token ids: 1,2,3");
  prompt->excludes(file)->excludes(ids);
  file->excludes(ids);
  command->add_flag("--chat", options->chat, "chat loop (default without a prompt, in a terminal)")
      ->excludes(prompt)
      ->excludes(file)
      ->excludes(ids);
  command->add_option("--system", options->system, "system message");
  command->add_option("--chat-template", options->chat_template,
                      "none, chatml, qwen2.5, qwq, qwen3, deepseek-r1, llama3, longcot "
                      "(default: by the model's tokenizer_config.json)");
  command->add_option("-n,--n-samples", options->num_samples, "samples decoded as one batch")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  command->add_option("--max-tokens", options->max_tokens, "output tokens (0: as many as fit)")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--stop", options->stop, "stop string (may be repeated)")->take_all();
  command->add_flag("--ignore-eos", options->ignore_eos, "go on after end-of-sequence tokens");
  options->sampling.Register(*command, "0.6", "0.95", "seed of the first sample; each has its own");
  command->add_option("--json", options->json,
                      "write the result as JSON (- for stdout, nothing else there)");
  command->add_option("--stats", options->stats,
                      "file for the history of the cache, as JSON lines");
  options->weights.Register(*command);
  options->kv.Register(*command);
  command->callback([options, prompt, ids] {
    options->prompt_given = prompt->count() > 0;
    options->ids_given = ids->count() > 0;
    Run(*options);
  });
}

}  // namespace pmkvq::cli
