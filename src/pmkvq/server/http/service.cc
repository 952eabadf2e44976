#include "pmkvq/server/http/service.h"

#include <fmt/format.h>

#include <algorithm>
#include <ctime>
#include <random>

#include "pmkvq/base/error.h"
#include "pmkvq/base/random.h"

namespace pmkvq::server {
namespace {

constexpr double kOverdueStepSeconds = 60;

struct Route {
  const char* method;
  const char* path;
  bool needs_key;
};
// All that there are; {} stands for one part of a path.
constexpr Route kRoutes[] = {
    {"POST", "/v1/chat/completions", true},
    {"POST", "/v1/completions", true},
    {"GET", "/v1/models", true},
    {"GET", "/v1/models/{}", true},
    {"POST", "/tokenize", true},
    {"POST", "/detokenize", true},
    {"POST", "/apply-template", true},
    {"GET", "/tokenizer_info", true},
    {"GET", "/metrics", true},
    {"GET", "/health", false},
    {"GET", "/live", false},
    {"GET", "/version", false},
};

bool Matches(std::string_view pattern, std::string_view path) {
  if (!pattern.ends_with("{}")) return pattern == path;
  const std::string_view front = pattern.substr(0, pattern.size() - 2);
  return path.starts_with(front) && path.size() > front.size();
}

const Route* FindRoute(const std::string& method, const std::string& path, bool* path_is_known,
                       std::string* allowed) {
  const Route* found = nullptr;
  for (const Route& route : kRoutes) {
    if (!Matches(route.path, path)) continue;
    *path_is_known = true;
    *allowed = route.method;
    if (method == route.method || (method == "HEAD" && std::string_view(route.method) == "GET")) {
      found = &route;
    }
  }
  return found;
}

ApiError ErrorOf(int status, const char* type, const char* code, std::string message) {
  ApiError error;
  error.status = status;
  error.type = type;
  error.code = code;
  error.message = std::move(message);
  return error;
}

// "example.org:80" and "[::1]:80" without the port.
std::string_view HostName(std::string_view host) {
  const size_t colon = host.rfind(':');
  if (colon == std::string_view::npos || host.ends_with("]")) return host;
  return host.substr(0, colon);
}

bool IsLoopback(std::string_view name) {
  return name == "localhost" || name == "[::1]" || name.starts_with("127.");
}

std::string Hex(uint64_t value) { return fmt::format("{:016x}", value); }

uint64_t RandomBits() {
  static std::random_device device;
  return (static_cast<uint64_t>(device()) << 32) | device();
}

double Seconds(std::chrono::steady_clock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

}  // namespace

std::string Service::EndpointOf(const std::string& path) {
  for (const Route& route : kRoutes) {
    if (Matches(route.path, path)) return route.path;
  }
  return "other";
}

Service::Service(ServiceOptions options, ApiKeys keys, Log* log)
    : options_(std::move(options)),
      keys_(std::move(keys)),
      log_(log),
      created_(static_cast<int64_t>(std::time(nullptr))) {}

void Service::SetReady(std::shared_ptr<const ApiContext> context, EngineThread* engine_thread,
                       std::string fingerprint, std::vector<int64_t> eos_ids,
                       int64_t kv_pool_bytes) {
  context_ = std::move(context);
  engine_thread_ = engine_thread;
  fingerprint_ = std::move(fingerprint);
  eos_ids_ = std::move(eos_ids);
  kv_pool_bytes_ = kv_pool_bytes;
  if (state_ == State::kLoading) state_ = State::kReady;
}

HttpReply Service::ErrorReply(const ApiError& error) {
  HttpReply reply;
  reply.status = error.status;
  reply.body = ErrorBody(error);
  if (error.retry_after > 0) {
    reply.headers.emplace_back("Retry-After", std::to_string(error.retry_after));
  }
  return reply;
}

std::optional<HttpReply> Service::Refuse(const RequestHead& head, const std::string& address,
                                         std::string* client) {
  *client = address;
  bool path_is_known = false;
  std::string allowed;
  const Route* route = FindRoute(head.method, head.path, &path_is_known, &allowed);
  // A page of another site that reaches this server by a name of its choice (DNS rebinding).
  const std::string_view name = HostName(head.host);
  const bool host_is_known =
      IsLoopback(name) || std::find(options_.allowed_hosts.begin(), options_.allowed_hosts.end(),
                                    name) != options_.allowed_hosts.end();
  // HTTP/1.0 may leave the field out, and browsers do not speak that.
  if (!head.host.empty() && !host_is_known && (keys_.empty() || !options_.allowed_hosts.empty())) {
    return ErrorReply(ErrorOf(403, "permission_error", "host_not_allowed",
                              fmt::format("Host: found \"{}\", expected a loopback name or one of "
                                          "--allowed-hosts",
                                          name.substr(0, 80))));
  }
  if (head.method == "OPTIONS" && !options_.cors_origin.empty() && path_is_known) {
    HttpReply reply;
    reply.status = 204;
    reply.headers.emplace_back("Access-Control-Allow-Methods", allowed);
    reply.headers.emplace_back("Access-Control-Allow-Headers", "Authorization, Content-Type");
    return reply;
  }
  if (!path_is_known) {
    return ErrorReply(ErrorOf(404, "not_found_error", "not_found",
                              "the path is none of this server's endpoints"));
  }
  if (route == nullptr) {
    HttpReply reply = ErrorReply(
        ErrorOf(405, "invalid_request_error", "method_not_allowed",
                fmt::format("found {}, expected {}", head.method.substr(0, 16), allowed)));
    reply.headers.emplace_back("Allow", allowed);
    return reply;
  }
  const bool is_open = !route->needs_key || (head.path == "/metrics" && !options_.metrics_need_key);
  if (!keys_.empty() && !is_open) {
    std::string_view given = head.api_key;
    if (given.empty() && head.authorization.starts_with("Bearer ")) {
      given = std::string_view(head.authorization).substr(7);
    }
    const std::optional<std::string> key = keys_.Check(given);
    if (!key) {
      HttpReply reply =
          ErrorReply(ErrorOf(401, "authentication_error", "invalid_api_key",
                             given.empty() ? "no API key; expected Authorization: Bearer KEY"
                                           : "the API key is wrong"));
      reply.headers.emplace_back("WWW-Authenticate", "Bearer");
      return reply;
    }
    *client = *key;
  }
  if (head.method == "POST") {
    const std::string_view type =
        std::string_view(head.content_type).substr(0, head.content_type.find(';'));
    if (type != "application/json" ||
        !(head.content_encoding.empty() || head.content_encoding == "identity")) {
      return ErrorReply(
          ErrorOf(415, "invalid_request_error", "unsupported_media_type",
                  "expected Content-Type: application/json without a Content-Encoding"));
    }
  }
  if (head.path == "/live" || head.path == "/version" || head.path == "/health" ||
      head.path == "/metrics") {
    return std::nullopt;
  }
  if (state_ != State::kReady) {
    ApiError error = ErrorOf(
        503, "server_error", state_ == State::kLoading ? "loading" : "draining",
        state_ == State::kLoading ? "the model is being loaded" : "the server is shutting down");
    error.retry_after = 5;
    return ErrorReply(error);
  }
  return std::nullopt;
}

std::optional<HttpReply> Service::ReplyAtOnce(const RequestHead& head) {
  HttpReply reply;
  if (head.path == "/live") {
    reply.body = "{\"status\":\"ok\"}";
  } else if (head.path == "/version") {
    JsonWriter json;
    json.BeginObject().Key("version").String(options_.version).EndObject();
    reply.body = json.text();
  } else if (head.path == "/health") {
    const bool is_overdue =
        engine_thread_ != nullptr && engine_thread_->SecondsInStep() > kOverdueStepSeconds;
    const char* status = state_ == State::kLoading    ? "loading"
                         : state_ == State::kDraining ? "draining"
                         : is_overdue                 ? "stalled"
                                                      : "ok";
    reply.body = fmt::format("{{\"status\":\"{}\"}}", status);
    if (std::string_view(status) != "ok") {
      reply.status = 503;
      reply.headers.emplace_back("Retry-After", "5");
    }
  } else if (head.path == "/metrics") {
    metrics_.log_lines_dropped = log_->num_dropped();
    reply.content_type = "text/plain; version=0.0.4; charset=utf-8";
    reply.body =
        metrics_.Text(engine_thread_ == nullptr ? EngineSnapshot{} : engine_thread_->snapshot(),
                      kv_pool_bytes_, options_.version);
  } else if (head.path == "/v1/models") {
    reply.body = ModelsReply(*context_, created_);
  } else if (head.path.starts_with("/v1/models/")) {
    const std::string name = head.path.substr(std::string_view("/v1/models/").size());
    const std::vector<std::string>& names = context_->model_names;
    if (std::find(names.begin(), names.end(), name) == names.end()) {
      return ErrorReply(ErrorOf(
          404, "not_found_error", "model_not_found",
          fmt::format("model: found \"{}\", expected \"{}\"", name.substr(0, 80), names.front())));
    }
    reply.body = ModelReply(*context_, name, created_);
  } else if (head.path == "/tokenizer_info") {
    reply.body = TokenizerInfoReply(*context_, eos_ids_);
  } else {
    return std::nullopt;
  }
  return reply;
}

Service::Prepared Service::Prepare(const RequestHead& head, const std::string& body,
                                   const ApiContext& context) {
  Prepared prepared;
  const auto reply = [&](std::string text) {
    prepared.reply.emplace();
    prepared.reply->body = std::move(text);
  };
  try {
    if (head.path == "/v1/chat/completions") {
      prepared.completion = ReadChatRequest(body, context);
    } else if (head.path == "/v1/completions") {
      prepared.completion = ReadTextRequest(body, context);
    } else if (head.path == "/tokenize") {
      reply(TokenizeReply(ReadTokenizeRequest(body, context), context));
    } else if (head.path == "/detokenize") {
      reply(DetokenizeReply(ReadDetokenizeRequest(body, context)));
    } else {
      JsonWriter json;
      json.BeginObject().Key("prompt").String(ReadTemplateRequest(body, context)).EndObject();
      reply(json.text());
    }
  } catch (const RefusedRequest& refusal) {
    prepared.reply = ErrorReply(refusal.error());
  } catch (const Error& error) {
    prepared.reply = ErrorReply(InvalidRequest("invalid_value", "", error.what()));
  } catch (const std::exception&) {
    prepared.reply = ErrorReply(ErrorOf(500, "server_error", "internal", "an internal error"));
  }
  return prepared;
}

std::shared_ptr<LiveRequest> Service::Start(CompletionRequest request, const RequestHead& head,
                                            const std::string& client, HttpReply* refused) {
  const auto choices = static_cast<int64_t>(request.prompts.size()) * request.fields.n;
  const bool is_full = num_choices_ + choices > options_.most_choices;
  const bool client_is_full =
      choices_of_client_[client] + choices > options_.most_choices_per_client;
  if (is_full || client_is_full) {
    ApiError error = ErrorOf(
        429, "rate_limit_error", is_full ? "queue_full" : "client_limit",
        is_full ? fmt::format("{} choices are running or waiting, the most are {}", num_choices_,
                              options_.most_choices)
                : fmt::format("{} choices of this client are running or waiting, the most are {}",
                              choices_of_client_[client], options_.most_choices_per_client));
    error.retry_after = static_cast<int>(std::clamp(mean_seconds_, 1.0, 60.0));
    *refused = ErrorReply(error);
    return nullptr;
  }
  for (const std::string& field : request.unknown_fields) {
    if (unknown_fields_.size() >= 1000 || unknown_fields_[field]++ > 0) continue;
    log_->Write("warning", "unknown_field",
                [&](JsonWriter& json) { json.Key("field").String(field.substr(0, 80)); });
  }
  auto live = std::make_shared<LiveRequest>();
  live->seed = request.fields.seed.value_or(RandomBits());
  live->head = {(request.is_chat ? "chatcmpl-" : "cmpl-") + Hex(RandomBits()),
                static_cast<int64_t>(std::time(nullptr)), context_->model_names.front(),
                fingerprint_, request.is_chat};
  const auto count = static_cast<size_t>(choices);
  live->choices.resize(count);
  live->taken.resize(count);
  live->kv.resize(count);
  live->last_token.resize(count);
  live->num_open = count;
  live->client = client;
  live->request_id = head.request_id;
  live->began = std::chrono::steady_clock::now();
  const bool splits = request.is_chat && context_->parses_reasoning;
  Generation generation;
  for (size_t i = 0; i < count; ++i) {
    live->choices[i].index = i;
    live->splitters.emplace_back(splits, request.starts_in_reasoning);
  }
  for (size_t i = 0; i < request.prompts.size(); ++i) {
    generation.prompts.push_back(request.EngineRequest(i));
    live->usage.prompt_tokens += std::ssize(request.prompts[i]);
  }
  // As `pmkvq run --seed` gives seeds to its samples.
  for (int64_t i = 0; i < request.fields.n; ++i) {
    generation.seeds.push_back(StreamSeed(live->seed, static_cast<uint64_t>(i)));
  }
  live->request = std::move(request);
  live->generation = engine_thread_->Submit(std::move(generation));
  live_[live->generation] = live;
  num_choices_ += choices;
  choices_of_client_[client] += choices;
  metrics_.prompt_tokens += live->usage.prompt_tokens;
  return live;
}

void Service::End(const std::shared_ptr<LiveRequest>& live, int status) {
  if (live_.erase(live->generation) == 0) return;
  const auto choices = static_cast<int64_t>(live->choices.size());
  num_choices_ -= choices;
  const auto of_client = choices_of_client_.find(live->client);
  if ((of_client->second -= choices) == 0) choices_of_client_.erase(of_client);
  if (!live->ended() || live->error) engine_thread_->Cancel(live->generation);
  const double seconds = Seconds(std::chrono::steady_clock::now() - live->began);
  metrics_.request_seconds.Observe(seconds);
  mean_seconds_ += 0.1 * (seconds - mean_seconds_);
  log_->Write("info", "request", [&](JsonWriter& json) {
    json.Key("request").String(live->request_id).Key("id").String(live->head.id);
    json.Key("client").String(live->client).Key("status").Int(status);
    json.Key("prompt_tokens").Int(live->usage.prompt_tokens);
    json.Key("completion_tokens").Int(live->usage.completion_tokens);
    json.Key("seconds").Number(seconds);
    json.Key("finish").String(live->error          ? live->error->code
                              : live->is_cancelled ? "client_gone"
                                                   : live->choices.front().finish_reason);
  });
}

void Service::AddText(LiveRequest& live, size_t choice, const AnswerText& text) {
  ChoiceState& state = live.choices[choice];
  state.reasoning += text.reasoning;
  state.content += text.content;
  state.reasoned |= !text.reasoning.empty();
}

void Service::TakeToken(LiveRequest& live, GenerationEvent& event) {
  ChoiceState& choice = live.choices[event.choice];
  const auto now = std::chrono::steady_clock::now();
  if (choice.num_tokens == 0) {
    metrics_.time_to_first_token.Observe(Seconds(now - live.began));
  } else {
    metrics_.inter_token.Observe(Seconds(now - live.last_token[event.choice]));
  }
  live.last_token[event.choice] = now;
  ++choice.num_tokens;
  ++live.usage.completion_tokens;
  ++metrics_.generated_tokens;
  if (live.splitters[event.choice].in_reasoning()) {
    ++choice.num_reasoning_tokens;
    ++live.usage.reasoning_tokens;
    ++metrics_.reasoning_tokens;
  }
  live.taken[event.choice] += event.text.size();
  AddText(live, event.choice, live.splitters[event.choice].Push(event.text));
  if (event.logprobs) choice.logprobs.push_back(std::move(*event.logprobs));
}

void Service::TakeFinished(LiveRequest& live, GenerationEvent& event) {
  ChoiceState& choice = live.choices[event.choice];
  const Completion& done = *event.completion;
  ++metrics_.finished[std::string(NameOf(done.finish_reason))];
  --live.num_open;
  live.kv[event.choice] = done.kv;
  if (!event.history.empty()) {
    live.history += (live.history.empty() ? "" : ",") + event.history;
  }
  ReasoningSplitter& splitter = live.splitters[event.choice];
  AddText(live, event.choice, splitter.Push(done.text.substr(live.taken[event.choice])));
  AddText(live, event.choice, splitter.Finish());
  switch (done.finish_reason) {
    case FinishReason::kStop: {
      choice.finish_reason = "stop";
      const std::vector<int32_t>& stop_ids = live.request.fields.stop_ids;
      if (!done.stop_string.empty()) {
        if (live.request.fields.include_stop) choice.content += done.stop_string;
        JsonWriter json;
        json.String(done.stop_string);
        choice.stop_reason = json.text();
      } else if (!done.output_ids.empty() && std::find(stop_ids.begin(), stop_ids.end(),
                                                       done.output_ids.back()) != stop_ids.end()) {
        choice.stop_reason = std::to_string(done.output_ids.back());
      }
      break;
    }
    case FinishReason::kLength:
      choice.finish_reason = "length";
      break;
    case FinishReason::kKvBudget:
      choice.finish_reason = "length";
      choice.stop_reason = "\"kv_budget\"";
      break;
    case FinishReason::kCancelled:
      live.error = ErrorOf(503, "server_error", "draining", "the server is shutting down");
      break;
    case FinishReason::kError:
      live.error = ErrorOf(500, "server_error", "numeric_error", done.error);
      break;
  }
}

void Service::OnEvents(std::vector<GenerationEvent> events) {
  std::vector<std::shared_ptr<LiveRequest>> changed;
  for (GenerationEvent& event : events) {
    const auto found = live_.find(event.generation);
    if (found == live_.end()) continue;  // Its client has gone.
    LiveRequest& live = *found->second;
    switch (event.kind) {
      case GenerationEvent::Kind::kToken:
        TakeToken(live, event);
        break;
      case GenerationEvent::Kind::kFinished:
        TakeFinished(live, event);
        break;
      case GenerationEvent::Kind::kRefused:
        live.error = event.error;
        break;
    }
    if (changed.empty() || changed.back() != found->second) changed.push_back(found->second);
  }
  for (const auto& live : changed) {
    if (live->wake) live->wake();
  }
}

void Service::FailAll(const ApiError& error) {
  std::vector<std::shared_ptr<LiveRequest>> all;
  for (const auto& [id, live] : live_) all.push_back(live);
  for (const auto& live : all) {
    if (!live->ended()) live->error = error;
    if (live->wake) live->wake();
  }
}

HttpReply Service::WholeAnswer(LiveRequest& live) const {
  if (live.error) return ErrorReply(*live.error);
  HttpReply reply;
  reply.body = WholeReply(live.head, live.choices, live.usage,
                          KvReportOf(live.kv, live.seed, live.history), *context_->tokenizer);
  return reply;
}

std::string Service::StreamText(LiveRequest& live) const {
  std::string out;
  const bool ended = live.ended();
  for (ChoiceState& choice : live.choices) {
    const bool has_news = !choice.reasoning.empty() || !choice.content.empty() ||
                          !choice.logprobs.empty() ||
                          (!choice.finish_reason.empty() && !choice.closed);
    if (!has_news) continue;
    AppendStreamEvents(live.head, choice,
                       live.request.fields.continuous_usage ? &live.usage : nullptr,
                       *context_->tokenizer, out);
  }
  if (!ended) return out;
  if (live.error) {
    AppendErrorEvent(*live.error, out);
  } else if (live.request.fields.include_usage) {
    AppendUsageEvent(live.head, live.usage, KvReportOf(live.kv, live.seed, live.history), out);
  }
  return out + kStreamEnd;
}

}  // namespace pmkvq::server
