#include "pmkvq/kv/cache_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <numeric>

#include "pmkvq/base/byte_size.h"
#include "pmkvq/base/error.h"
#include "pmkvq/io/limits.h"

namespace pmkvq {
namespace {

constexpr char kWhere[] = "kv cache";
// More than any machine has, and small enough that sums and products of budgets cannot overflow.
constexpr int64_t kMaxArenaBytes = int64_t{1} << 44;

bool IsWidth(int bits) { return std::find(kWidths.begin(), kWidths.end(), bits) != kWidths.end(); }

void ValidateLatents(const KvBlockGeometry& block, size_t layer) {
  const bool is_one =
      block.num_heads >= 1 && block.sliding_window == 0 && block.streams.size() == 2 &&
      block.streams ==
          LatentBlockOf(block.num_heads, block.latent_width(), block.rope_width()).streams;
  if (is_one) return;
  throw Unsupported(kWhere, fmt::format("block {}: found {}, expected latents without a sliding "
                                        "window, as LatentBlockOf makes them",
                                        layer, Describe(block)));
}

void ValidateBlock(const KvBlockGeometry& block, size_t layer) {
  if (!block.has_cache()) return;
  if (block.is_latent()) return ValidateLatents(block, layer);
  if (block.streams.size() != 2 || block.k() != block.v()) {
    throw Unsupported(kWhere, fmt::format("block {}: found {}, expected keys and values of one "
                                          "shape, or no cache",
                                          layer, Describe(block)));
  }
  const KvStream& stream = block.k();
  if (block.sliding_window < 0) {
    throw InvalidInput(kWhere, fmt::format("block {}: found a sliding window of {}, expected 0 or "
                                           "more tokens",
                                           layer, block.sliding_window));
  }
  if (block.num_heads < 1 || stream.heads < 1 || block.num_heads % stream.heads != 0) {
    throw InvalidInput(kWhere, fmt::format("block {}: found {} heads, {} key/value heads; expected "
                                           "positive numbers, heads a multiple of key/value heads",
                                           layer, block.num_heads, stream.heads));
  }
  if (stream.width < 8 || stream.width > 256 || stream.width % 8 != 0 ||
      stream.width % stream.group != 0) {
    throw InvalidInput(kWhere,
                       fmt::format("head_dim: found {}, expected a multiple of 8 up to 128, or 256",
                                   stream.width));
  }
}

void ValidateGeometry(const KvGeometry& geometry) {
  for (size_t layer = 0; layer < geometry.blocks.size(); ++layer) {
    ValidateBlock(geometry.blocks[layer], layer);
  }
  if (std::none_of(geometry.blocks.begin(), geometry.blocks.end(),
                   [](const KvBlockGeometry& block) { return block.has_cache(); })) {
    throw InvalidInput(kWhere, fmt::format("found {} blocks without a cache, expected one with a "
                                           "cache at least",
                                           geometry.num_layers()));
  }
}

void ValidatePlannedBits(const CacheConfig& config, const std::vector<int>& bits,
                         const char* name) {
  if (bits.empty()) return;
  if (bits.size() != config.geometry.blocks.size()) {
    throw InvalidInput(kWhere, fmt::format("{}: found {} entries, expected one per block ({})",
                                           name, bits.size(), config.geometry.num_layers()));
  }
  for (size_t i = 0; i < bits.size(); ++i) {
    if (!IsWidth(bits[i])) {
      throw InvalidInput(kWhere, fmt::format("{} of block {}: found {}, expected 16, 8, 4 or 2",
                                             name, i, bits[i]));
    }
  }
}

void ValidateLatentOptions(const CacheConfig& config, const KvBlockGeometry& block) {
  const auto refuse = [](const char* found, const char* expected) {
    throw Unsupported(
        "--kv", fmt::format("{} with a model of latent attention, expected {}", found, expected));
  };
  if (config.k_axis == QuantAxis::kChannel) refuse("axis: found channel", "token");
  if (config.rotate_values) {
    refuse("rotate: found values",
           "keys, which rotates latents (they are keys and values), or none");
  }
  if (config.rotate_keys && !std::has_single_bit(static_cast<uint64_t>(block.latent_width()))) {
    throw InvalidInput("--kv",
                       fmt::format("rotate: found latents of {} values, expected a power of "
                                   "two",
                                   block.latent_width()));
  }
}

void ValidateBudgets(const CacheConfig& config, BytesAtFloor floor_bytes) {
  const auto num_layers = config.geometry.blocks.size();
  if (config.budget_bytes.size() != num_layers) {
    throw InvalidInput(kWhere, fmt::format("budgets: found {}, expected one per block ({})",
                                           config.budget_bytes.size(), num_layers));
  }
  int64_t room = kMaxArenaBytes / config.max_sequences;
  for (const int64_t budget : config.budget_bytes) {
    if (budget > room) {
      throw InvalidInput("--kv-budget",
                         fmt::format("found more than {} for {} sequences, expected less",
                                     FormatByteSize(kMaxArenaBytes), config.max_sequences));
    }
    room -= std::max<int64_t>(0, budget);
  }
  for (size_t i = 0; i < num_layers; ++i) {
    const int64_t smallest = floor_bytes(config, i, config.sink_tokens + 1);
    if (config.budget_bytes[i] >= smallest) continue;
    throw InvalidInput(
        "--kv-budget",
        fmt::format("block {}: found {} bytes, which do not hold its first page; expected at least "
                    "{} (all {} blocks: {} bytes)",
                    i, config.budget_bytes[i], smallest, num_layers,
                    SmallestBudget(config, config.sink_tokens + 1, floor_bytes)));
  }
}

void ValidatePool(const CacheConfig& config) {
  const PoolConfig& pool = config.pool;
  const size_t num_layers = config.geometry.blocks.size();
  for (const auto* const side : {&pool.k_sensitivity, &pool.v_sensitivity}) {
    if (side->empty() || side->size() == num_layers) continue;
    throw InvalidInput(kWhere, fmt::format("sensitivities: found {}, expected one per block ({})",
                                           side->size(), num_layers));
  }
  if (config.policy != PolicyKind::kOldestFirst || pool.step_bytes < 0) {
    throw InvalidInput(kWhere, fmt::format("pool: found policy {} and {} bytes a step, expected "
                                           "oldest-first and 0 or more",
                                           NameOf(config.policy), pool.step_bytes));
  }
  const std::string obstacle = pool.prefix_bytes > 0 ? ObstacleToPrefixes(config) : "";
  if (!obstacle.empty()) {
    throw InvalidInput("--prefix-cache", fmt::format("found it with {}; expected off", obstacle));
  }
  if (pool.bytes > kMaxArenaBytes) {
    throw InvalidInput("--kv-pool", fmt::format("found {} bytes, expected at most {}", pool.bytes,
                                                FormatByteSize(kMaxArenaBytes)));
  }
  const int64_t smallest = FloorBytes(config, config.sink_tokens + 1);
  if (pool.bytes < smallest) {
    throw InvalidInput("--kv-pool", fmt::format("found {} bytes, which do not hold the first page "
                                                "of one request; expected at least {} bytes",
                                                pool.bytes, smallest));
  }
}

}  // namespace

std::string ObstacleToPrefixes(const CacheConfig& config) {
  for (size_t layer = 0; layer < config.geometry.blocks.size(); ++layer) {
    const KvBlockGeometry& block = config.geometry.blocks[layer];
    if (!block.has_cache()) continue;
    if (block.sliding_window > 0) return "a model whose blocks have sliding windows";
    const PageWidths close = CloseWidths(config, layer);
    if (close.k < 16 || close.v < 16) {
      return fmt::format("pages that close at {} bits", std::min(close.k, close.v));
    }
  }
  if (config.chunk_tokens >= config.sink_tokens) return "";
  return fmt::format("--chunk {}, shorter than the sink of {} tokens", config.chunk_tokens,
                     config.sink_tokens);
}

PolicyKind ParsePolicyKind(std::string_view name) {
  if (name == NameOf(PolicyKind::kLayerBudget)) return PolicyKind::kLayerBudget;
  if (name == NameOf(PolicyKind::kOldestFirst)) return PolicyKind::kOldestFirst;
  throw InvalidInput("--policy",
                     fmt::format("found \"{}\", expected layer-budget or oldest-first", name));
}

std::string_view NameOf(PolicyKind kind) {
  return kind == PolicyKind::kLayerBudget ? "layer-budget" : "oldest-first";
}

DType ParseKvDtype(std::string_view name) {
  if (name == "f16") return DType::kF16;
  if (name == "bf16") return DType::kBF16;
  if (name == "f32") return DType::kF32;
  throw InvalidInput("--kv-dtype", fmt::format("found \"{}\", expected f16, bf16 or f32", name));
}

AttentionMode ParseAttentionMode(std::string_view name) {
  if (name == NameOf(AttentionMode::kFast)) return AttentionMode::kFast;
  if (name == NameOf(AttentionMode::kAccurate)) return AttentionMode::kAccurate;
  throw InvalidInput("--attention", fmt::format("found \"{}\", expected fast or accurate", name));
}

std::string_view NameOf(AttentionMode mode) {
  return mode == AttentionMode::kFast ? "fast" : "accurate";
}

PageWidths WidthsAt(const CacheConfig& config, size_t layer, int bits) {
  const bool is_latent = config.geometry.blocks[layer].is_latent();
  return {bits, is_latent ? std::max(bits, config.rope_floor_bits) : bits};
}

PageWidths CloseWidths(const CacheConfig& config, size_t layer) {
  if (config.static_widths) return {config.k_bits[layer], config.v_bits[layer]};
  return WidthsAt(config, layer, config.close_bits);
}

PageWidths FloorWidths(const CacheConfig& config, size_t layer) {
  if (config.static_widths) return {config.k_bits[layer], config.v_bits[layer]};
  return WidthsAt(config, layer, config.floor_bits);
}

PageWidths PlannedWidths(const CacheConfig& config, size_t layer) {
  const auto planned = [&](const std::vector<int>& bits, int floor) {
    return bits.empty() ? floor : std::max(bits[layer], floor);
  };
  const PageWidths floor = FloorWidths(config, layer);
  return {planned(config.k_bits, floor.k), planned(config.v_bits, floor.v)};
}

int64_t PageCodeBytes(const KvStream& stream, DType float_type, int bits) {
  if (bits == 16) {
    return CheckedProduct(kWhere,
                          {kPageTokens, stream.values(), static_cast<int64_t>(SizeOf(float_type))});
  }
  return CheckedProduct(kWhere, {kPageTokens / 8, stream.values(), bits});
}

int64_t PageMetadataBytes(const KvStream& stream, DType float_type, int bits, QuantAxis axis) {
  if (bits == 16) return 0;
  const int64_t group = axis == QuantAxis::kChannel ? kPageTokens : stream.group;
  const int64_t groups = kPageTokens * stream.values() / group;
  return groups * 2 * static_cast<int64_t>(SizeOf(float_type));
}

int64_t PageBytes(const KvStream& stream, DType float_type, int bits, QuantAxis axis) {
  return PageCodeBytes(stream, float_type, bits) +
         PageMetadataBytes(stream, float_type, bits, axis);
}

int64_t NumPages(const CacheConfig& config, int64_t num_tokens) {
  const int64_t paged = std::max<int64_t>(0, num_tokens - config.sink_tokens);
  return (paged + kPageTokens - 1) / kPageTokens;
}

int64_t FirstSeenPage(const CacheConfig& config, size_t layer, int64_t num_tokens) {
  const int64_t window = config.geometry.blocks[layer].sliding_window;
  if (window == 0) return 0;
  return std::max<int64_t>(0, num_tokens - window + 1 - config.sink_tokens) / kPageTokens;
}

int64_t MostPages(const CacheConfig& config, size_t layer, int64_t num_tokens) {
  const int64_t pages = NumPages(config, num_tokens);
  const int64_t window = config.geometry.blocks[layer].sliding_window;
  if (window == 0) return pages;
  // Right after a page was opened: the tokens that the first new one sees, and the new ones; they
  // may begin with the last token of a page.
  const int64_t tokens = window - 1 + std::min(config.chunk_tokens, num_tokens);
  return std::min(pages, (tokens - 2) / kPageTokens + 2);
}

int64_t SinkBytes(const CacheConfig& config, size_t layer) {
  return CheckedProduct(kWhere, {config.sink_tokens, config.geometry.blocks[layer].values(),
                                 static_cast<int64_t>(SizeOf(config.float_type))});
}

int64_t BlockBytes(const CacheConfig& config, size_t layer, int64_t num_tokens, int k_bits,
                   int v_bits) {
  const KvBlockGeometry& block = config.geometry.blocks[layer];
  if (num_tokens == 0 || !block.has_cache()) return 0;
  // Of the K page and the V page of the same tokens.
  const auto pair_bytes = [&](int k, int v) {
    return PageBytes(block.k(), config.float_type, k, config.k_axis) +
           PageBytes(block.v(), config.float_type, v);
  };
  const int64_t pages = MostPages(config, layer, num_tokens);
  const int64_t float_pages = std::min(pages, config.window_tokens / kPageTokens);
  return CheckedSum(
      kWhere, {SinkBytes(config, layer), CheckedProduct(kWhere, {float_pages, pair_bytes(16, 16)}),
               CheckedProduct(kWhere, {pages - float_pages, pair_bytes(k_bits, v_bits)})});
}

double EffectiveBits(int64_t values_per_token, int64_t bytes, int64_t num_tokens) {
  return static_cast<double>(bytes) * 8.0 /
         (static_cast<double>(num_tokens) * static_cast<double>(values_per_token));
}

int64_t FloorBytes(const CacheConfig& config, size_t layer, int64_t num_tokens) {
  const PageWidths floor = FloorWidths(config, layer);
  return BlockBytes(config, layer, num_tokens, floor.k, floor.v);
}

int64_t FloorBytes(const CacheConfig& config, int64_t num_tokens) {
  int64_t bytes = 0;
  for (size_t layer = 0; layer < config.geometry.blocks.size(); ++layer) {
    bytes = CheckedSum(kWhere, {bytes, FloorBytes(config, layer, num_tokens)});
  }
  return bytes;
}

// A block's share is total * its weight / all weights, rounded down.
int64_t SmallestBudget(const CacheConfig& config, int64_t num_tokens, BytesAtFloor floor_bytes) {
  const std::vector<int64_t> weights = EvenWeights(config);
  const int64_t sum = std::accumulate(weights.begin(), weights.end(), int64_t{0});
  int64_t needed = 0;
  for (size_t layer = 0; layer < weights.size(); ++layer) {
    const int64_t weight = weights[layer];
    if (weight == 0) continue;
    const int64_t divisor = std::gcd(weight, sum);
    const int64_t share = weight / divisor;
    const int64_t product =
        CheckedProduct(kWhere, {floor_bytes(config, layer, num_tokens), sum / divisor});
    needed = std::max(needed, product / share + (product % share != 0 ? 1 : 0));
  }
  return needed;
}

std::vector<int64_t> EvenWeights(const CacheConfig& config) {
  const std::vector<KvBlockGeometry>& blocks = config.geometry.blocks;
  const bool has_window = std::any_of(blocks.begin(), blocks.end(),
                                      [](const auto& block) { return block.sliding_window > 0; });
  std::vector<int64_t> weights;
  for (size_t layer = 0; layer < blocks.size(); ++layer) {
    const int64_t pages = has_window && config.max_len > 0
                              ? std::max<int64_t>(1, MostPages(config, layer, config.max_len))
                              : 1;
    weights.push_back(blocks[layer].values() * pages);
  }
  return weights;
}

std::vector<int64_t> SplitBudget(int64_t total_bytes, const std::vector<int64_t>& weights) {
  PMKVQ_CHECK(total_bytes >= 0);
  // Byte counts times weights (often byte counts too) may pass 64 bits.
  __extension__ using Wide = unsigned __int128;
  Wide sum = 0;
  for (const int64_t share : weights) {
    PMKVQ_CHECK(share >= 0);
    sum += static_cast<Wide>(share);
  }
  PMKVQ_CHECK(sum > 0);
  std::vector<int64_t> budgets;
  budgets.reserve(weights.size());
  for (const int64_t share : weights) {
    budgets.push_back(
        static_cast<int64_t>(static_cast<Wide>(total_bytes) * static_cast<Wide>(share) / sum));
  }
  return budgets;
}

void ValidateCacheConfig(const CacheConfig& config, BytesAtFloor floor_bytes) {
  ValidateGeometry(config.geometry);
  if (config.float_type != DType::kF16 && config.float_type != DType::kBF16 &&
      config.float_type != DType::kF32) {
    throw InvalidInput("--kv-dtype", fmt::format("found {}, expected f16, bf16 or f32",
                                                 NameOf(config.float_type)));
  }
  if (config.sink_tokens < 0 || config.sink_tokens > kMaxSinkTokens) {
    throw InvalidInput("--n-sink-token", fmt::format("found {}, expected 0 to {}",
                                                     config.sink_tokens, kMaxSinkTokens));
  }
  if (!IsWidth(config.rope_floor_bits)) {
    throw InvalidInput(kWhere, fmt::format("rope_floor: found {}, expected 16, 8, 4 or 2",
                                           config.rope_floor_bits));
  }
  if (config.window_tokens < kPageTokens || config.window_tokens % kPageTokens != 0) {
    throw InvalidInput("--n-window-token",
                       fmt::format("found {}, expected a multiple of {}, at "
                                   "least {}",
                                   config.window_tokens, kPageTokens, kPageTokens));
  }
  if (config.max_sequences < 1 || config.num_threads < 1 || config.chunk_tokens < 1) {
    throw InvalidInput(kWhere,
                       fmt::format("found {} sequences, {} threads and chunks of {} tokens, "
                                   "expected at least 1 of each",
                                   config.max_sequences, config.num_threads, config.chunk_tokens));
  }
  if (!IsWidth(config.close_bits) || !IsWidth(config.floor_bits) ||
      config.floor_bits > config.close_bits) {
    throw InvalidInput(kWhere,
                       fmt::format("pages close at {} bits and have a floor of {}; expected "
                                   "16, 8, 4 or 2 each, the floor not above",
                                   config.close_bits, config.floor_bits));
  }
  ValidatePlannedBits(config, config.k_bits, "k_bits");
  ValidatePlannedBits(config, config.v_bits, "v_bits");
  if (config.static_widths && (config.k_bits.empty() || config.v_bits.empty())) {
    throw InvalidInput(kWhere, "static widths: found none, expected k_bits and v_bits per block");
  }
  for (const KvBlockGeometry& block : config.geometry.blocks) {
    if (block.is_latent()) {
      ValidateLatentOptions(config, block);
      continue;
    }
    const int64_t width = block.has_cache() ? block.k().width : 1;
    if ((config.rotate_keys || config.rotate_values) &&
        !std::has_single_bit(static_cast<uint64_t>(width))) {
      throw InvalidInput("--kv",
                         fmt::format("rotate: found head_dim {}, expected a power of two", width));
    }
  }
  if (config.pool.bytes > 0) {
    ValidatePool(config);
  } else {
    ValidateBudgets(config, floor_bytes);
  }
}

}  // namespace pmkvq
