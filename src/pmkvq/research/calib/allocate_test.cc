#include "pmkvq/research/calib/allocate.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "pmkvq/base/error.h"
#include "pmkvq/base/random.h"
#include "support/cpu_time.h"
#include "support/expect_error.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;

// Every combination in lexicographic order of (bytes, index) per item; costs are summed as
// SolveKnapsack sums them, so that equal means equal.
class BruteForce {
 public:
  BruteForce(const std::vector<KnapsackItem>& items, int64_t budget)
      : items_(items), budget_(budget), current_(items.size()) {
    for (const KnapsackItem& item : items) {
      std::vector<int> order(item.cost.size());
      for (size_t c = 0; c < order.size(); ++c) order[c] = static_cast<int>(c);
      std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
        return item.bytes[static_cast<size_t>(a)] < item.bytes[static_cast<size_t>(b)];
      });
      orders_.push_back(order);
    }
    Visit(0);
  }

  std::optional<std::vector<int>> best;
  double best_cost = std::numeric_limits<double>::infinity();

 private:
  void Visit(size_t item) {
    if (item == items_.size()) return Score();
    for (const int choice : orders_[item]) {
      current_[item] = choice;
      Visit(item + 1);
    }
  }
  void Score() {
    double cost = 0;
    int64_t bytes = 0;
    for (size_t i = items_.size(); i-- > 0;) {
      cost = items_[i].cost[static_cast<size_t>(current_[i])] + cost;
      bytes += items_[i].bytes[static_cast<size_t>(current_[i])];
    }
    if (bytes <= budget_ && cost < best_cost) {
      best_cost = cost;
      best = current_;
    }
  }

  const std::vector<KnapsackItem>& items_;
  int64_t budget_;
  std::vector<int> current_;
  std::vector<std::vector<int>> orders_;
};

// Small integers make ties and dominated choices frequent; `scale` makes sums round.
std::vector<KnapsackItem> RandomItems(double scale) {
  const int num_items = *rc::gen::inRange(1, 6);
  std::vector<KnapsackItem> items;
  for (int i = 0; i < num_items; ++i) {
    KnapsackItem item;
    const int num_choices = *rc::gen::inRange(1, 5);
    for (int c = 0; c < num_choices; ++c) {
      item.cost.push_back(scale * *rc::gen::inRange(0, 12));
      item.bytes.push_back(*rc::gen::inRange<int64_t>(0, 20));
    }
    items.push_back(item);
  }
  return items;
}

RC_GTEST_PROP(Knapsack, EqualsBruteForceWithItsTieBreak, ()) {
  const std::vector<KnapsackItem> items = RandomItems(*rc::gen::element(1.0, 0.1));
  const auto budget = *rc::gen::inRange<int64_t>(0, 80);
  const BruteForce oracle(items, budget);
  const KnapsackResult result = SolveKnapsack(items, budget);
  RC_ASSERT(result.feasible == oracle.best.has_value());
  int64_t smallest = 0;
  for (const KnapsackItem& item : items) {
    smallest += *std::min_element(item.bytes.begin(), item.bytes.end());
  }
  RC_ASSERT(result.smallest_bytes == smallest);
  if (!result.feasible) return;
  RC_ASSERT(result.choice == *oracle.best);
  RC_ASSERT(result.cost == oracle.best_cost);
  int64_t bytes = 0;
  for (size_t i = 0; i < items.size(); ++i) {
    bytes += items[i].bytes[static_cast<size_t>(result.choice[i])];
  }
  RC_ASSERT(result.bytes == bytes);
  RC_ASSERT(bytes <= budget);
}

// With the first item's cost the sums of {2, 7} and {0, 9} tenths round to the same number, without
// it they do not: a tie, in which the second item's earlier choice counts.
TEST(Knapsack, TiesAreThoseOfTheWholeSum) {
  const double tenth = 0.1;
  const std::vector<KnapsackItem> items = {{{11 * tenth}, {2}},
                                           {{3 * tenth, 2 * tenth, 0}, {0, 2, 3}},
                                           {{9 * tenth, 8 * tenth, 7 * tenth}, {0, 3, 3}}};
  ASSERT_EQ(11 * tenth + (2 * tenth + 7 * tenth), 11 * tenth + (0 + 9 * tenth));
  ASSERT_NE(2 * tenth + 7 * tenth, 0 + 9 * tenth);
  EXPECT_EQ(SolveKnapsack(items, 7).choice, (std::vector<int>{0, 1, 2}));
}

TEST(Knapsack, NoItemsAndHugeBudget) {
  EXPECT_TRUE(SolveKnapsack({}, 0).feasible);
  const std::vector<KnapsackItem> items = {{{3, 1}, {1, 5}}, {{3, 1}, {1, 5}}};
  const KnapsackResult result = SolveKnapsack(items, std::numeric_limits<int64_t>::max());
  EXPECT_EQ(result.choice, (std::vector<int>{1, 1}));
  EXPECT_EQ(result.bytes, 10);
  EXPECT_FALSE(SolveKnapsack(items, 1).feasible);
  EXPECT_EQ(SolveKnapsack(items, 1).smallest_bytes, 2);
}

Sensitivity RandomSensitivity(size_t num_layers, uint64_t seed) {
  Random random(seed);
  Sensitivity sensitivity;
  for (const int bits : kWidths) {
    std::vector<double> k;
    std::vector<double> v;
    for (size_t layer = 0; layer < num_layers; ++layer) {
      k.push_back(random.Uniform() / (1 << bits));
      v.push_back(random.Uniform() / (1 << bits));
    }
    sensitivity.k.push_back(k);
    sensitivity.v.push_back(v);
  }
  return sensitivity;
}

AllocationOptions OptionsOf(int64_t num_layers, int64_t budget_bytes) {
  AllocationOptions options;
  options.cache.geometry = UniformKvGeometry{num_layers, 8, 2, 128};
  options.max_len = 4096;
  options.memory_budget_bytes = budget_bytes;
  return options;
}

int64_t BytesAt(const AllocationOptions& options, int k_bits, int v_bits) {
  return BlockBytes(options.cache, 0, options.max_len, k_bits, v_bits);
}

TEST(Allocate, SpendsTheBudgetOnTheSensitiveBlock) {
  AllocationOptions options = OptionsOf(3, 0);
  options.memory_budget_bytes = 2 * BytesAt(options, 2, 2) + BytesAt(options, 4, 4);
  Sensitivity sensitivity;
  sensitivity.k = {{}, {}, {1, 1, 1}, {2, 5, 3}};
  sensitivity.v = {{}, {}, {1, 1, 1}, {2, 2, 3}};
  const Allocation allocation = Allocate(sensitivity, options);
  EXPECT_EQ(allocation.k_bits, (std::vector<int>{2, 4, 2}));
  EXPECT_EQ(allocation.v_bits, allocation.k_bits);
  EXPECT_EQ(allocation.objective, 2 + 2 + 1 + 1 + 3 + 3);
  EXPECT_EQ(allocation.total_bytes, options.memory_budget_bytes);
  EXPECT_EQ(allocation.budget_bytes,
            (std::vector<int64_t>{BytesAt(options, 2, 2), BytesAt(options, 4, 4),
                                  BytesAt(options, 2, 2)}));
}

// Each block costs what its own shape takes; one without cache has no choice and takes nothing.
TEST(Allocate, BlocksOfDifferentShapes) {
  AllocationOptions options = OptionsOf(1, 0);
  options.cache.geometry.blocks = {
      BlockOf({1, 8, 2, 128}), {8, {}}, BlockOf({1, 8, 4, 128}), BlockOf({1, 8, 1, 128})};
  const auto bytes = [&](size_t layer, int bits) {
    return BlockBytes(options.cache, layer, options.max_len, bits, bits);
  };
  ASSERT_EQ(bytes(2, 4), 4 * bytes(3, 4));
  Sensitivity sensitivity;
  sensitivity.k = {{}, {}, {0, 0, 0, 0}, {3, 9, 4, 2}};
  sensitivity.v = sensitivity.k;
  // Room to raise both smaller blocks; the largest alone takes more.
  options.memory_budget_bytes = bytes(0, 4) + bytes(2, 2) + bytes(3, 4);
  const Allocation allocation = Allocate(sensitivity, options);
  EXPECT_EQ(allocation.k_bits, (std::vector<int>{4, 16, 2, 4}));
  EXPECT_EQ(allocation.budget_bytes,
            (std::vector<int64_t>{bytes(0, 4), 0, bytes(2, 2), bytes(3, 4)}));
  EXPECT_EQ(allocation.objective, 2 * 4);

  options.memory_budget_bytes = bytes(0, 2) + bytes(2, 2) + bytes(3, 2);
  CheckAllocationOptions(options);
  options.memory_budget_bytes -= 1;
  EXPECT_THROW(CheckAllocationOptions(options), InvalidInput);
}

AllocationOptions LatentOptions(size_t num_layers) {
  AllocationOptions options;
  options.cache.geometry.blocks.assign(num_layers, LatentBlockOf(16, 512, 64));
  options.max_len = 4096;
  options.fbit_choices = {8, 4, 2};
  return options;
}

// A rope part has a ninth of the values: a mean damage of 8 there weighs as much as one of 1 in the
// latent.
TEST(Allocate, LatentsAndRopePartsAreWeighedByTheirValues) {
  AllocationOptions options = LatentOptions(1);
  options.cache.rope_floor_bits = 4;
  Sensitivity sensitivity;
  sensitivity.k = {{0}, {1}, {2}, {9}};
  sensitivity.v = {{0}, {1}, {8}, {50}};
  // Room for (4, 4) and some more, which (4, 8) takes: going on to 8 bits of the latent is dearer.
  options.memory_budget_bytes = BlockBytes(options.cache, 0, 4096, 4, 8);
  const Allocation allocation = Allocate(sensitivity, options);
  EXPECT_EQ(allocation.k_bits, std::vector<int>{4});
  EXPECT_EQ(allocation.v_bits, std::vector<int>{8});
  EXPECT_DOUBLE_EQ(allocation.objective, (2.0 * 512 + 1.0 * 64) / 288);
}

// The default floor leaves one width of the rope part, whatever the choices; a wide one is an
// option where the choices have it.
TEST(Allocate, TheRopePartKeepsItsFloor) {
  AllocationOptions options = LatentOptions(3);
  options.fbit_choices = {4, 2};
  options.memory_budget_bytes = int64_t{1} << 40;
  const Sensitivity sensitivity = RandomSensitivity(3, 4);
  EXPECT_EQ(Allocate(sensitivity, options).v_bits, (std::vector<int>{8, 8, 8}));
  options.fbit_choices = {16, 4};
  EXPECT_EQ(Allocate(sensitivity, options).v_bits, (std::vector<int>{16, 16, 16}));
  options.memory_budget_bytes = 3 * BlockBytes(options.cache, 0, 4096, 4, 8);
  EXPECT_EQ(Allocate(sensitivity, options).v_bits, (std::vector<int>{8, 8, 8}));
  options.memory_budget_bytes -= 1;
  EXPECT_THROW(CheckAllocationOptions(options), InvalidInput);
  options.memory_budget_bytes += 1;
  options.reference_accounting = true;
  ExpectError<Unsupported>([&] { CheckAllocationOptions(options); },
                           {"--reference-accounting", "latents of 512 + 64 values"});
}

// All pairs of widths of all blocks, tried one by one.
RC_GTEST_PROP(Allocate, PairsOfLatentsEqualBruteForce, ()) {
  AllocationOptions options = LatentOptions(*rc::gen::inRange<size_t>(1, 4));
  options.fbit_choices = {16, 8, 4, 2};
  options.cache.rope_floor_bits = *rc::gen::element(8, 4);
  const size_t num_layers = options.cache.geometry.blocks.size();
  const Sensitivity sensitivity = RandomSensitivity(num_layers, *rc::gen::arbitrary<uint64_t>());
  std::vector<std::pair<int, int>> pairs;
  for (const int k : {2, 4, 8, 16}) {
    for (const int v : {4, 8, 16}) {
      if (v >= options.cache.rope_floor_bits) pairs.emplace_back(k, v);
    }
  }
  const auto count = static_cast<int64_t>(num_layers);
  options.memory_budget_bytes =
      *rc::gen::inRange(count * BlockBytes(options.cache, 0, 4096, 2, 8),
                        count * BlockBytes(options.cache, 0, 4096, 16, 16) + 1);
  double best = std::numeric_limits<double>::infinity();
  std::vector<size_t> choice(num_layers);
  for (bool is_done = false; !is_done;) {
    double cost = 0;
    int64_t bytes = 0;
    for (size_t layer = 0; layer < num_layers; ++layer) {
      const auto [k, v] = pairs[choice[layer]];
      cost +=
          (sensitivity.k[WidthIndex(k)][layer] * 512 + sensitivity.v[WidthIndex(v)][layer] * 64) /
          288;
      bytes += BlockBytes(options.cache, layer, 4096, k, v);
    }
    if (bytes <= options.memory_budget_bytes) best = std::min(best, cost);
    size_t layer = 0;
    while (layer < num_layers && ++choice[layer] == pairs.size()) choice[layer++] = 0;
    is_done = layer == num_layers;
  }
  const Allocation allocation = Allocate(sensitivity, options);
  RC_ASSERT(std::abs(allocation.objective - best) <= 1e-12 * best);
  RC_ASSERT(allocation.total_bytes <= options.memory_budget_bytes);
}

TEST(Allocate, TiesGoToTheLowerWidthFirst) {
  AllocationOptions options = OptionsOf(3, 0);
  options.memory_budget_bytes = 2 * BytesAt(options, 2, 2) + BytesAt(options, 4, 4);
  Sensitivity sensitivity;
  sensitivity.k = {{}, {}, {1, 1, 1}, {2, 2, 2}};
  sensitivity.v = sensitivity.k;
  EXPECT_EQ(Allocate(sensitivity, options).k_bits, (std::vector<int>{2, 2, 4}));
  // Where nothing is gained, nothing is spent.
  options.memory_budget_bytes = 3 * BytesAt(options, 4, 4);
  sensitivity.k[3] = sensitivity.v[3] = {1, 1, 1};
  EXPECT_EQ(Allocate(sensitivity, options).k_bits, (std::vector<int>{2, 2, 2}));
}

TEST(Allocate, SeparateWidthsTieToTheNarrowerValue) {
  AllocationOptions options = OptionsOf(1, 0);
  options.separate_kv = true;
  options.memory_budget_bytes = BytesAt(options, 4, 2);
  Sensitivity sensitivity;
  sensitivity.k = {{}, {}, {1}, {2}};
  sensitivity.v = sensitivity.k;
  Allocation allocation = Allocate(sensitivity, options);
  EXPECT_EQ(allocation.k_bits[0], 4);
  EXPECT_EQ(allocation.v_bits[0], 2);
  sensitivity.v[3] = {3};
  allocation = Allocate(sensitivity, options);
  EXPECT_EQ(allocation.k_bits[0], 2);
  EXPECT_EQ(allocation.v_bits[0], 4);
  EXPECT_LE(allocation.total_bytes, options.memory_budget_bytes);
}

TEST(Allocate, SeparateIsNeverWorseThanTied) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    AllocationOptions options = OptionsOf(12, 0);
    options.fbit_choices = {8, 4, 2};
    options.memory_budget_bytes = 12 * (BytesAt(options, 2, 2) + BytesAt(options, 4, 4)) / 2;
    const Sensitivity sensitivity = RandomSensitivity(12, seed);
    const Allocation tied = Allocate(sensitivity, options);
    options.separate_kv = true;
    const Allocation separate = Allocate(sensitivity, options);
    EXPECT_LE(separate.objective, tied.objective * (1 + 1e-12));
    EXPECT_LE(separate.total_bytes, options.memory_budget_bytes);
  }
}

TEST(Allocate, OrderAndRepetitionOfChoicesDoNotMatter) {
  AllocationOptions options = OptionsOf(12, 0);
  options.memory_budget_bytes = 12 * BytesAt(options, 4, 4);
  options.fbit_choices = {2, 4, 8, 16};
  const Sensitivity sensitivity = RandomSensitivity(12, 1);
  const Allocation first = Allocate(sensitivity, options);
  options.fbit_choices = {16, 4, 8, 2, 4};
  EXPECT_EQ(Allocate(sensitivity, options).k_bits, first.k_bits);
}

TEST(Allocate, LargeModelAllChoicesStaysFast) {
  AllocationOptions options = OptionsOf(128, 0);
  options.cache.geometry = UniformKvGeometry{128, 8, 8, 128};
  options.max_len = 131072 + 777;
  options.fbit_choices = {16, 8, 4, 2};
  options.separate_kv = true;
  options.memory_budget_bytes = 128 * BytesAt(options, 4, 4) + 12345;
  const double start = testing_support::CpuSeconds();
  const Allocation allocation = Allocate(RandomSensitivity(128, 3), options);
  const double seconds = testing_support::CpuSeconds() - start;
  EXPECT_LE(allocation.total_bytes, options.memory_budget_bytes);
  EXPECT_LT(seconds, 10.0);  // 0.1 s in a release build.
}

TEST(Allocate, ReferenceAccountingCountsPayloadOnly) {
  AllocationOptions options = OptionsOf(2, 0);
  options.cache.geometry = UniformKvGeometry{2, 1, 1, 256};
  options.reference_accounting = true;
  options.memory_budget_bytes = 2 * 2 * 256 * 4096 * 2 / 8;
  const Allocation allocation = Allocate(RandomSensitivity(2, 1), options);
  EXPECT_EQ(allocation.k_bits, (std::vector<int>{2, 2}));
  EXPECT_EQ(allocation.total_bytes, options.memory_budget_bytes);
  --options.memory_budget_bytes;
  EXPECT_THROW(Allocate(RandomSensitivity(2, 1), options), InvalidInput);
}

TEST(Allocate, ImpossibleBudgetNamesTheSmallestThatWorks) {
  AllocationOptions options = OptionsOf(4, 1000);
  const int64_t smallest = 4 * BytesAt(options, 2, 2);
  const Sensitivity sensitivity = RandomSensitivity(4, 1);
  const auto parts = {std::string("memory-budget"), std::string("1000 bytes"),
                      std::to_string(smallest)};
  ExpectError<InvalidInput>([&] { Allocate(sensitivity, options); }, parts);
  ExpectError<InvalidInput>([&] { CheckAllocationOptions(options); }, parts);
  options.memory_budget_bytes = smallest;
  CheckAllocationOptions(options);
  EXPECT_EQ(Allocate(sensitivity, options).total_bytes, smallest);
}

TEST(Allocate, BadOptionsAreNamed) {
  const Sensitivity sensitivity = RandomSensitivity(4, 1);
  AllocationOptions options = OptionsOf(4, int64_t{1} << 30);
  options.fbit_choices = {4, 3};
  ExpectError<InvalidInput>([&] { Allocate(sensitivity, options); },
                            {"fbit-choices", "found 3", "16, 8, 4 or 2"});
  options.fbit_choices = {};
  ExpectError<InvalidInput>([&] { Allocate(sensitivity, options); }, {"fbit-choices"});
  options = OptionsOf(4, int64_t{1} << 30);
  options.max_len = 0;
  ExpectError<InvalidInput>([&] { Allocate(sensitivity, options); }, {"max-len", "found 0"});
  options.max_len = std::numeric_limits<int64_t>::max();
  ExpectError<InvalidInput>([&] { Allocate(sensitivity, options); }, {"max-len"});
  options = OptionsOf(4, int64_t{1} << 30);
  options.cache.window_tokens = 100;
  ExpectError<InvalidInput>([&] { CheckAllocationOptions(options); },
                            {"n-window-token", "found 100", "multiple of 128"});
  options = OptionsOf(4, int64_t{1} << 30);
  options.cache.sink_tokens = 65537;
  ExpectError<InvalidInput>([&] { Allocate(sensitivity, options); },
                            {"n-sink-token", "found 65537", "0 to 65536"});
  options = OptionsOf(0, int64_t{1} << 30);
  ExpectError<InvalidInput>([&] { Allocate(sensitivity, options); }, {"geometry"});
}

// Mirrored, each block gets what its mirror image would have got.
TEST(Allocate, MirroredSensitivitiesMirrorTheAnswer) {
  // Distinct, so that no tie decides.
  const Sensitivity sensitivity = RandomSensitivity(5, 7);
  AllocationOptions options = OptionsOf(5, 0);
  options.fbit_choices = {8, 4, 2};
  options.separate_kv = true;
  const auto bytes = [&](int bits) {
    return 5 * BlockBytes(options.cache, 0, options.max_len, bits, bits);
  };
  options.memory_budget_bytes = (bytes(2) + bytes(4)) / 2;
  Allocation plain = Allocate(sensitivity, options);
  options.mirrored = true;
  const Allocation mirrored = Allocate(sensitivity, options);
  EXPECT_NE(mirrored.k_bits, plain.k_bits);
  std::reverse(plain.k_bits.begin(), plain.k_bits.end());
  std::reverse(plain.v_bits.begin(), plain.v_bits.end());
  std::reverse(plain.budget_bytes.begin(), plain.budget_bytes.end());
  EXPECT_EQ(mirrored.k_bits, plain.k_bits);
  EXPECT_EQ(mirrored.v_bits, plain.v_bits);
  EXPECT_EQ(mirrored.budget_bytes, plain.budget_bytes);
  EXPECT_NEAR(mirrored.objective, plain.objective, 1e-12 * plain.objective);
}

// Three widths, K and V apart, as --fbit-choices 8,4,2 --separate-kv asks: every block of L = 2 has
// nine choices, and none of the 81 pairs that fit is better.
TEST(Allocate, ThreeWidthsApartEqualBruteForce) {
  const Sensitivity sensitivity = RandomSensitivity(2, 11);
  AllocationOptions options = OptionsOf(2, 0);
  options.fbit_choices = {8, 4, 2};
  options.separate_kv = true;
  const auto bytes = [&](int k_bits, int v_bits) {
    return BlockBytes(options.cache, 0, options.max_len, k_bits, v_bits);
  };
  for (const int64_t budget : {2 * bytes(2, 2), bytes(4, 2) + bytes(2, 2), 2 * bytes(4, 2),
                               bytes(8, 2) + bytes(4, 4), 2 * bytes(8, 8)}) {
    options.memory_budget_bytes = budget;
    double best = INFINITY;
    const int widths[] = {8, 4, 2};
    for (const int k0 : widths) {
      for (const int v0 : widths) {
        for (const int k1 : widths) {
          for (const int v1 : widths) {
            if (bytes(k0, v0) + bytes(k1, v1) > budget) continue;
            best = std::min(
                best, sensitivity.k[WidthIndex(k0)][0] + sensitivity.v[WidthIndex(v0)][0] +
                          sensitivity.k[WidthIndex(k1)][1] + sensitivity.v[WidthIndex(v1)][1]);
          }
        }
      }
    }
    EXPECT_NEAR(Allocate(sensitivity, options).objective, best, 1e-12 * best);
  }
}

TEST(Allocate, IncompleteSensitivitiesAreNamed) {
  const AllocationOptions options = OptionsOf(5, int64_t{1} << 30);
  Sensitivity sensitivity = RandomSensitivity(4, 1);
  ExpectError<InvalidInput>([&] { Allocate(sensitivity, options); },
                            {"found 4 values, expected 5"});
  sensitivity = RandomSensitivity(5, 1);
  sensitivity.v[WidthIndex(4)].clear();
  ExpectError<InvalidInput>([&] { Allocate(sensitivity, options); }, {"v.4", "found 0 values"});
  sensitivity = RandomSensitivity(5, 1);
  sensitivity.k[WidthIndex(2)][3] = std::numeric_limits<double>::quiet_NaN();
  ExpectError<InvalidInput>([&] { Allocate(sensitivity, options); }, {"k.2[3]"});
  // Widths that were not asked for may be missing.
  sensitivity = RandomSensitivity(5, 1);
  sensitivity.k[0].clear();
  sensitivity.v[1].clear();
  EXPECT_EQ(Allocate(sensitivity, options).k_bits.size(), 5u);
}

}  // namespace
}  // namespace pmkvq
