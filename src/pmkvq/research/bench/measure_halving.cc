// Halving: how fast stored pages step down, and how long a token waits for it.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <numeric>

#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"
#include "pmkvq/base/float16.h"
#include "pmkvq/base/parallel.h"
#include "pmkvq/kernels/kv_quant/kv_quant.h"
#include "pmkvq/research/bench/rounds.h"
#include "pmkvq/research/bench/shapes.h"
#include "pmkvq/research/bench/synthetic.h"

namespace pmkvq {
namespace {

// Codes at the wider width that one measurement steps through: larger than any cache.
constexpr int64_t kKernelBytes = int64_t{128} << 20;
// Blocks of the cache whose pages are halved together.
constexpr int64_t kDefaultLayers = 4;

struct StepCase {
  int from_bits;
  Measurements cache_gb_per_s;
  Measurements kernel_gb_per_s;
};

// All pages of a cache that holds `depth` tokens step from `from_bits` to half of it, as
// LayerBudget does when its budget is reached. GB/s of codes, read plus written.
double HalveCache(const UniformKvGeometry& geometry, int from_bits, int64_t depth, int num_threads,
                  SyntheticRows& rows) {
  CacheConfig config = UniformCacheConfig(geometry, from_bits, depth, 1, num_threads);
  config.floor_bits = from_bits / 2;
  PackedKvCache cache(config);
  const SequenceId seq = cache.Open().value();
  FillCache(cache, geometry, seq, depth, rows);
  cache.TakeHalvingEvents();
  // Two pages, so that the budget is exceeded at this width even if the open page is nearly empty.
  const ReserveResult result = cache.Reserve(seq, 2 * kPageTokens);
  PMKVQ_CHECK(result == ReserveResult::kReservedAfterHalving);
  const KvStream keys = StreamOf(geometry.num_kv_heads, geometry.head_dim);
  double bytes = 0;
  double seconds = 0;
  for (const HalvingEvent& event : cache.TakeHalvingEvents()) {
    if (event.from_bits != from_bits) continue;
    bytes += static_cast<double>((event.num_k_pages + event.num_v_pages) *
                                 (PageCodeBytes(keys, config.float_type, from_bits) +
                                  PageCodeBytes(keys, config.float_type, from_bits / 2)));
    seconds += event.duration_us * 1e-6;
  }
  PMKVQ_CHECK(seconds > 0);
  return bytes / seconds / 1e9;
}

// The kernel alone on memory larger than the caches, in place page by page.
double HalveCodes(int from_bits, std::vector<uint8_t>& codes, int num_threads) {
  const int64_t group_bytes = PackedGroupBytes(kMaxGroup, from_bits);
  const int64_t page_bytes = kPageTokens * group_bytes;
  const int64_t num_pages = std::ssize(codes) / page_bytes;
  const double seconds = TimeSeconds([&] {
    ParallelForRanges(num_threads, num_pages, 16, [&](int64_t begin, int64_t end) {
      for (int64_t page = begin; page < end; ++page) {
        uint8_t* data = codes.data() + page * page_bytes;
        HalvePackedCodes(kMaxGroup, from_bits, data, kPageTokens, data);
      }
    });
  });
  return 1.5 * static_cast<double>(num_pages * page_bytes) / seconds / 1e9;
}

// The same for the first halving: stored floats to codes of 8 bits. The codes go to memory that
// stays in a processor cache, as the codes of a page do.
double HalveFloats(const std::vector<F16>& values, int num_threads) {
  constexpr int64_t kPageValues = kPageTokens * kMaxGroup;
  constexpr int64_t kGrain = 16;  // Pages.
  const int64_t num_pages = std::ssize(values) / kPageValues;
  std::vector<uint8_t> codes(static_cast<size_t>(num_threads * kPageValues));
  std::vector<F16> bounds(static_cast<size_t>(num_threads * 2 * kPageTokens));
  const double seconds = TimeSeconds([&] {
    ParallelFor(num_threads, (num_pages + kGrain - 1) / kGrain, [&](int64_t piece, int worker) {
      uint8_t* out = codes.data() + worker * kPageValues;
      F16* mins = bounds.data() + worker * 2 * kPageTokens;
      const int64_t end = std::min(num_pages, (piece + 1) * kGrain);
      for (int64_t page = piece * kGrain; page < end; ++page) {
        QuantizeStoredGroups({kMaxGroup, 8, DType::kF16}, values.data() + page * kPageValues,
                             kPageTokens, out, mins, mins + kPageTokens);
      }
    });
  });
  return 3.0 * static_cast<double>(num_pages * kPageValues) / seconds / 1e9;
}

std::vector<F16> SyntheticHalves(int64_t count) {
  SyntheticRows rows(5);
  std::vector<float> some(size_t{1} << 20);
  rows.Fill(std::ssize(some), some.data());
  std::vector<F16> halves(static_cast<size_t>(count));
  for (size_t i = 0; i < halves.size(); ++i) {
    halves[i] = i < some.size() ? ToF16(some[i]) : halves[i - some.size()];
  }
  return halves;
}

// The times that single tokens waited for the cache while it stepped down.
struct Waits {
  std::string policy;
  double longest_ms = 0;
  double median_ms = 0;
  int64_t most_bytes = 0;  // Of pages that one token halved, as read.
  double seconds_in_reserve = 0;
  int64_t num_tokens = 0;
  int64_t halved_pages = 0;
};

// Decodes token by token, without a model, until the budget is used up.
Waits StepDown(const UniformKvGeometry& geometry, PolicyKind policy, int64_t budget_tokens,
               const BenchOptions& options) {
  CacheConfig config = UniformCacheConfig(geometry, 16, budget_tokens, 1, options.num_threads);
  config.floor_bits = 2;
  config.policy = policy;
  PackedKvCache cache(config);
  const SequenceId seq = cache.Open().value();
  SyntheticRows rows(4);
  std::vector<float> k(static_cast<size_t>(geometry.kv_dim()));
  std::vector<float> v(k.size());
  rows.Fill(std::ssize(k), k.data());
  rows.Fill(std::ssize(v), v.data());
  FillCache(cache, geometry, seq, std::max<int64_t>(0, budget_tokens - 2 * kPageTokens), rows);

  Waits waits;
  waits.policy = NameOf(policy);
  Measurements samples;
  int64_t bytes_before = cache.SequenceStats(seq).narrowed_bytes;
  for (bool has_room = true; has_room; ++waits.num_tokens) {
    ThrowIfCancelled(options.cancel, "bench");
    const double reserving =
        TimeSeconds([&] { has_room = cache.Reserve(seq, 1) != ReserveResult::kBudgetExhausted; });
    if (!has_room) break;
    const double storing = TimeSeconds([&] {
      cache.BeginForward({{seq, 1}});
      for (int64_t layer = 0; layer < geometry.num_layers; ++layer) {
        cache.Append(layer, k.data(), v.data());
      }
      cache.EndForward();
    });
    samples.Add((reserving + storing) * 1e3);
    const int64_t narrowed_bytes = cache.SequenceStats(seq).narrowed_bytes;
    waits.most_bytes = std::max(waits.most_bytes, narrowed_bytes - bytes_before);
    bytes_before = narrowed_bytes;
    waits.seconds_in_reserve += reserving;
  }
  for (const HalvingEvent& event : cache.TakeHalvingEvents()) {
    waits.halved_pages += event.num_k_pages + event.num_v_pages;
  }
  waits.longest_ms = samples.Max();
  waits.median_ms = samples.Median();
  return waits;
}

}  // namespace

BenchReport BenchHalving(const BenchOptions& options, int64_t budget_tokens) {
  internal::CheckOptions(options);
  const ModelConfig shape = internal::ShapeOf(options, kDefaultLayers);
  const ModelConfig whole = NamedShape(options.shape, 0);
  const UniformKvGeometry geometry{shape.num_layers, shape.num_heads, shape.num_kv_heads,
                                   shape.head_dim};
  UniformKvGeometry whole_geometry = geometry;
  whole_geometry.num_layers = options.layers > 0 ? options.layers : whole.num_layers;
  constexpr int64_t kLeastTokens = 8 * kPageTokens;
  PMKVQ_CHECK(options.depths.size() == 1);
  const int64_t depth = options.depths[0];
  for (const auto& [option, tokens] :
       {std::pair{"--depth", depth}, {"--budget-tokens", budget_tokens}}) {
    if (tokens < kLeastTokens) {
      throw InvalidInput(option, fmt::format("found {}, expected at least {} tokens, so that there "
                                             "are pages to halve",
                                             tokens, kLeastTokens));
    }
  }
  const auto bytes_of = [](const UniformKvGeometry& g, int64_t tokens) {
    return UniformCacheConfig(g, 16, tokens, 1, 1).budget_bytes[0] * g.num_layers;
  };
  CheckMemory(
      2 * kKernelBytes + bytes_of(geometry, depth) + bytes_of(whole_geometry, budget_tokens),
      "give a smaller --depth, --budget-tokens or --layers");

  std::vector<uint8_t> codes(static_cast<size_t>(kKernelBytes));
  std::iota(codes.begin(), codes.end(), uint8_t{1});
  const std::vector<F16> values = SyntheticHalves(kKernelBytes / static_cast<int64_t>(sizeof(F16)));
  std::array<StepCase, 3> steps = {{{16, {}, {}}, {8, {}, {}}, {4, {}, {}}}};
  std::array<Measurements, 2> longest;  // By policy.
  constexpr std::array<PolicyKind, 2> kPolicies = {PolicyKind::kOldestFirst,
                                                   PolicyKind::kLayerBudget};
  std::array<Waits, 2> waits;
  SyntheticRows rows(1);
  Ceilings ceilings(options.num_threads);
  internal::RunRounds(options, "halve", ceilings, [&](bool measured) {
    for (StepCase& step : steps) {
      ThrowIfCancelled(options.cancel, "bench");
      const double in_cache =
          HalveCache(geometry, step.from_bits, depth, options.num_threads, rows);
      if (measured) step.cache_gb_per_s.Add(in_cache);
      ceilings.EvictCaches();
      const double alone = step.from_bits == 16
                               ? HalveFloats(values, options.num_threads)
                               : HalveCodes(step.from_bits, codes, options.num_threads);
      if (measured) step.kernel_gb_per_s.Add(alone);
    }
    for (size_t i = 0; i < kPolicies.size(); ++i) {
      waits[i] = StepDown(whole_geometry, kPolicies[i], budget_tokens, options);
      if (measured) longest[i].Add(waits[i].longest_ms);
    }
  });

  BenchReport report = internal::NewReport(options, "halve", shape);
  ceilings.AddTo(report.facts);
  report.facts.Add("depth", depth, "depth");
  report.facts.Add("budget_tokens", budget_tokens, "budget tokens");
  BenchTable table{"rows", "halving of all closed pages, codes read plus written", {}};
  for (const StepCase& step : steps) {
    const Spread speed = step.cache_gb_per_s.ToSpread();
    BenchFields row;
    row.Add("from_bits", int64_t{step.from_bits}, "from");
    row.Add("to_bits", int64_t{step.from_bits / 2}, "to");
    row.AddSpread("gb_per_s", speed, "GB/s");
    row.Add("percent_of_copy", 100.0 * speed.median / ceilings.copy_gb_per_s(), "% of copy", 1);
    const double kernel = step.kernel_gb_per_s.Median();
    row.Add("kernel_gb_per_s", kernel, "kernel alone GB/s");
    row.Add("kernel_percent_of_copy", 100.0 * kernel / ceilings.copy_gb_per_s(), "% of copy", 1);
    table.rows.push_back(row);
  }
  report.tables.push_back(std::move(table));
  BenchTable pauses{"pauses",
                    fmt::format("what one token waits for {} blocks of cache, stepping from 16 "
                                "to 2 bits",
                                whole_geometry.num_layers),
                    {}};
  for (size_t i = 0; i < kPolicies.size(); ++i) {
    BenchFields row;
    row.Add("policy", waits[i].policy, "policy");
    row.Add("tokens", waits[i].num_tokens, "tokens");
    row.Add("halved_pages", waits[i].halved_pages, "halved pages");
    row.Add("most_mib_per_token", static_cast<double>(waits[i].most_bytes) / 0x1p20,
            "most MiB per token", 1);
    row.Add("median_ms", waits[i].median_ms, "median ms", 3);
    row.AddSpread("longest_ms", longest[i].ToSpread(), "longest ms", 3);
    pauses.rows.push_back(row);
  }
  report.tables.push_back(std::move(pauses));
  return report;
}

}  // namespace pmkvq
