// RotateKV against a scalar reading in double precision, with the Hadamard matrix written out.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <set>

#include "pmkvq/base/error.h"
#include "support/expect_error.h"
#include "support/method_driver.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;
using testing_support::KeysAndValues;
using testing_support::MethodDriver;
using testing_support::Rows;

// Twice four heads of 16: groups of 16 values, transforms of 64 channels for keys.
constexpr KvGeometry kGeometry{1, 8, 8, 16};
constexpr size_t kDim = 16;
constexpr size_t kKvDim = 128;

using Vector = std::vector<double>;

// The scale is rounded to f16; where it lies between two of them, float and double may part ways.
// Below 0.5 they are 2^-12 apart, times a code of 15 at most. A wrong code is off by the scale.
constexpr float kTolerance = 15 * 0x1p-12f;

// H x over runs of `width` entries: H[i][j] = (-1)^popcount(i & j) / sqrt(width).
Vector Transformed(const Vector& x, size_t width) {
  Vector y(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const size_t begin = i / width * width;
    for (size_t j = 0; j < width; ++j) {
      const int sign = std::popcount((i - begin) & j) % 2 == 0 ? 1 : -1;
      y[i] += sign * x[begin + j] / std::sqrt(static_cast<double>(width));
    }
  }
  return y;
}

void QuantizeGroups(Vector& x, int bits, double clip) {
  for (size_t begin = 0; begin < x.size(); begin += kDim) {
    const auto first = x.begin() + static_cast<std::ptrdiff_t>(begin);
    const auto [low, high] = std::minmax_element(first, first + kDim);
    const double clipped_low = clip * *low;
    const double scale = double{
        ToFloat(ToF16(static_cast<float>((clip * *high - clipped_low) / ((1 << bits) - 1))))};
    const double zero = std::nearbyint(-clipped_low / scale);
    for (auto value = first; value != first + kDim; ++value) {
      const double code =
          std::clamp(std::nearbyint(*value / scale) + zero, 0.0, double((1 << bits) - 1));
      *value = (code - zero) * scale;
    }
  }
}

Vector RowOf(const std::vector<float>& rows, size_t token) {
  const auto begin = rows.begin() + static_cast<std::ptrdiff_t>(token * kKvDim);
  return {begin, begin + kKvDim};
}

struct Rule {
  int bits;
  double clip;
  size_t pivots;
};

// Order and pivots come from the first `seen` tokens.
KeysAndValues Expected(const Rows& given, size_t n, size_t seen, const Rule& rule) {
  std::vector<std::pair<float, size_t>> entries;
  Vector sums(kKvDim);
  for (size_t t = 0; t < seen; ++t) {
    const Vector rotated = Transformed(RowOf(given.k, t), 4 * kDim);
    for (size_t i = 0; i < kKvDim; ++i) {
      sums[i] += rotated[i];
      entries.emplace_back(std::abs(given.q[t * kKvDim + i]), t);
    }
  }
  std::sort(entries.rbegin(), entries.rend());
  std::set<size_t> pivots;
  for (size_t i = 0; i < rule.pivots; ++i) pivots.insert(entries[i].second);
  std::vector<size_t> order(kKvDim);
  for (size_t i = 0; i < kKvDim; ++i) order[i] = i;
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return sums[a] < sums[b]; });

  KeysAndValues expected{given.k, given.v};
  for (size_t t = 0; t < n; ++t) {
    if (pivots.contains(t)) continue;
    const Vector rotated = Transformed(RowOf(given.k, t), 4 * kDim);
    Vector ordered(kKvDim);
    for (size_t i = 0; i < kKvDim; ++i) ordered[i] = rotated[order[i]];
    QuantizeGroups(ordered, rule.bits, rule.clip);
    Vector back(kKvDim);
    for (size_t i = 0; i < kKvDim; ++i) back[order[i]] = ordered[i];
    back = Transformed(back, 4 * kDim);
    Vector value = Transformed(RowOf(given.v, t), kDim);
    QuantizeGroups(value, rule.bits, rule.clip);
    value = Transformed(value, kDim);
    for (size_t i = 0; i < kKvDim; ++i) {
      expected.first[t * kKvDim + i] = static_cast<float>(back[i]);
      expected.second[t * kKvDim + i] = static_cast<float>(value[i]);
    }
  }
  return expected;
}

struct Case {
  const char* spec;
  Rule rule;
};

class RotateKvTest : public testing::TestWithParam<Case> {};

TEST_P(RotateKvTest, RotatesOrdersClipsAndSparesPivots) {
  const auto& [spec, rule] = GetParam();
  MethodDriver driver(spec, kGeometry);
  driver.Append(20);
  EXPECT_EQ(driver.Stored().first, driver.Given(20).k) << "too few tokens to know the order";
  for (const int64_t chunk : {25, 1, 1, 90}) {  // The order is known from 45 tokens.
    driver.Append(chunk);
    const int64_t n = driver.store().NumTokens(driver.seq());
    const KeysAndValues expected = Expected(driver.Given(n), static_cast<size_t>(n), 45, rule);
    const KeysAndValues stored = driver.Stored();
    for (size_t i = 0; i < expected.first.size(); ++i) {
      ASSERT_NEAR(stored.first[i], expected.first[i], kTolerance) << n << " " << i / kKvDim;
      ASSERT_NEAR(stored.second[i], expected.second[i], kTolerance) << n << " " << i / kKvDim;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Specs, RotateKvTest,
                         testing::Values(Case{"rotatekv", {2, 0.8, 20}},
                                         Case{"rotatekv:bits=3", {3, 1.0, 20}},
                                         Case{"rotatekv:bits=4+clip=0.9+pivots=0", {4, 0.9, 0}}));

TEST(RotateKv, BytesByHand) {
  // 2 KV heads of 64: a token at full precision takes 512 bytes, at 2 bits 2 * 2 * (16 + 2 + 2) =
  // 80; the order of 128 channels 256; a pivot's position 4, a peak 8.
  const auto bytes = [](const std::string& spec, int64_t num_tokens) {
    MethodDriver driver(spec);
    driver.Append(num_tokens);
    return driver.BlockBytes();
  };
  EXPECT_EQ(bytes("rotatekv", 10), 10 * 512 + 160);
  EXPECT_EQ(bytes("rotatekv", 32), 20 * 516 + 12 * 80 + 256);
  EXPECT_EQ(bytes("rotatekv", 500), 20 * 516 + 480 * 80 + 256);
  EXPECT_EQ(bytes("rotatekv:bits=3+pivots=0", 500), 500 * 2 * 2 * (24 + 4) + 256);
}

TEST(RotateKv, ZerosStayZeroAndTruncateIsFollowed) {
  MethodDriver driver("rotatekv");
  driver.Append(60);
  driver.store().Truncate(driver.seq(), 10);
  driver.Append(30);
  EXPECT_EQ(driver.store().NumTokens(driver.seq()), 40);
  for (const float x : driver.Stored().first) ASSERT_TRUE(std::isfinite(x));

  MethodDriver flat("rotatekv");
  const std::vector<float> zeros(40 * 4 * 64, 0.0f);
  std::vector<float> out(zeros.size());
  ASSERT_EQ(flat.store().Reserve(flat.seq(), 40), ReserveResult::kReserved);
  flat.store().BeginForward({{flat.seq(), 40}});
  flat.store().OfferExtras(0, {zeros.data(), zeros.data(), 256});
  flat.store().AppendAndAttend(0, zeros.data(), zeros.data(), zeros.data(), out.data());
  flat.store().EndForward();
  EXPECT_EQ(flat.Stored().first, std::vector<float>(40 * 2 * 64, 0.0f));
}

TEST(RotateKv, NamesWhatIsWrong) {
  ExpectError<InvalidInput>([] { MethodDriver driver("rotatekv:clip=0"); },
                            {"--kv", "clip=0, expected a number in [0.1, 1]"});
  ExpectError<InvalidInput>(
      [] {
        MethodDriver driver("rotatekv", {1, 4, 2, 96});
      },
      {"--kv", "'rotatekv': 2 KV heads of 96, expected powers of two"});
  ExpectError<InvalidInput>(
      [] {
        MethodDriver driver("rotatekv", {1, 6, 6, 64});
      },
      {"--kv", "'rotatekv': 6 KV heads of 64"});
}

}  // namespace
}  // namespace pmkvq
