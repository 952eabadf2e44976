// POST /v1/responses is read by writing the chat request that asks for the same, and reading that.
#include <fmt/format.h>

#include <algorithm>
#include <initializer_list>
#include <utility>

#include "pmkvq/server/api/body_fields.h"
#include "pmkvq/server/api/responses.h"

namespace pmkvq::server {
namespace {

constexpr size_t kMostTextBytes = size_t{64} << 20;  // The body's own limit is lower.
constexpr size_t kMostItems = 4095;                  // One message each at most, and instructions.

// Where the client's body has what stands in the chat request.
class ClientNames {
 public:
  // The next message is made of `place`: "instructions", "input" or "input[2]".
  void AddMessage(std::string place) { messages_.push_back({std::move(place), {}}); }
  // One more call of the last message.
  void AddCall(std::string place) { messages_.back().calls.push_back(std::move(place)); }

  // The client's name for a field of the chat request, and for what is in it:
  // "input[1].arguments" for "messages[0].tool_calls[1].function.arguments".
  std::string Of(std::string_view field) const;

 private:
  struct Message {
    std::string place;
    std::vector<std::string> calls;
  };
  std::string OfMessage(std::string_view rest) const;
  std::vector<Message> messages_;
};

// Takes `prefix` off, where that is a whole part of a path.
bool TakePrefix(std::string_view prefix, std::string_view* path) {
  if (!path->starts_with(prefix)) return false;
  const std::string_view rest = path->substr(prefix.size());
  if (!rest.empty() && rest.front() != '.' && rest.front() != '[') return false;
  *path = rest;
  return true;
}

// Takes "[7]" off.
size_t TakeIndex(std::string_view* path) {
  size_t index = 0;
  size_t i = 1;
  for (; i < path->size() && (*path)[i] != ']'; ++i) {
    index = index * 10 + static_cast<size_t>((*path)[i] - '0');
  }
  *path = path->substr(std::min(i + 1, path->size()));
  return index;
}

// `rest` is behind "messages".
std::string ClientNames::OfMessage(std::string_view rest) const {
  if (!rest.starts_with('[')) return "input";
  const size_t index = TakeIndex(&rest);
  if (index >= messages_.size()) return "input";
  const Message& message = messages_[index];
  if (!message.place.ends_with(']')) return message.place;  // Text, which has no fields.
  if (!message.calls.empty()) {
    if (!TakePrefix(".tool_calls", &rest) || !rest.starts_with('[')) return message.place;
    const std::string& place = message.calls[std::min(TakeIndex(&rest), message.calls.size() - 1)];
    if (TakePrefix(".id", &rest)) return place + ".call_id";
    TakePrefix(".function", &rest);
    return place + std::string(rest);
  }
  if (TakePrefix(".tool_call_id", &rest)) return message.place + ".call_id";
  return message.place + std::string(rest);
}

std::string ClientNames::Of(std::string_view field) const {
  if (TakePrefix("messages", &field)) return OfMessage(field);
  constexpr std::pair<const char*, const char*> kNames[] = {
      {"response_format.json_schema", "text.format"}, {"response_format", "text.format"},
      {"max_completion_tokens", "max_output_tokens"}, {"reasoning_effort", "reasoning.effort"},
      {"tool_choice.function", "tool_choice"},
  };
  for (const auto& [of_chat, of_client] : kNames) {
    if (TakePrefix(of_chat, &field)) return of_client + std::string(field);
  }
  std::string_view rest = field;
  if (!TakePrefix("tools", &rest) || !rest.starts_with('[')) return std::string(field);
  const size_t index = TakeIndex(&rest);
  TakePrefix(".function", &rest);
  return fmt::format("tools[{}]{}", index, rest);
}

void CopyFields(BodyFields& body, std::initializer_list<const char*> names, JsonWriter& json) {
  for (const char* name : names) {
    if (!body.Has(name)) continue;
    json.Key(name);
    CopyJson(json, body.Value(name));
  }
}

std::string RequiredText(BodyFields& item, const char* name, size_t most_bytes) {
  std::optional<std::string> text = item.Text(name, most_bytes);
  if (!text) item.Fail(name, "none", "a string");
  return *std::move(text);
}

// The text of `name`, a string or a list of parts, as the content of a message.
void WriteContent(JsonWriter& json, BodyFields& item, const std::string& place, const char* name) {
  if (!item.Has(name)) item.Fail(name, "none", "a string or a list of parts");
  const JsonValue content = item.Value(name);
  json.Key("content");
  if (content.IsString()) {
    json.String(content.AsString());
    return;
  }
  if (!content.IsArray()) {
    item.Fail(name, content.Dump().substr(0, 40), "a string or a list of parts");
  }
  json.BeginArray();
  for (size_t i = 0; i < content.size(); ++i) {
    const std::string part_place = fmt::format("{}.{}[{}]", place, name, i);
    BodyFields part(content.At(i), part_place + ".");
    const std::string type = RequiredText(part, "type", 64);
    if (type != "input_text" && type != "output_text" && type != "text") {
      throw RefusedRequest(
          InvalidRequest("unsupported_parameter", part_place + ".type",
                         fmt::format("{}.type: found \"{}\", expected input_text or output_text",
                                     part_place, type.substr(0, 40))));
    }
    json.BeginObject().Key("type").String("text").Key("text");
    json.String(RequiredText(part, "text", kMostTextBytes)).EndObject();
  }
  json.EndArray();
}

void WriteMessage(JsonWriter& json, BodyFields& item, const std::string& place) {
  const std::string role = item.Text("role", 64).value_or("user");
  if (role != "user" && role != "assistant" && role != "system" && role != "developer") {
    item.Fail("role", "\"" + role.substr(0, 40) + "\"", "system, developer, user or assistant");
  }
  json.BeginObject().Key("role").String(role);
  WriteContent(json, item, place, "content");
  json.EndObject();
}

void WriteItems(JsonWriter& json, const JsonValue& items, ClientNames& names) {
  bool in_calls = false;  // Within the calls of one message.
  const auto end_calls = [&] {
    if (std::exchange(in_calls, false)) json.EndArray().EndObject();
  };
  for (size_t i = 0; i < items.size(); ++i) {
    const std::string place = fmt::format("input[{}]", i);
    BodyFields item(items.At(i), place + ".");
    const std::string type = item.Text("type", 64).value_or("message");
    if (type == "function_call") {
      if (!std::exchange(in_calls, true)) {
        json.BeginObject().Key("role").String("assistant").Key("content").String("");
        json.Key("tool_calls").BeginArray();
        names.AddMessage(place);
      }
      names.AddCall(place);
      json.BeginObject().Key("id").String(RequiredText(item, "call_id", 256));
      json.Key("type").String("function").Key("function").BeginObject();
      json.Key("name").String(RequiredText(item, "name", 256));
      json.Key("arguments").String(item.Text("arguments", kMostTextBytes).value_or("{}"));
      json.EndObject().EndObject();
      continue;
    }
    end_calls();
    if (type == "function_call_output") {
      names.AddMessage(place);
      json.BeginObject().Key("role").String("tool");
      json.Key("tool_call_id").String(RequiredText(item, "call_id", 256));
      WriteContent(json, item, place, "output");
      json.EndObject();
    } else if (type == "message") {
      names.AddMessage(place);
      WriteMessage(json, item, place);
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
    if (!tools.IsArray()) body.Fail("tools", tools.Dump().substr(0, 40), "a list of tools");
    json.Key("tools").BeginArray();
    for (size_t i = 0; i < tools.size(); ++i) {
      BodyFields tool(tools.At(i), fmt::format("tools[{}].", i));
      json.BeginObject().Key("type").String(RequiredText(tool, "type", 64));
      json.Key("function").BeginObject();
      CopyFields(tool, {"name", "description", "parameters", "strict"}, json);
      json.EndObject().EndObject();
    }
    json.EndArray();
  }
  if (!body.Has("tool_choice")) return;
  const JsonValue choice = body.Value("tool_choice");
  json.Key("tool_choice");
  if (!choice.IsObject()) return CopyJson(json, choice);
  BodyFields fields(choice, "tool_choice.");
  if (fields.Text("type", 64).value_or("") != "function" || !fields.Has("name")) {
    body.Fail("tool_choice", choice.Dump().substr(0, 60),
              "none, auto, required, or {\"type\": \"function\", \"name\": ...}");
  }
  json.BeginObject().Key("type").String("function").Key("function").BeginObject();
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
  if (format.Text("type", 64) == "json_schema") {
    json.Key("json_schema").BeginObject();
    CopyFields(format, {"name", "schema", "strict", "description"}, json);
    json.EndObject();
  }
  json.EndObject();
}

std::string ChatBody(BodyFields& body, ClientNames& names) {
  JsonWriter json;
  json.BeginObject().Key("messages").BeginArray();
  if (const auto instructions = body.Text("instructions", kMostTextBytes)) {
    names.AddMessage("instructions");
    json.BeginObject().Key("role").String("system").Key("content").String(*instructions);
    json.EndObject();
  }
  if (!body.Has("input")) body.Fail("input", "none", "a string or a list of items");
  const JsonValue input = body.Value("input");
  if (input.IsString()) {
    names.AddMessage("input");
    json.BeginObject().Key("role").String("user").Key("content").String(input.AsString());
    json.EndObject();
  } else if (input.IsArray()) {
    if (input.size() == 0 || input.size() > kMostItems) {
      body.Fail("input", fmt::format("{} items", input.size()),
                fmt::format("a string or a list of 1 to {} items", kMostItems));
    }
    WriteItems(json, input, names);
  } else {
    body.Fail("input", input.Dump().substr(0, 40), "a string or a list of items");
  }
  json.EndArray();
  CopyFields(body,
             {"model", "temperature", "top_p", "top_k", "min_p", "seed", "stream", "kv_report",
              "chat_template_kwargs"},
             json);
  if (body.Has("max_output_tokens")) {
    if (body.Value("max_output_tokens").Dump() == "0") {
      body.Fail("max_output_tokens", "0", "1 or more");
    }
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
  return json.text();
}

// An error of the chat request, in the words of the client's.
ApiError InClientNames(ApiError error, const ClientNames& names) {
  error.param = names.Of(error.param);
  const size_t end = error.message.find(": ");
  const std::string_view path = std::string_view(error.message).substr(0, end);
  if (end != std::string::npos && path.find(' ') == std::string_view::npos) {
    error.message = names.Of(path) + error.message.substr(end);
  }
  return error;
}

}  // namespace

CompletionRequest ReadResponsesRequest(std::string_view text, const ApiContext& context) {
  const JsonValue json = BodyFields::Parse(text);
  BodyFields body(json);
  ClientNames names;
  const std::string chat = ChatBody(body, names);
  std::vector<std::string> unknown = body.unknown();
  if (context.strict && !unknown.empty()) {
    body.Fail(unknown.front(), "it", "a field that this server knows");
  }
  try {
    CompletionRequest request = ReadChatRequest(chat, context);
    request.is_response = true;
    request.unknown_fields = std::move(unknown);
    return request;
  } catch (const RefusedRequest& refusal) {
    throw RefusedRequest(InClientNames(refusal.error(), names));
  }
}

}  // namespace pmkvq::server
