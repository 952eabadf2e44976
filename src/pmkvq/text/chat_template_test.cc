#include "pmkvq/text/chat_template.h"

#include <gtest/gtest.h>

#include <set>

#include "pmkvq/base/error.h"
#include "pmkvq/io/file.h"
#include "pmkvq/io/json.h"
#include "support/expect_error.h"
#include "support/temp_folder.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;
using testing_support::TempFolder;

const std::string kRoot = PMKVQ_SOURCE_DIR;

constexpr ChatFormat kAllFormats[] = {
    ChatFormat::kNone,   ChatFormat::kChatml,  ChatFormat::kQwen25,
    ChatFormat::kQwq,    ChatFormat::kQwen3,   ChatFormat::kDeepseekR1,
    ChatFormat::kLlama3, ChatFormat::kLlama31, ChatFormat::kLongcot,
};

std::string TemplateText(const std::string& file) {
  const std::string text = ReadFile(kRoot + "/" + file);
  return file.ends_with(".json") ? JsonValue::Parse(text, file).At("chat_template").AsString()
                                 : text;
}

// tools/render_chat_goldens.py renders the published templates into expected.json.
TEST(ChatTemplate, RecognisesAndRendersThePublishedTemplates) {
  const JsonValue cases =
      JsonValue::ParseFile(kRoot + "/tests/golden/chat_templates/expected.json");
  std::set<std::string> files;
  for (size_t i = 0; i < cases.size(); ++i) {
    const JsonValue c = cases.At(i);
    const std::string file = c.At("template").AsString();
    const ChatTemplate chat =
        RecogniseChatTemplate(TemplateText(file), c.At("bos_token").AsString(), file);
    ASSERT_EQ(NameOf(chat.format), c.At("format").AsString()) << file;
    std::vector<ChatMessage> messages;
    for (size_t k = 0; k < c.At("messages").size(); ++k) {
      const JsonValue message = c.At("messages").At(k);
      messages.push_back({message.At("role").AsString(), message.At("content").AsString()});
    }
    EXPECT_EQ(chat.Render(messages, c.At("add_generation_prompt").AsBool()),
              c.At("text").AsString())
        << file << " case " << i;
    files.insert(file);
  }
  EXPECT_EQ(files.size(), 7u);
  EXPECT_GE(cases.size(), 7u * 2 * 4);
}

TEST(ChatTemplate, ReasoningFamiliesOpenTheThinking) {
  for (const ChatFormat format :
       {ChatFormat::kQwq, ChatFormat::kDeepseekR1, ChatFormat::kLongcot}) {
    EXPECT_TRUE(ChatTemplate({format, ""}).Render({{"user", "x"}}, true).ends_with("<think>\n"));
  }
}

TEST(ChatTemplate, FamiliesWithoutAPublishedFileHere) {
  EXPECT_EQ(
      ChatTemplate({ChatFormat::kNone, "<s>"}).Render({{"system", "a "}, {"user", "b"}}, true),
      "a b");
  EXPECT_EQ(ChatTemplate({ChatFormat::kChatml, ""}).Render({{"user", "b"}}, true),
            "<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n");
  EXPECT_EQ(
      ChatTemplate({ChatFormat::kLlama3, "<s>"}).Render({{"system", " a "}, {"user", "b\n"}}, true),
      "<s><|start_header_id|>system<|end_header_id|>\n\na<|eot_id|>"
      "<|start_header_id|>user<|end_header_id|>\n\nb<|eot_id|>"
      "<|start_header_id|>assistant<|end_header_id|>\n\n");
}

TEST(ChatTemplate, LlamaTrimsWhatPythonCallsWhiteSpace) {
  const ChatTemplate llama{ChatFormat::kLlama3, ""};
  const auto trimmed = [&](const std::string& content) {
    const std::string text = llama.Render({{"user", content}}, false);
    const std::string head = "<|start_header_id|>user<|end_header_id|>\n\n";
    return text.substr(head.size(), text.size() - head.size() - 10);
  };
  EXPECT_EQ(trimmed("\x1c\u3000 a b\u2028\x85"), "a b\u2028\x85");  // An invalid byte stays.
  EXPECT_EQ(trimmed("\u00a0é\u00a0"), "é");
  EXPECT_EQ(trimmed(" \u2003\n"), "");
}

TEST(ChatTemplate, WrongMessagesAreNamed) {
  for (const ChatFormat format : kAllFormats) {
    const ChatTemplate chat{format, ""};
    ExpectError<InvalidInput>([&] { (void)chat.Render({}, true); }, {"messages"});
    ExpectError<InvalidInput>(
        [&] {
          (void)chat.Render({{"user", "a"}, {"tool", "b"}}, true);
        },
        {"messages[1].role", "tool", "assistant"});
  }
}

TEST(ChatFormat, NamesRoundTrip) {
  std::set<std::string_view> names;
  for (const ChatFormat format : kAllFormats) {
    EXPECT_EQ(ParseChatFormat(NameOf(format)), format);
    names.insert(NameOf(format));
  }
  EXPECT_EQ(names.size(), std::size(kAllFormats));
  ExpectError<InvalidInput>([] { ParseChatFormat("qwen"); },
                            {"--chat-template", "qwen", "none, chatml, qwen2.5"});
}

constexpr const char* kPlainChatml =
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] "
    "+ '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\\n' }}{% endif %}";

constexpr const char* kLlama3 =
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = "
    "'<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | "
    "trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
    "{% endif %}{{ content }}{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' "
    "}}";

std::string Replaced(std::string text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}

TEST(RecogniseChatTemplate, PlainFamilies) {
  EXPECT_EQ(RecogniseChatTemplate(kPlainChatml, "", "t").format, ChatFormat::kChatml);
  EXPECT_EQ(RecogniseChatTemplate(kLlama3, "<s>", "t").format, ChatFormat::kLlama3);
  EXPECT_EQ(RecogniseChatTemplate(kLlama3, "<s>", "t").bos_token, "<s>");
}

TEST(RecogniseChatTemplate, RelativesWithAnotherOutputAreRefused) {
  const std::string qwen3 = TemplateText("tests/golden/chat_templates/Qwen-Qwen3-0.6B.jinja");
  const std::string qwq = TemplateText("tests/golden/chat_templates/Qwen-QwQ-32B.jinja");
  const std::string r1 =
      TemplateText("tests/golden/chat_templates/deepseek-ai-DeepSeek-R1-Distill-Qwen-32B.jinja");
  const std::vector<std::string> strangers = {
      "",
      "[INST] {{ message }} [/INST]",
      // Qwen3 that always thinks, and that never does.
      Replaced(qwen3, R"(assistant\n' }})", R"(assistant\n<think>\n' }})"),
      Replaced(qwen3, "enable_thinking is false", "false"),
      // Other default system turns.
      std::string("You are a helpful assistant.") + kPlainChatml,
      Replaced(qwq, "{{- '' }}", "{{- 'You are a helpful and harmless assistant.' }}"),
      std::string("system") + kPlainChatml,
      std::string("You are ") + kLlama3,
      // ChatML that drops thinking but does not open it.
      Replaced(qwq, R"(<think>\n)", ""),
      // DeepSeek without thinking, and with thinking as an option.
      Replaced(r1, "split('</think>')[-1]", "strip()"),
      "{% if not thinking is defined %}{% set thinking = false %}{% endif %}" + r1,
  };
  for (const std::string& jinja : strangers) {
    ExpectError<Unsupported>([&] { RecogniseChatTemplate(jinja, "", "t/tokenizer_config.json"); },
                             {"t/tokenizer_config.json", "--chat-template"});
  }
}

TEST(DetectChatTemplate, ReadsTheFormsOfTokenizerConfigs) {
  const TempFolder folder;
  EXPECT_EQ(DetectChatTemplate(folder.path()).format, ChatFormat::kNone);
  EXPECT_EQ(ReadBosToken(folder.path()), "");

  folder.Write("tokenizer_config.json", R"({"bos_token":null})");
  EXPECT_EQ(DetectChatTemplate(folder.path()).format, ChatFormat::kNone);

  folder.Write("tokenizer_config.json", R"({"bos_token":{"content":"<b>","lstrip":false}})");
  EXPECT_EQ(ReadBosToken(folder.path()), "<b>");
  EXPECT_EQ(DetectChatTemplate(folder.path()).bos_token, "<b>");

  JsonWriter list;
  list.BeginObject().Key("bos_token").String("<c>").Key("chat_template").BeginArray();
  list.BeginObject().Key("name").String("tool_use").Key("template").String("?").EndObject();
  list.BeginObject().Key("name").String("default").Key("template").String(kPlainChatml).EndObject();
  list.EndArray().EndObject();
  folder.Write("tokenizer_config.json", list.text());
  EXPECT_EQ(DetectChatTemplate(folder.path()).format, ChatFormat::kChatml);
  EXPECT_EQ(DetectChatTemplate(folder.path()).bos_token, "<c>");

  folder.Write("chat_template.jinja", kLlama3);  // Goes before the config's.
  EXPECT_EQ(DetectChatTemplate(folder.path()).format, ChatFormat::kLlama3);
  EXPECT_EQ(DetectChatTemplate(folder.path()).bos_token, "<c>");
}

TEST(DetectChatTemplate, WrongConfigsAreNamed) {
  const TempFolder folder;
  const auto refused = [&](const std::string& config, std::initializer_list<std::string> words) {
    folder.Write("tokenizer_config.json", config);
    ExpectError<InvalidInput>([&] { DetectChatTemplate(folder.path()); }, words);
  };
  refused(R"({"chat_template":3})", {"tokenizer_config.json", "chat_template", "3"});
  refused(R"({"chat_template":[{"name":"rag","template":"x"}]})", {"chat_template", "default"});
  refused(R"({"bos_token":7})", {"bos_token", "7"});
  folder.Write("tokenizer_config.json", R"({"chat_template":"who knows"})");
  ExpectError<Unsupported>([&] { DetectChatTemplate(folder.path()); },
                           {"tokenizer_config.json", "--chat-template"});
}

TEST(DetectChatTemplate, ShippedModel) {
  const ChatTemplate chat = DetectChatTemplate(kRoot + "/models/longcot-10m");
  EXPECT_EQ(chat.format, ChatFormat::kLongcot);
  EXPECT_EQ(chat.Render({{"user", "x"}}, true),
            "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n<think>\n");
}

}  // namespace
}  // namespace pmkvq
