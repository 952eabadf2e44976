#include "pmkvq/kv/plan.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "pmkvq/base/error.h"
#include "pmkvq/io/file.h"

namespace pmkvq {
namespace {

constexpr char kIdentity[] = "0123456789abcdef0123456789abcdef";

class PlanTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() /
              ("pmkvq_plan_test_" + std::to_string(getpid()) + "_" +
               testing::UnitTest::GetInstance()->current_test_info()->name());
    std::filesystem::create_directories(folder_);
    path_ = folder_ / "plan.json";
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::filesystem::path folder_;
  std::string path_;
};

Plan SomePlan() {
  Plan plan;
  plan.model_identity = kIdentity;
  plan.geometry = UniformKvGeometry{2, 4, 2, 16};
  plan.settings.sink_tokens = 4;
  plan.settings.window_tokens = 256;
  plan.settings.kv_dtype = DType::kBF16;
  plan.max_len = 4096;
  plan.memory_budget_bytes = 123456789;
  plan.k_bits = {4, 2};
  plan.v_bits = {2, 2};
  plan.budget_bytes = {70000, 60000};
  plan.sensitivity.k = {{0.1, 0.2}, {1e-9, 2.5}, {3, 4}, {5, 6}};
  plan.sensitivity.v = {{0, 0}, {0.5, 0.25}, {1.0 / 3.0, 7}, {8, 9}};
  plan.alpha = {0.55, 1};
  plan.rep_k_bits = 4;
  plan.rep_v_bits = 2;
  for (int block = 0; block < 2; ++block) {
    Tensor scales(DType::kF32, {2, 8});
    for (int i = 0; i < 16; ++i) scales.As<float>()[i] = 0.25f * static_cast<float>(i + block + 1);
    plan.key_scales.push_back(scales);
  }
  plan.record = {"chains \"long\".jsonl", "concat", 512, 2048, 8192, ~uint64_t{0}, "q4"};
  return plan;
}

TEST_F(PlanTest, ReadsBackWhatWasSaved) {
  const Plan plan = SomePlan();
  SavePlan(plan, path_);
  const Plan read = LoadPlan(path_);
  EXPECT_EQ(read.model_identity, plan.model_identity);
  EXPECT_EQ(read.geometry, plan.geometry);
  EXPECT_EQ(read.settings.sink_tokens, 4);
  EXPECT_EQ(read.settings.window_tokens, 256);
  EXPECT_EQ(read.settings.kv_dtype, DType::kBF16);
  EXPECT_EQ(read.max_len, 4096);
  EXPECT_EQ(read.memory_budget_bytes, 123456789);
  EXPECT_FALSE(read.settings.reference_accounting);
  EXPECT_EQ(read.k_bits, plan.k_bits);
  EXPECT_EQ(read.v_bits, plan.v_bits);
  EXPECT_EQ(read.budget_bytes, plan.budget_bytes);
  EXPECT_EQ(read.sensitivity.k, plan.sensitivity.k);
  EXPECT_EQ(read.sensitivity.v, plan.sensitivity.v);
  EXPECT_EQ(read.alpha, plan.alpha);
  EXPECT_EQ(read.rep_k_bits, 4);
  EXPECT_EQ(read.rep_v_bits, 2);
  ASSERT_EQ(read.key_scales.size(), 2u);
  for (size_t block = 0; block < 2; ++block) {
    EXPECT_EQ(read.key_scales[block].shape(), (Shape{2, 8}));
    for (int i = 0; i < 16; ++i) {
      EXPECT_EQ(read.key_scales[block].As<float>()[i], plan.key_scales[block].As<float>()[i]);
    }
  }
  EXPECT_EQ(read.record.dataset, plan.record.dataset);
  EXPECT_EQ(read.record.pack, "concat");
  EXPECT_EQ(read.record.num_samples, 512);
  EXPECT_EQ(read.record.seq_len, 2048);
  EXPECT_EQ(read.record.effective_len, 8192);
  EXPECT_EQ(read.record.seed, ~uint64_t{0});
  EXPECT_EQ(read.record.weights, "q4");
}

// Written by the last program that wrote version 1, from SomePlan().
TEST_F(PlanTest, VersionOneIsRead) {
  const Plan read = LoadPlan(PMKVQ_SOURCE_DIR "/tests/golden/plan_version_1.json");
  const Plan plan = SomePlan();
  EXPECT_EQ(read.model_identity, plan.model_identity);
  EXPECT_EQ(read.geometry, plan.geometry);
  EXPECT_EQ(read.k_bits, plan.k_bits);
  EXPECT_EQ(read.v_bits, plan.v_bits);
  EXPECT_EQ(read.budget_bytes, plan.budget_bytes);
  EXPECT_EQ(read.sensitivity.v, plan.sensitivity.v);
  EXPECT_EQ(read.alpha, plan.alpha);
  ASSERT_EQ(read.key_scales.size(), 2u);
  EXPECT_EQ(read.key_scales[1].As<float>()[15], plan.key_scales[1].As<float>()[15]);
  // What is written of it is version 2 and reads the same.
  SavePlan(read, path_);
  EXPECT_NE(ReadFile(path_).find("\"version\": 2"), std::string::npos);
  const Plan again = LoadPlan(path_);
  EXPECT_EQ(again.geometry, plan.geometry);
  EXPECT_EQ(again.k_bits, plan.k_bits);
  EXPECT_EQ(again.v_bits, plan.v_bits);
}

TEST_F(PlanTest, BlocksMayDiffer) {
  Plan plan = SomePlan();
  plan.geometry.blocks = {BlockOf({1, 4, 2, 16}), {4, {}}, BlockOf({1, 8, 1, 64})};
  plan.geometry.blocks[2].sliding_window = 4096;
  plan.k_bits = {4, 16, 2};
  plan.v_bits = {2, 16, 8};
  plan.budget_bytes = {70000, 0, 30000};
  plan.sensitivity = {};
  plan.alpha = {0.5, 0, 0.25};
  plan.key_scales.resize(1);
  plan.key_scales.emplace_back();
  plan.key_scales.emplace_back(DType::kF32, Shape{1, 32});
  for (int i = 0; i < 32; ++i) plan.key_scales[2].As<float>()[i] = 1.5f;
  SavePlan(plan, path_);
  const Plan read = LoadPlan(path_);
  EXPECT_EQ(read.geometry, plan.geometry);
  EXPECT_EQ(read.k_bits, plan.k_bits);
  EXPECT_EQ(read.v_bits, plan.v_bits);
  EXPECT_EQ(read.budget_bytes, plan.budget_bytes);
  EXPECT_EQ(read.key_scales[2].shape(), (Shape{1, 32}));
}

void ExpectRefused(const std::string& path, const std::string& message) {
  try {
    LoadPlan(path);
    FAIL() << "accepted, expected: " << message;
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find(message), std::string::npos) << error.what();
  }
}

Plan LatentPlan() {
  Plan plan = SomePlan();
  plan.geometry.blocks = {LatentBlockOf(6, 512, 64), BlockOf({1, 8, 1, 64})};
  plan.rope_floor_bits = 4;
  plan.k_bits = {4, 2};
  plan.v_bits = {8, 2};
  plan.key_scales[0] = Tensor(DType::kF32, {512 + 64});
  plan.key_scales[1] = Tensor(DType::kF32, {1, 32});
  for (Tensor& scales : plan.key_scales) {
    std::fill_n(scales.As<float>(), scales.num_elements(), 0.5f);
  }
  return plan;
}

TEST_F(PlanTest, LatentBlocksAreVersionThree) {
  const Plan plan = LatentPlan();
  SavePlan(plan, path_);
  EXPECT_NE(ReadFile(path_).find("\"version\": 3"), std::string::npos);
  const Plan read = LoadPlan(path_);
  EXPECT_EQ(read.geometry, plan.geometry);
  EXPECT_EQ(read.rope_floor_bits, 4);
  EXPECT_EQ(read.k_bits, plan.k_bits);
  EXPECT_EQ(read.v_bits, plan.v_bits);
  EXPECT_EQ(read.key_scales[0].shape(), (Shape{576}));
}

TEST_F(PlanTest, WrongLatentBlocksAreNamed) {
  SavePlan(LatentPlan(), path_);
  const std::string good = ReadFile(path_);
  const auto expect = [&](const std::string& from, const std::string& to,
                          const std::string& message) {
    const size_t at = good.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    std::string bad = good;
    WriteFileAtomically(path_, bad.replace(at, from.size(), to));
    ExpectRefused(path_, message);
  };
  expect("\"kind\": \"latent\"", "\"kind\": \"other\"", "model.blocks[0].kind");
  expect("\"heads\": 4", "\"heads\": 3", "rep_scales.0");  // 384 values: not those of the scales.
  expect("\"group\": 128", "\"group\": 64", "latents of r values");
  expect("\"rope_floor_bits\": 4", "\"rope_floor_bits\": 5", "rope_floor_bits");
  // Keys and values of an older version are no latents.
  expect("\"version\": 3", "\"version\": 2", "a multiple of the heads of streams (4)");
}

TEST_F(PlanTest, SaysWhenSensitivitiesWereMirrored) {
  Plan plan = SomePlan();
  SavePlan(plan, path_);
  EXPECT_EQ(ReadFile(path_).find("mirrored"), std::string::npos);
  EXPECT_FALSE(LoadPlan(path_).mirrored);
  plan.mirrored = true;
  SavePlan(plan, path_);
  EXPECT_TRUE(LoadPlan(path_).mirrored);
}

TEST_F(PlanTest, SensitivityAndScalesAreOptional) {
  for (const DType dtype : {DType::kF16, DType::kF32}) {
    Plan plan = SomePlan();
    plan.settings.kv_dtype = dtype;
    plan.sensitivity = {};
    plan.alpha.clear();
    plan.key_scales.clear();
    SavePlan(plan, path_);
    EXPECT_FALSE(FileExists((folder_ / "plan.safetensors").string()));
    const Plan read = LoadPlan(path_);
    EXPECT_EQ(read.settings.kv_dtype, dtype);
    EXPECT_TRUE(read.sensitivity.k.empty() && read.alpha.empty() && read.key_scales.empty());
  }
}

TEST_F(PlanTest, ATensorFileOfAnotherPlanIsRefused) {
  Plan plan = SomePlan();
  SavePlan(plan, path_);
  const std::string json = ReadFile(path_);
  plan.key_scales[0].As<float>()[3] = 2.0f;
  SavePlan(plan, path_);
  WriteFileAtomically(path_, json);
  ExpectRefused(path_, "found a file with hash");
  std::filesystem::remove(folder_ / "plan.safetensors");
  ExpectRefused(path_, "plan.safetensors");
}

TEST_F(PlanTest, ScalesMustBePositive) {
  Plan plan = SomePlan();
  plan.key_scales[1].As<float>()[3] = 0.0f;
  SavePlan(plan, path_);
  ExpectRefused(path_, "rep_scales.1: found 0");
}

TEST_F(PlanTest, NamesMustEndInJson) {
  EXPECT_THROW(SavePlan(SomePlan(), folder_ / "plan"), InvalidInput);
  EXPECT_THROW(LoadPlan(folder_ / "plan.txt"), InvalidInput);
  EXPECT_THROW(LoadPlan(folder_ / "absent.json"), IoError);
}

TEST_F(PlanTest, WrongFieldsAreNamed) {
  SavePlan(SomePlan(), path_);
  const std::string good = ReadFile(path_);
  const auto expect = [&](const std::string& from, const std::string& to,
                          const std::string& message) {
    const size_t at = good.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    std::string bad = good;
    WriteFileAtomically(path_, bad.replace(at, from.size(), to));
    ExpectRefused(path_, message);
  };
  expect("\"pmkvq-plan\"", "\"other\"", "format");
  expect("\"version\": 2", "\"version\": 4", "version: found 4, expected 1 to 3");
  expect("\"identity\": \"0123", "\"identity\": \"x123", "model.identity");
  expect("\"count\": 2", "\"count\": 3", "one entry per block (3)");
  expect("\"count\": 2", "\"count\": 10001", "model.blocks[0].count");
  expect("\"num_heads\": 4", "\"num_heads\": 3", "a multiple of the heads of streams (2)");
  expect("\"group\": 16", "\"group\": 12", "model.blocks[0].streams[0].group");
  expect("\"streams\": [", "\"streams\": [{\"heads\": 2, \"width\": 16, \"group\": 16}, ",
         "keys and values, or an empty array");
  expect("\"window_tokens\": 256", "\"window_tokens\": 250", "window_tokens");
  expect("\"sink_tokens\": 4", "\"sink_tokens\": -4", "sink_tokens");
  expect("\"kv_dtype\": \"bf16\"", "\"kv_dtype\": \"f64\"",
         "kv_dtype: found \"f64\", expected one of f16, bf16, f32");
  expect("[4, 2]", "[3, 2]", "bits[0][0]");
  expect("[4, 2]", "[4]", "one width per stream (2)");
  expect("\"budget_bytes\": [70000", "\"budget_bytes\": [0", "budget_bytes");
  expect("\"alpha\": [0.55", "\"alpha\": [1.55", "alpha");
  expect("2.5", "-2.5", "not negative");
  expect("\"seed\": \"18446744073709551615\"", "\"seed\": \"18446744073709551616\"", "seed");
  expect("{", "[", "");
}

TEST_F(PlanTest, APlanOfAnotherModelIsRefused) {
  const Plan plan = SomePlan();
  CheckPlanMatches(plan, kIdentity, path_);
  try {
    CheckPlanMatches(plan, "ffffffffffffffffffffffffffffffff", path_);
    FAIL() << "accepted";
  } catch (const InvalidInput& error) {
    const std::string what = error.what();
    EXPECT_NE(what.find(path_), std::string::npos);
    EXPECT_NE(what.find(kIdentity), std::string::npos);
    EXPECT_NE(what.find("ffffffffffffffffffffffffffffffff"), std::string::npos);
  }
}

}  // namespace
}  // namespace pmkvq
