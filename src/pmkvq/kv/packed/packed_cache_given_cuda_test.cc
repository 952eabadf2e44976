// Rows of a Forward that come by parts and in another float type: as if they had come at once.
#include <gtest/gtest.h>

#include "support/cache_driver.h"
#include "support/device_history.h"
#include "support/gpu_test.h"

namespace pmkvq {
namespace {

using testing_support::CacheDriver;
using testing_support::DeviceDriver;
using testing_support::MakeRows;
using testing_support::TwoSizesConfig;

constexpr DeviceId kCuda{Device::kCuda, 0};

class GivenRowsOnCudaTest : public GpuTest {};

TEST_F(GivenRowsOnCudaTest, PartsOfAForwardAreTheForward) {
  const CacheConfig config = TwoSizesConfig(900, 4, 4);
  DeviceDriver whole(config);
  DeviceDriver parts(config);
  std::vector<CacheDriver::Part> tokens;
  for (const int64_t prompt : {0, 200, 385}) {  // The last one opens a page.
    const SequenceId seq = *whole.cache().Open();
    ASSERT_EQ(parts.cache().Open(), seq);
    for (DeviceDriver* const driver : {&whole, &parts}) {
      if (prompt == 0) continue;
      ASSERT_NE(driver->cache().Reserve(seq, prompt), ReserveResult::kBudgetExhausted);
      driver->Forward({{seq, prompt, 9}});
    }
    tokens.push_back({seq, 1, 9});
  }
  for (int step = 0; step < 3; ++step) {
    Batch batch;
    for (const auto& token : tokens) {
      ASSERT_EQ(whole.cache().Reserve(token.seq, 1), parts.cache().Reserve(token.seq, 1));
      batch.push_back({token.seq, 1});
    }
    whole.Forward(tokens);
    PackedKvCache& cache = parts.cache();
    Stream& own = cache.OnDevice()->stream();
    cache.BeginForward(batch);
    for (const int64_t layer : {3, 0, 2}) {
      const KvBlockGeometry& block = config.geometry.block(layer);
      std::vector<float> outs;
      for (const auto& [first, count] : {std::pair{2, 1}, std::pair{0, 2}}) {
        std::vector<float> given[3];
        for (int i = first; i < first + count; ++i) {
          const auto& token = tokens[static_cast<size_t>(i)];
          const auto rows =
              MakeRows(config.geometry, token.seed, layer, cache.NumTokens(token.seq), 1);
          given[0].insert(given[0].end(), rows.q.begin(), rows.q.end());
          given[1].insert(given[1].end(), rows.k.begin(), rows.k.end());
          given[2].insert(given[2].end(), rows.v.begin(), rows.v.end());
        }
        std::vector<std::unique_ptr<Buffer>> memory;
        for (const std::vector<float>& values : given) {
          memory.push_back(std::make_unique<Buffer>(kCuda, values.size() * sizeof(float)));
          CopyToDevice(own, memory.back()->data(), values.data(), memory.back()->num_bytes());
          own.Synchronize();
        }
        const Buffer out(kCuda, static_cast<size_t>(count * block.out_values()) * sizeof(float));
        DeviceGivenRows rows;
        rows.heads.q = memory[0]->data();
        rows.heads.k = memory[1]->data();
        rows.heads.v = memory[2]->data();
        rows.first_row = first;
        rows.num_rows = count;
        rows.out = {out.data(), DType::kF32, 1, count};
        cache.LaunchGiven(layer, rows);
        std::vector<float> part(out.num_bytes() / sizeof(float));
        CopyToHost(own, part.data(), out.data(), out.num_bytes());
        own.Synchronize();
        outs.insert(outs.begin(), part.begin(), part.end());
      }
      EXPECT_EQ(outs, whole.outputs()[static_cast<size_t>(layer)]) << step << " " << layer;
    }
    cache.EndForward();
    for (const auto& token : tokens) {
      EXPECT_EQ(cache.ImageOf(token.seq), whole.cache().ImageOf(token.seq));
    }
  }
}

// Attention looks at a prompt's keys and values; where nothing attends, something else must.
TEST_F(GivenRowsOnCudaTest, ValuesThatDoNotFitShowWhereNothingAttends) {
  CacheConfig config = TwoSizesConfig(900, 8, 8);
  config.device = kCuda;
  for (const bool is_values : {false, true}) {
    PackedKvCache cache(config);
    DeviceKvStore& device = *cache.OnDevice();
    const SequenceId good = *cache.Open();
    const SequenceId bad = *cache.Open();
    ASSERT_EQ(cache.Reserve(good, 40), ReserveResult::kReserved);
    ASSERT_EQ(cache.Reserve(bad, 40), ReserveResult::kReserved);
    cache.BeginForward({{good, 40}, {bad, 40}});
    for (const int64_t layer : {0, 2, 3}) {
      std::vector<float> values(static_cast<size_t>(80 * config.geometry.block(layer).k().values()),
                                0.5f);
      const Buffer fitting(kCuda, values.size() * sizeof(float));
      const Buffer other(kCuda, values.size() * sizeof(float));
      CopyToDevice(device.stream(), fitting.data(), values.data(), fitting.num_bytes());
      device.stream().Synchronize();
      if (layer == 2) values.back() = 65520.0f;  // Rounds to more than 65504.
      CopyToDevice(device.stream(), other.data(), values.data(), other.num_bytes());
      DeviceBlockRows rows;
      rows.k = reinterpret_cast<float*>((is_values ? fitting : other).data());
      rows.v = reinterpret_cast<float*>((is_values ? other : fitting).data());
      device.LaunchStore(layer, rows);
      device.stream().Synchronize();
    }
    cache.EndForward();
    EXPECT_EQ(cache.FailureOf(good), nullptr);
    ASSERT_NE(cache.FailureOf(bad), nullptr);
    EXPECT_NE(cache.FailureOf(bad)->where.find("block 2"), std::string::npos);
    EXPECT_NE(cache.FailureOf(bad)->what.find(is_values ? "value" : "key"), std::string::npos);
  }
}

}  // namespace
}  // namespace pmkvq
