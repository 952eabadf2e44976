#include "pmkvq/kv/cache_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>

#include "pmkvq/base/byte_size.h"
#include "pmkvq/base/error.h"
#include "pmkvq/io/limits.h"

namespace pmkvq {
namespace {

constexpr char kWhere[] = "kv cache";
// Beyond any machine, and far from overflow in what is computed from budgets.
constexpr int64_t kMaxArenaBytes = int64_t{1} << 44;

bool IsWidth(int bits) { return std::find(kWidths.begin(), kWidths.end(), bits) != kWidths.end(); }

void ValidateGeometry(const KvGeometry& geometry) {
  if (geometry.num_layers < 1 || geometry.num_heads < 1 || geometry.num_kv_heads < 1 ||
      geometry.num_heads % geometry.num_kv_heads != 0) {
    throw InvalidInput(
        kWhere, fmt::format("found {} layers, {} heads, {} key/value heads; expected positive "
                            "numbers, heads a multiple of key/value heads",
                            geometry.num_layers, geometry.num_heads, geometry.num_kv_heads));
  }
  if (geometry.head_dim < 8 || geometry.head_dim > 256 || geometry.head_dim % 8 != 0 ||
      geometry.head_dim % geometry.group() != 0) {
    throw InvalidInput(kWhere,
                       fmt::format("head_dim: found {}, expected a multiple of 8 up to 128, "
                                   "or 256",
                                   geometry.head_dim));
  }
}

void ValidatePlannedBits(const CacheConfig& config, const std::vector<int>& bits,
                         const char* name) {
  if (bits.empty()) return;
  if (bits.size() != static_cast<size_t>(config.geometry.num_layers)) {
    throw InvalidInput(kWhere, fmt::format("{}: found {} entries, expected one per block ({})",
                                           name, bits.size(), config.geometry.num_layers));
  }
  for (size_t i = 0; i < bits.size(); ++i) {
    if (!IsWidth(bits[i])) {
      throw InvalidInput(kWhere, fmt::format("{} of block {}: found {}, expected 16, 8, 4 or 2",
                                             name, i, bits[i]));
    }
  }
}

void ValidateBudgets(const CacheConfig& config) {
  const auto num_layers = static_cast<size_t>(config.geometry.num_layers);
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
    const int64_t smallest = FloorBytes(config, i, config.sink_tokens + 1);
    if (config.budget_bytes[i] >= smallest) continue;
    throw InvalidInput(
        "--kv-budget",
        fmt::format("block {}: found {} bytes, which do not hold its first page; expected at least "
                    "{} (all {} blocks: {} bytes)",
                    i, config.budget_bytes[i], smallest, num_layers,
                    SmallestBudget(config, config.sink_tokens + 1)));
  }
}

}  // namespace

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

PageWidths CloseWidths(const CacheConfig& config, size_t layer) {
  if (config.static_widths) return {config.k_bits[layer], config.v_bits[layer]};
  return {config.close_bits, config.close_bits};
}

PageWidths FloorWidths(const CacheConfig& config, size_t layer) {
  if (config.static_widths) return {config.k_bits[layer], config.v_bits[layer]};
  return {config.floor_bits, config.floor_bits};
}

int64_t PageCodeBytes(const KvGeometry& geometry, DType float_type, int bits) {
  if (bits == 16) {
    return CheckedProduct(
        kWhere, {kPageTokens, geometry.kv_dim(), static_cast<int64_t>(SizeOf(float_type))});
  }
  return CheckedProduct(kWhere, {kPageTokens / 8, geometry.kv_dim(), bits});
}

int64_t PageMetadataBytes(const KvGeometry& geometry, DType float_type, int bits, QuantAxis axis) {
  if (bits == 16) return 0;
  const int64_t group = axis == QuantAxis::kChannel ? kPageTokens : geometry.group();
  const int64_t groups = kPageTokens * geometry.kv_dim() / group;
  return groups * 2 * static_cast<int64_t>(SizeOf(float_type));
}

int64_t PageBytes(const KvGeometry& geometry, DType float_type, int bits, QuantAxis axis) {
  return PageCodeBytes(geometry, float_type, bits) +
         PageMetadataBytes(geometry, float_type, bits, axis);
}

int64_t NumPages(const CacheConfig& config, int64_t num_tokens) {
  const int64_t paged = std::max<int64_t>(0, num_tokens - config.sink_tokens);
  return (paged + kPageTokens - 1) / kPageTokens;
}

int64_t SinkBytes(const CacheConfig& config) {
  return CheckedProduct(kWhere, {2, config.sink_tokens, config.geometry.kv_dim(),
                                 static_cast<int64_t>(SizeOf(config.float_type))});
}

int64_t BlockBytes(const CacheConfig& config, int64_t num_tokens, int k_bits, int v_bits) {
  if (num_tokens == 0) return 0;
  const auto page_bytes = [&](int bits, QuantAxis axis = QuantAxis::kToken) {
    return PageBytes(config.geometry, config.float_type, bits, axis);
  };
  const int64_t pages = NumPages(config, num_tokens);
  const int64_t float_pages = std::min(pages, config.window_tokens / kPageTokens);
  const int64_t pair = page_bytes(k_bits, config.k_axis) + page_bytes(v_bits);
  return CheckedSum(kWhere,
                    {SinkBytes(config), CheckedProduct(kWhere, {float_pages, 2, page_bytes(16)}),
                     CheckedProduct(kWhere, {pages - float_pages, pair})});
}

int64_t ReferenceBlockBytes(const KvGeometry& geometry, int64_t max_len, int k_bits, int v_bits) {
  return CheckedProduct(kWhere, {k_bits + v_bits, geometry.kv_dim(), max_len}) / 8;
}

int64_t ReferencePayloadBytes(const CacheConfig& config, int64_t num_tokens, int k_bits,
                              int v_bits) {
  const int64_t paged = std::max<int64_t>(0, num_tokens - config.sink_tokens);
  const int64_t closed = paged / kPageTokens * kPageTokens;
  const int64_t float_tokens = num_tokens - closed;
  const int64_t bits = CheckedSum(kWhere, {CheckedProduct(kWhere, {2 * 16, float_tokens}),
                                           CheckedProduct(kWhere, {k_bits + v_bits, closed})});
  return CheckedProduct(kWhere, {config.geometry.kv_dim(), bits}) / 8;
}

double EffectiveBits(const KvGeometry& geometry, int64_t block_bytes, int64_t num_tokens) {
  return static_cast<double>(block_bytes) * 8.0 /
         (static_cast<double>(num_tokens) * 2.0 * static_cast<double>(geometry.kv_dim()));
}

int64_t FloorBytes(const CacheConfig& config, size_t layer, int64_t num_tokens) {
  const PageWidths floor = FloorWidths(config, layer);
  return config.reference_accounting ? ReferencePayloadBytes(config, num_tokens, floor.k, floor.v)
                                     : BlockBytes(config, num_tokens, floor.k, floor.v);
}

int64_t SmallestBudget(const CacheConfig& config, int64_t num_tokens) {
  int64_t needed = 0;
  for (size_t layer = 0; layer < static_cast<size_t>(config.geometry.num_layers); ++layer) {
    needed = std::max(needed, FloorBytes(config, layer, num_tokens));
  }
  return CheckedProduct(kWhere, {config.geometry.num_layers, needed});
}

std::vector<int64_t> SplitBudget(int64_t total_bytes, int64_t num_layers,
                                 const std::vector<int64_t>& weights) {
  PMKVQ_CHECK(num_layers > 0 && total_bytes >= 0);
  PMKVQ_CHECK(weights.empty() || weights.size() == static_cast<size_t>(num_layers));
  const std::vector<int64_t> shares =
      weights.empty() ? std::vector<int64_t>(static_cast<size_t>(num_layers), 1) : weights;
  // Byte counts times weights (often byte counts too) may pass 64 bits.
  __extension__ using Wide = unsigned __int128;
  Wide sum = 0;
  for (const int64_t share : shares) {
    PMKVQ_CHECK(share >= 0);
    sum += static_cast<Wide>(share);
  }
  PMKVQ_CHECK(sum > 0);
  std::vector<int64_t> budgets;
  budgets.reserve(shares.size());
  for (const int64_t share : shares) {
    budgets.push_back(
        static_cast<int64_t>(static_cast<Wide>(total_bytes) * static_cast<Wide>(share) / sum));
  }
  return budgets;
}

void ValidateCacheConfig(const CacheConfig& config) {
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
  if (config.window_tokens < kPageTokens || config.window_tokens % kPageTokens != 0) {
    throw InvalidInput("--n-window-token",
                       fmt::format("found {}, expected a multiple of {}, at "
                                   "least {}",
                                   config.window_tokens, kPageTokens, kPageTokens));
  }
  if (config.max_sequences < 1 || config.num_threads < 1) {
    throw InvalidInput(kWhere, fmt::format("found {} sequences and {} threads, expected at least "
                                           "1 of each",
                                           config.max_sequences, config.num_threads));
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
  if ((config.rotate_keys || config.rotate_values) &&
      !std::has_single_bit(static_cast<uint64_t>(config.geometry.head_dim))) {
    throw InvalidInput("--kv", fmt::format("rotate: found head_dim {}, expected a power of two",
                                           config.geometry.head_dim));
  }
  if (config.reference_accounting &&
      (config.policy != PolicyKind::kLayerBudget || config.window_tokens != kPageTokens)) {
    throw InvalidInput("--reference-accounting",
                       fmt::format("found --policy {} and --n-window-token {}, expected "
                                   "layer-budget and {}, as in the reference",
                                   NameOf(config.policy), config.window_tokens, kPageTokens));
  }
  ValidateBudgets(config);
}

}  // namespace pmkvq
