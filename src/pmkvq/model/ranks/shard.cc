#include "pmkvq/model/ranks/shard.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <bit>
#include <charconv>
#include <numeric>
#include <string_view>

#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"
#include "pmkvq/kv/key_scales.h"
#include "pmkvq/model/model.h"
#include "pmkvq/model/weight_list.h"

namespace pmkvq {
namespace {

constexpr int kMostRanks = 64;

bool Divides(int64_t a, int64_t b) { return b % a == 0; }

bool IsLegal(const ModelConfig& config, int num_ranks) {
  return std::has_single_bit(static_cast<unsigned>(num_ranks)) &&
         Divides(num_ranks, config.num_heads) &&
         (!config.moe || num_ranks <= config.moe->num_experts) &&
         (Divides(num_ranks, config.num_kv_heads) || Divides(config.num_kv_heads, num_ranks)) &&
         num_ranks <= std::min(config.intermediate_size, config.vocab_size);
}

// The format that products of a weight will read.
WeightFormat FormatOf(const WeightSource& weights, WeightMode mode, const std::string& name) {
  const StoredWeight* stored = weights.Find(name);
  if (stored == nullptr || !stored->format) return WeightFormat::kF32;  // Binding refuses it.
  return FormatInMode(mode, *stored->format);
}

// Columns of a slice are whole multiples of it: the largest block of these weights in any block of
// the model, as stored and as used.
int64_t ColumnUnit(const ModelConfig& config, const WeightSource& weights, WeightMode mode,
                   std::string_view part) {
  int64_t unit = 1;
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    const std::string name = fmt::format("blocks.{}.{}", layer, part);
    for (const WeightMode each : {mode, WeightMode::kAsStored}) {
      unit = std::max(unit, LayoutOf(FormatOf(weights, each, name)).block_values);
    }
  }
  return unit;
}

// `size` in `num_slices` slices that are as equal as whole units allow.
SliceRange Slices(int64_t size, int64_t unit, int num_slices, int rank, int num_ranks) {
  SliceRange range;
  const int64_t num_units = (size + unit - 1) / unit;
  for (int64_t slice = 0; slice <= num_slices; ++slice) {
    range.begins.push_back(std::min(size, num_units * slice / num_slices * unit));
  }
  const int per_rank = num_slices / num_ranks;
  range.first = static_cast<size_t>(rank * per_rank);
  range.last = range.first + static_cast<size_t>(per_rank);
  return range;
}

// Whole multiples that the kernels of a device take fast.
constexpr int64_t kDeviceColumns = 64;
constexpr int64_t kDeviceRows = 8;

// Rows of q, k or v on a device: few products of many rows.
SliceRange DeviceHeadSlices(int64_t num_heads, int64_t head_dim, int num_slices, int part,
                            int num_parts) {
  const auto slices = static_cast<int>(std::gcd(num_heads, static_cast<int64_t>(num_slices)));
  return Slices(num_heads * head_dim, head_dim, slices, part, num_parts);
}

// Rows of q, k or v: slices of whole heads, since rows of a head may lie in pairs.
SliceRange HeadSlices(int64_t num_heads, int64_t head_dim, int num_slices, int part,
                      int num_parts) {
  const bool fits = num_heads % num_slices == 0;
  return Slices(num_heads * head_dim, head_dim, fits ? num_slices : static_cast<int>(num_heads),
                part, num_parts);
}

bool EndsWith(const std::string& name, std::string_view end) { return name.ends_with(end); }

// The 7 of "blocks.3.mlp.experts.7.gate"; -1: no expert's.
int64_t ExpertOf(std::string_view name) {
  constexpr std::string_view kBefore = ".mlp.experts.";
  const size_t found = name.find(kBefore);
  if (found == std::string_view::npos) return -1;
  name.remove_prefix(found + kBefore.size());
  int64_t expert = -1;
  std::from_chars(name.data(), name.data() + name.size(), expert);
  return expert;
}

}  // namespace

std::vector<int> LegalRankCounts(const ModelConfig& config) {
  std::vector<int> counts;
  for (int count = 1; count <= kMostRanks; count *= 2) {
    if (IsLegal(config, count)) counts.push_back(count);
  }
  return counts;
}

void CheckRanks(const ModelConfig& config, const WeightSource& weights, WeightMode mode,
                int num_ranks, int num_slices, bool on_device) {
  const std::string where = "ranks";
  const std::string asked = num_ranks > 1 ? fmt::format("{} ranks", num_ranks)
                                          : fmt::format("--tp-slices {}", num_slices);
  if (config.mla) {
    throw Unsupported(where, fmt::format("found {} and a model with latent attention, which only "
                                         "one rank without --tp-slices can run",
                                         asked));
  }
  if (config.moe && on_device) {
    throw Unsupported(where, fmt::format("found {} on a device and a model with experts, which "
                                         "ranks share on the CPU only; use --device cpu",
                                         asked));
  }
  if (!IsLegal(config, num_ranks)) {
    throw InvalidInput(where, fmt::format("found {}, expected {} ({} heads, {} KV heads)", asked,
                                          fmt::join(LegalRankCounts(config), " or "),
                                          config.num_heads, config.num_kv_heads));
  }
  if (!std::has_single_bit(static_cast<unsigned>(num_slices)) || num_slices > kMostRanks ||
      num_slices < num_ranks) {
    throw InvalidInput("--tp-slices",
                       fmt::format("found {} with {}, expected a power of two from the number of "
                                   "ranks to {}",
                                   num_slices, asked, kMostRanks));
  }
  const int64_t least_unit = on_device ? kDeviceColumns : 1;
  const int64_t o_unit = std::max(least_unit, ColumnUnit(config, weights, mode, "attn.o"));
  const int64_t down_unit = std::max(least_unit, ColumnUnit(config, weights, mode, "mlp.down"));
  // Heads are cut between ranks at places where a block of o's weights begins.
  if (config.q_dim() % (num_ranks * o_unit) != 0 && num_ranks > 1) {
    throw Unsupported(where, fmt::format("found {} and weights in blocks of {}, which a rank's {} "
                                         "columns of attn.o would cut; use --weights q8",
                                         asked, o_unit, config.q_dim() / num_ranks));
  }
  if ((config.intermediate_size + down_unit - 1) / down_unit < num_ranks) {
    throw Unsupported(where, fmt::format("found {} and weights in blocks of {}, of which a row of "
                                         "mlp.down has {}",
                                         asked, down_unit, config.intermediate_size / down_unit));
  }
  if (!config.moe || config.moe->shared_size == 0) return;
  const int64_t shared_unit = ColumnUnit(config, weights, mode, "mlp.shared.down");
  if ((config.moe->shared_size + shared_unit - 1) / shared_unit < num_ranks) {
    throw Unsupported(where,
                      fmt::format("found {} and weights in blocks of {}, of which a row of "
                                  "mlp.shared.down has {}",
                                  asked, shared_unit, config.moe->shared_size / shared_unit));
  }
}

ModelShard MakeShard(const ModelConfig& config, const WeightSource& weights, WeightMode mode,
                     Communicator* comm, int num_slices, bool on_device) {
  const bool has_others = comm != nullptr && comm->size() > 1;
  ModelShard shard = MakeShardOf(config, weights, mode, has_others ? comm->rank() : 0,
                                 has_others ? comm->size() : 1, num_slices, on_device);
  if (has_others) shard.comm = comm;
  return shard;
}

ModelShard MakeShardOf(const ModelConfig& config, const WeightSource& weights, WeightMode mode,
                       int rank, int num_ranks, int num_slices, bool on_device) {
  ModelShard shard;
  shard.rank = rank;
  shard.size = num_ranks;
  const int slices = num_slices > 0 ? num_slices : std::max(kRankSlices, shard.size);
  CheckRanks(config, weights, mode, shard.size, slices, on_device);
  const int64_t least_unit = on_device ? kDeviceColumns : 1;
  const auto unit_of = [&](const char* part) {
    return std::max(least_unit, ColumnUnit(config, weights, mode, part));
  };
  const auto head_slices = on_device ? &DeviceHeadSlices : &HeadSlices;
  shard.q = Slices(config.q_dim(), unit_of("attn.o"), slices, shard.rank, shard.size);
  shard.heads = head_slices(config.num_heads, config.head_dim, slices, shard.rank, shard.size);
  // Where there are more ranks than KV heads, a rank has that of its query heads.
  const auto kv_parts = static_cast<int>(std::min<int64_t>(shard.size, config.num_kv_heads));
  shard.kv = head_slices(config.num_kv_heads, config.head_dim,
                         on_device ? slices : static_cast<int>(config.num_kv_heads),
                         shard.rank / (shard.size / kv_parts), kv_parts);
  shard.inner =
      Slices(config.intermediate_size, unit_of("mlp.down"), slices, shard.rank, shard.size);
  shard.vocab =
      Slices(config.vocab_size, on_device ? kDeviceRows : 1, slices, shard.rank, shard.size);
  shard.num_kv_parts = kv_parts;
  shard.whole_heads = config.num_heads / config.num_kv_heads;
  shard.local = config;
  shard.local.num_heads = config.num_heads / shard.size;
  shard.local.num_kv_heads = config.num_kv_heads / shard.num_kv_parts;
  shard.local.intermediate_size = shard.inner.size();
  if (config.moe) {
    shard.experts = Slices(config.moe->num_experts, 1, slices, shard.rank, shard.size);
    shard.shared =
        Slices(config.moe->shared_size, unit_of("mlp.shared.down"), slices, shard.rank, shard.size);
    shard.local.moe->shared_size = shard.shared.size();
  }
  PMKVQ_CHECK(shard.q.size() == shard.local.q_dim() && shard.kv.size() == shard.local.kv_dim());
  return shard;
}

WeightCut CutOf(const ModelShard& shard, const std::string& name) {
  using Along = WeightCut::Along;
  if (EndsWith(name, ".attn.q") || EndsWith(name, ".attn.q.bias")) {
    return {Along::kRows, &shard.heads};
  }
  for (const char* kv : {".attn.k", ".attn.v", ".attn.k.bias", ".attn.v.bias"}) {
    if (EndsWith(name, kv)) return {Along::kRows, &shard.kv};
  }
  if (EndsWith(name, ".mlp.gate") || EndsWith(name, ".mlp.up")) return {Along::kRows, &shard.inner};
  if (name == "output_head") return {Along::kRows, &shard.vocab};
  if (EndsWith(name, ".attn.o")) return {Along::kColumns, &shard.q};
  if (EndsWith(name, ".mlp.down")) return {Along::kColumns, &shard.inner};
  if (EndsWith(name, ".mlp.shared.gate") || EndsWith(name, ".mlp.shared.up")) {
    return {Along::kRows, &shard.shared};
  }
  if (EndsWith(name, ".mlp.shared.down")) return {Along::kColumns, &shard.shared};
  if (const int64_t expert = ExpertOf(name); expert >= 0) {
    const int64_t place = expert - shard.experts.begin();
    if (place < 0 || place >= shard.experts.size()) return {Along::kAbsent, nullptr};
  }
  return {};
}

CacheConfig LocalCacheConfig(const CacheConfig& whole, const ModelShard& shard) {
  CacheConfig local = whole;
  local.whole_heads = shard.whole_heads;
  if (shard.size == 1) return local;
  const int64_t parts = shard.num_kv_parts;
  for (KvBlockGeometry& block : local.geometry.blocks) {
    if (!block.has_cache()) continue;
    block.num_heads /= shard.size;
    for (KvStream& stream : block.streams) stream.heads /= parts;
  }
  for (int64_t& bytes : local.budget_bytes) bytes /= parts;
  local.most_bytes_per_token /= parts;
  // A limit that is there stays one.
  const auto share = [&](int64_t& bytes) {
    if (bytes > 0) bytes = std::max<int64_t>(1, bytes / parts);
  };
  share(local.pool.bytes);
  share(local.pool.step_bytes);
  share(local.pool.read_limit_bytes);
  share(local.pool.prefix_bytes);
  if (whole.key_scales == nullptr) return local;
  std::vector<Tensor> scales;
  const int64_t first_head = shard.kv.begin() / shard.local.head_dim;
  for (size_t layer = 0; layer < whole.geometry.blocks.size(); ++layer) {
    const KvBlockGeometry& block = whole.geometry.blocks[layer];
    if (!block.has_cache()) {
      scales.emplace_back();
      continue;
    }
    // Factors of queries are the scales, one copy for each query head of a KV head.
    const KvBlockGeometry& mine = local.geometry.blocks[layer];
    const int64_t pairs = block.k().width / 2;
    const int64_t per_kv_head = block.num_heads / block.k().heads;
    Tensor& tensor = scales.emplace_back(DType::kF32, KeyScales::ShapeOf(mine));
    auto* out = tensor.As<float>();
    for (int64_t head = 0; head < mine.k().heads; ++head) {
      const float* from = whole.key_scales->query_factors(static_cast<int64_t>(layer)) +
                          (first_head + head) * per_kv_head * pairs;
      out = std::copy_n(from, pairs, out);
    }
  }
  local.key_scales = KeyScales::Make(local.geometry, scales);
  return local;
}

}  // namespace pmkvq
