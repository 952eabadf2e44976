// A packed cache on a CUDA device beside one on the CPU, under the same history: the same
// decisions, bytes and codes, and outputs within the rounding of decode attention.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <memory>

#include "pmkvq/base/error.h"
#include "pmkvq/base/float16.h"
#include "pmkvq/base/random.h"
#include "support/cache_driver.h"
#include "support/device_history.h"
#include "support/expect_error.h"
#include "support/gpu_test.h"

namespace pmkvq {
namespace {

using testing_support::CacheDriver;
using testing_support::DeviceDriver;
using testing_support::ExpectNearOutputs;
using testing_support::ExpectSameSequence;
using testing_support::RandomConfig;
using testing_support::RunHistory;
using testing_support::TwoSizesConfig;

constexpr DeviceId kCuda{Device::kCuda, 0};

class PackedCacheOnCudaTest : public GpuTest {};

TEST_F(PackedCacheOnCudaTest, ProgressiveWithALayerBudget) {
  RunHistory(TwoSizesConfig(900, 4, 4), 1, 40);
}

TEST_F(PackedCacheOnCudaTest, ProgressiveOldestFirstWithHalvingsAhead) {
  CacheConfig config = TwoSizesConfig(1500, 4, 2);
  config.policy = PolicyKind::kOldestFirst;
  config.most_bytes_per_token = 60'000;
  config.sink_tokens = 5;
  RunHistory(config, 2, 40);
}

TEST_F(PackedCacheOnCudaTest, DifferentWidthsOfKeysAndValues) {
  CacheConfig config = TwoSizesConfig(900, 8, 2);
  config.k_bits.assign(4, 8);
  config.v_bits.assign(4, 2);
  RunHistory(config, 3, 30);
  config.static_widths = true;
  RunHistory(config, 4, 30);
}

TEST_F(PackedCacheOnCudaTest, StaticWidthsWithALongSinkAndAWindow) {
  for (const int bits : {8, 4, 2}) {
    CacheConfig config = TwoSizesConfig(2000, 16, 16);
    config.sink_tokens = 128 + 70;
    config.window_tokens = 256;
    testing_support::SetUniform(config, bits);
    RunHistory(config, static_cast<uint64_t>(bits), 25);
  }
}

// Two blocks with windows of several pages and of less than one, beside one without.
CacheConfig WithWindows(CacheConfig config) {
  config.geometry.blocks[2].sliding_window = 300;
  config.geometry.blocks[3].sliding_window = 70;
  return config;
}

TEST_F(PackedCacheOnCudaTest, SlidingWindows) {
  RunHistory(WithWindows(TwoSizesConfig(900, 4, 4)), 11, 40);
  CacheConfig config = WithWindows(TwoSizesConfig(1500, 4, 2));
  config.policy = PolicyKind::kOldestFirst;
  config.sink_tokens = 128 + 5;
  RunHistory(config, 12, 40);
  config.static_widths = true;
  config.k_bits.assign(4, 8);
  config.v_bits.assign(4, 2);
  RunHistory(config, 13, 30);
}

TEST_F(PackedCacheOnCudaTest, KeysPerChannel) {
  CacheConfig config = TwoSizesConfig(900, 4, 4);
  config.k_axis = QuantAxis::kChannel;
  RunHistory(config, 21, 40);
  config.policy = PolicyKind::kOldestFirst;
  config.sink_tokens = 5;
  RunHistory(WithWindows(config), 22, 40);
  for (const int bits : {8, 4, 2}) {
    config = TwoSizesConfig(2000, 16, 16);
    config.k_axis = QuantAxis::kChannel;
    testing_support::SetUniform(config, bits);
    RunHistory(config, static_cast<uint64_t>(30 + bits), 25);
  }
}

TEST_F(PackedCacheOnCudaTest, HeadsOf256Values) {
  for (const QuantAxis axis : {QuantAxis::kToken, QuantAxis::kChannel}) {
    CacheConfig config;
    config.geometry.blocks = {BlockOf({1, 4, 1, 256}), BlockOf({1, 6, 2, 256})};
    config.geometry.blocks[1].sliding_window = 200;
    config.max_len = 4096;
    config.max_sequences = 2;
    config.k_axis = axis;
    for (size_t layer = 0; layer < 2; ++layer) {
      config.budget_bytes.push_back(BlockBytes(config, layer, 900, 4, 4));
    }
    RunHistory(config, axis == QuantAxis::kToken ? 41 : 42, 40);
  }
}

TEST_F(PackedCacheOnCudaTest, Bf16) {
  CacheConfig config = TwoSizesConfig(900, 4, 4);
  config.float_type = DType::kBF16;
  RunHistory(config, 51, 40);
  config.k_axis = QuantAxis::kChannel;
  config.sink_tokens = 128 + 5;
  config.policy = PolicyKind::kOldestFirst;
  RunHistory(WithWindows(config), 52, 40);
}

TEST_F(PackedCacheOnCudaTest, Unquantised) {
  CacheConfig config = TwoSizesConfig(4096, 16, 16);
  config.sink_tokens = 0;
  testing_support::SetUniform(config, 16);
  RunHistory(config, 6, 25);
}

// Random histories under random budgets and widths, every code compared with the CPU's. As long as
// PMKVQ_STRESS_SECONDS says, 5 unless set.
TEST_F(PackedCacheOnCudaTest, StressOfRandomHistories) {
  const char* const asked = std::getenv("PMKVQ_STRESS_SECONDS");
  const double seconds = asked == nullptr ? 5.0 : std::atof(asked);
  const auto start = std::chrono::steady_clock::now();
  uint64_t seed = 100;
  while (std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() <
         seconds) {
    SCOPED_TRACE(seed);
    Random random(seed);
    RunHistory(RandomConfig(random, 4096), seed++, 25);
    if (HasFailure()) return;
  }
  RecordProperty("histories", std::to_string(seed - 100));
}

TEST_F(PackedCacheOnCudaTest, RotatedKeysAndValuesAttendAsOnTheCpu) {
  CacheConfig config = TwoSizesConfig(900, 8, 8);
  config.rotate_keys = config.rotate_values = true;
  CacheDriver cpu(config);
  DeviceDriver cuda(config);
  const SequenceId seq = *cpu.cache().Open();
  ASSERT_EQ(cuda.cache().Open(), seq);
  for (const int64_t chunk : {200, 1, 300, 1, 1}) {
    ASSERT_EQ(cpu.cache().Reserve(seq, chunk), cuda.cache().Reserve(seq, chunk));
    cpu.Forward({{seq, chunk, 9}});
    cuda.Forward({{seq, chunk, 9}});
    ExpectNearOutputs(cpu, cuda);
  }
}

// A fork shares pages and goes on as its original; an image of the CPU's cache opens on the device.
TEST_F(PackedCacheOnCudaTest, ForksAndImagesGoOnWithTheSameCodes) {
  const CacheConfig config = TwoSizesConfig(900, 4, 4);
  CacheDriver cpu(config);
  DeviceDriver cuda(config);
  const SequenceId seq = *cpu.cache().Open();
  ASSERT_EQ(cuda.cache().Open(), seq);
  const auto append = [&](SequenceId id, int64_t chunk) {
    ASSERT_EQ(cpu.cache().Reserve(id, chunk), cuda.cache().Reserve(id, chunk));
    cpu.Forward({{id, chunk, 9}});
    cuda.Forward({{id, chunk, 9}});
  };
  append(seq, 700);
  const SequenceId fork = *cpu.cache().Fork(seq);
  ASSERT_EQ(cuda.cache().Fork(seq), fork);
  append(fork, 150);
  append(seq, 1);
  ExpectSameSequence(cpu, cuda, seq);
  ExpectSameSequence(cpu, cuda, fork);
  const SequenceId opened = *cpu.cache().OpenImage(*cpu.cache().ImageOf(fork), "image");
  ASSERT_EQ(cuda.cache().OpenImage(*cpu.cache().ImageOf(fork), "image"), opened);
  append(opened, 40);
  ExpectSameSequence(cpu, cuda, opened);
  std::vector<float> k(static_cast<size_t>(cuda.cache().NumTokens(opened) * 128));
  std::vector<float> v(k.size());
  cuda.cache().ReadTokens(opened, 0, k.data(), v.data());
  EXPECT_EQ(k, cpu.Read(opened, 0).first);
  EXPECT_EQ(v, cpu.Read(opened, 0).second);
}

// All tokens on the device, as ReadTokens has them: pages of all widths, whole pieces of the sink
// and its rest. Dequantised values are rounded to F16.
TEST_F(PackedCacheOnCudaTest, TokensAreReadOnTheDevice) {
  for (const DType type : {DType::kF16, DType::kBF16}) {
    for (const int64_t sink : {0, 5, 128 + 70}) {
      CacheConfig config = TwoSizesConfig(900, 4, 4);
      config.float_type = type;
      config.sink_tokens = sink;
      for (size_t layer = 0; layer < 4; ++layer) {
        if (!config.geometry.blocks[layer].has_cache()) continue;
        config.budget_bytes[layer] = BlockBytes(config, layer, 900, 4, 4);
      }
      DeviceDriver cuda(config);
      PackedKvCache& cache = cuda.cache();
      const SequenceId seq = *cache.Open();
      for (const int64_t chunk : {3, 400, 1, 1, 300}) {
        ASSERT_NE(cache.Reserve(seq, chunk), ReserveResult::kBudgetExhausted);
        cuda.Forward({{seq, chunk, 9}});
      }
      const int64_t num_tokens = cache.NumTokens(seq);
      const int64_t pieces = sink / kPageTokens * kPageTokens;
      const int64_t in_rest = sink - pieces;
      const int64_t in_pages = num_tokens - in_rest;
      const int64_t num_rows = (in_pages + kPageTokens - 1) / kPageTokens * kPageTokens;
      const KvStream& stream = config.geometry.block(0).k();
      std::vector<float> k(static_cast<size_t>(num_tokens * stream.values()));
      std::vector<float> v(k.size());
      cache.ReadTokens(seq, 0, k.data(), v.data());
      const size_t page_value = type == DType::kF16 ? 2 : 4;
      const Buffer pages(kCuda, 2 * static_cast<size_t>(num_rows * stream.values()) * page_value);
      const Buffer rests(
          kCuda, std::max<size_t>(1, 2 * static_cast<size_t>(in_rest * stream.values()) * 2));
      EXPECT_EQ(cache.LaunchRead(seq, 0,
                                 {pages.data(), pages.data() + pages.num_bytes() / 2, rests.data(),
                                  rests.data() + rests.num_bytes() / 2}),
                0);
      std::vector<std::byte> page_bytes(pages.num_bytes());
      std::vector<std::byte> rest_bytes(rests.num_bytes());
      Stream& own = cache.OnDevice()->stream();
      CopyToHost(own, page_bytes.data(), pages.data(), page_bytes.size());
      CopyToHost(own, rest_bytes.data(), rests.data(), rest_bytes.size());
      own.Synchronize();
      const auto value_of = [&](const std::byte* data, int64_t index, DType of) {
        if (of == DType::kF32) return reinterpret_cast<const float*>(data)[index];
        return of == DType::kF16 ? ToFloat(reinterpret_cast<const F16*>(data)[index])
                                 : ToFloat(reinterpret_cast<const BF16*>(data)[index]);
      };
      const DType page_type = type == DType::kF16 ? DType::kF16 : DType::kF32;
      for (int64_t token = 0; token < num_tokens; ++token) {
        const bool is_rest = token >= pieces && token < sink;
        const int64_t row = is_rest ? token - pieces : token - (token >= sink ? in_rest : 0);
        for (int64_t i = 0; i < stream.values(); ++i) {
          const int64_t rows = is_rest ? in_rest : num_rows;
          const int64_t place = (i / stream.width * rows + row) * stream.width + i % stream.width;
          for (const bool is_values : {false, true}) {
            const std::vector<std::byte>& bytes = is_rest ? rest_bytes : page_bytes;
            const std::byte* const data = bytes.data() + (is_values ? bytes.size() / 2 : 0);
            const float expected =
                (is_values ? v : k)[static_cast<size_t>(token * stream.values() + i)];
            const float found = value_of(data, place, is_rest ? type : page_type);
            const float rounding = std::abs(expected) * (type == DType::kF16 ? 0x1p-11f : 0x1p-22f);
            ASSERT_NEAR(found, expected, rounding) << token << " " << i;
          }
        }
      }
    }
  }
}

TEST_F(PackedCacheOnCudaTest, ValuesThatDoNotFitFailTheirSequenceAlone) {
  const CacheConfig config = TwoSizesConfig(900, 8, 8);
  for (const int64_t chunk : {1, 40}) {
    DeviceDriver cuda(config);
    PackedKvCache& cache = cuda.cache();
    const SequenceId good = *cache.Open();
    const SequenceId bad = *cache.Open();
    ASSERT_EQ(cache.Reserve(good, 1), ReserveResult::kReserved);
    ASSERT_EQ(cache.Reserve(bad, chunk), ReserveResult::kReserved);
    cache.BeginForward({{good, 1}, {bad, chunk}});
    for (const int64_t layer : {0, 2, 3}) {
      const KvBlockGeometry& block = config.geometry.block(layer);
      std::vector<float> q(static_cast<size_t>((1 + chunk) * block.q_values()), 0.25f);
      std::vector<float> k(static_cast<size_t>((1 + chunk) * block.k().values()), 0.5f);
      const std::vector<float> v = k;
      if (layer == 2) k.back() = 1e6f;
      const Buffer memory(kCuda, (2 * q.size() + 2 * k.size()) * sizeof(float));
      auto* const data = reinterpret_cast<float*>(memory.data());
      float* const ks = data + q.size();
      float* const vs = ks + k.size();
      Stream& stream = cache.OnDevice()->stream();
      CopyToDevice(stream, memory.data(), q.data(), q.size() * sizeof(float));
      CopyToDevice(stream, reinterpret_cast<std::byte*>(ks), k.data(), k.size() * sizeof(float));
      CopyToDevice(stream, reinterpret_cast<std::byte*>(vs), v.data(), v.size() * sizeof(float));
      cache.OnDevice()->LaunchBlock(layer, {data, ks, vs, vs + v.size(), chunk == 1 ? 2 : 1});
      stream.Synchronize();
    }
    cache.EndForward();
    EXPECT_EQ(cache.FailureOf(good), nullptr);
    ASSERT_NE(cache.FailureOf(bad), nullptr);
    EXPECT_NE(cache.FailureOf(bad)->where.find("block 2"), std::string::npos);
    EXPECT_NE(cache.FailureOf(bad)->what.find("key"), std::string::npos);
    EXPECT_EQ(cache.NumTokens(good), 1);
    cache.Close(bad);
  }
}

// Keys of +-40000 fit F16, the range of their group does not: it shows when the page is quantised.
TEST_F(PackedCacheOnCudaTest, RangesThatDoNotFitFailTheirSequenceAlone) {
  CacheConfig config = TwoSizesConfig(2000, 16, 16);
  config.device = kCuda;
  testing_support::SetUniform(config, 8);
  for (const int64_t chunk : {1, 150}) {
    PackedKvCache cache(config);
    DeviceKvStore& device = *cache.OnDevice();
    const SequenceId good = *cache.Open();
    const SequenceId bad = *cache.Open();
    const Buffer memory(kCuda, size_t{4} << 20);
    for (int64_t done = 0; done < 150 && cache.FailureOf(bad) == nullptr; done += chunk) {
      ASSERT_EQ(cache.Reserve(good, 1), ReserveResult::kReserved);
      ASSERT_EQ(cache.Reserve(bad, chunk), ReserveResult::kReserved);
      cache.BeginForward({{good, 1}, {bad, chunk}});
      for (const int64_t layer : {0, 2, 3}) {
        const int64_t width = config.geometry.block(layer).k().values();
        std::vector<float> k(static_cast<size_t>((1 + chunk) * width), 0.5f);
        for (size_t i = static_cast<size_t>(width); layer == 2 && i < k.size(); ++i) {
          k[i] = i % 2 == 0 ? 4e4f : -4e4f;
        }
        const std::vector<float> v(k.size(), 0.25f);
        DeviceBlockRows rows;
        rows.k = reinterpret_cast<float*>(memory.data());
        rows.v = rows.k + k.size();
        rows.decode_rows = chunk == 1 ? 2 : 1;
        CopyToDevice(device.stream(), memory.data(), k.data(), k.size() * sizeof(float));
        CopyToDevice(device.stream(), reinterpret_cast<std::byte*>(rows.v), v.data(),
                     v.size() * sizeof(float));
        device.LaunchStore(layer, rows);
        device.stream().Synchronize();
      }
      cache.EndForward();
    }
    EXPECT_EQ(cache.FailureOf(good), nullptr);
    ASSERT_NE(cache.FailureOf(bad), nullptr) << chunk;
    EXPECT_NE(cache.FailureOf(bad)->where.find("block 2"), std::string::npos);
    EXPECT_NE(cache.FailureOf(bad)->what.find("range"), std::string::npos);
  }
}

TEST_F(PackedCacheOnCudaTest, WhatThereIsNoCodeForIsRefusedByName) {
  const auto refuse = [](const CacheConfig& config, const std::string& what) {
    testing_support::ExpectError<Unsupported>([&] { DeviceDriver driver(config); }, {what});
  };
  CacheConfig config = TwoSizesConfig(900, 8, 8);
  config.float_type = DType::kF32;
  refuse(config, "F32");
  config = TwoSizesConfig(900, 8, 8);
  config.geometry.blocks[0] = BlockOf({1, 4, 2, 32});
  refuse(config, "heads of 32");
}

}  // namespace
}  // namespace pmkvq
