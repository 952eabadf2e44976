// A packed cache of latents on a CUDA device beside one on the CPU, under the same history: the
// same decisions, bytes and codes, and outputs within the rounding of attention.
#include <memory>

#include "pmkvq/kv/key_scales.h"
#include "pmkvq/tensor/tensor.h"
#include "support/cache_driver.h"
#include "support/device_history.h"
#include "support/gpu_test.h"

namespace pmkvq {
namespace {

using testing_support::CacheDriver;
using testing_support::DeviceDriver;
using testing_support::ExpectNearOutputs;
using testing_support::ExpectSameSequence;
using testing_support::RunHistory;
using testing_support::SetUniform;

// Blocks of 256 and 512 channels, and one without cache. Budgets hold `num_tokens`.
CacheConfig LatentConfig(int64_t num_tokens, int latent_bits, int rope_bits) {
  CacheConfig config;
  config.geometry.blocks = {LatentBlockOf(3, 256, 64), KvBlockGeometry{4, {}},
                            LatentBlockOf(20, 512, 64)};
  config.max_len = 4096;
  config.max_sequences = 3;
  for (size_t layer = 0; layer < 3; ++layer) {
    config.budget_bytes.push_back(BlockBytes(config, layer, num_tokens, latent_bits, rope_bits));
  }
  return config;
}

class LatentCacheOnCudaTest : public GpuTest {};

TEST_F(LatentCacheOnCudaTest, ProgressiveWithALayerBudget) {
  RunHistory(LatentConfig(900, 4, 8), 1, 15);
}

TEST_F(LatentCacheOnCudaTest, ProgressiveOldestFirstWithHalvingsAheadAndASink) {
  CacheConfig config = LatentConfig(1500, 2, 8);
  config.policy = PolicyKind::kOldestFirst;
  config.most_bytes_per_token = 60'000;
  config.sink_tokens = 5;
  RunHistory(config, 2, 15);
}

TEST_F(LatentCacheOnCudaTest, ALowFloorOfTheRopePart) {
  CacheConfig config = LatentConfig(1500, 2, 2);
  config.rope_floor_bits = 2;
  config.sink_tokens = 130;
  RunHistory(config, 3, 12);
}

TEST_F(LatentCacheOnCudaTest, StaticWidths) {
  for (const auto& [latent, rope] : std::vector<std::pair<int, int>>{{8, 16}, {4, 8}, {2, 4}}) {
    CacheConfig config = LatentConfig(900, latent, rope);
    config.static_widths = true;
    config.k_bits.assign(3, latent);
    config.v_bits.assign(3, rope);
    RunHistory(config, static_cast<uint64_t>(latent), 8);
  }
}

TEST_F(LatentCacheOnCudaTest, Unquantised) {
  CacheConfig config = LatentConfig(4096, 16, 16);
  config.sink_tokens = 0;
  SetUniform(config, 16);
  RunHistory(config, 6, 10);
}

// Rope parts of 32 values: less than a lane's 16 bytes of a tile at 4 and 2 bits.
TEST_F(LatentCacheOnCudaTest, NarrowRopeParts) {
  CacheConfig config = LatentConfig(900, 2, 2);
  config.geometry.blocks = {LatentBlockOf(4, 256, 32)};
  config.rope_floor_bits = 2;
  config.budget_bytes = {BlockBytes(config, 0, 1500, 2, 2)};
  RunHistory(config, 7, 15);
  for (const int rope : {8, 4}) {
    config.static_widths = true;
    config.k_bits.assign(1, 4);
    config.v_bits.assign(1, rope);
    config.budget_bytes = {BlockBytes(config, 0, 900, 4, rope)};
    RunHistory(config, static_cast<uint64_t>(rope), 8);
  }
}

// Codes are those of rotated values, whose sums add up in another order: outputs are compared.
TEST_F(LatentCacheOnCudaTest, ScalesAndRotationAttendAsOnTheCpu) {
  for (const bool rotates : {false, true}) {
    CacheConfig config = LatentConfig(900, 8, 8);
    config.rotate_keys = rotates;
    Random random(9);
    std::vector<Tensor> scales;
    for (const KvBlockGeometry& block : config.geometry.blocks) {
      Tensor& scale = scales.emplace_back(DType::kF32, Shape{block.values()});
      for (int64_t i = 0; i < block.values(); ++i) {
        scale.As<float>()[i] = static_cast<float>(0.5 + random.Uniform());
      }
    }
    config.key_scales = KeyScales::Make(config.geometry, scales);
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
}

TEST_F(LatentCacheOnCudaTest, ForksAndImagesGoOnWithTheSameCodes) {
  const CacheConfig config = LatentConfig(900, 4, 8);
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
  EXPECT_EQ(cpu.Read(opened, 0).first.size(),
            static_cast<size_t>(cpu.cache().NumTokens(opened) * 256));
}

}  // namespace
}  // namespace pmkvq
