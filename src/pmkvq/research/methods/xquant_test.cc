// XQuant against golden data; sharing, bytes and refusals.
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

constexpr char kGoldenForm[] = "+group=32+residual=32+eta1=0.16666666666666666+eta2=0.045";

TEST(XQuant, Golden) {
  const MethodGolden golden("xquant");  // [L, Hkv, T, D]
  const UniformKvGeometry geometry{4, 2, 2, 32};
  const std::pair<std::string, std::string> cases[] = {{"a", "xquant:kq=2+vq=0+km=0+vm=2"},
                                                       {"b", "xquant:kq=4+vq=4+km=2+vm=0"}};
  for (const auto& [name, spec] : cases) {
    for (const std::vector<int64_t>& chunks : {std::vector<int64_t>{150}, {1, 100, 1, 1, 47}}) {
      SCOPED_TRACE(name);
      GoldenCache cache(spec + kGoldenForm, geometry, golden.Floats("k"), golden.Floats("v"));
      for (const int64_t chunk : chunks) cache.Append(chunk);
      ExpectGolden(cache.Keys(), golden.Floats(name + ".k_read"));
      ExpectGolden(cache.Values(), golden.Floats(name + ".v_read"));
    }
  }
}

// Keys of 4 bits keep their levels, so they are KIVI's; values do not change.
TEST(XQuant, KeysOfFourBits) {
  const MethodGolden golden("xquant");
  const UniformKvGeometry geometry{4, 2, 2, 32};
  const auto read = [&](const std::string& spec) {
    GoldenCache cache(spec + "+group=32+residual=32", geometry, golden.Floats("k"),
                      golden.Floats("v"));
    cache.Append(150);
    return KeysAndValues{cache.Keys(), cache.Values()};
  };
  const KeysAndValues wide = read("xquant:k=4+km=4+vm=4+vq=0");
  EXPECT_EQ(wide.first, read("kivi:bits=4").first);
  EXPECT_EQ(wide.second, read("xquant:km=4+vm=4+vq=0").second);
}

// A block that shares reads the code of the block below for each value, with its own range: of two
// blocks alike it reads what it would read alone, of others it does not.
TEST(XQuant, SharedCodesAreThoseOfTheBlockBelow) {
  const MethodGolden golden("xquant");
  std::vector<float> k = golden.Floats("k");
  std::vector<float> v = golden.Floats("v");
  const size_t block = k.size() / 4;
  k.resize(2 * block);
  v.resize(2 * block);
  const auto read = [&](const std::string& spec) {
    GoldenCache cache(spec + kGoldenForm, {2, 2, 2, 32}, k, v);
    cache.Append(150);
    return KeysAndValues{cache.Keys(), cache.Values()};
  };
  const std::string shared = "xquant:km=0+vm=0";
  const std::string apart = "xquant:km=2+vm=2";
  EXPECT_NE(read(shared), read(apart));
  // Block 1 becomes 3 + 2 times block 0: the same codes, another range.
  for (size_t i = 0; i < block; ++i) {
    k[block + i] = 3 + 2 * k[i];
    v[block + i] = 3 + 2 * v[i];
  }
  const KeysAndValues once = read(shared);
  const KeysAndValues twice = read(apart);
  ExpectGolden(once.first, twice.first);
  ExpectGolden(once.second, twice.second);
}

TEST(XQuant, ChunksAndTruncationsDoNotMatter) {
  ExpectChunksDoNotMatter("xquant:vq=0+vm=2+residual=32", 0, {2, 4, 2, 64});
  const UniformKvGeometry geometry{3, 4, 2, 64};  // The last block has no partner.
  EXPECT_EQ(StoredAfter("xquant:km=0+vm=0", geometry, {300}),
            StoredAfter("xquant:km=0+vm=0", geometry, {129, 1, 1, 100, 69}));
}

// What left the window before a cut is coded once more afterwards, with codes that both blocks
// share again.
TEST(XQuant, GoesOnAfterATruncation) {
  const std::string spec = "xquant:km=0+vm=0+residual=32";
  MethodDriver driver(spec, {2, 4, 2, 64});
  driver.Append(150);
  driver.store().Truncate(driver.seq(), 70);
  driver.Append(100);
  const KeysAndValues after = driver.Stored();
  const KeysAndValues whole = StoredAfter(spec, {2, 4, 2, 64}, {170});
  // Keys of tokens 0 .. 63 left the window for good, and values of 0 .. 37.
  EXPECT_TRUE(std::equal(after.first.begin(), after.first.begin() + 64 * 128, whole.first.begin()));
  EXPECT_TRUE(
      std::equal(after.second.begin(), after.second.begin() + 38 * 128, whole.second.begin()));
  // Tokens behind the cut are what they are without one.
  EXPECT_TRUE(std::equal(after.first.begin() + 96 * 128, after.first.end(),
                         whole.first.begin() + 96 * 128));
  EXPECT_TRUE(std::equal(after.second.begin() + 70 * 128, after.second.end(),
                         whole.second.begin() + 70 * 128));
}

TEST(XQuant, BytesByHand) {
  const auto bytes = [](const std::string& spec, int64_t layer) {
    MethodDriver driver(spec, {4, 4, 2, 64});
    driver.Append(300);
    return driver.store().LayerStats(driver.seq(), layer).bytes;
  };
  // A token at full precision: 256 bytes of K and as many of V. 128 values at 2 bits, G = 32: 32
  // bytes of codes and four pairs of 4 bytes. Keys: 256 quantised, values: 172.
  const int64_t plain = (256 * 48 + 44 * 256) + (172 * 48 + 128 * 256);
  EXPECT_EQ(bytes("xquant", 0), plain);
  EXPECT_EQ(bytes("xquant", 2), plain) << "stores the codes of block 3";
  EXPECT_EQ(bytes("xquant", 3), (256 * 16 + 44 * 256) + (172 * 16 + 128 * 256));
  EXPECT_EQ(bytes("xquant:km=4+vq=0+vm=0", 1), (256 * 48 + 44 * 256) + (172 * 16 + 128 * 256));
  EXPECT_EQ(bytes("xquant:vq=0+vm=4+km=4+group=64", 1),
            (256 * 40 + 44 * 256) + (172 * 24 + 128 * 256));
}

TEST(XQuant, NamesWhatIsWrong) {
  ExpectRefused("xquant:kq=3", "kq=3, expected an even number: blocks 2i and 2i + 1");
  ExpectRefused("xquant:eta1=0.5", "eta1=0.5, expected");
  ExpectRefused("xquant:residual=80", "residual=80, expected a multiple of the group 32");
}

}  // namespace
}  // namespace pmkvq
