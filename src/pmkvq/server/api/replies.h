// Replies as JSON text: whole answers, and events of streams.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "pmkvq/engine/engine.h"
#include "pmkvq/server/api/api_error.h"
#include "pmkvq/server/api/requests.h"

namespace pmkvq::server {

// What all replies of one request share.
struct ReplyHead {
  std::string id;  // "chatcmpl-..." or "cmpl-..."
  int64_t created = 0;
  std::string model;
  std::string fingerprint;
  bool is_chat = false;
};

struct ReplyCall {
  std::string id;
  ToolCall call;
};

// A token that has no log-probability: the first one of a prompt.
TokenLogprobs WithoutLogprob(int32_t token);

// One choice while its answer grows: text that the client has not got yet, and what came before.
struct ChoiceState {
  size_t index = 0;
  std::string reasoning;                // Pending.
  std::string content;                  // Pending.
  std::vector<TokenLogprobs> logprobs;  // Pending.
  int64_t num_tokens = 0;
  int64_t num_reasoning_tokens = 0;
  // Of completions: characters before the first token of the pending logprobs, and tokens there
  // that are not in the text.
  size_t text_offset = 0;
  size_t num_added = 0;
  std::vector<TokenLogprobs> prompt_logprobs;  // Where the request has prompt_logprobs.
  std::vector<ReplyCall> calls;                // Pending.
  size_t num_calls = 0;                        // Pending ones included.
  bool started = false;                        // The stream's first event was written.
  bool closed = false;                         // The stream's last event was written.
  bool reasoned = false;                       // It has had reasoning.
  std::string finish_reason;                   // "": not ended.
  std::string stop_reason;                     // JSON: a string, a number, or null.
};

struct UsageState {
  int64_t prompt_tokens = 0;
  int64_t completion_tokens = 0;
  int64_t reasoning_tokens = 0;
  int64_t cached_tokens = 0;  // Of prompts: not computed again.
};

// The object "kv" of a reply.
struct KvReport {
  uint64_t seed = 0;
  std::string history;
  int min_bits = 16;
  double mean_bits = 16;
  int64_t halved_pages = 0;
  int64_t peak_bytes = 0;
  int64_t cached_tokens = 0;
  int64_t preemptions = 0;   // How often its choices gave up their places in a pool.
  bool is_asked_for = true;  // Otherwise it is left out.
  // With kv_report "events": of each choice, in the order in which they happened.
  const std::vector<KvHistory>* events = nullptr;
};
KvReport KvReportOf(const std::vector<KvSequenceStats>& choices, uint64_t seed,
                    const std::string& history);

// Writes the member "kv" of a reply, unless `kv.is_asked_for` is false.
void WriteKvReport(JsonWriter& json, const KvReport& kv);

// A whole answer: the choices' pending text is all of it.
std::string WholeReply(const ReplyHead& head, const std::vector<ChoiceState>& choices,
                       const UsageState& usage, const KvReport& kv, const Tokenizer& tokenizer);

// Appends the event, or the events, of what is pending of a choice, and clears that. Nothing where
// nothing is pending. `usage`: with stream_options.continuous_usage_stats.
void AppendStreamEvents(const ReplyHead& head, ChoiceState& choice, const UsageState* usage,
                        const Tokenizer& tokenizer, std::string& out);
// The event with usage, without choices.
void AppendUsageEvent(const ReplyHead& head, const UsageState& usage, const KvReport& kv,
                      std::string& out);
void AppendErrorEvent(const ApiError& error, std::string& out);
inline constexpr const char* kStreamEnd = "data: [DONE]\n\n";

std::string ModelsReply(const ApiContext& context, int64_t created);
std::string ModelReply(const ApiContext& context, const std::string& name, int64_t created);
std::string TokenizeReply(const TokenizeRequest& request, const ApiContext& context);
std::string DetokenizeReply(const std::string& text);
// What pages that were made for llama-server ask for.
std::string PropsReply(const ApiContext& context, int64_t num_slots, const std::string& version);
std::string TokenizerInfoReply(const ApiContext& context, const std::vector<int64_t>& eos_ids);

}  // namespace pmkvq::server
