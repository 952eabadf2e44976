#include "pmkvq/server/api/responses.h"

#include <fmt/format.h>

#include <utility>

namespace pmkvq::server {

ResponseWriter::ResponseWriter(ReplyHead head) : head_(std::move(head)) {}

template <class Write>
void ResponseWriter::Event(const char* type, std::string* events, const Write& write) {
  if (events == nullptr) return;
  JsonWriter json;
  json.BeginObject().Key("type").String(type).Key("sequence_number").Int(sequence_++);
  write(json);
  json.EndObject();
  *events += fmt::format("event: {}\ndata: {}\n\n", type, json.text());
}

template <class Write>
void ResponseWriter::ItemEvent(const char* type, std::string* events, const Write& write) {
  Event(type, events, [&](JsonWriter& json) {
    json.Key("output_index").Int(std::ssize(items_) - 1).Key("item_id").String(items_.back().id);
    write(json);
  });
}

void ResponseWriter::WritePart(JsonWriter& json, const Item& item, bool is_empty) {
  json.BeginObject().Key("type");
  json.String(item.kind == Kind::kReasoning ? "reasoning_text" : "output_text");
  json.Key("text").String(is_empty ? "" : item.text);
  if (item.kind == Kind::kMessage) {
    json.Key("annotations").BeginArray().EndArray().Key("logprobs").BeginArray().EndArray();
  }
  json.EndObject();
}

void ResponseWriter::WriteItem(JsonWriter& json, const Item& item, bool is_empty) {
  json.BeginObject().Key("id").String(item.id);
  switch (item.kind) {
    case Kind::kReasoning:
      json.Key("type").String("reasoning").Key("summary").BeginArray().EndArray();
      break;
    case Kind::kMessage:
      json.Key("type").String("message").Key("role").String("assistant");
      break;
    case Kind::kCall:
      json.Key("type").String("function_call").Key("call_id").String(item.call.id);
      json.Key("name").String(item.call.call.name);
      json.Key("arguments").String(is_empty ? "" : item.call.call.arguments);
      break;
  }
  json.Key("status").String(is_empty ? "in_progress" : "completed");
  if (item.kind != Kind::kCall) {
    json.Key("content").BeginArray();
    if (!is_empty) WritePart(json, item, false);
    json.EndArray();
  }
  json.EndObject();
}

void ResponseWriter::WriteResponse(JsonWriter& json, const char* status, const ChoiceState* choice,
                                   const UsageState* usage, const KvReport* kv) const {
  json.Key("id").String(head_.id).Key("object").String("response");
  json.Key("created_at").Int(head_.created).Key("status").String(status);
  json.Key("model").String(head_.model).Key("error").Null();
  json.Key("incomplete_details");
  if (choice != nullptr && choice->finish_reason == "length") {
    json.BeginObject().Key("reason").String("max_output_tokens").EndObject();
  } else {
    json.Null();
  }
  json.Key("instructions").Null().Key("metadata").BeginObject().EndObject();
  json.Key("parallel_tool_calls").Bool(true).Key("temperature").Null().Key("top_p").Null();
  json.Key("tool_choice").String("auto").Key("tools").BeginArray().EndArray();
  json.Key("previous_response_id").Null().Key("store").Bool(false);
  json.Key("truncation").String("disabled");
  json.Key("output").BeginArray();
  if (choice != nullptr) {
    for (const Item& item : items_) WriteItem(json, item, false);
  }
  json.EndArray().Key("usage");
  if (usage == nullptr) {
    json.Null();
  } else {
    json.BeginObject().Key("input_tokens").Int(usage->prompt_tokens);
    json.Key("input_tokens_details").BeginObject();
    json.Key("cached_tokens").Int(usage->cached_tokens).EndObject();
    json.Key("output_tokens").Int(usage->completion_tokens);
    json.Key("output_tokens_details").BeginObject();
    json.Key("reasoning_tokens").Int(usage->reasoning_tokens).EndObject();
    json.Key("total_tokens").Int(usage->prompt_tokens + usage->completion_tokens).EndObject();
  }
  if (kv != nullptr) WriteKvReport(json, *kv);
}

void ResponseWriter::Begin(std::string* events) {
  if (std::exchange(has_begun_, true)) return;
  for (const char* type : {"response.created", "response.in_progress"}) {
    Event(type, events, [&](JsonWriter& json) {
      json.Key("response").BeginObject();
      WriteResponse(json, "in_progress", nullptr, nullptr, nullptr);
      json.EndObject();
    });
  }
}

ResponseWriter::Item& ResponseWriter::Open(Kind kind, std::string* events) {
  Close(events);
  const char* prefix = kind == Kind::kReasoning ? "rs" : kind == Kind::kMessage ? "msg" : "fc";
  Item item;
  item.kind = kind;
  item.id = fmt::format("{}_{}_{}", prefix, head_.id.substr(head_.id.find('_') + 1), items_.size());
  items_.push_back(std::move(item));
  return items_.back();
}

void ResponseWriter::AddText(Kind kind, std::string& text, std::string* events) {
  if (text.empty()) return;
  if (items_.empty() || items_.back().kind != kind || items_.back().is_done) {
    Item& item = Open(kind, events);
    Event("response.output_item.added", events, [&](JsonWriter& json) {
      json.Key("output_index").Int(std::ssize(items_) - 1).Key("item");
      WriteItem(json, item, true);
    });
    ItemEvent("response.content_part.added", events, [&](JsonWriter& json) {
      json.Key("content_index").Int(0).Key("part");
      WritePart(json, item, true);
    });
  }
  items_.back().text += text;
  const bool is_reasoning = kind == Kind::kReasoning;
  ItemEvent(is_reasoning ? "response.reasoning_text.delta" : "response.output_text.delta", events,
            [&](JsonWriter& json) {
              json.Key("content_index").Int(0).Key("delta").String(text);
              if (!is_reasoning) json.Key("logprobs").BeginArray().EndArray();
            });
  text.clear();
}

void ResponseWriter::AddCall(ReplyCall call, std::string* events) {
  Item& item = Open(Kind::kCall, events);
  item.call = std::move(call);
  Event("response.output_item.added", events, [&](JsonWriter& json) {
    json.Key("output_index").Int(std::ssize(items_) - 1).Key("item");
    WriteItem(json, item, true);
  });
  ItemEvent("response.function_call_arguments.delta", events,
            [&](JsonWriter& json) { json.Key("delta").String(item.call.call.arguments); });
  ItemEvent("response.function_call_arguments.done", events, [&](JsonWriter& json) {
    json.Key("name").String(item.call.call.name);
    json.Key("arguments").String(item.call.call.arguments);
  });
}

// Ends the last item.
void ResponseWriter::Close(std::string* events) {
  if (items_.empty() || items_.back().is_done) return;
  Item& item = items_.back();
  item.is_done = true;
  if (item.kind != Kind::kCall) {
    const bool is_reasoning = item.kind == Kind::kReasoning;
    ItemEvent(is_reasoning ? "response.reasoning_text.done" : "response.output_text.done", events,
              [&](JsonWriter& json) {
                json.Key("content_index").Int(0).Key("text").String(item.text);
                if (!is_reasoning) json.Key("logprobs").BeginArray().EndArray();
              });
    ItemEvent("response.content_part.done", events, [&](JsonWriter& json) {
      json.Key("content_index").Int(0).Key("part");
      WritePart(json, item, false);
    });
  }
  Event("response.output_item.done", events, [&](JsonWriter& json) {
    json.Key("output_index").Int(std::ssize(items_) - 1).Key("item");
    WriteItem(json, item, false);
  });
}

void ResponseWriter::Take(ChoiceState& choice, std::string* events) {
  Begin(events);
  AddText(Kind::kReasoning, choice.reasoning, events);
  AddText(Kind::kMessage, choice.content, events);
  for (ReplyCall& call : std::exchange(choice.calls, {})) AddCall(std::move(call), events);
}

void ResponseWriter::AppendEnd(const ChoiceState& choice, const UsageState& usage,
                               const KvReport& kv, std::string& events) {
  Close(&events);
  const bool is_whole = choice.finish_reason != "length";
  Event(is_whole ? "response.completed" : "response.incomplete", &events, [&](JsonWriter& json) {
    json.Key("response").BeginObject();
    WriteResponse(json, is_whole ? "completed" : "incomplete", &choice, &usage, &kv);
    json.EndObject();
  });
}

void ResponseWriter::AppendError(const ApiError& error, std::string& events) {
  Event("error", &events, [&](JsonWriter& json) {
    json.Key("code").String(error.code).Key("message").String(error.message).Key("param").Null();
  });
}

std::string ResponseWriter::Body(const ChoiceState& choice, const UsageState& usage,
                                 const KvReport& kv) const {
  JsonWriter json;
  json.BeginObject();
  WriteResponse(json, choice.finish_reason == "length" ? "incomplete" : "completed", &choice,
                &usage, &kv);
  json.EndObject();
  return json.text();
}

}  // namespace pmkvq::server
