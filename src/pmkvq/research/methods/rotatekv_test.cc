// RotateKV against a scalar reading in double precision, with the Hadamard matrix written out.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <set>

#include "pmkvq/base/error.h"
#include "pmkvq/base/random.h"
#include "pmkvq/model/profile.h"
#include "support/calibration_support.h"
#include "support/expect_error.h"
#include "support/method_rule.h"

namespace pmkvq {
namespace {

using testing_support::BytesAfter;
using testing_support::ExpectError;
using testing_support::KeysAndValues;
using testing_support::MethodDriver;
using testing_support::RandomSamples;
using testing_support::Rows;
using testing_support::TempFolder;
using testing_support::TinyFolder;
using testing_support::TinyModel;

// Twice four heads of 16: groups of 16 values, transforms of 64 channels for keys.
constexpr UniformKvGeometry kGeometry{1, 8, 8, 16};
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

// Order (unless `sums` are given, of rotated channels) and pivots come from the first `seen`
// tokens.
KeysAndValues Expected(const Rows& given, size_t n, size_t seen, const Rule& rule,
                       Vector sums = {}) {
  std::vector<std::pair<float, size_t>> entries;
  const bool own_order = sums.empty();
  sums.resize(kKvDim);
  for (size_t t = 0; t < seen; ++t) {
    const Vector rotated = Transformed(RowOf(given.k, t), 4 * kDim);
    for (size_t i = 0; i < kKvDim; ++i) {
      if (own_order) sums[i] += rotated[i];
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
  EXPECT_EQ(BytesAfter("rotatekv", 10), 10 * 512 + 160);
  EXPECT_EQ(BytesAfter("rotatekv", 32), 20 * 516 + 12 * 80 + 256);
  EXPECT_EQ(BytesAfter("rotatekv", 500), 20 * 516 + 480 * 80 + 256);
  EXPECT_EQ(BytesAfter("rotatekv:bits=3+pivots=0", 500), 500 * 2 * 2 * (24 + 4) + 256);
}

// The file's order in place of the sequence's own, and not counted.
TEST(RotateKv, TakesTheCalibratedOrder) {
  Random random(9);
  Vector sums(kKvDim);
  MethodData data;
  data.method = "rotatekv";
  data.geometry = kGeometry;
  Tensor tensor(DType::kF32, {kKvDim});
  for (size_t i = 0; i < kKvDim; ++i) {
    tensor.As<float>()[i] = static_cast<float>(random.Uniform());
    sums[i] = double{tensor.As<float>()[i]};
  }
  data.tensors.emplace("channel_sums.0", std::move(tensor));
  const TempFolder folder;
  const std::string path = folder.path() + "/order";
  SaveMethodData(data, path);

  MethodDriver driver("rotatekv:from=" + path, kGeometry);
  driver.Append(45);
  driver.Append(20);
  const KeysAndValues expected = Expected(driver.Given(65), 65, 45, {2, 0.8, 20}, sums);
  const KeysAndValues stored = driver.Stored();
  for (size_t i = 0; i < expected.first.size(); ++i) {
    ASSERT_NEAR(stored.first[i], expected.first[i], kTolerance) << i / kKvDim;
    ASSERT_NEAR(stored.second[i], expected.second[i], kTolerance) << i / kKvDim;
  }
  MethodDriver own("rotatekv", kGeometry);
  own.Append(65);
  EXPECT_EQ(driver.BlockBytes() + 2 * static_cast<int64_t>(kKvDim), own.BlockBytes());
  EXPECT_NE(driver.Stored().first, own.Stored().first);
}

// Against states in double precision, four KV heads of 16: one transform of 64 channels.
TEST(RotateKv, CalibrationSumsKeysBeforeRope) {
  TinyModel tiny;
  tiny.heads = tiny.kv_heads = 4;
  tiny.qkv_bias = tiny.o_bias = true;
  const TinyFolder folder(tiny);
  const std::shared_ptr<const Model> model = folder.Load();
  const Samples samples = RandomSamples(tiny.vocab, {19, 30}, 4);
  CalibrationContext calibration;
  calibration.model = model.get();
  calibration.samples = &samples;
  calibration.effective_len = 3 * 19;
  const MethodData data = CalibrateMethod("rotatekv", DType::kF16, calibration, {});
  EXPECT_EQ(data.method, "rotatekv");
  EXPECT_EQ(data.model_identity, model->checkpoint().Identity());

  // The same from the states after RoPE, each pair turned back by hand.
  const auto kv_dim = static_cast<size_t>(tiny.kv_dim());
  const auto half = static_cast<size_t>(tiny.head_dim / 2);
  std::vector<Vector> sums(static_cast<size_t>(tiny.layers), Vector(kv_dim));
  Profile<double> profile(*model, 1);
  for (size_t sample = 0; sample < 2; ++sample) {
    const std::vector<int64_t> positions = samples.Positions(sample, calibration.effective_len);
    profile.Forward(samples.tokens[sample], positions, [&](const BlockStates<double>& states) {
      for (size_t t = 0; t < positions.size(); ++t) {
        for (size_t i = 0; i < kv_dim; ++i) {
          const size_t channel = i % (2 * half);
          const bool is_first = channel < half;
          const double angle =
              double(positions[t]) * std::pow(1e4, -double(channel % half) / double(half));
          const double* k = states.k + t * kv_dim;
          sums[static_cast<size_t>(states.layer)][i] +=
              is_first ? k[i] * std::cos(angle) + k[i + half] * std::sin(angle)
                       : k[i] * std::cos(angle) - k[i - half] * std::sin(angle);
        }
      }
    });
  }
  for (int64_t layer = 0; layer < tiny.layers; ++layer) {
    SCOPED_TRACE(layer);
    const Vector expected = Transformed(sums[static_cast<size_t>(layer)], kv_dim);
    const Tensor& found = data.Get(BlockTensorName("channel_sums", layer), {tiny.kv_dim()});
    for (size_t i = 0; i < kv_dim; ++i) {
      EXPECT_NEAR(found.As<float>()[i], expected[i] / (19 + 30), 1e-5) << i;
    }
  }
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
