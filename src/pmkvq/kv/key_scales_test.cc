#include "pmkvq/kv/key_scales.h"

#include <gtest/gtest.h>

#include <limits>

#include "pmkvq/base/error.h"
#include "support/expect_error.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;

constexpr UniformKvGeometry kGeometry = {3, 4, 2, 16};

std::vector<Tensor> Scales(const Shape& shape, float last, int64_t num_blocks = 3) {
  std::vector<Tensor> result;
  for (int64_t layer = 0; layer < num_blocks; ++layer) {
    result.emplace_back(DType::kF32, shape);
    for (int64_t i = 0; i < result.back().num_elements(); ++i) {
      result.back().As<float>()[i] = static_cast<float>(layer + 1 + i);
    }
  }
  result.back().As<float>()[result.back().num_elements() - 1] = last;
  return result;
}

TEST(KeyScales, QueriesOfAGroupShareTheFactorsOfTheirKeyHead) {
  const auto made = KeyScales::Make(kGeometry, Scales({2, 8}, 4.0f));
  const float* queries = made->query_factors(1);
  const float* keys = made->key_factors(1);
  for (int64_t head = 0; head < 4; ++head) {
    for (int64_t i = 0; i < 8; ++i) {
      const auto scale = static_cast<float>(2 + head / 2 * 8 + i);
      EXPECT_EQ(queries[head * 8 + i], scale);
      EXPECT_EQ(keys[head / 2 * 8 + i], 1.0f / scale);
    }
  }
  EXPECT_EQ(made->key_factors(2)[15], 0.25f);
  EXPECT_EQ(KeyScales::Make(kGeometry, {}), nullptr);
}

TEST(KeyScales, WrongOnesAreRefused) {
  const auto make = [](const std::vector<Tensor>& scales) { KeyScales::Make(kGeometry, scales); };
  ExpectError<InvalidInput>(
      [&] {
        make(Scales({2, 8}, 1.0f, 2));
      },
      {"key scales", "2 blocks", "expected 3"});
  ExpectError<InvalidInput>([&] { make(Scales({2, 16}, 1.0f)); }, {"block 0", "[2, 16]", "[2, 8]"});
  for (const float bad : {0.0f, -1.0f, std::numeric_limits<float>::infinity(),
                          std::numeric_limits<float>::quiet_NaN()}) {
    ExpectError<InvalidInput>(
        [&] {
          make(Scales({2, 8}, bad));
        },
        {"block 2", "index 15", "above 0"});
  }
}

}  // namespace
}  // namespace pmkvq
