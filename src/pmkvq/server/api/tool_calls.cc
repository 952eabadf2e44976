#include "pmkvq/server/api/tool_calls.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "pmkvq/base/error.h"
#include "pmkvq/engine/output_text.h"

namespace pmkvq::server {
namespace {

constexpr std::string_view kOpen = "<tool_call>";
constexpr std::string_view kClose = "</tool_call>";
constexpr std::string_view kMistralMarker = "[TOOL_CALLS]";
constexpr std::string_view kMistralArguments = "[ARGS]";
constexpr std::string_view kPythonTag = "<|python_tag|>";
constexpr std::string_view kSpaces = " \t\r\n";
constexpr size_t kMostDepth = 64;

std::string_view Trimmed(std::string_view text) {
  const size_t begin = text.find_first_not_of(kSpaces);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(kSpaces) + 1 - begin);
}

std::optional<JsonValue> Parse(std::string_view text) {
  try {
    return JsonValue::Parse(text, "tool call", {.max_depth = kMostDepth});
  } catch (const InvalidInput&) {
    return std::nullopt;
  }
}

// The end of the JSON object or array at the start of `text`; npos: it has none.
size_t EndOfJson(std::string_view text) {
  int depth = 0;
  bool is_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (is_string) {
      if (c == '\\') {
        ++i;
      } else if (c == '"') {
        is_string = false;
      }
    } else if (c == '"') {
      is_string = true;
    } else if (c == '{' || c == '[') {
      ++depth;
    } else if ((c == '}' || c == ']') && --depth == 0) {
      return i + 1;
    }
  }
  return std::string_view::npos;
}

// {"name": ..., "arguments" or "parameters": {...}}
std::optional<ToolCall> CallOf(const JsonValue& value) {
  if (!value.IsObject() || !value.Has("name") || !value.At("name").IsString()) return std::nullopt;
  ToolCall call{value.At("name").AsString(), "{}"};
  for (const char* key : {"arguments", "parameters"}) {
    if (!value.Has(key)) continue;
    const JsonValue arguments = value.At(key);
    if (!arguments.IsObject() && !arguments.IsString()) return std::nullopt;
    call.arguments = arguments.IsString() ? arguments.AsString() : arguments.Dump();
    return call;
  }
  return std::nullopt;
}

std::optional<ToolCall> CallOf(std::string_view text) {
  const std::optional<JsonValue> value = Parse(Trimmed(text));
  return value ? CallOf(*value) : std::nullopt;
}

// Objects with separators between them; empty where anything else is there.
std::vector<ToolCall> Llama3Calls(std::string_view text) {
  std::vector<ToolCall> calls;
  for (text = Trimmed(text); !text.empty(); text = Trimmed(text)) {
    if (!calls.empty() && text.starts_with(";")) text = Trimmed(text.substr(1));
    const size_t end = text.starts_with("{") ? EndOfJson(text) : std::string_view::npos;
    if (end == std::string_view::npos) return {};
    std::optional<ToolCall> call = CallOf(text.substr(0, end));
    if (!call) return {};
    calls.push_back(std::move(*call));
    text.remove_prefix(end);
  }
  return calls;
}

// Behind the marker: an array of calls, or name{...} once or more, with markers between them.
std::vector<ToolCall> MistralCalls(std::string_view text) {
  std::vector<ToolCall> calls;
  text = Trimmed(text);
  if (text.starts_with("[") && !text.starts_with(kMistralMarker)) {
    const std::optional<JsonValue> list = Parse(text);
    for (size_t i = 0; list && i < list->size(); ++i) {
      std::optional<ToolCall> call = CallOf(list->At(i));
      if (!call) return {};
      calls.push_back(std::move(*call));
    }
    return calls;
  }
  while (!text.empty()) {
    if (text.starts_with(kMistralMarker)) text.remove_prefix(kMistralMarker.size());
    const size_t open = text.find('{');
    if (open == std::string_view::npos) return {};
    std::string_view name = Trimmed(text.substr(0, open));
    if (name.ends_with(kMistralArguments)) name.remove_suffix(kMistralArguments.size());
    const size_t end = EndOfJson(text.substr(open));
    if (name.empty() || end == std::string_view::npos) return {};
    const std::string_view arguments = text.substr(open, end);
    if (!Parse(arguments)) return {};
    calls.push_back({std::string(name), std::string(arguments)});
    text = Trimmed(text.substr(open + end));
  }
  return calls;
}

}  // namespace

ToolFormat ToolFormatOf(const ChatTemplate& chat_template) {
  if (chat_template.IsNone()) return ToolFormat::kNone;
  static constexpr std::string_view kProbe =
      R"({"tools": [{"type": "function", "function": {"name": "probe", "description": "probe",
          "parameters": {"type": "object", "properties": {}}}}]})";
  static constexpr std::string_view kCalls =
      R"({"tool_calls": [{"id": "abcdefghi", "type": "function",
          "function": {"name": "probe", "arguments": {}}}]})";
  static constexpr std::string_view kResult = R"({"tool_call_id": "abcdefghi", "name": "probe"})";
  const auto json = [](std::string_view text) {
    return std::make_shared<const JsonValue>(JsonValue::Parse(text, "probe"));
  };
  std::string text;
  try {
    ChatTemplate probe = chat_template;
    probe.SetVariables(JsonValue::Parse(kProbe, "probe"));
    text =
        probe
            .Render({{"user", "x"}, {"assistant", "", json(kCalls)}, {"tool", "1", json(kResult)}},
                    true)
            .text;
  } catch (const Error&) {
    return ToolFormat::kNone;
  }
  if (text.find("probe") == std::string::npos) return ToolFormat::kNone;
  if (text.find(kMistralMarker) != std::string::npos) return ToolFormat::kMistral;
  if (text.find(kOpen) != std::string::npos) {
    // Others write calls between these tags in ways of their families.
    const size_t behind = text.rfind(kOpen) + kOpen.size();
    const bool is_json = Trimmed(std::string_view(text).substr(behind)).starts_with("{");
    return is_json ? ToolFormat::kHermes : ToolFormat::kNone;
  }
  if (text.find("\"parameters\": {}") != std::string::npos &&
      text.find("<|start_header_id|>") != std::string::npos) {
    return ToolFormat::kLlama3;
  }
  return ToolFormat::kNone;
}

std::string_view ToolMarker(ToolFormat format) {
  switch (format) {
    case ToolFormat::kNone:
      return "";
    case ToolFormat::kHermes:
      return kOpen;
    case ToolFormat::kLlama3:
      return kPythonTag;
    case ToolFormat::kMistral:
      return kMistralMarker;
  }
  return "";
}

ToolCallParser::Output ToolCallParser::Push(std::string_view piece) {
  held_ += piece;
  return Take(false);
}

ToolCallParser::Output ToolCallParser::Finish() { return Take(true); }

ToolCallParser::Output ToolCallParser::Take(bool is_end) {
  Output out;
  switch (format_) {
    case ToolFormat::kNone:
      out.text = std::exchange(held_, {});
      break;
    case ToolFormat::kHermes:
      TakeHermes(is_end, out);
      break;
    case ToolFormat::kLlama3:
      TakeLlama3(is_end, out);
      break;
    case ToolFormat::kMistral:
      TakeMistral(is_end, out);
      break;
  }
  return out;
}

// Space behind a call is no text of the answer.
void ToolCallParser::AddText(std::string_view text, Output& out) {
  if (skips_spaces_) text.remove_prefix(std::min(text.find_first_not_of(kSpaces), text.size()));
  if (!text.empty()) skips_spaces_ = false;
  out.text += text;
}

void ToolCallParser::TakeHermes(bool is_end, Output& out) {
  if (is_start_) {  // Space in front of a call is no text of the answer either.
    const size_t begin = std::min(held_.find_first_not_of(kSpaces), held_.size());
    const std::string_view rest = std::string_view(held_).substr(begin);
    if (kOpen.starts_with(rest) && rest.size() < kOpen.size() && !is_end) return;
    is_start_ = false;
    if (rest.starts_with(kOpen)) held_.erase(0, begin);
  }
  while (true) {
    const size_t open = held_.find(kOpen);
    if (open == std::string::npos) {
      const size_t keep = is_end ? 0 : PossibleStart(held_, kOpen);
      AddText(std::string_view(held_).substr(0, held_.size() - keep), out);
      held_.erase(0, held_.size() - keep);
      break;
    }
    AddText(std::string_view(held_).substr(0, open), out);
    held_.erase(0, open);
    const size_t close = held_.find(kClose);
    if (close == std::string::npos && !is_end) break;
    // Some models end their answer without the tag.
    const size_t end = close == std::string::npos ? held_.size() : close + kClose.size();
    const size_t inner_end = close == std::string::npos ? held_.size() : close;
    if (std::optional<ToolCall> call =
            CallOf(std::string_view(held_).substr(kOpen.size(), inner_end - kOpen.size()))) {
      out.calls.push_back(std::move(*call));
      skips_spaces_ = true;
    } else {
      AddText(std::string_view(held_).substr(0, end), out);
    }
    held_.erase(0, end);
    if (held_.empty()) break;
  }
}

void ToolCallParser::TakeLlama3(bool is_end, Output& out) {
  if (!is_text_) {
    const size_t begin = held_.find_first_not_of(kSpaces);
    if (begin == std::string::npos && !is_end) return;
    const std::string_view rest =
        begin == std::string::npos ? std::string_view() : std::string_view(held_).substr(begin);
    const bool may_be_tag = kPythonTag.starts_with(rest.substr(0, kPythonTag.size()));
    const bool may_be_call = rest.starts_with("{") || may_be_tag;
    if (may_be_call && !is_end) return;
    if (may_be_call) {
      out.calls = Llama3Calls(rest.starts_with(kPythonTag) ? rest.substr(kPythonTag.size()) : rest);
      if (!out.calls.empty()) {
        held_.clear();
        return;
      }
    }
    is_text_ = true;
  }
  out.text = std::exchange(held_, {});
}

void ToolCallParser::TakeMistral(bool is_end, Output& out) {
  const size_t open = held_.find(kMistralMarker);
  if (open == std::string::npos) {
    const size_t keep = is_end ? 0 : PossibleStart(held_, kMistralMarker);
    out.text = held_.substr(0, held_.size() - keep);
    held_.erase(0, held_.size() - keep);
    return;
  }
  out.text = held_.substr(0, open);
  held_.erase(0, open);
  if (!is_end) return;
  out.calls = MistralCalls(std::string_view(held_).substr(kMistralMarker.size()));
  if (out.calls.empty()) out.text += held_;
  held_.clear();
}

}  // namespace pmkvq::server
