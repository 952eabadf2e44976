#include "pmkvq/text/chat_template.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <set>

#include "pmkvq/base/error.h"
#include "pmkvq/io/file.h"
#include "pmkvq/io/json.h"
#include "pmkvq/io/json_lines.h"
#include "pmkvq/text/chat_template_builtin.h"
#include "pmkvq/text/tokenizer.h"
#include "support/expect_error.h"
#include "support/temp_folder.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;
using testing_support::TempFolder;

const std::string kRoot = PMKVQ_SOURCE_DIR;

std::string TemplateText(const std::string& file) {
  const std::string text = ReadFile(kRoot + "/" + file);
  return file.ends_with(".json") ? JsonValue::Parse(text, file).At("chat_template").AsString()
                                 : text;
}

std::vector<ChatMessage> MessagesOf(const JsonValue& json) {
  std::vector<ChatMessage> messages;
  for (size_t k = 0; k < json.size(); ++k) {
    messages.push_back({json.At(k).At("role").AsString(), json.At(k).At("content").AsString()});
  }
  return messages;
}

// tools/render_chat_goldens.py renders the published templates into expected.json.
TEST(ChatTemplate, PublishedTemplatesAndBuiltInOnesGiveTheSamePrompts) {
  const JsonValue cases =
      JsonValue::ParseFile(kRoot + "/tests/golden/chat_templates/expected.json");
  std::set<std::string> files;
  for (size_t i = 0; i < cases.size(); ++i) {
    const JsonValue c = cases.At(i);
    const std::string file = c.At("template").AsString();
    const std::string name = c.At("format").AsString();
    for (ChatTemplate chat :
         {ChatTemplate::FromJinja(TemplateText(file), file), ChatTemplate::BuiltIn(name)}) {
      chat.SetSpecialToken("bos_token", c.At("bos_token").AsString());
      chat.SetVariables(JsonValue::Parse(R"({"enable_thinking":true})", "kwargs"));
      const std::vector<ChatMessage> messages = MessagesOf(c.At("messages"));
      EXPECT_EQ(chat.Render(messages, c.At("add_generation_prompt").AsBool()).text,
                c.At("text").AsString())
          << file << " case " << i << " as " << chat.Identity();
    }
    files.insert(file);
  }
  EXPECT_EQ(files.size(), 7u);
  EXPECT_GE(cases.size(), 7u * 2 * 4);
}

std::string Rendered(const ChatTemplate& chat, const std::vector<ChatMessage>& messages) {
  return chat.Render(messages, true).text;
}

// Each was once taken for the family it looks like.
TEST(ChatTemplate, LookAlikesGiveTheirOwnPrompts) {
  const int64_t cases = ForEachLine(
      kRoot + "/tests/golden/jinja/look_alikes.jsonl",
      [](std::string_view line, const std::string& where, int64_t) {
        const JsonValue c = JsonValue::Parse(line, where);
        ChatTemplate chat = ChatTemplate::FromJinja(c.At("chat_template").AsString(), where);
        chat.SetSpecialToken("bos_token", c.At("bos_token").AsString());
        std::vector<ChatMessage> messages;
        if (c.Has("system")) messages.push_back({"system", c.At("system").AsString()});
        messages.push_back({"user", c.At("user").AsString()});
        EXPECT_EQ(chat.Render(messages, true).text, c.At("prompt").AsString())
            << c.At("name").AsString();
      });
  EXPECT_EQ(cases, 8);
}

TEST(ChatTemplate, BuiltInOnesWithoutAPublishedFileHere) {
  EXPECT_EQ(Rendered(ChatTemplate(), {{"system", "a "}, {"user", "b"}}), "a b");
  EXPECT_EQ(Rendered(ChatTemplate::BuiltIn("chatml"), {{"user", "b"}}),
            "<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n");
  ChatTemplate llama3 = ChatTemplate::BuiltIn("llama3");
  const std::vector<ChatMessage> messages = {{"system", " a "}, {"user", "b\n"}};
  const std::string turns =
      "<|start_header_id|>system<|end_header_id|>\n\na<|eot_id|>"
      "<|start_header_id|>user<|end_header_id|>\n\nb<|eot_id|>"
      "<|start_header_id|>assistant<|end_header_id|>\n\n";
  EXPECT_EQ(Rendered(llama3, messages), turns);
  EXPECT_EQ(llama3.SpecialToken("bos_token"), "");
  llama3.SetSpecialToken("bos_token", "<b>");
  llama3.SetSpecialToken("bos_token", "<s>");
  EXPECT_EQ(llama3.SpecialToken("bos_token"), "<s>");
  EXPECT_EQ(Rendered(llama3, messages), "<s>" + turns);
}

TEST(ChatTemplate, ReasoningModelsOpenTheThinking) {
  for (const char* name : {"qwq", "deepseek-r1", "longcot"}) {
    EXPECT_TRUE(Rendered(ChatTemplate::BuiltIn(name), {{"user", "x"}}).ends_with("<think>\n"));
  }
}

TEST(ChatTemplate, NamesOfBuiltInOnes) {
  for (const BuiltInTemplate& built_in : BuiltInTemplates()) {
    EXPECT_TRUE(ChatTemplate::IsBuiltIn(built_in.name));
    EXPECT_EQ(ChatTemplate::BuiltIn(built_in.name).Identity(), built_in.name);
  }
  EXPECT_FALSE(ChatTemplate::IsBuiltIn("qwen"));
  ExpectError<InvalidInput>([] { ChatTemplate::BuiltIn("qwen"); },
                            {"--chat-template", "qwen", "none, chatml, qwen2.5"});
}

TEST(ChatTemplate, IdentityFollowsWhatChangesThePrompt) {
  EXPECT_EQ(ChatTemplate().Identity(), "none");
  ChatTemplate chat = ChatTemplate::FromJinja("{{ messages }}", "t");
  const std::string plain = chat.Identity();
  EXPECT_EQ(plain.size(), 32u);
  EXPECT_NE(ChatTemplate::FromJinja("{{- messages }}", "t").Identity(), plain);
  chat.SetVariables(JsonValue::Parse(R"({"a":1})", "kwargs"));
  EXPECT_EQ(chat.Identity(), plain + " {\"a\":1}");
  chat.SetDate("2026-02-03");
  EXPECT_EQ(chat.Identity(), plain + " {\"a\":1} 2026-02-03");
}

TEST(ChatTemplate, VariablesAndDateReachTheTemplate) {
  ChatTemplate chat = ChatTemplate::FromJinja(
      "{{ strftime_now('%Y-%m-%d') }}|{{ enable_thinking }}|{{ tools is none }}|{{ bos_token }}",
      "t");
  EXPECT_EQ(Rendered(chat, {{"user", "x"}}), "2026-01-01||True|");
  chat.SetVariables(JsonValue::Parse(R"({"enable_thinking":false,"tools":[]})", "kwargs"));
  chat.SetDate("2024-02-29");
  chat.SetSpecialToken("bos_token", "<s>");
  EXPECT_EQ(Rendered(chat, {{"user", "x"}}), "2024-02-29|False|False|<s>");
  for (const char* date : {"2023-02-29", "2024-13-01", "2024-1-1", "24-01-001", "now", ""}) {
    ExpectError<InvalidInput>([&] { chat.SetDate(date); }, {"--template-date", date});
  }
  chat.SetDate("today");
  EXPECT_NE(Rendered(chat, {{"user", "x"}}).substr(0, 2), "19");
  ExpectError<InvalidInput>([&] { chat.SetVariables(JsonValue::Parse("[]", "kwargs")); },
                            {"kwargs", "object"});
  ExpectError<InvalidInput>(
      [&] { chat.SetVariables(JsonValue::Parse(R"({"messages":[]})", "kwargs")); },
      {"kwargs", "messages"});
}

TEST(ChatTemplate, WrongMessagesAreNamed) {
  const ChatTemplate chat = ChatTemplate::BuiltIn("chatml");
  ExpectError<InvalidInput>([&] { (void)chat.Render({}, true); }, {"messages"});
  ExpectError<InvalidInput>(
      [&] {
        (void)chat.Render({{"user", "a"}, {"user", "b\xff"}}, true);
      },
      {"messages[1]", "byte 1", "UTF-8"});
  const ChatTemplate strict =
      ChatTemplate::FromJinja("{{ raise_exception('no ' ~ messages[0].role) }}", "t");
  ExpectError<InvalidInput>(
      [&] {
        (void)strict.Render({{"tool", "a"}}, true);
      },
      {"[t] line 1", "no tool"});
}

std::string MarkedParts(const MarkedText& text) {
  std::string result;
  for (const ByteRange& range : text.input) {
    result += "[" + text.text.substr(range.begin, range.end - range.begin) + "]";
  }
  return result;
}

TEST(ChatTemplate, WhatUsersWroteIsMarked) {
  const ChatTemplate chat = ChatTemplate::BuiltIn("chatml");
  EXPECT_EQ(MarkedParts(chat.Render({{"user", "a<|im_end|>"}}, true)), "[user][a<|im_end|>]");
  // Tags of thinking in what the assistant wrote are meant, others are not.
  EXPECT_EQ(MarkedParts(chat.Render({{"assistant", "<think>a</think><|im_end|>[x"}}, true)),
            "[assistant][a][<|im_end|>[x]");
  EXPECT_EQ(MarkedParts(ChatTemplate().Render({{"user", "<think>"}}, true)), "[<think>]");
}

TEST(ChatTemplate, ShippedModel) {
  const std::string folder = kRoot + "/models/longcot-10m";
  const ChatTemplate chat = LoadChatTemplate(folder);
  EXPECT_EQ(chat.Identity(), "longcot");
  const MarkedText prompt = chat.Render({{"user", "x<|im_end|>\n"}}, true);
  EXPECT_EQ(prompt.text,
            "<|im_start|>user\nx<|im_end|>\n<|im_end|>\n<|im_start|>assistant\n<think>\n");
  const auto tokenizer = Tokenizer::Load(folder);
  const auto count = [&](const std::vector<int32_t>& ids) {
    return std::count(ids.begin(), ids.end(), tokenizer->TokenId("<|im_end|>"));
  };
  EXPECT_EQ(count(tokenizer->Encode(prompt)), 1);       // The template's.
  EXPECT_EQ(count(tokenizer->Encode(prompt.text)), 2);  // And the user's.
  // Ordinary prompts are the same whichever way.
  const MarkedText plain =
      chat.Render({{"system", "Be brief.\n"}, {"user", "\n1 + 1 = ?\n"}}, true);
  EXPECT_EQ(tokenizer->Encode(plain), tokenizer->Encode(plain.text));
}

TEST(LoadChatTemplate, ReadsTheFormsOfModelFolders) {
  const TempFolder folder;
  const auto rendered = [&](const std::string& name = "") {
    return Rendered(LoadChatTemplate(folder.path(), name), {{"user", "x"}});
  };
  EXPECT_TRUE(LoadChatTemplate(folder.path()).IsNone());
  folder.Write("tokenizer_config.json", R"({"bos_token":null,"chat_template":null})");
  EXPECT_TRUE(LoadChatTemplate(folder.path()).IsNone());
  EXPECT_FALSE(HasChatTemplate(folder.path(), "tool_use"));

  folder.Write("tokenizer_config.json",
               R"({"bos_token":{"content":"<b>","lstrip":false},"eos_token":"<e>",)"
               R"("chat_template":"{{ bos_token ~ eos_token ~ pad_token ~ unk_token }}"})");
  folder.Write("special_tokens_map.json", R"({"bos_token":"<not>","pad_token":"<p>"})");
  EXPECT_EQ(rendered(), "<b><e><p>");

  JsonWriter list;
  list.BeginObject().Key("chat_template").BeginArray();
  for (const char* name : {"tool_use", "default"}) {
    list.BeginObject().Key("name").String(name).Key("template").String(name).EndObject();
  }
  list.EndArray().EndObject();
  folder.Write("tokenizer_config.json", list.text());
  EXPECT_EQ(rendered(), "default");
  EXPECT_EQ(rendered("tool_use"), "tool_use");
  EXPECT_TRUE(HasChatTemplate(folder.path(), "tool_use"));
  ExpectError<InvalidInput>([&] { rendered("rag"); }, {"chat_template", "rag"});

  folder.Write("chat_template.jinja", "file");  // Goes before the config's.
  EXPECT_EQ(rendered(), "file");
  std::filesystem::create_directory(folder.path() + "/additional_chat_templates");
  folder.Write("additional_chat_templates/rag.jinja", "rag");
  EXPECT_EQ(rendered("rag"), "rag");
  EXPECT_FALSE(HasChatTemplate(folder.path(), "../chat_template"));
}

TEST(LoadChatTemplate, WrongFoldersAreNamed) {
  const TempFolder folder;
  const auto refused = [&](const std::string& config, std::initializer_list<std::string> words) {
    folder.Write("tokenizer_config.json", config);
    ExpectError<Error>([&] { LoadChatTemplate(folder.path()); }, words);
  };
  refused(R"({"chat_template":3})", {"tokenizer_config.json", "chat_template", "3"});
  refused(R"({"chat_template":[{"name":"rag","template":"x"}]})", {"chat_template", "default"});
  refused(R"({"bos_token":7})", {"bos_token", "7"});
  refused(R"({"chat_template":"\n{{ x|nosuch }}"})",
          {"tokenizer_config.json", "chat_template", "line 2", "nosuch", "--chat-template"});
  refused(R"({"chat_template":"{% if %}"})", {"tokenizer_config.json", "chat_template", "line 1"});
}

}  // namespace
}  // namespace pmkvq
