// Whole steps of a synthetic model over a cache of made-up content: decoding and prefill.
#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <span>
#include <string>

#include "pmkvq/base/check.h"
#include "pmkvq/kernels/gemm/weight_q8.h"
#include "pmkvq/research/bench/rounds.h"
#include "pmkvq/research/bench/shapes.h"
#include "pmkvq/research/bench/synthetic.h"
#include "pmkvq/research/bench/timed_store.h"

namespace pmkvq {
namespace {

constexpr int64_t kDefaultLayers = 2;
constexpr int64_t kSgemmRows = 512;  // Enough for BLAS at its best.

UniformKvGeometry GeometryOf(const ModelConfig& shape) {
  return {shape.num_layers, shape.num_heads, shape.num_kv_heads, shape.head_dim};
}

// Bytes of the model and of caches for all combinations at once.
void CheckSizes(const BenchOptions& options, const ModelConfig& shape, int64_t new_tokens) {
  int64_t bytes = SyntheticModelBytes(shape);
  for (const int64_t depth : options.depths) {
    for (const int width : options.bits) {
      for (const int64_t batch : options.batches) {
        const CacheConfig config =
            UniformCacheConfig(GeometryOf(shape), width, depth + new_tokens + kPageTokens, 1, 1);
        bytes += config.budget_bytes[0] * shape.num_layers * batch;
      }
    }
  }
  CheckMemory(bytes, "give fewer --layers, --depth or --bits");
}

// Sequences at one depth, width and batch; measures the time of their steps.
class Case {
 public:
  // Each step adds `new_tokens` tokens to every sequence.
  struct Setting {
    int64_t depth;
    int bits;
    int64_t batch;
  };
  Case(const Model& model, const BenchOptions& options, const Setting& setting, int64_t new_tokens,
       SyntheticRows& rows)
      : depth(setting.depth),
        bits(setting.bits),
        batch(setting.batch),
        model_(model),
        num_threads_(options.num_threads),
        cache_(UniformCacheConfig(UniformOf(model.kv_geometry()), bits,
                                  depth + new_tokens + kPageTokens, batch, options.num_threads,
                                  options.attention)),
        store_(cache_) {
    Random random(3);
    const auto vocabulary = static_cast<uint64_t>(model.config().vocab_size);
    for (int64_t i = 0; i < new_tokens; ++i) {
      tokens_.push_back(static_cast<int32_t>(random.Below(vocabulary)));
    }
    for (int64_t i = 0; i < batch; ++i) {
      sequences_.push_back(cache_.Open().value());
      FillCache(cache_, UniformOf(model.kv_geometry()), sequences_.back(), depth, rows);
    }
    if (depth > 0) stored_bytes = StoredBytes(cache_, sequences_[0]) * batch;
  }

  // Appends all tokens in chunks of `chunk`, then drops them again.
  void Step(int64_t chunk, bool measured) {
    const auto num_tokens = static_cast<int64_t>(tokens_.size());
    const double elapsed = TimeSeconds([&] {
      for (int64_t done = 0; done < num_tokens; done += chunk) {
        const int64_t count = std::min(chunk, num_tokens - done);
        chunks_.clear();
        for (const SequenceId seq : sequences_) {
          PMKVQ_CHECK(store_.Reserve(seq, count) != ReserveResult::kBudgetExhausted);
          chunks_.push_back(
              {seq,
               std::span(tokens_).subspan(static_cast<size_t>(done), static_cast<size_t>(count)),
               depth + done,
               done + count == num_tokens ? ForwardChunk::Logits::kLast
                                          : ForwardChunk::Logits::kNone});
        }
        ThrowIfFailed(model_.Forward(chunks_, store_, workspace_, num_threads_));
      }
    });
    const double attending = store_.TakeAttentionSeconds();
    for (const SequenceId seq : sequences_) store_.Truncate(seq, depth);
    if (!measured) return;
    seconds.Add(elapsed);
    attention_seconds.Add(attending);
  }

  const int64_t depth;
  const int bits;
  const int64_t batch;
  int64_t stored_bytes = 0;  // Of all sequences.
  Measurements seconds;
  Measurements attention_seconds;

 private:
  const Model& model_;
  int num_threads_;
  PackedKvCache cache_;
  TimedStore store_;
  std::vector<SequenceId> sequences_;
  std::vector<int32_t> tokens_;
  std::vector<ForwardChunk> chunks_;
  ForwardWorkspace workspace_;
};

using Cases = std::vector<std::unique_ptr<Case>>;

Cases MakeCases(const BenchOptions& options, const Model& model, int64_t new_tokens) {
  SyntheticRows rows(1);
  Cases cases;
  for (const int64_t depth : options.depths) {
    for (const int bits : options.bits) {
      for (const int64_t batch : options.batches) {
        ThrowIfCancelled(options.cancel, "bench");
        cases.push_back(std::make_unique<Case>(model, options, Case::Setting{depth, bits, batch},
                                               new_tokens, rows));
      }
    }
  }
  return cases;
}

// Synthetic weights are stored as BF16.
std::string WeightName(WeightMode mode) {
  return mode == WeightMode::kAsStored ? "bf16" : NameOf(mode);
}

BenchFields DescribeDecode(const Case& item, const ModelConfig& shape, const BenchOptions& options,
                           const Ceilings& ceilings) {
  const Spread step = InMilliseconds(item.seconds.ToSpread());
  const Spread attention = InMilliseconds(item.attention_seconds.ToSpread());
  // The embedding gives one row per token; the output layer is read whole.
  const double weight_bytes = BytesPerWeight(options.weights) *
                              static_cast<double>(shape.num_layers * BlockParameters(shape) +
                                                  shape.vocab_size * shape.hidden_size);
  const double bytes = weight_bytes + static_cast<double>(item.stored_bytes);
  const double gb_per_s = bytes / step.median / 1e6;
  const double rest_ms = std::max(1e-9, step.median - attention.median);
  const double weight_gb_per_s = weight_bytes / rest_ms / 1e6;
  BenchFields row;
  row.Add("depth", item.depth, "depth");
  row.Add("bits", int64_t{item.bits}, "bits");
  row.Add("batch", item.batch, "batch");
  row.Add("attention", std::string(NameOf(options.attention)));
  row.Add("tokens_per_s", static_cast<double>(item.batch) / step.median * 1e3, "tokens/s");
  row.AddSpread("ms_per_step", step, "ms/step", 2);
  row.AddSpread("attention_ms", attention);
  row.AddText("attention ms", fmt::format("{:.3f}", attention.median));
  row.Add("gb_per_s", gb_per_s, "GB/s");
  row.Add("percent_of_read", 100.0 * gb_per_s / ceilings.read_gb_per_s(), "% of read", 1);
  row.Add("weight_gb_per_s", weight_gb_per_s, "weights GB/s");
  if (item.depth > 0) {
    const double token_heads =
        static_cast<double>(item.depth * item.batch * shape.num_kv_heads * shape.num_layers);
    row.Add("ns_per_token_head", attention.median * 1e6 / token_heads);
  }
  return row;
}

BenchFields DescribePrefill(const Case& item, int64_t num_tokens, const ModelConfig& shape,
                            const BenchOptions& options, const Ceilings& ceilings) {
  const Spread time = InMilliseconds(item.seconds.ToSpread());
  const Spread attention = InMilliseconds(item.attention_seconds.ToSpread());
  const auto tokens = static_cast<double>(num_tokens);
  // Weights (the last block multiplies those behind its attention for one token only); then QK
  // and PV of every token over all that it sees.
  const int64_t before_attention = shape.hidden_size * (shape.q_dim() + 2 * shape.kv_dim());
  const int64_t behind_attention = BlockParameters(shape) - before_attention;
  const double weight_flops =
      2.0 * (tokens * static_cast<double>((shape.num_layers - 1) * BlockParameters(shape) +
                                          before_attention) +
             static_cast<double>(behind_attention));
  const double pairs = tokens * (static_cast<double>(item.depth) + (tokens + 1.0) / 2.0);
  const double attention_flops =
      4.0 * pairs * static_cast<double>(shape.q_dim() * shape.num_layers);
  const double gflop_per_s = (weight_flops + attention_flops) / time.median / 1e6;
  const double weight_gflop_per_s =
      weight_flops / std::max(1e-9, time.median - attention.median) / 1e6;
  BenchFields row;
  row.Add("depth", item.depth, "depth");
  row.Add("bits", int64_t{item.bits}, "bits");
  row.Add("attention", std::string(NameOf(options.attention)));
  row.Add("tokens", num_tokens, "tokens");
  row.Add("tokens_per_s", tokens / time.median * 1e3, "tokens/s", 1);
  row.AddSpread("ms", time, "ms", 1);
  row.AddSpread("attention_ms", attention);
  row.AddText("attention ms", fmt::format("{:.1f}", attention.median));
  row.Add("gflop_per_s", gflop_per_s, "GFLOP/s", 1);
  row.Add("percent_of_sgemm", 100.0 * gflop_per_s / ceilings.sgemm_gflop_per_s(), "% of sgemm", 1);
  row.Add("weights_percent_of_sgemm", 100.0 * weight_gflop_per_s / ceilings.sgemm_gflop_per_s(),
          "weights % of sgemm", 1);
  row.Add("percent_of_float_peak", 100.0 * gflop_per_s / ceilings.float_gflop_per_s(), "% of float",
          1);
  return row;
}

}  // namespace

BenchReport BenchDecode(const BenchOptions& options) {
  internal::CheckOptions(options);
  const ModelConfig shape = internal::ShapeOf(options, kDefaultLayers);
  CheckSizes(options, shape, 1);
  const std::shared_ptr<const Model> model =
      SyntheticModel(shape, options.weights, options.num_threads);
  const Cases cases = MakeCases(options, *model, 1);
  Ceilings ceilings(options.num_threads);
  internal::RunRounds(options, "decode", ceilings, [&](bool measured) {
    for (const auto& item : cases) {
      ThrowIfCancelled(options.cancel, "bench");
      item->Step(1, measured);
    }
  });

  BenchReport report = internal::NewReport(options, "decode", shape);
  ceilings.AddTo(report.facts);
  report.facts.Add("weights", WeightName(options.weights), "weights");
  report.facts.Add("vocab_size", shape.vocab_size);
  BenchTable table{"rows", "one token of every sequence", {}};
  for (const auto& item : cases) {
    table.rows.push_back(DescribeDecode(*item, shape, options, ceilings));
  }
  report.tables.push_back(std::move(table));
  report.notes.push_back(
      "GB/s: weights and stored cache over the whole step; weights GB/s: weights "
      "over what is not attention");
  return report;
}

BenchReport BenchPrefill(const BenchOptions& options, int64_t num_tokens, int64_t chunk) {
  internal::CheckOptions(options);
  const ModelConfig shape = internal::ShapeOf(options, kDefaultLayers);
  CheckSizes(options, shape, num_tokens);
  const std::shared_ptr<const Model> model =
      SyntheticModel(shape, options.weights, options.num_threads);
  const Cases cases = MakeCases(options, *model, num_tokens);
  Ceilings ceilings(options.num_threads);
  internal::RunRounds(options, "prefill", ceilings, [&](bool measured) {
    if (measured) ceilings.MeasureSgemm(kSgemmRows);
    for (const auto& item : cases) {
      ThrowIfCancelled(options.cancel, "bench");
      item->Step(chunk, measured);
    }
  });

  BenchReport report = internal::NewReport(options, "prefill", shape);
  ceilings.AddTo(report.facts);
  report.facts.Add("weights", WeightName(options.weights), "weights");
  report.facts.Add("chunk", chunk, "chunk");
  BenchTable table{"rows", "prefill of one sequence", {}};
  for (const auto& item : cases) {
    table.rows.push_back(DescribePrefill(*item, num_tokens, shape, options, ceilings));
  }
  report.tables.push_back(std::move(table));
  report.notes.push_back(
      "logits of the last token: the last block's output projection and MLP are computed, and "
      "counted, for it alone");
  return report;
}

}  // namespace pmkvq
