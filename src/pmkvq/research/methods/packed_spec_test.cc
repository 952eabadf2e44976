#include "pmkvq/kv/spec/packed_spec.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "pmkvq/base/error.h"
#include "pmkvq/research/methods/registry.h"
#include "support/expect_error.h"
#include "support/temp_folder.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;
using testing_support::TempFolder;

constexpr UniformKvGeometry kGeometry{3, 4, 2, 16};

KvRequirements Needs(int64_t max_len = 1000) { return {kGeometry, 2, max_len, 1}; }

KvOptions OptionsFor(const std::string& spec) {
  KvOptions options;
  options.spec = spec;
  return options;
}

CacheConfig Resolve(const KvOptions& options) { return ResolveCacheConfig(options, Needs()); }
CacheConfig Resolve(const std::string& spec) { return Resolve(OptionsFor(spec)); }

// Widths K 4, 2, 4 and V 2, 2, 4.
Plan MakePlan() {
  Plan plan;
  plan.model_identity = "0123456789abcdef0123456789abcdef";
  plan.geometry = kGeometry;
  plan.settings.sink_tokens = 4;
  plan.settings.window_tokens = 256;
  plan.max_len = 1000;
  plan.k_bits = {4, 2, 4};
  plan.v_bits = {2, 2, 4};
  plan.budget_bytes = {60000, 50000, 70000};
  for (int block = 0; block < 3; ++block) {
    Tensor scales(DType::kF32, Shape{2, 8});
    std::fill_n(scales.As<float>(), 16, 1.5f);
    plan.key_scales.push_back(scales);
    plan.alpha.push_back(0.5);
  }
  plan.rep_k_bits = plan.rep_v_bits = 2;
  plan.record.pack = "concat";
  return plan;
}

KvOptions WithPlan(const std::string& spec) {
  KvOptions options = OptionsFor(spec);
  options.plan = std::make_shared<const Plan>(MakePlan());
  return options;
}

std::vector<int> Uniform(int bits) { return {bits, bits, bits}; }

TEST(PackedSpec, SinkAndWindowWinOverOptionsAndPlan) {
  for (const std::string spec :
       {"pm-kvq:bits=4+sink=1024+window=384", "static-2:sink=1024+window=384"}) {
    KvOptions options = WithPlan(spec);
    options.sink_tokens = 2;
    options.window_tokens = 128;
    const CacheConfig config = Resolve(options);
    EXPECT_EQ(config.sink_tokens, 1024);
    EXPECT_EQ(config.window_tokens, 384);
  }
  EXPECT_EQ(Resolve("static-4:sink=0").sink_tokens, 0);
}

TEST(PackedSpec, PolicyWinsOverTheOption) {
  KvOptions options = OptionsFor("pm-kvq:bits=4+policy=oldest-first");
  EXPECT_EQ(Resolve(options).policy, PolicyKind::kOldestFirst);
  options.spec = "pm-kvq:bits=4+policy=layer-budget";
  options.policy = PolicyKind::kOldestFirst;
  EXPECT_EQ(Resolve(options).policy, PolicyKind::kLayerBudget);
}

TEST(PackedSpec, SeparateWidthsWithoutAPlan) {
  const CacheConfig config = Resolve("pm-kvq:k=4+v=2");
  EXPECT_EQ(config.k_bits, Uniform(4));
  EXPECT_EQ(config.v_bits, Uniform(2));
  EXPECT_FALSE(config.static_widths);
  EXPECT_EQ(config.close_bits, 16);
  EXPECT_EQ(config.floor_bits, 2);
  EXPECT_EQ(config.budget_bytes, std::vector<int64_t>(3, BlockBytes(config, 0, 1000, 4, 2)));

  KvOptions options = WithPlan("pm-kvq:k=2+v=8");
  EXPECT_EQ(Resolve(options).v_bits, Uniform(8)) << "not the plan's";
  EXPECT_EQ(Resolve(options).budget_bytes, options.plan->budget_bytes)
      << "an order of halving, the plan's bytes";
  options.spec = "pm-kvq:static+k=2+v=8";
  EXPECT_EQ(Resolve(options).budget_bytes,
            std::vector<int64_t>(3, BlockBytes(Resolve(options), 0, 1000, 2, 8)));
  options.spec = "pm-kvq:k=2+v=8";
  EXPECT_EQ(PackedKeyScales(options).size(), 3u) << "the plan's";
  options.budget_bytes = 180000;
  EXPECT_EQ(Resolve(options).budget_bytes, options.plan->budget_bytes) << "split as the plan's";
  options.plan = nullptr;
  EXPECT_EQ(Resolve(options).budget_bytes, std::vector<int64_t>(3, 60000));
}

TEST(PackedSpec, StaticTakesTheWidthsOfEveryProgressiveSetting) {
  CacheConfig config = Resolve("pm-kvq:static+bits=4");
  EXPECT_TRUE(config.static_widths);
  EXPECT_EQ(config.k_bits, Uniform(4));
  EXPECT_EQ(config.v_bits, Uniform(4));
  EXPECT_EQ(config.budget_bytes, Resolve("static-4").budget_bytes);

  config = Resolve("pm-kvq:static+k=4+v=2");
  EXPECT_TRUE(config.static_widths);
  EXPECT_EQ(config.k_bits, Uniform(4));
  EXPECT_EQ(config.v_bits, Uniform(2));

  KvOptions options = WithPlan("pm-kvq:static");
  config = Resolve(options);
  EXPECT_TRUE(config.static_widths);
  EXPECT_EQ(config.k_bits, options.plan->k_bits);
  EXPECT_EQ(config.v_bits, options.plan->v_bits);
  EXPECT_EQ(config.budget_bytes, options.plan->budget_bytes);
  options.budget_bytes = 180000;
  EXPECT_EQ(Resolve(options).budget_bytes, options.plan->budget_bytes) << "split as the plan's";

  // Widths of the SPEC are no budget here, so that one may be given.
  options = OptionsFor("pm-kvq:static+bits=4");
  options.budget_bytes = 150000;
  EXPECT_EQ(Resolve(options).budget_bytes, std::vector<int64_t>(3, 50000));
}

TEST(PackedSpec, KeysPerChannelNeedFewerBytes) {
  const CacheConfig by_token = Resolve("pm-kvq:bits=4+axis=token");
  const CacheConfig by_channel = Resolve("pm-kvq:bits=4+axis=channel");
  EXPECT_EQ(by_token.k_axis, QuantAxis::kToken);
  EXPECT_EQ(by_channel.k_axis, QuantAxis::kChannel);
  EXPECT_EQ(by_token.budget_bytes, Resolve("pm-kvq:bits=4").budget_bytes);
  // 7 closed pages of 2 heads: 128 pairs of f16 become 16.
  EXPECT_EQ(by_token.budget_bytes[0] - by_channel.budget_bytes[0], 7 * 2 * 2 * (128 - 16) * 2);
}

TEST(PackedSpec, RotationOfKeysAndValues) {
  const auto expect = [](const std::string& value, bool keys, bool values) {
    const CacheConfig config = Resolve("pm-kvq:bits=4+rotate=" + value);
    EXPECT_EQ(config.rotate_keys, keys) << value;
    EXPECT_EQ(config.rotate_values, values) << value;
  };
  expect("off", false, false);
  expect("keys", true, false);
  expect("values", false, true);
  expect("both", true, true);
  EXPECT_FALSE(Resolve("pm-kvq:bits=4").rotate_keys);
  KvRequirements needs = Needs();
  needs.geometry = UniformKvGeometry{3, 4, 2, 24};
  ExpectError<InvalidInput>(
      [&] { ResolveCacheConfig(OptionsFor("pm-kvq:bits=4+rotate=keys"), needs); },
      {"--kv", "rotate: found head_dim 24", "a power of two"});
}

TEST(PackedSpec, StaticBudgetsKnowTheirFloor) {
  // Blocks need different bytes, budgets are split as the plan's.
  KvOptions options = WithPlan("pm-kvq:static");
  for (const int64_t budget_bytes : {0, 200000}) {
    options.budget_bytes = budget_bytes;
    const KvBudget budget = ResolveKvBudget(options, Needs());
    EXPECT_EQ(budget.AtBest(), " even at the planned widths");
    ASSERT_FALSE(budget.Holds(3000));
    KvOptions enough = options;
    enough.budget_bytes = budget.SmallestThatHolds(3000);
    EXPECT_TRUE(ResolveKvBudget(enough, Needs()).Holds(3000));
    enough.budget_bytes -= 8;  // More than rounding to whole bytes takes.
    EXPECT_FALSE(ResolveKvBudget(enough, Needs()).Holds(3000));
  }
  EXPECT_EQ(ResolveKvBudget(OptionsFor("pm-kvq:static+bits=8"), Needs()).AtBest(),
            " even at 8 bits");
}

TEST(PackedSpec, PlanOfTheSpecReplacesTheOption) {
  const TempFolder folder;
  const std::string path = folder.File("own.json");
  Plan plan = MakePlan();
  plan.k_bits = {8, 8, 8};
  SavePlan(plan, path);
  KvOptions options = WithPlan("pm-kvq:plan=" + path);
  options.plan_path = "other.json";

  const KvOptions applied = ApplySpecKeys(options);
  ASSERT_NE(applied.plan, nullptr);
  EXPECT_EQ(applied.plan->k_bits, Uniform(8));
  EXPECT_EQ(applied.plan_path, path);
  EXPECT_EQ(&PackedKeyScales(applied), &applied.plan->key_scales);
  EXPECT_EQ(ApplySpecKeys(applied).plan, applied.plan) << "not read again";
  EXPECT_EQ(Resolve(options).k_bits, Uniform(8));

  std::filesystem::remove(path);
  EXPECT_THROW(ApplySpecKeys(options), IoError);
}

TEST(PackedSpec, PlanNoneIgnoresTheOption) {
  const KvOptions options = WithPlan("pm-kvq:bits=4+plan=none");
  EXPECT_EQ(ApplySpecKeys(options).plan, nullptr);
  EXPECT_TRUE(PackedKeyScales(options).empty());
  EXPECT_EQ(Resolve(options).sink_tokens, 1);
  EXPECT_EQ(Resolve(options).window_tokens, 128);
  EXPECT_TRUE(PackedKeyScales(WithPlan("fp16:plan=none")).empty());
}

TEST(PackedSpec, OptionsOfSimulatedMethodsAreLeftAlone) {
  const KvOptions options = WithPlan("kivi:bits=4");
  EXPECT_EQ(ApplySpecKeys(options).plan, options.plan);
}

TEST(PackedSpec, RecipesAreSpecsThatResolve) {
  std::vector<std::string> names;
  for (const KvRecipe& recipe : KvRecipes()) {
    names.emplace_back(recipe.name);
    KvOptions options = OptionsFor(recipe.spec);
    options.budget_bytes = 1000000;
    EXPECT_NO_THROW(Resolve(options)) << recipe.spec;
  }
  EXPECT_EQ(names, (std::vector<std::string>{"paper", "best"}));
  EXPECT_STREQ(KvRecipes()[0].spec, "pm-kvq") << "the defaults are the paper's";
}

// In a pool prices say what is halved first; the widths of a recipe do not stand in the way.
TEST(PackedSpec, RecipesResolveInAPool) {
  for (const KvRecipe& recipe : KvRecipes()) {
    KvOptions options = OptionsFor(recipe.spec);
    options.pool.bytes = 1000000;
    EXPECT_EQ(Resolve(options).pool.bytes, 1000000) << recipe.spec;
    EXPECT_TRUE(Resolve(options).k_bits.empty()) << recipe.spec;
  }
  KvOptions options = OptionsFor("pm-kvq:static+k=4+v=2");
  options.pool.bytes = 1000000;
  ExpectError<InvalidInput>([&] { Resolve(options); }, {"--kv", "static+k=4+v=2", "pool"});
}

TEST(PackedSpec, AttentionModeReachesTheCache) {
  KvOptions options = OptionsFor("static-4");
  EXPECT_EQ(Resolve(options).attention, AttentionMode::kAccurate);
  options.attention = AttentionMode::kFast;
  EXPECT_EQ(Resolve(options).attention, AttentionMode::kFast);
}

TEST(PackedSpec, WrongKeysAreNamed) {
  const auto expect = [](const std::string& spec, std::initializer_list<std::string> parts) {
    ExpectError<InvalidInput>([&] { Resolve(spec); }, parts);
  };
  expect("pm-kvq:bits=4+sink=65537", {"--kv", "sink=65537", "[0, 65536]"});
  expect("pm-kvq:bits=4+sink=-1", {"--kv", "sink=-1"});
  expect("pm-kvq:bits=4+window=200", {"--kv", "window=200", "a multiple of 128"});
  expect("pm-kvq:bits=4+window=0", {"--kv", "window=0"});
  expect("pm-kvq:bits=4+policy=newest",
         {"--kv", "policy=newest", "one of layer-budget, oldest-first"});
  expect("pm-kvq:bits=4+axis=head", {"--kv", "axis=head", "one of token, channel"});
  expect("pm-kvq:bits=4+rotate=all", {"--kv", "rotate=all", "one of off, keys, values, both"});
  expect("pm-kvq:k=4", {"--kv", "k without v", "both or neither"});
  expect("pm-kvq:v=4", {"--kv", "v without k"});
  expect("pm-kvq:k=4+v=3", {"--kv", "v=3", "one of 16, 8, 4, 2"});
  expect("pm-kvq:k=4+v=2+bits=2", {"--kv", "bits beside k and v", "one of them"});
  expect("pm-kvq:static", {"--kv", "static has no widths"});
  expect("pm-kvq:static+bits=4+policy=oldest-first", {"--kv", "policy beside static"});
  expect("static-4:policy=oldest-first", {"--kv", "unknown key 'policy' for static-4"});
  expect("static-4:static", {"--kv", "unknown word 'static' for static-4"});
  expect("fp16:sink=4", {"--kv", "unknown key 'sink' for fp16"});
  // Other keys are fine, so this is about bits and --kv-budget alone.
  KvOptions options = OptionsFor("pm-kvq:bits=4+sink=4");
  options.budget_bytes = 1000000;
  ExpectError<InvalidInput>([&] { Resolve(options); }, {"--kv-budget 1000000", "one of them"});
}

TEST(PackedSpec, APlanForOtherShapesIsNamedByItsFile) {
  const TempFolder folder;
  Plan plan = MakePlan();
  plan.geometry = UniformKvGeometry{3, 2, 2, 16};
  SavePlan(plan, folder.File("p.json"));
  ExpectError<InvalidInput>([&] { Resolve("fp16:plan=" + folder.File("p.json")); },
                            {folder.File("p.json"), "2 heads", "expected 3 blocks, 4 heads"});
}

}  // namespace
}  // namespace pmkvq
