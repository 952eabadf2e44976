// Values that a packed cache cannot hold: they end their sequence and leave others alone.
#include <gtest/gtest.h>

#include <functional>
#include <limits>

#include "support/cache_driver.h"

namespace pmkvq {
namespace {

using testing_support::MakeRows;
using testing_support::Rows;
using testing_support::SetUniform;
using testing_support::SmallConfig;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Changes the rows of a chunk that begins at `first`.
using Odd = std::function<void(int64_t layer, int64_t first, Rows& rows)>;

struct Part {
  SequenceId seq;
  int64_t num_tokens;
  uint64_t seed;
  Odd odd;
};

// One Forward of what was reserved; returns the outputs of each part, by part and block.
std::vector<std::vector<float>> Forward(PackedKvCache& cache, const KvGeometry& geometry,
                                        const std::vector<Part>& parts) {
  Batch batch;
  std::vector<int64_t> firsts;
  for (const Part& part : parts) {
    batch.push_back({part.seq, part.num_tokens});
    firsts.push_back(cache.NumTokens(part.seq));
  }
  cache.BeginForward(batch);
  std::vector<std::vector<float>> outputs(parts.size());
  for (int64_t layer = 0; layer < geometry.num_layers(); ++layer) {
    Rows all;
    for (size_t i = 0; i < parts.size(); ++i) {
      Rows rows = MakeRows(geometry, parts[i].seed, layer, firsts[i], parts[i].num_tokens);
      if (parts[i].odd) parts[i].odd(layer, firsts[i], rows);
      all.q.insert(all.q.end(), rows.q.begin(), rows.q.end());
      all.k.insert(all.k.end(), rows.k.begin(), rows.k.end());
      all.v.insert(all.v.end(), rows.v.begin(), rows.v.end());
    }
    std::vector<float> out(all.q.size());
    cache.AppendAndAttend(layer, all.q.data(), all.k.data(), all.v.data(), out.data());
    auto row = out.begin();
    for (size_t i = 0; i < parts.size(); ++i) {
      const auto end = row + parts[i].num_tokens * geometry.block(layer).q_values();
      outputs[i].insert(outputs[i].end(), row, end);
      row = end;
    }
  }
  cache.EndForward();
  return outputs;
}

// Appends `total` tokens in chunks; returns why the sequence failed, "" when it did not.
std::string Fill(PackedKvCache& cache, const KvGeometry& geometry, SequenceId seq, int64_t total,
                 int64_t chunk, const Odd& odd) {
  while (cache.NumTokens(seq) < total) {
    const int64_t count = std::min(chunk, total - cache.NumTokens(seq));
    const ReserveResult reserved = cache.Reserve(seq, count);
    if (reserved != ReserveResult::kFailed) {
      EXPECT_NE(reserved, ReserveResult::kBudgetExhausted);
      Forward(cache, geometry, {{seq, count, 1, odd}});
    }
    if (const KvFailure* failure = cache.FailureOf(seq)) {
      EXPECT_EQ(cache.Reserve(seq, 1), ReserveResult::kFailed);
      return failure->where + ": " + failure->what;
    }
  }
  return "";
}

// Sets one value of block 1, token `position`.
Odd OddValue(bool in_keys, int64_t position, float value) {
  return [=](int64_t layer, int64_t first, Rows& rows) {
    std::vector<float>& side = in_keys ? rows.k : rows.v;
    const int64_t index = (position - first) * 32 + 5;
    if (layer == 1 && index >= 0 && index < std::ssize(side)) {
      side[static_cast<size_t>(index)] = value;
    }
  };
}

TEST(CacheFailure, NamesBlockPositionAndRemedy) {
  CacheConfig config = SmallConfig(300, 16, 16);
  const auto fail = [&](bool in_keys, float odd) {
    PackedKvCache cache(config);
    const SequenceId seq = *cache.Open();
    const std::string failure =
        Fill(cache, config.geometry, seq, 30, 12, OddValue(in_keys, 14, odd));
    EXPECT_EQ(cache.NumTokens(seq), failure.empty() ? 30 : 12);
    return failure;
  };
  EXPECT_EQ(fail(true, 65504.0f), "");
  EXPECT_EQ(fail(false, -65519.0f), "");  // Rounds to -65504.
  EXPECT_EQ(fail(true, 65520.0f),
            "kv cache, block 1, position 14: a key does not fit f16: found 65520, expected at most "
            "65504; --kv-dtype bf16 holds it");
  for (const float odd : {kNan, kInfinity, -kInfinity}) {
    const std::string failure = fail(false, odd);
    EXPECT_EQ(failure.find("kv cache, block 1, position 14: the model produced a non-finite value"),
              0u)
        << failure;
  }
  config.float_type = DType::kBF16;
  EXPECT_EQ(fail(true, 1e30f), "");
  EXPECT_NE(fail(true, 3.4e38f).find("does not fit bf16"), std::string::npos);
  config.float_type = DType::kF32;
  config.budget_bytes.assign(2, BlockBytes(config, 0, 300, 16, 16));
  EXPECT_EQ(fail(false, 3.4e38f), "");
}

struct WideCase {
  std::string name;
  CacheConfig config;
};

std::vector<WideCase> WideCases() {
  std::vector<WideCase> cases;
  for (const QuantAxis axis : {QuantAxis::kToken, QuantAxis::kChannel}) {
    const std::string suffix = axis == QuantAxis::kToken ? "" : ", keys per channel";
    for (const int bits : {8, 4, 2}) {
      CacheConfig config = SmallConfig(900, bits, bits);
      SetUniform(config, bits).k_axis = axis;
      config.budget_bytes.assign(2, BlockBytes(config, 0, 900, bits, bits));
      cases.push_back({"static-" + std::to_string(bits) + suffix, config});
    }
    for (const PolicyKind policy : {PolicyKind::kLayerBudget, PolicyKind::kOldestFirst}) {
      CacheConfig config = SmallConfig(900, 2, 2);
      config.k_axis = axis;
      config.policy = policy;
      config.budget_bytes.assign(2, BlockBytes(config, 0, 900, 2, 2));
      cases.push_back({std::string(NameOf(policy)) + suffix, config});
    }
  }
  return cases;
}

// Values that each fit, in a group that spans more than f16 does.
TEST(CacheFailure, ARangeThatDoesNotFitIsNoSilentSaturation) {
  for (WideCase& each : WideCases()) {
    for (const bool in_keys : {true, false}) {
      for (const int64_t chunk : {1, 50, 900}) {
        SCOPED_TRACE(testing::Message() << each.name << " keys " << in_keys << " chunk " << chunk);
        const bool by_channel = in_keys && each.config.k_axis == QuantAxis::kChannel;
        // Tokens 140 and 141, channel 5 of head 1 against another value of its group.
        const auto widen = [&](int64_t layer, int64_t first, Rows& rows) {
          std::vector<float>& side = in_keys ? rows.k : rows.v;
          for (int64_t t = 0; layer == 1 && t < std::ssize(side) / 32; ++t) {
            float* head = side.data() + t * 32 + 16;
            if (first + t == 140) head[5] = 40000.0f;
            if (first + t == 140 && !by_channel) head[6] = -40000.0f;
            if (first + t == 141 && by_channel) head[5] = -40000.0f;
          }
        };
        PackedKvCache cache(each.config);
        const SequenceId seq = *cache.Open();
        const std::string failure = Fill(cache, each.config.geometry, seq, 880, chunk, widen);
        EXPECT_EQ(failure, std::string("kv cache, block 1, position") +
                               (by_channel ? "s 129 to 256" : " 140") +
                               ": the range of a group of " + (in_keys ? "keys" : "values") +
                               " does not fit f16: found 80000 from -40000 to 40000, expected at "
                               "most 65504; --kv-dtype bf16 holds it");
        cache.Close(seq);
        const SequenceId again = *cache.Open();
        EXPECT_EQ(Fill(cache, each.config.geometry, again, 880, chunk, nullptr), "");

        CacheConfig wider = each.config;
        wider.float_type = DType::kBF16;
        PackedKvCache bf16(wider);
        EXPECT_EQ(Fill(bf16, wider.geometry, *bf16.Open(), 880, chunk, widen), "");
      }
    }
  }
}

// A batch with a poisoned sequence gives the others the bits of one without.
TEST(CacheFailure, OtherSequencesKeepTheirBits) {
  for (WideCase& each : WideCases()) {
    SCOPED_TRACE(each.name);
    CacheConfig config = each.config;
    config.max_sequences = 3;
    config.rotate_values = config.k_axis == QuantAxis::kChannel;
    const auto run = [&](float odd) {
      PackedKvCache cache(config);
      std::vector<SequenceId> ids = {*cache.Open(), *cache.Open(), *cache.Open()};
      std::vector<std::vector<float>> outputs;
      for (int64_t step = 0; step < 40; ++step) {
        const int64_t count = step % 5 == 0 ? 60 : 1;
        std::vector<Part> parts;
        for (size_t i = 0; i < ids.size(); ++i) {
          if (cache.FailureOf(ids[i]) != nullptr) continue;
          EXPECT_LE(cache.Reserve(ids[i], count), ReserveResult::kReservedAfterHalving);
          parts.push_back({ids[i], count, i, nullptr});
        }
        // The middle one of the batch, in a Forward of many tokens or of one.
        if (step == 21 || step == 25) {
          const bool poisons = step == (odd > 0 ? 21 : 25) && parts.size() == 3;
          if (poisons && odd != 0) {
            parts[1].odd = [&](int64_t layer, int64_t, Rows& rows) {
              if (layer == 0) rows.k[7] = odd > 0 ? odd : kNan;
            };
          }
        }
        const auto found = Forward(cache, config.geometry, parts);
        outputs.push_back(found.front());
        outputs.push_back(found.back());
      }
      EXPECT_EQ(cache.FailureOf(ids[1]) != nullptr, odd != 0);
      std::vector<float> k(static_cast<size_t>(cache.NumTokens(ids[2]) * 32));
      std::vector<float> v(k.size());
      for (const int64_t layer : {0, 1}) {
        cache.ReadTokens(ids[2], layer, k.data(), v.data());
        outputs.push_back(k);
        outputs.push_back(v);
      }
      return outputs;
    };
    const auto whole = run(0);
    EXPECT_EQ(run(1e6f), whole);
    EXPECT_EQ(run(-1), whole);
  }
}

TEST(CacheFailure, AnAbandonedForwardFailsItsSequencesOnly) {
  CacheConfig config = SmallConfig(300, 4, 4);
  config.max_sequences = 2;
  PackedKvCache cache(config);
  const SequenceId a = *cache.Open();
  const SequenceId b = *cache.Open();
  ASSERT_EQ(cache.Reserve(a, 200), ReserveResult::kReserved);
  cache.BeginForward({{a, 200}});
  cache.AbandonForward();
  EXPECT_NE(cache.FailureOf(a), nullptr);
  EXPECT_EQ(cache.FailureOf(b), nullptr);
  EXPECT_EQ(cache.Reserve(a, 1), ReserveResult::kFailed);
  EXPECT_EQ(Fill(cache, config.geometry, b, 250, 90, nullptr), "");
  cache.AbandonForward();  // None is under way.
  EXPECT_EQ(cache.FailureOf(b), nullptr);
  cache.Close(a);
  EXPECT_EQ(Fill(cache, config.geometry, *cache.Open(), 250, 90, nullptr), "");
}

}  // namespace
}  // namespace pmkvq
