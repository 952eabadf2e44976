// The log's lines of requests: of one that has ended, and of one that was refused.
#include <algorithm>
#include <chrono>
#include <cmath>

#include "pmkvq/server/http/service.h"

namespace pmkvq::server {
namespace {

// Of a line, with --log-content: all prompts of the request, and all answers. The rest is for the
// other fields.
constexpr size_t kMostPromptBytes = size_t{64} << 10;
constexpr size_t kMostAnswerBytes = size_t{184} << 10;
static_assert(kMostPromptBytes + kMostAnswerBytes + (size_t{4} << 10) < kMostLogLineBytes);

// Of refused requests, in a second.
constexpr int64_t kMostRefusedLines = 50;

void WriteSeconds(JsonWriter& json, const char* name, double seconds) {
  json.Key(name).Number(std::round(seconds * 1e6) / 1e6);
}

void WriteTexts(JsonWriter& json, const char* name, const std::vector<std::string>& texts,
                size_t most_bytes, bool* is_cut) {
  json.Key(name).BeginArray();
  for (const std::string& text : texts) {
    // Of its share the quotes and the comma take three.
    const std::string_view front = FrontForLog(text, most_bytes / texts.size() - 3);
    *is_cut |= front.size() < text.size();
    json.String(front);
  }
  json.EndArray();
}

}  // namespace

std::vector<std::string> PromptTextsForLog(const std::vector<std::vector<int32_t>>& prompts,
                                           const Tokenizer& tokenizer) {
  std::vector<std::string> texts;
  for (const std::vector<int32_t>& ids : prompts) {
    // A token more than the line can have: so it is seen that the text is cut.
    const size_t count = std::min(ids.size(), kMostPromptBytes / prompts.size() + 1);
    texts.push_back(
        tokenizer.Decode({ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(count)}));
  }
  return texts;
}

void Service::KeepForLog(LiveRequest& live, size_t choice, std::string_view text) const {
  if (!options_.logs_content) return;
  // As long as it does not show that it is cut.
  std::string& answer = live.answers[choice];
  if (answer.size() <= kMostAnswerBytes / live.answers.size()) answer += text;
}

void Service::LogEnd(const LiveRequest& live, int status, double seconds) {
  log_->Write("info", "request", [&](JsonWriter& json) {
    json.Key("request").String(live.request_id).Key("id").String(live.head.id);
    json.Key(live.has_key ? "key" : "client").String(live.client);
    json.Key("endpoint").String(live.endpoint).Key("status").Int(status);
    json.Key("prompt_tokens").Int(live.usage.prompt_tokens);
    json.Key("completion_tokens").Int(live.usage.completion_tokens);
    // One that never had a place has done nothing but wait.
    WriteSeconds(json, "waited_seconds", std::max(0.0, live.waited_seconds.value_or(seconds)));
    if (live.first_token_seconds) {
      WriteSeconds(json, "first_token_seconds", *live.first_token_seconds);
    }
    WriteSeconds(json, "seconds", seconds);
    json.Key("finish").String(live.error          ? live.error->code
                              : live.is_cancelled ? "client_gone"
                                                  : live.choices.front().finish_reason);
    if (live.num_open < live.choices.size()) {
      const KvReport kv = ReportOf(live);
      json.Key("kv_min_bits").Int(kv.min_bits);
      json.Key("kv_mean_bits").Number(std::round(kv.mean_bits * 1e3) / 1e3);
    }
    if (!options_.logs_content) return;
    bool is_cut = false;
    WriteTexts(json, "prompts", live.request.prompt_texts, kMostPromptBytes, &is_cut);
    WriteTexts(json, "answers", live.answers, kMostAnswerBytes, &is_cut);
    if (is_cut) json.Key("cut").Bool(true);
  });
}

void Service::LogRefused(const RequestHead& head, const std::string& address,
                         const std::string& client, const HttpReply& reply) {
  const auto second = std::chrono::duration_cast<std::chrono::seconds>(
                          std::chrono::steady_clock::now().time_since_epoch())
                          .count();
  if (second != refused_second_) num_refused_ = 0;
  refused_second_ = second;
  // A client that is refused all the time must not fill the disk.
  if (++num_refused_ > kMostRefusedLines) {
    ++num_not_logged_;
    return;
  }
  log_->Write(reply.status >= 500 ? "warning" : "info", "refused", [&](JsonWriter& json) {
    json.Key("request").String(head.request_id);
    json.Key(client == address ? "client" : "key").String(client);
    json.Key("endpoint").String(EndpointOf(head.path)).Key("status").Int(reply.status);
    json.Key("code").String(reply.error_code);
    if (num_not_logged_ > 0) json.Key("not_logged").Int(num_not_logged_);
  });
  num_not_logged_ = 0;
}

}  // namespace pmkvq::server
