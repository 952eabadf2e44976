// The chat loop at a terminal: editing, pastes, commands, and what Ctrl-C ends.
#include <gtest/gtest.h>

#include <chrono>
#include <sstream>

#include "pmkvq/io/json.h"
#include "support/run_program.h"
#include "support/temp_folder.h"
#include "support/terminal_program.h"

namespace pmkvq {
namespace {

using testing_support::ProgramResult;
using testing_support::RunProgram;
using testing_support::TempFolder;
using testing_support::TerminalProgram;

const std::string kModel = PMKVQ_SOURCE_DIR "/models/longcot-10m";
// Answers are drawn greedily.
const std::vector<std::string> kChat = {"run", "--model", kModel,   "--chat",      "--temperature",
                                        "0",   "--kv",    "pm-kvq", "--kv-budget", "6MiB"};
constexpr const char* kCtrlC = "\x03";
constexpr const char* kCtrlD = "\x04";
constexpr const char* kSort = "Sort these numbers: 523, 118, 907, 342.";

class ChatTest : public testing::Test {
 protected:
  TerminalProgram::Terminal Terminal(std::vector<std::pair<std::string, std::string>> more = {}) {
    TerminalProgram::Terminal terminal;
    terminal.environment.emplace_back("PMKVQ_HISTORY", folder_.File("history"));
    for (auto& entry : more) terminal.environment.push_back(std::move(entry));
    return terminal;
  }
  static std::vector<std::string> With(std::vector<std::string> more) {
    std::vector<std::string> args = kChat;
    args.insert(args.end(), more.begin(), more.end());
    return args;
  }
  std::vector<std::pair<std::string, std::string>> Saved(TerminalProgram& chat) {
    chat.Type("/save " + folder_.File("saved.json") + "\r");
    EXPECT_TRUE(chat.WaitFor("messages are in")) << chat.screen();
    std::vector<std::pair<std::string, std::string>> messages;
    const JsonValue list = JsonValue::ParseFile(folder_.File("saved.json")).At("messages");
    for (size_t i = 0; i < list.size(); ++i) {
      messages.emplace_back(list.At(i).At("role").AsString(), list.At(i).At("content").AsString());
    }
    return messages;
  }

  TempFolder folder_;
};

// Answers of thousands of tokens, that somebody ends.
const std::vector<std::string> kEndless = {"--ignore-eos"};

TEST_F(ChatTest, CtrlCEndsTheAnswerAndNotTheChat) {
  TerminalProgram chat(With(kEndless), Terminal());
  ASSERT_TRUE(chat.WaitFor("> "));
  chat.Type(std::string(kSort) + "\r");
  ASSERT_TRUE(chat.WaitFor("tok/s")) << chat.screen();  // The status line: decoding has begun.
  chat.Type(kCtrlC);
  ASSERT_TRUE(chat.WaitFor("[cancelled]")) << chat.screen();
  ASSERT_TRUE(chat.WaitFor(" of ")) << chat.screen();
  ASSERT_TRUE(chat.WaitFor("] > ")) << "the prompt shows bytes of the budget: " << chat.screen();
  const auto messages = Saved(chat);
  ASSERT_EQ(messages.size(), 2u);
  EXPECT_EQ(messages[0].second, kSort);
  chat.Type("/regen\r");
  ASSERT_TRUE(chat.WaitFor("tok/s")) << chat.screen();
  chat.Type(kCtrlC);
  ASSERT_TRUE(chat.WaitFor("] > ")) << chat.screen();
  chat.Type("text that is dropped");
  ASSERT_TRUE(chat.WaitFor("dropped"));
  chat.Type(kCtrlC);
  ASSERT_TRUE(chat.WaitFor("] > ")) << "Ctrl-C with text on the line drops the text";
  chat.Type(kCtrlC);
  EXPECT_EQ(chat.Wait(), 0) << chat.screen();
}

// A Ctrl-C that comes just after the answer has ended by itself was meant for the answer.
TEST_F(ChatTest, ALateCtrlCDoesNotEndTheChat) {
  using Clock = std::chrono::steady_clock;
  // Just after: within a second. Where the machine took longer, all is done once more.
  for (int attempt = 0; attempt < 20; ++attempt) {
    TerminalProgram chat(With({"--max-tokens", "2"}), Terminal());
    ASSERT_TRUE(chat.WaitFor("> "));
    const auto asked = Clock::now();
    chat.Type("hello\r");
    ASSERT_TRUE(chat.WaitFor("[length]")) << chat.screen();
    ASSERT_TRUE(chat.WaitFor("] > ")) << chat.screen();
    chat.Type(kCtrlC);
    const bool is_said = chat.WaitFor("the answer had ended");
    if (!is_said && Clock::now() - asked > std::chrono::seconds(1)) continue;
    ASSERT_TRUE(is_said) << chat.screen();
    ASSERT_TRUE(chat.WaitFor("] > ")) << chat.screen();
    chat.Type(kCtrlC);
    EXPECT_EQ(chat.Wait(), 0) << chat.screen();
    return;
  }
  FAIL() << "no Ctrl-C came within a second";
}

// A terminal without line editing: Ctrl-C still ends the answer only, and nothing is said of
// pastes.
TEST_F(ChatTest, CtrlCEndsTheAnswerWhereTheTerminalCannotEdit) {
  TerminalProgram chat(With(kEndless), Terminal({{"TERM", "dumb"}}));
  ASSERT_TRUE(chat.WaitFor("> "));
  chat.Type("/help\n");
  ASSERT_TRUE(chat.WaitFor("Several lines: end a line")) << chat.screen();
  EXPECT_EQ(chat.screen().find("PMKVQ_HISTORY"), std::string::npos);
  chat.Type(std::string(kSort) + "\n");
  ASSERT_TRUE(chat.WaitFor("</think>")) << chat.screen();
  chat.Type(kCtrlC);
  ASSERT_TRUE(chat.WaitFor("[cancelled]")) << chat.screen();
  EXPECT_EQ(Saved(chat).size(), 2u);
  ASSERT_TRUE(chat.WaitFor("> "));
  chat.Type(kCtrlC);
  EXPECT_EQ(chat.Wait(), 0) << chat.screen();
}

// At 60 columns no line of the program is cut inside a word.
TEST_F(ChatTest, LongLinesBreakAtBlanks) {
  TerminalProgram::Terminal narrow = Terminal();
  narrow.columns = 60;
  TerminalProgram chat(kChat, narrow);
  ASSERT_TRUE(chat.WaitFor("ends the chat"));
  ASSERT_TRUE(chat.WaitFor("> "));
  chat.Type("/help\r");
  ASSERT_TRUE(chat.WaitFor("PMKVQ_HISTORY")) << chat.screen();
  ASSERT_TRUE(chat.WaitFor("> "));
  chat.Type("/nothing-like-it\r");
  ASSERT_TRUE(chat.WaitFor("blank before it")) << chat.screen();
  std::istringstream lines(chat.screen());
  for (std::string line; std::getline(lines, line);) {
    if (line.find('\x1b') != std::string::npos) continue;  // The prompt and what is typed.
    EXPECT_LE(line.size(), 61u) << line;                   // With the carriage return.
  }
  chat.Type("/quit\r");
  EXPECT_EQ(chat.Wait(), 0);
}

// Keys typed as soon as the prompt is seen must reach the editor. A terminal that still edits the
// line itself would lose them at Ctrl-C.
TEST_F(ChatTest, KeysAreTakenFromTheMomentThePromptShows) {
  TerminalProgram chat(kChat, Terminal());
  for (int i = 0; i < 40; ++i) {
    ASSERT_TRUE(chat.WaitFor("> "));
    ASSERT_TRUE(chat.KeysComeAtOnce()) << "prompt " << i;
    chat.Type("dropped");
    ASSERT_TRUE(chat.WaitFor("dropped"));
    chat.Type(kCtrlC);
  }
  ASSERT_TRUE(chat.WaitFor("> "));
  chat.Type(kCtrlC);
  EXPECT_EQ(chat.Wait(), 0) << chat.screen();
}

TEST_F(ChatTest, PastesAreOneMessage) {
  TerminalProgram chat(With({"--max-tokens", "4"}), Terminal());
  ASSERT_TRUE(chat.WaitFor("> "));
  // Terminals send line breaks of a paste as CR; an escape sequence in it must not act.
  chat.Type("\x1b[200~first line\rsecond \x1b[31mline\r\r\tfourth\x1b[201~ and more\r");
  ASSERT_TRUE(chat.WaitFor("[length]")) << chat.screen();
  chat.Type("\"\"\"one\r");
  ASSERT_TRUE(chat.WaitFor(". "));
  chat.Type("two\"\"\"\r");
  ASSERT_TRUE(chat.WaitFor("[length]")) << chat.screen();
  chat.Type("three\\\r");
  ASSERT_TRUE(chat.WaitFor(". "));
  chat.Type("four\r");
  ASSERT_TRUE(chat.WaitFor("[length]")) << chat.screen();
  const auto messages = Saved(chat);
  ASSERT_EQ(messages.size(), 6u);
  EXPECT_EQ(messages[0].second, "first line\nsecond [31mline\n\n\tfourth and more");
  EXPECT_EQ(messages[2].second, "one\ntwo");
  EXPECT_EQ(messages[4].second, "three\nfour");
  ASSERT_TRUE(chat.WaitFor("] > "));
  chat.Type(kCtrlD);
  EXPECT_EQ(chat.Wait(), 0) << chat.screen();
}

TEST_F(ChatTest, EditingAndHistoryAlsoOfTheRunBefore) {
  {
    TerminalProgram chat(With({"--max-tokens", "2"}), Terminal());
    ASSERT_TRUE(chat.WaitFor("> "));
    chat.Type("ab\x1b[Dé\r");  // Left arrow: é goes between a and b.
    ASSERT_TRUE(chat.WaitFor("[length]")) << chat.screen();
    EXPECT_EQ(Saved(chat)[0].second, "aéb");
    chat.Type("/quit\r");
    EXPECT_EQ(chat.Wait(), 0);
  }
  TerminalProgram chat(With({"--max-tokens", "2"}), Terminal());
  ASSERT_TRUE(chat.WaitFor("> "));
  chat.Type("\x1b[A\x1b[A\x1b[A!\r");  // Before /quit and /save.
  ASSERT_TRUE(chat.WaitFor("[length]")) << chat.screen();
  EXPECT_EQ(Saved(chat)[0].second, "aéb!");
  chat.Type("/quit\r");
  EXPECT_EQ(chat.Wait(), 0);
}

TEST_F(ChatTest, Commands) {
  TerminalProgram chat(With({"--max-tokens", "3"}), Terminal());
  ASSERT_TRUE(chat.WaitFor("> "));
  chat.Type("/help\r");
  EXPECT_TRUE(chat.WaitFor("/regen")) << chat.screen();
  EXPECT_TRUE(chat.WaitFor("paste them")) << chat.screen();
  EXPECT_TRUE(chat.WaitFor("PMKVQ_HISTORY")) << "the file that keeps messages is named";
  chat.Type("/quit now\r");
  EXPECT_TRUE(chat.WaitFor("/quit takes no argument, found \"now\"")) << chat.screen();
  chat.Type("/sav x\r");
  EXPECT_TRUE(chat.WaitFor("unknown command /sav: did you mean /save? There are /help"))
      << chat.screen();
  chat.Type("/set temperature warm\r");
  EXPECT_TRUE(chat.WaitFor("found \"warm\", expected a number from 0 to 100")) << chat.screen();
  chat.Type("/set top_k 40\r");
  EXPECT_TRUE(chat.WaitFor("top-k 40")) << chat.screen();
  chat.Type("/regen\r");
  EXPECT_TRUE(chat.WaitFor("there is no answer yet")) << chat.screen();
  chat.Type("/system Be brief.\r");
  EXPECT_TRUE(chat.WaitFor("the system message is set")) << chat.screen();
  chat.Type("hello\r");
  ASSERT_TRUE(chat.WaitFor("[length]")) << chat.screen();
  auto messages = Saved(chat);
  ASSERT_EQ(messages.size(), 3u);
  EXPECT_EQ(messages[0], std::make_pair(std::string("system"), std::string("Be brief.")));
  chat.Type("/clear\r");
  EXPECT_TRUE(chat.WaitFor("the conversation is empty")) << chat.screen();
  chat.Type("/load " + folder_.File("saved.json") + "\r");
  EXPECT_TRUE(chat.WaitFor("3 messages from")) << chat.screen();
  EXPECT_EQ(Saved(chat), messages);
  chat.Type("/show\r");
  EXPECT_TRUE(chat.WaitFor("system: Be brief.")) << chat.screen();
  chat.Type("/load " + folder_.File("nothing.json") + "\r");
  EXPECT_TRUE(chat.WaitFor("nothing.json")) << chat.screen();
  chat.Type("/exit\r");
  EXPECT_EQ(chat.Wait(), 0);
}

TEST_F(ChatTest, ThinkingIsDimmedWhereTheTerminalTakesColours) {
  const auto answer = [&](std::vector<std::pair<std::string, std::string>> environment) {
    TerminalProgram chat(With({"--max-tokens", "8"}), Terminal(std::move(environment)));
    EXPECT_TRUE(chat.WaitFor("> "));
    chat.Type(std::string(kSort) + "\r");
    EXPECT_TRUE(chat.WaitFor("[length]")) << chat.screen();
    chat.Type("/quit\r");
    EXPECT_EQ(chat.Wait(), 0);
    return chat.screen();
  };
  EXPECT_NE(answer({}).find("\x1b[2m"), std::string::npos);
  EXPECT_EQ(answer({{"NO_COLOR", "1"}}).find("\x1b[2m"), std::string::npos);
  const std::string dumb = answer({{"TERM", "dumb"}});
  EXPECT_EQ(dumb.find('\x1b'), std::string::npos) << dumb;
}

TEST_F(ChatTest, SigtermEndsTheProgram) {
  const ProgramResult result = RunProgram(With({"--ignore-eos"}), std::string(kSort) + "\n",
                                          {.after_cpu_ms = 1500, .signal = SIGTERM});
  EXPECT_EQ(result.exit_code, 130) << result.err;
}

TEST_F(ChatTest, PipedMessages) {
  const ProgramResult result =
      RunProgram(With({"--max-tokens", "2"}), "one\r\n/clear\n\"\"\"two\nlines\"\"\"\n/what\n");
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(result.out.find('\x1b'), std::string::npos);
  EXPECT_NE(result.err.find("unknown command /what"), std::string::npos) << result.err;
}

}  // namespace
}  // namespace pmkvq
