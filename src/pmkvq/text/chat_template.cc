#include "pmkvq/text/chat_template.h"

#include <fmt/format.h>

#include <algorithm>
#include <ctime>

#include "pmkvq/base/error.h"
#include "pmkvq/io/hash.h"
#include "pmkvq/io/utf8.h"
#include "pmkvq/text/chat_template_builtin.h"
#include "pmkvq/text/jinja/template.h"
#include "pmkvq/text/tokenizer.h"

namespace pmkvq {
namespace {

// What an assistant's own text may hold as tokens, also where a tokenizer marks them as special.
constexpr std::string_view kAssistantTags[] = {
    "<think>", "</think>", "<tool_call>", "</tool_call>", "[THINK]", "[/THINK]", "[TOOL_CALLS]",
};

// The parts of an assistant's text that are none of these tags.
std::vector<ByteRange> WithoutTags(std::string_view text) {
  std::vector<ByteRange> ranges;
  size_t begin = 0;
  for (size_t i = text.find_first_of("<["); i != std::string_view::npos;) {
    size_t tag_bytes = 0;
    for (const std::string_view tag : kAssistantTags) {
      if (text.substr(i).starts_with(tag)) tag_bytes = tag.size();
    }
    if (tag_bytes > 0) {
      if (begin < i) ranges.push_back({begin, i});
      begin = i + tag_bytes;
    }
    i = text.find_first_of("<[", i + std::max<size_t>(tag_bytes, 1));
  }
  if (begin < text.size()) ranges.push_back({begin, text.size()});
  return ranges;
}

void CheckMessage(const ChatMessage& message, size_t index) {
  const std::string where = fmt::format("messages[{}]", index);
  CheckUtf8(message.role, where);
  CheckUtf8(message.content, where);
}

jinja::Value MessageValue(const ChatMessage& message) {
  const std::vector<ByteRange> input = message.role == "assistant"
                                           ? WithoutTags(message.content)
                                           : std::vector<ByteRange>{{0, message.content.size()}};
  jinja::Variables members = {{"role", jinja::InputString(message.role)},
                              {"content", jinja::MarkedString({message.content, input})}};
  if (message.more != nullptr) {
    for (const std::string& name : message.more->Keys()) {
      members.emplace_back(name, jinja::FromJson(message.more->Find(name)));
    }
  }
  return jinja::MakeDict(std::move(members));
}

MarkedText JoinContents(const std::vector<ChatMessage>& messages) {
  MarkedText prompt;
  for (const ChatMessage& message : messages) prompt.text += message.content;
  if (!prompt.text.empty()) prompt.input = {{0, prompt.text.size()}};
  return prompt;
}

}  // namespace

ChatTemplate ChatTemplate::FromJinja(std::string_view jinja, const std::string& source) {
  ChatTemplate result;
  result.template_ = jinja::Template::Parse(jinja, source);
  result.text_ = std::make_shared<const std::string>(jinja);
  Hash128 hash;
  hash.Update(jinja);
  result.name_ = hash.HexDigest();
  for (const BuiltInTemplate& built_in : BuiltInTemplates()) {
    if (built_in.jinja == jinja) result.name_ = built_in.name;
  }
  return result;
}

ChatTemplate ChatTemplate::BuiltIn(std::string_view name) {
  for (const BuiltInTemplate& built_in : BuiltInTemplates()) {
    if (built_in.name == name)
      return FromJinja(built_in.jinja, "chat_template " + std::string(name));
  }
  throw InvalidInput("--chat-template",
                     fmt::format("found \"{}\", expected one of none, {}", name, BuiltInNames()));
}

bool ChatTemplate::IsBuiltIn(std::string_view name) {
  const auto all = BuiltInTemplates();
  return std::any_of(all.begin(), all.end(),
                     [&](const BuiltInTemplate& built_in) { return built_in.name == name; });
}

std::string ChatTemplate::BuiltInNames() {
  std::string names;
  for (const BuiltInTemplate& built_in : BuiltInTemplates()) {
    names += fmt::format("{}{}", names.empty() ? "" : ", ", built_in.name);
  }
  return names;
}

void ChatTemplate::SetSpecialToken(const std::string& name, const std::string& text) {
  special_tokens_.emplace_back(name, text);
}

std::string ChatTemplate::SpecialToken(std::string_view name) const {
  const auto found = std::find_if(special_tokens_.rbegin(), special_tokens_.rend(),
                                  [&](const auto& token) { return token.first == name; });
  return found == special_tokens_.rend() ? "" : found->second;
}

void ChatTemplate::SetVariables(const JsonValue& object) {
  if (!object.IsObject()) object.Fail("an object, {\"enable_thinking\": false} say");
  for (const std::string& name : object.Keys()) {
    if (name == "messages" || name == "add_generation_prompt") {
      throw InvalidInput(
          object.Where(),
          fmt::format("found \"{}\", expected variables of the template only", name));
    }
  }
  (void)jinja::FromJson(object);  // Throws where the object is nested too deep.
  variables_ = std::make_shared<const JsonValue>(object);
}

void ChatTemplate::SetDate(const std::string& date) {
  jinja::Date parsed;
  if (date == "today") {
    const std::time_t now = std::time(nullptr);
    std::tm local{};
    localtime_r(&now, &local);
    parsed = {local.tm_year + 1900, local.tm_mon + 1, local.tm_mday,
              local.tm_hour,        local.tm_min,     local.tm_sec};
  } else {
    const bool has_form = date.size() == 10 && date[4] == '-' && date[7] == '-' &&
                          std::all_of(date.begin(), date.end(),
                                      [](char c) { return c == '-' || (c >= '0' && c <= '9'); }) &&
                          std::count(date.begin(), date.end(), '-') == 2;
    if (has_form) {
      parsed.year = std::stoi(date.substr(0, 4));
      parsed.month = std::stoi(date.substr(5, 2));
      parsed.day = std::stoi(date.substr(8, 2));
    }
    std::tm time{};
    time.tm_year = parsed.year - 1900;
    time.tm_mon = parsed.month - 1;
    time.tm_mday = parsed.day;
    timegm(&time);  // Moves days that a month does not have.
    if (!has_form || parsed.year < 1 || time.tm_mon + 1 != parsed.month ||
        time.tm_mday != parsed.day) {
      throw InvalidInput(
          "--template-date",
          fmt::format("found \"{}\", expected a day like 2026-01-31, or today", date));
    }
  }
  date_ = std::make_shared<const jinja::Date>(parsed);
  date_text_ = fmt::format("{:04}-{:02}-{:02}", parsed.year, parsed.month, parsed.day);
}

MarkedText ChatTemplate::Render(const std::vector<ChatMessage>& messages,
                                bool add_generation_prompt) const {
  if (messages.empty()) throw InvalidInput("messages", "found none, expected at least one");
  for (size_t i = 0; i < messages.size(); ++i) CheckMessage(messages[i], i);
  if (IsNone()) return JoinContents(messages);
  std::vector<jinja::Value> values;
  values.reserve(messages.size());
  for (const ChatMessage& message : messages) values.push_back(MessageValue(message));
  // As transformers calls templates: without tools and documents these are none, not undefined.
  jinja::Variables variables = {
      {"tools", jinja::Value::None()},
      {"documents", jinja::Value::None()},
  };
  for (const auto& [name, text] : special_tokens_) {
    variables.emplace_back(name, jinja::TrustedString(text));
  }
  if (variables_ != nullptr) {
    for (const std::string& name : variables_->Keys()) {
      variables.emplace_back(name, jinja::FromJson(variables_->Find(name)));
    }
  }
  variables.emplace_back("messages", jinja::MakeList(std::move(values)));
  variables.emplace_back("add_generation_prompt", jinja::Value::Bool(add_generation_prompt));
  return template_->Render(variables, date_ == nullptr ? jinja::Date() : *date_);
}

std::string ChatTemplate::Identity() const {
  std::string identity = name_;
  if (variables_ != nullptr && variables_->size() > 0) identity += " " + variables_->Dump();
  if (date_ != nullptr && !IsNone()) identity += " " + date_text_;
  return identity;
}

}  // namespace pmkvq
