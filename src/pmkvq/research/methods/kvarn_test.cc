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

// Divides x[first + i * stride] by their standard deviation; returns it.
double Normalise(Tile& x, size_t first, size_t stride, size_t count) {
  double sum = 0;
  double squares = 0;
  for (size_t i = 0; i < count; ++i) {
    sum += x[first + i * stride];
    squares += x[first + i * stride] * x[first + i * stride];
  }
  const auto n = static_cast<double>(count);
  const double deviation = std::sqrt(squares / n - sum / n * (sum / n));
  for (size_t i = 0; i < count; ++i) x[first + i * stride] /= deviation;
  return deviation;
}

// What a tile reads back as with f32 metadata.
Tile Expected(const Tile& given, int bits, int rounds) {
  Tile x = Transformed(given);
  std::vector<double> rows(kTokens, 1.0);
  std::vector<double> columns(kDim, 1.0);
  for (int round = 0; round < rounds; ++round) {
    for (size_t t = 0; t < kTokens; ++t) rows[t] *= Normalise(x, t * kDim, 1, kDim);
    for (size_t c = 0; c < kDim; ++c) columns[c] *= Normalise(x, c, kDim, kTokens);
  }
  for (size_t t = 0; t < kTokens; ++t) {
    const auto begin = x.begin() + static_cast<std::ptrdiff_t>(t * kDim);
    const auto [low, high] = std::minmax_element(begin, begin + kDim);
    const double min = *low;
    const double step = (*high - *low) / ((1 << bits) - 1);
    for (size_t c = 0; c < kDim; ++c) {
      double& value = x[t * kDim + c];
      value = (std::nearbyint((value - min) / step) * step + min) * rows[t] * columns[c];
    }
  }
  return Transformed(x);
}

TEST(KvarN, TilesFollowTheRule) {
  for (const int bits : {2, 4}) {
    for (const int rounds : {1, 4}) {
      const std::string width = std::to_string(bits);
      MethodDriver driver("kvarn:k=" + width + "+v=" + width + "+rounds=" + std::to_string(rounds),
                          {1, 4, 2, 64}, DType::kF32);
      driver.Append(200);
      const auto given = testing_support::MakeRows(driver.geometry(), 3, 0, 0, 200);
      for (int64_t head = 0; head < 2; ++head) {
        Tile keys;
        Tile values;
        for (size_t t = 0; t < kTokens; ++t) {
          for (size_t c = 0; c < kDim; ++c) {
            keys.push_back(double{given.k[(t * 2 + static_cast<size_t>(head)) * kDim + c]});
            values.push_back(double{given.v[(t * 2 + static_cast<size_t>(head)) * kDim + c]});
          }
        }
        keys = Expected(keys, bits, rounds);
        values = Expected(values, bits, rounds);
        for (size_t t = 0; t < kTokens; ++t) {
          const float* key = std::as_const(driver).block().Key(static_cast<int64_t>(t), head);
          const float* value = std::as_const(driver).block().Value(static_cast<int64_t>(t), head);
          for (size_t c = 0; c < kDim; ++c) {
            ASSERT_NEAR(key[c], keys[t * kDim + c], 1e-4) << t << " " << c;
            ASSERT_NEAR(value[c], values[t * kDim + c], 1e-4) << t << " " << c;
          }
        }
        for (int64_t t = 128; t < 200; ++t) {  // The open tile.
          EXPECT_EQ(std::as_const(driver).block().Key(t, head)[5],
                    given.k[static_cast<size_t>((t * 2 + head) * 64 + 5)]);
        }
      }
    }
  }
}

TEST(KvarN, ChunksAndTruncationsDoNotMatter) {
  ExpectChunksDoNotMatter("kvarn", 180);
  ExpectChunksDoNotMatter("kvarn:k=4+tail=100", 200);
}

TEST(KvarN, TokensAndChannelsOfAnySizeReadAlikeWell) {
  // One token a thousand times as large as the others: the others lose nothing by it.
  const auto error_of_others = [](float factor) {
    KvOptions options;
    options.spec = "kvarn:k=4+v=4";
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
  // A token at full precision: 512 bytes. A row of 64 at 2 bits: codes 16, minimum, range and scale
  // 6; two heads, K and V. A tile besides: 64 * 2 bytes of column scales, of each head and side.
  EXPECT_EQ(BytesAfter("kvarn", 127), 127 * 512);
  EXPECT_EQ(BytesAfter("kvarn", 300), 256 * 4 * 22 + 2 * 4 * 128 + 44 * 512);
  EXPECT_EQ(BytesAfter("kvarn:k=8+v=4+tail=50", 180),
            128 * 2 * (64 + 6 + 32 + 6) + 4 * 128 + 52 * 512);
}

TEST(KvarN, NamesWhatIsWrong) {
  ExpectRefused("kvarn:k=7", "k=7, expected one of 8, 6, 5, 4, 3, 2");
}

}  // namespace
}  // namespace pmkvq
