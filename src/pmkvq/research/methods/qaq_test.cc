// QAQ: its rule against golden data, blocks in the cache against a scalar reading.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "pmkvq/base/error.h"
#include "pmkvq/model/profile.h"
#include "pmkvq/research/methods/qaq_rule.h"
#include "support/calibration_support.h"
#include "support/expect_error.h"
#include "support/method_chunks.h"
#include "support/method_golden.h"
#include "support/method_rule.h"

namespace pmkvq {
namespace {

using testing_support::BytesAfter;
using testing_support::ExpectChunksDoNotMatter;
using testing_support::ExpectError;
using testing_support::ExpectGolden;
using testing_support::ExpectRefused;
using testing_support::KeysAndValues;
using testing_support::MethodDriver;
using testing_support::MethodGolden;
using testing_support::RandomSamples;
using testing_support::TempFolder;
using testing_support::TinyFolder;
using testing_support::TinyModel;

constexpr size_t kBlocks = 2;
constexpr size_t kHeads = 2;
constexpr size_t kTokens = 40;
constexpr size_t kDim = 16;
constexpr size_t kRows = 5;

// The units of a golden tensor [L, H, T, D]: the places of each unit's values, units of a block
// behind one another and tokens within them.
std::vector<std::vector<size_t>> Units(bool by_head) {
  std::vector<std::vector<size_t>> units;
  for (size_t layer = 0; layer < kBlocks; ++layer) {
    for (size_t unit = 0; unit < (by_head ? kHeads : 1); ++unit) {
      for (size_t t = 0; t < kTokens; ++t) {
        std::vector<size_t> places;
        for (size_t head = by_head ? unit : 0; head < (by_head ? unit + 1 : kHeads); ++head) {
          for (size_t i = 0; i < kDim; ++i) {
            places.push_back(((layer * kHeads + head) * kTokens + t) * kDim + i);
          }
        }
        units.push_back(places);
      }
    }
  }
  return units;
}

// The largest attention weight on the token of the unit that these places belong to.
double LargestWeight(const std::vector<float>& rows, const std::vector<size_t>& places) {
  float largest = 0;
  for (const size_t place : places) {  // Of every head in the unit.
    const size_t head = place / (kTokens * kDim);
    const size_t token = place / kDim % kTokens;
    for (size_t row = 0; row < kRows; ++row) {
      largest = std::max(largest, rows[(head * kRows + row) * kTokens + token]);
    }
  }
  return double{largest};
}

void ExpectGoldenCase(const MethodGolden& golden, bool by_head, bool outliers, bool keys,
                      bool reference) {
  const std::string tag =
      std::string(by_head ? "head" : "layer") + (outliers ? ".p2." : ".p0.") + (keys ? "k" : "v");
  SCOPED_TRACE(tag);
  const std::string full = tag + (reference ? ".code" : ".paper");
  QaqRule rule;
  rule.reference = reference;
  rule.outliers = outliers ? 0.02 : 0;
  rule.metadata_type = DType::kF32;
  std::vector<float> values = golden.Floats(keys ? "k" : "v");
  const std::vector<float> rows = golden.Floats("attention_last_rows");
  const std::vector<int32_t> bits = golden.Integers(full + ".bits");
  std::vector<uint8_t> mask(values.size());
  const std::vector<std::vector<size_t>> units = Units(by_head);
  ASSERT_EQ(units.size(), bits.size());
  for (size_t i = 0; i < units.size(); ++i) {
    std::vector<float> unit;
    for (const size_t place : units[i]) unit.push_back(values[place]);
    const QaqValues looked_at = QaqLookAt(rule, unit);
    if (i % kTokens < kTokens - kRows + 1) {  // The newest have the largest width.
      const int found = keys
                            ? QaqKeyBits(rule, looked_at, kTokens)
                            : QaqValueBits(rule, looked_at, kTokens, LargestWeight(rows, units[i]));
      ASSERT_EQ(found, bits[i]) << i;
    }
    QaqDamage(rule, looked_at, bits[i], unit);
    for (size_t j = 0; j < unit.size(); ++j) {
      values[units[i][j]] = unit[j];
      mask[units[i][j]] = looked_at.is_outlier[j] ? 1 : 0;
    }
  }
  ExpectGolden(values, golden.Floats(full + ".read"), 1);
  if (outliers) {
    EXPECT_EQ(mask, golden.Bytes(tag + ".outliers"));
  }
}

TEST(Qaq, Golden) {
  const MethodGolden golden("qaq");
  for (const bool by_head : {true, false}) {
    for (const bool outliers : {true, false}) {
      for (const bool keys : {true, false}) {
        for (const bool reference : {true, false}) {
          ExpectGoldenCase(golden, by_head, outliers, keys, reference);
        }
      }
    }
  }
}

TEST(Qaq, WidthsFillTheRoom) {
  const QaqRule rule;
  using Widths = std::vector<int>;
  EXPECT_EQ(QaqFit(rule, {4, 4, 4}, 12), (Widths{4, 4, 4}));
  EXPECT_EQ(QaqFit(rule, {2, 8, 5}, 12), (Widths{1, 7, 4})) << "one bit each, the widest first";
  EXPECT_EQ(QaqFit(rule, {2, 8, 5}, 13), (Widths{2, 7, 4}));
  EXPECT_EQ(QaqFit(rule, {1, 8, 5}, 11), (Widths{1, 6, 4})) << "none goes below 1";
  EXPECT_EQ(QaqFit(rule, {2, 8, 5}, 17), (Widths{3, 8, 6}));
  EXPECT_EQ(QaqFit(rule, {5, 5}, 11), (Widths{6, 5})) << "the oldest of equal ones";
  EXPECT_EQ(QaqFit(rule, {3, 3}, 100), (Widths{8, 8}));
}

TEST(Qaq, ChunksAndTruncationsDoNotMatter) {
  ExpectChunksDoNotMatter("qaq", 230);
  ExpectChunksDoNotMatter("qaq:unit=layer+reference+bits=2+rows=1", 230);
}

// The first block closes with the 68th token: its widths follow from rows 63 .. 67 over keys that
// nothing has damaged yet.
TEST(Qaq, ABlockFollowsTheRule) {
  MethodDriver driver("qaq:bits=3+outliers=0.1");
  driver.Append(67);
  const auto given = driver.Given(68);
  const KeysAndValues before = driver.Stored();
  EXPECT_TRUE(std::equal(before.first.begin(), before.first.end(), given.k.begin()));
  driver.Append(1);
  const KeysAndValues stored = driver.Stored();
  QaqRule rule;
  rule.outliers = 0.1;
  for (size_t head = 0; head < 2; ++head) {
    std::vector<double> largest(64);
    for (size_t row = 63; row < 68; ++row) {
      for (size_t query_head = 2 * head; query_head < 2 * head + 2; ++query_head) {
        std::vector<double> weights;
        double sum = 0;
        for (size_t t = 0; t <= row; ++t) {
          double score = 0;
          for (size_t i = 0; i < 64; ++i) {
            score += double{given.q[(row * 4 + query_head) * 64 + i]} *
                     double{given.k[(t * 2 + head) * 64 + i]};
          }
          weights.push_back(std::exp(score / 8));
          sum += weights.back();
        }
        for (size_t t = 0; t < 64; ++t) largest[t] = std::max(largest[t], weights[t] / sum);
      }
    }
    for (const bool keys : {true, false}) {
      const std::vector<float>& source = keys ? given.k : given.v;
      std::vector<int> wanted;
      for (size_t t = 0; t < 64; ++t) {
        const QaqValues looked_at =
            QaqLookAt(rule, {source.data() + (t * 2 + head) * 64, size_t{64}});
        wanted.push_back(keys ? QaqKeyBits(rule, looked_at, 68)
                              : QaqValueBits(rule, looked_at, 68, largest[t]));
      }
      const std::vector<int> widths = QaqFit(rule, wanted, 64 * 3);
      EXPECT_EQ(std::accumulate(widths.begin(), widths.end(), 0), 64 * 3);
      for (size_t t = 0; t < 64; ++t) {
        std::vector<float> row(
            source.begin() + static_cast<std::ptrdiff_t>((t * 2 + head) * 64),
            source.begin() + static_cast<std::ptrdiff_t>((t * 2 + head + 1) * 64));
        QaqDamage(rule, QaqLookAt(rule, row), widths[t], row);
        for (size_t i = 0; i < 64; ++i) {
          ASSERT_FLOAT_EQ((keys ? stored.first : stored.second)[(t * 2 + head) * 64 + i], row[i])
              << t;
        }
      }
    }
  }
  for (size_t i = 64 * 128; i < given.k.size(); ++i) {
    ASSERT_EQ(stored.first[i], given.k[i]);
    ASSERT_EQ(stored.second[i], given.v[i]);
  }
}

TEST(Qaq, BytesByHand) {
  // Full precision: 512 bytes a token; five queries of 4 * 64 values, 2560 bytes.
  EXPECT_EQ(BytesAfter("qaq", 3), 3 * 512 + 3 * 512);
  EXPECT_EQ(BytesAfter("qaq", 67), 67 * 512 + 2560);
  // A block of 64, each side: 128 values of 4 bits a token; a tag of 4 bits, a pair of 4 bytes and
  // two outliers (1 % of 64 is one at each end) of 4 bytes for each token and head.
  EXPECT_EQ(BytesAfter("qaq", 68), 2 * (64 * 64 + 64 + 64 * 2 * (4 + 8)) + 4 * 512 + 2560);
  EXPECT_EQ(BytesAfter("qaq:unit=layer+bits=2+outliers=0+rows=1", 64),
            2 * (64 * 32 + 32 + 64 * 4) + 512);
}

TEST(Qaq, NamesWhatIsWrong) {
  ExpectRefused("qaq:bits=9", "bits=9, expected a whole number in [1, 8]");
  ExpectRefused("qaq:unit=token", "unit=token, expected one of head, layer");
}

TEST(Qaq, CalibrationTakesTheQuantileOfSquaredNorms) {
  const TinyModel tiny;
  const TinyFolder folder(tiny);
  const std::shared_ptr<const Model> model = folder.Load();
  const Samples samples = RandomSamples(tiny.vocab, {30, 20}, 3);
  CalibrationContext calibration;
  calibration.model = model.get();
  calibration.samples = &samples;
  const MethodData data =
      CalibrateMethod("qaq", DType::kF16, calibration, {"texts", "concat", 2, 30, 30, 42});
  const UniformKvGeometry geometry = UniformOf(model->kv_geometry());
  const Tensor& found = data.tensors.at("q2");
  std::vector<std::vector<double>> powers(static_cast<size_t>(geometry.num_layers));
  Profile<double> profile(*model, 1);
  for (const auto& sample : samples.tokens) {
    std::vector<int64_t> positions(sample.size());
    std::iota(positions.begin(), positions.end(), int64_t{0});
    profile.Forward(sample, positions, [&](const BlockStates<double>& states) {
      for (int64_t i = 0; i < states.num_tokens * geometry.num_heads; ++i) {
        double squares = 0;
        for (int64_t j = 0; j < geometry.head_dim; ++j) {
          squares += std::pow(states.q[i * geometry.head_dim + j], 2);
        }
        powers[static_cast<size_t>(states.layer)].push_back(squares /
                                                            static_cast<double>(geometry.head_dim));
      }
    });
  }
  for (size_t layer = 0; layer < powers.size(); ++layer) {
    std::sort(powers[layer].begin(), powers[layer].end());
    const double quantile = powers[layer][powers[layer].size() * 9 / 10 - 1];
    EXPECT_NEAR(double{found.As<float>()[layer]}, quantile, 1e-4 * quantile) << layer;
  }
  const TempFolder files;
  SaveMethodData(data, files.File("qaq"));
  MethodDriver driver("qaq:from=" + files.File("qaq"), geometry);
  driver.Append(100);
  ExpectError<InvalidInput>(
      [&] { MethodDriver refused("qaq:q2=3+from=" + files.File("qaq"), geometry); },
      {"--kv", "q2=3, expected it or from="});
}

}  // namespace
}  // namespace pmkvq
