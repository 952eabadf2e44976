// DecoQuant against golden data; windows and bytes by hand.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "pmkvq/base/error.h"
#include "support/expect_error.h"
#include "support/method_chunks.h"
#include "support/method_golden.h"
#include "support/method_rule.h"

namespace pmkvq {
namespace {

using testing_support::BytesAfter;
using testing_support::ExpectChunksDoNotMatter;
using testing_support::ExpectGolden;
using testing_support::ExpectRefused;
using testing_support::GoldenCache;
using testing_support::KeysAndValues;
using testing_support::MethodDriver;
using testing_support::MethodGolden;
using testing_support::StoredAfter;

// [T, C] as [heads, T, C / heads].
std::vector<float> AsHeads(const std::vector<float>& x, size_t width, size_t heads) {
  const size_t dim = width / heads;
  std::vector<float> out;
  for (size_t head = 0; head < heads; ++head) {
    for (size_t t = 0; t < x.size() / width; ++t) {
      const auto begin = x.begin() + static_cast<std::ptrdiff_t>(t * width + head * dim);
      out.insert(out.end(), begin, begin + static_cast<std::ptrdiff_t>(dim));
    }
  }
  return out;
}

TEST(DecoQuant, GoldenForAnyNumberOfHeads) {
  const MethodGolden golden("decoquant");  // x [T, C]
  const std::vector<float> x = golden.Floats("x");
  for (const int64_t heads : {1, 4}) {
    const std::vector<float> given = AsHeads(x, 128, static_cast<size_t>(heads));
    for (const std::string bits : {"8", "4", "2"}) {
      SCOPED_TRACE(bits);
      GoldenCache cache("decoquant:residual=48+bits=" + bits, {1, heads, heads, 128 / heads}, given,
                        given);
      for (const int64_t count : {1, 40, 7}) cache.Append(count);
      const std::vector<float> read =
          AsHeads(golden.Floats("b" + bits + ".read"), 128, static_cast<size_t>(heads));
      ExpectGolden(cache.Keys(), read);
      ExpectGolden(cache.Values(), read);
    }
  }
}

TEST(DecoQuant, ChunksAndTruncationsDoNotMatter) {
  ExpectChunksDoNotMatter("decoquant", 200);
  ExpectChunksDoNotMatter("decoquant:bits=2+residual=50+columns=32", 110);
}

TEST(DecoQuant, TokensThatFillNoBlockStayAndBlocksStandAlone) {
  MethodDriver driver("decoquant:residual=64");
  driver.Append(150);
  const KeysAndValues stored = driver.Stored();
  const auto given = driver.Given(150);
  const auto end = [](const std::vector<float>& x) { return x.begin() + 128 * 128; };
  EXPECT_TRUE(std::equal(end(stored.first), stored.first.end(), end(given.k)));
  EXPECT_TRUE(std::equal(end(stored.second), stored.second.end(), end(given.v)));
  for (size_t t = 0; t < 128; ++t) {
    EXPECT_NE(stored.first[t * 128 + 5], given.k[t * 128 + 5]) << t;
  }
  const KeysAndValues first = StoredAfter("decoquant:residual=64", {1, 4, 2, 64}, {64});
  EXPECT_TRUE(std::equal(first.first.begin(), first.first.end(), stored.first.begin()));
}

// A channel of each sixteen that is always 0 has no singular value: the others read as ever.
TEST(DecoQuant, ChannelsOfZerosStayZero) {
  const MethodGolden golden("decoquant");
  std::vector<float> x = golden.Floats("x");
  for (size_t i = 0; i < x.size(); i += 16) x[i] = 0;
  GoldenCache cache("decoquant:residual=48+bits=8", {1, 1, 1, 128}, x,
                    std::vector<float>(x.size()));
  cache.Append(48);
  const std::vector<float> keys = cache.Keys();
  for (size_t i = 0; i < x.size(); ++i) {
    ASSERT_NEAR(keys[i], x[i], i % 16 == 0 ? 1e-5f : 0.2f) << i;
  }
  EXPECT_EQ(cache.Values(), std::vector<float>(x.size()));
}

TEST(DecoQuant, BytesByHand) {
  // Full precision: 256 bytes of K and as many of V a token. Quantised at 4 bits, each: codes 64
  // and a scale of 2; a block has 16 * 16 values of 2 bytes besides.
  EXPECT_EQ(BytesAfter("decoquant", 127), 127 * 512);
  EXPECT_EQ(BytesAfter("decoquant", 300), 2 * (256 * 66 + 2 * 512 + 44 * 256));
  EXPECT_EQ(BytesAfter("decoquant:bits=2+columns=32+residual=50", 60),
            2 * (50 * 34 + 2048 + 10 * 256));
}

TEST(DecoQuant, NamesWhatIsWrong) {
  ExpectRefused("decoquant:columns=48", "columns=48, expected a divisor of the 128 channels");
  ExpectRefused("decoquant:bits=3", "bits=3, expected one of 8, 4, 2");
}

}  // namespace
}  // namespace pmkvq
