// run --prompt-cache: prompts and chats that go on in another run.
#include <gtest/gtest.h>

#include "pmkvq/io/file.h"
#include "pmkvq/io/json.h"
#include "support/run_program.h"
#include "support/temp_folder.h"

namespace pmkvq {
namespace {

using testing_support::ProgramResult;
using testing_support::RunProgram;
using testing_support::TempFolder;

const std::string kModel = PMKVQ_SOURCE_DIR "/models/longcot-10m";
const std::string kPrompt = PMKVQ_SOURCE_DIR "/models/longcot-10m/example.txt";

class PromptCacheTest : public testing::Test {
 protected:
  ProgramResult Run(std::vector<std::string> more, const std::string& input = "") const {
    std::vector<std::string> args = {"run",  "--model", kModel,        "--temperature", "0",
                                     "--kv", "pm-kvq",  "--kv-budget", "2MiB"};
    args.insert(args.end(), more.begin(), more.end());
    return RunProgram(args, input);
  }
  std::string TextOf(const std::string& file) const {
    return JsonValue::ParseFile(file).At("sequences").At(0).At("text").AsString();
  }

  TempFolder folder_;
  std::string cache_ = folder_.File("prompt.kv");
  std::string json_ = folder_.File("out.json");
};

TEST_F(PromptCacheTest, ThePromptIsComputedOnce) {
  const std::vector<std::string> args = {"--file",       kPrompt, "--prompt-cache", cache_,
                                         "--max-tokens", "200",   "--json",         json_};
  const ProgramResult first = Run(args);
  ASSERT_EQ(first.exit_code, 0) << first.err;
  EXPECT_EQ(first.err.find("are taken from"), std::string::npos) << first.err;
  const std::string text = TextOf(json_);

  const std::string saved = ReadFile(cache_);
  std::vector<std::string> read_only = args;
  read_only.push_back("--prompt-cache-ro");
  read_only[5] = "20";
  const ProgramResult second = Run(read_only);
  ASSERT_EQ(second.exit_code, 0) << second.err;
  EXPECT_NE(second.err.find("159 of 160 prompt tokens are taken from " + cache_), std::string::npos)
      << second.err;
  EXPECT_TRUE(text.starts_with(TextOf(json_)));
  EXPECT_EQ(ReadFile(cache_), saved);
}

TEST_F(PromptCacheTest, AChatGoesOn) {
  const std::vector<std::string> chat = {"--chat", "--max-tokens", "300", "--prompt-cache", cache_};
  ASSERT_EQ(Run(chat, ReadFile(kPrompt)).exit_code, 0);
  const ProgramResult second =
      Run(chat, "/show\n/save " + folder_.File("chat.json") + "\n/regen\n/show\n");
  EXPECT_EQ(second.exit_code, 0) << second.err;
  EXPECT_NE(second.err.find("2 messages from " + cache_), std::string::npos) << second.err;
  EXPECT_NE(second.err.find("cache: 459 tokens"), std::string::npos) << second.err;
  const JsonValue messages = JsonValue::ParseFile(folder_.File("chat.json")).At("messages");
  ASSERT_EQ(messages.size(), 2U);
  EXPECT_EQ(messages.At(1).At("role").AsString(), "assistant");
}

TEST_F(PromptCacheTest, WrongUseIsSaidInOneLine) {
  const auto expect = [&](const ProgramResult& result, int code, const std::string& part) {
    EXPECT_EQ(result.exit_code, code) << result.err;
    EXPECT_NE(result.err.find(part), std::string::npos) << result.err;
  };
  expect(Run({"-p", "hi", "--prompt-cache", cache_, "--n-samples", "2"}), 2, "--n-samples");
  expect(Run({"-p", "hi", "--prompt-cache-ro"}), 2, "--prompt-cache");
  expect(
      RunProgram({"run", "--model", kModel, "-p", "hi", "--kv", "kivi", "--prompt-cache", cache_}),
      1, "--prompt-cache");
  expect(Run({"-p", "hi", "--prompt-cache", folder_.File("none") + "/x.kv"}), 1, "x.kv");
  WriteFileAtomically(cache_, "something else");
  expect(Run({"-p", "hi", "--prompt-cache", cache_}), 1, cache_);
  ASSERT_EQ(
      Run({"-p", "hi", "--max-tokens", "3", "--prompt-cache", folder_.File("a.kv")}).exit_code, 0);
  const ProgramResult other =
      RunProgram({"run", "--model", kModel, "-p", "hi", "--prompt-cache", folder_.File("a.kv")});
  expect(other, 1, "with the settings that it was saved with");
}

}  // namespace
}  // namespace pmkvq
