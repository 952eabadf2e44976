#include "pmkvq/research/methods/registry.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <numeric>
#include <set>

#include "pmkvq/base/error.h"
#include "pmkvq/kv/spec/packed_spec.h"
#include "pmkvq/research/methods/reference_cache.h"
#include "support/expect_error.h"
#include "support/temp_folder.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;

constexpr UniformKvGeometry kGeometry{3, 4, 2, 16};

KvRequirements Needs(int64_t max_len = 1000) { return {kGeometry, 2, max_len, 1}; }

KvOptions OptionsFor(const std::string& spec) {
  KvOptions options;
  options.spec = spec;
  return options;
}

// Blocks with 4, 2 and 4 bits.
std::shared_ptr<Plan> MakePlan() {
  auto plan = std::make_shared<Plan>();
  plan->geometry = kGeometry;
  plan->settings.sink_tokens = 4;
  plan->settings.window_tokens = 256;
  plan->k_bits = {4, 2, 4};
  plan->v_bits = {2, 2, 4};
  plan->budget_bytes = {60000, 50000, 70000};
  for (int i = 0; i < 3; ++i) {
    plan->key_scales.emplace_back(DType::kF32, Shape{2, 8});
    std::fill_n(plan->key_scales.back().As<float>(), 16, 2.0f);
  }
  return plan;
}

TEST(Registry, Fp16TakesWhatMaxLenNeeds) {
  const CacheConfig config = ResolveCacheConfig(OptionsFor("fp16"), Needs());
  EXPECT_EQ(config.close_bits, 16);
  EXPECT_EQ(config.floor_bits, 16);
  EXPECT_EQ(config.sink_tokens, 1);
  EXPECT_EQ(config.window_tokens, 128);
  EXPECT_EQ(config.max_sequences, 2);
  EXPECT_EQ(config.float_type, DType::kF16);
  EXPECT_EQ(config.budget_bytes, std::vector<int64_t>(3, BlockBytes(config, 0, 1000, 16, 16)));
  EXPECT_TRUE(config.k_bits.empty());
}

// Latent attention: a SPEC's width is that of c; k_r has 8 bits at least, or what rope= says.
TEST(Registry, LatentsHaveAFloorForTheirRopePart) {
  KvRequirements needs = Needs();
  needs.geometry.blocks.assign(3, LatentBlockOf(4, 256, 64));
  const auto expect = [&](const std::string& spec, PageWidths close, PageWidths floor) {
    SCOPED_TRACE(spec);
    const CacheConfig config = ResolveCacheConfig(OptionsFor(spec), needs);
    EXPECT_EQ(CloseWidths(config, 1), close);
    EXPECT_EQ(FloorWidths(config, 1), floor);
    return config;
  };
  const auto bytes = [](const CacheConfig& config, int k, int v) {
    return std::vector<int64_t>(3, BlockBytes(config, 0, 1000, k, v));
  };
  CacheConfig config = expect("fp16", {16, 16}, {16, 16});
  EXPECT_EQ(config.budget_bytes, bytes(config, 16, 16));
  config = expect("static-4", {4, 8}, {4, 8});
  EXPECT_EQ(config.budget_bytes, bytes(config, 4, 8));
  config = expect("static-2:rope=4", {2, 4}, {2, 4});
  EXPECT_EQ(config.budget_bytes, bytes(config, 2, 4));
  config = expect("static-8:rope=16", {8, 16}, {8, 16});
  config = expect("pm-kvq:bits=4", {16, 16}, {2, 8});
  EXPECT_EQ(config.budget_bytes, bytes(config, 4, 8));
  config = expect("pm-kvq:static+k=4+v=4", {4, 4}, {4, 4});
  EXPECT_EQ(config.budget_bytes, bytes(config, 4, 4));
  config = expect("pm-kvq:bits=2+rope=4", {16, 16}, {2, 4});
  EXPECT_EQ(config.budget_bytes, bytes(config, 2, 4));
}

TEST(Registry, PlansOfLatentsBringTheirFloor) {
  KvRequirements needs = Needs();
  needs.geometry.blocks.assign(3, LatentBlockOf(4, 256, 64));
  auto plan = std::make_shared<Plan>();
  plan->geometry = needs.geometry;
  plan->k_bits = {4, 2, 4};
  plan->v_bits = {4, 4, 8};
  plan->rope_floor_bits = 4;
  plan->budget_bytes = {190000, 180000, 195000};
  for (int i = 0; i < 3; ++i) {
    plan->key_scales.emplace_back(DType::kF32, Shape{256 + 64});
    std::fill_n(plan->key_scales.back().As<float>(), 320, 2.0f);
  }
  KvOptions options = OptionsFor("pm-kvq");
  options.plan = plan;
  const CacheConfig config = ResolveCacheConfig(options, needs);
  EXPECT_EQ(FloorWidths(config, 0), (PageWidths{2, 4}));
  EXPECT_EQ(PlannedWidths(config, 2), (PageWidths{4, 8}));
  EXPECT_EQ(config.budget_bytes, plan->budget_bytes);
  ASSERT_NE(config.key_scales, nullptr);
  EXPECT_EQ(config.key_scales->key_factors(1)[319], 0.5f);
}

TEST(Registry, WhatKnowsNoLatentsIsRefusedByName) {
  KvRequirements needs = Needs();
  needs.geometry.blocks.assign(3, LatentBlockOf(4, 256, 64));
  for (const std::string spec : {"rtn", "kivi", "mikv"}) {
    ExpectError<Unsupported>([&] { MakeKvStore(OptionsFor(spec), needs); },
                             {"--kv " + spec, "latents of 256 + 64 values"});
  }
  KvOptions options = OptionsFor("pm-kvq:bits=4");
  options.reference_accounting = true;
  ExpectError<Unsupported>([&] { MakeKvStore(options, needs); },
                           {"--reference-accounting", "latents of 256 + 64 values"});
}

TEST(Registry, StaticMethodsCloseAndStayAtTheirWidth) {
  for (const int bits : {8, 4, 2}) {
    const CacheConfig config =
        ResolveCacheConfig(OptionsFor("static-" + std::to_string(bits)), Needs());
    EXPECT_EQ(config.close_bits, bits);
    EXPECT_EQ(config.floor_bits, bits);
    EXPECT_EQ(config.budget_bytes,
              std::vector<int64_t>(3, BlockBytes(config, 0, 1000, bits, bits)));
  }
}

TEST(Registry, PmKvqTakesTheBudgetOfTheBitsKey) {
  for (const int bits : {16, 8, 4, 2}) {
    KvOptions options = OptionsFor("pm-kvq:bits=" + std::to_string(bits));
    options.init_kv_bits = 8;
    options.policy = PolicyKind::kOldestFirst;
    const CacheConfig config = ResolveCacheConfig(options, Needs());
    EXPECT_EQ(config.close_bits, 8);
    EXPECT_EQ(config.floor_bits, 2);
    EXPECT_EQ(config.policy, PolicyKind::kOldestFirst);
    EXPECT_EQ(config.budget_bytes,
              std::vector<int64_t>(3, BlockBytes(config, 0, 1000, bits, bits)));
  }
}

TEST(Registry, PlanGivesPmKvqItsBudgetsWidthsSinkAndWindow) {
  KvOptions options = OptionsFor("pm-kvq");
  options.plan = MakePlan();
  const CacheConfig config = ResolveCacheConfig(options, Needs());
  EXPECT_EQ(config.budget_bytes, options.plan->budget_bytes);
  EXPECT_EQ(config.k_bits, options.plan->k_bits);
  EXPECT_EQ(config.v_bits, options.plan->v_bits);
  EXPECT_EQ(config.sink_tokens, 4);
  EXPECT_EQ(config.window_tokens, 256);

  options.sink_tokens = 0;
  options.window_tokens = 128;
  const CacheConfig own = ResolveCacheConfig(options, Needs());
  EXPECT_EQ(own.sink_tokens, 0);
  EXPECT_EQ(own.window_tokens, 128);
}

TEST(Registry, BitsKeyReplacesThePlansBudgets) {
  KvOptions options = OptionsFor("pm-kvq:bits=4");
  options.plan = MakePlan();
  const CacheConfig config = ResolveCacheConfig(options, Needs());
  EXPECT_EQ(config.budget_bytes, std::vector<int64_t>(3, BlockBytes(config, 0, 1000, 4, 4)));
  EXPECT_TRUE(config.k_bits.empty());
  EXPECT_EQ(&KeyScalesOf(options), &options.plan->key_scales);
}

TEST(Registry, PlanGivesUniformMethodsNoBudgets) {
  KvOptions options = OptionsFor("static-4");
  options.plan = MakePlan();
  const CacheConfig config = ResolveCacheConfig(options, Needs());
  EXPECT_EQ(config.budget_bytes, std::vector<int64_t>(3, BlockBytes(config, 0, 1000, 4, 4)));
  EXPECT_EQ(config.sink_tokens, 4);
  EXPECT_EQ(config.window_tokens, 256);
}

TEST(Registry, BudgetIsSplitEvenlyOrAsThePlan) {
  KvOptions options = OptionsFor("pm-kvq");
  options.budget_bytes = 240001;
  EXPECT_EQ(ResolveCacheConfig(options, Needs()).budget_bytes, std::vector<int64_t>(3, 80000));

  options.plan = MakePlan();
  const std::vector<int64_t> as_plan = {80000, 66666, 93333};  // 60 : 50 : 70
  EXPECT_EQ(ResolveCacheConfig(options, Needs()).budget_bytes, as_plan);

  options.spec = "static-2";
  EXPECT_EQ(ResolveCacheConfig(options, Needs()).budget_bytes, std::vector<int64_t>(3, 80000));
}

TEST(Registry, ReferenceAccountingCountsPayloadOnly) {
  KvOptions options = OptionsFor("pm-kvq:bits=4");
  options.reference_accounting = true;
  const CacheConfig config = ResolveCacheConfig(options, Needs(4096));
  EXPECT_EQ(config.budget_bytes, std::vector<int64_t>(3, 4 * 32 * 4096 * 2 / 8));
  EXPECT_NE(dynamic_cast<ReferenceKvCache*>(MakeKvStore(options, Needs(4096)).get()), nullptr);
  EXPECT_TRUE(ResolveKvBudget(options, Needs(4096)).Holds(1 << 20)) << "the store ends by itself";
  ExpectError<Unsupported>([&] { ResolvePackedConfig(options, Needs(4096)); },
                           {"--reference-accounting", "payload"});
  options.policy = PolicyKind::kOldestFirst;
  ExpectError<InvalidInput>([&] { ResolveCacheConfig(options, Needs(4096)); },
                            {"--reference-accounting", "--policy oldest-first", "layer-budget"});

  // A plan that was made so says so itself.
  auto plan = MakePlan();
  plan->settings.window_tokens = 128;
  plan->settings.reference_accounting = true;
  options = OptionsFor("pm-kvq");
  options.plan = plan;
  EXPECT_TRUE(CountsPayload(options));
  EXPECT_NE(dynamic_cast<ReferenceKvCache*>(MakeKvStore(options, Needs()).get()), nullptr);
  // Widths of the SPEC's own, or a budget, take nothing of it.
  options.budget_bytes = 10'000'000;
  EXPECT_FALSE(CountsPayload(options));
  options.budget_bytes = 0;
  options.spec = "pm-kvq:bits=4";
  EXPECT_FALSE(CountsPayload(options));
}

TEST(Registry, KeyScalesComeFromThePlanUnlessSwitchedOff) {
  KvOptions options = OptionsFor("fp16");
  EXPECT_TRUE(KeyScalesOf(options).empty());
  options.plan = MakePlan();
  EXPECT_EQ(&KeyScalesOf(options), &options.plan->key_scales);
  options.spec = "fp16:scales=on";
  EXPECT_EQ(&KeyScalesOf(options), &options.plan->key_scales);
  options.spec = "fp16:scales=off";
  EXPECT_TRUE(KeyScalesOf(options).empty());
}

TEST(Registry, MakesAStoreOfTheseSizes) {
  const std::unique_ptr<KvStore> store = MakeKvStore(OptionsFor("static-4"), Needs());
  ASSERT_NE(store, nullptr);
  EXPECT_TRUE(store->Open().has_value());
  EXPECT_TRUE(store->Open().has_value());
  EXPECT_FALSE(store->Open().has_value());
  const std::vector<int64_t> budgets =
      ResolveCacheConfig(OptionsFor("static-4"), Needs()).budget_bytes;
  EXPECT_EQ(store->SequenceStats(0).budget_bytes,
            std::accumulate(budgets.begin(), budgets.end(), int64_t{0}));
}

TEST(Registry, EveryMethodDeclaresItsKeys) {
  std::set<std::string> names;
  for (const MethodInfo& method : ListMethods()) {
    SCOPED_TRACE(method.name);
    EXPECT_TRUE(names.insert(method.name).second) << "two methods of one name";
    EXPECT_FALSE(method.description.empty());
    bool takes_file = false;
    std::set<std::string> keys;
    for (const SpecKey& key : method.keys) {
      EXPECT_TRUE(keys.insert(key.name).second) << key.name << " is declared twice";
      EXPECT_FALSE(key.help.empty()) << key.name;
      takes_file |= key.name == "from" && key.kind == SpecKey::Kind::kFile;
      const bool is_word = key.kind == SpecKey::Kind::kWord;
      EXPECT_EQ(key.fallback.empty(), is_word) << key.name;
      if (is_word || key.kind == SpecKey::Kind::kFile) continue;
      ExpectError<InvalidInput>([&] { FilesOfSpec(method.name + ":" + key.name + "=wrong"); },
                                {"--kv", key.name + "=wrong, expected " + key.Values()});
      for (const std::string& choice : key.choices) {
        MethodSpec spec;
        spec.keys[key.name] = choice;
        spec.Check(method.keys);
      }
    }
    EXPECT_EQ(takes_file, method.is_calibrated);
  }
  EXPECT_TRUE(names.contains("pm-kvq"));
}

// Which values are files is declared: the file system is not asked.
TEST(Registry, FilesOfASpec) {
  const testing_support::TempFolder folder;
  const std::filesystem::path before = std::filesystem::current_path();
  std::filesystem::current_path(folder.path());
  std::filesystem::create_directory("2");
  folder.Write("none", "");
  EXPECT_TRUE(FilesOfSpec("kivi:bits=2").empty());
  EXPECT_TRUE(FilesOfSpec("pm-kvq:plan=none+bits=2").empty());
  const std::vector<std::pair<std::string, std::string>> plan = {{"plan", "missing.json"}};
  EXPECT_EQ(FilesOfSpec("pm-kvq:plan=missing.json"), plan);
  const std::vector<std::pair<std::string, std::string>> from = {{"from", "2"}};
  EXPECT_EQ(FilesOfSpec("oscar:from=2"), from);
  std::filesystem::current_path(before);
}

TEST(Registry, SimulatedMethodsTakeABudgetAndNoKeyScales) {
  KvOptions options = OptionsFor("rtn:bits=4");  // 2 * 2 * (8 + 4) = 48 bytes a token and block.
  options.plan = MakePlan();
  EXPECT_TRUE(KeyScalesOf(options).empty());
  const KvBudget by_length = ResolveKvBudget(options, Needs());
  EXPECT_EQ(by_length.packed(), nullptr);
  EXPECT_EQ(by_length.total_bytes(), 3 * 48 * 1000);
  EXPECT_TRUE(by_length.Holds(1000));
  EXPECT_FALSE(by_length.Holds(1001));
  EXPECT_EQ(by_length.SmallestThatHolds(1001), 3 * 48 * 1001);

  options.budget_bytes = 3 * 48 * 10 + 2;
  const KvBudget given = ResolveKvBudget(options, Needs());
  EXPECT_EQ(given.total_bytes(), 3 * 48 * 10);
  const std::unique_ptr<KvStore> store = MakeKvStore(options, Needs());
  const SequenceId seq = store->Open().value();
  EXPECT_EQ(store->SequenceStats(seq).budget_bytes, 3 * 48 * 10);
  EXPECT_EQ(store->Reserve(seq, 11), ReserveResult::kBudgetExhausted);
  EXPECT_EQ(store->Reserve(seq, 10), ReserveResult::kReserved);

  options.reference_accounting = true;
  ExpectError<InvalidInput>([&] { ResolveKvBudget(options, Needs()); },
                            {"--reference-accounting", "rtn counts every byte"});
}

TEST(Registry, PackedBudgetsKnowTheirFloor) {
  KvOptions options = OptionsFor("pm-kvq:bits=4");
  const KvBudget budget = ResolveKvBudget(options, Needs());
  ASSERT_NE(budget.packed(), nullptr);
  EXPECT_EQ(budget.packed()->budget_bytes, ResolveCacheConfig(options, Needs()).budget_bytes);
  EXPECT_TRUE(budget.Holds(1000)) << "and more, at 2 bits";
  EXPECT_EQ(budget.AtBest(), " even at 2 bits");
  EXPECT_FALSE(budget.Holds(4000));
  EXPECT_EQ(budget.SmallestThatHolds(4000), SmallestBudget(*budget.packed(), 4000));
}

TEST(Registry, NamesWhatIsWrong) {
  const auto expect = [](const KvOptions& options, std::initializer_list<std::string> parts) {
    ExpectError<InvalidInput>([&] { ResolveCacheConfig(options, Needs()); }, parts);
  };
  expect(
      OptionsFor("int4"),
      {"--kv", "'int4'", "fp16, static-8, static-4, static-2, pm-kvq, rtn, kivi, mikv, rotatekv"});
  expect(OptionsFor("pm-kvq:bits=3"), {"--kv", "bits=3", "expected one of 16, 8, 4, 2"});
  expect(OptionsFor("pm-kvq:scales=maybe"), {"--kv", "scales=maybe", "expected one of on, off"});
  expect(OptionsFor("pm-kvq:width=4"), {"--kv", "unknown key 'width'", "expected plan=, scales="});
  expect(OptionsFor("static-4:bits=4"), {"--kv", "'bits' for static-4", "expected plan=, scales="});
  expect(OptionsFor("fp16:reference"), {"--kv", "unknown word 'reference' for fp16"});
  expect(OptionsFor("pm-kvq"), {"--kv", "pm-kvq has no budget", "--kv-budget"});

  KvOptions options = OptionsFor("pm-kvq:bits=4");
  options.budget_bytes = 1000000;
  expect(options, {"--kv", "--kv-budget 1000000", "expected one of them"});
  options.budget_bytes = -1;
  expect(options, {"--kv-budget", "found -1"});

  options = OptionsFor("pm-kvq:bits=4");
  options.init_kv_bits = 5;
  expect(options, {"--n-init-kv-bits", "found 5"});
  options.spec = "static-4";  // Has no initial width.
  EXPECT_EQ(ResolveCacheConfig(options, Needs()).close_bits, 4);

  options.window_tokens = 100;
  expect(options, {"--n-window-token", "found 100"});
  options = OptionsFor("pm-kvq");
  options.budget_bytes = 3000;
  expect(options, {"--kv-budget", "found 1000 bytes"});

  auto plan = MakePlan();
  plan->geometry = UniformKvGeometry{12, 4, 2, 16};
  options = OptionsFor("fp16");
  options.plan = plan;
  expect(options, {"--plan", "12 blocks", "expected 3 blocks"});
}

// A method that keeps every value as it is.
class Idle final : public CacheMethod {
 public:
  explicit Idle(int64_t bytes) : bytes_(bytes) {}
  void OnAppend(int64_t, const AppendedTokens&, SimulatedBlock&, MethodState*) const override {}
  int64_t BlockBytes(int64_t, int64_t num_tokens) const override { return bytes_ * num_tokens; }
  ByteGrowth Growth(int64_t) const override { return {}; }

 private:
  int64_t bytes_;
};

SimulatedMethod IdleMethod(const std::string& name, int64_t bytes) {
  SimulatedMethod method;
  method.name = name;
  method.description = "keeps all";
  method.keys = {IntegerKey("more", 0, 10, "0", "bytes")};
  method.make = [bytes](const MethodSpec& spec, const MethodContext&) {
    return std::make_shared<const Idle>(bytes + spec.Integer("more", 0));
  };
  method.code_hash = "hash of " + std::to_string(bytes);
  return method;
}

TEST(Registry, MethodsMayBeAddedAndReplaced) {
  ExpectError<InvalidInput>([] { ResolveKvBudget(OptionsFor("idle"), Needs()); }, {"--kv", "idle"});
  AddMethod(IdleMethod("idle", 5));
  EXPECT_EQ(ResolveKvBudget(OptionsFor("idle:more=2"), Needs(10)).total_bytes(), 3 * 7 * 10);
  EXPECT_EQ(ListMethods().back().name, "idle");
  EXPECT_TRUE(ListMethods().back().is_simulated);
  EXPECT_EQ(CodeHashOfSpec("idle"), "hash of 5");
  EXPECT_EQ(CodeHashOfSpec("rtn"), "");
  const std::unique_ptr<KvStore> store = MakeKvStore(OptionsFor("idle"), Needs(10));
  AddMethod(IdleMethod("idle", 9));
  EXPECT_EQ(ResolveKvBudget(OptionsFor("idle"), Needs(10)).total_bytes(), 3 * 9 * 10);
  EXPECT_TRUE(RemoveMethod("idle"));
  EXPECT_FALSE(RemoveMethod("idle"));
  EXPECT_FALSE(RemoveMethod("rtn"));
  ExpectError<InvalidInput>([] { ResolveKvBudget(OptionsFor("idle"), Needs()); }, {"--kv", "idle"});
  EXPECT_EQ(store->StoreStats().arena_bytes, 0u) << "a cache keeps its method";
  for (const char* name : {"rtn", "fp16", "", "Upper", "9", "a b", "-a"}) {
    ExpectError<InvalidInput>([&] { AddMethod(IdleMethod(name, 1)); }, {"method", name});
  }
}

}  // namespace
}  // namespace pmkvq
