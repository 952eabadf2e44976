// What the server does with requests: routes, keys, limits, generations. I/O thread only, but for
// the parts that say otherwise. Knows no sockets.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "pmkvq/server/api/reasoning.h"
#include "pmkvq/server/api/replies.h"
#include "pmkvq/server/api/requests.h"
#include "pmkvq/server/api/responses.h"
#include "pmkvq/server/api_keys.h"
#include "pmkvq/server/engine_thread.h"
#include "pmkvq/server/http/http_types.h"
#include "pmkvq/server/log.h"
#include "pmkvq/server/metrics.h"

namespace pmkvq::server {

struct ServiceOptions {
  std::vector<std::string> allowed_hosts;  // Besides loopback names, where there are no keys.
  std::string cors_origin;                 // "": none.
  int64_t most_choices = 64;               // Running and waiting ones together.
  int64_t most_choices_per_client = 64;
  int64_t most_queued_tokens = 0;  // Of prompts of live requests; 0: no limit.
  double queue_seconds = 600;      // In the queue; 0: no limit.
  double request_seconds = 0;      // From its start to its end; 0: no limit.
  bool metrics_need_key = true;
  bool shares_prefixes = false;  // Kept prompts are shared by all keys.
  int64_t num_slots = 0;         // Choices that are computed together.
  bool has_page = true;          // GET / is the web page.
  bool metrics_as_vllm = false;  // Further metrics under vLLM's names.
  bool logs_content = false;     // Prompts and answers are in the log.
  std::string version;
};

// One completion request from its submission to its end.
struct LiveRequest {
  CompletionRequest request;
  ReplyHead head;
  std::vector<ChoiceState> choices;
  std::vector<ReasoningSplitter> splitters;
  std::vector<ToolCallParser> tool_parsers;
  std::optional<ResponseWriter> response;  // Of /v1/responses.
  std::vector<size_t> taken;               // Bytes of each choice's text so far.
  std::vector<KvSequenceStats> kv;
  std::vector<int64_t> cached_tokens;  // Of each prompt, by the choice that computed it.
  std::vector<KvHistory> histories;    // With kv_report "events".
  UsageState usage;
  uint64_t seed = 0;
  std::string history;
  int64_t preemptions = 0;        // Of all choices.
  size_t num_open = 0;            // Choices that have not ended.
  std::optional<ApiError> error;  // Ends the whole request.
  std::string client;             // Whose it is: key or address.
  bool has_key = false;           // `client` is a key.
  std::string request_id;
  std::string endpoint;
  std::optional<double> waited_seconds;  // Until its first choice had a place in the engine.
  std::optional<double> first_token_seconds;
  std::vector<std::string> answers;  // Of each choice, as far as the log has room; else empty.
  std::chrono::steady_clock::time_point began;
  std::vector<std::chrono::steady_clock::time_point> last_token;
  GenerationId generation = 0;
  bool is_cancelled = false;
  bool is_timed_out = false;   // Its answer ends with what it has.
  std::function<void()> wake;  // Something has changed. Set by the connection.

  bool ended() const { return error.has_value() || num_open == 0; }
};

// Texts of prompts, as far as a line of the log has room for them. Any thread.
std::vector<std::string> PromptTextsForLog(const std::vector<std::vector<int32_t>>& prompts,
                                           const Tokenizer& tokenizer);

class Service {
 public:
  enum class State { kLoading, kReady, kClosing, kDraining };

  Service(ServiceOptions options, ApiKeys keys, Log* log);

  // The model is there. `engine_thread` must outlive the service.
  void SetReady(std::shared_ptr<const ApiContext> context, EngineThread* engine_thread,
                std::string fingerprint, std::vector<int64_t> eos_ids, int64_t kv_pool_bytes);
  void SetKeys(ApiKeys keys) { keys_ = std::move(keys); }
  // `still_serves`: new requests are taken for now.
  void BeginDrain(bool still_serves) { state_ = still_serves ? State::kClosing : State::kDraining; }
  State state() const { return state_; }
  int64_t most_choices() const { return options_.most_choices; }
  Metrics& metrics() { return metrics_; }
  Log& log() { return *log_; }

  // Before a body is read: method, host, key, media type. `client`: whose request it is.
  std::optional<HttpReply> Refuse(const RequestHead& head, const std::string& address,
                                  std::string* client);
  // Of requests that need no engine; nothing for the others.
  std::optional<HttpReply> ReplyAtOnce(const RequestHead& head);
  // Requests that are read, and answered, on a preparation thread: any thread may call it.
  static bool IsPrepared(const RequestHead& head);
  struct Prepared {
    std::optional<HttpReply> reply;  // Complete already: /tokenize and its like, and errors.
    std::optional<CompletionRequest> completion;
  };
  static Prepared Prepare(const RequestHead& head, const std::string& body,
                          const ApiContext& context);
  std::shared_ptr<const ApiContext> context() const { return context_; }

  // Hands a completion to the engine; null with `refused` where the server is full.
  std::shared_ptr<LiveRequest> Start(CompletionRequest request, const RequestHead& head,
                                     const std::string& client, HttpReply* refused);
  // Seconds that a request may still take; an hour where there is no limit.
  double SecondsLeft(const LiveRequest& live) const;
  // Ends its answer where the time for it has passed.
  void CheckTime(LiveRequest& live);
  // Nobody waits for it any more: ended, or the client has gone.
  void End(const std::shared_ptr<LiveRequest>& live, int status);
  void OnEvents(std::vector<GenerationEvent> events);
  // The log's line of an error that ended a request before it began; at most 50 in a second.
  // `client`: as Refuse() has set it.
  void LogRefused(const RequestHead& head, const std::string& address, const std::string& client,
                  const HttpReply& reply);
  // Ends everything that runs with this error.
  void FailAll(const ApiError& error);
  size_t num_live() const { return live_.size(); }
  // The cache now, as JSON: GET /v1/kv and each event of /v1/kv/stream. No text of anyone.
  std::string KvText() const;
  // Running choices as llama-server lists them.
  std::string SlotsText() const;

  // A whole answer; the request has ended.
  HttpReply WholeAnswer(LiveRequest& live) const;
  // What a stream has to say now; "": nothing. Includes its end.
  std::string StreamText(LiveRequest& live) const;

  static HttpReply ErrorReply(const ApiError& error);
  // Of a fixed set, for counters: a client's path is no label.
  static std::string EndpointOf(const std::string& path);

 private:
  static void TakePrompt(LiveRequest& live, GenerationEvent& event);
  void TakeToken(LiveRequest& live, GenerationEvent& event);
  static KvReport ReportOf(const LiveRequest& live);
  void TakeFinished(LiveRequest& live, GenerationEvent& event);
  void KeepForLog(LiveRequest& live, size_t choice, std::string_view text) const;
  void LogEnd(const LiveRequest& live, int status, double seconds);
  // `is_end`: no more text will come.
  static void AddText(LiveRequest& live, size_t choice, const AnswerText& text,
                      bool is_end = false);

  ServiceOptions options_;
  ApiKeys keys_;
  Log* log_;
  State state_ = State::kLoading;
  std::shared_ptr<const ApiContext> context_;
  EngineThread* engine_thread_ = nullptr;
  std::string fingerprint_;
  std::vector<int64_t> eos_ids_;
  int64_t kv_pool_bytes_ = 0;
  int64_t created_ = 0;
  Metrics metrics_;
  std::unordered_map<GenerationId, std::shared_ptr<LiveRequest>> live_;
  int64_t num_choices_ = 0;  // Of live requests.
  int64_t num_prompt_tokens_ = 0;
  std::map<std::string, int64_t> choices_of_client_;
  double mean_seconds_ = 1;  // Of requests, for Retry-After.
  std::map<std::string, int64_t> unknown_fields_;
  // Wrong keys of an address in the second that `wrong_keys_second_` is.
  std::map<std::string, int64_t> wrong_keys_;
  int64_t wrong_keys_second_ = 0;
  int64_t refused_second_ = 0;
  int64_t num_refused_ = 0;     // In that second.
  int64_t num_not_logged_ = 0;  // Since the last line of this kind.
};

}  // namespace pmkvq::server
