// KVarN against a scalar reading in double precision, with the Hadamard matrix written out.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>

#include "support/method_chunks.h"
#include "support/method_rule.h"

namespace pmkvq {
namespace {

using testing_support::BytesAfter;
using testing_support::ExpectChunksDoNotMatter;
using testing_support::ExpectRefused;
using testing_support::MethodDriver;

constexpr size_t kTokens = 128;
constexpr size_t kDim = 64;
using Tile = std::vector<double>;  // [kTokens, kDim]

Tile Transformed(const Tile& x) {
  Tile y(x.size());
  for (size_t t = 0; t < kTokens; ++t) {
    for (size_t i = 0; i < kDim; ++i) {
      for (size_t j = 0; j < kDim; ++j) {
        y[t * kDim + i] += x[t * kDim + j] * (std::popcount(i & j) % 2 == 0 ? 1 : -1) / 8.0;
      }
    }
  }
  return y;
}

// The deviation of x[first + i * stride].
double Deviation(const Tile& x, size_t first, size_t stride, size_t count) {
  double sum = 0;
  double squares = 0;
  for (size_t i = 0; i < count; ++i) {
    sum += x[first + i * stride];
    squares += x[first + i * stride] * x[first + i * stride];
  }
  const auto n = static_cast<double>(count);
  return std::sqrt((squares - sum * sum / n) / (n - 1));
}
double TokenDeviation(const Tile& x, size_t t) { return Deviation(x, t * kDim, 1, kDim); }
double ChannelDeviation(const Tile& x, size_t c) { return Deviation(x, c, kDim, kTokens); }

double Imbalance(const Tile& x) {
  std::vector<double> tokens;
  std::vector<double> channels;
  for (size_t t = 0; t < kTokens; ++t) tokens.push_back(TokenDeviation(x, t));
  for (size_t c = 0; c < kDim; ++c) channels.push_back(ChannelDeviation(x, c));
  const auto spread = [](const std::vector<double>& all) {
    return *std::max_element(all.begin(), all.end()) / *std::min_element(all.begin(), all.end());
  };
  return spread(tokens) + spread(channels);
}

// A scale times a deviation, within the bounds of the published code.
void Multiply(double& scale, double deviation) {
  scale *= std::clamp(deviation, 1e-3, 1e3);
  scale = std::clamp(scale, std::exp(-0.3), std::exp(10.0));
}

// What a tile reads back as with f32 metadata. Keys: a scale for each token, ranges for channels;
// values: the other way round.
Tile Expected(const Tile& given, bool keys, int bits, int rounds) {
  const Tile rotated = Transformed(given);
  Tile x = rotated;
  std::vector<double> tokens(kTokens, 1.0);
  std::vector<double> channels(kDim, 1.0);
  std::vector<double> best = keys ? tokens : channels;
  double least = Imbalance(x);
  const auto divide_tokens = [&] {
    for (size_t t = 0; t < kTokens; ++t) Multiply(tokens[t], TokenDeviation(x, t));
  };
  const auto divide_channels = [&] {
    for (size_t c = 0; c < kDim; ++c) Multiply(channels[c], ChannelDeviation(x, c));
  };
  const auto apply = [&] {
    for (size_t i = 0; i < x.size(); ++i) {
      x[i] = rotated[i] / tokens[i / kDim] / channels[i % kDim];
    }
  };
  for (int round = 0; round < rounds; ++round) {
    for (const bool first : {true, false}) {  // Columns first: tokens of keys, channels of values.
      if (first == keys) {
        divide_tokens();
      } else {
        divide_channels();
      }
      apply();
    }
    if (Imbalance(x) > least) continue;
    least = Imbalance(x);
    best = keys ? tokens : channels;
  }
  Tile read = rotated;
  for (size_t row = 0; row < (keys ? kDim : kTokens); ++row) {
    const size_t count = keys ? kTokens : kDim;
    const auto at = [&](size_t i) -> double& {
      return keys ? read[i * kDim + row] : read[row * kDim + i];
    };
    double low = INFINITY;
    double high = -INFINITY;
    for (size_t i = 0; i < count; ++i) {
      low = std::min(low, at(i) / best[i]);
      high = std::max(high, at(i) / best[i]);
    }
    const double step = (high - low) / ((1 << bits) - 1);
    for (size_t i = 0; i < count; ++i) {
      at(i) = (std::nearbyint((at(i) / best[i] - low) / step) * step + low) * best[i];
    }
  }
  return Transformed(read);
}

TEST(KvarN, TilesFollowTheRule) {
  for (const int rounds : {0, 1, 16}) {
    SCOPED_TRACE(rounds);
    MethodDriver driver("kvarn:sink=5+rounds=" + std::to_string(rounds), {1, 4, 2, 64},
                        DType::kF32);
    driver.Append(200);
    const auto given = testing_support::MakeRows(driver.geometry(), 3, 0, 0, 200);
    for (int64_t head = 0; head < 2; ++head) {
      const auto index = [&](size_t t, size_t c) {
        return (t * 2 + static_cast<size_t>(head)) * kDim + c;
      };
      Tile keys;
      Tile values;
      for (size_t t = 0; t < kTokens; ++t) {  // Behind the sink.
        for (size_t c = 0; c < kDim; ++c) {
          keys.push_back(double{given.k[index(t + 5, c)]});
          values.push_back(double{given.v[index(t + 5, c)]});
        }
      }
      keys = Expected(keys, true, 4, rounds);
      values = Expected(values, false, 2, rounds);
      int64_t odd = 0;
      for (size_t t = 0; t < 200; ++t) {
        const float* key = driver.block().Key(static_cast<int64_t>(t), head);
        const float* value = driver.block().Value(static_cast<int64_t>(t), head);
        for (size_t c = 0; c < kDim; ++c) {
          if (t < 5 || t >= 5 + kTokens) {  // The sink and the open tile.
            ASSERT_EQ(key[c], given.k[index(t, c)]) << t;
            ASSERT_EQ(value[c], given.v[index(t, c)]) << t;
            continue;
          }
          odd += std::abs(double{key[c]} - keys[(t - 5) * kDim + c]) > 1e-4 ? 1 : 0;
          odd += std::abs(double{value[c]} - values[(t - 5) * kDim + c]) > 1e-4 ? 1 : 0;
        }
      }
      // A code at a rounding tie moves the 64 values of its token.
      EXPECT_LE(odd, 64);
    }
  }
}

TEST(KvarN, ChunksAndTruncationsDoNotMatter) {
  ExpectChunksDoNotMatter("kvarn", 140);
  ExpectChunksDoNotMatter("kvarn:k=2+sink=30+tile=64", 200);
}

TEST(KvarN, TokensAndChannelsOfAnySizeReadAlikeWell) {
  // One token a thousand times as large as the others: the others lose nothing by it.
  const auto error_of_others = [](float factor) {
    KvOptions options;
    options.spec = "kvarn:k=4+v=4+sink=0";
    options.kv_dtype = DType::kF32;
    const UniformKvGeometry geometry{1, 1, 1, 64};
    const auto store = MakeKvStore(options, {geometry, 1, 4096, 1});
    const SequenceId seq = *store->Open();
    auto rows = testing_support::MakeRows(geometry, 7, 0, 0, 128);
    for (size_t c = 0; c < 64; ++c) rows.k[40 * 64 + c] *= factor;
    std::vector<float> out(rows.q.size());
    EXPECT_EQ(store->Reserve(seq, 128), ReserveResult::kReserved);
    store->BeginForward({{seq, 128}});
    store->AppendAndAttend(0, rows.q.data(), rows.k.data(), rows.v.data(), out.data());
    store->EndForward();
    const SimulatedBlock& block = dynamic_cast<SimulatedKvCache&>(*store).Block(seq, 0);
    double squares = 0;
    for (size_t t = 0; t < 128; ++t) {
      for (size_t c = 0; c < 64 && t != 40; ++c) {
        squares += std::pow(
            double{block.Key(static_cast<int64_t>(t), 0)[c]} - double{rows.k[t * 64 + c]}, 2);
      }
    }
    return squares;
  };
  EXPECT_LT(error_of_others(1000), 1.2 * error_of_others(1));
}

TEST(KvarN, BytesByHand) {
  // A token at full precision: 512 bytes. A tile of keys of a head: 64 channels of 128 codes of 4
  // bits and a pair of 4 bytes, 128 scales of 2; of values: 128 tokens of 64 codes of 2 bits and a
  // pair, 64 scales.
  EXPECT_EQ(BytesAfter("kvarn", 255), 255 * 512);
  EXPECT_EQ(BytesAfter("kvarn", 300), 2 * (64 * 68 + 256 + 128 * 20 + 128) + 172 * 512);
  EXPECT_EQ(BytesAfter("kvarn:k=2+v=8+sink=0+tile=64", 100),
            2 * (64 * 20 + 128 + 64 * 68 + 128) + 36 * 512);
}

TEST(KvarN, NamesWhatIsWrong) {
  ExpectRefused("kvarn:k=7", "k=7, expected one of 8, 6, 5, 4, 3, 2");
}

}  // namespace
}  // namespace pmkvq
