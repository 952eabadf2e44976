#include "pmkvq/server/http/service.h"

#include <fmt/format.h>

#include <algorithm>
#include <ctime>
#include <random>

#include "pmkvq/base/error.h"
#include "pmkvq/base/random.h"
#include "pmkvq/server/http/page.h"

namespace pmkvq::server {
namespace {

constexpr double kOverdueStepSeconds = 60;

std::string Hex(uint64_t value) { return fmt::format("{:016x}", value); }

uint64_t RandomBits() {
  static std::random_device device;
  return (static_cast<uint64_t>(device()) << 32) | device();
}

double Seconds(std::chrono::steady_clock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

}  // namespace

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
  reply.error_code = error.code;
  reply.body = ErrorBody(error);
  if (error.retry_after > 0) {
    reply.headers.emplace_back("Retry-After", std::to_string(error.retry_after));
  }
  return reply;
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
    const char* status = state_ == State::kLoading ? "loading"
                         : state_ != State::kReady ? "draining"
                         : is_overdue              ? "stalled"
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
    if (options_.metrics_as_vllm && engine_thread_ != nullptr) {
      reply.body += metrics_.TextAsVllm(engine_thread_->snapshot(), kv_pool_bytes_,
                                        context_->model_names.front());
    }
  } else if (head.path == "/") {
    if (!options_.has_page) {
      return ErrorReply(StatusError(404, "not_found_error", "not_found",
                                    "the server was started without its page (--no-ui)"));
    }
    return ChatPage();
  } else if (head.path == "/v1/kv") {
    reply.body = KvText();
  } else if (head.path == "/v1/models") {
    reply.body = ModelsReply(*context_, created_);
  } else if (head.path.starts_with("/v1/models/")) {
    const std::string name = head.path.substr(std::string_view("/v1/models/").size());
    const std::vector<std::string>& names = context_->model_names;
    if (std::find(names.begin(), names.end(), name) == names.end()) {
      return ErrorReply(StatusError(
          404, "not_found_error", "model_not_found",
          fmt::format("model: found \"{}\", expected \"{}\"", name.substr(0, 80), names.front())));
    }
    reply.body = ModelReply(*context_, name, created_);
  } else if (head.path == "/props") {
    reply.body = PropsReply(*context_, options_.num_slots, options_.version);
  } else if (head.path == "/slots") {
    reply.body = SlotsText();
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
    const auto check_replay = [](const CompletionRequest& request) {
      const auto choices = static_cast<int64_t>(request.prompts.size()) * request.fields.n;
      if (!request.fields.kv_replay || std::ssize(*request.fields.kv_replay) <= choices) return;
      throw RefusedRequest(
          InvalidRequest("invalid_value", "kv_replay",
                         fmt::format("kv_replay: found choice {}, expected less than {}",
                                     request.fields.kv_replay->size() - 1, choices)));
    };
    if (head.path == "/v1/chat/completions") {
      prepared.completion = ReadChatRequest(body, context);
    } else if (head.path == "/v1/responses") {
      prepared.completion = ReadResponsesRequest(body, context);
    } else if (head.path == "/v1/completions") {
      prepared.completion = ReadTextRequest(body, context);
    } else if (head.path == "/tokenize") {
      reply(TokenizeReply(ReadTokenizeRequest(body, context), context));
    } else if (head.path == "/detokenize") {
      reply(DetokenizeReply(ReadDetokenizeRequest(body, context)));
    } else {
      const MarkedText prompt = ReadTemplateRequest(body, context);
      JsonWriter json;
      json.BeginObject().Key("prompt").String(prompt.text);
      json.Key("count").Int(std::ssize(context.tokenizer->Encode(prompt))).EndObject();
      reply(json.text());
    }
    if (prepared.completion) {
      check_replay(*prepared.completion);
      if (context.keeps_prompt_texts) {
        prepared.completion->prompt_texts =
            PromptTextsForLog(prepared.completion->prompts, *context.tokenizer);
      }
    }
  } catch (const RefusedRequest& refusal) {
    prepared.reply = ErrorReply(refusal.error());
  } catch (const Error& error) {
    prepared.reply = ErrorReply(InvalidRequest("invalid_value", "", WithoutPlace(error.what())));
  } catch (const std::exception&) {
    prepared.reply = ErrorReply(StatusError(500, "server_error", "internal", "an internal error"));
  }
  return prepared;
}

std::shared_ptr<LiveRequest> Service::Start(CompletionRequest request, const RequestHead& head,
                                            const std::string& client, HttpReply* refused) {
  const auto choices = static_cast<int64_t>(request.prompts.size()) * request.fields.n;
  const bool is_full = num_choices_ + choices > options_.most_choices;
  int64_t tokens = 0;
  for (const std::vector<int32_t>& ids : request.prompts) tokens += std::ssize(ids);
  const bool has_no_room = options_.most_queued_tokens > 0 && num_choices_ > 0 &&
                           num_prompt_tokens_ + tokens > options_.most_queued_tokens;
  const bool client_is_full =
      choices_of_client_[client] + choices > options_.most_choices_per_client;
  if (is_full || client_is_full || has_no_room) {
    ApiError error = StatusError(
        429, "rate_limit_error", is_full || has_no_room ? "queue_full" : "client_limit",
        is_full ? fmt::format("{} choices are running or waiting, the most are {}", num_choices_,
                              options_.most_choices)
        : has_no_room
            ? fmt::format("prompts of {} tokens are running or waiting, the most are {}",
                          num_prompt_tokens_, options_.most_queued_tokens)
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
  const char* prefix = request.is_response ? "resp_" : request.is_chat ? "chatcmpl-" : "cmpl-";
  live->head = {prefix + Hex(RandomBits()), static_cast<int64_t>(std::time(nullptr)),
                context_->model_names.front(), fingerprint_, request.is_chat};
  const auto count = static_cast<size_t>(choices);
  live->choices.resize(count);
  live->taken.resize(count);
  live->kv.resize(count);
  live->cached_tokens.resize(request.prompts.size());
  live->histories.resize(count);
  live->last_token.resize(count);
  live->num_open = count;
  live->client = client;
  live->has_key = !keys_.empty();
  live->request_id = head.request_id;
  live->endpoint = EndpointOf(head.path);
  if (options_.logs_content) live->answers.resize(count);
  live->began = std::chrono::steady_clock::now();
  const bool splits = request.is_chat && context_->parses_reasoning;
  Generation generation;
  for (size_t i = 0; i < count; ++i) {
    live->choices[i].index = i;
    live->splitters.emplace_back(splits, request.starts_in_reasoning);
    live->tool_parsers.emplace_back(request.tool_format);
    if (!request.answer_begin.empty()) (void)live->tool_parsers[i].Push(request.answer_begin);
    if (request.echo.empty()) continue;
    const EchoedPrompt& echo = request.echo[i / static_cast<size_t>(request.fields.n)];
    live->choices[i].content = echo.text;
    live->choices[i].num_added = echo.num_added;
  }
  for (size_t i = 0; i < request.prompts.size(); ++i) {
    generation.prompts.push_back(request.EngineRequest(i));
    // How fast an answer begins must not tell one client what another one has sent.
    if (!keys_.empty() && !options_.shares_prefixes) {
      generation.prompts.back().prefix_salt += '\n' + client;
    }
    live->usage.prompt_tokens += std::ssize(request.prompts[i]);
  }
  // As `pmkvq run --seed` gives seeds to its samples.
  for (int64_t i = 0; i < request.fields.n; ++i) {
    generation.seeds.push_back(StreamSeed(live->seed, static_cast<uint64_t>(i)));
  }
  if (request.fields.kv_replay) {
    generation.histories = std::move(*request.fields.kv_replay);
    generation.histories.resize(count);
  }
  generation.most_queue_seconds = options_.queue_seconds;
  generation.client = client;
  if (request.is_response) live->response.emplace(live->head);
  live->request = std::move(request);
  live->generation = engine_thread_->Submit(std::move(generation));
  live_[live->generation] = live;
  num_choices_ += choices;
  num_prompt_tokens_ += live->usage.prompt_tokens;
  choices_of_client_[client] += choices;
  metrics_.prompt_tokens += live->usage.prompt_tokens;
  return live;
}

double Service::SecondsLeft(const LiveRequest& live) const {
  constexpr double kHour = 3600;
  if (options_.request_seconds <= 0 || live.is_timed_out) return kHour;
  const double left =
      options_.request_seconds - Seconds(std::chrono::steady_clock::now() - live.began);
  return std::clamp(left, 0.001, kHour);
}

void Service::CheckTime(LiveRequest& live) {
  if (options_.request_seconds <= 0 || live.is_timed_out || live.ended()) return;
  if (Seconds(std::chrono::steady_clock::now() - live.began) < options_.request_seconds) return;
  live.is_timed_out = true;
  engine_thread_->Cancel(live.generation);
}

void Service::End(const std::shared_ptr<LiveRequest>& live, int status) {
  if (live_.erase(live->generation) == 0) return;
  const auto choices = static_cast<int64_t>(live->choices.size());
  num_choices_ -= choices;
  num_prompt_tokens_ -= live->usage.prompt_tokens;
  const auto of_client = choices_of_client_.find(live->client);
  if ((of_client->second -= choices) == 0) choices_of_client_.erase(of_client);
  if (!live->ended() || live->error) engine_thread_->Cancel(live->generation);
  const double seconds = Seconds(std::chrono::steady_clock::now() - live->began);
  metrics_.request_seconds.Observe(seconds);
  mean_seconds_ += 0.1 * (seconds - mean_seconds_);
  LogEnd(*live, status, seconds);
}

void Service::AddText(LiveRequest& live, size_t choice, const AnswerText& text, bool is_end) {
  ChoiceState& state = live.choices[choice];
  const auto add_answer = [&](ToolCallParser::Output out) {
    state.content += out.text;
    for (ToolCall& call : out.calls) {
      std::string id = "call_" + Hex(RandomBits());
      // Templates of this family ask for nine letters and digits.
      if (live.request.tool_format == ToolFormat::kMistral) id = Hex(RandomBits()).substr(0, 9);
      state.calls.push_back({std::move(id), std::move(call)});
      ++state.num_calls;
    }
  };
  state.reasoning += text.reasoning;
  add_answer(live.tool_parsers[choice].Push(text.content));
  if (is_end) add_answer(live.tool_parsers[choice].Finish());
  state.reasoned |= !text.reasoning.empty();
}

void Service::TakePrompt(LiveRequest& live, GenerationEvent& event) {
  ChoiceState& choice = live.choices[event.choice];
  const CompletionRequest& request = live.request;
  const auto of_prompt = event.choice / static_cast<size_t>(request.fields.n);
  const int32_t first = request.prompts[of_prompt].front();
  if (!request.echo.empty() && request.num_logprobs >= 0) {
    choice.logprobs.push_back(WithoutLogprob(first));
    for (TokenLogprobs token : event.prompt_logprobs) {
      token.top.resize(std::min(token.top.size(), static_cast<size_t>(request.num_logprobs)));
      choice.logprobs.push_back(std::move(token));
    }
  }
  if (request.num_prompt_logprobs < 0) return;
  choice.prompt_logprobs.push_back(WithoutLogprob(first));
  for (TokenLogprobs& token : event.prompt_logprobs) {
    token.top.resize(std::min(token.top.size(), static_cast<size_t>(request.num_prompt_logprobs)));
    choice.prompt_logprobs.push_back(std::move(token));
  }
}

void Service::TakeToken(LiveRequest& live, GenerationEvent& event) {
  ChoiceState& choice = live.choices[event.choice];
  if (live.request.is_prompt_only()) return;
  const auto now = std::chrono::steady_clock::now();
  if (choice.num_tokens == 0) {
    const double seconds = Seconds(now - live.began);
    metrics_.time_to_first_token.Observe(seconds);
    if (!live.first_token_seconds) live.first_token_seconds = seconds;
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
  KeepForLog(live, event.choice, event.text);
  std::string text = std::move(event.text);
  if (live.request.tool_format != ToolFormat::kNone) {
    for (const auto& [id, marker] : context_->tool_tokens) {
      if (id == event.token) text += marker;
    }
  }
  AddText(live, event.choice, live.splitters[event.choice].Push(text));
  if (event.logprobs) choice.logprobs.push_back(std::move(*event.logprobs));
}

void Service::TakeFinished(LiveRequest& live, GenerationEvent& event) {
  ChoiceState& choice = live.choices[event.choice];
  const Completion& done = *event.completion;
  ++metrics_.finished[std::string(NameOf(done.finish_reason))];
  --live.num_open;
  live.kv[event.choice] = done.kv;
  live.preemptions += done.num_preemptions;
  int64_t& cached = live.cached_tokens[event.choice / static_cast<size_t>(live.request.fields.n)];
  const int64_t more = std::max<int64_t>(0, done.num_cached_tokens - cached);
  cached += more;
  live.usage.cached_tokens += more;
  metrics_.cached_tokens += more;
  const std::string history = DigestOf(done.history);
  if (!history.empty()) live.history += (live.history.empty() ? "" : ",") + history;
  if (live.request.fields.kv_report == KvReportKind::kEvents) {
    live.histories[event.choice] = std::move(event.completion->history);
  }
  ReasoningSplitter& splitter = live.splitters[event.choice];
  if (!live.request.is_prompt_only()) {
    const std::string rest = done.text.substr(live.taken[event.choice]);
    KeepForLog(live, event.choice, rest);
    AddText(live, event.choice, splitter.Push(rest));
    AddText(live, event.choice, splitter.Finish(), true);
  }
  switch (done.finish_reason) {
    case FinishReason::kStop: {
      choice.finish_reason = live.request.is_prompt_only() ? "length"
                             : choice.num_calls > 0        ? "tool_calls"
                                                           : "stop";
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
      if (live.is_timed_out) {
        choice.finish_reason = "length";
        choice.stop_reason = "\"timeout\"";
        break;
      }
      live.error = StatusError(503, "server_error", "draining", "the server is shutting down");
      break;
    case FinishReason::kError:
      if (done.error.starts_with("[kv_replay]")) {
        live.error = InvalidRequest("invalid_value", "kv_replay", WithoutBrackets(done.error));
        break;
      }
      // It names the model's folder.
      log_->Write("error", "numeric_error", [&](JsonWriter& json) {
        json.Key("request").String(live.request_id).Key("message").String(done.error);
      });
      live.error = StatusError(500, "server_error", "numeric_error",
                               "the numbers of this answer cannot be gone on with; the server's "
                               "log says where, under " +
                                   live.request_id);
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
      case GenerationEvent::Kind::kBegun:
        if (!live.waited_seconds) live.waited_seconds = Seconds(event.time - live.began);
        continue;  // Nothing that a client would see.
      case GenerationEvent::Kind::kPrompt:
        TakePrompt(live, event);
        break;
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

KvReport Service::ReportOf(const LiveRequest& live) {
  KvReport report = KvReportOf(live.kv, live.seed, live.history);
  report.preemptions = live.preemptions;
  report.cached_tokens = live.usage.cached_tokens;
  report.is_asked_for = live.request.fields.kv_report != KvReportKind::kNone;
  if (live.request.fields.kv_report == KvReportKind::kEvents) report.events = &live.histories;
  return report;
}

HttpReply Service::WholeAnswer(LiveRequest& live) const {
  HttpReply reply;
  if (live.error) {
    reply = ErrorReply(*live.error);
    reply.error_code.clear();  // The line of the request's end has it.
    return reply;
  }
  if (live.response) {
    live.response->Take(live.choices.front(), nullptr);
    reply.body = live.response->Body(live.choices.front(), live.usage, ReportOf(live));
    return reply;
  }
  reply.body =
      WholeReply(live.head, live.choices, live.usage, ReportOf(live), *context_->tokenizer);
  return reply;
}

std::string Service::StreamText(LiveRequest& live) const {
  std::string out;
  const bool ended = live.ended();
  if (live.response) {
    live.response->Take(live.choices.front(), &out);
    if (live.error) {
      live.response->AppendError(*live.error, out);
    } else if (ended) {
      live.response->AppendEnd(live.choices.front(), live.usage, ReportOf(live), out);
    }
    return out;
  }
  for (ChoiceState& choice : live.choices) {
    const bool has_news = !choice.reasoning.empty() || !choice.content.empty() ||
                          !choice.logprobs.empty() || !choice.calls.empty() ||
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
    AppendUsageEvent(live.head, live.usage, ReportOf(live), out);
  }
  return out + kStreamEnd;
}

}  // namespace pmkvq::server
