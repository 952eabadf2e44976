// How long a large tokenizer takes to load, and a long prompt to become ids: bounds for every
// machine, ten times above what was measured (docs/performance.md). CPU time, so that waiting for a
// processor does not count; sharing a core and its caches with other work still doubles it.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <string>

#include "pmkvq/io/file.h"
#include "pmkvq/text/chat_template.h"
#include "pmkvq/text/tokenizer.h"
#include "support/cpu_time.h"
#include "support/sentencepiece_golden.h"

namespace pmkvq {
namespace {

const std::string kFolder = std::string(PMKVQ_SOURCE_DIR) + "/tests/golden/tokenizers";

// The shortest of some rounds, in milliseconds.
template <class Action>
double Measure(Action action) {
  double shortest = 1e9;
  for (int round = 0; round < 5; ++round) {
    const double begin = testing_support::CpuSeconds();
    action();
    shortest = std::min(shortest, 1e3 * (testing_support::CpuSeconds() - begin));
  }
  return shortest;
}

bool IsSlowBuild() {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(NDEBUG)
  return true;
#else
  return false;
#endif
}

// 100 KiB of prose with numbers and code, as prompts have it.
std::string LongText() {
  const std::string text = ReadFile(std::string(PMKVQ_SOURCE_DIR) + "/docs/architecture.md") +
                           ReadFile(std::string(PMKVQ_SOURCE_DIR) + "/docs/methods.md");
  std::string result;
  while (result.size() < 100 << 10) result += text;
  size_t end = 100 << 10;
  while ((static_cast<unsigned char>(result[end]) & 0xC0) == 0x80) --end;
  return result.substr(0, end);
}

TEST(TokenizerSpeed, ALargeTokenizerLoadsInASecond) {
  if (IsSlowBuild()) GTEST_SKIP() << "not an optimised build";
  const double milliseconds = Measure([] { Tokenizer::Load(kFolder); });  // 151,665 tokens.
  std::printf("load: %.0f ms\n", milliseconds);
  EXPECT_LT(milliseconds, 1000);
}

TEST(TokenizerSpeed, ALongPromptTakesLessThanAFifthOfASecond) {
  if (IsSlowBuild()) GTEST_SKIP() << "not an optimised build";
  const std::string text = LongText();
  const ChatTemplate chat_template = LoadChatTemplate(kFolder);
  ASSERT_FALSE(chat_template.IsNone());
  for (const std::string& path : {kFolder, testing_support::MistralPath("tokenizer.json"),
                                  testing_support::MistralPath("tokenizer.model")}) {
    const auto tokenizer = Tokenizer::Load(path);
    size_t num_tokens = 0;
    const double milliseconds = Measure([&] {
      num_tokens = tokenizer->Encode(chat_template.Render({{"user", text}}, true)).size();
    });
    std::printf("100 KiB, %zu tokens: %.1f ms by %s\n", num_tokens, milliseconds, path.c_str());
    EXPECT_LT(milliseconds, 200) << path;
    EXPECT_GT(num_tokens, 20'000u);
  }
}

}  // namespace
}  // namespace pmkvq
