// Speed of whole forward passes and of calibration's backward pass, on the model that the
// environment variable PMKVQ_MODEL names (default: models/longcot-10m below the working folder).
#include <benchmark/benchmark.h>

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "pmkvq/base/random.h"
#include "pmkvq/kv/packed/packed_cache.h"
#include "pmkvq/model/model.h"
#include "pmkvq/model/profile.h"

namespace pmkvq {
namespace {

const Model& BenchModel() {
  static const std::shared_ptr<const Model> model = [] {
    const char* folder = std::getenv("PMKVQ_MODEL");
    return Model::Load(folder != nullptr ? folder : "models/longcot-10m");
  }();
  return *model;
}

std::vector<int32_t> RandomIds(int64_t count) {
  Random random(1);
  const auto vocab = static_cast<uint64_t>(BenchModel().config().vocab_size);
  std::vector<int32_t> ids(static_cast<size_t>(count));
  for (int32_t& id : ids) id = static_cast<int32_t>(random.Below(vocab));
  return ids;
}

std::unique_ptr<KvStore> Fp16Store(int64_t max_sequences, int64_t max_len, int threads) {
  CacheConfig config;
  config.geometry = BenchModel().kv_geometry();
  config.max_sequences = max_sequences;
  config.close_bits = 16;
  config.floor_bits = 16;
  config.num_threads = threads;
  config.budget_bytes.assign(static_cast<size_t>(config.geometry.num_layers()),
                             BlockBytes(config, 0, max_len, 16, 16));
  return MakePackedKvCache(config);
}

// Forward of one chunk per sequence at a context of `context` tokens, again and again.
void RunForward(benchmark::State& state, int64_t batch, int64_t context, int64_t chunk_tokens,
                int threads) {
  const std::unique_ptr<KvStore> store = Fp16Store(batch, context + chunk_tokens, threads);
  const std::vector<int32_t> prompt = RandomIds(context);
  const std::vector<int32_t> tokens = RandomIds(chunk_tokens);
  ForwardWorkspace workspace;
  std::vector<ForwardChunk> chunks;
  const auto forward = [&](std::span<const ForwardChunk> some) {
    for (const ForwardChunk& chunk : some) {
      if (store->Reserve(chunk.seq, static_cast<int64_t>(chunk.tokens.size())) !=
          ReserveResult::kReserved) {
        std::abort();
      }
    }
    ThrowIfFailed(BenchModel().Forward(some, *store, workspace, threads));
  };
  for (int64_t i = 0; i < batch; ++i) {
    const ForwardChunk filling{store->Open().value(), prompt, 0, ForwardChunk::Logits::kNone};
    if (context > 0) forward({&filling, 1});
    chunks.push_back({filling.seq, tokens, context, ForwardChunk::Logits::kLast});
  }
  for (auto _ : state) {
    forward(chunks);
    benchmark::DoNotOptimize(workspace.logits.data());
    for (const ForwardChunk& chunk : chunks) store->Truncate(chunk.seq, context);
  }
  state.SetItemsProcessed(state.iterations() * batch * chunk_tokens);
}

void Decode(benchmark::State& state) {
  RunForward(state, state.range(0), /*context=*/64, /*chunk_tokens=*/1,
             static_cast<int>(state.range(1)));
}
BENCHMARK(Decode)->ArgNames({"batch", "threads"})->ArgsProduct({{1, 16}, {1, 2}})->UseRealTime();

void Prefill(benchmark::State& state) {
  RunForward(state, /*batch=*/1, /*context=*/0, state.range(0), static_cast<int>(state.range(1)));
}
BENCHMARK(Prefill)
    ->ArgNames({"tokens", "threads"})
    ->ArgsProduct({{128, 512}, {1, 2}})
    ->UseRealTime();

// One calibration sample: loss, and gradients of all keys and values.
void ForwardBackward(benchmark::State& state) {
  const int64_t num_tokens = state.range(0);
  const std::vector<int32_t> tokens = RandomIds(num_tokens);
  const std::vector<int64_t> positions = StretchedPositions(num_tokens, num_tokens);
  Profile<float> profile(BenchModel(), static_cast<int>(state.range(1)));
  for (auto _ : state) {
    benchmark::DoNotOptimize(profile.ForwardBackward(tokens, positions, nullptr));
  }
  state.SetItemsProcessed(state.iterations() * num_tokens);
}
BENCHMARK(ForwardBackward)
    ->ArgNames({"tokens", "threads"})
    ->ArgsProduct({{512, 2048}, {1, 2}})
    ->UseRealTime();

}  // namespace
}  // namespace pmkvq
