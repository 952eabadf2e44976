// Whole steps of a synthetic model on a CUDA device over a cache of made-up content.
#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "pmkvq/base/check.h"
#include "pmkvq/kv/device_kv_store.h"
#include "pmkvq/research/bench/bench_cuda.h"
#include "pmkvq/research/bench/cuda_memory.h"
#include "pmkvq/research/bench/rounds.h"
#include "pmkvq/research/bench/shapes.h"
#include "pmkvq/research/bench/synthetic.h"
#include "pmkvq/research/methods/registry.h"
#include "pmkvq/tensor/device/device_info.h"

namespace pmkvq {
namespace {

constexpr int64_t kFillRows = 512;
// Steps of a round: long enough that the host's clock does not matter.
constexpr int64_t kRoundSteps = 8;

struct Setting {
  int64_t batch = 1;
  int64_t depth = 0;
  int bits = 16;
};

// A cache with sequences of one depth, and what a Forward needs.
class CudaCase {
 public:
  CudaCase(const Model& model, const Setting& setting, int64_t new_tokens, int64_t chunk,
           int num_threads)
      : model_(model),
        setting_(setting),
        num_threads_(num_threads),
        cache_(ConfigOf(model, setting, new_tokens, chunk, num_threads)) {
    Fill();
  }

  // A token of every sequence; as an engine does it, drawn greedily where the logits are.
  void Decode() {
    chunks_.clear();
    for (size_t i = 0; i < sequences_.size(); ++i) {
      PMKVQ_CHECK(cache_.Reserve(sequences_[i], 1) != ReserveResult::kBudgetExhausted);
      ForwardChunk chunk{sequences_[i], {&tokens_[i], 1}, cache_.NumTokens(sequences_[i])};
      chunk.draw = &draw_;
      chunks_.push_back(chunk);
    }
    ThrowIfFailed(model_.Forward(chunks_, cache_, workspace_, num_threads_));
    for (size_t i = 0; i < tokens_.size(); ++i) tokens_[i] = workspace_.drawn[i].token;
  }

  // `num_tokens` of the first sequence, then drops them again.
  void Prefill(int64_t num_tokens, int64_t chunk) {
    const SequenceId seq = sequences_[0];
    const std::vector<int32_t> tokens(static_cast<size_t>(num_tokens), 7);
    for (int64_t done = 0; done < num_tokens; done += chunk) {
      const int64_t count = std::min(chunk, num_tokens - done);
      PMKVQ_CHECK(cache_.Reserve(seq, count) != ReserveResult::kBudgetExhausted);
      const ForwardChunk part{
          seq, std::span(tokens).subspan(static_cast<size_t>(done), static_cast<size_t>(count)),
          setting_.depth + done,
          done + count == num_tokens ? ForwardChunk::Logits::kLast : ForwardChunk::Logits::kNone};
      ThrowIfFailed(model_.Forward({&part, 1}, cache_, workspace_, num_threads_));
    }
  }
  void DropPrefilled() { cache_.Truncate(sequences_[0], setting_.depth); }

  const Setting& setting() const { return setting_; }
  int64_t stored_bytes() const {
    int64_t bytes = 0;
    for (const SequenceId seq : sequences_) bytes += StoredBytes(cache_, seq);
    return bytes;
  }
  int64_t arena_bytes() const { return static_cast<int64_t>(cache_.StoreStats().arena_bytes); }
  int64_t scratch_bytes() const {
    return static_cast<int64_t>(cache_.StoreStats().scratch_bytes + workspace_.num_bytes());
  }

 private:
  static CacheConfig ConfigOf(const Model& model, const Setting& setting, int64_t new_tokens,
                              int64_t chunk, int num_threads) {
    const int64_t max_tokens = setting.depth + new_tokens + kPageTokens;
    CacheConfig config =
        UniformCacheConfig(UniformOf(model.kv_geometry()), setting.bits, max_tokens, setting.batch,
                           num_threads, AttentionMode::kAccurate);
    config.device = model.device();
    config.max_len = max_tokens;
    config.chunk_tokens = chunk;
    return config;
  }

  // Stores made-up tokens without attending.
  void Fill() {
    const UniformKvGeometry geometry = UniformOf(model_.kv_geometry());
    DeviceKvStore& device = *cache_.OnDevice();
    const auto bytes = static_cast<size_t>(kFillRows * geometry.kv_dim()) * sizeof(float);
    const Buffer memory(model_.device(), 2 * bytes);
    SyntheticRows rows(1);
    std::vector<float> values(2 * bytes / sizeof(float));
    rows.Fill(std::ssize(values), values.data());
    DeviceBlockRows block;
    block.k = reinterpret_cast<float*>(memory.data());
    block.v = block.k + bytes / sizeof(float);
    CopyToDevice(device.stream(), memory.data(), values.data(), 2 * bytes);
    for (int64_t i = 0; i < setting_.batch; ++i) {
      const SequenceId seq = cache_.Open().value();
      sequences_.push_back(seq);
      tokens_.push_back(static_cast<int32_t>(i % model_.config().vocab_size));
      for (int64_t done = 0; done < setting_.depth; done += kFillRows) {
        const int64_t count = std::min(kFillRows, setting_.depth - done);
        PMKVQ_CHECK(cache_.Reserve(seq, count) != ReserveResult::kBudgetExhausted);
        cache_.BeginForward({{seq, count}});
        block.decode_rows = count == 1 ? 1 : 0;
        for (int64_t layer = 0; layer < geometry.num_layers; ++layer) {
          device.LaunchStore(layer, block);
        }
        cache_.EndForward();
      }
    }
  }

  const Model& model_;
  Setting setting_;
  int num_threads_;
  PackedKvCache cache_;
  std::vector<SequenceId> sequences_;
  std::vector<int32_t> tokens_;
  std::vector<ForwardChunk> chunks_;
  ForwardWorkspace workspace_;
  const ForwardDraw draw_;
};

std::vector<Setting> SettingsOf(const BenchOptions& options) {
  std::vector<Setting> settings;
  for (const int64_t batch : options.batches) {
    for (const int64_t depth : options.depths) {
      for (const int bits : options.bits) settings.push_back({batch, depth, bits});
    }
  }
  return settings;
}

ModelConfig ShapeOf(const BenchOptions& options, int64_t vocab_size) {
  // 0: all of the shape.
  ModelConfig shape = NamedShape(options.shape, options.layers);
  shape.vocab_size = vocab_size;
  return shape;
}

// The model on the device, and the copies that its steps are compared with.
struct CudaBench {
  DeviceInfo info;
  ModelConfig shape;
  std::shared_ptr<const Model> model;
  Stream stream;
  internal::CopyCeiling ceiling;
};

CudaBench Prepare(const BenchOptions& options, DeviceId device, int64_t vocab_size) {
  internal::CheckOptions(options);
  const DeviceInfo info = Query(device);
  const ModelConfig shape = ShapeOf(options, vocab_size);
  CheckMemory(SyntheticModelBytes(shape), "give fewer --layers");
  return {info, shape, SyntheticModel(shape, options.weights, options.num_threads, device),
          Stream(device), internal::CopyCeiling(device)};
}

BenchReport NewReport(const BenchOptions& options, const char* name, const CudaBench& bench) {
  BenchReport report = internal::NewReport(options, name, bench.shape);
  report.facts.Add("device", bench.info.name, "device");
  report.facts.Add("vocab_size", bench.shape.vocab_size, "vocabulary");
  report.facts.Add("weight_bytes", bench.model->weight_bytes(), "bytes of weights");
  report.facts.AddSpread("copy_gb_per_s", bench.ceiling.gb_per_s().ToSpread(), "copies GB/s (r+w)",
                         0);
  return report;
}

BenchFields MemoryOf(const CudaCase& item, const Model& model, BenchFields row) {
  row.Add("weight_bytes", model.weight_bytes());
  row.Add("arena_bytes", item.arena_bytes());
  row.Add("scratch_bytes", item.scratch_bytes());
  row.AddText(
      "GiB weights+arena+scratch",
      fmt::format("{:.1f}+{:.1f}+{:.1f}", static_cast<double>(model.weight_bytes()) / 0x1p30,
                  static_cast<double>(item.arena_bytes()) / 0x1p30,
                  static_cast<double>(item.scratch_bytes()) / 0x1p30));
  return row;
}

}  // namespace

BenchReport BenchCudaDecode(const BenchOptions& options, DeviceId device, int64_t vocab_size) {
  CudaBench bench = Prepare(options, device, vocab_size);
  const ModelConfig& shape = bench.shape;
  BenchTable table{"rows", "one token of every sequence", {}};
  for (const Setting& setting : SettingsOf(options)) {
    ThrowIfCancelled(options.cancel, "bench");
    CudaCase item(*bench.model, setting, (options.repeat + 1) * kRoundSteps, kFillRows,
                  options.num_threads);
    Measurements step_seconds;
    for (int round = -1; round < options.repeat; ++round) {
      const double seconds = TimeSeconds([&] {
        for (int64_t step = 0; step < kRoundSteps; ++step) item.Decode();
      });
      if (round >= 0) step_seconds.Add(seconds / static_cast<double>(kRoundSteps));
    }
    bench.ceiling.Measure(bench.stream);
    const Spread seconds = step_seconds.ToSpread();
    // The embedding gives one row per token; the output layer is read whole.
    const double weight_bytes = BytesPerWeight(options.weights) *
                                static_cast<double>(shape.num_layers * BlockParameters(shape) +
                                                    shape.vocab_size * shape.hidden_size);
    const double bytes = weight_bytes + static_cast<double>(item.stored_bytes());
    const double gb_per_s = bytes / seconds.median * 1e-9;
    BenchFields row;
    row.Add("batch", setting.batch, "batch").Add("depth", setting.depth, "depth");
    row.Add("bits", int64_t{setting.bits}, "bits");
    row.Add("tokens_per_s", static_cast<double>(setting.batch) / seconds.median, "tokens/s", 1);
    row.AddSpread("ms_per_step", InMilliseconds(seconds), "ms/step", 3);
    row.Add("gb_per_s", gb_per_s, "GB/s", 0);
    row.Add("of_copy", gb_per_s / bench.ceiling.gb_per_s().ToSpread().median, "of copy");
    table.rows.push_back(MemoryOf(item, *bench.model, std::move(row)));
  }
  BenchReport report = NewReport(options, "decode", bench);
  report.tables.push_back(std::move(table));
  report.notes.push_back(
      "a step: room for the tokens, one launch, the tokens back on the host; GB/s: weights and "
      "stored cache over the step");
  return report;
}

BenchReport BenchCudaMethodDecode(const BenchOptions& options, DeviceId device, int64_t vocab_size,
                                  const std::string& spec) {
  CudaBench bench = Prepare(options, device, vocab_size);
  const UniformKvGeometry geometry = UniformOf(bench.model->kv_geometry());
  KvOptions kv;
  kv.spec = spec;
  BenchTable table{"rows", "one token of every sequence, " + spec + " on the host", {}};
  for (const int64_t batch : options.batches) {
    for (const int64_t depth : options.depths) {
      ThrowIfCancelled(options.cancel, "bench");
      const std::unique_ptr<KvStore> store =
          MakeKvStore(kv, {.geometry = bench.model->kv_geometry(),
                           .max_sequences = batch,
                           .max_len = depth + options.repeat + 2,
                           .num_threads = options.num_threads,
                           .rope = &bench.model->rope(),
                           .device = device});
      // Made-up rows of a whole prompt, stored as one, whose outputs nobody reads.
      SyntheticRows rows(1);
      std::vector<float> q(static_cast<size_t>(kFillRows * geometry.num_heads * geometry.head_dim));
      std::vector<float> k(static_cast<size_t>(kFillRows * geometry.kv_dim()));
      std::vector<float> v(k.size());
      std::vector<float> out(q.size());
      rows.Fill(std::ssize(q), q.data());
      rows.Fill(std::ssize(k), k.data());
      rows.Fill(std::ssize(v), v.data());
      std::vector<SequenceId> sequences;
      for (int64_t i = 0; i < batch; ++i) {
        const SequenceId seq = store->Open().value();
        sequences.push_back(seq);
        for (int64_t done = 0; done < depth; done += kFillRows) {
          ThrowIfCancelled(options.cancel, "bench");
          const int64_t count = std::min(kFillRows, depth - done);
          PMKVQ_CHECK(store->Reserve(seq, count) == ReserveResult::kReserved);
          store->BeginForward({{seq, count}});
          for (int64_t layer = 0; layer < geometry.num_layers; ++layer) {
            const KvExtras extras{.keys_before_rope = k.data()};
            if (store->ExtraNeeds().keys_before_rope) store->OfferExtras(layer, extras);
            store->AppendAndAttend(layer, q.data(), k.data(), v.data(), out.data());
          }
          store->EndForward();
        }
      }
      ForwardWorkspace workspace;
      const int32_t token = 7;
      Measurements step_seconds;
      for (int round = -1; round < options.repeat; ++round) {
        const double seconds = TimeSeconds([&] {
          std::vector<ForwardChunk> chunks;
          for (const SequenceId seq : sequences) {
            PMKVQ_CHECK(store->Reserve(seq, 1) == ReserveResult::kReserved);
            chunks.push_back({seq, {&token, 1}, store->NumTokens(seq)});
          }
          ThrowIfFailed(bench.model->Forward(chunks, *store, workspace, options.num_threads));
        });
        if (round >= 0) step_seconds.Add(seconds);
      }
      const Spread seconds = step_seconds.ToSpread();
      BenchFields row;
      row.Add("batch", batch, "batch").Add("depth", depth, "depth");
      row.Add("tokens_per_s", static_cast<double>(batch) / seconds.median, "tokens/s", 2);
      row.AddSpread("ms_per_step", InMilliseconds(seconds), "ms/step", 2);
      table.rows.push_back(std::move(row));
    }
  }
  bench.ceiling.Measure(bench.stream);
  BenchReport report = NewReport(options, "decode", bench);
  report.tables.push_back(std::move(table));
  report.notes.push_back("a step: products on the device, the method and its attention on " +
                         std::to_string(options.num_threads) + " threads of the host");
  return report;
}

BenchReport BenchCudaPrefill(const BenchOptions& options, DeviceId device, int64_t num_tokens,
                             int64_t chunk, int64_t vocab_size) {
  CudaBench bench = Prepare(options, device, vocab_size);
  const ModelConfig& shape = bench.shape;
  BenchTable table{"rows", "prefill of one sequence", {}};
  for (const Setting& setting : SettingsOf(options)) {
    ThrowIfCancelled(options.cancel, "bench");
    CudaCase item(*bench.model, setting, num_tokens, chunk, options.num_threads);
    Measurements all_seconds;
    for (int round = -1; round < options.repeat; ++round) {
      const double seconds = TimeSeconds([&] { item.Prefill(num_tokens, chunk); });
      item.DropPrefilled();
      if (round >= 0) all_seconds.Add(seconds);
    }
    bench.ceiling.Measure(bench.stream);
    const Spread seconds = all_seconds.ToSpread();
    const auto tokens = static_cast<double>(num_tokens);
    const double weight_flops =
        2.0 * tokens * static_cast<double>(shape.num_layers * BlockParameters(shape));
    const double pairs = tokens * (static_cast<double>(setting.depth) + (tokens + 1.0) / 2.0);
    const double attention_flops =
        4.0 * pairs * static_cast<double>(shape.q_dim() * shape.num_layers);
    BenchFields row;
    row.Add("depth", setting.depth, "depth").Add("bits", int64_t{setting.bits}, "bits");
    row.Add("tokens", num_tokens, "tokens");
    row.Add("tokens_per_s", tokens / seconds.median, "tokens/s", 0);
    row.AddSpread("ms", InMilliseconds(seconds), "ms", 1);
    row.Add("tflop_per_s", (weight_flops + attention_flops) / seconds.median * 1e-12, "TFLOP/s", 1);
    table.rows.push_back(MemoryOf(item, *bench.model, std::move(row)));
  }
  BenchReport report = NewReport(options, "prefill", bench);
  report.facts.Add("chunk", chunk, "chunk");
  report.tables.push_back(std::move(table));
  report.notes.push_back(
      "FLOP: weights, and QK and PV of every token over what it sees; a product with operands in "
      "two parts is counted once");
  return report;
}

}  // namespace pmkvq
