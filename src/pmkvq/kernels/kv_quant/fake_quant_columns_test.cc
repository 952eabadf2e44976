#include "pmkvq/kernels/kv_quant/fake_quant_columns.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "pmkvq/kernels/kv_quant/kv_quant.h"
#include "pmkvq/kernels/kv_quant/kv_quant_internal.h"
#include "support/target_suite.h"

namespace pmkvq {
namespace {

PMKVQ_TARGET_SUITE(FakeQuantizeColumnsTest, internal::KvQuantTarget,
                   "kernels/kv_quant/fake_quant_columns.cc");

// FakeQuantize of every column of x / divisor, one at a time.
std::vector<float> ByRows(int64_t group, int bits, const std::vector<float>& x,
                          const std::vector<float>& divisor, int64_t columns) {
  std::vector<float> out(x.size());
  std::vector<float> row(static_cast<size_t>(group));
  for (int64_t c = 0; c < columns; ++c) {
    for (int64_t i = 0; i < group; ++i) {
      row[static_cast<size_t>(i)] =
          x[static_cast<size_t>(i * columns + c)] / divisor[static_cast<size_t>(i)];
    }
    FakeQuantize({.group = group, .bits = bits}, row.data(), 1, row.data());
    for (int64_t i = 0; i < group; ++i) {
      out[static_cast<size_t>(i * columns + c)] = row[static_cast<size_t>(i)];
    }
  }
  return out;
}

TEST_P(FakeQuantizeColumnsTest, BitsAreThoseOfRows) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  std::uniform_real_distribution<float> positive(0.1f, 30.0f);
  for (const int64_t group : {8, 40, 128}) {
    for (const int64_t columns : {1, 7, 32, 37}) {
      std::vector<float> x(static_cast<size_t>(group * columns));
      std::vector<float> divisor(static_cast<size_t>(group));
      for (float& value : x) value = normal(random);
      for (float& value : divisor) value = positive(random);
      // A constant group has no step: zeros, whatever they are divided by.
      for (int64_t i = 0; i < group; ++i) x[static_cast<size_t>(i * columns)] = 0.0f;
      for (const int bits : {16, 8, 4, 2}) {
        std::vector<float> out(x.size());
        FakeQuantizeColumns(group, bits, x.data(), divisor.data(), columns, out.data());
        EXPECT_EQ(out, ByRows(group, bits, x, divisor, columns))
            << group << " x " << columns << " at " << bits << " bits";
      }
    }
  }
}

}  // namespace
}  // namespace pmkvq
