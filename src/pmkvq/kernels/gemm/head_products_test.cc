#include "pmkvq/kernels/gemm/head_products.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "pmkvq/base/random.h"
#include "pmkvq/kernels/gemm/weight_q8.h"

namespace pmkvq {
namespace {

constexpr int64_t kHeads = 3;
constexpr int64_t kFirst = 2;
constexpr int64_t kRows = 5;
constexpr int64_t kStride = 9;
constexpr int64_t kCols = 72;

std::vector<float> RandomFloats(int64_t count, uint64_t seed) {
  Random random(seed);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = static_cast<float>(random.Uniform() * 2 - 1);
  return values;
}

// Heads with gaps between them and between rows.
struct Layout {
  int64_t width;
  int64_t head_stride;
  int64_t row_stride;

  int64_t size(int64_t num_rows) const { return num_rows * row_stride; }
  size_t At(int64_t row, int64_t head, int64_t i) const {
    return static_cast<size_t>(row * row_stride + head * head_stride + i);
  }
};

// Products in any layout, against one sum at a time in double. Values that belong to no head stay.
template <class Real>
void ExpectProducts(const WeightView& weight, bool transposed, bool shares_x, int64_t num_rows,
                    double tolerance) {
  const HeadMatrices matrices{&weight, kHeads, kFirst, kRows, kStride};
  const int64_t in = transposed ? kRows : weight.cols;
  const int64_t out = transposed ? weight.cols : kRows;
  const Layout of_x{in, shares_x ? 0 : in + 3, shares_x ? in : kHeads * (in + 3) + 1};
  const Layout of_y{out, out + 2, kHeads * (out + 2) + 4};
  const std::vector<float> values = RandomFloats(of_x.size(num_rows) + in, 5);
  const std::vector<Real> x(values.begin(), values.end());
  const std::vector<Real> before(static_cast<size_t>(of_y.size(num_rows)), Real{7});
  std::vector<Real> expected = before;
  for (int64_t t = 0; t < num_rows; ++t) {
    for (int64_t head = 0; head < kHeads; ++head) {
      for (int64_t n = 0; n < out; ++n) {
        double sum = 0;
        for (int64_t k = 0; k < in; ++k) {
          const int64_t row = kFirst + head * kStride + (transposed ? k : n);
          sum += ref::WeightAt(weight, row, transposed ? n : k) * double{x[of_x.At(t, head, k)]};
        }
        expected[of_y.At(t, head, n)] = static_cast<Real>(sum);
      }
    }
  }
  const auto multiply = transposed ? &MultiplyHeadsTransposed<Real> : &MultiplyHeads<Real>;
  for (const int threads : {1, 2}) {
    std::vector<Real> y = before;
    multiply(matrices, {x.data(), of_x.row_stride, of_x.head_stride}, num_rows,
             {y.data(), of_y.row_stride, of_y.head_stride}, threads);
    for (size_t i = 0; i < y.size(); ++i) ASSERT_NEAR(y[i], expected[i], tolerance) << i;
  }
}

class HeadProducts : public testing::TestWithParam<bool> {
 protected:
  HeadProducts() {
    floats_ = RandomFloats((kHeads * kStride + kFirst) * kCols, 3);
    weight_ = {reinterpret_cast<const std::byte*>(floats_.data()), WeightFormat::kF32,
               kHeads * kStride + kFirst, kCols};
  }
  bool transposed() const { return GetParam(); }

  std::vector<float> floats_;
  WeightView weight_;
};

// 72 products of values below 1: their sum is below 72, and each addition rounds by 2^-24 of it.
constexpr double kFloatTolerance = 72 * 72 * 0x1p-24;

TEST_P(HeadProducts, OfEachHeadWithItsMatrix) {
  for (const int64_t num_rows : {int64_t{1}, int64_t{3}, kDecodeRows, kDecodeRows + 6}) {
    for (const bool shares_x : {false, true}) {
      ExpectProducts<float>(weight_, transposed(), shares_x, num_rows, kFloatTolerance);
      ExpectProducts<double>(weight_, transposed(), shares_x, num_rows, 1e-13);
    }
  }
}

TEST_P(HeadProducts, OfQuantisedWeights) {
  Q8Weight q8;
  ASSERT_TRUE(QuantizeWeight(weight_, 1, q8));
  const WeightView codes{q8.data.data(), WeightFormat::kQ8, weight_.rows, weight_.cols};
  for (const int64_t num_rows : {int64_t{1}, int64_t{5}, kDecodeRows + 6}) {
    ExpectProducts<float>(codes, transposed(), false, num_rows, kFloatTolerance);
  }
}

// Bits of a row alone, among others, and on any number of threads.
TEST_P(HeadProducts, ARowsBitsDoNotDependOnOthers) {
  const HeadMatrices matrices{&weight_, kHeads, kFirst, kRows, kStride};
  const int64_t in = transposed() ? kRows : kCols;
  const int64_t out = transposed() ? kCols : kRows;
  const std::vector<float> x = RandomFloats(kDecodeRows * kHeads * in, 8);
  const auto multiply = transposed() ? &MultiplyHeadsTransposed<float> : &MultiplyHeads<float>;
  const auto run = [&](int64_t first, int64_t num_rows, int threads) {
    std::vector<float> y(static_cast<size_t>(num_rows * kHeads * out));
    multiply(matrices, {x.data() + first * kHeads * in, kHeads * in, in}, num_rows,
             {y.data(), kHeads * out, out}, threads);
    return y;
  };
  const std::vector<float> all = run(0, kDecodeRows, 2);
  const std::vector<float> some = run(0, 7, 1);
  EXPECT_TRUE(std::equal(some.begin(), some.end(), all.begin()));
  for (int64_t row = 0; row < kDecodeRows; ++row) {
    const std::vector<float> alone = run(row, 1, 1);
    EXPECT_TRUE(std::equal(alone.begin(), alone.end(), all.begin() + row * kHeads * out)) << row;
  }
}

INSTANTIATE_TEST_SUITE_P(Forms, HeadProducts, testing::Bool(),
                         [](const auto& each) { return each.param ? "Transposed" : "Plain"; });

TEST(HeadProductsDeathTest, MatricesLieInTheWeight) {
  const std::vector<float> floats(8 * 4);
  const WeightView weight{reinterpret_cast<const std::byte*>(floats.data()), WeightFormat::kF32, 8,
                          4};
  const HeadMatrices matrices{&weight, 2, 1, 4, 4};
  EXPECT_DEATH(matrices.Of(1), "rows <= weight->rows");
  EXPECT_DEATH(matrices.Of(2), "head < num_heads");
}

}  // namespace
}  // namespace pmkvq
