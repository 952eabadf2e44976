#include "pmkvq/server/api/tools.h"

#include <fmt/format.h>

#include <algorithm>

#include "pmkvq/base/error.h"
#include "pmkvq/server/api/api_error.h"

namespace pmkvq::server {
namespace {

constexpr size_t kMostTools = 128;
constexpr size_t kMostNameBytes = 64;

[[noreturn]] void Refuse(const std::string& code, const std::string& field,
                         const std::string& rest) {
  throw RefusedRequest(InvalidRequest(code, field, field + ": " + rest));
}

bool IsName(std::string_view name) {
  return !name.empty() && name.size() <= kMostNameBytes &&
         std::all_of(name.begin(), name.end(), [](char c) {
           return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                  c == '_' || c == '-' || c == '.';
         });
}

ToolRequest::Function ReadFunction(const JsonValue& tool, const std::string& where,
                                   bool is_forced) {
  BodyFields fields(tool, where + ".");
  const std::string type = fields.Text("type", 64).value_or("");
  if (type != "function") {
    Refuse("unsupported_parameter", where + ".type",
           fmt::format("found \"{}\", expected \"function\"", type.substr(0, 40)));
  }
  if (!fields.Has("function")) fields.Fail("function", "none", "an object with a name");
  BodyFields function(fields.Value("function"), where + ".function.");
  ToolRequest::Function result;
  result.name = function.Text("name", 256).value_or("");
  if (!IsName(result.name)) {
    function.Fail("name", "\"" + result.name.substr(0, 40) + "\"",
                  "1 to 64 of the characters a-z, A-Z, 0-9, _, -, .");
  }
  if (function.Has("parameters")) {
    if (!function.Value("parameters").IsObject()) {
      function.Fail("parameters", function.Value("parameters").Dump().substr(0, 40),
                    "a JSON schema");
    }
    result.parameters = function.Value("parameters");
  }
  if (function.Bool("strict").value_or(false) && !is_forced) {
    Refuse("unsupported_parameter", where + ".function.strict",
           "found true, expected it only with a tool_choice of \"required\" or a function: where "
           "the model may also answer with text, arguments are what it writes");
  }
  return result;
}

void WriteCalls(JsonWriter& json, const JsonValue& calls, const std::string& where) {
  if (!calls.IsArray() || calls.size() > kMostTools) {
    Refuse("invalid_value", where, "expected a list of at most 128 calls");
  }
  json.Key("tool_calls").BeginArray();
  for (size_t i = 0; i < calls.size(); ++i) {
    const std::string place = fmt::format("{}[{}]", where, i);
    BodyFields call(calls.At(i), place + ".");
    if (!call.Has("function")) call.Fail("function", "none", "an object with name and arguments");
    BodyFields function(call.Value("function"), place + ".function.");
    const std::optional<std::string> name = function.Text("name", 256);
    if (!name) function.Fail("name", "none", "a string");
    json.BeginObject();
    if (const auto id = call.Text("id", 256)) json.Key("id").String(*id);
    json.Key("type").String("function").Key("function").BeginObject();
    json.Key("name").String(*name).Key("arguments");
    if (!function.Has("arguments")) {
      json.BeginObject().EndObject();
    } else if (function.Value("arguments").IsObject()) {
      CopyJson(json, function.Value("arguments"));
    } else {
      const std::string text = function.Text("arguments", size_t{1} << 20).value_or("");
      std::optional<JsonValue> arguments;
      try {
        arguments = BodyFields::Parse(text.empty() ? "{}" : text);
      } catch (const RefusedRequest&) {  // It names the body, and this is a text in it.
      }
      if (!arguments || !arguments->IsObject()) {
        function.Fail("arguments", "\"" + text.substr(0, 40) + "\"", "the text of a JSON object");
      }
      CopyJson(json, *arguments);
    }
    json.EndObject().EndObject();
  }
  json.EndArray();
}

}  // namespace

ToolRequest ReadTools(BodyFields& body, ToolFormat format) {
  ToolRequest request;
  std::string choice = "auto";
  std::string forced;
  if (body.Has("tool_choice")) {
    const JsonValue value = body.Value("tool_choice");
    if (value.IsObject()) {
      BodyFields named(value, "tool_choice.");
      if (named.Text("type", 64).value_or("") != "function" || !named.Has("function")) {
        body.Fail(
            "tool_choice", value.Dump().substr(0, 60),
            "none, auto, required, or {\"type\": \"function\", \"function\": {\"name\": ...}}");
      }
      BodyFields function(named.Value("function"), "tool_choice.function.");
      forced = function.Text("name", 256).value_or("");
      choice = "function";
    } else {
      choice = body.Text("tool_choice", 64).value_or("");
      if (choice != "none" && choice != "auto" && choice != "required") {
        body.Fail("tool_choice", "\"" + choice + "\"", "none, auto, required, or a function");
      }
    }
  }
  const bool is_forced = choice == "function" || choice == "required";
  const bool has_tools =
      body.Has("tools") && !(body.Value("tools").IsArray() && body.Value("tools").size() == 0);
  if (!has_tools) {
    if (is_forced) body.Fail("tool_choice", "\"" + choice + "\" without tools", "tools with it");
    return request;
  }
  const JsonValue tools = body.Value("tools");
  if (!tools.IsArray() || tools.size() > kMostTools) {
    body.Fail("tools", tools.IsArray() ? fmt::format("{} tools", tools.size()) : "no list",
              fmt::format("a list of at most {} tools", kMostTools));
  }
  if (format == ToolFormat::kNone) {
    Refuse("unsupported_parameter", "tools",
           fmt::format("found {}, expected none: the model's chat template has no tool calls that "
                       "this server reads (it reads those of Hermes and Qwen, Llama 3, Mistral)",
                       tools.size()));
  }
  for (size_t i = 0; i < tools.size(); ++i) {
    request.functions.push_back(ReadFunction(tools.At(i), fmt::format("tools[{}]", i), is_forced));
    const bool is_chosen = choice == "required" || request.functions.back().name == forced;
    if (is_forced && is_chosen) request.must_call.push_back(i);
  }
  if (is_forced && request.must_call.empty()) {
    body.Fail("tool_choice", "\"" + forced.substr(0, 64) + "\"", "the name of one of tools");
  }
  if (choice != "none") {
    request.list = tools;
    request.reads_calls = true;
  }
  return request;
}

std::shared_ptr<const JsonValue> ReadToolMessage(const JsonValue& message, const std::string& role,
                                                 const std::string& where) {
  const JsonValue calls = message.Find("tool_calls");
  const bool has_calls = !calls.IsNull() && !(calls.IsArray() && calls.size() == 0);
  if (role != "tool" && !has_calls) return nullptr;
  JsonWriter json;
  json.BeginObject();
  if (has_calls) {
    if (role != "assistant") {
      Refuse("invalid_value", where + ".tool_calls", "expected them in messages of the assistant");
    }
    WriteCalls(json, calls, where + ".tool_calls");
  }
  if (role == "tool") {
    BodyFields fields(message, where + ".");
    const std::optional<std::string> id = fields.Text("tool_call_id", 256);
    if (!id) fields.Fail("tool_call_id", "none", "the id of the call that this is the result of");
    json.Key("tool_call_id").String(*id);
    if (const auto name = fields.Text("name", 256)) json.Key("name").String(*name);
  }
  json.EndObject();
  return std::make_shared<const JsonValue>(JsonValue::Parse(json.text(), "message"));
}

std::shared_ptr<const OutputGrammar> GrammarOfCall(const ToolRequest& tools, ToolFormat format,
                                                   const OutputFormats& formats,
                                                   const AnswerPlace& place) {
  auto json = std::make_shared<JsonGrammar>();
  Grammar& grammar = json->grammar();
  const int32_t call = grammar.AddRule();
  const char* key = format == ToolFormat::kLlama3 ? "parameters" : "arguments";
  for (const size_t index : tools.must_call) {
    const ToolRequest::Function& function = tools.functions[index];
    const int32_t arguments = function.parameters
                                  ? AddSchema(*json, *function.parameters,
                                              fmt::format("tools[{}].function.parameters", index))
                                  : json->any_object();
    Grammar::Sequence sequence;
    Grammar::AppendLiteral(fmt::format("{{\"name\": \"{}\", \"{}\": ", function.name, key),
                           sequence);
    sequence.push_back(Grammar::Rule(arguments));
    Grammar::AppendLiteral("}", sequence);
    grammar.AddAlternative(call, sequence);
  }
  const auto wrapped = [&](std::string_view before, std::string_view behind) {
    Grammar::Sequence sequence;
    Grammar::AppendLiteral(before, sequence);
    sequence.push_back(Grammar::Rule(call));
    Grammar::AppendLiteral(behind, sequence);
    const int32_t rule = grammar.AddRule();
    grammar.AddAlternative(rule, sequence);
    return rule;
  };
  int32_t start = call;
  if (format == ToolFormat::kHermes) start = wrapped("<tool_call>\n", "\n</tool_call>");
  // The marker is a special token, which ends the prompt.
  if (format == ToolFormat::kMistral) start = wrapped("[", "]");
  return formats.Make(std::move(json), start, place);
}

}  // namespace pmkvq::server
