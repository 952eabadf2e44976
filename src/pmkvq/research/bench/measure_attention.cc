// Attention of one new token over a cache of made-up keys and values.
//
// Measured through the cache, as the model calls it: AppendAndAttend of one block, which also
// stores the token. What storing takes is below a thousandth at the depths of interest.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>

#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"
#include "pmkvq/research/bench/rounds.h"
#include "pmkvq/research/bench/shapes.h"
#include "pmkvq/research/bench/synthetic.h"

namespace pmkvq {
namespace {

CacheConfig ConfigOf(const KvGeometry& geometry, const BenchOptions& options, const KvBits& bits,
                     int64_t depth) {
  return UniformCacheConfig(geometry, bits, depth + kPageTokens, 1, options.num_threads,
                            options.attention,
                            options.keys_by_channel ? QuantAxis::kChannel : QuantAxis::kToken);
}

// One depth and width.
struct Case {
  Case(const KvGeometry& kv_geometry, const BenchOptions& options, int64_t num_stored,
       const KvBits& widths, SyntheticRows& rows)
      : geometry(kv_geometry),
        depth(num_stored),
        bits(widths),
        cache(ConfigOf(kv_geometry, options, widths, num_stored)),
        seq(cache.Open().value()) {
    FillCache(cache, geometry, seq, depth, rows);
    stored_bytes = StoredBytes(cache, seq);
    const KvBlockGeometry& block = geometry.block(0);
    q.resize(static_cast<size_t>(block.q_values()));
    k.resize(static_cast<size_t>(block.k().values()));
    v.resize(static_cast<size_t>(block.v().values()));
    out.resize(static_cast<size_t>(block.out_values()));
    rows.Fill(std::ssize(q), q.data());
    if (block.is_latent()) {  // Their scale is part of the queries.
      const auto scale = 1.0f / std::sqrt(static_cast<float>(block.values()));
      for (float& value : q) value *= scale;
    }
    rows.Fill(std::ssize(k), k.data());
    rows.Fill(std::ssize(v), v.data());
  }

  // Seconds of AppendAndAttend over all blocks; the cache is as before afterwards.
  double Attend() {
    const ReserveResult result = cache.Reserve(seq, 1);
    PMKVQ_CHECK(result != ReserveResult::kBudgetExhausted);
    cache.BeginForward({{seq, 1}});
    const double elapsed = TimeSeconds([&] {
      for (int64_t layer = 0; layer < geometry.num_layers(); ++layer) {
        cache.AppendAndAttend(layer, q.data(), k.data(), v.data(), out.data());
      }
    });
    cache.EndForward();
    cache.Truncate(seq, depth);
    return elapsed;
  }

  // Multiply-adds of all blocks: of each query head with every stored key and value.
  double num_products() const {
    const KvBlockGeometry& block = geometry.block(0);
    return static_cast<double>(block.q_values() + block.out_values()) *
           static_cast<double>(depth * geometry.num_layers());
  }

  KvGeometry geometry;
  int64_t depth;
  KvBits bits;
  PackedKvCache cache;
  SequenceId seq;
  int64_t stored_bytes = 0;
  std::vector<float> q, k, v, out;
  Measurements seconds;
};

BenchFields Describe(const Case& item, const BenchOptions& options, const Ceilings& ceilings) {
  const KvBlockGeometry& block = item.geometry.block(0);
  const Spread time = item.seconds.ToSpread();
  const double token_heads = static_cast<double>(
      item.depth * (block.is_latent() ? 1 : block.k().heads) * item.geometry.num_layers());
  const double to_ns = 1e9 / token_heads;
  const double gb_per_s = static_cast<double>(item.stored_bytes) / time.median / 1e9;
  const double gmac_per_s = item.num_products() / time.median / 1e9;
  BenchFields row;
  row.Add("depth", item.depth, "depth");
  if (item.bits.k == item.bits.v) {
    row.Add("bits", int64_t{item.bits.k}, "bits");
  } else {
    row.Add("bits", internal::NameOfWidths(item.bits), "bits");
  }
  row.Add("attention", std::string(NameOf(options.attention)), "attention");
  row.Add("ms", time.median * 1e3, "ms", 3);
  row.AddSpread("ns_per_token_head", {time.median * to_ns, time.p10 * to_ns, time.p90 * to_ns},
                "ns/token-head", 1);
  row.Add("stored_bytes", item.stored_bytes);
  row.Add("gb_per_s", gb_per_s, "GB/s");
  row.Add("percent_of_read", 100.0 * gb_per_s / ceilings.read_gb_per_s(), "% of read", 1);
  row.Add("gmac_per_s", gmac_per_s, "GMAC/s", 1);
  row.Add("percent_of_float_peak", 200.0 * gmac_per_s / ceilings.float_gflop_per_s(), "% of float",
          1);
  row.Add("percent_of_int8_peak", 100.0 * gmac_per_s / ceilings.int8_gmac_per_s(), "% of int8", 1);
  if (block.is_latent()) {
    // The longer one of reading the bytes and of multiplying in float.
    const double least = std::max(static_cast<double>(item.stored_bytes) / ceilings.read_gb_per_s(),
                                  2.0 * item.num_products() / ceilings.float_gflop_per_s()) /
                         1e9;
    row.Add("percent_of_allowed", 100.0 * least / time.median, "% of allowed", 1);
  }
  return row;
}

}  // namespace

namespace internal {

KvGeometry AttentionGeometry(const BenchOptions& options) {
  if (const std::optional<KvBlockGeometry> block = NamedLatentShape(options.shape)) {
    KvGeometry geometry;
    geometry.blocks.assign(static_cast<size_t>(std::max<int64_t>(1, options.layers)), *block);
    return geometry;
  }
  const ModelConfig shape = ShapeOf(options, 1);
  return UniformKvGeometry{shape.num_layers, shape.num_heads, shape.num_kv_heads, shape.head_dim};
}

std::vector<KvBits> AttentionWidths(const BenchOptions& options, const KvGeometry& geometry) {
  if (HasLatents(geometry) && (!options.apart.empty() || options.keys_by_channel)) {
    throw InvalidInput(options.shape,
                       "found --apart or --axis channel, expected neither: a latent "
                       "is key and value at once, in groups of a token");
  }
  std::vector<KvBits> widths;
  for (const int bits : options.bits) widths.push_back({bits, bits});
  widths.insert(widths.end(), options.apart.begin(), options.apart.end());
  return widths;
}

std::string NameOfWidths(const KvBits& bits) {
  return bits.k == bits.v ? std::to_string(bits.k) : fmt::format("{}:{}", bits.k, bits.v);
}

BenchReport NewAttentionReport(const BenchOptions& options, const KvGeometry& geometry) {
  if (!HasLatents(geometry)) {
    return NewReport(options, "attention", ShapeOf(options, 1));
  }
  BenchReport report;
  report.facts.Add("bench", std::string("attention"));
  report.facts.Add("shape", options.shape);
  report.facts.Add("layers", geometry.num_layers());
  report.facts.Add("repeat", int64_t{options.repeat});
  report.facts.AddText("shape", fmt::format("{}: {}", options.shape, Describe(geometry)));
  return report;
}

}  // namespace internal

BenchReport BenchAttention(const BenchOptions& options) {
  internal::CheckOptions(options);
  const KvGeometry geometry = internal::AttentionGeometry(options);
  const std::vector<KvBits> widths = internal::AttentionWidths(options, geometry);
  int64_t bytes = 0;
  for (const int64_t depth : options.depths) {
    if (depth == 0) {
      throw InvalidInput("--depth", "found 0, expected at least 1 stored token to attend to");
    }
    for (const KvBits& bits : widths) {
      bytes += ConfigOf(geometry, options, bits, depth).budget_bytes[0] * geometry.num_layers();
    }
  }
  CheckMemory(bytes, "give fewer --depth or --bits at a time");

  SyntheticRows rows(1);
  std::vector<std::unique_ptr<Case>> cases;
  for (const int64_t depth : options.depths) {
    for (const KvBits& bits : widths) {
      ThrowIfCancelled(options.cancel, "bench");
      cases.push_back(std::make_unique<Case>(geometry, options, depth, bits, rows));
    }
  }
  Ceilings ceilings(options.num_threads);
  internal::RunRounds(options, "attention", ceilings, [&](bool measured) {
    for (const auto& item : cases) {
      ThrowIfCancelled(options.cancel, "bench");
      ceilings.EvictCaches();
      const double elapsed = item->Attend();
      if (measured) item->seconds.Add(elapsed);
    }
  });

  BenchReport report = internal::NewAttentionReport(options, geometry);
  ceilings.AddTo(report.facts);
  BenchTable table{"rows", "attention of one token, from memory", {}};
  for (const auto& item : cases) table.rows.push_back(Describe(*item, options, ceilings));
  report.tables.push_back(std::move(table));
  report.notes.push_back(
      HasLatents(geometry)
          ? "token-head: one stored token, for all query heads; allowed: the longer one of reading "
            "its bytes and of its multiply-adds in float"
          : "token-head: one stored token of one KV head, its K and V, for all query heads of that "
            "head");
  return report;
}

}  // namespace pmkvq
