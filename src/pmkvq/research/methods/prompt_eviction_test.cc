// SnapKV, PyramidKV and quantised pruning: what a prompt leaves, and golden cases.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "pmkvq/io/safetensors.h"
#include "support/damage_rows.h"
#include "support/engine_fixture.h"
#include "support/evicting_driver.h"

namespace pmkvq {
namespace {

using testing_support::Damaged;
using testing_support::ExpectRefused;
using testing_support::kDriverGeometry;
using testing_support::Kept;
using testing_support::kTokenBytes;
using testing_support::MethodDriver;
using testing_support::NamedTensors;
using testing_support::Rows;

TEST(SnapKv, CountsItsQueriesWhereTheyWait) {
  MethodDriver driver("snapkv:capacity=40+every=16");
  driver.Append(64);
  EXPECT_EQ(driver.BlockBytes(), 40 * kTokenBytes + 8 * 4 * 64 * 2);
  ExpectRefused("snapkv:capacity=16+window=16", "expected more than the 16 tokens of the window");
}

TEST(SnapKv, CutsAPromptOnceAndKeepsWhatFollows) {
  const std::string spec = "snapkv:capacity=40";
  MethodDriver whole(spec);
  whole.Append(150, true);
  EXPECT_EQ(Kept(whole, 0).size(), 40u);
  EXPECT_EQ(whole.stats().bytes, 40 * kTokenBytes);
  EXPECT_EQ(whole.stats().peak_bytes, 150 * kTokenBytes) << "the whole prompt was there";
  MethodDriver chunked(spec);
  for (const int64_t chunk : {70, 77}) chunked.Append(chunk);
  EXPECT_EQ(chunked.stats().kept_share, 1.0);
  chunked.Append(3, true);
  for (int64_t head = 0; head < 2; ++head) EXPECT_EQ(Kept(chunked, head), Kept(whole, head));
  for (int64_t n = 0; n < 100; ++n) whole.Append(1);
  whole.Append(10, true);  // Of a conversation.
  EXPECT_EQ(Kept(whole, 0).size(), 150u);
  EXPECT_EQ(whole.stats().peak_bytes, 150 * kTokenBytes);

  MethodDriver small(spec);
  small.Append(40, true);
  EXPECT_EQ(small.stats().kept_share, 1.0);
}

// The prompt comes in four chunks; the last of the drawn tokens is not stored.
TEST(SnapKv, AnEngineSaysWhereAPromptEnds) {
  SpecEngineOptions options;
  options.kv.spec = "snapkv:capacity=20+window=4";
  options.max_len = 100;
  options.chunk = 16;
  Engine engine = OpenEngine(testing_support::TinyLlama(), nullptr, options);
  const Completion done = testing_support::RunOne(
      engine, testing_support::MakeRequest(testing_support::RandomPrompt(50, 7), 10));
  EXPECT_EQ(done.kv.num_tokens, 59);
  EXPECT_DOUBLE_EQ(done.kv.kept_share, 29.0 / 59);
}

TEST(PyramidKv, KeepsLessInHigherBlocks) {
  const UniformKvGeometry geometry{5, 4, 2, 64};
  const auto kept_of = [&](int64_t prompt) {
    MethodDriver driver("pyramidkv:capacity=48+beta=20", geometry);
    driver.Append(prompt, true);
    std::vector<int64_t> kept;
    for (int64_t layer = 0; layer < 5; ++layer) {
      kept.push_back(driver.block(layer).NumKept(1));
    }
    return kept;
  };
  // C = 40: at most 2 * 40 - 2 = 78 beside the window of 8, steps of (78 - 2) / 4 = 19.
  EXPECT_EQ(kept_of(300), (std::vector<int64_t>{86, 67, 48, 29, 10}));
  // 82 tokens before the window are more than 78; 77 are not: 77 to 3, steps of 18.
  EXPECT_EQ(kept_of(90), (std::vector<int64_t>{86, 67, 48, 29, 10}));
  EXPECT_EQ(kept_of(85), (std::vector<int64_t>{85, 67, 49, 31, 13}));
  EXPECT_EQ(kept_of(79), (std::vector<int64_t>{48, 48, 48, 48, 48})) << "fewer than 2 C";
  EXPECT_EQ(kept_of(48), (std::vector<int64_t>{48, 48, 48, 48, 48}));
}

// tests/golden/methods/pruning.safetensors: 96 tokens, the queries of the last 8, capacity 40.
class PruningGolden : public testing::TestWithParam<const char*> {
 protected:
  PruningGolden()
      : file_(SafetensorsFile::Open(PMKVQ_SOURCE_DIR "/tests/golden/methods/pruning.safetensors")) {
    for (const char* name : {"k", "v"}) {
      const TensorView& rows = file_.Get(name, DType::kF32, {2, 96, 32});
      Tensor tensor(DType::kF32, {1, 2, 96, 32});
      std::copy_n(rows.As<float>(), rows.num_elements(), tensor.As<float>());
      tensors_.emplace(name, std::move(tensor));
    }
    const TensorView& last = file_.Get("q_last", DType::kF32, {4, 8, 32});
    Tensor q(DType::kF32, {1, 4, 96, 32});
    for (int64_t head = 0; head < 4; ++head) {
      std::copy_n(last.As<float>() + head * 8 * 32, 8 * 32, q.As<float>() + (head * 96 + 88) * 32);
    }
    tensors_.emplace("q", std::move(q));
  }
  std::string pool() const { return GetParam(); }
  std::string keys() const {
    return "capacity=40+window=8+pool=" + pool() + (pool() == "max" ? "+kernel=7" : "+kernel=5");
  }

  // The kept tokens of both heads are the golden's.
  void ExpectKept(const DamageResult& result) const {
    const TensorView& kept = file_.Get(pool() + ".kv_head.kept", DType::kI32, {2, 40});
    for (int64_t head = 0; head < 2; ++head) {
      std::vector<int32_t> found;
      for (int32_t token = 0; token < 96; ++token) {
        if (result.kept.As<uint8_t>()[head * 96 + token] == 1) found.push_back(token);
      }
      const auto* const expected = kept.As<int32_t>() + head * 40;
      EXPECT_EQ(found, std::vector<int32_t>(expected, expected + 40));
    }
  }

  SafetensorsFile file_;
  NamedTensors tensors_;
};

TEST_P(PruningGolden, SnapKvKeepsTheSameTokens) {
  const DamageResult result = Damaged(tensors_, "snapkv:" + keys(), 96);
  ExpectKept(result);
  EXPECT_DOUBLE_EQ(result.kept_share, 40.0 / 96);
  EXPECT_EQ(result.bytes.back(), 40 * 2 * 2 * 32 * 4);
  EXPECT_EQ(result.peak_bytes, 96 * 2 * 2 * 32 * 4);
}

TEST_P(PruningGolden, SurvivorsAreQuantised) {
  const DamageResult result =
      Damaged(tensors_, "pruning:" + keys() + "+bits=4+group=16+value-group=32", 96);
  ExpectKept(result);
  for (const auto& [name, read] :
       {std::pair("k_read", &result.k_read), {"v_read", &result.v_read}}) {
    const TensorView& expected = file_.Get(pool() + "." + name, DType::kF32, {2, 40, 32});
    const float* wanted = expected.As<float>();
    float largest = 0;
    for (int64_t i = 0; i < expected.num_elements(); ++i) {
      largest = std::max(largest, std::abs(wanted[i]));
    }
    for (int64_t row = 0; row < 2 * 96; ++row) {
      if (result.kept.As<uint8_t>()[row] == 0) continue;
      for (int64_t i = 0; i < 32; ++i, ++wanted) {
        ASSERT_NEAR(read->As<float>()[row * 32 + i], *wanted, 1e-4f * largest) << name << row;
      }
    }
  }
  // 32 survivors of each head in codes of 4 bits: keys in groups of 16 tokens, values of 32
  // channels.
  EXPECT_EQ(result.bytes.back(), 2 * (32 * 32 / 2 * 2 + 2 * 32 * 8 + 32 * 8) + 2 * 8 * 2 * 32 * 4);
}

INSTANTIATE_TEST_SUITE_P(Pools, PruningGolden, testing::Values("max", "avg"),
                         [](const auto& row) { return std::string(row.param); });

TEST(Pruning, OddSurvivorsAndAllGeneratedTokensStay) {
  MethodDriver driver("pruning:capacity=50+group=32", kDriverGeometry, DType::kF32);
  driver.Append(120, true);
  const std::vector<int64_t> kept = Kept(driver, 0);
  const Rows given = testing_support::MakeRows(kDriverGeometry, 3, 0, 0, 120);
  const auto is_given = [&](int64_t token) {
    const float* const k = driver.block().Key(token, 0);
    return std::equal(k, k + 64, given.k.begin() + token * 128);
  };
  for (size_t i = 0; i < kept.size(); ++i) {
    EXPECT_EQ(is_given(kept[i]), i >= 32) << "42 survivors before the window: one group of keys";
  }
  const int64_t codes = 2 * (32 * 64 / 2 + 64 * 8 + 42 * 64 / 2 + 42 * 8);
  EXPECT_EQ(driver.BlockBytes(), codes + 2 * (10 + 8 + 8) * 64 * 4);
  driver.Append(1);
  EXPECT_EQ(driver.BlockBytes(), codes + 2 * (10 + 8 + 8 + 2) * 64 * 4);
}

}  // namespace
}  // namespace pmkvq
