#include "pmkvq/text/chat_template.h"

#include <fmt/format.h>

#include <array>
#include <utility>

#include "pmkvq/base/error.h"
#include "pmkvq/text/utf8.h"

namespace pmkvq {
namespace {

using Messages = std::vector<ChatMessage>;

constexpr std::array<std::pair<ChatFormat, std::string_view>, 9> kNames = {{
    {ChatFormat::kNone, "none"},
    {ChatFormat::kChatml, "chatml"},
    {ChatFormat::kQwen25, "qwen2.5"},
    {ChatFormat::kQwq, "qwq"},
    {ChatFormat::kQwen3, "qwen3"},
    {ChatFormat::kDeepseekR1, "deepseek-r1"},
    {ChatFormat::kLlama3, "llama3"},
    {ChatFormat::kLlama31, "llama3.1"},
    {ChatFormat::kLongcot, "longcot"},
}};

constexpr std::string_view kThinkStart = "<think>";
constexpr std::string_view kThinkEnd = "</think>";
constexpr std::string_view kQwen25System =
    "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.";
// The template's own date where none is given: a prompt must not depend on the day.
constexpr std::string_view kLlama31Dates =
    "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n";

std::string_view StripLeft(std::string_view text, char c) {
  while (!text.empty() && text.front() == c) text.remove_prefix(1);
  return text;
}

std::string_view StripRight(std::string_view text, char c) {
  while (!text.empty() && text.back() == c) text.remove_suffix(1);
  return text;
}

// Python's str.isspace for one character.
bool IsPythonSpace(char32_t c) { return IsWhiteSpace(c) || (c >= 0x1C && c <= 0x1F); }

// Jinja's trim filter. `text` must be valid UTF-8; otherwise nothing but its valid ends is cut.
std::string_view Trim(std::string_view text) {
  const auto is_space = [&](size_t offset, size_t* length) {
    const Utf8Step step = ScanUtf8(text, offset);
    return step.kind == Utf8Kind::kValid && IsPythonSpace(DecodeUtf8(text, offset, length));
  };
  size_t length = 0;
  while (!text.empty() && is_space(0, &length)) text.remove_prefix(length);
  while (!text.empty()) {
    size_t start = text.size() - 1;
    while (start > 0 && (static_cast<unsigned char>(text[start]) & 0xC0) == 0x80) --start;
    if (!is_space(start, &length) || start + length != text.size()) break;
    text.remove_suffix(length);
  }
  return text;
}

// Jinja's text.split(mark)[-1] and text.split(mark)[0].
std::string_view AfterLast(std::string_view text, std::string_view mark) {
  const size_t at = text.rfind(mark);
  return at == std::string_view::npos ? text : text.substr(at + mark.size());
}

std::string_view BeforeFirst(std::string_view text, std::string_view mark) {
  return text.substr(0, text.find(mark));
}

void AppendChatml(std::string_view role, std::string_view content, std::string* prompt) {
  *prompt += fmt::format("<|im_start|>{}\n{}<|im_end|>\n", role, content);
}

std::string RenderChatml(const Messages& messages) {
  std::string prompt;
  for (const ChatMessage& message : messages) AppendChatml(message.role, message.content, &prompt);
  return prompt;
}

std::string RenderQwen25(const Messages& messages) {
  std::string prompt;
  if (messages.front().role != "system") AppendChatml("system", kQwen25System, &prompt);
  return prompt + RenderChatml(messages);
}

std::string RenderQwq(const Messages& messages) {
  std::string prompt;
  for (const ChatMessage& message : messages) {
    const bool is_last = &message == &messages.back();
    std::string_view content = message.content;
    if (message.role == "assistant" && !is_last) {
      content = StripLeft(AfterLast(content, kThinkEnd), '\n');
    }
    AppendChatml(message.role, content, &prompt);
  }
  return prompt;
}

// Index of the last user message that is not a tool's answer; the last message when there is none.
size_t LastQuery(const Messages& messages) {
  for (size_t i = messages.size(); i-- > 0;) {
    const std::string& content = messages[i].content;
    const bool is_tool_response =
        content.starts_with("<tool_response>") && content.ends_with("</tool_response>");
    if (messages[i].role == "user" && !is_tool_response) return i;
  }
  return messages.size() - 1;
}

std::string RenderQwen3(const Messages& messages) {
  std::string prompt;
  const size_t last_query = LastQuery(messages);
  for (size_t i = 0; i < messages.size(); ++i) {
    std::string_view content = messages[i].content;
    if (messages[i].role != "assistant") {
      AppendChatml(messages[i].role, content, &prompt);
      continue;
    }
    std::string_view thinking;
    if (content.find(kThinkEnd) != std::string_view::npos) {
      thinking = AfterLast(StripRight(BeforeFirst(content, kThinkEnd), '\n'), kThinkStart);
      thinking = StripRight(StripLeft(thinking, '\n'), '\n');
      content = StripLeft(AfterLast(content, kThinkEnd), '\n');
    }
    const bool is_last = i + 1 == messages.size();
    if (i > last_query && (is_last || !thinking.empty())) {
      AppendChatml("assistant",
                   fmt::format("<think>\n{}\n</think>\n\n{}", thinking, StripLeft(content, '\n')),
                   &prompt);
    } else {
      AppendChatml("assistant", content, &prompt);
    }
  }
  return prompt;
}

std::string RenderDeepseekR1(const Messages& messages, const std::string& bos_token) {
  std::string system;
  std::string turns;
  for (const ChatMessage& message : messages) {
    if (message.role == "system") {
      system = message.content;  // The template keeps only the last one.
    } else if (message.role == "user") {
      turns += "<｜User｜>" + message.content;
    } else {
      turns += fmt::format("<｜Assistant｜>{}<｜end▁of▁sentence｜>",
                           AfterLast(message.content, kThinkEnd));
    }
  }
  return bos_token + system + turns;
}

void AppendLlama3(std::string_view role, std::string_view content, std::string* prompt) {
  *prompt += fmt::format("<|start_header_id|>{}<|end_header_id|>\n\n{}<|eot_id|>", role, content);
}

std::string RenderLlama3(const Messages& messages, const std::string& bos_token, bool with_dates) {
  std::string prompt = bos_token;
  const bool has_system = messages.front().role == "system";
  if (with_dates) {
    std::string system(kLlama31Dates);
    if (has_system) system += Trim(messages.front().content);
    AppendLlama3("system", system, &prompt);
  }
  for (size_t i = with_dates && has_system ? 1 : 0; i < messages.size(); ++i) {
    AppendLlama3(messages[i].role, Trim(messages[i].content), &prompt);
  }
  return prompt;
}

std::string RenderTurns(const ChatTemplate& chat, const Messages& messages) {
  switch (chat.format) {
    case ChatFormat::kNone:
      break;
    case ChatFormat::kChatml:
    case ChatFormat::kLongcot:
      return RenderChatml(messages);
    case ChatFormat::kQwen25:
      return RenderQwen25(messages);
    case ChatFormat::kQwq:
      return RenderQwq(messages);
    case ChatFormat::kQwen3:
      return RenderQwen3(messages);
    case ChatFormat::kDeepseekR1:
      return RenderDeepseekR1(messages, chat.bos_token);
    case ChatFormat::kLlama3:
      return RenderLlama3(messages, chat.bos_token, false);
    case ChatFormat::kLlama31:
      return RenderLlama3(messages, chat.bos_token, true);
  }
  std::string prompt;
  for (const ChatMessage& message : messages) prompt += message.content;
  return prompt;
}

std::string_view GenerationPrompt(ChatFormat format) {
  switch (format) {
    case ChatFormat::kNone:
      break;
    case ChatFormat::kChatml:
    case ChatFormat::kQwen25:
    case ChatFormat::kQwen3:
      return "<|im_start|>assistant\n";
    case ChatFormat::kQwq:
    case ChatFormat::kLongcot:
      return "<|im_start|>assistant\n<think>\n";
    case ChatFormat::kDeepseekR1:
      return "<｜Assistant｜><think>\n";
    case ChatFormat::kLlama3:
    case ChatFormat::kLlama31:
      return "<|start_header_id|>assistant<|end_header_id|>\n\n";
  }
  return "";
}

}  // namespace

ChatFormat ParseChatFormat(std::string_view name) {
  std::string known;
  for (const auto& [format, format_name] : kNames) {
    if (name == format_name) return format;
    known += fmt::format("{}{}", known.empty() ? "" : ", ", format_name);
  }
  throw InvalidInput("--chat-template",
                     fmt::format("found \"{}\", expected one of {}", name, known));
}

std::string_view NameOf(ChatFormat format) { return kNames[static_cast<size_t>(format)].second; }

std::string ChatTemplate::Render(const std::vector<ChatMessage>& messages,
                                 bool add_generation_prompt) const {
  if (messages.empty()) throw InvalidInput("messages", "found none, expected at least one");
  for (size_t i = 0; i < messages.size(); ++i) {
    const std::string& role = messages[i].role;
    if (role != "system" && role != "user" && role != "assistant") {
      throw InvalidInput(
          fmt::format("messages[{}].role", i),
          fmt::format("found \"{}\", expected \"system\", \"user\" or \"assistant\"", role));
    }
  }
  std::string prompt = RenderTurns(*this, messages);
  if (add_generation_prompt) prompt += GenerationPrompt(format);
  return prompt;
}

}  // namespace pmkvq
