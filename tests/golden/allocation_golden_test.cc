// All budgets of tests/golden/allocation.json (optimum by a MILP solver, checked by exhaustive
// search where that was possible).
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <string>

#include "pmkvq/base/error.h"
#include "pmkvq/io/json.h"
#include "pmkvq/research/calib/allocate.h"

namespace pmkvq {
namespace {

constexpr double kMiB = 1024.0 * 1024.0;

std::vector<std::vector<double>> Side(const JsonValue& json) {
  std::vector<std::vector<double>> side(kWidths.size());
  for (const std::string& bits : json.Keys()) {
    side[WidthIndex(std::stoi(bits))] = json.At(bits).AsDoubleArray();
  }
  return side;
}

struct Case {
  Sensitivity sensitivity;
  AllocationOptions options;
};

Case ReadCase(const JsonValue& json) {
  Case result;
  result.sensitivity.k = Side(json.At("k_sensitivity"));
  result.sensitivity.v = Side(json.At("v_sensitivity"));
  AllocationOptions& options = result.options;
  options.fbit_choices.clear();
  for (const int64_t bits : json.At("fbit_choices").AsIntArray()) {
    options.fbit_choices.push_back(static_cast<int>(bits));
  }
  const auto num_layers =
      static_cast<int64_t>(result.sensitivity.k[WidthIndex(options.fbit_choices.front())].size());
  options.cache.geometry = UniformKvGeometry{num_layers, 1, 1, json.At("hidden_size").AsInt()};
  options.max_len = json.At("max_len").AsInt();
  options.memory_budget_bytes =
      static_cast<int64_t>(std::floor(json.At("memory_budget_mb").AsDouble() * kMiB));
  options.reference_accounting = true;
  return result;
}

double Objective(const Case& c, const Allocation& allocation) {
  double sum = 0;
  for (size_t block = 0; block < allocation.k_bits.size(); ++block) {
    sum += c.sensitivity.k[WidthIndex(allocation.k_bits[block])][block];
    sum += c.sensitivity.v[WidthIndex(allocation.v_bits[block])][block];
  }
  return sum;
}

TEST(AllocationGolden, EqualObjectiveWithinTheBudget) {
  const JsonValue cases =
      JsonValue::ParseFile(std::string(PMKVQ_SOURCE_DIR) + "/tests/golden/allocation.json")
          .At("cases");
  ASSERT_EQ(cases.size(), 73u);
  int num_infeasible = 0;
  for (size_t i = 0; i < cases.size(); ++i) {
    const JsonValue json = cases.At(i);
    SCOPED_TRACE(json.At("name").AsString());
    const Case c = ReadCase(json);
    if (!json.At("feasible").AsBool()) {
      ++num_infeasible;
      try {
        Allocate(c.sensitivity, c.options);
        ADD_FAILURE() << "no error";
      } catch (const InvalidInput& error) {
        // Four blocks of 2 bits x 128 channels x 4096 tokens, K and V.
        EXPECT_NE(std::string(error.what()).find("1048576 bytes"), std::string::npos)
            << error.what();
      }
      continue;
    }
    const Allocation allocation = Allocate(c.sensitivity, c.options);
    const double expected = json.At("objective").AsDouble();
    EXPECT_NEAR(allocation.objective, expected, 1e-9 * expected);
    EXPECT_NEAR(Objective(c, allocation), expected, 1e-9 * expected);
    EXPECT_EQ(
        std::accumulate(allocation.budget_bytes.begin(), allocation.budget_bytes.end(), int64_t{0}),
        allocation.total_bytes);
    EXPECT_LE(allocation.total_bytes, c.options.memory_budget_bytes);
    const std::vector<double> budget_mb = json.At("budget_mb").AsDoubleArray();
    const std::vector<int64_t> bits = json.At("bits").AsIntArray();
    for (size_t block = 0; block < bits.size(); ++block) {
      if (allocation.k_bits[block] != bits[block]) continue;  // Another optimum.
      EXPECT_EQ(static_cast<double>(allocation.budget_bytes[block]), budget_mb[block] * kMiB);
    }
  }
  EXPECT_EQ(num_infeasible, 1);
}

}  // namespace
}  // namespace pmkvq
