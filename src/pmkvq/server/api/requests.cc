#include "pmkvq/server/api/requests.h"

#include <fmt/format.h>

#include "pmkvq/base/error.h"
#include "pmkvq/server/api/api_error.h"
#include "pmkvq/server/api/tools.h"

namespace pmkvq::server {
namespace {

constexpr size_t kMostMessages = 4096;
constexpr size_t kMostTextBytes = size_t{64} << 20;  // The body's own limit is lower.

[[noreturn]] void Refuse(const std::string& code, const std::string& param,
                         const std::string& message, int status = 400) {
  ApiError error = InvalidRequest(code, param, message);
  error.status = status;
  if (status == 404) error.type = "not_found_error";
  throw RefusedRequest(error);
}

void CheckModel(BodyFields& body, const ApiContext& context) {
  const std::optional<std::string> model = body.Text("model", 1024);
  if (!model) return;
  for (const std::string& name : context.model_names) {
    if (*model == name) return;
  }
  Refuse("model_not_found", "model",
         fmt::format("model: found \"{}\", expected \"{}\"", *model, context.model_names.front()),
         404);
}

void CheckUnknown(const BodyFields& body, const ApiContext& context,
                  std::vector<std::string>* unknown) {
  *unknown = body.unknown();
  if (!context.strict || unknown->empty()) return;
  Refuse("unsupported_parameter", unknown->front(),
         fmt::format("{}: a field that this server does not know", unknown->front()));
}

// Text of a string, or of a list of parts of type text.
std::string ContentOf(const JsonValue& content, const std::string& where) {
  if (content.IsString()) return content.AsString();
  if (!content.IsArray()) {
    Refuse("invalid_value", where,
           fmt::format("{}: found {}, expected a string or a list of parts", where,
                       content.Dump().substr(0, 40)));
  }
  std::string text;
  for (size_t i = 0; i < content.size(); ++i) {
    const JsonValue part = content.At(i);
    const std::string part_where = fmt::format("{}[{}]", where, i);
    const bool is_text = part.IsObject() && part.Has("type") && part.At("type").IsString() &&
                         part.At("type").AsStringView() == "text" && part.Has("text") &&
                         part.At("text").IsString();
    if (!is_text) {
      Refuse("unsupported_parameter", part_where,
             fmt::format("{}: found {}, expected a part of type \"text\"", part_where,
                         part.Dump().substr(0, 60)));
    }
    text += part.At("text").AsString();
  }
  return text;
}

std::vector<ChatMessage> ReadMessages(BodyFields& body) {
  if (!body.Has("messages")) body.Fail("messages", "none", "a list of messages");
  const JsonValue list = body.Value("messages");
  if (!list.IsArray() || list.size() == 0 || list.size() > kMostMessages) {
    body.Fail("messages",
              list.IsArray() ? fmt::format("{} messages", list.size()) : list.Dump().substr(0, 40),
              fmt::format("a list of 1 to {} messages", kMostMessages));
  }
  std::vector<ChatMessage> messages;
  for (size_t i = 0; i < list.size(); ++i) {
    const std::string where = fmt::format("messages[{}]", i);
    const JsonValue message = list.At(i);
    if (!message.IsObject() || !message.Has("role") || !message.At("role").IsString()) {
      Refuse("invalid_value", where, where + ": expected an object with a role");
    }
    std::string role = message.At("role").AsString();
    if (role == "developer") role = "system";
    if (role != "system" && role != "user" && role != "assistant" && role != "tool") {
      Refuse(
          role == "function" ? "unsupported_parameter" : "invalid_value", where + ".role",
          fmt::format("{}.role: found \"{}\", expected system, developer, user, assistant or tool",
                      where, role.substr(0, 40)));
    }
    for (const char* name : {"function_call", "audio"}) {  // A text without them is another one.
      if (!message.Has(name)) continue;
      Refuse("unsupported_parameter", fmt::format("{}.{}", where, name),
             fmt::format("{}.{}: found {}, expected none", where, name,
                         message.At(name).Dump().substr(0, 40)));
    }
    std::string content;
    if (message.Has("content")) {
      content = ContentOf(message.At("content"), where + ".content");
    } else if (role != "assistant") {
      Refuse("invalid_value", where + ".content", where + ".content: missing, expected a string");
    }
    std::shared_ptr<const JsonValue> more = ReadToolMessage(message, role, where);
    messages.push_back({std::move(role), std::move(content), std::move(more)});
  }
  return messages;
}

// The template with the variables that the request gives it.
ChatTemplate TemplateFor(BodyFields& body, const ApiContext& context, const ToolRequest& tools) {
  ChatTemplate chat_template = context.chat_template;
  const bool has_kwargs = body.Has("chat_template_kwargs");
  const std::optional<std::string> effort = body.Text("reasoning_effort", 64);
  if (!has_kwargs && !effort && !tools.list) return chat_template;
  JsonWriter json;
  json.BeginObject();
  if (effort) json.Key("reasoning_effort").String(*effort);
  if (has_kwargs) {
    const JsonValue kwargs = body.Value("chat_template_kwargs");
    const auto fail = [&](const std::string& found) {
      body.Fail("chat_template_kwargs", found,
                "an object of at most 64 scalars with names of a-z and _");
    };
    if (!kwargs.IsObject() || kwargs.size() > 64) fail(kwargs.Dump().substr(0, 40));
    kwargs.ForEachMember([&](std::string_view name, const JsonValue& value) {
      const bool is_name =
          !name.empty() && name.size() <= 64 &&
          name.find_first_not_of("abcdefghijklmnopqrstuvwxyz_") == std::string_view::npos;
      if (!is_name || value.IsObject() || value.IsArray()) fail(std::string(name.substr(0, 64)));
      if (effort && name == "reasoning_effort") return;
      json.Key(name);
      if (value.IsString()) {
        json.String(value.AsString());
      } else if (value.IsBool()) {
        json.Bool(value.AsBool());
      } else if (value.IsInteger()) {
        json.Int(value.AsInt());
      } else if (value.IsNumber()) {
        json.Number(value.AsDouble());
      } else {
        json.Null();
      }
    });
  }
  json.EndObject();
  try {
    std::string variables = json.text();
    if (tools.list) {
      variables.insert(1, "\"tools\":" + tools.list->Dump() + (variables == "{}" ? "" : ","));
    }
    chat_template.SetVariables(JsonValue::Parse(variables, "chat_template_kwargs"));
  } catch (const InvalidInput& error) {
    Refuse("invalid_value", "chat_template_kwargs", WithoutBrackets(error.what()));
  }
  return chat_template;
}

// The prompt of messages; with continue_final_message it ends within the last one.
MarkedText RenderPrompt(BodyFields& body, const ApiContext& context, const ToolRequest& tools) {
  if (context.chat_template.IsNone()) {
    Refuse(
        "unsupported_parameter", "messages",
        "messages: the model has no chat template; use /v1/completions, or start the server with "
        "--chat-template");
  }
  const std::vector<ChatMessage> messages = ReadMessages(body);
  const ChatTemplate chat_template = TemplateFor(body, context, tools);
  const bool continues = body.Bool("continue_final_message").value_or(false);
  const bool adds_prompt = body.Bool("add_generation_prompt").value_or(!continues);
  if (continues && (adds_prompt || messages.back().role != "assistant")) {
    body.Fail("continue_final_message", "true",
              "a last message of the assistant, and no add_generation_prompt");
  }
  try {
    MarkedText prompt = chat_template.Render(messages, adds_prompt);
    if (!continues) return prompt;
    std::string content = messages.back().content;
    content.erase(content.find_last_not_of(" \t\r\n") + 1);
    const size_t begin = prompt.text.rfind(content);
    if (content.empty() || begin == std::string::npos) {
      body.Fail("continue_final_message", "a message that the template leaves out", "its text");
    }
    prompt.text.resize(begin + content.size());
    std::erase_if(prompt.input,
                  [&](const ByteRange& range) { return range.begin >= prompt.text.size(); });
    if (!prompt.input.empty()) {
      prompt.input.back().end = std::min(prompt.input.back().end, prompt.text.size());
    }
    return prompt;
  } catch (const InvalidInput& error) {
    const std::string text = error.what();
    Refuse("invalid_value", "messages",
           text.starts_with("[messages") ? WithoutBrackets(text)
                                         : "messages: the chat template, " + WithoutPlace(text));
  }
}

bool EndsInOpenThinking(std::string_view prompt) {
  const size_t open = prompt.rfind("<think>");
  if (open == std::string_view::npos) return false;
  const size_t close = prompt.rfind("</think>");
  return close == std::string_view::npos || close < open;
}

std::vector<int32_t> ReadIds(const JsonValue& list, const std::string& where, int64_t vocab_size) {
  std::vector<int32_t> ids;
  ids.reserve(list.size());
  for (size_t i = 0; i < list.size(); ++i) {
    const JsonValue id = list.At(i);
    if (!id.IsInteger() || id.AsInt() < 0 || id.AsInt() >= vocab_size) {
      Refuse("invalid_value", where,
             fmt::format("{}: found {}, expected token ids from 0 to {}", where,
                         id.Dump().substr(0, 40), vocab_size - 1));
    }
    ids.push_back(static_cast<int32_t>(id.AsInt()));
  }
  return ids;
}

std::vector<int32_t> Encode(const std::string& text, bool add_special_tokens,
                            const std::string& where, const ApiContext& context) {
  try {
    return add_special_tokens ? context.tokenizer->EncodeWhole(text, true)
                              : context.tokenizer->Encode(text, true);
  } catch (const InvalidInput& error) {
    Refuse("invalid_utf8", where, where + ": " + WithoutPlace(error.what()));
  }
}

void CheckLength(const std::vector<int32_t>& ids, const std::string& param,
                 const ApiContext& context) {
  if (ids.empty()) Refuse("invalid_value", param, param + ": the prompt is empty");
  if (std::ssize(ids) < context.max_len) return;
  Refuse("context_length_exceeded", param,
         fmt::format("{}: found {} tokens, expected at most {}, so that one can be answered", param,
                     ids.size(), context.max_len - 1));
}

void CheckChoices(const CompletionRequest& request, BodyFields& body) {
  const int64_t choices = request.fields.n * std::ssize(request.prompts);
  if (choices > kMostPrompts) {
    body.Fail("n", fmt::format("{} times {} prompts", request.fields.n, request.prompts.size()),
              fmt::format("at most {} choices", kMostPrompts));
  }
  if (request.is_prompt_only() && request.echo.empty()) {
    body.Fail("max_tokens", "0", "1 or more without echo");
  }
}

// Prompts of ids as text.
std::string TextOf(const std::vector<int32_t>& ids, const ApiContext& context) {
  StreamDecoder decoder(context.tokenizer, false);
  std::string out;
  for (const int32_t id : ids) {
    if (context.tokenizer->IsValid(id)) out += decoder.Push(id);
  }
  return out + decoder.Finish();
}

EchoedPrompt EchoOf(const std::string& text, bool add_special_tokens, const ApiContext& context) {
  EchoedPrompt echo{text, 0};
  const std::vector<int32_t>& prefix = context.tokenizer->prefix_ids();
  std::string prefix_text;
  for (const int32_t id : prefix) prefix_text += context.tokenizer->TokenBytes(id);
  if (add_special_tokens && !text.starts_with(prefix_text)) echo.num_added = prefix.size();
  return echo;
}

// The field prompt_logprobs of either endpoint.
void ReadPromptLogprobs(BodyFields& body, CompletionRequest& request) {
  const auto count = body.Integer("prompt_logprobs", 0, kMostLogprobs);
  if (!count) return;
  if (request.fields.stream) {
    body.Fail("prompt_logprobs", "it with stream", "it only without a stream");
  }
  request.num_prompt_logprobs = *count;
}

void ReadPrompts(BodyFields& body, const ApiContext& context, CompletionRequest& request) {
  if (!body.Has("prompt")) body.Fail("prompt", "none", "a string, token ids, or a list of either");
  const bool add_special_tokens = body.Bool("add_special_tokens").value_or(true);
  const bool echoes = body.Bool("echo").value_or(false);
  const JsonValue prompt = body.Value("prompt");
  const auto add_text = [&](const JsonValue& value) {
    const std::string text = value.AsString();
    request.prompts.push_back(Encode(text, add_special_tokens, "prompt", context));
    if (echoes) request.echo.push_back(EchoOf(text, add_special_tokens, context));
  };
  const auto add_ids = [&](const JsonValue& list, const std::string& where) {
    request.prompts.push_back(ReadIds(list, where, context.vocab_size));
    if (echoes) request.echo.push_back({TextOf(request.prompts.back(), context), 0});
  };
  if (prompt.IsString()) {
    add_text(prompt);
  } else if (prompt.IsArray() && prompt.size() > 0 && prompt.At(0).IsInteger()) {
    add_ids(prompt, "prompt");
  } else {
    if (!prompt.IsArray() || prompt.size() == 0 ||
        static_cast<int64_t>(prompt.size()) > kMostPrompts) {
      body.Fail("prompt", prompt.Dump().substr(0, 40),
                fmt::format("a string, token ids, or a list of 1 to {} of either", kMostPrompts));
    }
    for (size_t i = 0; i < prompt.size(); ++i) {
      const JsonValue one = prompt.At(i);
      if (one.IsString()) {
        add_text(one);
      } else if (one.IsArray()) {
        add_ids(one, fmt::format("prompt[{}]", i));
      } else {
        body.Fail("prompt", one.Dump().substr(0, 40), "strings, or lists of token ids");
      }
    }
  }
  for (const std::vector<int32_t>& ids : request.prompts) CheckLength(ids, "prompt", context);
}

AnswerPlace PlaceOf(const CompletionRequest& request, const ApiContext& context,
                    bool starts_in_reasoning) {
  AnswerPlace place;
  place.starts_in_reasoning = starts_in_reasoning;
  place.may_reason = request.is_chat && context.parses_reasoning;
  place.end_ids = context.eos_ids;
  place.end_ids.insert(place.end_ids.end(), request.fields.stop_ids.begin(),
                       request.fields.stop_ids.end());
  return place;
}

// What the answer may be.
void ReadAnswer(BodyFields& body, const ApiContext& context, const ToolRequest& tools,
                bool in_thinking, CompletionRequest& request) {
  const AnswerPlace place = PlaceOf(request, context, in_thinking);
  request.grammar = context.formats->OfResponseFormat(body, place);
  if (!tools.reads_calls) return;
  request.tool_format = context.tool_format;
  if (request.grammar != nullptr) {
    body.Fail("response_format", "it beside tools", "one of the two");
  }
  if (tools.must_call.empty()) return;
  RefuseEndFields(body, "tool_choice");
  request.grammar = GrammarOfCall(tools, context.tool_format, *context.formats, place);
  if (context.tool_format != ToolFormat::kMistral) return;
  request.answer_begin = ToolMarker(context.tool_format);
  const int32_t marker = context.tokenizer->TokenId(request.answer_begin);
  if (marker >= 0) request.prompts.back().push_back(marker);
}

}  // namespace

std::vector<std::pair<int32_t, std::string>> ToolTokens(const Tokenizer& tokenizer) {
  std::vector<std::pair<int32_t, std::string>> tokens;
  for (const char* text :
       {"<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>"}) {
    const int32_t id = tokenizer.TokenId(text);
    if (id >= 0 && tokenizer.IsSpecial(id)) tokens.emplace_back(id, text);
  }
  return tokens;
}

Request CompletionRequest::EngineRequest(size_t prompt) const {
  Request request;
  request.prompt_ids = prompts[prompt];
  request.sampling = fields.sampling;
  request.max_tokens = is_prompt_only() ? 1 : std::max<int64_t>(0, fields.max_tokens);
  request.min_tokens = fields.min_tokens;
  request.ignore_eos = fields.ignore_eos;
  request.kv_min_bits = fields.kv_min_bits;
  request.priority = fields.priority;
  request.prefix_salt = fields.cache_salt;
  request.rules = fields.rules;
  request.stop = fields.stop;
  request.stop_ids = fields.stop_ids;
  request.grammar = grammar;
  request.num_logprobs = num_logprobs;
  request.num_prompt_logprobs = std::max(num_prompt_logprobs, echo.empty() ? -1 : num_logprobs);
  if (starts_in_reasoning && !fields.stop_in_reasoning) request.stop_after = "</think>";
  return request;
}

CompletionRequest ReadChatRequest(std::string_view text, const ApiContext& context) {
  const JsonValue json = BodyFields::Parse(text);
  BodyFields body(json);
  CheckModel(body, context);
  CompletionRequest request;
  request.is_chat = true;
  request.fields = ReadGenerationFields(body, context.defaults, context.vocab_size, context.pool);
  const int64_t top = body.Integer("top_logprobs", 0, kMostLogprobs).value_or(0);
  if (body.Bool("logprobs").value_or(false)) {
    request.num_logprobs = top;
  } else if (top > 0) {
    body.Fail("top_logprobs", "it without logprobs", "it only with \"logprobs\": true");
  }
  if (body.Has("modalities")) {
    const std::vector<std::string> modalities = body.Texts("modalities", 8, 64);
    for (const std::string& modality : modalities) {
      if (modality != "text") body.Refuse({"modalities"});
    }
  }
  body.Refuse({"echo", "suffix", "prediction", "web_search_options"});
  ReadPromptLogprobs(body, request);
  const ToolRequest tools = ReadTools(body, context.tool_format);
  const MarkedText prompt = RenderPrompt(body, context, tools);
  const bool in_thinking = EndsInOpenThinking(prompt.text);
  request.starts_in_reasoning = context.parses_reasoning && in_thinking;
  request.prompts.push_back(context.tokenizer->Encode(prompt));
  ReadAnswer(body, context, tools, in_thinking, request);
  CheckLength(request.prompts.front(), "messages", context);
  CheckChoices(request, body);
  CheckUnknown(body, context, &request.unknown_fields);
  return request;
}

CompletionRequest ReadTextRequest(std::string_view text, const ApiContext& context) {
  const JsonValue json = BodyFields::Parse(text);
  BodyFields body(json);
  CheckModel(body, context);
  CompletionRequest request;
  request.fields = ReadGenerationFields(body, context.defaults, context.vocab_size, context.pool);
  request.num_logprobs = body.Integer("logprobs", 0, kMostLogprobs).value_or(-1);
  body.Refuse({"suffix", "tools"});
  request.grammar = context.formats->OfResponseFormat(body, PlaceOf(request, context, false));
  ReadPromptLogprobs(body, request);
  ReadPrompts(body, context, request);
  CheckChoices(request, body);
  CheckUnknown(body, context, &request.unknown_fields);
  return request;
}

TokenizeRequest ReadTokenizeRequest(std::string_view text, const ApiContext& context) {
  const JsonValue json = BodyFields::Parse(text);
  BodyFields body(json);
  CheckModel(body, context);
  TokenizeRequest request;
  request.with_pieces = body.Bool("with_pieces").value_or(false);
  const bool add_special_tokens = body.Bool("add_special_tokens").value_or(true);
  if (body.Has("messages")) {
    request.ids = context.tokenizer->Encode(
        RenderPrompt(body, context, ReadTools(body, context.tool_format)));
    return request;
  }
  std::optional<std::string> prompt = body.Text("prompt", kMostTextBytes);
  if (!prompt) prompt = body.Text("content", kMostTextBytes);
  if (!prompt) body.Fail("prompt", "none", "prompt, content or messages");
  request.ids = Encode(*prompt, add_special_tokens, "prompt", context);
  return request;
}

std::string ReadDetokenizeRequest(std::string_view text, const ApiContext& context) {
  const JsonValue json = BodyFields::Parse(text);
  BodyFields body(json);
  CheckModel(body, context);
  if (!body.Has("tokens") || !body.Value("tokens").IsArray()) {
    body.Fail("tokens", "none", "a list of token ids");
  }
  const std::vector<int32_t> ids =
      ReadIds(body.Value("tokens"), "tokens", context.tokenizer->vocab_size());
  return TextOf(ids, context);
}

MarkedText ReadTemplateRequest(std::string_view text, const ApiContext& context) {
  const JsonValue json = BodyFields::Parse(text);
  BodyFields body(json);
  CheckModel(body, context);
  return RenderPrompt(body, context, ReadTools(body, context.tool_format));
}

}  // namespace pmkvq::server
