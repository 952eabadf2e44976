#include "pmkvq/server/api/reasoning.h"

#include <gtest/gtest.h>

#include <vector>

namespace pmkvq::server {
namespace {

struct Case {
  std::string text;
  bool in_reasoning;
  std::string reasoning;
  std::string content;
};

const std::vector<Case> kCases = {
    {"plain", false, "", "plain"},
    {"", true, "", ""},
    {"thought</think>answer", true, "thought", "answer"},
    {"\nthought\n</think>\n\nanswer\n", true, "thought\n", "answer\n"},
    {"<think>\nthought</think>answer", false, "thought", "answer"},
    {"\n <think>a</think>b", false, "a", "b"},
    {"no end", true, "no end", ""},
    {"almost </thin", true, "almost </thin", ""},
    {"<thin", false, "", "<thin"},
    {"x <think>y</think>", false, "", "x <think>y</think>"},
    {"a</think>b</think>c", true, "a", "b</think>c"},
    {"</think>b", true, "", "b"},
    {"a < b </ c</think> \nd", true, "a < b </ c", " \nd"},
};

TEST(ReasoningSplitter, GivesTheSameForEveryCut) {
  for (const Case& c : kCases) {
    for (size_t first = 0; first <= c.text.size(); ++first) {
      for (size_t second = first; second <= c.text.size(); ++second) {
        ReasoningSplitter splitter(true, c.in_reasoning);
        AnswerText all;
        const auto add = [&](const AnswerText& text) {
          all.reasoning += text.reasoning;
          all.content += text.content;
        };
        add(splitter.Push(std::string_view(c.text).substr(0, first)));
        add(splitter.Push(std::string_view(c.text).substr(first, second - first)));
        add(splitter.Push(std::string_view(c.text).substr(second)));
        add(splitter.Finish());
        EXPECT_EQ(all.reasoning, c.reasoning) << c.text << " " << first << " " << second;
        EXPECT_EQ(all.content, c.content) << c.text << " " << first << " " << second;
      }
    }
  }
}

TEST(ReasoningSplitter, HoldsBackTheBeginningOfATagOnly) {
  ReasoningSplitter splitter(true, true);
  EXPECT_EQ(splitter.Push("a < b").reasoning, "a < b");
  EXPECT_EQ(splitter.Push(" </th").reasoning, " ");
  EXPECT_EQ(splitter.Push("e").reasoning, "</the");
}

TEST(ReasoningSplitter, DisabledLeavesTextAlone) {
  ReasoningSplitter splitter(false, true);
  EXPECT_EQ(splitter.Push("a</think>b").content, "a</think>b");
  EXPECT_FALSE(splitter.in_reasoning());
}

}  // namespace
}  // namespace pmkvq::server
