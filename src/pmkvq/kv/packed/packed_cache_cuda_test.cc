// A packed cache on a CUDA device beside one on the CPU, under the same history: the same
// decisions, bytes and codes, and outputs within the rounding of decode attention.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <memory>

#include "pmkvq/base/error.h"
#include "pmkvq/base/random.h"
#include "support/cache_driver.h"
#include "support/expect_error.h"
#include "support/gpu_test.h"

namespace pmkvq {
namespace {

using testing_support::CacheDriver;
using testing_support::MakeRows;
using testing_support::Rows;

constexpr DeviceId kCuda{Device::kCuda, 0};
constexpr int64_t kMaxLen = 4096;

// Blocks of 64 and 128 values a head, and one without cache.
CacheConfig MakeConfig(int64_t num_tokens, int k_bits, int v_bits) {
  CacheConfig config;
  config.geometry.blocks = {BlockOf({1, 4, 2, 64}), KvBlockGeometry{4, {}}, BlockOf({1, 6, 2, 128}),
                            BlockOf({1, 4, 2, 64})};
  config.max_len = kMaxLen;
  config.max_sequences = 3;
  for (size_t layer = 0; layer < 4; ++layer) {
    config.budget_bytes.push_back(BlockBytes(config, layer, num_tokens, k_bits, v_bits));
  }
  return config;
}

// A cache on the device, driven as a model there would.
class DeviceDriver {
 public:
  explicit DeviceDriver(CacheConfig config) : config_(OnCuda(std::move(config))), cache_(config_) {}

  PackedKvCache& cache() { return cache_; }
  // Behind `parts` so many decoding rows without meaning.
  void Forward(const std::vector<CacheDriver::Part>& parts, int64_t dead_rows = 0) {
    Batch batch;
    int64_t decode_rows = 0;
    for (const auto& part : parts) {
      batch.push_back({part.seq, part.num_tokens, part.one_by_one});
      if (part.num_tokens == 1 || part.one_by_one) decode_rows += part.num_tokens;
    }
    DeviceKvStore& device = *cache_.OnDevice();
    device.PrepareRows(decode_rows + dead_rows);
    cache_.BeginForward(batch);
    outputs_.assign(static_cast<size_t>(config_.geometry.num_layers()), {});
    for (int64_t layer = 0; layer < config_.geometry.num_layers(); ++layer) {
      const KvBlockGeometry& block = config_.geometry.block(layer);
      if (!block.has_cache()) continue;
      Rows all;
      int64_t num_rows = 0;
      for (const auto& part : parts) {
        const Rows rows = MakeRows(config_.geometry, part.seed, layer, cache_.NumTokens(part.seq),
                                   part.num_tokens);
        all.q.insert(all.q.end(), rows.q.begin(), rows.q.end());
        all.k.insert(all.k.end(), rows.k.begin(), rows.k.end());
        all.v.insert(all.v.end(), rows.v.begin(), rows.v.end());
        num_rows += part.num_tokens;
      }
      num_rows += dead_rows;
      all.q.resize(static_cast<size_t>(num_rows * block.q_values()), NAN);
      all.k.resize(static_cast<size_t>(num_rows * block.k().values()), NAN);
      all.v.resize(all.k.size(), NAN);
      const DeviceBlockRows rows{Upload(0, all.q), Upload(1, all.k), Upload(2, all.v),
                                 Upload(3, all.q), decode_rows + dead_rows};
      device.LaunchBlock(layer, rows);
      std::vector<float>& out = outputs_[static_cast<size_t>(layer)];
      out.resize(all.q.size() - static_cast<size_t>(dead_rows * block.q_values()));
      CopyToHost(device.stream(), out.data(), reinterpret_cast<const std::byte*>(rows.out),
                 out.size() * sizeof(float));
      device.stream().Synchronize();
    }
    cache_.EndForward();
  }
  const std::vector<std::vector<float>>& outputs() const { return outputs_; }

 private:
  static CacheConfig OnCuda(CacheConfig config) {
    config.device = kCuda;
    return config;
  }
  float* Upload(size_t place, const std::vector<float>& values) {
    std::unique_ptr<Buffer>& buffer = buffers_[place];
    if (buffer == nullptr || buffer->num_bytes() < values.size() * sizeof(float)) {
      buffer = std::make_unique<Buffer>(kCuda, values.size() * sizeof(float));
    }
    CopyToDevice(cache_.OnDevice()->stream(), buffer->data(), values.data(),
                 values.size() * sizeof(float));
    cache_.OnDevice()->stream().Synchronize();
    return reinterpret_cast<float*>(buffer->data());
  }

  CacheConfig config_;
  PackedKvCache cache_;
  std::array<std::unique_ptr<Buffer>, 4> buffers_;
  std::vector<std::vector<float>> outputs_;
};

void ExpectSameSequence(CacheDriver& cpu, DeviceDriver& cuda, SequenceId seq) {
  const KvSequenceStats a = cpu.cache().SequenceStats(seq);
  const KvSequenceStats b = cuda.cache().SequenceStats(seq);
  EXPECT_EQ(a.num_tokens, b.num_tokens);
  EXPECT_EQ(a.bytes, b.bytes);
  EXPECT_EQ(a.peak_bytes, b.peak_bytes);
  EXPECT_EQ(a.narrowed_bytes, b.narrowed_bytes);
  EXPECT_EQ(a.pages, b.pages);
  const SequenceImage cpu_image = *cpu.cache().ImageOf(seq);
  const SequenceImage cuda_image = *cuda.cache().ImageOf(seq);
  for (size_t layer = 0; layer < cpu_image.blocks.size(); ++layer) {
    for (const Side side : kSides) {
      ASSERT_EQ(cpu_image.blocks[layer].bytes[side], cuda_image.blocks[layer].bytes[side])
          << "block " << layer << " side " << side << " tokens " << a.num_tokens;
    }
  }
}

void ExpectNearOutputs(CacheDriver& cpu, DeviceDriver& cuda) {
  for (size_t layer = 0; layer < cpu.outputs().size(); ++layer) {
    const std::vector<float>& a = cpu.outputs()[layer];
    const std::vector<float>& b = cuda.outputs()[layer];
    ASSERT_EQ(a.size(), b.size());
    double difference = 0.0;
    double size = 0.0;
    for (size_t i = 0; i < a.size(); ++i) {
      difference += std::pow(double{a[i]} - b[i], 2);
      size += std::pow(double{a[i]}, 2);
    }
    if (a.empty()) continue;
    // NaN fails, too.
    EXPECT_TRUE(std::sqrt(difference / size) < 4e-3)
        << "block " << layer << ": " << std::sqrt(difference / size);
  }
}

class PackedCacheOnCudaTest : public GpuTest {};

// The history of one seed: both caches do the same.
void RunHistory(CacheConfig config, uint64_t seed, int num_actions) {
  Random random(seed);
  const auto draw = [&](uint64_t below) { return static_cast<int64_t>(random.Below(below)); };
  CacheDriver cpu(config);
  DeviceDriver cuda(config);
  std::vector<SequenceId> open;
  while (const auto seq = cpu.cache().Open()) {
    ASSERT_EQ(cuda.cache().Open(), seq);
    open.push_back(*seq);
  }
  constexpr int64_t kChunks[] = {1, 3, 60, 127, 128, 129, 300, 512};
  for (int i = 0; i < num_actions; ++i) {
    SCOPED_TRACE(testing::Message() << "action " << i);
    const int64_t action = draw(12);
    const SequenceId seq = open[static_cast<size_t>(draw(open.size()))];
    const int64_t n = cpu.cache().NumTokens(seq);
    if (action < 4) {
      const int64_t chunk = std::min(kChunks[draw(8)], kMaxLen - n);
      if (chunk == 0) continue;
      const ReserveResult result = cpu.cache().Reserve(seq, chunk);
      ASSERT_EQ(cuda.cache().Reserve(seq, chunk), result);
      if (result == ReserveResult::kBudgetExhausted) continue;
      cpu.Forward({{seq, chunk, seed + static_cast<uint64_t>(seq)}});
      cuda.Forward({{seq, chunk, seed + static_cast<uint64_t>(seq)}});
      ExpectNearOutputs(cpu, cuda);
    } else if (action == 4) {
      const int64_t drawn = draw(static_cast<uint64_t>(n + 1));
      const int64_t wanted = cpu.cache().LongestTruncation(seq, drawn);
      ASSERT_EQ(cuda.cache().LongestTruncation(seq, drawn), wanted);
      cpu.cache().Truncate(seq, wanted);
      cuda.cache().Truncate(seq, wanted);
    } else if (action == 5) {
      cpu.cache().Close(seq);
      cuda.cache().Close(seq);
      ASSERT_EQ(cpu.cache().Open(), seq);
      ASSERT_EQ(cuda.cache().Open(), seq);
    } else if (action == 6) {  // Replayed tokens beside one token of another sequence.
      std::vector<CacheDriver::Part> parts;
      for (const SequenceId member : open) {
        if (cpu.cache().NumTokens(member) + 40 > kMaxLen) continue;
        const int64_t wanted = member == seq ? 40 : 1;
        const int64_t count = cpu.cache().ReserveOneByOne(member, wanted);
        ASSERT_EQ(cuda.cache().ReserveOneByOne(member, wanted), count);
        if (count > 0) {
          parts.push_back({member, count, seed + static_cast<uint64_t>(member), true});
        }
      }
      if (parts.empty()) continue;
      cpu.Forward(parts);
      cuda.Forward(parts);
      ExpectNearOutputs(cpu, cuda);
    } else {  // All that can decode one token do, as one batch, some tokens in a row.
      for (int step = 0; step < 20; ++step) {
        std::vector<CacheDriver::Part> parts;
        for (const SequenceId member : open) {
          if (cpu.cache().NumTokens(member) + 1 > kMaxLen) continue;
          const ReserveResult result = cpu.cache().Reserve(member, 1);
          ASSERT_EQ(cuda.cache().Reserve(member, 1), result);
          if (result == ReserveResult::kBudgetExhausted) continue;
          parts.push_back({member, 1, seed + static_cast<uint64_t>(member)});
        }
        if (parts.empty()) break;
        cpu.Forward(parts);
        cuda.Forward(parts, step % 3);
        ExpectNearOutputs(cpu, cuda);
      }
    }
    const std::vector<HalvingEvent> a = cpu.cache().TakeHalvingEvents();
    const std::vector<HalvingEvent> b = cuda.cache().TakeHalvingEvents();
    ASSERT_EQ(a.size(), b.size());
    for (const SequenceId member : open) ExpectSameSequence(cpu, cuda, member);
    if (testing::Test::HasFailure()) return;
  }
}

TEST_F(PackedCacheOnCudaTest, ProgressiveWithALayerBudget) {
  RunHistory(MakeConfig(900, 4, 4), 1, 40);
}

TEST_F(PackedCacheOnCudaTest, ProgressiveOldestFirstWithHalvingsAhead) {
  CacheConfig config = MakeConfig(1500, 4, 2);
  config.policy = PolicyKind::kOldestFirst;
  config.most_bytes_per_token = 60'000;
  config.sink_tokens = 5;
  RunHistory(config, 2, 40);
}

TEST_F(PackedCacheOnCudaTest, DifferentWidthsOfKeysAndValues) {
  CacheConfig config = MakeConfig(900, 8, 2);
  config.k_bits.assign(4, 8);
  config.v_bits.assign(4, 2);
  RunHistory(config, 3, 30);
  config.static_widths = true;
  RunHistory(config, 4, 30);
}

TEST_F(PackedCacheOnCudaTest, StaticWidthsWithALongSinkAndAWindow) {
  for (const int bits : {8, 4, 2}) {
    CacheConfig config = MakeConfig(2000, 16, 16);
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
  RunHistory(WithWindows(MakeConfig(900, 4, 4)), 11, 40);
  CacheConfig config = WithWindows(MakeConfig(1500, 4, 2));
  config.policy = PolicyKind::kOldestFirst;
  config.sink_tokens = 128 + 5;
  RunHistory(config, 12, 40);
  config.static_widths = true;
  config.k_bits.assign(4, 8);
  config.v_bits.assign(4, 2);
  RunHistory(config, 13, 30);
}

TEST_F(PackedCacheOnCudaTest, KeysPerChannel) {
  CacheConfig config = MakeConfig(900, 4, 4);
  config.k_axis = QuantAxis::kChannel;
  RunHistory(config, 21, 40);
  config.policy = PolicyKind::kOldestFirst;
  config.sink_tokens = 5;
  RunHistory(WithWindows(config), 22, 40);
  for (const int bits : {8, 4, 2}) {
    config = MakeConfig(2000, 16, 16);
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
    config.max_len = kMaxLen;
    config.max_sequences = 2;
    config.k_axis = axis;
    for (size_t layer = 0; layer < 2; ++layer) {
      config.budget_bytes.push_back(BlockBytes(config, layer, 900, 4, 4));
    }
    RunHistory(config, axis == QuantAxis::kToken ? 41 : 42, 40);
  }
}

TEST_F(PackedCacheOnCudaTest, Bf16) {
  CacheConfig config = MakeConfig(900, 4, 4);
  config.float_type = DType::kBF16;
  RunHistory(config, 51, 40);
  config.k_axis = QuantAxis::kChannel;
  config.sink_tokens = 128 + 5;
  config.policy = PolicyKind::kOldestFirst;
  RunHistory(WithWindows(config), 52, 40);
}

TEST_F(PackedCacheOnCudaTest, Unquantised) {
  CacheConfig config = MakeConfig(kMaxLen, 16, 16);
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
    constexpr int kWidths[] = {16, 8, 4, 2};
    CacheConfig config = MakeConfig(300 + static_cast<int64_t>(random.Below(2500)),
                                    kWidths[random.Below(4)], kWidths[random.Below(4)]);
    if (random.Below(3) == 0) config.k_axis = QuantAxis::kChannel;
    if (random.Below(3) == 0) {
      config.geometry.blocks[2].sliding_window = static_cast<int64_t>(1 + random.Below(900));
    }
    config.sink_tokens = static_cast<int64_t>(random.Below(3) == 0 ? random.Below(300) : 1);
    for (size_t layer = 0; layer < config.budget_bytes.size(); ++layer) {
      config.budget_bytes[layer] =
          std::max(config.budget_bytes[layer], FloorBytes(config, layer, config.sink_tokens + 1));
    }
    if (random.Below(2) == 0) {
      config.policy = PolicyKind::kOldestFirst;
      config.most_bytes_per_token = static_cast<int64_t>(1 + random.Below(200'000));
    }
    RunHistory(config, seed++, 25);
    if (HasFailure()) return;
  }
  RecordProperty("histories", std::to_string(seed - 100));
}

TEST_F(PackedCacheOnCudaTest, RotatedKeysAndValuesAttendAsOnTheCpu) {
  CacheConfig config = MakeConfig(900, 8, 8);
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
  const CacheConfig config = MakeConfig(900, 4, 4);
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

TEST_F(PackedCacheOnCudaTest, ValuesThatDoNotFitFailTheirSequenceAlone) {
  const CacheConfig config = MakeConfig(900, 8, 8);
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
  CacheConfig config = MakeConfig(2000, 16, 16);
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
  CacheConfig config = MakeConfig(900, 8, 8);
  config.float_type = DType::kF32;
  refuse(config, "F32");
  config = MakeConfig(900, 8, 8);
  config.geometry.blocks[0] = BlockOf({1, 4, 2, 32});
  refuse(config, "heads of 32");
}

}  // namespace
}  // namespace pmkvq
