// Routing and products of experts on CUDA against the scalar code: the same choices, weights within
// rounding, products against sums in double precision.
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "pmkvq/base/float16.h"
#include "pmkvq/kernels/routing/device_experts.h"
#include "pmkvq/tensor/device/buffer.h"
#include "support/gpu_test.h"

namespace pmkvq {
namespace {

RoutingRule Softmax(int64_t experts, int64_t chosen, bool normalize = false) {
  RoutingRule rule;
  rule.num_experts = experts;
  rule.num_chosen = chosen;
  rule.normalize = normalize;
  return rule;
}

// DeepSeek-V3's: sigmoids, groups by their two best.
RoutingRule Grouped(int64_t experts, int64_t chosen, int64_t groups, int64_t chosen_groups) {
  RoutingRule rule = Softmax(experts, chosen, true);
  rule.score = RouterScore::kSigmoid;
  rule.factor = 2.5;
  rule.num_groups = groups;
  rule.num_chosen_groups = chosen_groups;
  rule.group_top = 2;
  return rule;
}

class DeviceExpertsSmallTest : public GpuTest {
 protected:
  std::vector<float> Normal(int64_t count) {
    std::normal_distribution<float> normal;
    std::vector<float> values(static_cast<size_t>(count));
    for (float& value : values) value = normal(random_);
    return values;
  }
  template <class T>
  std::byte* Upload(const std::vector<T>& values) {
    const size_t bytes = values.size() * sizeof(T);
    buffers_.push_back(std::make_unique<Buffer>(kDevice, bytes));
    CopyToDevice(stream(), buffers_.back()->data(), values.data(), bytes);
    stream().Synchronize();
    return buffers_.back()->data();
  }
  std::byte* Fresh(size_t bytes) { return Upload(std::vector<uint8_t>(bytes, 0xff)); }
  template <class T>
  std::vector<T> Download(const T* data, int64_t count) {
    std::vector<T> values(static_cast<size_t>(count));
    CopyToHost(stream(), values.data(), reinterpret_cast<const std::byte*>(data),
               values.size() * sizeof(T));
    stream().Synchronize();
    return values;
  }
  DeviceRouting Route(const RoutingRule& rule, const std::vector<float>& logits,
                      const std::vector<float>& bias, int64_t rows) {
    const DeviceRouting routing = CutRouting(rule, rows, Fresh(DeviceRoutingBytes(rule, rows)));
    const auto* const device_bias =
        bias.empty() ? nullptr : reinterpret_cast<const float*>(Upload(bias));
    RouteOnDevice(rule, device_bias, reinterpret_cast<const float*>(Upload(logits)), rows, routing,
                  stream());
    return routing;
  }

  std::mt19937 random_{7};
  std::vector<std::unique_ptr<Buffer>> buffers_;
};

TEST_F(DeviceExpertsSmallTest, ChoicesAreThoseOfTheCpu) {
  const RoutingRule v2 = [] {
    RoutingRule rule = Softmax(160, 6);
    rule.factor = 16.0;
    rule.num_groups = 8;
    rule.num_chosen_groups = 3;
    return rule;
  }();
  for (const RoutingRule& rule :
       {Softmax(1, 1), Softmax(8, 2, true), Softmax(64, 6), Softmax(1024, 8), v2,
        Grouped(256, 8, 8, 4), Grouped(12, 3, 4, 2), Grouped(384, 8, 1, 1)}) {
    for (const int64_t rows : {1, 7, 64, 300}) {
      SCOPED_TRACE(testing::Message() << rule.num_experts << " experts, " << rows << " rows");
      const std::vector<float> logits = Normal(rows * rule.num_experts);
      std::vector<float> bias;
      if (rule.score == RouterScore::kSigmoid) bias = Normal(rule.num_experts);
      const DeviceRouting routing = Route(rule, logits, bias, rows);
      std::vector<float> scores = logits;
      const int64_t pairs = rows * rule.num_chosen;
      std::vector<int32_t> experts(static_cast<size_t>(pairs));
      std::vector<float> weights(static_cast<size_t>(pairs));
      RouteRows<float>(rule, bias.empty() ? nullptr : bias.data(), rows, scores.data(),
                       experts.data(), weights.data());
      EXPECT_EQ(Download(routing.experts, pairs), experts);
      const std::vector<float> got = Download(routing.weights, pairs);
      for (size_t i = 0; i < got.size(); ++i) {
        ASSERT_NEAR(got[i], weights[i], 2e-6 * std::abs(weights[i])) << i;
      }
      std::vector<int32_t> first(static_cast<size_t>(rule.num_experts + 1));
      std::vector<int32_t> order(static_cast<size_t>(pairs));
      GroupByExpert(experts, rule.num_experts, first.data(), order.data());
      EXPECT_EQ(Download(routing.first, rule.num_experts + 1), first);
      EXPECT_EQ(Download(routing.pairs, pairs), order);
      const std::vector<int32_t> places = Download(routing.places, pairs);
      for (int32_t place = 0; place < pairs; ++place) {
        ASSERT_EQ(places[static_cast<size_t>(order[static_cast<size_t>(place)])], place);
      }
    }
  }
}

// Rows without meaning may hold anything: their experts are distinct ones all the same.
TEST_F(DeviceExpertsSmallTest, LogitsThatAreNoNumbersChooseExpertsThatThereAre) {
  for (const RoutingRule& rule : {Softmax(9, 3), Grouped(12, 3, 4, 2)}) {
    const std::vector<float> logits(static_cast<size_t>(2 * rule.num_experts), NAN);
    const DeviceRouting routing = Route(rule, logits, {}, 2);
    const std::vector<int32_t> experts = Download(routing.experts, 6);
    for (size_t i = 0; i < 6; ++i) {
      ASSERT_TRUE(experts[i] >= 0 && experts[i] < rule.num_experts);
      for (size_t j = i / 3 * 3; j < i; ++j) ASSERT_NE(experts[i], experts[j]);
    }
  }
}

uint16_t Rounded(DType type, float value) {
  uint16_t bits = 0;
  const F16 half = ToF16(value);
  const BF16 brain = ToBF16(value);
  std::memcpy(&bits, type == DType::kF16 ? static_cast<const void*>(&half) : &brain, 2);
  return bits;
}
float Value(DType type, uint16_t bits) {
  F16 half;
  BF16 brain;
  std::memcpy(&half, &bits, 2);
  std::memcpy(&brain, &bits, 2);
  return type == DType::kF16 ? ToFloat(half) : ToFloat(brain);
}

// Both products and the sum, of every type; widths that the tensor cores take, and others.
TEST_F(DeviceExpertsSmallTest, ProductsAndSumsAreThoseOfTheChosenExperts) {
  for (const DType type : {DType::kF16, DType::kBF16, DType::kF32}) {
    for (const auto& [k_in, n_out] :
         std::vector<std::pair<int64_t, int64_t>>{{96, 64}, {40, 24}, {200, 130}, {27, 33}}) {
      for (const int64_t rows : {1, 5, 64, 130}) {
        SCOPED_TRACE(testing::Message()
                     << NameOf(type) << ' ' << n_out << " x " << k_in << ", " << rows << " rows");
        const RoutingRule rule = Softmax(7, 3);
        const DeviceRouting routing = Route(rule, Normal(rows * 7), {}, rows);
        const int64_t pairs = rows * 3;
        const std::vector<int32_t> experts = Download(routing.experts, pairs);
        const std::vector<int32_t> places = Download(routing.places, pairs);
        const std::vector<float> weights = Download(routing.weights, pairs);
        std::vector<float> w = Normal(7 * n_out * k_in);
        const std::vector<float> x = Normal(rows * k_in);
        const int64_t part_rows = rows + 3;
        ProductRows operand;
        operand.type = type;
        operand.parts = type == DType::kF32 ? 1 : 2;
        operand.part_rows = part_rows;
        const float* const x_device = reinterpret_cast<const float*>(Upload(x));
        operand.data = Fresh(static_cast<size_t>(operand.parts * part_rows * k_in) * SizeOf(type));
        RoundRows(x_device, rows, k_in, operand, stream());
        const std::byte* w_device = nullptr;
        if (type == DType::kF32) {
          w_device = Upload(w);
        } else {
          std::vector<uint16_t> rounded;
          for (float& value : w) {
            rounded.push_back(Rounded(type, value));
            value = Value(type, rounded.back());
          }
          w_device = Upload(rounded);
        }
        auto* const y = reinterpret_cast<float*>(Fresh(static_cast<size_t>(pairs * n_out) * 4));
        MultiplyExperts(rule, rows, routing, {operand, true, w_device, n_out, k_in, y}, stream());
        const std::vector<float> got = Download(y, pairs * n_out);
        std::vector<double> sums(static_cast<size_t>(rows * n_out), 0.0);
        for (int64_t pair = 0; pair < pairs; ++pair) {
          const auto p = static_cast<size_t>(pair);
          for (int64_t n = 0; n < n_out; ++n) {
            double expected = 0.0;
            double size = 0.0;
            for (int64_t k = 0; k < k_in; ++k) {
              const double product = double{x[static_cast<size_t>(pair / 3 * k_in + k)]} *
                                     w[static_cast<size_t>((experts[p] * n_out + n) * k_in + k)];
              expected += product;
              size += std::abs(product);
            }
            // Two parts of BF16 hold 16 bits.
            ASSERT_NEAR(got[static_cast<size_t>(places[p] * n_out + n)], expected, 2e-5 * size)
                << "pair " << pair << " output " << n;
            sums[static_cast<size_t>(pair / 3 * n_out + n)] += double{weights[p]} * expected;
          }
        }
        auto* const out = reinterpret_cast<float*>(Upload(std::vector<float>(sums.size(), 1.0f)));
        AddExperts(rule, rows, routing, y, n_out, out, stream());
        const std::vector<float> added = Download(out, rows * n_out);
        for (size_t i = 0; i < sums.size(); ++i) {
          ASSERT_NEAR(added[i], 1.0 + sums[i], 2e-3) << i;
        }
      }
    }
  }
}

// Rows of a second product lie at the places of the first one; a row's bits do not depend on
// others.
TEST_F(DeviceExpertsSmallTest, BitsDependOnTheRowAlone) {
  constexpr int64_t kIn = 96;
  constexpr int64_t kOut = 64;
  const RoutingRule rule = Softmax(7, 3);
  const std::vector<float> logits = Normal(100 * 7);
  const std::vector<float> x = Normal(100 * kIn);
  std::vector<uint16_t> w;
  for (const float value : Normal(7 * kOut * kIn)) w.push_back(Rounded(DType::kBF16, value));
  const std::byte* const w_device = Upload(w);
  std::vector<float> expected;
  for (const int64_t rows : {1, 9, 64, 100}) {
    const DeviceRouting routing =
        Route(rule, {logits.begin(), logits.begin() + rows * 7}, {}, rows);
    ProductRows operand{Fresh(static_cast<size_t>(2 * rows * kIn) * 2), DType::kBF16, 2, rows};
    const std::vector<float> of_rows(x.begin(), x.begin() + rows * kIn);
    RoundRows(reinterpret_cast<const float*>(Upload(of_rows)), rows, kIn, operand, stream());
    auto* const y = reinterpret_cast<float*>(Fresh(static_cast<size_t>(rows * 3 * kOut) * 4));
    MultiplyExperts(rule, rows, routing, {operand, true, w_device, kOut, kIn, y}, stream());
    auto* const out = reinterpret_cast<float*>(
        Upload(std::vector<float>(static_cast<size_t>(rows * kOut), 0.5f)));
    AddExperts(rule, rows, routing, y, kOut, out, stream());
    const std::vector<float> first = Download(out, kOut);
    if (expected.empty()) expected = first;
    EXPECT_EQ(first, expected) << rows;
  }
}

}  // namespace
}  // namespace pmkvq
