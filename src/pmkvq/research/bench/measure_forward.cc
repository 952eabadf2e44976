// Whole steps of a synthetic model over a cache of made-up content: decoding and prefill.
#include <fmt/format.h>

#include <algorithm>
#include <ctime>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "pmkvq/base/check.h"
#include "pmkvq/kernels/gemm/weight_q8.h"
#include "pmkvq/model/model_size.h"
#include "pmkvq/research/bench/bench_model.h"
#include "pmkvq/research/bench/rounds.h"
#include "pmkvq/research/bench/shapes.h"
#include "pmkvq/research/bench/synthetic.h"
#include "pmkvq/research/bench/timed_store.h"

namespace pmkvq {
namespace {

constexpr int64_t kDefaultLayers = 2;
constexpr int64_t kSgemmRows = 512;  // Enough for BLAS at its best.

// Seconds that all threads of this process had a processor: beside other programs less than the
// threads' time, and a better measure of what a step costs.
double ProcessorSeconds() {
  timespec time{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// Bytes of the model (0: it is there) and of caches for all combinations at once.
void CheckSizes(const BenchOptions& options, const ModelConfig& shape, int64_t new_tokens,
                int64_t model_bytes) {
  int64_t bytes = model_bytes;
  for (const int64_t depth : options.depths) {
    for (const int width : options.bits) {
      for (const int64_t batch : options.batches) {
        const CacheConfig config =
            UniformCacheConfig(KvGeometryOf(shape), width, depth + new_tokens + kPageTokens, 1, 1);
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
        num_tokens_(new_tokens),
        cache_(UniformCacheConfig(model.kv_geometry(), bits, depth + new_tokens + kPageTokens,
                                  batch, options.num_threads, options.attention)),
        store_(cache_) {
    Random random(3);
    const auto vocabulary = static_cast<uint64_t>(model.config().vocab_size);
    for (int64_t i = 0; i < batch * new_tokens; ++i) {
      tokens_.push_back(static_cast<int32_t>(random.Below(vocabulary)));
    }
    for (int64_t i = 0; i < batch; ++i) {
      sequences_.push_back(cache_.Open().value());
      FillCache(cache_, model.kv_geometry(), sequences_.back(), depth, rows);
    }
    if (depth > 0) stored_bytes = StoredBytes(cache_, sequences_[0]) * batch;
  }

  // Appends all tokens in chunks of `chunk`, then drops them again.
  void Step(int64_t chunk, bool measured) {
    const double processors_before = ProcessorSeconds();
    const double elapsed = TimeSeconds([&] {
      for (int64_t done = 0; done < num_tokens_; done += chunk) {
        const int64_t count = std::min(chunk, num_tokens_ - done);
        chunks_.clear();
        for (size_t i = 0; i < sequences_.size(); ++i) {
          PMKVQ_CHECK(store_.Reserve(sequences_[i], count) != ReserveResult::kBudgetExhausted);
          const size_t first = i * static_cast<size_t>(num_tokens_) + static_cast<size_t>(done);
          chunks_.push_back({sequences_[i],
                             std::span(tokens_).subspan(first, static_cast<size_t>(count)),
                             depth + done,
                             done + count == num_tokens_ ? ForwardChunk::Logits::kLast
                                                         : ForwardChunk::Logits::kNone});
        }
        ThrowIfFailed(model_.Forward(chunks_, store_, workspace_, num_threads_));
      }
    });
    const double on_processors = ProcessorSeconds() - processors_before;
    const double attending = store_.TakeAttentionSeconds();
    for (const SequenceId seq : sequences_) store_.Truncate(seq, depth);
    if (!measured) return;
    seconds.Add(elapsed);
    processor_seconds.Add(on_processors);
    attention_seconds.Add(attending);
  }

  const int64_t depth;
  const int bits;
  const int64_t batch;
  int64_t stored_bytes = 0;  // Of all sequences.
  Measurements seconds;
  Measurements processor_seconds;  // Of all threads.
  Measurements attention_seconds;

 private:
  const Model& model_;
  int num_threads_;
  int64_t num_tokens_;  // Of each sequence.
  PackedKvCache cache_;
  TimedStore store_;
  std::vector<SequenceId> sequences_;
  std::vector<int32_t> tokens_;  // Each sequence's own: rows choose experts by themselves.
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

// Bytes of the weights that a step of `rows` sequences reads: all but an embedding that is not the
// output layer, too; of experts as many as are expected.
double StepBytes(const Model& model, int64_t rows) {
  const ModelConfig& config = model.config();
  const bool is_tied = model.embedding().data == model.output_head().data;
  const auto bytes = static_cast<double>(
      model.weight_bytes() - (is_tied ? 0 : static_cast<int64_t>(model.embedding().num_bytes())));
  if (!config.moe) return bytes;
  return bytes * WeightsOfStep(config, rows) / static_cast<double>(NumMatrixWeights(config));
}

BenchFields DescribeDecode(const Case& item, const ModelConfig& shape, const BenchOptions& options,
                           double weight_bytes, const Ceilings& ceilings) {
  const Spread step = InMilliseconds(item.seconds.ToSpread());
  const Spread attention = InMilliseconds(item.attention_seconds.ToSpread());
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
  row.AddSpread("processor_ms", InMilliseconds(item.processor_seconds.ToSpread()));
  row.AddSpread("attention_ms", attention);
  row.AddText("attention ms", fmt::format("{:.3f}", attention.median));
  row.Add("gb_per_s", gb_per_s, "GB/s");
  row.Add("percent_of_read", 100.0 * gb_per_s / ceilings.read_gb_per_s(), "% of read", 1);
  row.Add("weight_gb_per_s", weight_gb_per_s, "weights GB/s");
  if (shape.moe) {
    // Of a step, and what it read at the read bandwidth would take.
    row.Add("weights_mb", weight_bytes / 1e6, "weights MB", 1);
    row.Add("weights_percent_of_read", 100.0 * weight_gb_per_s / ceilings.read_gb_per_s(),
            "weights % of read", 1);
  }
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
  row.AddSpread("processor_ms", InMilliseconds(item.processor_seconds.ToSpread()));
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

// `weights`: what a report calls them; `step_bytes` (rows) those of a step.
template <class StepBytesOf>
BenchReport Decode(const BenchOptions& options, const Model& model, const std::string& weights,
                   const StepBytesOf& step_bytes) {
  const ModelConfig& shape = model.config();
  const Cases cases = MakeCases(options, model, 1);
  Ceilings ceilings(options.num_threads);
  internal::RunRounds(options, "decode", ceilings, [&](bool measured) {
    for (const auto& item : cases) {
      ThrowIfCancelled(options.cancel, "bench");
      item->Step(1, measured);
    }
  });

  BenchReport report = internal::NewReport(options, "decode", shape);
  ceilings.AddTo(report.facts);
  report.facts.Add("weights", weights, "weights");
  report.facts.Add("vocab_size", shape.vocab_size);
  if (shape.moe) {
    report.facts.Add("all_weights", NumMatrixWeights(shape));
    report.facts.Add("active_weights", NumActiveWeights(shape));
    report.facts.AddText("experts", fmt::format("{} a block, {} a token: {} of {} million weights",
                                                shape.moe->num_experts, shape.moe->num_chosen,
                                                NumActiveWeights(shape) / 1'000'000,
                                                NumMatrixWeights(shape) / 1'000'000));
  }
  BenchTable table{"rows", "one token of every sequence", {}};
  for (const auto& item : cases) {
    table.rows.push_back(DescribeDecode(*item, shape, options, step_bytes(item->batch), ceilings));
  }
  report.tables.push_back(std::move(table));
  report.notes.push_back(
      "GB/s: weights and stored cache over the whole step; weights GB/s: weights "
      "over what is not attention");
  if (shape.moe) {
    report.notes.push_back(
        "weights MB: those that a step reads, with as many experts as are expected where each "
        "choice is as likely as any other");
  }
  return report;
}

BenchReport Prefill(const BenchOptions& options, const Model& model, const std::string& weights,
                    int64_t num_tokens, int64_t chunk) {
  const ModelConfig& shape = model.config();
  const Cases cases = MakeCases(options, model, num_tokens);
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
  report.facts.Add("weights", weights, "weights");
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

// What a report of a model from files calls it, and its weights.
BenchOptions OptionsOf(const Model& model, const BenchOptions& options) {
  internal::CheckOptions(options);
  BenchOptions named = options;
  named.shape = model.config().architecture;
  return named;
}
std::string WeightsOf(const Model& model) {
  return model.weights() == WeightMode::kAsStored ? "as stored" : NameOf(model.weights());
}

}  // namespace

BenchReport BenchDecode(const BenchOptions& options) {
  internal::CheckOptions(options);
  const std::optional<ModelConfig> with_experts =
      NamedExpertShape(options.shape, options.layers > 0 ? options.layers : kDefaultLayers);
  const ModelConfig shape =
      with_experts ? *with_experts : internal::ShapeOf(options, kDefaultLayers);
  CheckSizes(options, shape, 1, SyntheticModelBytes(shape));
  const std::shared_ptr<const Model> model =
      SyntheticModel(shape, options.weights, options.num_threads);
  return Decode(options, *model, WeightName(options.weights), [&](int64_t rows) {
    return BytesPerWeight(options.weights) * WeightsOfStep(shape, rows);
  });
}

BenchReport BenchDecodeOf(const std::shared_ptr<const Model>& model, const BenchOptions& options) {
  const BenchOptions named = OptionsOf(*model, options);
  CheckSizes(named, model->config(), 1, 0);
  return Decode(named, *model, WeightsOf(*model),
                [&](int64_t rows) { return StepBytes(*model, rows); });
}

BenchReport BenchPrefill(const BenchOptions& options, int64_t num_tokens, int64_t chunk) {
  internal::CheckOptions(options);
  const ModelConfig shape = internal::ShapeOf(options, kDefaultLayers);
  CheckSizes(options, shape, num_tokens, SyntheticModelBytes(shape));
  const std::shared_ptr<const Model> model =
      SyntheticModel(shape, options.weights, options.num_threads);
  return Prefill(options, *model, WeightName(options.weights), num_tokens, chunk);
}

BenchReport BenchPrefillOf(const std::shared_ptr<const Model>& model, const BenchOptions& options,
                           int64_t num_tokens, int64_t chunk) {
  const BenchOptions named = OptionsOf(*model, options);
  CheckSizes(named, model->config(), num_tokens, 0);
  return Prefill(named, *model, WeightsOf(*model), num_tokens, chunk);
}

}  // namespace pmkvq
