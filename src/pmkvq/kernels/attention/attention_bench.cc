// Attention over stored pages, one thread. `per_token_head` is the time for one stored token of
// one KV head (K and V, all of its query heads), the figure to compare over widths and head counts.
#include <benchmark/benchmark.h>

#include <cmath>
#include <vector>

#include "hwy/highway.h"
#include "pmkvq/kernels/attention/attention.h"
#include "pmkvq/kernels/attention/random_pages.h"

namespace pmkvq {
namespace {

constexpr int64_t kNumKvHeads = 2;

void Run(benchmark::State& state, int64_t num_pages, int64_t num_rows,
         QuantAxis k_axis = QuantAxis::kToken, AttentionMode mode = AttentionMode::kAccurate) {
  const auto bits = static_cast<int>(state.range(0));
  const int64_t heads_per_kv = state.range(1);
  const AttentionShape shape{.num_heads = kNumKvHeads * heads_per_kv,
                             .num_kv_heads = kNumKvHeads,
                             .head_dim = 128,
                             .group = 128,
                             .scale = 1.0f / std::sqrt(128.0f)};
  RandomSequence sequence(
      shape, std::vector<PageSpec>(static_cast<size_t>(num_pages), {bits, bits, 128, 128, k_axis}),
      num_rows);
  const AttentionSequence only = sequence.sequence();
  AttentionPlan plan;
  PlanAttention(shape, {&only, 1}, /*num_threads=*/1, mode, plan);
  AttentionScratch scratch;
  for (auto _ : state) RunAttention(plan, sequence.operands(), scratch);
  const auto token_heads = static_cast<double>(num_pages * kPageTokens * kNumKvHeads);
  state.counters["per_token_head"] = benchmark::Counter(
      token_heads, benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
}

void AttentionDecode(benchmark::State& state) { Run(state, /*num_pages=*/32, /*num_rows=*/1); }
BENCHMARK(AttentionDecode)
    ->ArgsProduct({{16, 8, 4, 2}, {1, 2, 7}})
    ->ArgNames({"bits", "heads"})
    ->Unit(benchmark::kMicrosecond);

void AttentionDecodeKeysPerChannel(benchmark::State& state) {
  Run(state, /*num_pages=*/32, /*num_rows=*/1, QuantAxis::kChannel);
}
BENCHMARK(AttentionDecodeKeysPerChannel)
    ->ArgsProduct({{8, 4, 2}, {1, 2, 7}})
    ->ArgNames({"bits", "heads"})
    ->Unit(benchmark::kMicrosecond);

void AttentionDecodeFast(benchmark::State& state) {
  Run(state, /*num_pages=*/32, /*num_rows=*/1, QuantAxis::kToken, AttentionMode::kFast);
}
BENCHMARK(AttentionDecodeFast)
    ->ArgsProduct({{8, 4, 2}, {1, 2, 7}})
    ->ArgNames({"bits", "heads"})
    ->Unit(benchmark::kMicrosecond);

#if HWY_ARCH_X86
// What processors without AVX-512 run, on those that have it.
void AttentionDecodeFastAvx2(benchmark::State& state) {
  if ((hwy::SupportedTargets() & HWY_AVX2) == 0) return state.SkipWithError("no AVX2");
  hwy::SetSupportedTargetsForTest(HWY_AVX2);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  Run(state, /*num_pages=*/32, /*num_rows=*/1, QuantAxis::kToken, AttentionMode::kFast);
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}
BENCHMARK(AttentionDecodeFastAvx2)
    ->ArgsProduct({{8, 4, 2}, {1, 7}})
    ->ArgNames({"bits", "heads"})
    ->Unit(benchmark::kMicrosecond);
#endif

void AttentionDecodeFastKeysPerChannel(benchmark::State& state) {
  Run(state, /*num_pages=*/32, /*num_rows=*/1, QuantAxis::kChannel, AttentionMode::kFast);
}
BENCHMARK(AttentionDecodeFastKeysPerChannel)
    ->ArgsProduct({{8, 4, 2}, {1, 2, 7}})
    ->ArgNames({"bits", "heads"})
    ->Unit(benchmark::kMicrosecond);

// A chunk of 256 tokens against 16 stored pages.
void AttentionPrefill(benchmark::State& state) { Run(state, /*num_pages=*/16, /*num_rows=*/256); }
BENCHMARK(AttentionPrefill)
    ->ArgsProduct({{16, 4}, {2, 7}})
    ->ArgNames({"bits", "heads"})
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace pmkvq
