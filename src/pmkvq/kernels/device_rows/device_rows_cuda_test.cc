// Each step of a forward pass on CUDA against plain arithmetic in double precision on the host.
#include "pmkvq/kernels/device_rows/device_rows.h"

#include <cmath>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "pmkvq/base/float16.h"
#include "pmkvq/kernels/linalg/hadamard.h"
#include "pmkvq/tensor/device/buffer.h"
#include "support/gpu_test.h"

namespace pmkvq {
namespace {

class DeviceRowsSmallTest : public GpuTest {
 protected:
  std::vector<float> Normal(int64_t count, float spread = 1.0f) {
    std::normal_distribution<float> normal(0.0f, spread);
    std::vector<float> values(static_cast<size_t>(count));
    for (float& value : values) value = normal(random_);
    return values;
  }
  template <class T>
  T* Upload(const std::vector<T>& values) {
    std::byte* const data = Take(values.size() * sizeof(T));
    CopyToDevice(stream(), data, values.data(), values.size() * sizeof(T));
    stream().Synchronize();
    return reinterpret_cast<T*>(data);
  }
  // Poisoned.
  std::byte* Take(size_t num_bytes) {
    buffers_.push_back(std::make_unique<Buffer>(kDevice, std::max<size_t>(num_bytes, 1)));
    FillOnDevice(stream(), buffers_.back()->data(), 0xff, num_bytes);
    return buffers_.back()->data();
  }
  float* TakeFloats(int64_t count) {
    return reinterpret_cast<float*>(Take(static_cast<size_t>(count) * sizeof(float)));
  }
  template <class T>
  std::vector<T> Download(const void* data, int64_t count) {
    std::vector<T> values(static_cast<size_t>(count));
    CopyToHost(stream(), values.data(), static_cast<const std::byte*>(data),
               values.size() * sizeof(T));
    stream().Synchronize();
    return values;
  }
  // The rows that an operand stands for.
  std::vector<double> Values(const ProductRows& rows, int64_t num_rows, int64_t width) {
    const int64_t count = rows.parts * rows.part_rows * width;
    std::vector<double> all;
    if (rows.type == DType::kF32) {
      for (const float value : Download<float>(rows.data, count)) all.push_back(value);
    } else if (rows.type == DType::kF16) {
      for (const F16 value : Download<F16>(rows.data, count)) all.push_back(ToFloat(value));
    } else {
      for (const BF16 value : Download<BF16>(rows.data, count)) all.push_back(ToFloat(value));
    }
    std::vector<double> sums(all.begin(), all.begin() + num_rows * width);
    for (int64_t i = 0; rows.parts == 2 && i < num_rows * width; ++i) {
      sums[static_cast<size_t>(i)] += all[static_cast<size_t>(rows.part_rows * width + i)];
    }
    return sums;
  }
  ProductRows TakeRows(DType type, int parts, int64_t part_rows, int64_t width) {
    return {Take(static_cast<size_t>(parts * part_rows * width) * SizeOf(type)), type, parts,
            part_rows};
  }
  // Relative to the largest value.
  static void ExpectNear(const std::vector<double>& got, const std::vector<double>& expected,
                         double tolerance) {
    ASSERT_EQ(got.size(), expected.size());
    double largest = 0.0;
    for (const double value : expected) largest = std::max(largest, std::abs(value));
    for (size_t i = 0; i < got.size(); ++i) {
      ASSERT_NEAR(got[i], expected[i], tolerance * largest) << i;
    }
  }
  static std::vector<double> Doubles(const std::vector<float>& values) {
    return {values.begin(), values.end()};
  }
  // Of one value: a part has 11 or 8 bits, the second one takes up the rest.
  static double ToleranceOf(const ProductRows& rows) {
    if (rows.type == DType::kF32) return 2e-6;
    const double part = rows.type == DType::kF16 ? 0x1p-11 : 0x1p-8;
    return (rows.parts == 1 ? part : part * part) + 2e-6;
  }

  std::mt19937 random_{7};

 private:
  std::vector<std::unique_ptr<Buffer>> buffers_;
};

struct OperandKind {
  DType type;
  int parts;
};
constexpr OperandKind kOperands[] = {
    {DType::kF32, 1}, {DType::kF16, 1}, {DType::kF16, 2}, {DType::kBF16, 1}, {DType::kBF16, 2}};

TEST_F(DeviceRowsSmallTest, TokensAreLookedUpInEveryType) {
  constexpr int64_t kWidth = 300;
  const std::vector<float> table = Normal(7 * kWidth);
  const std::vector<int32_t> tokens = {6, 0, 3, 3};
  const int32_t* const ids = Upload(tokens);
  for (const DType type : {DType::kF32, DType::kF16, DType::kBF16}) {
    std::vector<F16> halves;
    std::vector<BF16> brains;
    for (const float value : table) {
      halves.push_back(ToF16(value));
      brains.push_back(ToBF16(value));
    }
    const void* const data = type == DType::kF32   ? static_cast<const void*>(Upload(table))
                             : type == DType::kF16 ? static_cast<const void*>(Upload(halves))
                                                   : static_cast<const void*>(Upload(brains));
    float* const x = TakeFloats(4 * kWidth);
    EmbedRows(static_cast<const std::byte*>(data), type, ids, 4, kWidth, x, stream());
    const std::vector<float> got = Download<float>(x, 4 * kWidth);
    constexpr float kFactor = 33.9375f;
    EmbedRows(static_cast<const std::byte*>(data), type, ids, 4, kWidth, x, stream(), kFactor);
    const std::vector<float> scaled = Download<float>(x, 4 * kWidth);
    for (size_t i = 0; i < got.size(); ++i) {
      const size_t at = static_cast<size_t>(tokens[i / kWidth]) * kWidth + i % kWidth;
      const float expected = type == DType::kF32   ? table[at]
                             : type == DType::kF16 ? ToFloat(halves[at])
                                                   : ToFloat(brains[at]);
      ASSERT_EQ(got[i], expected);
      ASSERT_EQ(scaled[i], expected * kFactor);
    }
  }
}

TEST_F(DeviceRowsSmallTest, NormsAddFirstAndRoundToTheOperand) {
  constexpr int64_t kRows = 5;
  constexpr int64_t kPartRows = 8;
  constexpr int64_t kWidth = 777;
  constexpr double kEps = 1e-5;
  const std::vector<float> x = Normal(kRows * kWidth);
  const std::vector<float> sums = Normal(2 * kPartRows * kWidth);
  const std::vector<float> bias = Normal(kWidth);
  const std::vector<float> weight = Normal(kWidth);
  for (const OperandKind& kind : kOperands) {
    const ProductRows out = TakeRows(kind.type, kind.parts, kPartRows, kWidth);
    NormRows op;
    op.x = Upload(x);
    op.rows = kRows;
    op.width = kWidth;
    op.sums = {Upload(sums), 2, kPartRows};
    op.bias = Upload(bias);
    op.weight = Upload(weight);
    op.eps = static_cast<float>(kEps);
    op.out = out;
    AddAndNormRows(op, stream());
    std::vector<double> added;
    std::vector<double> expected;
    for (int64_t row = 0; row < kRows; ++row) {
      double square = 0.0;
      for (int64_t i = 0; i < kWidth; ++i) {
        const auto at = static_cast<size_t>(row * kWidth + i);
        added.push_back(double{x[at]} + sums[at] +
                        sums[at + static_cast<size_t>(kPartRows * kWidth)] +
                        bias[static_cast<size_t>(i)]);
        square += added.back() * added.back();
      }
      const double inverse = 1.0 / std::sqrt(square / kWidth + kEps);
      for (int64_t i = 0; i < kWidth; ++i) {
        expected.push_back(added[static_cast<size_t>(row * kWidth + i)] * inverse *
                           weight[static_cast<size_t>(i)]);
      }
    }
    ExpectNear(Doubles(Download<float>(op.x, kRows * kWidth)), added, 1e-6);
    ExpectNear(Values(out, kRows, kWidth), expected, ToleranceOf(out));
  }
}

TEST_F(DeviceRowsSmallTest, SumsGoThroughANormBeforeTheyAreAdded) {
  constexpr int64_t kRows = 5;
  constexpr int64_t kPartRows = 8;
  constexpr int64_t kWidth = 777;
  constexpr double kEps = 1e-5;
  const std::vector<float> x = Normal(kRows * kWidth);
  const std::vector<float> sums = Normal(2 * kPartRows * kWidth, 20.0f);
  const std::vector<float> bias = Normal(kWidth);
  const std::vector<float> sums_weight = Normal(kWidth);
  const std::vector<float> weight = Normal(kWidth);
  const auto norm = [&](const std::vector<double>& row, const std::vector<float>& weights) {
    double square = 0.0;
    for (const double value : row) square += value * value;
    std::vector<double> normed;
    for (size_t i = 0; i < row.size(); ++i) {
      normed.push_back(row[i] / std::sqrt(square / kWidth + kEps) * weights[i]);
    }
    return normed;
  };
  for (const bool has_bias : {true, false}) {
    NormRows op;
    op.x = Upload(x);
    op.rows = kRows;
    op.width = kWidth;
    op.sums = {Upload(sums), 2, kPartRows};
    op.bias = has_bias ? Upload(bias) : nullptr;
    op.sums_weight = Upload(sums_weight);
    op.weight = Upload(weight);
    op.eps = static_cast<float>(kEps);
    op.out = TakeRows(DType::kBF16, 2, kPartRows, kWidth);
    AddAndNormRows(op, stream());
    std::vector<double> added;
    std::vector<double> expected;
    for (int64_t row = 0; row < kRows; ++row) {
      std::vector<double> given;
      for (int64_t i = 0; i < kWidth; ++i) {
        const auto at = static_cast<size_t>(row * kWidth + i);
        given.push_back(double{sums[at]} + sums[at + static_cast<size_t>(kPartRows * kWidth)] +
                        (has_bias ? bias[static_cast<size_t>(i)] : 0.0f));
      }
      std::vector<double> own = norm(given, sums_weight);
      for (int64_t i = 0; i < kWidth; ++i) {
        own[static_cast<size_t>(i)] += x[static_cast<size_t>(row * kWidth + i)];
      }
      const std::vector<double> normed = norm(own, weight);
      added.insert(added.end(), own.begin(), own.end());
      expected.insert(expected.end(), normed.begin(), normed.end());
    }
    ExpectNear(Doubles(Download<float>(op.x, kRows * kWidth)), added, 1e-6);
    ExpectNear(Values(op.out, kRows, kWidth), expected, ToleranceOf(op.out));
  }
}

TEST_F(DeviceRowsSmallTest, NormsOfPickedRowsLeaveXAlone) {
  constexpr int64_t kWidth = 64;
  const std::vector<float> x = Normal(9 * kWidth);
  const std::vector<float> ones(kWidth, 1.0f);
  const std::vector<int32_t> picked = {8, 2};
  NormRows op;
  op.x = Upload(x);
  op.rows = 2;
  op.width = kWidth;
  op.weight = Upload(ones);
  op.eps = 0.0f;
  op.picked = Upload(picked);
  op.out = TakeRows(DType::kF32, 1, 2, kWidth);
  AddAndNormRows(op, stream());
  std::vector<double> expected;
  for (const int32_t row : picked) {
    double square = 0.0;
    for (int64_t i = 0; i < kWidth; ++i)
      square += std::pow(x[static_cast<size_t>(row * kWidth + i)], 2);
    for (int64_t i = 0; i < kWidth; ++i) {
      expected.push_back(x[static_cast<size_t>(row * kWidth + i)] / std::sqrt(square / kWidth));
    }
  }
  ExpectNear(Values(op.out, 2, kWidth), expected, 1e-6);
  EXPECT_EQ(Download<float>(op.x, 9 * kWidth), x);
}

TEST_F(DeviceRowsSmallTest, HeadsAreNormedRotatedAndScaled) {
  constexpr int64_t kRows = 3;
  constexpr int64_t kHeads = 6;
  constexpr int64_t kKvHeads = 2;
  for (const int64_t dim : {64, 128, 256}) {
    for (const bool with_extras : {false, true}) {
      const int64_t pairs = dim / 2;
      const int64_t width = (kHeads + 2 * kKvHeads) * dim;
      const std::vector<float> sums = Normal(kRows * width);
      const std::vector<float> bias = Normal(width);
      const std::vector<float> q_norm = Normal(dim);
      const std::vector<float> k_norm = Normal(dim);
      const std::vector<float> q_factors = Normal(kHeads * pairs);
      const std::vector<float> k_factors = Normal(kKvHeads * pairs);
      std::vector<float> frequencies;
      for (int64_t i = 0; i < pairs; ++i) {
        frequencies.push_back(
            std::pow(1e4f, -2.0f * static_cast<float>(i) / static_cast<float>(dim)));
      }
      const std::vector<int32_t> positions = {0, 5, 30000};
      float* const rotations = TakeFloats(kRows * dim);
      constexpr float kFactor = 1.25f;
      MakeRotations({Upload(positions), Upload(frequencies), pairs, kFactor, rotations}, kRows,
                    stream());
      HeadRows op;
      op.sums = {Upload(sums), 1, kRows};
      op.rows = kRows;
      op.num_heads = kHeads;
      op.num_kv_heads = kKvHeads;
      op.head_dim = dim;
      op.rotations = rotations;
      op.eps = 1e-6f;
      op.q = TakeFloats(kRows * kHeads * dim);
      op.k = TakeFloats(kRows * kKvHeads * dim);
      op.v = TakeFloats(kRows * kKvHeads * dim);
      if (with_extras) {
        op.bias = Upload(bias);
        op.q_norm = Upload(q_norm);
        op.k_norm = Upload(k_norm);
        op.query_factors = Upload(q_factors);
        op.key_factors = Upload(k_factors);
        op.raw_k = TakeFloats(kRows * kKvHeads * dim);
      }
      MakeHeadRows(op, stream());
      std::vector<double> q;
      std::vector<double> k;
      std::vector<double> v;
      std::vector<double> raw;
      for (int64_t row = 0; row < kRows; ++row) {
        for (int64_t head = 0; head < kHeads + 2 * kKvHeads; ++head) {
          std::vector<double> values;
          double square = 0.0;
          for (int64_t i = 0; i < dim; ++i) {
            values.push_back(sums[static_cast<size_t>(row * width + head * dim + i)]);
            if (with_extras) values.back() += bias[static_cast<size_t>(head * dim + i)];
            square += values.back() * values.back();
          }
          if (head >= kHeads + kKvHeads) {
            v.insert(v.end(), values.begin(), values.end());
            continue;
          }
          const bool is_query = head < kHeads;
          const std::vector<float>& norm = is_query ? q_norm : k_norm;
          const double inverse = 1.0 / std::sqrt(square / static_cast<double>(dim) + 1e-6);
          for (int64_t i = 0; with_extras && i < dim; ++i) {
            values[static_cast<size_t>(i)] *= inverse * norm[static_cast<size_t>(i)];
          }
          if (!is_query) raw.insert(raw.end(), values.begin(), values.end());
          std::vector<double> rotated(values.size());
          for (int64_t i = 0; i < pairs; ++i) {
            const float angle = static_cast<float>(positions[static_cast<size_t>(row)]) *
                                frequencies[static_cast<size_t>(i)];
            double factor = kFactor;
            if (with_extras) {
              factor *= is_query ? q_factors[static_cast<size_t>(head * pairs + i)]
                                 : k_factors[static_cast<size_t>((head - kHeads) * pairs + i)];
            }
            const double a = values[static_cast<size_t>(i)];
            const double b = values[static_cast<size_t>(i + pairs)];
            rotated[static_cast<size_t>(i)] =
                factor * (a * std::cos(double{angle}) - b * std::sin(double{angle}));
            rotated[static_cast<size_t>(i + pairs)] =
                factor * (b * std::cos(double{angle}) + a * std::sin(double{angle}));
          }
          std::vector<double>& out = is_query ? q : k;
          out.insert(out.end(), rotated.begin(), rotated.end());
        }
      }
      ExpectNear(Doubles(Download<float>(op.q, kRows * kHeads * dim)), q, 2e-6);
      ExpectNear(Doubles(Download<float>(op.k, kRows * kKvHeads * dim)), k, 2e-6);
      ExpectNear(Doubles(Download<float>(op.v, kRows * kKvHeads * dim)), v, 2e-6);
      if (with_extras) {
        ExpectNear(Doubles(Download<float>(op.raw_k, kRows * kKvHeads * dim)), raw, 2e-6);
      }
    }
  }
}

// Bit for bit what MakeHeadRows and AppendTokens do one after the other: a page from its first
// token on, a sink's rest, a sequence that is not there, values that do not fit.
TEST_F(DeviceRowsSmallTest, HeadsAreStoredAsAppendTokensStoresThem) {
  constexpr int64_t kRows = 4;
  constexpr int64_t kHeads = 6;
  constexpr int64_t kKvHeads = 2;
  constexpr int32_t kRest = 5;
  for (const int64_t dim : {64, 128}) {
    const int64_t width = (kHeads + 2 * kKvHeads) * dim;
    const int64_t q_count = kRows * kHeads * dim;
    const int64_t kv_count = kRows * kKvHeads * dim;
    const size_t page = static_cast<size_t>(kKvHeads * 128 * dim) * 2;
    const size_t arena_bytes = 8 * page;
    const auto units = [&](size_t pages) { return static_cast<uint32_t>(pages * page / 256); };
    HeadRows op;
    op.rows = kRows;
    op.num_heads = kHeads;
    op.num_kv_heads = kKvHeads;
    op.head_dim = dim;
    op.rotations = Upload(Normal(kRows * dim));
    op.key_factors = Upload(Normal(kKvHeads * dim / 2));
    for (const int32_t index : {0, 1, 77, 127}) {
      std::vector<float> sums = Normal(kRows * width);
      sums[static_cast<size_t>(kHeads * dim + 3)] = 1e6f;            // A key of row 0,
      sums[static_cast<size_t>(width + 2 * dim + 1)] = 1e6f;         // a query of row 1,
      sums[static_cast<size_t>(3 * width + width - 1)] = -INFINITY;  // a value of row 3.
      op.sums = {Upload(sums), 1, kRows};
      const std::vector<AppendTarget> targets = {
          {units(0), units(1), index, AppendTarget::kPage},
          {units(2), units(3), index % kRest, kRest},
          {0, 0, 0, AppendTarget::kNothing},
          {units(4), units(5), index, AppendTarget::kZeroedPage}};
      AppendOperands append;
      append.targets = Upload(targets);
      append.block = 7;
      append.num_sequences = kRows;
      append.num_heads = kHeads;
      const auto take = [&] {
        append.q_rounded = Take(static_cast<size_t>(q_count) * 2);
        append.arena = Take(arena_bytes);
        append.unfit = reinterpret_cast<uint32_t*>(Take(kRows * sizeof(uint32_t)));
      };
      const auto read = [&] {
        std::vector<uint16_t> all = Download<uint16_t>(append.q_rounded, q_count);
        for (const uint16_t value :
             Download<uint16_t>(append.arena, static_cast<int64_t>(arena_bytes) / 2)) {
          all.push_back(value);
        }
        return std::pair(all, Download<uint32_t>(append.unfit, kRows));
      };
      take();
      op.append = {};
      op.q = TakeFloats(q_count);
      op.k = TakeFloats(kv_count);
      op.v = TakeFloats(kv_count);
      MakeHeadRows(op, stream());
      append.q = op.q;
      append.k = op.k;
      append.v = op.v;
      AppendTokens(kKvHeads, dim, DType::kF16, append, stream());
      const auto expected = read();
      EXPECT_EQ(expected.second, (std::vector<uint32_t>{28, 30, kAllFit, 29}));
      take();
      append.q = append.k = append.v = nullptr;
      op.append = append;
      op.q = op.k = op.v = nullptr;
      MakeHeadRows(op, stream());
      EXPECT_EQ(read(), expected) << dim << ", token " << index;
    }
  }
}

TEST_F(DeviceRowsSmallTest, ActivationsAndRoundings) {
  constexpr int64_t kRows = 3;
  constexpr int64_t kWidth = 1001;
  const std::vector<float> sums = Normal(2 * 4 * 2 * kWidth, 4.0f);
  const ProductSums given{Upload(sums), 2, 4};
  std::vector<double> expected;
  std::vector<double> of_gelu;
  std::vector<double> first;
  for (int64_t row = 0; row < kRows; ++row) {
    for (int64_t i = 0; i < kWidth; ++i) {
      const auto sum = [&](int64_t at) {
        return double{sums[static_cast<size_t>(row * 2 * kWidth + at)]} +
               sums[static_cast<size_t>((4 + row) * 2 * kWidth + at)];
      };
      const double gate = sum(i);
      expected.push_back(gate / (1.0 + std::exp(-gate)) * sum(kWidth + i));
      const double inner = 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate);
      of_gelu.push_back(gate / (1.0 + std::exp(-inner)) * sum(kWidth + i));
    }
    for (int64_t i = 0; i < 2 * kWidth; ++i) {
      first.push_back(double{sums[static_cast<size_t>(row * 2 * kWidth + i)]} +
                      sums[static_cast<size_t>((4 + row) * 2 * kWidth + i)]);
    }
  }
  for (const OperandKind& kind : kOperands) {
    const ProductRows out = TakeRows(kind.type, kind.parts, 4, kWidth);
    SiluMulRows(given, kRows, kWidth, out, stream());
    ExpectNear(Values(out, kRows, kWidth), expected, ToleranceOf(out));
    GeluMulRows(given, kRows, kWidth, out, stream());
    ExpectNear(Values(out, kRows, kWidth), of_gelu, ToleranceOf(out));
    const ProductRows rounded = TakeRows(kind.type, kind.parts, 4, 2 * kWidth);
    RoundRows(given.data, kRows, 2 * kWidth, rounded, stream());
    ExpectNear(Values(rounded, kRows, 2 * kWidth),
               Doubles({sums.begin(), sums.begin() + kRows * 2 * kWidth}), ToleranceOf(rounded));
  }
  float* const added = TakeFloats(kRows * 2 * kWidth);
  AddPartsOfRows(given, kRows, 2 * kWidth, added, stream());
  ExpectNear(Doubles(Download<float>(added, kRows * 2 * kWidth)), first, 1e-6);
}

TEST_F(DeviceRowsSmallTest, HadamardIsThatOfTheCpu) {
  for (const int64_t dim : {64, 128, 256}) {
    std::vector<float> x = Normal(7 * dim);
    float* const data = Upload(x);
    HadamardRows(data, 7, dim, stream());
    HadamardHeads(x.data(), std::ssize(x), dim);
    ExpectNear(Doubles(Download<float>(data, 7 * dim)), Doubles(x), 1e-6);
  }
}

// A row's bits do not depend on the rows beside it.
TEST_F(DeviceRowsSmallTest, RowsAloneHaveTheSameBits) {
  constexpr int64_t kWidth = 900;
  const std::vector<float> x = Normal(16 * kWidth);
  const std::vector<float> weight = Normal(kWidth);
  const auto norm = [&](int64_t first, int64_t rows) {
    NormRows op;
    op.x =
        Upload(std::vector<float>(x.begin() + first * kWidth, x.begin() + (first + rows) * kWidth));
    op.rows = rows;
    op.width = kWidth;
    op.weight = Upload(weight);
    op.out = TakeRows(DType::kF32, 1, rows, kWidth);
    AddAndNormRows(op, stream());
    return Download<float>(op.out.data, rows * kWidth);
  };
  const std::vector<float> all = norm(0, 16);
  for (int64_t row = 0; row < 16; ++row) {
    EXPECT_EQ(norm(row, 1),
              std::vector<float>(all.begin() + row * kWidth, all.begin() + (row + 1) * kWidth));
  }
}

}  // namespace
}  // namespace pmkvq
