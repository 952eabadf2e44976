#include "pmkvq/server/api/responses.h"

#include <fmt/format.h>

#include <initializer_list>
#include <utility>

#include "pmkvq/server/api/body_fields.h"

namespace pmkvq::server {
namespace {

constexpr size_t kMostTextBytes = size_t{64} << 20;  // The body's own limit is lower.

// Names of the chat request's fields, where the body has another one.
constexpr std::pair<const char*, const char*> kNames[] = {
    {"max_completion_tokens", "max_output_tokens"},
    {"messages", "input"},
    {"response_format", "text.format"},
    {"reasoning_effort", "reasoning.effort"},
};

void CopyFields(BodyFields& body, std::initializer_list<const char*> names, JsonWriter& json) {
  for (const char* name : names) {
    if (!body.Has(name)) continue;
    json.Key(name);
    CopyJson(json, body.Value(name));
  }
}

void WriteMessage(JsonWriter& json, const std::string& role, const JsonValue& content,
                  BodyFields& item) {
  json.BeginObject().Key("role").String(role).Key("content");
  if (content.IsString()) {
    json.String(content.AsString()).EndObject();
    return;
  }
  if (!content.IsArray()) item.Fail("content", "no text", "a string or a list of parts");
  json.BeginArray();
  for (size_t i = 0; i < content.size(); ++i) {
    BodyFields part(content.At(i), "input.content.");
    const std::string type = part.Text("type", 64).value_or("");
    if (type != "input_text" && type != "output_text" && type != "text") {
      item.Fail("content", "a part of type \"" + type.substr(0, 40) + "\"",
                "parts of type input_text or output_text");
    }
    json.BeginObject().Key("type").String("text").Key("text");
    json.String(part.Text("text", kMostTextBytes).value_or("")).EndObject();
  }
  json.EndArray().EndObject();
}

void WriteItems(JsonWriter& json, const JsonValue& items) {
  bool in_calls = false;  // Within the calls of one message.
  const auto end_calls = [&] {
    if (std::exchange(in_calls, false)) json.EndArray().EndObject();
  };
  for (size_t i = 0; i < items.size(); ++i) {
    BodyFields item(items.At(i), fmt::format("input[{}].", i));
    const std::string type = item.Text("type", 64).value_or("message");
    if (type == "function_call") {
      if (!std::exchange(in_calls, true)) {
        json.BeginObject().Key("role").String("assistant").Key("content").String("");
        json.Key("tool_calls").BeginArray();
      }
      json.BeginObject().Key("id").String(item.Text("call_id", 256).value_or(""));
      json.Key("type").String("function").Key("function").BeginObject();
      json.Key("name").String(item.Text("name", 256).value_or(""));
      json.Key("arguments").String(item.Text("arguments", kMostTextBytes).value_or("{}"));
      json.EndObject().EndObject();
      continue;
    }
    end_calls();
    if (type == "function_call_output") {
      json.BeginObject().Key("role").String("tool");
      json.Key("tool_call_id").String(item.Text("call_id", 256).value_or(""));
      json.Key("content").String(item.Text("output", kMostTextBytes).value_or("")).EndObject();
    } else if (type == "message") {
      if (!item.Has("content")) item.Fail("content", "none", "a string or a list of parts");
      WriteMessage(json, item.Text("role", 64).value_or("user"), item.Value("content"), item);
    } else if (type != "reasoning") {  // Of earlier answers: templates leave it out.
      item.Fail("type", "\"" + type.substr(0, 40) + "\"",
                "message, function_call, function_call_output or reasoning");
    }
  }
  end_calls();
}

void WriteTools(JsonWriter& json, BodyFields& body) {
  if (body.Has("tools")) {
    const JsonValue tools = body.Value("tools");
    json.Key("tools").BeginArray();
    for (size_t i = 0; i < tools.size(); ++i) {
      BodyFields tool(tools.At(i), fmt::format("tools[{}].", i));
      json.BeginObject().Key("type").String(tool.Text("type", 64).value_or(""));
      json.Key("function").BeginObject();
      CopyFields(tool, {"name", "description", "parameters", "strict"}, json);
      json.EndObject().EndObject();
    }
    json.EndArray();
  }
  if (!body.Has("tool_choice")) return;
  const JsonValue choice = body.Value("tool_choice");
  json.Key("tool_choice");
  if (!choice.IsObject() || choice.Has("function")) return CopyJson(json, choice);
  json.BeginObject();
  BodyFields fields(choice, "tool_choice.");
  CopyFields(fields, {"type"}, json);
  json.Key("function").BeginObject();
  CopyFields(fields, {"name"}, json);
  json.EndObject().EndObject();
}

void WriteFormat(JsonWriter& json, BodyFields& body) {
  if (!body.Has("text")) return;
  BodyFields text(body.Value("text"), "text.");
  if (text.Has("verbosity") && text.Text("verbosity", 64) != "medium") text.Refuse({"verbosity"});
  if (!text.Has("format")) return;
  BodyFields format(text.Value("format"), "text.format.");
  json.Key("response_format").BeginObject();
  CopyFields(format, {"type"}, json);
  if (format.Has("schema")) {
    json.Key("json_schema").BeginObject();
    CopyFields(format, {"name", "schema", "strict", "description"}, json);
    json.EndObject();
  }
  json.EndObject();
}

std::string ChatBody(BodyFields& body, std::vector<std::string>* unknown) {
  JsonWriter json;
  json.BeginObject().Key("messages").BeginArray();
  if (const auto instructions = body.Text("instructions", kMostTextBytes)) {
    json.BeginObject().Key("role").String("system").Key("content").String(*instructions);
    json.EndObject();
  }
  if (!body.Has("input")) body.Fail("input", "none", "a string or a list of items");
  const JsonValue input = body.Value("input");
  if (input.IsString()) {
    json.BeginObject().Key("role").String("user").Key("content").String(input.AsString());
    json.EndObject();
  } else if (input.IsArray()) {
    WriteItems(json, input);
  } else {
    body.Fail("input", input.Dump().substr(0, 40), "a string or a list of items");
  }
  json.EndArray();
  CopyFields(body,
             {"model", "temperature", "top_p", "top_k", "min_p", "seed", "stream", "kv_report",
              "chat_template_kwargs"},
             json);
  if (body.Has("max_output_tokens")) {
    json.Key("max_completion_tokens");
    CopyJson(json, body.Value("max_output_tokens"));
  }
  if (body.Has("reasoning")) {
    BodyFields reasoning(body.Value("reasoning"), "reasoning.");
    reasoning.Accept({"summary", "generate_summary"});  // The reasoning itself is in the answer.
    if (reasoning.Has("effort")) {
      json.Key("reasoning_effort");
      CopyJson(json, reasoning.Value("effort"));
    }
  }
  WriteTools(json, body);
  WriteFormat(json, body);
  json.EndObject();
  body.Accept({"user", "metadata", "service_tier", "parallel_tool_calls", "safety_identifier",
               "prompt_cache_key", "prompt_cache_retention", "client_metadata"});
  if (body.Text("truncation", 64).value_or("disabled") != "disabled") body.Refuse({"truncation"});
  for (const std::string& one : body.Texts("include", 16, 64)) {
    if (one != "reasoning.encrypted_content") body.Refuse({"include"});
  }
  body.Refuse({"store", "previous_response_id", "conversation", "background", "max_tool_calls",
               "prompt", "top_logprobs"});
  *unknown = body.unknown();
  return json.text();
}

}  // namespace

CompletionRequest ReadResponsesRequest(std::string_view text, const ApiContext& context) {
  const JsonValue json = BodyFields::Parse(text);
  BodyFields body(json);
  std::vector<std::string> unknown;
  const std::string chat = ChatBody(body, &unknown);
  try {
    if (context.strict && !unknown.empty()) {
      body.Fail(unknown.front(), "it", "a field that this server knows");
    }
    CompletionRequest request = ReadChatRequest(chat, context);
    request.is_response = true;
    request.unknown_fields = std::move(unknown);
    return request;
  } catch (const RefusedRequest& refusal) {
    ApiError error = refusal.error();
    for (const auto& [of_chat, of_body] : kNames) {
      if (!error.param.starts_with(of_chat)) continue;
      error.param.replace(0, std::string_view(of_chat).size(), of_body);
      if (error.message.starts_with(of_chat)) {
        error.message.replace(0, std::string_view(of_chat).size(), of_body);
      }
      break;
    }
    throw RefusedRequest(error);
  }
}

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
    json.Key("input_tokens_details").BeginObject().Key("cached_tokens").Int(0).EndObject();
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
