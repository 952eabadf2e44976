// Two packed caches under the same random history, one of them on the CPU with one thread: the same
// decisions, bytes and codes, and outputs within the rounding of decode attention.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "pmkvq/base/random.h"
#include "support/cache_driver.h"

namespace pmkvq::testing_support {

// Blocks of 64 and 128 values a head, and one without cache.
inline CacheConfig TwoSizesConfig(int64_t num_tokens, int k_bits, int v_bits) {
  CacheConfig config;
  config.geometry.blocks = {BlockOf({1, 4, 2, 64}), KvBlockGeometry{4, {}}, BlockOf({1, 6, 2, 128}),
                            BlockOf({1, 4, 2, 64})};
  config.max_len = 4096;
  config.max_sequences = 3;
  for (size_t layer = 0; layer < 4; ++layer) {
    config.budget_bytes.push_back(BlockBytes(config, layer, num_tokens, k_bits, v_bits));
  }
  return config;
}

// Codes that were compared so far, in bytes.
inline int64_t& ComparedBytes() {
  static int64_t bytes = 0;
  return bytes;
}

// `Other`: a driver with the functions of CacheDriver, whose Forward takes rows without meaning,
// too.
template <class Other>
void ExpectSameSequence(CacheDriver& cpu, Other& other, SequenceId seq) {
  const KvSequenceStats a = cpu.cache().SequenceStats(seq);
  const KvSequenceStats b = other.cache().SequenceStats(seq);
  EXPECT_EQ(a.num_tokens, b.num_tokens);
  EXPECT_EQ(a.bytes, b.bytes);
  EXPECT_EQ(a.peak_bytes, b.peak_bytes);
  EXPECT_EQ(a.narrowed_bytes, b.narrowed_bytes);
  EXPECT_EQ(a.pages, b.pages);
  const SequenceImage cpu_image = *cpu.cache().ImageOf(seq);
  const SequenceImage other_image = *other.cache().ImageOf(seq);
  for (size_t layer = 0; layer < cpu_image.blocks.size(); ++layer) {
    for (const Side side : kSides) {
      ASSERT_EQ(cpu_image.blocks[layer].bytes[side], other_image.blocks[layer].bytes[side])
          << "block " << layer << " side " << side << " tokens " << a.num_tokens;
      ComparedBytes() += static_cast<int64_t>(cpu_image.blocks[layer].bytes[side].size());
    }
  }
}

template <class Other>
void ExpectNearOutputs(CacheDriver& cpu, Other& other) {
  for (size_t layer = 0; layer < cpu.outputs().size(); ++layer) {
    const std::vector<float>& a = cpu.outputs()[layer];
    const std::vector<float>& b = other.outputs()[layer];
    ASSERT_EQ(a.size(), b.size());
    double difference = 0.0;
    double size = 0.0;
    for (size_t i = 0; i < a.size(); ++i) {
      difference += std::pow(double{a[i]} - b[i], 2);
      size += std::pow(double{a[i]}, 2);
    }
    if (a.empty()) continue;
    // Scores of latents are not scaled here: what rounding queries to F16 does to them, neither.
    const bool is_latent = cpu.config().geometry.blocks[layer].is_latent();
    // NaN fails, too.
    EXPECT_TRUE(std::sqrt(difference / size) < (is_latent ? 1.5e-2 : 4e-3))
        << "block " << layer << ": " << std::sqrt(difference / size);
  }
}

// A configuration of random budgets, widths, sinks, windows and policies, for sequences of up to
// `max_len` tokens.
inline CacheConfig RandomConfig(Random& random, int64_t max_len) {
  constexpr int kWidths[] = {16, 8, 4, 2};
  CacheConfig config = TwoSizesConfig(
      300 + static_cast<int64_t>(random.Below(static_cast<uint64_t>(max_len) * 5 / 8)),
      kWidths[random.Below(4)], kWidths[random.Below(4)]);
  config.max_len = max_len;
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
  return config;
}

// The history of one seed: both caches do the same. They append one token or a chunk, replay
// tokens, truncate, close, fork, and decode as a batch.
template <class Other>
void RunHistoryOn(const CacheConfig& config, uint64_t seed, int num_actions) {
  Random random(seed);
  const auto draw = [&](uint64_t below) { return static_cast<int64_t>(random.Below(below)); };
  CacheDriver cpu(config);
  Other other(config);
  std::vector<SequenceId> open;
  while (const auto seq = cpu.cache().Open()) {
    ASSERT_EQ(other.cache().Open(), seq);
    open.push_back(*seq);
  }
  const int64_t kChunks[] = {1, 3, 60, 127, 128, 129, 300, config.chunk_tokens};
  for (int i = 0; i < num_actions; ++i) {
    SCOPED_TRACE(testing::Message() << "action " << i);
    const int64_t action = draw(13);
    const SequenceId seq = open[static_cast<size_t>(draw(open.size()))];
    const int64_t n = cpu.cache().NumTokens(seq);
    if (action < 4) {
      const int64_t chunk = std::min(kChunks[draw(8)], config.max_len - n);
      if (chunk == 0) continue;
      const ReserveResult result = cpu.cache().Reserve(seq, chunk);
      ASSERT_EQ(other.cache().Reserve(seq, chunk), result);
      if (result == ReserveResult::kBudgetExhausted) continue;
      cpu.Forward({{seq, chunk, seed + static_cast<uint64_t>(seq)}});
      other.Forward({{seq, chunk, seed + static_cast<uint64_t>(seq)}});
      ExpectNearOutputs(cpu, other);
    } else if (action == 4) {
      const int64_t drawn = draw(static_cast<uint64_t>(n + 1));
      const int64_t wanted = cpu.cache().LongestTruncation(seq, drawn);
      ASSERT_EQ(other.cache().LongestTruncation(seq, drawn), wanted);
      cpu.cache().Truncate(seq, wanted);
      other.cache().Truncate(seq, wanted);
    } else if (action == 5) {
      cpu.cache().Close(seq);
      other.cache().Close(seq);
      ASSERT_EQ(cpu.cache().Open(), seq);
      ASSERT_EQ(other.cache().Open(), seq);
    } else if (action == 6) {  // Replayed tokens beside one token of another sequence.
      std::vector<CacheDriver::Part> parts;
      for (const SequenceId member : open) {
        if (cpu.cache().NumTokens(member) + 40 > config.max_len) continue;
        const int64_t wanted = member == seq ? 40 : 1;
        const int64_t count = cpu.cache().ReserveOneByOne(member, wanted);
        ASSERT_EQ(other.cache().ReserveOneByOne(member, wanted), count);
        if (count > 0) {
          parts.push_back({member, count, seed + static_cast<uint64_t>(member), true});
        }
      }
      if (parts.empty()) continue;
      cpu.Forward(parts);
      other.Forward(parts);
      ExpectNearOutputs(cpu, other);
    } else if (action == 7) {  // In the place of another one, whose seed it goes on with.
      const SequenceId place = open[static_cast<size_t>(draw(open.size()))];
      if (place == seq) continue;
      cpu.cache().Close(place);
      other.cache().Close(place);
      ASSERT_EQ(cpu.cache().Fork(seq), place);
      ASSERT_EQ(other.cache().Fork(seq), place);
    } else {  // All that can decode one token do, as one batch, some tokens in a row.
      for (int step = 0; step < 20; ++step) {
        std::vector<CacheDriver::Part> parts;
        for (const SequenceId member : open) {
          if (cpu.cache().NumTokens(member) + 1 > config.max_len) continue;
          const ReserveResult result = cpu.cache().Reserve(member, 1);
          ASSERT_EQ(other.cache().Reserve(member, 1), result);
          if (result == ReserveResult::kBudgetExhausted) continue;
          parts.push_back({member, 1, seed + static_cast<uint64_t>(member)});
        }
        if (parts.empty()) break;
        cpu.Forward(parts);
        other.Forward(parts, step % 3);
        ExpectNearOutputs(cpu, other);
      }
    }
    const std::vector<HalvingEvent> a = cpu.cache().TakeHalvingEvents();
    const std::vector<HalvingEvent> b = other.cache().TakeHalvingEvents();
    ASSERT_EQ(a.size(), b.size());
    for (const SequenceId member : open) ExpectSameSequence(cpu, other, member);
    if (testing::Test::HasFailure()) return;
  }
}

}  // namespace pmkvq::testing_support
