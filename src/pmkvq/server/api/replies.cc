#include "pmkvq/server/api/replies.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "pmkvq/server/api/api_error.h"

namespace pmkvq::server {
namespace {

void WriteHead(JsonWriter& json, const ReplyHead& head, bool is_stream) {
  json.Key("id").String(head.id);
  json.Key("object").String(!head.is_chat ? "text_completion"
                            : is_stream   ? "chat.completion.chunk"
                                          : "chat.completion");
  json.Key("created").Int(head.created);
  json.Key("model").String(head.model);
  json.Key("system_fingerprint").String(head.fingerprint);
}

void WriteUsage(JsonWriter& json, const UsageState& usage) {
  json.Key("usage").BeginObject();
  json.Key("prompt_tokens").Int(usage.prompt_tokens);
  json.Key("completion_tokens").Int(usage.completion_tokens);
  json.Key("total_tokens").Int(usage.prompt_tokens + usage.completion_tokens);
  json.Key("prompt_tokens_details").BeginObject();
  json.Key("cached_tokens").Int(usage.cached_tokens).EndObject();
  json.Key("completion_tokens_details").BeginObject();
  json.Key("reasoning_tokens").Int(usage.reasoning_tokens).EndObject();
  json.EndObject();
}

// Text of a token for people: bytes that are no UTF-8 by themselves become U+FFFD.
std::string TokenText(const Tokenizer& tokenizer, int32_t id) {
  return tokenizer.IsValid(id) ? tokenizer.TokenBytes(id) : "";
}

void WriteChatToken(JsonWriter& json, const TokenLogprob& one, const Tokenizer& tokenizer) {
  const std::string text = TokenText(tokenizer, one.token);
  json.Key("token").String(text);
  json.Key("logprob").Number(one.logprob);
  json.Key("bytes").BeginArray();
  for (const char byte : text) json.Int(static_cast<unsigned char>(byte));
  json.EndArray();
}

void WriteChatLogprobs(JsonWriter& json, const std::vector<TokenLogprobs>& logprobs,
                       const Tokenizer& tokenizer) {
  json.Key("logprobs");
  if (logprobs.empty()) {
    json.Null();
    return;
  }
  json.BeginObject().Key("content").BeginArray();
  for (const TokenLogprobs& token : logprobs) {
    json.BeginObject();
    WriteChatToken(json, token.drawn, tokenizer);
    json.Key("top_logprobs").BeginArray();
    for (const TokenLogprob& one : token.top) {
      json.BeginObject();
      WriteChatToken(json, one, tokenizer);
      json.EndObject();
    }
    json.EndArray().EndObject();
  }
  json.EndArray().Key("refusal").Null().EndObject();
}

// `first`: the number of the first of them; of whole answers -1, whose calls have no numbers.
void WriteCalls(JsonWriter& json, const std::vector<ReplyCall>& calls, int64_t first) {
  json.Key("tool_calls").BeginArray();
  for (const ReplyCall& one : calls) {
    json.BeginObject();
    if (first >= 0) json.Key("index").Int(first++);
    json.Key("id").String(one.id).Key("type").String("function");
    json.Key("function").BeginObject().Key("name").String(one.call.name);
    json.Key("arguments").String(one.call.arguments).EndObject().EndObject();
  }
  json.EndArray();
}

// Characters that begin in these bytes.
size_t NumCharacters(std::string_view bytes) {
  return static_cast<size_t>(std::count_if(bytes.begin(), bytes.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  }));
}

// Where each token of the pending log-probabilities begins, and behind them where the next one
// does, in characters of the text.
std::vector<size_t> TextOffsets(const ChoiceState& choice, const Tokenizer& tokenizer) {
  std::vector<size_t> offsets = {choice.text_offset};
  for (size_t i = 0; i < choice.logprobs.size(); ++i) {
    const bool is_added = i < choice.num_added;
    const std::string text = TokenText(tokenizer, choice.logprobs[i].drawn.token);
    offsets.push_back(offsets.back() + (is_added ? 0 : NumCharacters(text)));
  }
  return offsets;
}

// As vLLM writes it: by token id, the drawn one first.
void WritePromptLogprobs(JsonWriter& json, const ChoiceState& choice, const Tokenizer& tokenizer) {
  if (choice.prompt_logprobs.empty()) return;
  json.Key("prompt_logprobs").BeginArray();
  for (const TokenLogprobs& token : choice.prompt_logprobs) {
    if (std::isnan(token.drawn.logprob)) {
      json.Null();
      continue;
    }
    json.BeginObject();
    const auto write = [&](const TokenLogprob& one, int64_t rank) {
      json.Key(std::to_string(one.token)).BeginObject().Key("logprob").Number(one.logprob);
      if (rank > 0) json.Key("rank").Int(rank);
      json.Key("decoded_token").String(TokenText(tokenizer, one.token)).EndObject();
    };
    int64_t rank = 0;
    for (size_t i = 0; i < token.top.size(); ++i) {
      if (token.top[i].token == token.drawn.token) rank = static_cast<int64_t>(i) + 1;
    }
    write(token.drawn, rank);
    for (size_t i = 0; i < token.top.size(); ++i) {
      if (token.top[i].token != token.drawn.token) write(token.top[i], static_cast<int64_t>(i) + 1);
    }
    json.EndObject();
  }
  json.EndArray();
}

void WriteTextLogprobs(JsonWriter& json, const ChoiceState& choice, const Tokenizer& tokenizer) {
  json.Key("logprobs");
  if (choice.logprobs.empty()) {
    json.Null();
    return;
  }
  json.BeginObject().Key("tokens").BeginArray();
  for (const TokenLogprobs& token : choice.logprobs) {
    json.String(TokenText(tokenizer, token.drawn.token));
  }
  json.EndArray().Key("token_logprobs").BeginArray();
  for (const TokenLogprobs& token : choice.logprobs) json.Number(token.drawn.logprob);
  json.EndArray().Key("top_logprobs").BeginArray();
  for (const TokenLogprobs& token : choice.logprobs) {
    if (std::isnan(token.drawn.logprob)) {
      json.Null();
      continue;
    }
    json.BeginObject();
    std::vector<std::string> seen;  // Of equal texts the likeliest stays.
    const auto write = [&](const TokenLogprob& one) {
      std::string text = TokenText(tokenizer, one.token);
      if (std::find(seen.begin(), seen.end(), text) != seen.end()) return;
      json.Key(text).Number(one.logprob);
      seen.push_back(std::move(text));
    };
    for (const TokenLogprob& one : token.top) write(one);
    write(token.drawn);
    json.EndObject();
  }
  json.EndArray().Key("text_offset").BeginArray();
  std::vector<size_t> offsets = TextOffsets(choice, tokenizer);
  offsets.pop_back();
  for (const size_t offset : offsets) json.Int(static_cast<int64_t>(offset));
  json.EndArray().EndObject();
}

void WriteRaw(JsonWriter& json, const std::string& text) {
  if (text.empty() || text == "null") {
    json.Null();
  } else if (text.front() == '"') {
    json.String(JsonValue::Parse(text, "stop_reason").AsString());
  } else {
    json.Int(JsonValue::Parse(text, "stop_reason").AsInt());
  }
}

void WriteFinish(JsonWriter& json, const ChoiceState& choice) {
  json.Key("finish_reason");
  if (choice.finish_reason.empty()) {
    json.Null();
  } else {
    json.String(choice.finish_reason);
  }
  json.Key("stop_reason");
  WriteRaw(json, choice.stop_reason);
}

// One event of a stream with one choice; `write` writes what the choice says.
template <class Write>
void AppendEvent(const ReplyHead& head, const ChoiceState& choice, const UsageState* usage,
                 std::string& out, const Write& write) {
  JsonWriter json;
  json.BeginObject();
  WriteHead(json, head, true);
  json.Key("choices").BeginArray().BeginObject();
  json.Key("index").Int(static_cast<int64_t>(choice.index));
  write(json);
  json.EndObject().EndArray();
  if (usage != nullptr) WriteUsage(json, *usage);
  json.EndObject();
  out += "data: ";
  out += json.text();
  out += "\n\n";
}

}  // namespace

void WriteKvReport(JsonWriter& json, const KvReport& kv) {
  if (!kv.is_asked_for) return;
  json.Key("kv").BeginObject();
  json.Key("seed").String(std::to_string(kv.seed));  // 64 bits do not fit a JavaScript number.
  json.Key("history").String(kv.history);
  json.Key("min_bits").Int(kv.min_bits);
  json.Key("mean_bits").Number(kv.mean_bits);
  json.Key("halved_pages").Int(kv.halved_pages);
  json.Key("preemptions").Int(kv.preemptions);
  json.Key("cached_tokens").Int(kv.cached_tokens);
  json.Key("peak_bytes").Int(kv.peak_bytes);
  if (kv.events != nullptr) {
    json.Key("events").BeginArray();
    for (size_t choice = 0; choice < kv.events->size(); ++choice) {
      for (const KvHistoryEvent& event : (*kv.events)[choice]) {
        json.BeginObject().Key("choice").Int(static_cast<int64_t>(choice));
        json.Key("tokens").Int(event.num_tokens);
        if (event.is_resume()) {
          json.Key("resume").Bool(true).EndObject();
          continue;
        }
        json.Key("layer").Int(event.layer);
        json.Key("from_bits").Int(event.from_bits).Key("k_pages").Int(event.num_k_pages);
        json.Key("v_pages").Int(event.num_v_pages);
        if (event.first_k_page >= 0) json.Key("k_first").Int(event.first_k_page);
        if (event.first_v_page >= 0) json.Key("v_first").Int(event.first_v_page);
        json.EndObject();
      }
    }
    json.EndArray();
  }
  json.EndObject();
}

TokenLogprobs WithoutLogprob(int32_t token) {
  return {{token, std::numeric_limits<double>::quiet_NaN()}, {}};
}

KvReport KvReportOf(const std::vector<KvSequenceStats>& choices, uint64_t seed,
                    const std::string& history) {
  KvReport report;
  report.seed = seed;
  report.history = history;
  int64_t num_pages = 0;
  double sum = 0;
  for (const KvSequenceStats& stats : choices) {
    report.peak_bytes += stats.peak_bytes;
    for (const int bits : kWidths) {
      const int64_t pages = stats.pages[WidthIndex(bits)];
      if (pages == 0) continue;
      report.min_bits = std::min(report.min_bits, bits);
      if (bits < 16) report.halved_pages += pages;
      num_pages += pages;
      sum += static_cast<double>(bits) * static_cast<double>(pages);
    }
  }
  if (num_pages > 0) report.mean_bits = sum / static_cast<double>(num_pages);
  return report;
}

std::string WholeReply(const ReplyHead& head, const std::vector<ChoiceState>& choices,
                       const UsageState& usage, const KvReport& kv, const Tokenizer& tokenizer) {
  JsonWriter json;
  json.BeginObject();
  WriteHead(json, head, false);
  json.Key("choices").BeginArray();
  for (const ChoiceState& choice : choices) {
    json.BeginObject().Key("index").Int(static_cast<int64_t>(choice.index));
    if (head.is_chat) {
      json.Key("message").BeginObject();
      json.Key("role").String("assistant").Key("content");
      choice.content.empty() && !choice.calls.empty() ? json.Null() : json.String(choice.content);
      if (choice.reasoned) {
        json.Key("reasoning_content").String(choice.reasoning);
        json.Key("reasoning").String(choice.reasoning);
      }
      if (!choice.calls.empty()) WriteCalls(json, choice.calls, -1);
      json.Key("refusal").Null().EndObject();
      WriteChatLogprobs(json, choice.logprobs, tokenizer);
    } else {
      json.Key("text").String(choice.content);
      WriteTextLogprobs(json, choice, tokenizer);
      WritePromptLogprobs(json, choice, tokenizer);
    }
    WriteFinish(json, choice);
    json.EndObject();
  }
  json.EndArray();
  if (head.is_chat) WritePromptLogprobs(json, choices.front(), tokenizer);
  WriteUsage(json, usage);
  WriteKvReport(json, kv);
  json.EndObject();
  return json.text();
}

void AppendStreamEvents(const ReplyHead& head, ChoiceState& choice, const UsageState* usage,
                        const Tokenizer& tokenizer, std::string& out) {
  if (head.is_chat && !choice.started) {
    AppendEvent(head, choice, usage, out, [&](JsonWriter& json) {
      json.Key("delta").BeginObject();
      json.Key("role").String("assistant").Key("content").String("").EndObject();
      json.Key("logprobs").Null().Key("finish_reason").Null();
    });
  }
  choice.started = true;
  const bool has_text =
      !choice.reasoning.empty() || !choice.content.empty() || !choice.calls.empty();
  if (has_text || !choice.logprobs.empty()) {
    AppendEvent(head, choice, usage, out, [&](JsonWriter& json) {
      if (head.is_chat) {
        json.Key("delta").BeginObject();
        if (!choice.reasoning.empty()) {
          json.Key("reasoning_content").String(choice.reasoning);
          json.Key("reasoning").String(choice.reasoning);
        }
        if (!choice.content.empty()) json.Key("content").String(choice.content);
        if (!choice.calls.empty()) {
          WriteCalls(json, choice.calls,
                     static_cast<int64_t>(choice.num_calls - choice.calls.size()));
        }
        json.EndObject();
        WriteChatLogprobs(json, choice.logprobs, tokenizer);
      } else {
        json.Key("text").String(choice.content);
        WriteTextLogprobs(json, choice, tokenizer);
      }
      json.Key("finish_reason").Null();
    });
    if (!head.is_chat) choice.text_offset = TextOffsets(choice, tokenizer).back();
    if (!choice.logprobs.empty()) choice.num_added = 0;
    choice.reasoning.clear();
    choice.content.clear();
    choice.calls.clear();
    choice.logprobs.clear();
  }
  if (choice.finish_reason.empty()) return;
  choice.closed = true;
  AppendEvent(head, choice, usage, out, [&](JsonWriter& json) {
    if (head.is_chat) {
      json.Key("delta").BeginObject().EndObject();
    } else {
      json.Key("text").String("");
    }
    json.Key("logprobs").Null();
    WriteFinish(json, choice);
  });
}

void AppendUsageEvent(const ReplyHead& head, const UsageState& usage, const KvReport& kv,
                      std::string& out) {
  JsonWriter json;
  json.BeginObject();
  WriteHead(json, head, true);
  json.Key("choices").BeginArray().EndArray();
  WriteUsage(json, usage);
  WriteKvReport(json, kv);
  json.EndObject();
  out += "data: " + std::string(json.text()) + "\n\n";
}

void AppendErrorEvent(const ApiError& error, std::string& out) {
  out += "data: " + ErrorBody(error) + "\n\n";
}

namespace {

void WriteModel(JsonWriter& json, const ApiContext& context, const std::string& name,
                int64_t created) {
  json.BeginObject();
  json.Key("id").String(name).Key("object").String("model").Key("created").Int(created);
  json.Key("owned_by").String("pmkvq").Key("max_model_len").Int(context.max_len);
  json.EndObject();
}

}  // namespace

std::string ModelsReply(const ApiContext& context, int64_t created) {
  JsonWriter json;
  json.BeginObject().Key("object").String("list").Key("data").BeginArray();
  for (const std::string& name : context.model_names) WriteModel(json, context, name, created);
  json.EndArray().EndObject();
  return json.text();
}

std::string ModelReply(const ApiContext& context, const std::string& name, int64_t created) {
  JsonWriter json;
  WriteModel(json, context, name, created);
  return json.text();
}

std::string TokenizeReply(const TokenizeRequest& request, const ApiContext& context) {
  JsonWriter json;
  json.BeginObject();
  json.Key("tokens");
  if (request.with_pieces) {
    json.BeginArray();
    for (const int32_t id : request.ids) {
      json.BeginObject().Key("id").Int(id);
      json.Key("piece").String(TokenText(*context.tokenizer, id)).EndObject();
    }
    json.EndArray();
  } else {
    json.Array(request.ids);
  }
  json.Key("count").Int(std::ssize(request.ids));
  json.Key("max_model_len").Int(context.max_len);
  json.EndObject();
  return json.text();
}

std::string DetokenizeReply(const std::string& text) {
  JsonWriter json;
  json.BeginObject().Key("prompt").String(text).Key("content").String(text).EndObject();
  return json.text();
}

std::string TokenizerInfoReply(const ApiContext& context, const std::vector<int64_t>& eos_ids) {
  JsonWriter json;
  json.BeginObject();
  const auto token = [&](const char* name, int64_t id) {
    json.Key(name);
    const auto narrow = static_cast<int32_t>(id);
    if (id < 0 || !context.tokenizer->IsValid(narrow)) {
      json.Null();
    } else {
      json.String(context.tokenizer->TokenBytes(narrow));
    }
  };
  const std::vector<int32_t>& prefix = context.tokenizer->prefix_ids();
  token("eos_token", eos_ids.empty() ? -1 : eos_ids.front());
  token("bos_token", prefix.empty() ? -1 : prefix.front());
  token("pad_token", -1);
  json.Key("chat_template");
  context.chat_template.IsNone() ? json.Null() : json.String(context.chat_template.Text());
  json.Key("vocab_size").Int(context.vocab_size);
  json.Key("max_model_len").Int(context.max_len);
  json.EndObject();
  return json.text();
}

std::string PropsReply(const ApiContext& context, int64_t num_slots, const std::string& version) {
  JsonWriter json;
  json.BeginObject().Key("default_generation_settings").BeginObject();
  json.Key("n_ctx").Int(context.max_len).Key("params").BeginObject();
  json.Key("temperature").Number(context.defaults.temperature);
  json.Key("top_p").Number(context.defaults.top_p).Key("top_k").Int(context.defaults.top_k);
  json.Key("min_p").Number(context.defaults.min_p).EndObject().EndObject();
  json.Key("total_slots").Int(num_slots).Key("model_alias").String(context.model_names.front());
  json.Key("chat_template").String(context.chat_template.Text());
  json.Key("modalities").BeginObject().Key("vision").Bool(false).Key("audio").Bool(false);
  json.EndObject().Key("build_info").String("pmkvq " + version).EndObject();
  return json.text();
}

}  // namespace pmkvq::server
