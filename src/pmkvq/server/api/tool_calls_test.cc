#include "pmkvq/server/api/tool_calls.h"

#include <gtest/gtest.h>

#include <fstream>
#include <sstream>
#include <string>
#include <tuple>
#include <vector>

namespace pmkvq::server {
namespace {

struct Case {
  ToolFormat format;
  std::string text;
  std::string content;
  std::vector<std::pair<std::string, std::string>> calls;  // Name, arguments.
};

std::vector<Case> Cases() {
  return {
      {ToolFormat::kHermes, "Hello <tool", "Hello <tool", {}},
      {ToolFormat::kHermes, " \n x", " \n x", {}},
      {ToolFormat::kHermes, " \n", " \n", {}},
      {ToolFormat::kHermes,
       " \n<tool_call>{\"name\": \"f\", \"arguments\": {}}",
       "",
       {{"f", "{}"}}},
      {ToolFormat::kHermes,
       "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": [1, \"</x>\"]}}\n</tool_call>",
       "",
       {{"f", R"({"a":[1,"</x>"]})"}}},
      {ToolFormat::kHermes,
       "I look.\n<tool_call>{\"name\": \"f\", \"arguments\": "
       "{}}</tool_call>\n<tool_call>\n{\"name\": "
       "\"g\", \"arguments\": {\"x\": 1.50}}\n</tool_call>",
       "I look.\n",
       {{"f", "{}"}, {"g", R"({"x":1.50})"}}},
      {ToolFormat::kHermes, "<tool_call>{\"name\": \"f\", \"arguments\": {}}", "", {{"f", "{}"}}},
      {ToolFormat::kHermes,
       "a<tool_call>no JSON</tool_call>b",
       "a<tool_call>no JSON</tool_call>b",
       {}},
      {ToolFormat::kHermes,
       "<tool_call>{\"name\": 3}</tool_call>",
       "<tool_call>{\"name\": 3}</tool_call>",
       {}},
      {ToolFormat::kLlama3,
       "{\"name\": \"f\", \"parameters\": {\"a\": \"}\"}}",
       "",
       {{"f", R"({"a":"}"})"}}},
      {ToolFormat::kLlama3,
       "<|python_tag|>{\"name\": \"f\", \"parameters\": {}}; {\"name\": \"g\", \"parameters\": {}}",
       "",
       {{"f", "{}"}, {"g", "{}"}}},
      {ToolFormat::kLlama3, "It is {\"name\": \"f\"}", "It is {\"name\": \"f\"}", {}},
      {ToolFormat::kLlama3, "{\"city\": \"Bern\"}", "{\"city\": \"Bern\"}", {}},
      {ToolFormat::kLlama3, "", "", {}},
      {ToolFormat::kMistral,
       "[TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {\"a\": 1}}, {\"name\": \"g\", "
       "\"arguments\": {}}]",
       "",
       {{"f", R"({"a":1})"}, {"g", "{}"}}},
      {ToolFormat::kMistral,
       "ok[TOOL_CALLS]f{\"a\": 1}[TOOL_CALLS]g[ARGS]{}",
       "ok",
       {{"f", R"({"a": 1})"}, {"g", "{}"}}},
      {ToolFormat::kMistral, "[1, 2] [TOOL_CALLS] nothing", "[1, 2] [TOOL_CALLS] nothing", {}},
      {ToolFormat::kNone, "<tool_call>x", "<tool_call>x", {}},
  };
}

TEST(ToolCalls, TheSameHoweverTheTextIsCut) {
  for (const Case& one : Cases()) {
    for (size_t first = 0; first <= one.text.size(); ++first) {
      for (const size_t step : {size_t{1}, size_t{7}, one.text.size() + 1}) {
        ToolCallParser parser(one.format);
        std::string content;
        std::vector<ToolCall> calls;
        const auto take = [&](ToolCallParser::Output out) {
          content += out.text;
          for (ToolCall& call : out.calls) calls.push_back(std::move(call));
        };
        take(parser.Push(one.text.substr(0, first)));
        for (size_t i = first; i < one.text.size(); i += step)
          take(parser.Push(one.text.substr(i, step)));
        take(parser.Finish());
        ASSERT_EQ(content, one.content) << one.text << " cut at " << first;
        ASSERT_EQ(calls.size(), one.calls.size()) << one.text;
        for (size_t i = 0; i < calls.size(); ++i) {
          EXPECT_EQ(calls[i].name, one.calls[i].first);
          EXPECT_EQ(calls[i].arguments, one.calls[i].second);
        }
      }
    }
  }
}

TEST(ToolCalls, FormatsOfTemplates) {
  const auto format_of = [](const std::string& path) {
    std::ifstream file(std::string(PMKVQ_SOURCE_DIR) + "/tests/golden/" + path);
    std::stringstream text;
    text << file.rdbuf();
    EXPECT_FALSE(text.str().empty()) << path;
    ChatTemplate chat_template = ChatTemplate::FromJinja(text.str(), path);
    chat_template.SetSpecialToken("bos_token", "<s>");
    chat_template.SetSpecialToken("eos_token", "</s>");
    return ToolFormatOf(chat_template);
  };
  for (const char* path :
       {"chat_templates/Qwen-Qwen2.5-7B-Instruct.jinja", "chat_templates/Qwen-Qwen3-0.6B.jinja",
        "chat_templates/Qwen-QwQ-32B.jinja"}) {
    EXPECT_EQ(format_of(path), ToolFormat::kHermes) << path;
  }
  EXPECT_EQ(format_of("chat_templates/meta-llama-Llama-3.1-8B-Instruct.jinja"),
            ToolFormat::kLlama3);
  EXPECT_EQ(format_of("jinja/meta-llama-Llama-3.2-3B-Instruct.jinja"), ToolFormat::kLlama3);
  EXPECT_EQ(format_of("jinja/mistralai-Mistral-Nemo-Instruct-2407.jinja"), ToolFormat::kMistral);
  EXPECT_EQ(format_of("jinja/google-gemma-2-2b-it.jinja"), ToolFormat::kNone);
  EXPECT_EQ(ToolFormatOf(ChatTemplate::BuiltIn("longcot")), ToolFormat::kNone);
  EXPECT_EQ(ToolFormatOf(ChatTemplate()), ToolFormat::kNone);
}

}  // namespace
}  // namespace pmkvq::server
