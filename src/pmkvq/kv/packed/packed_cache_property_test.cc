// The promises of the cache under random configurations and random histories.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <bit>

#include "pmkvq/kv/packed/packed_cache.h"
#include "support/cache_driver.h"

namespace pmkvq {
namespace {

using testing_support::CacheDriver;

std::vector<int> RandomWidths(int64_t num_layers, int floor_bits) {
  std::vector<int> widths;
  for (int64_t i = 0; i < num_layers; ++i) {
    widths.push_back(std::max(floor_bits, *rc::gen::element(16, 8, 4, 2)));
  }
  return widths;
}

// One to three blocks, alike or each of another shape, some without cache, some with a sliding
// window, some with latents.
KvGeometry RandomGeometry() {
  const auto block = [] {
    if (*rc::gen::inRange(0, 3) == 0) {
      return LatentBlockOf(*rc::gen::element<int64_t>(1, 3),
                           *rc::gen::element<int64_t>(8, 32, 56, 128, 256),
                           *rc::gen::element<int64_t>(8, 16, 24));
    }
    const auto kv_heads = *rc::gen::element<int64_t>(1, 2, 3, 4);
    KvBlockGeometry made =
        BlockOf({1, 2 * kv_heads, kv_heads, *rc::gen::element<int64_t>(8, 16, 24)});
    made.sliding_window = *rc::gen::element<int64_t>(0, 0, 1, 100, 128, 250, 600);
    return made;
  };
  KvGeometry geometry;
  const auto num_layers = *rc::gen::inRange<size_t>(1, 4);
  const bool mixed = *rc::gen::arbitrary<bool>();
  geometry.blocks.assign(num_layers, block());
  for (size_t i = 1; mixed && i < num_layers; ++i) {
    geometry.blocks[i] = *rc::gen::inRange(0, 4) == 0 ? KvBlockGeometry{4, {}} : block();
  }
  if (mixed && *rc::gen::arbitrary<bool>())
    std::swap(geometry.blocks.front(), geometry.blocks.back());
  return geometry;
}

bool AllWidthsArePowersOfTwo(const KvGeometry& geometry) {
  return std::all_of(
      geometry.blocks.begin(), geometry.blocks.end(), [](const KvBlockGeometry& block) {
        return !block.has_cache() ||
               std::has_single_bit(static_cast<uint64_t>(block.is_latent() ? block.latent_width()
                                                                           : block.k().width));
      });
}

bool HasWindow(const CacheConfig& config) {
  return std::any_of(config.geometry.blocks.begin(), config.geometry.blocks.end(),
                     [](const KvBlockGeometry& block) { return block.sliding_window > 0; });
}

// Budgets between what one page takes and what 900 tokens take at 16 bits, each block its own.
CacheConfig RandomConfig() {
  CacheConfig config;
  config.geometry = RandomGeometry();
  config.float_type = *rc::gen::element(DType::kF16, DType::kBF16, DType::kF32);
  config.sink_tokens = *rc::gen::element<int64_t>(0, 1, 5, 70, 128, 300);
  config.window_tokens = *rc::gen::element<int64_t>(128, 128, 256);
  config.max_sequences = *rc::gen::inRange<int64_t>(1, 4);
  config.policy = *rc::gen::element(PolicyKind::kLayerBudget, PolicyKind::kOldestFirst);
  config.most_bytes_per_token = *rc::gen::element<int64_t>(8 << 20, 1, 10'000, 50'000);
  config.k_axis = *rc::gen::element(QuantAxis::kToken, QuantAxis::kChannel);
  if (AllWidthsArePowersOfTwo(config.geometry)) {
    config.rotate_keys = *rc::gen::arbitrary<bool>();
    config.rotate_values = *rc::gen::arbitrary<bool>();
  }
  if (HasLatents(config.geometry)) {
    config.k_axis = QuantAxis::kToken;
    config.rotate_values = false;
    config.rope_floor_bits = *rc::gen::element(16, 8, 4, 2);
  }
  const int mode = *rc::gen::inRange(0, 7);
  if (mode == 0) config.close_bits = *rc::gen::element(8, 4);
  if (mode <= 1) config.floor_bits = *rc::gen::element(4, 2);
  if (mode == 2) config.close_bits = config.floor_bits = *rc::gen::element(16, 8, 4, 2);
  if (mode >= 4) {
    config.k_bits = RandomWidths(config.geometry.num_layers(), config.floor_bits);
    config.v_bits = RandomWidths(config.geometry.num_layers(), config.floor_bits);
    config.static_widths = mode == 5;
  }
  for (int64_t i = 0; i < config.geometry.num_layers(); ++i) {
    const int64_t lowest = FloorBytes(config, static_cast<size_t>(i), config.sink_tokens + 1);
    const int64_t highest = BlockBytes(config, static_cast<size_t>(i), 900, 16, 16);
    config.budget_bytes.push_back(*rc::gen::inRange<int64_t>(lowest, highest + 1));
  }
  return config;
}

int64_t BytesOfPages(const CacheConfig& config, size_t layer, const KvLayerStats& stats) {
  const KvBlockGeometry& block = config.geometry.blocks[layer];
  int64_t bytes = 0;
  if (!block.has_cache()) return 0;
  for (const int bits : kWidths) {
    bytes += stats.k_pages[WidthIndex(bits)] *
                 PageBytes(block.k(), config.float_type, bits, config.k_axis) +
             stats.v_pages[WidthIndex(bits)] * PageBytes(block.v(), config.float_type, bits);
  }
  return bytes;
}

void CheckSequence(CacheDriver& driver, SequenceId seq) {
  const CacheConfig& config = driver.config();
  const KvSequenceStats stats = driver.cache().SequenceStats(seq);
  int64_t bytes = 0;
  for (int64_t layer = 0; layer < config.geometry.num_layers(); ++layer) {
    const KvLayerStats layer_stats = driver.cache().LayerStats(seq, layer);
    RC_ASSERT(layer_stats.bytes <= layer_stats.budget_bytes);
    RC_ASSERT(layer_stats.bytes ==
              BytesOfPages(config, static_cast<size_t>(layer), layer_stats) +
                  (stats.num_tokens > 0 ? SinkBytes(config, static_cast<size_t>(layer)) : 0));
    bytes += layer_stats.bytes;
  }
  RC_ASSERT(stats.bytes == bytes);
  RC_ASSERT(stats.bytes <= stats.peak_bytes);
  RC_ASSERT(stats.peak_bytes <= stats.budget_bytes);
}

// Whether every block could hold `num_tokens` with its closed pages at the floor.
bool FloorFits(const CacheConfig& config, int64_t num_tokens) {
  for (size_t layer = 0; layer < config.budget_bytes.size(); ++layer) {
    if (FloorBytes(config, layer, num_tokens) > config.budget_bytes[layer]) return false;
  }
  return true;
}

RC_GTEST_PROP(PackedCacheProperty, PeakNeverPassesTheBudget, ()) {
  CacheDriver driver(RandomConfig());
  const CacheConfig& config = driver.config();
  std::vector<SequenceId> open;
  while (const auto seq = driver.cache().Open()) open.push_back(*seq);

  const int num_actions = *rc::gen::inRange(1, 14);
  for (int i = 0; i < num_actions; ++i) {
    const int action = *rc::gen::inRange(0, 10);
    const SequenceId seq = *rc::gen::elementOf(open);
    const int64_t n = driver.cache().NumTokens(seq);
    if (action < 6) {
      const auto chunk = *rc::gen::element<int64_t>(1, 3, 60, 127, 128, 129, 300, 500);
      const ReserveResult result = driver.Append(seq, chunk, 1);
      // After a Truncate the window may hold quantised pages, so that more fits than by formula.
      if (FloorFits(config, n + chunk)) RC_ASSERT(result != ReserveResult::kBudgetExhausted);
      RC_ASSERT(driver.cache().NumTokens(seq) ==
                (result == ReserveResult::kBudgetExhausted ? n : n + chunk));
    } else if (action == 6) {
      const auto wanted = *rc::gen::inRange<int64_t>(0, n + 1);
      const int64_t longest = driver.cache().LongestTruncation(seq, wanted);
      RC_ASSERT(longest == wanted || longest == 0);
      driver.cache().Truncate(seq, longest);
    } else if (action == 7) {
      driver.cache().Close(seq);
      RC_ASSERT(driver.cache().Open() == seq);
    } else {  // All that can decode one token do, as one batch.
      std::vector<CacheDriver::Part> parts;
      for (const SequenceId member : open) {
        if (driver.cache().Reserve(member, 1) == ReserveResult::kBudgetExhausted) continue;
        parts.push_back({member, 1, 1});
      }
      driver.Forward(parts);
    }
    for (const SequenceId member : open) CheckSequence(driver, member);
  }
}

// Without Truncate the cache holds exactly the lengths that the floor holds, whatever the chunks.
// With a sliding window at least these: the formula allows for pages that begin anywhere.
RC_GTEST_PROP(PackedCacheProperty, TheBudgetEndsWhereTheFloorDoes, ()) {
  CacheDriver driver(RandomConfig());
  const SequenceId seq = *driver.cache().Open();
  for (int i = 0; i < 12; ++i) {
    const int64_t n = driver.cache().NumTokens(seq);
    const auto chunk = *rc::gen::element<int64_t>(1, 90, 128, 300);
    const ReserveResult result = driver.Append(seq, chunk, 1);
    const bool fits = FloorFits(driver.config(), n + chunk);
    const bool has_room = result != ReserveResult::kBudgetExhausted;
    RC_ASSERT(has_room || !fits);
    if (!HasWindow(driver.config())) RC_ASSERT(has_room == fits);
  }
}

// What is stored is within half a step of the widest range at the page's width, in every page.
RC_GTEST_PROP(PackedCacheProperty, StoredValuesStayWithinTheirStep, ()) {
  CacheConfig config = RandomConfig();
  config.float_type = DType::kF32;
  for (KvBlockGeometry& block : config.geometry.blocks) block.sliding_window = 0;
  for (size_t layer = 0; layer < config.budget_bytes.size(); ++layer) {
    config.budget_bytes[layer] = BlockBytes(config, layer, 900, 4, 4);
  }
  CacheDriver driver(config);
  const SequenceId seq = *driver.cache().Open();
  for (int i = 0; i < 6; ++i) {
    (void)driver.Append(seq, *rc::gen::element<int64_t>(1, 90, 128, 300), 1);
  }
  const int64_t n = driver.cache().NumTokens(seq);
  const int64_t layer =
      config.geometry.blocks[0].has_cache() ? 0 : config.geometry.num_layers() - 1;
  const KvLayerStats stats = driver.cache().LayerStats(seq, layer);
  int lowest = 16;
  for (const int bits : kWidths) {
    if (stats.k_pages[WidthIndex(bits)] + stats.v_pages[WidthIndex(bits)] > 0) lowest = bits;
  }
  // Values span at most 4. Rounding twice (16 -> 8, then codes) adds half a step of 8 bits.
  const float tolerance =
      lowest == 16 ? 0.0f
                   : 2.0f / static_cast<float>((1 << lowest) - 1) + (lowest < 8 ? 0.008f : 1e-6f);
  // Rotated values span at most 5 sqrt(D), and the error of one comes from all D.
  const KvBlockGeometry& block = config.geometry.block(layer);
  const auto head_dim =
      static_cast<float>(block.is_latent() ? block.latent_width() : block.k().width);
  const float k_tolerance = tolerance * (config.rotate_keys ? 1.25f * head_dim : 1.0f) +
                            (config.rotate_keys ? 1e-5f : 0.0f);
  const float v_tolerance = tolerance * (config.rotate_values ? 1.25f * head_dim : 1.0f) +
                            (config.rotate_values ? 1e-5f : 0.0f);
  const auto rows = testing_support::MakeRows(config.geometry, 1, layer, 0, n);
  const auto stored = driver.Read(seq, layer);
  for (size_t i = 0; i < rows.k.size(); ++i) {
    RC_ASSERT(std::abs(stored.first[i] - rows.k[i]) <= k_tolerance);
  }
  for (size_t i = 0; i < rows.v.size(); ++i) {
    RC_ASSERT(std::abs(stored.second[i] - rows.v[i]) <= v_tolerance);
  }
}

// One token of constant rows.
ReserveResult DecodeOne(PackedKvCache& cache, const KvGeometry& geometry, SequenceId seq) {
  const ReserveResult result = cache.Reserve(seq, 1);
  if (result == ReserveResult::kBudgetExhausted) return result;
  cache.BeginForward({{seq, 1}});
  for (int64_t layer = 0; layer < geometry.num_layers(); ++layer) {
    if (!geometry.block(layer).has_cache()) continue;
    const KvBlockGeometry& block = geometry.block(layer);
    const std::vector<float> row(
        static_cast<size_t>(std::max(block.k().values(), block.v().values())), 0.5f);
    cache.Append(layer, row.data(), row.data());
  }
  cache.EndForward();
  return result;
}

// OldestFirst with a limit beside one without: the same widths whenever a page is opened; between,
// no token converts more than the limit, nor anything that could wait.
RC_GTEST_PROP(PackedCacheProperty, HalvingsAreSpreadAndNoneIsEarlierThanNeeded, ()) {
  CacheConfig config = RandomConfig();
  config.policy = PolicyKind::kOldestFirst;
  config.max_sequences = 1;
  config.rotate_keys = config.rotate_values = false;
  const KvGeometry& geometry = config.geometry;
  int64_t largest = 0;
  for (const KvBlockGeometry& block : geometry.blocks) {
    for (const KvStream& stream : block.streams) {
      largest = std::max(largest, PageCodeBytes(stream, config.float_type, 16));
    }
  }
  // Tokens have to suffice: at most 3 blocks x 7 pages x K and V, 127 tokens.
  config.most_bytes_per_token = *rc::gen::inRange<int64_t>(largest, 8 * largest);
  PackedKvCache spread(config);
  const SequenceId seq = *spread.Open();
  CacheConfig at_once_config = config;
  at_once_config.most_bytes_per_token = int64_t{1} << 40;
  PackedKvCache at_once(at_once_config);
  RC_ASSERT(at_once.Open() == seq);

  int64_t ahead_bytes = 0;  // Of the token before, when it opened no page.
  for (int64_t n = 1; n <= 900; ++n) {
    const int64_t read_before = spread.SequenceStats(seq).narrowed_bytes;
    const ReserveResult result = DecodeOne(spread, geometry, seq);
    const ReserveResult result_at_once = DecodeOne(at_once, geometry, seq);
    RC_ASSERT((result == ReserveResult::kBudgetExhausted) ==
              (result_at_once == ReserveResult::kBudgetExhausted));
    if (result == ReserveResult::kBudgetExhausted) break;
    const KvSequenceStats stats = spread.SequenceStats(seq);
    RC_ASSERT(stats.peak_bytes <= stats.budget_bytes);
    RC_ASSERT(stats.bytes <= at_once.SequenceStats(seq).bytes);
    const int64_t read_bytes = stats.narrowed_bytes - read_before;
    const bool opens = NumPages(config, n) > NumPages(config, n - 1);
    // What was done one token ago would not have fitted this one.
    if (ahead_bytes > 0) RC_ASSERT(read_bytes + largest > config.most_bytes_per_token);
    ahead_bytes = opens ? 0 : read_bytes;
    if (!opens) {
      RC_ASSERT(read_bytes <= config.most_bytes_per_token);
      continue;
    }
    // The pages that close now could not be halved before.
    RC_ASSERT(read_bytes <=
              std::max(config.most_bytes_per_token, 2 * geometry.num_layers() * largest));
    for (int64_t layer = 0; layer < geometry.num_layers(); ++layer) {
      RC_ASSERT(spread.LayerStats(seq, layer).k_pages == at_once.LayerStats(seq, layer).k_pages);
      RC_ASSERT(spread.LayerStats(seq, layer).v_pages == at_once.LayerStats(seq, layer).v_pages);
    }
  }
}

}  // namespace
}  // namespace pmkvq
