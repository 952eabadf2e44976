// SVDq against golden data; prompts in pieces, bytes and its calibration.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "pmkvq/base/error.h"
#include "pmkvq/model/profile.h"
#include "support/calibration_support.h"
#include "support/expect_error.h"
#include "support/method_golden.h"
#include "support/method_rule.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;
using testing_support::ExpectGolden;
using testing_support::ExpectRefused;
using testing_support::GoldenCache;
using testing_support::MethodDriver;
using testing_support::MethodGolden;
using testing_support::RandomSamples;
using testing_support::TempFolder;
using testing_support::TinyFolder;
using testing_support::TinyModel;

constexpr UniformKvGeometry kGeometry{1, 1, 1, 64};
constexpr int64_t kPrompt = 96;
constexpr int64_t kAll = 160;

// The golden's keys, the prompt's in front [160, 64], one head.
struct Keys {
  Keys() {
    const MethodGolden golden("svdq");
    given = golden.Floats("prompt_keys");
    read = golden.Floats("prompt_read");
    const std::vector<float> more = golden.Floats("more_keys");
    const std::vector<float> more_read = golden.Floats("more_read");
    given.insert(given.end(), more.begin(), more.end());
    read.insert(read.end(), more_read.begin(), more_read.end());
  }
  std::vector<float> given;
  std::vector<float> read;
};

TEST(Svdq, GoldenHoweverTheTextIsCut) {
  const Keys keys;
  for (const std::string rope : {"after", "before"}) {
    for (const std::vector<int64_t>& chunks :
         {std::vector<int64_t>{96, 64}, {50, 46, 1, 31, 32}, {96, 1, 1, 62}}) {
      GoldenCache cache("svdq:eta1=0+rope=" + rope, kGeometry, keys.given, keys.given);
      int64_t stored = 0;
      for (const int64_t chunk : chunks) {
        stored += chunk;
        cache.Append(chunk, stored == kPrompt);
        if (stored < kPrompt) {
          const std::vector<float> before = cache.Keys();
          EXPECT_TRUE(std::equal(before.begin(), before.end(), keys.given.begin()));
        }
      }
      ASSERT_EQ(stored, kAll);
      ExpectGolden(cache.Keys(), keys.read);
      EXPECT_EQ(cache.Values(), keys.given) << "values stay";
    }
  }
}

// Heads side by side are one vector: two heads of 32 read as one of 64.
TEST(Svdq, AllHeadsShareABasis) {
  const Keys keys;
  std::vector<float> given;
  std::vector<float> read;
  for (size_t head = 0; head < 2; ++head) {
    for (size_t t = 0; t < kAll; ++t) {
      for (size_t i = 0; i < 32; ++i) {
        given.push_back(keys.given[t * 64 + head * 32 + i]);
        read.push_back(keys.read[t * 64 + head * 32 + i]);
      }
    }
  }
  GoldenCache cache("svdq:eta1=0", {1, 2, 2, 32}, given, given);
  cache.Append(kPrompt, true);
  cache.Append(kAll - kPrompt);
  ExpectGolden(cache.Keys(), read);
}

TEST(Svdq, OneBitLevelsMoveInwards) {
  const Keys keys;
  const auto error = [&](const std::string& spec) {
    GoldenCache cache(spec, kGeometry, keys.given, keys.given);
    cache.Append(kPrompt, true);
    double squares = 0;
    const std::vector<float> read = cache.Keys();
    for (size_t i = 0; i < read.size(); ++i) {
      squares += std::pow(double{read[i]} - double{keys.given[i]}, 2);
    }
    return squares;
  };
  EXPECT_LT(error("svdq"), error("svdq:eta1=0"));
  EXPECT_LT(error("svdq:widths=88888888"), 0.1 * error("svdq:widths=44444444"));
}

TEST(Svdq, BytesFollowWhatIsHeld) {
  const Keys keys;
  GoldenCache cache("svdq", kGeometry, keys.given, keys.given, DType::kF16);
  const auto bytes = [&] { return cache.store().LayerStats(cache.seq(), 0).bytes; };
  cache.Append(50);
  EXPECT_EQ(bytes(), 50 * 2 * 128);
  cache.Append(46, true);
  // 40 directions of 64 have bits, 16 bits a group of eight channels: 128 bits a token. The basis:
  // 40 vectors and the mean, of 64 values of 2 bytes; 40 ranges of 4 bytes.
  const int64_t basis = 41 * 128;
  EXPECT_EQ(bytes(), 96 * (16 + 128) + 40 * 4 + basis);
  cache.Append(31);
  EXPECT_EQ(bytes(), 96 * (16 + 128) + 40 * 4 + basis + 31 * 256);
  cache.Append(1);
  EXPECT_EQ(bytes(), 128 * (16 + 128) + 2 * 40 * 4 + basis);
  // The whole prompt at full precision, and the basis beside it, are what it may take on the way.
  EXPECT_LE(cache.store().SequenceStats(cache.seq()).peak_bytes,
            cache.store().SequenceStats(cache.seq()).budget_bytes);
  cache.store().Truncate(cache.seq(), 100);
  EXPECT_EQ(bytes(), 100 * (16 + 128) + 2 * 40 * 4 + basis);
}

// A prompt of 11 tokens has ten directions: others can be neither found nor stored.
TEST(Svdq, AShortPromptGivesAShortBasis) {
  const Keys keys;
  GoldenCache cache("svdq:widths=88888888", kGeometry, keys.given, keys.given, DType::kF16);
  cache.Append(11, true);
  EXPECT_EQ(cache.store().LayerStats(cache.seq(), 0).bytes, 11 * (10 + 128) + 10 * 4 + 11 * 128);
}

TEST(Svdq, NamesWhatIsWrong) {
  ExpectRefused("svdq:widths=84281000", "widths=84281000, expected eight digits from 8 to 0, none");
  ExpectRefused("svdq:widths=842", "widths=842, expected a whole number");
  ExpectRefused("svdq:basis=text", "basis=text, expected one of prompt");
}

TEST(Svdq, CalibratedBasesDiagonaliseTheKeys) {
  const TinyModel tiny;
  const TinyFolder folder(tiny);
  const std::shared_ptr<const Model> model = folder.Load();
  const Samples samples = RandomSamples(tiny.vocab, {60, 50}, 3);
  CalibrationContext calibration;
  calibration.model = model.get();
  calibration.samples = &samples;
  const UniformKvGeometry geometry = UniformOf(model->kv_geometry());
  const auto width = static_cast<size_t>(geometry.kv_dim());
  const TempFolder files;
  for (const bool before : {false, true}) {
    const MethodData data = CalibrateMethod(before ? "svdq:rope=before" : "svdq", DType::kF16,
                                            calibration, {"texts", "concat", 2, 60, 60, 42});
    const float* mean = data.tensors.at("mean.1").As<float>();
    const float* basis = data.tensors.at("basis.1").As<float>();
    // Latents of all keys: means of 0, no correlation, falling variance.
    std::vector<double> sums(width);
    std::vector<double> products(width * width);
    Profile<double> profile(*model, 1);
    for (const auto& sample : samples.tokens) {
      std::vector<int64_t> positions(sample.size());
      std::iota(positions.begin(), positions.end(), int64_t{0});
      profile.Forward(sample, positions, [&](const BlockStates<double>& states) {
        if (states.layer != 1) return;
        std::vector<double> keys(states.k, states.k + sample.size() * width);
        if (before) {
          ApplyRopeGrad(model->rope(1), positions.data(), states.num_tokens, geometry.num_kv_heads,
                        keys.data(), 1);
        }
        for (size_t t = 0; t < sample.size(); ++t) {
          std::vector<double> latent(width);
          for (size_t i = 0; i < width; ++i) {
            for (size_t j = 0; j < width; ++j) {
              latent[i] += (keys[t * width + j] - double{mean[j]}) * double{basis[i * width + j]};
            }
            sums[i] += latent[i];
          }
          for (size_t i = 0; i < width * width; ++i) {
            products[i] += latent[i / width] * latent[i % width];
          }
        }
      });
    }
    const double largest = products[0];
    for (size_t i = 0; i < width * width; ++i) {
      if (i % (width + 1) != 0) {
        EXPECT_NEAR(products[i], 0, 1e-4 * largest) << i;
      } else if (i > 0) {
        EXPECT_LE(products[i], products[i - width - 1] + 1e-4 * largest);
      }
      EXPECT_NEAR(sums[i / width], 0, 1e-3);
    }

    SaveMethodData(data, files.File("svdq"));
    const std::string spec =
        std::string(before ? "svdq:rope=before+from=" : "svdq:from=") + files.File("svdq");
    MethodDriver driver(spec, geometry);
    driver.Append(70);  // Two groups of 32: a basis of weights counts nothing.
    const int64_t stored = static_cast<int64_t>(width) * 5 / 8;
    EXPECT_EQ(driver.BlockBytes(), 64 * static_cast<int64_t>(width) * 2 / 8 + 2 * stored * 4 +
                                       (2 * 70 - 64) * static_cast<int64_t>(width) * 2);
    MethodDriver pieces(spec, geometry);
    for (const int64_t chunk : {1, 40, 29}) pieces.Append(chunk);
    EXPECT_EQ(pieces.Stored(), driver.Stored());
    ExpectError<InvalidInput>(
        [&] {
          MethodDriver refused(
              std::string(before ? "svdq:from=" : "svdq:rope=before+from=") + files.File("svdq"),
              geometry);
        },
        {files.File("svdq"), "made with rope="});
  }
}

}  // namespace
}  // namespace pmkvq
