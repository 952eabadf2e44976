#include "pmkvq/research/calib/allocate.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <string>
#include <tuple>
#include <utility>

#include "pmkvq/base/byte_size.h"
#include "pmkvq/base/error.h"
#include "pmkvq/io/limits.h"
#include "pmkvq/research/calib/reference_accounting.h"

namespace pmkvq {
namespace {

constexpr const char* kWhere = "allocate";
// Sums of as many as there are blocks stay finite. Measured ones are below 1.
constexpr double kMostSensitivity = 1e100;

struct WidthPair {
  int k_bits;
  int v_bits;
  int64_t bytes;  // Of one block.
};

bool IsWidth(int bits) { return std::find(kWidths.begin(), kWidths.end(), bits) != kWidths.end(); }

std::vector<int> CheckedWidths(const AllocationOptions& options) {
  std::vector<int> widths = options.fbit_choices;
  if (widths.empty()) throw InvalidInput(kWhere, "fbit-choices: none given, expected 16, 8, 4, 2");
  for (const int bits : widths) {
    if (!IsWidth(bits)) {
      throw InvalidInput(kWhere,
                         fmt::format("fbit-choices: found {}, expected 16, 8, 4 or 2", bits));
    }
  }
  std::sort(widths.begin(), widths.end());
  widths.erase(std::unique(widths.begin(), widths.end()), widths.end());
  return widths;
}

// The widths that V, or k_r, may have.
std::vector<int> ValueWidths(const AllocationOptions& options, std::vector<int> widths,
                             const KvBlockGeometry& block) {
  if (!block.is_latent()) return widths;
  for (int& bits : widths) bits = std::max(bits, options.cache.rope_floor_bits);
  widths.erase(std::unique(widths.begin(), widths.end()), widths.end());
  return widths;
}

// What a block may be given, in order of the tie-break. A block without cache has no choice.
std::vector<WidthPair> WidthPairs(const AllocationOptions& options, const std::vector<int>& widths,
                                  size_t layer) {
  const KvBlockGeometry& block = options.cache.geometry.blocks[layer];
  if (!block.has_cache()) return {{16, 16, 0}};
  std::vector<WidthPair> pairs;
  for (const int k_bits : widths) {
    for (const int v_bits : ValueWidths(options, widths, block)) {
      if (k_bits != v_bits && !options.separate_kv && !block.is_latent()) continue;
      const int64_t bytes = options.reference_accounting
                                ? ReferenceBlockBytes(block, options.max_len, k_bits, v_bits)
                                : BlockBytes(options.cache, layer, options.max_len, k_bits, v_bits);
      pairs.push_back({k_bits, v_bits, bytes});
    }
  }
  std::sort(pairs.begin(), pairs.end(), [](const WidthPair& a, const WidthPair& b) {
    return std::tie(a.bytes, a.v_bits, a.k_bits) < std::tie(b.bytes, b.v_bits, b.k_bits);
  });
  return pairs;
}

// Of every block.
std::vector<std::vector<WidthPair>> WidthPairs(const AllocationOptions& options) {
  const std::vector<int> widths = CheckedWidths(options);
  std::vector<std::vector<WidthPair>> pairs;
  for (size_t layer = 0; layer < options.cache.geometry.blocks.size(); ++layer) {
    pairs.push_back(WidthPairs(options, widths, layer));
  }
  return pairs;
}

void CheckSizes(const AllocationOptions& options) {
  if (options.reference_accounting) {
    RefuseLatents(options.cache.geometry, "--reference-accounting");
  }
  if (!IsWidth(options.cache.rope_floor_bits)) {
    throw InvalidInput(kWhere, fmt::format("rope-floor: found {}, expected 16, 8, 4 or 2",
                                           options.cache.rope_floor_bits));
  }
  if (options.cache.geometry.values() < 1) {
    throw InvalidInput(kWhere, "model geometry: found no blocks or no KV heads, expected some");
  }
  if (options.max_len < 1 || options.max_len > limits::kSequenceTokens) {
    throw InvalidInput(kWhere, fmt::format("max-len: found {}, expected 1 to {}", options.max_len,
                                           limits::kSequenceTokens));
  }
  const CacheConfig& cache = options.cache;
  if (cache.sink_tokens < 0 || cache.sink_tokens > kMaxSinkTokens) {
    throw InvalidInput(kWhere, fmt::format("n-sink-token: found {}, expected 0 to {}",
                                           cache.sink_tokens, kMaxSinkTokens));
  }
  if (cache.window_tokens < kPageTokens || cache.window_tokens % kPageTokens != 0) {
    throw InvalidInput(kWhere, fmt::format("n-window-token: found {}, expected a multiple of {}",
                                           cache.window_tokens, kPageTokens));
  }
}

[[noreturn]] void FailBudget(const AllocationOptions& options, int64_t smallest_bytes) {
  throw InvalidInput(
      kWhere, fmt::format("memory-budget: found {} ({} bytes), expected at least {:.3f} MiB "
                          "({} bytes), the smallest that holds {} tokens",
                          FormatByteSize(options.memory_budget_bytes), options.memory_budget_bytes,
                          // Rounded up, so that the printed figure works as an option.
                          std::ceil(static_cast<double>(smallest_bytes) / 1048.576) / 1000.0,
                          smallest_bytes, options.max_len));
}

void CheckSide(const std::vector<std::vector<double>>& side, int bits, int64_t num_layers,
               const char* name) {
  static const std::vector<double> kNone;
  const size_t index = WidthIndex(bits);
  const std::vector<double>& values = index < side.size() ? side[index] : kNone;
  if (static_cast<int64_t>(values.size()) != num_layers) {
    throw InvalidInput(
        kWhere, fmt::format("sensitivity {}.{}: found {} values, expected {}, one per block", name,
                            bits, values.size(), num_layers));
  }
  for (size_t block = 0; block < values.size(); ++block) {
    if (!(std::abs(values[block]) <= kMostSensitivity)) {
      throw InvalidInput(kWhere,
                         fmt::format("sensitivity {}.{}[{}]: found {}, expected a number up "
                                     "to {}",
                                     name, bits, block, values[block], kMostSensitivity));
    }
  }
}

std::vector<KnapsackItem> MakeItems(const Sensitivity& sensitivity,
                                    const std::vector<std::vector<WidthPair>>& pairs,
                                    const AllocationOptions& options) {
  const auto num_layers = static_cast<int64_t>(pairs.size());
  const std::vector<int> widths = CheckedWidths(options);
  for (const int bits : widths) CheckSide(sensitivity.k, bits, num_layers, "k");
  for (const int bits : widths) CheckSide(sensitivity.v, bits, num_layers, "v");
  if (HasLatents(options.cache.geometry)) {
    const int floor = options.cache.rope_floor_bits;
    CheckSide(sensitivity.v, std::max(floor, widths.front()), num_layers, "v");
  }
  std::vector<KnapsackItem> items(pairs.size());
  for (size_t block = 0; block < items.size(); ++block) {
    const size_t measured = options.mirrored ? items.size() - 1 - block : block;
    const KvBlockGeometry& geometry = options.cache.geometry.blocks[block];
    for (const WidthPair& pair : pairs[block]) {
      double cost = 0.0;
      if (geometry.has_cache()) {
        cost = sensitivity.k[WidthIndex(pair.k_bits)][measured] * ShareOfValues(geometry, 0) +
               sensitivity.v[WidthIndex(pair.v_bits)][measured] * ShareOfValues(geometry, 1);
      }
      items[block].cost.push_back(cost);
      items[block].bytes.push_back(pair.bytes);
    }
  }
  return items;
}

}  // namespace

Allocation Allocate(const Sensitivity& sensitivity, const AllocationOptions& options) {
  CheckSizes(options);
  const std::vector<std::vector<WidthPair>> pairs = WidthPairs(options);
  const KnapsackResult solved =
      SolveKnapsack(MakeItems(sensitivity, pairs, options), options.memory_budget_bytes);
  if (!solved.feasible) FailBudget(options, solved.smallest_bytes);
  Allocation allocation;
  for (size_t block = 0; block < pairs.size(); ++block) {
    const WidthPair& pair = pairs[block][static_cast<size_t>(solved.choice[block])];
    allocation.k_bits.push_back(pair.k_bits);
    allocation.v_bits.push_back(pair.v_bits);
    allocation.budget_bytes.push_back(pair.bytes);
  }
  allocation.objective = solved.cost;
  allocation.total_bytes = solved.bytes;
  return allocation;
}

void CheckAllocationOptions(const AllocationOptions& options) {
  CheckSizes(options);
  int64_t smallest_bytes = 0;
  for (const std::vector<WidthPair>& pairs : WidthPairs(options)) {
    smallest_bytes = CheckedSum(kWhere, {smallest_bytes, pairs.front().bytes});
  }
  if (smallest_bytes > options.memory_budget_bytes) FailBudget(options, smallest_bytes);
}

}  // namespace pmkvq
