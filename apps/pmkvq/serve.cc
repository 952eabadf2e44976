// pmkvq serve: an HTTP server with the endpoints of OpenAI's API.
#include <fmt/format.h>
#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <thread>

#include "chat_template_options.h"
#include "commands.h"
#include "common_options.h"
#include "config_file.h"
#include "default_pool.h"
#include "device_cache.h"
#include "file_options.h"
#include "help_format.h"
#include "option_values.h"
#include "pmkvq/base/available_memory.h"
#include "pmkvq/base/byte_size.h"
#include "pmkvq/base/error.h"
#include "pmkvq/io/hash.h"
#include "pmkvq/kv/spec/packed_spec.h"
#include "pmkvq/kv/spec/spec.h"
#include "pmkvq/server/http/server.h"
#include "pool_options.h"
#include "terminal.h"
#include "tokenizer_options.h"
#include "version.h"
#include "weight_options.h"

namespace pmkvq::cli {
namespace {

constexpr int kEngineFailed = 70;  // EX_SOFTWARE: a supervisor starts the server again.

struct Options {
  std::string model;
  std::string config;
  std::string served_name;
  std::string key_file;
  bool insecure_no_key = false;
  std::string allowed_hosts;
  std::string log_file;
  std::string log_format = "json";
  bool log_content = false;
  std::string max_body = "4MiB";
  std::string reasoning = "auto";
  std::string tool_calls = "auto";
  std::string generation_config = "auto";
  bool strict = false;
  bool metrics_open = false;
  int64_t max_sequences = 16;
  int64_t queue_size = 64;
  int64_t client_choices = 0;
  double prefill_share = 0.5;
  int64_t keep_alive = 15;
  int64_t idle_timeout = 75;
  int64_t drain_delay = 0;
  int64_t shutdown_timeout = 30;
  int64_t queue_tokens = 0;
  int64_t queue_timeout = 600;
  int64_t request_timeout = 0;
  bool vllm_metrics = false;
  bool no_ui = false;
  server::ServerOptions http;
  int64_t port = 8080;
  ChatTemplateCommandOptions chat_template;
  TokenizerCommandOptions tokenizer;
  WeightCommandOptions weights;
  KvCommandOptions kv;
  bool names_method = false;  // --kv or --recipe
  PoolCommandOptions pool;
};

bool IsLoopback(const std::string& host) { return host == "::1" || host.starts_with("127."); }

server::ApiKeys LoadKeys(const Options& options) {
  server::ApiKeys keys;
  if (!options.key_file.empty()) keys = server::ApiKeys::FromFile(options.key_file);
  if (const char* key = std::getenv("PMKVQ_API_KEY"); key != nullptr && *key != '\0') {
    keys.Add(key, "PMKVQ_API_KEY");
  }
  const bool others_reach_it = options.http.unix_socket.empty() && !IsLoopback(options.http.host);
  if (keys.empty() && others_reach_it && !options.insecure_no_key) {
    throw InvalidInput("--host",
                       fmt::format("found {}, which others can reach, and no key; expected "
                                   "--api-key-file or PMKVQ_API_KEY (--insecure-no-key "
                                   "serves everybody)",
                                   options.http.host));
  }
  if (!keys.empty() && options.http.cors_origin == "*") {
    throw InvalidInput("--cors-origin", "found *, expected one origin where there are keys");
  }
  return keys;
}

std::vector<std::string> NamesAtCommas(const std::string& text) {
  std::vector<std::string> parts;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    if (end > begin) parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

// Each connection takes a descriptor, and the usual limit is 1,024.
void RaiseFileLimit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

std::string NameOfModel(const Options& options) {
  if (!options.served_name.empty()) return NamesAtCommas(options.served_name).front();
  return std::filesystem::weakly_canonical(options.model).filename().string();
}

bool ParsesReasoning(const Options& options, const ChatTemplate& chat_template,
                     const Tokenizer& tokenizer) {
  if (options.reasoning != "auto") return options.reasoning == "on";
  if (tokenizer.TokenId("</think>") >= 0) return true;
  if (chat_template.IsNone()) return false;
  return chat_template.Render({{"user", "x"}}, true).text.find("<think>") != std::string::npos;
}

server::ToolFormat ToolFormatFor(const Options& options, const ChatTemplate& chat_template) {
  if (options.tool_calls == "auto") return server::ToolFormatOf(chat_template);
  if (options.tool_calls == "hermes") return server::ToolFormat::kHermes;
  if (options.tool_calls == "llama3") return server::ToolFormat::kLlama3;
  if (options.tool_calls == "mistral") return server::ToolFormat::kMistral;
  return server::ToolFormat::kNone;
}

// What was read before stays where a file is wrong now.
template <class Read>
void Reload(const Read& read) {
  try {
    read();
  } catch (const Error& error) {
    PrintError(error.what());
  }
}

class ServeCommand {
 public:
  explicit ServeCommand(const Options& options) : options_(options) {}

  // The exit status.
  int Run();

 private:
  void Load();
  bool IsPool(const Model& model) const;
  KvCommandOptions KvOf(bool is_pool) const;
  // What the cache takes of the model's device.
  int64_t BytesOfCache(const Model& model) const;
  std::unique_ptr<server::EngineThread> MakeEngineThread(Engine engine);

  const Options& options_;
  std::unique_ptr<server::Log> log_;
  std::unique_ptr<server::Service> service_;
  std::unique_ptr<server::HttpServer> http_;
  std::unique_ptr<server::EngineThread> engine_thread_;
  std::atomic<int> status_{0};
  std::atomic<bool> is_loaded_{false};
};

std::unique_ptr<server::EngineThread> ServeCommand::MakeEngineThread(Engine engine) {
  const auto deliver = [this](std::vector<server::GenerationEvent> events) {
    // A std::function must be copyable, and events are not.
    auto shared = std::make_shared<std::vector<server::GenerationEvent>>(std::move(events));
    http_->Post([this, shared] { service_->OnEvents(std::move(*shared)); });
  };
  const auto failed = [this](const std::string& message) {
    status_ = kEngineFailed;
    http_->Post([this, message] {
      log_->Write("error", "engine_failed",
                  [&](JsonWriter& json) { json.Key("message").String(message); });
      server::ApiError error;
      error.status = 500;
      error.type = "server_error";
      error.code = "internal";
      error.message = "the engine has failed";
      service_->BeginDrain(false);
      service_->FailAll(error);
      // Replies are written by work that is queued behind this.
      http_->Post([this] { http_->Stop(); });
    });
  };
  return std::make_unique<server::EngineThread>(std::move(engine), options_.max_sequences, deliver,
                                                failed);
}

bool ServeCommand::IsPool(const Model& model) const {
  return options_.pool.is_pool(!options_.kv.budget.empty() || model.device_model() != nullptr);
}

KvCommandOptions ServeCommand::KvOf(bool is_pool) const {
  KvCommandOptions kv = options_.kv;
  // Without a budget that it could be kept in, the cache stays at 16 bits.
  if (!is_pool && !options_.names_method && kv.budget.empty() && kv.plan_path.empty()) {
    kv.spec = "fp16";
  }
  return kv;
}

int64_t ServeCommand::BytesOfCache(const Model& model) const {
  const bool is_pool = IsPool(model);
  SpecEngineOptions engine = KvOf(is_pool).Parse(options_.max_sequences);
  // A pool without a size takes what there is.
  options_.pool.Apply(
      is_pool, [] { return int64_t{1} << 30; }, engine);
  return CacheBytesOnDevice(model, engine);
}

void ServeCommand::Load() {
  const int64_t on_host = AvailableMemory();
  const std::shared_ptr<const Model> model =
      options_.weights.Load(options_.model, options_.kv.threads,
                            [&](const Model& loaded) { return BytesOfCache(loaded); });
  const std::shared_ptr<const Tokenizer> tokenizer = options_.tokenizer.Load(options_.model);
  const int64_t available = MemoryFor(*model, on_host);
  const bool is_pool = IsPool(*model);
  SpecEngineOptions engine_options = KvOf(is_pool).Resolve(options_.max_sequences);
  if (FindPackedMethod(ParseMethodSpec(engine_options.kv.spec).name) == nullptr) {
    throw Unsupported("--kv", fmt::format("found {}, expected a packed cache: fp16, static-8, "
                                          "static-4, static-2 or pm-kvq",
                                          engine_options.kv.spec));
  }
  const auto default_bytes = [&] { return DefaultPoolBytes(available, *model, engine_options); };
  options_.pool.Apply(is_pool, default_bytes, engine_options);
  if (available > 0 && engine_options.kv.pool.bytes > available) {
    PrintError(fmt::format("warning: --kv-pool {} is more than the memory that is available, {}",
                           FormatByteSize(engine_options.kv.pool.bytes),
                           FormatByteSize(available)));
  }
  if (const std::string note = options_.pool.Note(); !note.empty()) PrintError(note);
  engine_options.prefill_share = options_.prefill_share;
  CheckPlan(engine_options, *model);
  Engine engine = OpenEngine(model, tokenizer, engine_options);

  auto context = std::make_shared<server::ApiContext>();
  context->model_names = options_.served_name.empty()
                             ? std::vector<std::string>{NameOfModel(options_)}
                             : NamesAtCommas(options_.served_name);
  context->tokenizer = tokenizer;
  context->chat_template = ResolveChatTemplate(options_.chat_template, options_.model);
  context->tool_format = ToolFormatFor(options_, context->chat_template);
  context->tool_tokens = server::ToolTokens(*tokenizer);
  context->parses_reasoning = ParsesReasoning(options_, context->chat_template, *tokenizer);
  if (options_.generation_config == "auto") {
    context->defaults = server::LoadSamplingDefaults(options_.model);
  }
  context->vocab_size = model->config().vocab_size;
  for (const int64_t id : model->config().eos_token_ids) {
    context->eos_ids.push_back(static_cast<int32_t>(id));
  }
  context->formats = std::make_shared<server::OutputFormats>(tokenizer, context->vocab_size);
  const int64_t max_positions = model->config().max_position_embeddings;
  context->max_len =
      engine_options.max_len > 0 ? std::min(engine_options.max_len, max_positions) : max_positions;
  context->strict = options_.strict;
  context->keeps_prompt_texts = options_.log_content;
  if (const CacheConfig& cache = *engine.kv_budget().packed(); cache.pool.bytes > 0) {
    context->pool = {true, cache.floor_bits, cache.close_bits, options_.pool.priorities(),
                     options_.pool.allow_replay()};
  }

  Hash128 hash;
  hash.Update(model->checkpoint().Identity());
  const int64_t budget = engine.kv_budget().total_bytes();
  hash.Update(fmt::format("{} {} {}{}", VersionText(), engine_options.kv.spec, budget,
                          is_pool ? " pool" : ""));
  const int64_t pool = is_pool ? budget : budget * options_.max_sequences;
  const std::string cache = is_pool ? fmt::format("a pool of {} of cache, and {} tokens for each",
                                                  FormatByteSize(budget), context->max_len)
                                    : fmt::format("{} of cache and {} tokens for each",
                                                  FormatByteSize(budget), context->max_len);
  std::vector<int64_t> eos_ids = model->config().eos_token_ids;
  engine_thread_ = MakeEngineThread(std::move(engine));
  const std::string ready =
      fmt::format("ready: {} serves {}: {} requests at once, {}", http_->address(),
                  context->model_names.front(), options_.max_sequences, cache);
  http_->Post(
      [this, context, ready, fingerprint = "fp_" + hash.HexDigest().substr(0, 12), eos_ids, pool] {
        service_->SetReady(context, engine_thread_.get(), fingerprint, eos_ids, pool);
        if (service_->state() == server::Service::State::kReady) PrintError(ready);
      });
  is_loaded_ = true;
}

int ServeCommand::Run() {
  RaiseFileLimit();
  if (!options_.http.unix_socket.empty() && !options_.http.tls_cert.empty()) {
    throw InvalidInput("--tls-cert",
                       "found --unix-socket too; expected TLS for --host and --port "
                       "only");
  }
  log_ = std::make_unique<server::Log>(options_.log_file, options_.log_format == "text"
                                                              ? server::LogFormat::kText
                                                              : server::LogFormat::kJson);
  server::ServiceOptions service;
  service.allowed_hosts = NamesAtCommas(options_.allowed_hosts);
  service.cors_origin = options_.http.cors_origin;
  service.most_choices = options_.max_sequences + options_.queue_size;
  service.most_choices_per_client =
      options_.client_choices > 0 ? options_.client_choices : service.most_choices;
  service.most_queued_tokens = options_.queue_tokens;
  service.queue_seconds = static_cast<double>(options_.queue_timeout);
  service.request_seconds = static_cast<double>(options_.request_timeout);
  service.num_slots = options_.max_sequences;
  service.has_page = !options_.no_ui;
  service.metrics_as_vllm = options_.vllm_metrics;
  service.logs_content = options_.log_content;
  service.metrics_need_key = !options_.metrics_open;
  service.shares_prefixes = options_.pool.prefix_shared();
  service.version = fmt::format("{}", PMKVQ_VERSION);
  service_ = std::make_unique<server::Service>(service, LoadKeys(options_), log_.get());
  server::ServerOptions http = options_.http;
  http.port = static_cast<int>(options_.port);
  http.keep_alive_seconds = static_cast<double>(options_.keep_alive);
  http.idle_seconds = static_cast<double>(options_.idle_timeout);
  http.drain_seconds = static_cast<double>(options_.drain_delay);
  http.shutdown_seconds = static_cast<double>(options_.shutdown_timeout);
  http.max_body_bytes = static_cast<uint64_t>(ParseByteSize(options_.max_body, "--max-body"));
  http_ = std::make_unique<server::HttpServer>(http, service_.get());
  ExitIfInterrupted("serve");  // By a signal that came before the server took them over.
  std::thread io([&] {
    const server::ServerEnd end = http_->Run([this] {
      log_->Reopen();
      Reload([&] { http_->ReloadTls(); });
      Reload([&] { service_->SetKeys(LoadKeys(options_)); });
    });
    // The engine's step, or the loading of the model, may still take a while and cannot be ended.
    // Nothing on disk is open for writing but the log.
    const bool is_loading = end == server::ServerEnd::kDrained && !is_loaded_;
    if (end == server::ServerEnd::kAtOnce || is_loading) {
      log_->Flush(1);
      _exit(0);
    }
  });
  try {
    Load();
  } catch (...) {
    http_->Stop();
    io.join();
    throw;
  }
  io.join();
  engine_thread_.reset();
  return status_;
}

void Serve(const Options& options) {
  int status = 0;
  try {
    ServeCommand command(options);
    status = command.Run();
  } catch (const Cancelled&) {
    // A signal that came while files were read, before the server took signals over: nothing has
    // begun that would have to be ended in order.
  }
  if (status != 0) std::exit(status);
}

}  // namespace

void AddServe(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command =
      app.add_subcommand("serve", "serve a model over HTTP, as OpenAI's API (chat, completions)");
  NamesFile(command->add_option("--model", options->model, "model folder (Hugging Face layout)")
                ->required(),
            FileKind::kModel);
  AddConfig(*command, options->config);
  command->add_option("--host", options->http.host, "IP address to listen on")
      ->capture_default_str();
  command->add_option("--port", options->port, "port to listen on (0: a free one)")
      ->transform(WholeNumber(0, 65535))
      ->capture_default_str();
  command->add_option("--unix-socket", options->http.unix_socket,
                      "path of a UNIX socket to listen on in place of host and port");
  CLI::Option* cert = NamesFile(
      command->add_option("--tls-cert", options->http.tls_cert,
                          "PEM file with the server's certificate and those that lead to its root: "
                          "https in place of http"),
      FileKind::kInput);
  CLI::Option* key = NamesFile(command->add_option("--tls-key", options->http.tls_key,
                                                   "PEM file with the certificate's private key"),
                               FileKind::kInput);
  cert->needs(key);
  key->needs(cert);
  command->add_option("--served-model-name", options->served_name,
                      "names of the model for clients, with commas; the first one is in replies "
                      "(default: the folder's name)");
  NamesFile(
      command->add_option("--api-key-file", options->key_file,
                          "file with the keys of clients, one a line; PMKVQ_API_KEY holds one "
                          "more"),
      FileKind::kInput);
  command->add_flag("--insecure-no-key", options->insecure_no_key,
                    "listen on an address that others reach, without keys");
  command->add_option("--allowed-hosts", options->allowed_hosts,
                      "names in Host fields besides loopback ones, with commas");
  command->add_option("--cors-origin", options->http.cors_origin,
                      "origin whose web pages may use the server");
  command->add_option("--max-sequences", options->max_sequences, "requests decoded together")
      ->transform(WholeNumber(1, kMostBatch))
      ->capture_default_str();
  command->add_option("--queue-size", options->queue_size, "requests that may wait; more get 429")
      ->transform(WholeNumber(0, 1 << 20))
      ->capture_default_str();
  const auto add_number = [&](const char* name, int64_t& value, int64_t least, const char* help) {
    command->add_option(name, value, help)
        ->transform(WholeNumber(least, 1 << 30))
        ->capture_default_str();
  };
  add_number("--queue-tokens", options->queue_tokens, 0,
             "tokens of prompts that may run and wait; more get 429 (0: no limit)");
  add_number("--queue-timeout", options->queue_timeout, 0,
             "seconds that a request may wait for its turn; then 503 (0: no limit)");
  add_number("--request-timeout", options->request_timeout, 0,
             "seconds that a request may take; then its answer ends with \"length\" (0: no limit)");
  add_number("--max-connections", options->http.max_connections, 1, "open connections");
  add_number("--per-address", options->http.max_per_address, 1, "open connections of one address");
  add_number("--idle-timeout", options->idle_timeout, 1,
             "seconds that a connection may be open between requests");
  add_number("--drain-delay", options->drain_delay, 0,
             "seconds from SIGTERM on in which /health is 503 and requests are still taken");
  command->add_flag("--no-ui", options->no_ui, "without the web page at /");
  command->add_flag("--vllm-metrics", options->vllm_metrics,
                    "/metrics has those that gateways read under vLLM's names, too");
  command
      ->add_option("--client-requests", options->client_choices,
                   "requests of one client that may run or wait (0: as many as of all)")
      ->transform(WholeNumber(0, 1 << 20))
      ->capture_default_str();
  command
      ->add_option("--prefill-share", options->prefill_share,
                   "part of the time that prompts may take while answers are decoded")
      ->transform(DecimalNumber(0.01, 1))
      ->capture_default_str();
  command->add_option("--reasoning", options->reasoning, "text before </think> is reasoning")
      ->transform(OneOf({"auto", "on", "off"}))
      ->capture_default_str();
  command
      ->add_option("--tool-calls", options->tool_calls,
                   "how the model writes calls of tools (auto: as its chat template does)")
      ->transform(OneOf({"auto", "off", "hermes", "llama3", "mistral"}))
      ->capture_default_str();
  command
      ->add_option("--generation-config", options->generation_config,
                   "defaults of sampling from the model's generation_config.json")
      ->transform(OneOf({"auto", "none"}))
      ->capture_default_str();
  command->add_flag("--strict", options->strict, "refuse fields that are not known");
  command->add_option("--max-body", options->max_body, "largest body of a request")
      ->type_name("SIZE")
      ->transform(MemorySize())
      ->capture_default_str();
  command
      ->add_option("--keep-alive", options->keep_alive,
                   "seconds of silence in a stream before a comment is sent")
      ->transform(WholeNumber(1, 3600))
      ->capture_default_str();
  command
      ->add_option("--shutdown-timeout", options->shutdown_timeout,
                   "seconds that running requests get after SIGTERM")
      ->transform(WholeNumber(0, 1 << 20))
      ->capture_default_str();
  command->add_flag("--metrics-open", options->metrics_open, "/metrics needs no key");
  NamesFile(command->add_option("--log-file", options->log_file,
                                "file for the log, one event a line (default: stderr)"),
            FileKind::kOutput);
  command->add_option("--log-format", options->log_format, "lines of the log: JSON or name=value")
      ->transform(OneOf({"json", "text"}))
      ->capture_default_str();
  command->add_flag("--log-content", options->log_content,
                    "prompts and answers are in the log: what people ask is private");
  options->chat_template.Register(*command);
  options->tokenizer.Register(*command);
  options->weights.RegisterWithRanks(*command);
  options->kv.spec = "pm-kvq";
  options->kv.Register(*command);
  options->pool.Register(*command);
  AddExamples(*command,
              {"pmkvq serve --model models/longcot-10m --kv pm-kvq --kv-budget 4.75MiB",
               "pmkvq serve --model MODEL --plan plan.json --kv-pool 8GiB --max-sequences 64",
               "pmkvq serve --model MODEL --host 0.0.0.0 --api-key-file keys --max-sequences 64"});
  command->callback([options, command] {
    options->names_method = command->count("--kv") + command->count("--recipe") > 0;
    Serve(*options);
  });
}

}  // namespace pmkvq::cli
