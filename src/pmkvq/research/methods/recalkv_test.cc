// ReCalKV's steps against golden data, its calibration on a small model.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "pmkvq/base/error.h"
#include "pmkvq/kernels/gemm/gemm.h"
#include "pmkvq/model/profile.h"
#include "pmkvq/research/methods/recalkv_rule.h"
#include "support/calibration_support.h"
#include "support/expect_error.h"
#include "support/method_golden.h"
#include "support/method_rule.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;
using testing_support::ExpectRefused;
using testing_support::MethodDriver;
using testing_support::MethodGolden;
using testing_support::RandomSamples;
using testing_support::TempFolder;
using testing_support::TinyFolder;
using testing_support::TinyModel;

constexpr size_t kWidth = 48;  // E
constexpr size_t kRowsOfX = 400;

struct Moments {
  std::vector<double> second;
  std::vector<double> mean;
};

Moments MomentsOf(const std::vector<float>& x) {
  Moments moments{std::vector<double>(kWidth * kWidth), std::vector<double>(kWidth)};
  for (size_t row = 0; row < kRowsOfX; ++row) {
    for (size_t i = 0; i < kWidth; ++i) {
      const double a = double{x[row * kWidth + i]};
      moments.mean[i] += a / kRowsOfX;
      for (size_t j = 0; j < kWidth; ++j) {
        moments.second[i * kWidth + j] += a * double{x[row * kWidth + j]};
      }
    }
  }
  return moments;
}

void ExpectWeights(const std::vector<float>& found, const std::vector<float>& expected) {
  ASSERT_EQ(found.size(), expected.size());
  float largest = 0;
  for (const float x : expected) largest = std::max(largest, std::abs(x));
  for (size_t i = 0; i < found.size(); ++i) {
    ASSERT_NEAR(found[i], expected[i], 1e-3f * largest) << i;
  }
}

TEST(ReCalKv, Golden) {
  const MethodGolden golden("recalkv");
  const Moments moments = MomentsOf(golden.Floats("x"));
  const std::vector<float> w_k = golden.Floats("w_k");  // [4 heads of 16, E]
  const std::vector<double> alignment =
      HeadAlignment(w_k, 4, moments.second, moments.mean, kRowsOfX);
  // The golden centres in the coordinates of the whitening, whose signs are free: they move it by
  // 0.01.
  const std::vector<float> cka = golden.Floats("cka");
  for (size_t i = 0; i < cka.size(); ++i) EXPECT_NEAR(alignment[i], double{cka[i]}, 0.02) << i;

  const auto groups = GroupHeads(alignment, 4, 2);
  const std::vector<int32_t> expected_groups = golden.Integers("groups");
  std::vector<float> low(w_k.size());
  for (size_t i = 0; i < 2; ++i) {
    std::vector<float> rows;
    for (size_t j = 0; j < 2; ++j) {
      EXPECT_EQ(groups[i][j], expected_groups[2 * i + j]);
      const auto begin = w_k.begin() + groups[i][j] * 16 * 48;
      rows.insert(rows.end(), begin, begin + 16 * 48);
    }
    const std::vector<float> of_group = LowRank(rows, 32, moments.second, 12).weight;
    for (size_t j = 0; j < 2; ++j) {
      std::copy_n(of_group.begin() + static_cast<int64_t>(j) * 16 * 48, 16 * 48,
                  low.begin() + groups[i][j] * 16 * 48);
    }
  }
  ExpectWeights(low, golden.Floats("w_k_low"));
  const LowRankWeight low_values = LowRank(golden.Floats("w_v"), 64, moments.second, 24);
  const std::vector<float>& values = low_values.weight;
  ExpectWeights(values, golden.Floats("w_v_low_svd"));
  for (size_t a = 0; a < 24; ++a) {
    for (size_t b = 0; b <= a; ++b) {
      const float* x = low_values.vectors.data() + a * 64;
      const float* y = low_values.vectors.data() + b * 64;
      EXPECT_NEAR(std::inner_product(x, x + 64, y, 0.0), a == b ? 1 : 0, 1e-5);
    }
  }
  // The published second fit changes nothing on the same text.
  ExpectWeights(values, golden.Floats("w_v_low"));
}

TEST(ReCalKv, GroupsFollowThePairs) {
  const auto alignment = [](int64_t heads, const std::vector<std::array<double, 3>>& pairs) {
    std::vector<double> all(static_cast<size_t>(heads * heads));
    for (const auto& [a, b, value] : pairs) {
      all[static_cast<size_t>(a * double(heads) + b)] = value;
      all[static_cast<size_t>(b * double(heads) + a)] = value;
    }
    return all;
  };
  using Groups = std::vector<std::vector<int64_t>>;
  // 0 and 2 open the first group, 1 and 5 the second one's first pair: room for both pairs in the
  // first.
  EXPECT_EQ(GroupHeads(alignment(8, {{0, 2, 0.9}, {1, 5, 0.8}, {3, 4, 0.7}, {6, 3, 0.6}}), 8, 4),
            (Groups{{0, 1, 2, 5}, {3, 4, 6, 7}}));
  // A third head joins a pair; the next pair makes the group too large, and its last head leaves.
  EXPECT_EQ(GroupHeads(alignment(8, {{0, 2, 0.9}, {2, 7, 0.8}, {3, 4, 0.7}}), 8, 4),
            (Groups{{0, 2, 3, 7}, {1, 4, 5, 6}}));
  EXPECT_EQ(GroupHeads(alignment(1, {}), 1, 1), (Groups{{0}}));
}

TEST(ReCalKv, RanksHaveTheShareAndFollowImportance) {
  using Ranks = std::vector<int64_t>;
  EXPECT_EQ(RanksByImportance(std::vector<double>{1, 1, 1, 1}, 0.5, 128, 32),
            (Ranks{64, 64, 64, 64}));
  EXPECT_EQ(RanksByImportance(std::vector<double>{3, 1, 3, 1}, 0.5, 128, 32),
            (Ranks{96, 32, 96, 32}));
  EXPECT_EQ(RanksByImportance(std::vector<double>{100, 1, 1, 1}, 0.5, 128, 4),
            (Ranks{128, 44, 44, 44}));
  EXPECT_EQ(RanksByImportance(std::vector<double>{0, 0}, 0.25, 128, 4), (Ranks{32, 32}));
  EXPECT_EQ(RanksByImportance(std::vector<double>{1, 2}, 1, 128, 32), (Ranks{128, 128}));
}

class ReCalKvModel : public testing::Test {
 protected:
  ReCalKvModel() {
    calibration_.model = model_.get();
    calibration_.samples = &samples_;
  }
  std::string Calibrate(const std::string& spec) {
    const MethodData data =
        CalibrateMethod(spec, DType::kF32, calibration_, {"texts", "concat", 2, 50, 50, 42});
    ++num_files_;
    const std::string path = files_.File("recalkv" + std::to_string(num_files_));
    SaveMethodData(data, path);
    return path;
  }
  // Mean loss of the samples with the weights of that file.
  double LossWith(const std::string& path) const {
    KvOptions options;
    options.spec = "recalkv:from=" + path;
    const auto replaced = ModelWithWeightsOf(options, *model_, 1);
    return Loss(*replaced);
  }
  double Loss(const Model& model) const {
    Profile<double> profile(model, 1);
    double sum = 0;
    for (const auto& sample : samples_.tokens) {
      std::vector<int64_t> positions(sample.size());
      std::iota(positions.begin(), positions.end(), int64_t{0});
      sum += profile.Forward(sample, positions, nullptr);
    }
    return sum;
  }

  const TinyModel tiny_;
  const TinyFolder folder_{tiny_};
  const std::shared_ptr<const Model> model_ = folder_.Load();
  const Samples samples_ = RandomSamples(tiny_.vocab, {50, 40}, 3);
  CalibrationContext calibration_;
  TempFolder files_;
  int num_files_ = 0;
};

TEST_F(ReCalKvModel, FullRanksChangeNothingAndFewerCostMore) {
  const double exact = Loss(*model_);
  EXPECT_NEAR(LossWith(Calibrate("recalkv:keep=1+step=4")), exact, 1e-4);
  const double half = std::abs(LossWith(Calibrate("recalkv:keep=0.75+step=4")) - exact);
  const double eighth = std::abs(LossWith(Calibrate("recalkv:keep=0.125+step=4")) - exact);
  EXPECT_GT(half, 0);
  EXPECT_GT(eighth, half);
}

// Keys and values of the replaced model lie in as many dimensions as are counted.
TEST_F(ReCalKvModel, BytesAreThoseOfTheLatents) {
  const std::string path = Calibrate("recalkv:keep=0.5+step=4+heads=1");
  const UniformKvGeometry geometry = UniformOf(model_->kv_geometry());
  MethodDriver driver("recalkv:from=" + path, geometry);
  driver.Append(10);
  const MethodData data = LoadMethodData(path);
  int64_t all = 0;
  for (int64_t layer = 0; layer < geometry.num_layers; ++layer) {
    const auto keys = static_cast<int64_t>(data.tensors.at("k_ranks").As<float>()[layer]);
    const auto values = static_cast<int64_t>(data.tensors.at("v_ranks").As<float>()[layer]);
    EXPECT_EQ(driver.store().LayerStats(driver.seq(), layer).bytes, 10 * (keys + values) * 2);
    all += keys + values;
  }
  EXPECT_NEAR(static_cast<double>(all),
              0.5 * 2 * static_cast<double>(geometry.num_layers * geometry.kv_dim()), 12);
}

// Latents of many bits read as they are; of few they cost more. Of rows that are not of low rank,
// as the driver's, the reading lies in the span of the bases.
TEST_F(ReCalKvModel, LatentsMayBeQuantised) {
  const std::string path = Calibrate("recalkv:keep=0.5+step=4+heads=1");
  const UniformKvGeometry geometry = UniformOf(model_->kv_geometry());
  const MethodData data = LoadMethodData(path);
  const auto error = [&](const std::string& bits, bool keys) {
    MethodDriver driver("recalkv:bits=" + bits + "+from=" + path, geometry);
    driver.Append(5);
    const auto given = driver.Given(5);
    const auto stored = keys ? driver.Stored().first : driver.Stored().second;
    const Tensor& basis = data.tensors.at(keys ? "k_basis.0" : "v_basis.0");
    const auto width = static_cast<size_t>(geometry.kv_dim());
    double squares = 0;
    for (size_t t = 0; t < 5; ++t) {
      std::vector<double> projected(width);
      for (int64_t latent = 0; latent < basis.shape()[0]; ++latent) {
        const float* vector = basis.As<float>() + latent * geometry.kv_dim();
        double z = 0;
        for (size_t i = 0; i < width; ++i) {
          z += double{vector[i]} * double{(keys ? given.k : given.v)[t * width + i]};
        }
        for (size_t i = 0; i < width; ++i) projected[i] += z * double{vector[i]};
      }
      for (size_t i = 0; i < width; ++i) {
        squares += std::pow(double{stored[t * width + i]} - projected[i], 2);
      }
    }
    return std::sqrt(squares / static_cast<double>(5 * width));
  };
  for (const bool keys : {true, false}) {
    EXPECT_LT(error("8", keys), 0.02);
    EXPECT_LT(error("8", keys), 0.5 * error("4", keys));
    EXPECT_LT(error("4", keys), 0.5 * error("2", keys));
  }
  // Each group of latents of a token: whole bytes of codes and a range of 4.
  MethodDriver driver("recalkv:bits=3+from=" + path, geometry);
  driver.Append(10);
  const auto keys = static_cast<int64_t>(data.tensors.at("k_ranks").As<float>()[0]);
  const auto values = static_cast<int64_t>(data.tensors.at("v_ranks").As<float>()[0]);
  const int64_t of_head = keys / geometry.num_kv_heads;
  EXPECT_EQ(driver.BlockBytes(),
            10 * (geometry.num_kv_heads * ((of_head * 3 + 7) / 8 + 4) + (values * 3 + 7) / 8 + 4));
}

TEST(ReCalKv, ABiasForbidsQuantisedLatents) {
  TinyModel tiny;
  tiny.architecture = "Qwen2ForCausalLM";
  tiny.qkv_bias = true;
  const TinyFolder folder(tiny);
  const std::shared_ptr<const Model> model = folder.Load();
  const Samples samples = RandomSamples(tiny.vocab, {50}, 3);
  CalibrationContext calibration;
  calibration.model = model.get();
  calibration.samples = &samples;
  const TempFolder files;
  const std::string path = files.File("recalkv");
  SaveMethodData(CalibrateMethod("recalkv:step=4", DType::kF32, calibration,
                                 {"texts", "concat", 1, 50, 50, 42}),
                 path);
  const UniformKvGeometry geometry = UniformOf(model->kv_geometry());
  MethodDriver driver("recalkv:from=" + path, geometry);
  ExpectError<InvalidInput>([&] { MethodDriver refused("recalkv:bits=4+from=" + path, geometry); },
                            {"--kv", "bits=4", "a bias or norm", "expected 16"});
}

TEST_F(ReCalKvModel, NamesWhatIsWrong) {
  ExpectRefused("recalkv", "no weights, expected from=FILE (made by pmkvq calibrate --kv recalkv");
  ExpectError<InvalidInput>([&] { Calibrate("recalkv:keep=0"); }, {"--kv", "keep=0, expected"});
}

}  // namespace
}  // namespace pmkvq
