// RTN against the packed cache's own quantiser.
#include <gtest/gtest.h>

#include "pmkvq/base/error.h"
#include "pmkvq/kernels/kv_quant/kv_quant.h"
#include "support/expect_error.h"
#include "support/method_driver.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;
using testing_support::KeysAndValues;
using testing_support::MethodDriver;

std::vector<float> Quantized(const std::vector<float>& x, int64_t group, int bits) {
  const auto num_groups = static_cast<int64_t>(x.size()) / group;
  std::vector<uint8_t> codes(x.size());
  std::vector<uint16_t> mins(static_cast<size_t>(num_groups)), ranges(mins.size());
  std::vector<float> values(x.size());
  const GroupFormat format{group, bits, DType::kF16};
  ref::QuantizeGroups(format, x.data(), num_groups, codes.data(), mins.data(), ranges.data());
  ref::DequantizeGroups(format, codes.data(), mins.data(), ranges.data(), num_groups,
                        values.data());
  return values;
}

TEST(Rtn, QuantisesEveryTokenAtOnce) {
  for (const int bits : {8, 4, 2}) {
    for (const int64_t group : {64, 16}) {
      MethodDriver driver("rtn:bits=" + std::to_string(bits) + "+group=" + std::to_string(group));
      for (const int64_t chunk : {1, 140, 1, 7}) {
        driver.Append(chunk);
        const int64_t n = driver.store().NumTokens(driver.seq());
        const KeysAndValues stored = driver.Stored();
        ASSERT_EQ(stored.first, Quantized(driver.Given(n).k, group, bits)) << n;
        ASSERT_EQ(stored.second, Quantized(driver.Given(n).v, group, bits)) << n;
      }
    }
  }
}

TEST(Rtn, ThreeBitsLieBetweenTwoAndFour) {
  const auto error = [](const std::string& spec) {
    MethodDriver driver(spec);
    driver.Append(50);
    const std::vector<float> given = driver.Given(50).v;
    const std::vector<float> stored = driver.Stored().second;
    double sum = 0;
    for (size_t i = 0; i < given.size(); ++i) sum += std::abs(double{given[i]} - double{stored[i]});
    return sum / static_cast<double>(given.size());
  };
  // Uniform values: the mean error is a quarter of a step.
  EXPECT_NEAR(error("rtn:bits=3") / error("rtn:bits=2"), 3.0 / 7, 0.03);
  EXPECT_NEAR(error("rtn:bits=3") / error("rtn:bits=4"), 15.0 / 7, 0.1);
}

TEST(Rtn, BytesAreCodesAndMetadataOfEveryToken) {
  // Per token: K and V, 2 heads of 64 values: 64 * b / 8 bytes and 4 of metadata a group.
  const std::vector<std::pair<std::string, int64_t>> cases = {
      {"rtn", 2 * 2 * (32 + 4)},
      {"rtn:bits=8", 2 * 2 * (64 + 4)},
      {"rtn:bits=3", 2 * 2 * (24 + 4)},
      {"rtn:bits=2+group=32", 2 * 4 * (8 + 4)}};
  for (const auto& [spec, per_token] : cases) {
    MethodDriver driver(spec);
    for (const int64_t chunk : {1, 127, 200}) {
      driver.Append(chunk);
      EXPECT_EQ(driver.BlockBytes(), per_token * driver.store().NumTokens(driver.seq())) << spec;
    }
  }
}

TEST(Rtn, NamesWhatIsWrong) {
  const auto expect = [](const std::string& spec, const std::string& part) {
    ExpectError<InvalidInput>([&] { MethodDriver driver(spec); }, {"--kv", spec, part});
  };
  expect("rtn:bits=5", "bits=5, expected one of 8, 4, 3, 2");
  expect("rtn:group=48", "group 48, expected a divisor of head_dim 64");
  expect("rtn:group=0", "group=0, expected a whole number in [1, 256]");
  expect("rtn:window=128", "unknown key 'window' for rtn, expected bits=, group=");
  expect("rtn:reference", "unknown word 'reference'");
}

}  // namespace
}  // namespace pmkvq
