// Attention of one new token over a cache of made-up keys and values.
//
// Measured through the cache, as the model calls it: AppendAndAttend of one block, which also
// stores the token. What storing takes is below a thousandth at the depths of interest.
#include <fmt/format.h>

#include <algorithm>
#include <memory>

#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"
#include "pmkvq/research/bench/rounds.h"
#include "pmkvq/research/bench/shapes.h"
#include "pmkvq/research/bench/synthetic.h"

namespace pmkvq {
namespace {

// One depth and width.
struct Case {
  Case(const UniformKvGeometry& kv_geometry, const BenchOptions& options, int64_t num_stored,
       int width, SyntheticRows& rows)
      : geometry(kv_geometry),
        depth(num_stored),
        bits(width),
        cache(UniformCacheConfig(kv_geometry, width, num_stored + kPageTokens, 1,
                                 options.num_threads, options.attention)),
        seq(cache.Open().value()) {
    FillCache(cache, geometry, seq, depth, rows);
    stored_bytes = StoredBytes(cache, seq);
    q.resize(static_cast<size_t>(geometry.num_heads * geometry.head_dim));
    k.resize(static_cast<size_t>(geometry.kv_dim()));
    v.resize(k.size());
    out.resize(q.size());
    rows.Fill(std::ssize(q), q.data());
    rows.Fill(std::ssize(k), k.data());
    rows.Fill(std::ssize(v), v.data());
  }

  // Seconds of AppendAndAttend over all blocks; the cache is as before afterwards.
  double Attend() {
    const ReserveResult result = cache.Reserve(seq, 1);
    PMKVQ_CHECK(result != ReserveResult::kBudgetExhausted);
    cache.BeginForward({{seq, 1}});
    const double elapsed = TimeSeconds([&] {
      for (int64_t layer = 0; layer < geometry.num_layers; ++layer) {
        cache.AppendAndAttend(layer, q.data(), k.data(), v.data(), out.data());
      }
    });
    cache.EndForward();
    cache.Truncate(seq, depth);
    return elapsed;
  }

  UniformKvGeometry geometry;
  int64_t depth;
  int bits;
  PackedKvCache cache;
  SequenceId seq;
  int64_t stored_bytes = 0;
  std::vector<float> q, k, v, out;
  Measurements seconds;
};

BenchFields Describe(const Case& item, const BenchOptions& options, const Ceilings& ceilings) {
  const UniformKvGeometry& geometry = item.geometry;
  const Spread time = item.seconds.ToSpread();
  const double token_heads =
      static_cast<double>(item.depth * geometry.num_kv_heads * geometry.num_layers);
  const double to_ns = 1e9 / token_heads;
  const double gb_per_s = static_cast<double>(item.stored_bytes) / time.median / 1e9;
  // Of QK and of PV: D multiply-adds per stored token and query head.
  const double gmac_per_s = 2.0 *
                            static_cast<double>(item.depth * geometry.num_heads *
                                                geometry.head_dim * geometry.num_layers) /
                            time.median / 1e9;
  BenchFields row;
  row.Add("depth", item.depth, "depth");
  row.Add("bits", int64_t{item.bits}, "bits");
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
  return row;
}

}  // namespace

BenchReport BenchAttention(const BenchOptions& options) {
  internal::CheckOptions(options);
  const ModelConfig shape = internal::ShapeOf(options, 1);
  const UniformKvGeometry geometry{shape.num_layers, shape.num_heads, shape.num_kv_heads,
                                   shape.head_dim};
  int64_t bytes = 0;
  for (const int64_t depth : options.depths) {
    if (depth == 0) {
      throw InvalidInput("--depth", "found 0, expected at least 1 stored token to attend to");
    }
    for (const int bits : options.bits) {
      bytes += UniformCacheConfig(geometry, bits, depth + kPageTokens, 1, 1).budget_bytes[0] *
               geometry.num_layers;
    }
  }
  CheckMemory(bytes, "give fewer --depth or --bits at a time");

  SyntheticRows rows(1);
  std::vector<std::unique_ptr<Case>> cases;
  for (const int64_t depth : options.depths) {
    for (const int bits : options.bits) {
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

  BenchReport report = internal::NewReport(options, "attention", shape);
  ceilings.AddTo(report.facts);
  BenchTable table{"rows", "attention of one token, from memory", {}};
  for (const auto& item : cases) table.rows.push_back(Describe(*item, options, ceilings));
  report.tables.push_back(std::move(table));
  report.notes.push_back(
      "token-head: one stored token of one KV head, its K and V, for all query heads of that head");
  return report;
}

}  // namespace pmkvq
