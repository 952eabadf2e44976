#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <cstdint>
#include <cstring>
#include <set>
#include <string>
#include <vector>

#include "pmkvq/base/aligned.h"
#include "pmkvq/base/byte_size.h"
#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"
#include "pmkvq/base/interrupt.h"
#include "pmkvq/base/nearest_name.h"
#include "pmkvq/base/random.h"
#include "pmkvq/base/threads.h"
#include "pmkvq/base/wrap_text.h"
#include "support/expect_error.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;

TEST(WrapText, BreaksAtBlanks) {
  EXPECT_EQ(WrapWords("one two three", 7), "one two\nthree");
  EXPECT_EQ(WrapWords("one two three", 7, 2), "one two\n  three");
  EXPECT_EQ(WrapWords("one two three", 7, 0, 4), "one\ntwo\nthree");
  EXPECT_EQ(WrapWords("indivisible", 4), "indivisible");
  EXPECT_EQ(WrapWords("a\nb c", 10, 1), "a\n b c");
  EXPECT_EQ(WrapWords("", 10), "");
}

TEST(WrapText, AListBreaksBehindItsParts) {
  EXPECT_EQ(WrapList("one two, three four", 80, 2), "one two, three four");
  EXPECT_EQ(WrapList("one two, three four", 14, 2), "one two,\n  three four");
  EXPECT_EQ(WrapList("a b; c d, e f", 9), "a b; c d,\ne f");
  // A part that is longer than a line breaks at its blanks.
  EXPECT_EQ(WrapList("a, one two three, b", 9, 2), "a,\n  one two\n  three,\n  b");
  EXPECT_EQ(WrapList("1,000 tokens", 6), "1,000\ntokens");
  EXPECT_EQ(WrapList("", 6), "");
}

TEST(ByteSize, ParsesWhatPeopleWrite) {
  const std::vector<std::pair<const char*, int64_t>> cases = {
      {"0", 0},
      {"4096", 4096},
      {"17B", 17},
      {"512k", 512 * 1024},
      {"6MiB", 6 << 20},
      {"6 mib", 6 << 20},
      {"1.5GiB", 3ll << 29},
      {"2G", 2ll << 30},
      {"3kb", 3000},
      {"2MB", 2'000'000},
      {"0.5GB", 500'000'000},
      {"1e3", 1000},
      {"1e1 KiB", 10240},
      {"10 ", 10},
      {"6MiB ", 6 << 20},
      {"1TiB", 1ll << 40},
      {"0.5t", 1ll << 39},
      {"2 tb", 2'000'000'000'000},
      {"1024TiB", kMaxByteSize},
      {"010", 10},
  };
  for (const auto& [text, bytes] : cases) EXPECT_EQ(ParseByteSize(text, "size"), bytes) << text;
}

TEST(ByteSize, NamesTheOptionAndTheText) {
  for (const char* text :
       {"",    "x",      "-1",    "-1MiB",       "-0",      "6PiB",     "6MiBx", "inf",
        "nan", "1e999",  "0.5",   "1.5B",        "9e18k",   "MiB",      " 6",    "0x10",
        "1e",  "1,5MiB", "+6MiB", "9000000000G", "1025TiB", "1e-400MiB"}) {
    ExpectError<InvalidInput>([&] { ParseByteSize(text, "--kv-budget"); },
                              {"[--kv-budget]", std::string("'") + text + "'", "MiB"});
  }
}

TEST(ByteSize, BareNumbersCountWhatTheCallerSays) {
  for (const auto& [text, bytes] : std::vector<std::pair<const char*, int64_t>>{{"10", 10 << 20},
                                                                                {"1e1", 10 << 20},
                                                                                {"10.0", 10 << 20},
                                                                                {"10 ", 10 << 20},
                                                                                {"0.5", 1 << 19},
                                                                                {"10B", 10},
                                                                                {"10KiB", 10240}}) {
    EXPECT_EQ(ParseByteSize(text, "size", BareSize::kMib), bytes) << text;
  }
}

TEST(ByteSize, SaysThatASizeIsTooLarge) {
  for (const char* text : {"9000000000G", "1e999", "1025TiB", "99999999999999999999"}) {
    ExpectError<InvalidInput>([&] { ParseByteSize(text, "--kv-budget"); }, {"too large"});
  }
}

TEST(ByteSize, KnowsUnits) {
  for (const char* text : {"6B", "6MiB", "6 k", "1e3T"}) EXPECT_TRUE(HasByteUnit(text)) << text;
  for (const char* text : {"6", "1e1", "1E1", "6.5 "}) EXPECT_FALSE(HasByteUnit(text)) << text;
}

TEST(NearestName, FindsMisspellings) {
  const std::vector<std::string> names = {"--temperature", "--model", "--max-len", "--max-tokens",
                                          "--kv",          "pm-kvq",  "static-4",  "attention"};
  for (const auto& [found, expected] :
       std::vector<std::pair<const char*, const char*>>{{"--tempurature", "--temperature"},
                                                        {"--modle", "--model"},
                                                        {"--max_tokens", "--max-tokens"},
                                                        {"--MaxLen", "--max-len"},
                                                        {"PM-KVQ", "pm-kvq"},
                                                        {"pmkvq", "pm-kvq"},
                                                        {"static4", "static-4"},
                                                        {"attn", "attention"},
                                                        {"zzz", ""},
                                                        {"--gpu-memory-utilization", ""},
                                                        {"", ""},
                                                        {"--", ""}}) {
    EXPECT_EQ(NearestName(found, names), expected) << found;
  }
  EXPECT_EQ(NearestName(std::string(100000, 'x'), names), "");
  EXPECT_EQ(DidYouMean("pmkvq", names), ": did you mean pm-kvq?");
  EXPECT_EQ(DidYouMean("zzz", names), "");
}

TEST(ByteSize, Formats) {
  EXPECT_EQ(FormatByteSize(17), "17 B");
  EXPECT_EQ(FormatByteSize(832 * 1024), "832 KiB");
  EXPECT_EQ(FormatByteSize(5505024), "5.25 MiB");
  EXPECT_EQ(FormatByteSize(3ll << 29), "1.5 GiB");
}

TEST(Random, IsSplitMix64) {
  // Reference values of the published generator (Vigna) for seed 1234567.
  Random random(1234567);
  EXPECT_EQ(random.Next(), 6457827717110365317ull);
  EXPECT_EQ(random.Next(), 3203168211198807973ull);
  EXPECT_EQ(random.Next(), 9817491932198370423ull);
}

TEST(Random, UniformStaysBelowOne) {
  Random random(1);
  double sum = 0;
  constexpr int kDraws = 10000;
  for (int i = 0; i < kDraws; ++i) {
    const double value = random.Uniform();
    ASSERT_GE(value, 0);
    ASSERT_LT(value, 1);
    sum += value;
  }
  EXPECT_NEAR(sum / kDraws, 0.5, 0.015);  // 5 standard errors of 1 / sqrt(12 * 10,000).
}

TEST(Random, BelowStaysInRangeForEveryBound) {
  rc::check("0 <= Below(bound) < bound", [](uint64_t seed, uint64_t any) {
    const uint64_t bound = any == 0 ? 1 : any;
    Random random(seed);
    for (int i = 0; i < 8; ++i) RC_ASSERT(random.Below(bound) < bound);
  });
  Random random(3);
  for (const uint64_t bound : {uint64_t{1}, uint64_t{1} << 63, ~uint64_t{0}}) {
    for (int i = 0; i < 100; ++i) ASSERT_LT(random.Below(bound), bound);
  }
}

TEST(Random, BelowIsEven) {
  constexpr uint64_t kBound = 7;
  constexpr int kDraws = 70000;
  std::vector<int> counts(kBound);
  Random random(11);
  for (int i = 0; i < kDraws; ++i) ++counts[random.Below(kBound)];
  // Binomial with mean 10,000 and standard deviation 93: 5 of them.
  for (const int count : counts) EXPECT_NEAR(count, kDraws / static_cast<int>(kBound), 465);
}

TEST(Random, StreamSeedsDiffer) {
  std::set<uint64_t> seeds;
  for (uint64_t seed = 0; seed < 10; ++seed) {
    for (uint64_t index = 0; index < 100; ++index) seeds.insert(StreamSeed(seed, index));
  }
  EXPECT_EQ(seeds.size(), 1000u);
}

TEST(Aligned, VectorsStartAtACacheLine) {
  for (size_t size = 1; size < 200; size += 7) {
    const AlignedVector<char> values(size);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(values.data()) % kAlignment, 0u);
  }
}

TEST(Error, NamesWhere) { EXPECT_STREQ(IoError("a.txt", "gone").what(), "[a.txt] gone"); }

TEST(Interrupt, ThrowsOnlyWhenSet) {
  CancelFlag flag = false;
  ThrowIfCancelled(nullptr, "calibrate");
  ThrowIfCancelled(&flag, "calibrate");
  flag = true;
  ExpectError<Cancelled>([&] { ThrowIfCancelled(&flag, "calibrate"); }, {"[calibrate]"});
}

TEST(Threads, DefaultIsPositive) { EXPECT_GE(DefaultThreads(), 1); }

TEST(CheckDeathTest, AbortsWithLocationAndMessage) {
  const int two = 2;
  PMKVQ_CHECK(two == 2);
  EXPECT_DEATH(PMKVQ_CHECK_MSG(two == 3, "arithmetic"), "base_test.cc:.*two == 3 arithmetic");
}

}  // namespace
}  // namespace pmkvq
