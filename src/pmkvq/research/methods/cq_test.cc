// CQ against golden data and a scalar reading of its rule, and its calibration against gradients in
// double precision.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "pmkvq/base/error.h"
#include "pmkvq/base/random.h"
#include "pmkvq/model/profile.h"
#include "pmkvq/research/methods/weighted_kmeans.h"
#include "support/calibration_support.h"
#include "support/damage_rows.h"
#include "support/expect_error.h"
#include "support/method_golden.h"
#include "support/method_rule.h"

namespace pmkvq {
namespace {

using testing_support::ExpectAfterEachAppend;
using testing_support::ExpectError;
using testing_support::ExpectGolden;
using testing_support::ExpectRefused;
using testing_support::GoldenCache;
using testing_support::KeysAndValues;
using testing_support::kMethodShape;
using testing_support::MethodDriver;
using testing_support::MethodGolden;
using testing_support::RandomSamples;
using testing_support::RecordingLog;
using testing_support::Rows;
using testing_support::TempFolder;
using testing_support::TinyFolder;
using testing_support::TinyModel;

// Codebooks [Hkv, D / channels, 2^bits, channels] of every block.
struct Books {
  std::vector<float> k;
  std::vector<float> v;
};

void WriteFile(const std::string& path, const UniformKvGeometry& geometry, int64_t channels,
               int64_t bits, const Books& books) {
  MethodData data;
  data.method = "cq";
  data.spec = "cq";
  data.model_identity = "none";
  data.geometry = geometry;
  Tensor form(DType::kF32, {2});
  form.As<float>()[0] = static_cast<float>(channels);
  form.As<float>()[1] = static_cast<float>(bits);
  data.tensors.emplace("form", std::move(form));
  for (int64_t layer = 0; layer < geometry.num_layers; ++layer) {
    for (const bool keys : {true, false}) {
      Tensor tensor(DType::kF32, {geometry.num_kv_heads, geometry.head_dim / channels,
                                  int64_t{1} << bits, channels});
      const std::vector<float>& source = keys ? books.k : books.v;
      std::copy(source.begin(), source.end(), tensor.As<float>());
      data.tensors.emplace(BlockTensorName(keys ? "k_codebooks" : "v_codebooks", layer),
                           std::move(tensor));
    }
  }
  SaveMethodData(data, path);
}

TEST(Cq, Golden) {
  const MethodGolden golden("cq");  // x [Hkv, T, D]
  const UniformKvGeometry geometry{1, 2, 2, 32};
  const TempFolder folder;
  const std::string file = folder.File("books");
  const std::vector<float> books = golden.Floats("codebooks");
  WriteFile(file, geometry, 4, 6, {books, books});
  for (const int64_t chunk : {1, 64}) {
    GoldenCache cache("cq:from=" + file, geometry, golden.Floats("x"), golden.Floats("x"));
    for (int64_t t = 0; t < 64; t += chunk) cache.Append(chunk);
    ExpectGolden(cache.Keys(), golden.Floats("read"));
    ExpectGolden(cache.Values(), golden.Floats("read"));
  }
  // As `pmkvq damage` runs it.
  testing_support::NamedTensors inputs;
  for (const char* name : {"keys_before_rope", "v"}) {
    Tensor tensor(DType::kF32, {1, 2, 64, 32});
    const std::vector<float> values = golden.Floats("x");
    std::copy(values.begin(), values.end(), tensor.As<float>());
    inputs.emplace(name, std::move(tensor));
  }
  const DamageResult damaged = testing_support::Damaged(inputs, "cq:from=" + file, 30);
  ExpectGolden({damaged.k_read.As<float>(), damaged.k_read.As<float>() + 2 * 64 * 32},
               golden.Floats("read"));
  ExpectGolden({damaged.v_read.As<float>(), damaged.v_read.As<float>() + 2 * 64 * 32},
               golden.Floats("read"));
  // The indices themselves.
  const std::vector<float> x = golden.Floats("x");
  const std::vector<int32_t> codes = golden.Integers("codes");  // [Hkv, T, D / c]
  std::vector<float> scratch(64);
  for (size_t i = 0; i < codes.size(); ++i) {
    const size_t head = i / (64 * 8);
    const Codebook codebook(books.data() + (head * 8 + i % 8) * 64 * 4, 64, 4);
    ASSERT_EQ(codebook.Nearest(x.data() + i * 4, scratch.data()), codes[i]) << i;
  }
}

// The block of MethodDriver with random codebooks.
class CqRule : public testing::Test {
 protected:
  static constexpr UniformKvGeometry kGeometry{1, 4, 2, 64};
  static constexpr size_t kChannels = 8;
  static constexpr size_t kCentroids = 32;

  CqRule() {
    Random random(4);
    const size_t size = 128 / kChannels * kCentroids * kChannels;
    const auto fill = [&](std::vector<float>& out) {
      for (size_t i = 0; i < size; ++i) out.push_back(float(4 * random.Uniform() - 1.5));
    };
    fill(books_.k);
    fill(books_.v);
    WriteFile(file_, kGeometry, kChannels, 5, books_);
  }

  // Tokens 0 .. count - 1 of x [T, Hkv, D] become the nearest centroids, kept as f16.
  static void Quantize(std::vector<float>& x, int64_t count, const std::vector<float>& books) {
    for (size_t at = 0; at < static_cast<size_t>(count) * 128 / kChannels; ++at) {
      const size_t book = at % (128 / kChannels) * kCentroids;
      double least = INFINITY;
      size_t nearest = 0;
      for (size_t i = 0; i < kCentroids; ++i) {
        double distance = 0;
        for (size_t j = 0; j < kChannels; ++j) {
          const float centroid = ToFloat(ToF16(books[(book + i) * kChannels + j]));
          const double difference = double{x[at * kChannels + j]} - double{centroid};
          distance += difference * difference;
        }
        if (distance < least) nearest = i;
        least = std::min(least, distance);
      }
      for (size_t j = 0; j < kChannels; ++j) {
        x[at * kChannels + j] = ToFloat(ToF16(books[(book + nearest) * kChannels + j]));
      }
    }
  }

  Books books_;
  TempFolder folder_;
  const std::string file_ = folder_.File("books");
};

TEST_F(CqRule, PrefillAndDecodeFollowTheRule) {
  for (const int64_t window : {0, 40}) {
    MethodDriver driver("cq:window=" + std::to_string(window) + "+from=" + file_);
    ExpectAfterEachAppend(driver, {1, 30, 1, 95, 1, 1, 40, 1}, 0,
                          [&](const Rows& given, int64_t n) {
                            KeysAndValues expected{given.k, given.v};
                            Quantize(expected.first, std::max<int64_t>(0, n - window), books_.k);
                            Quantize(expected.second, std::max<int64_t>(0, n - window), books_.v);
                            return expected;
                          });
  }
}

TEST_F(CqRule, TruncatedTokensAreStoredAgain) {
  MethodDriver driver("cq:window=40+from=" + file_);
  driver.Append(100);
  driver.store().Truncate(driver.seq(), 70);  // 30 of the 60 quantised ones are left in the window.
  const KeysAndValues cut = driver.Stored();
  driver.Append(80);
  KeysAndValues expected{driver.Given(150).k, driver.Given(150).v};
  Quantize(expected.first, 110, books_.k);
  Quantize(expected.second, 110, books_.v);
  EXPECT_EQ(driver.Stored(), expected);
  EXPECT_TRUE(std::equal(cut.first.begin(), cut.first.begin() + 60 * 128, expected.first.begin()));
}

TEST_F(CqRule, BytesByHand) {
  // 128 values in 16 groups of 5 bits: 10 bytes a token and side; at full precision 256.
  const auto bytes = [&](const std::string& more, int64_t n) {
    MethodDriver driver("cq:from=" + file_ + more);
    driver.Append(n);
    return driver.BlockBytes();
  };
  EXPECT_EQ(bytes("", 1), 20);
  EXPECT_EQ(bytes("", 300), 6000);
  EXPECT_EQ(bytes("+window=128", 128), 128 * 512);
  EXPECT_EQ(bytes("+window=128", 300), 172 * 20 + 128 * 512);
}

TEST_F(CqRule, NamesWhatIsWrong) {
  ExpectRefused("cq", "no codebooks, expected from=FILE (made by pmkvq calibrate --kv cq");
  ExpectRefused("cq:channels=3+from=" + file_, "channels=3, expected a divisor of head_dim 64");
  ExpectError<InvalidInput>([&] { MethodDriver driver("cq:bits=8+from=" + file_); },
                            {file_, "made with channels=8+bits=5, expected channels=8+bits=8"});
  books_.k[7] = 1e6f;
  WriteFile(file_, kGeometry, kChannels, 5, books_);
  ExpectError<InvalidInput>([&] { MethodDriver driver("cq:from=" + file_); },
                            {file_, "k_codebooks.0", "does not fit F16", "--kv-dtype bf16"});
  EXPECT_NO_THROW(MethodDriver("cq:from=" + file_, kGeometry, DType::kBF16));
}

TEST(Cq, CodesOfATokenTakeWholeBytes) {
  const UniformKvGeometry geometry{1, 1, 1, 8};
  const TempFolder folder;
  const std::string file = folder.File("books");
  const std::vector<float> books(512 * 8, 0.5f);
  WriteFile(file, geometry, 8, 9, {books, books});
  MethodDriver driver("cq:from=" + file, geometry);
  driver.Append(3);
  EXPECT_EQ(driver.BlockBytes(), 3 * 2 * 2);  // 9 bits: two bytes.
}

// ---- Calibration.

class CqCalibration : public testing::Test {
 protected:
  CqCalibration() {
    calibration_.model = model_.get();
    calibration_.samples = &samples_;
    calibration_.log = &log_;
  }
  MethodData Calibrate(const std::string& spec) const {
    return CalibrateMethod(spec, DType::kF16, calibration_, {"texts", "concat", 3, 24, 24, 42});
  }

  const TinyModel tiny_;
  const TinyFolder folder_{tiny_};
  const std::shared_ptr<const Model> model_ = folder_.Load();
  const Samples samples_ = RandomSamples(tiny_.vocab, {24, 24, 24}, 7);
  RecordingLog log_;
  CalibrationContext calibration_;
};

// Rows of one group of channels of one block, from a pass in double.
struct GroupRows {
  std::vector<double> values;   // [tokens, c]
  std::vector<double> weights;  // [tokens]
};

GroupRows RowsInDouble(const Model& model, const Samples& samples, int64_t layer, bool keys,
                       int64_t first_channel, int64_t channels) {
  const UniformKvGeometry geometry = UniformOf(model.kv_geometry());
  const int64_t dim = geometry.head_dim;
  GroupRows rows;
  Profile<double> profile(model, 1);
  for (const auto& sample : samples.tokens) {
    std::vector<int64_t> positions(sample.size());
    for (size_t i = 0; i < positions.size(); ++i) positions[i] = static_cast<int64_t>(i);
    profile.ForwardBackward(sample, positions, [&](const BlockStates<double>& states) {
      if (states.layer != layer) return;
      const int64_t head = first_channel / dim;
      for (int64_t t = 0; t < states.num_tokens; ++t) {
        double weight = 0;
        for (int64_t c = first_channel % dim; c < first_channel % dim + channels; ++c) {
          // Turned back by the angle of position t.
          const auto before_rope = [&](const double* x) {
            const double* row = x + (t * geometry.num_kv_heads + head) * dim;
            if (!keys) return row[c];
            const int64_t pair = c % (dim / 2);
            const double angle = static_cast<double>(
                static_cast<float>(t) * model.rope(layer).frequencies()[static_cast<size_t>(pair)]);
            return c < dim / 2 ? row[pair] * std::cos(angle) + row[pair + dim / 2] * std::sin(angle)
                               : row[c] * std::cos(angle) - row[pair] * std::sin(angle);
          };
          rows.values.push_back(before_rope(keys ? states.k : states.v));
          const double gradient = before_rope(keys ? states.dk : states.dv);
          weight += gradient * gradient;
        }
        rows.weights.push_back(weight);
      }
    });
  }
  return rows;
}

// Sum of weight times squared distance to the nearest centroid [count, c], and whether each
// centroid is the weighted mean of its rows.
double Error(const GroupRows& rows, const float* centroids, size_t count, size_t channels,
             bool uniform, bool* are_means) {
  std::vector<double> sums(count * channels);
  std::vector<double> weights(count);
  double error = 0;
  for (size_t i = 0; i < rows.weights.size(); ++i) {
    double least = INFINITY;
    size_t nearest = 0;
    for (size_t at = 0; at < count; ++at) {
      double distance = 0;
      for (size_t j = 0; j < channels; ++j) {
        distance +=
            std::pow(rows.values[i * channels + j] - double{centroids[at * channels + j]}, 2);
      }
      if (distance < least) nearest = at;
      least = std::min(least, distance);
    }
    const double weight = uniform ? 1.0 : rows.weights[i];
    error += weight * least;
    weights[nearest] += weight;
    for (size_t j = 0; j < channels; ++j) {
      sums[nearest * channels + j] += weight * rows.values[i * channels + j];
    }
  }
  *are_means = true;
  for (size_t i = 0; i < sums.size(); ++i) {
    const double weight = weights[i / channels];
    if (weight <= 0) continue;
    *are_means &= std::abs(sums[i] / weight - double{centroids[i]}) < 1e-4;
  }
  return error;
}

// Every codebook is a fixed point of weighted k-means on keys before RoPE (or values) with the
// squares of the double pass's gradients; with the other weights, or other rows, none would be.
TEST_F(CqCalibration, CodebooksAreFixedPointsUnderTheGradients) {
  const UniformKvGeometry geometry = UniformOf(model_->kv_geometry());
  const auto dim = static_cast<size_t>(geometry.head_dim);
  for (const bool uniform : {false, true}) {
    const MethodData data =
        Calibrate(std::string("cq:channels=4+bits=3+rounds=200+start=spread+weights=") +
                  (uniform ? "uniform" : "fisher"));
    int64_t num_swapped = 0;
    int64_t num_books = 0;
    for (int64_t layer = 0; layer < geometry.num_layers; ++layer) {
      for (const bool keys : {true, false}) {
        const Tensor& tensor =
            data.tensors.at(BlockTensorName(keys ? "k_codebooks" : "v_codebooks", layer));
        ASSERT_EQ(tensor.shape(), (Shape{geometry.num_kv_heads, geometry.head_dim / 4, 8, 4}));
        for (size_t book = 0; book < static_cast<size_t>(geometry.num_kv_heads) * dim / 4; ++book) {
          const GroupRows rows =
              RowsInDouble(*model_, samples_, layer, keys, static_cast<int64_t>(book * 4), 4);
          const float* centroids = tensor.As<float>() + book * 8 * 4;
          bool are_means = false;
          Error(rows, centroids, 8, 4, uniform, &are_means);
          EXPECT_TRUE(are_means) << layer << (keys ? " keys " : " values ") << book;
          Error(rows, centroids, 8, 4, !uniform, &are_means);
          num_swapped += are_means ? 1 : 0;
          ++num_books;
        }
      }
    }
    EXPECT_LT(num_swapped, num_books / 4) << "the other weights have other means";
  }
}

TEST_F(CqCalibration, BlocksInSeveralPassesAndThreadsGiveTheSame) {
  const MethodData one = Calibrate("cq:channels=4+bits=3");
  calibration_.num_threads = 3;
  const MethodData three = Calibrate("cq:channels=4+bits=3");
  for (const auto& [name, tensor] : one.tensors) {
    const Tensor& other = three.tensors.at(name);
    EXPECT_TRUE(std::equal(tensor.As<float>(), tensor.As<float>() + tensor.num_elements(),
                           other.As<float>()))
        << name;
  }
}

TEST_F(CqCalibration, FewTokensAreWarnedOfOrRefused) {
  Calibrate("cq:channels=4+bits=4");
  ASSERT_EQ(log_.warnings.size(), 1u);
  EXPECT_NE(log_.warnings[0].find("72 tokens for codebooks of 16"), std::string::npos);
  EXPECT_NE(log_.warnings[0].find("take 8192 or more"), std::string::npos);
  ExpectError<InvalidInput>(
      [&] { Calibrate("cq:channels=4+bits=8"); },
      {"--n-samples", "72 tokens for codebooks of 256, expected 8192 or more"});
}

TEST_F(CqCalibration, FileServesTheCache) {
  const TempFolder files;
  SaveMethodData(Calibrate("cq:channels=2+bits=5"), files.File("cq"));
  const UniformKvGeometry geometry = UniformOf(model_->kv_geometry());
  MethodDriver driver("cq:from=" + files.File("cq"), geometry);
  driver.Append(10);
  EXPECT_EQ(driver.BlockBytes(), 10 * 2 * ((geometry.kv_dim() / 2 * 5 + 7) / 8));
}

}  // namespace
}  // namespace pmkvq
