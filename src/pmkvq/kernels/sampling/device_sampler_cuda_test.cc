// Tokens drawn on CUDA against ref::DrawToken and against sums in long double. A token has an
// interval of uniform numbers; the device's contains the number, or ends within 1e-13 of it. Where
// the host draws another token, the number is at the end of that one's interval, too, within what
// its V roundings make: device_sampler.h.
#include "pmkvq/kernels/sampling/device_sampler.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "pmkvq/kernels/sampling/batch_sampler.h"
#include "pmkvq/kernels/sampling/candidates.h"
#include "pmkvq/kernels/sampling/sampling.h"
#include "pmkvq/tensor/device/captured_work.h"
#include "support/gpu_test.h"

namespace pmkvq {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr long double kNear = 1e-13L;

SamplingParams ParamsOf(const DeviceDraw& draw) {
  return {draw.temperature, draw.top_k, draw.top_p, draw.min_p};
}

// A row's tokens with their weights, in the order in which a draw adds them up.
class Distribution {
 public:
  Distribution(const DeviceDraw& draw, const float* logits, int64_t vocab_size, float max)
      : draw_(draw) {
    for (int32_t id = 0; id < vocab_size; ++id) {
      const double weight = internal::WeightOf(logits[id], max, draw.temperature);
      if (weight > 0.0) tokens_.push_back({weight, id});
    }
    if (draw.top_k == 0 && draw.top_p == 1.0) return;
    std::stable_sort(tokens_.begin(), tokens_.end(),
                     [&](const auto& a, const auto& b) { return logits[a.id] > logits[b.id]; });
    if (draw.top_k > 0 && draw.top_k < std::ssize(tokens_)) {
      tokens_.resize(static_cast<size_t>(draw.top_k));
    }
  }

  // Whether the draw's number lies in the token's interval or within `near` of it, relatively; the
  // bounds of top-p and min-p may be off by as much.
  bool Has(int32_t token, long double near) const {
    for (const long double off : {0.0L, -near, near}) {
      if (HasAt(token, near, off)) return true;
    }
    return false;
  }

 private:
  bool HasAt(int32_t token, long double near, long double off) const {
    long double all = 0;
    for (const auto& t : tokens_) all += t.weight;
    const long double wanted_mass = all * draw_.top_p * (1 + off);
    long double mass = 0;  // Of what the filters keep.
    size_t end = 0;
    long double prefix = 0;
    while (end < tokens_.size()) {
      const long double weight = tokens_[end++].weight;
      prefix += weight;
      if (weight >= draw_.min_p * (1 + off)) mass += weight;
      if (draw_.top_p < 1.0 && prefix >= wanted_mass) break;
    }
    long double before = 0;
    for (size_t i = 0; i < end; ++i) {
      const long double weight = tokens_[i].weight;
      if (weight < draw_.min_p * (1 + off)) continue;
      if (tokens_[i].id == token) {
        const long double wanted = mass * draw_.uniform;
        return before <= wanted + near * mass && before + weight >= wanted - near * mass;
      }
      before += weight;
    }
    return false;
  }

  DeviceDraw draw_;
  std::vector<internal::Candidate> tokens_;
};

enum class Kind { kNormal, kWhole, kEqual, kMasked, kZeros, kFar, kCrowded, kBroken };
constexpr Kind kKinds[] = {Kind::kNormal, Kind::kWhole, Kind::kEqual,   Kind::kMasked,
                           Kind::kZeros,  Kind::kFar,   Kind::kCrowded, Kind::kBroken};

class RandomRows {
 public:
  RandomRows(int64_t vocab_size, uint64_t seed) : vocab_size_(vocab_size), random_(seed) {}

  std::vector<float> Logits(Kind kind) {
    std::vector<float> logits(static_cast<size_t>(vocab_size_));
    for (float& x : logits) x = One(kind);
    if (kind == Kind::kMasked) logits[Below(logits.size())] = 1.0f;
    if (kind == Kind::kBroken) Break(logits);
    return logits;
  }

  DeviceDraw Draw() {
    constexpr double kTemperatures[] = {0.0, 0.6, 1.0, 1.0, 2.5, 0.01, 40.0};
    constexpr double kTopP[] = {0.95, 0.9, 0.5, 0.999, 1e-9, 0.8};
    constexpr double kMinP[] = {0.05, 1.0, 1e-3, 0.5};
    DeviceDraw draw;
    draw.active = Below(12) == 0 ? 0 : 1;
    draw.temperature = kTemperatures[Below(std::size(kTemperatures))];
    const size_t filters = Below(8);
    if ((filters & 1) != 0) {
      const auto most = static_cast<size_t>(Below(2) == 0 ? vocab_size_ : int64_t{50});
      draw.top_k = Below(4) == 0 ? vocab_size_ : static_cast<int64_t>(1 + Below(most));
    }
    if ((filters & 2) != 0) draw.top_p = kTopP[Below(std::size(kTopP))];
    if ((filters & 4) != 0) draw.min_p = kMinP[Below(std::size(kMinP))];
    const size_t place = Below(16);
    draw.uniform = place == 0 ? 0.0 : place == 1 ? 1.0 - 0x1p-53 : Uniform();
    return draw;
  }

  size_t Below(size_t bound) { return static_cast<size_t>(random_() % bound); }
  double Uniform() { return static_cast<double>(random_() >> 11) * 0x1p-53; }

 private:
  float One(Kind kind) {
    const float x = normal_(random_);
    switch (kind) {
      case Kind::kWhole:
        return std::round(x);
      case Kind::kEqual:
        return 0.5f;
      case Kind::kMasked:
        return Below(3) == 0 ? x : -kInfinity;
      case Kind::kZeros:
        return Below(5) == 0 ? -0.0f : Below(2) == 0 ? 0.0f : -1.0f;
      case Kind::kFar:
        return 100.0f * x;
      case Kind::kCrowded:  // A few, and all others within a hundredth, far below.
        return Below(50) == 0 ? x : 0.01f * x - 40.0f;
      default:
        return x;
    }
  }

  void Break(std::vector<float>& logits) {
    constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
    const size_t place = Below(logits.size());
    switch (Below(5)) {
      case 0:
        logits[place] = kNan;
        break;
      case 1:
        logits[place] = -kNan;
        break;
      case 2:
        logits[place] = kInfinity;
        break;
      case 3:
        std::fill(logits.begin(), logits.end(), -kInfinity);
        break;
      default:
        logits[place] = -kInfinity;
    }
  }

  int64_t vocab_size_;
  std::mt19937_64 random_;
  std::normal_distribution<float> normal_{0.0f, 3.0f};
};

constexpr DeviceDrawn kUnwritten{-7, -7};

class DeviceSamplerTestBase : public GpuTest {
 protected:
  template <class T>
  std::unique_ptr<Buffer> Upload(const std::vector<T>& values) {
    auto buffer = std::make_unique<Buffer>(kDevice, values.size() * sizeof(T));
    CopyToDevice(stream(), buffer->data(), values.data(), buffer->num_bytes());
    stream().Synchronize();
    return buffer;
  }

  std::vector<DeviceDrawn> Draw(DeviceSampler& sampler, const std::vector<float>& logits,
                                const std::vector<DeviceDraw>& draws, bool captured = false) {
    const auto logits_on_device = Upload(logits);
    const auto draws_on_device = Upload(draws);
    const auto out = Upload(std::vector<DeviceDrawn>(draws.size(), kUnwritten));
    const auto launch = [&] {
      sampler.Launch(reinterpret_cast<const float*>(logits_on_device->data()), std::ssize(draws),
                     reinterpret_cast<const DeviceDraw*>(draws_on_device->data()),
                     reinterpret_cast<DeviceDrawn*>(out->data()), stream());
    };
    if (captured) {
      CapturedWork work(stream(), launch);
      work.Launch(stream());
      stream().Synchronize();
    } else {
      launch();
    }
    std::vector<DeviceDrawn> drawn(draws.size());
    CopyToHost(stream(), drawn.data(), out->data(), drawn.size() * sizeof(DeviceDrawn));
    std::vector<float> after(logits.size());
    CopyToHost(stream(), after.data(), logits_on_device->data(), after.size() * sizeof(float));
    stream().Synchronize();
    EXPECT_EQ(std::memcmp(after.data(), logits.data(), after.size() * sizeof(float)), 0)
        << "logits were changed";
    return drawn;
  }

  void CheckRow(const DeviceDraw& draw, const float* logits, int64_t vocab_size,
                const DeviceDrawn& drawn) {
    SCOPED_TRACE(testing::Message()
                 << "temperature " << draw.temperature << ", top-k " << draw.top_k << ", top-p "
                 << draw.top_p << ", min-p " << draw.min_p << ", uniform " << draw.uniform);
    if (draw.active == 0) {
      EXPECT_EQ(drawn.token, kUnwritten.token);
      EXPECT_EQ(drawn.outcome, kUnwritten.outcome);
      return;
    }
    const bool has_nan = std::any_of(logits, logits + vocab_size, [](float x) { return x != x; });
    const int32_t best = ArgMax(logits, vocab_size);
    if (has_nan || !std::isfinite(logits[best])) {
      EXPECT_EQ(drawn.outcome, static_cast<int32_t>(SamplingOutcome::kNotFinite));
      EXPECT_EQ(drawn.token, 0);
      return;
    }
    EXPECT_EQ(drawn.outcome, static_cast<int32_t>(SamplingOutcome::kDrawn));
    if (draw.temperature == 0.0) {
      EXPECT_EQ(drawn.token, best);
      return;
    }
    const Distribution distribution(draw, logits, vocab_size, logits[best]);
    EXPECT_TRUE(distribution.Has(drawn.token, kNear)) << "token " << drawn.token;
    const int32_t expected =
        ref::DrawToken(ParamsOf(draw), logits, vocab_size, logits[best], draw.uniform);
    ++num_drawn_;
    if (drawn.token == expected) return;
    ++num_different_;
    EXPECT_TRUE(distribution.Has(expected, kNear + 0x1p-53L * static_cast<long double>(vocab_size)))
        << "found token " << drawn.token << ", expected " << expected;
  }

  // Rows of all kinds together.
  void Check(int64_t vocab_size, int64_t rounds, int64_t rows) {
    RandomRows random(vocab_size, static_cast<uint64_t>(vocab_size));
    DeviceSampler sampler(kDevice, vocab_size, rows);
    for (int64_t round = 0; round < rounds; ++round) {
      std::vector<float> logits;
      std::vector<DeviceDraw> draws;
      for (int64_t row = 0; row < rows; ++row) {
        const std::vector<float> one =
            random.Logits(kKinds[static_cast<size_t>(row + round) % std::size(kKinds)]);
        logits.insert(logits.end(), one.begin(), one.end());
        draws.push_back(random.Draw());
      }
      const std::vector<DeviceDrawn> drawn = Draw(sampler, logits, draws);
      for (size_t row = 0; row < draws.size(); ++row) {
        SCOPED_TRACE(testing::Message()
                     << "V " << vocab_size << ", round " << round << ", row " << row);
        CheckRow(draws[row], logits.data() + static_cast<int64_t>(row) * vocab_size, vocab_size,
                 drawn[row]);
      }
    }
    RecordProperty("drawn", std::to_string(num_drawn_));
    RecordProperty("other_than_the_host", std::to_string(num_different_));
  }

 private:
  int64_t num_drawn_ = 0;
  int64_t num_different_ = 0;
};

class DeviceSamplerSmallTest : public DeviceSamplerTestBase {};
class DeviceSamplerTest : public DeviceSamplerTestBase {};

TEST_F(DeviceSamplerSmallTest, DrawsTheHostsTokens) {
  Check(1, 1, 8);
  Check(7, 2, 24);
  Check(1000, 2, 24);
}

TEST_F(DeviceSamplerTest, DrawsTheHostsTokens) {
  Check(7, 20, 64);
  Check(1000, 20, 64);
  Check(8192, 4, 64);
  Check(8193, 4, 64);
  Check(151936, 3, 64);
  Check(262144, 1, 24);
}

// Also of tokens that are equally likely, where the host's sums are exact.
TEST_F(DeviceSamplerTest, NumbersOnABoundary) {
  constexpr int64_t kVocab = 1000;
  const std::vector<float> logits(kVocab, -3.0f);
  DeviceSampler sampler(kDevice, kVocab, 1);
  for (const double top_p : {1.0, 0.9, 0.5, 0.001}) {
    for (const int64_t top_k : {int64_t{0}, int64_t{7}, kVocab}) {
      for (const double uniform : {0.0, 0.25, 0.5, 0.5 - 0x1p-53, 0.999, 1.0 - 0x1p-53}) {
        const DeviceDraw draw{.temperature = 1.0,
                              .top_k = top_k,
                              .top_p = top_p,
                              .min_p = 0.0,
                              .uniform = uniform,
                              .active = 1};
        const int32_t expected =
            ref::DrawToken(ParamsOf(draw), logits.data(), kVocab, logits[0], uniform);
        const auto drawn = Draw(sampler, logits, {draw});
        EXPECT_EQ(drawn[0].token, expected) << top_p << ' ' << top_k << ' ' << uniform;
      }
    }
  }
}

// Alone, in a batch, at another place of it, again and captured.
TEST_F(DeviceSamplerTest, TokensDependOnTheRowAlone) {
  constexpr int64_t kVocab = 151936;
  constexpr size_t kRows = 64;
  RandomRows random(kVocab, 5);
  std::vector<std::vector<float>> rows;
  std::vector<float> logits;
  std::vector<DeviceDraw> draws;
  for (size_t row = 0; row < kRows; ++row) {
    rows.push_back(random.Logits(kKinds[row % std::size(kKinds)]));
    logits.insert(logits.end(), rows.back().begin(), rows.back().end());
    draws.push_back(random.Draw());
    draws.back().active = 1;
  }
  DeviceSampler sampler(kDevice, kVocab, kRows);
  const auto expect_equal = [](const DeviceDrawn& a, const DeviceDrawn& b) {
    EXPECT_EQ(a.token, b.token);
    EXPECT_EQ(a.outcome, b.outcome);
  };
  const auto all = Draw(sampler, logits, draws);
  for (int i = 0; i < 10; ++i) {
    const auto again = Draw(sampler, logits, draws, /*captured=*/i % 2 == 1);
    for (size_t row = 0; row < kRows; ++row) expect_equal(all[row], again[row]);
  }
  for (size_t row = 0; row < kRows; ++row) {
    SCOPED_TRACE(testing::Message() << "row " << row);
    expect_equal(Draw(sampler, rows[row], {draws[row]})[0], all[row]);
  }
  std::reverse(draws.begin(), draws.end());
  std::vector<float> reversed;
  for (size_t row = kRows; row > 0; --row) {
    reversed.insert(reversed.end(), rows[row - 1].begin(), rows[row - 1].end());
  }
  const auto turned = Draw(sampler, reversed, draws);
  for (size_t row = 0; row < kRows; ++row) expect_equal(turned[kRows - 1 - row], all[row]);
}

}  // namespace
}  // namespace pmkvq
