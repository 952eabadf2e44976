// Drawing the next tokens of a decode step from logits of a vocabulary of 152,000. Time is that of
// the whole batch.
#include <benchmark/benchmark.h>

#include <cmath>
#include <vector>

#include "pmkvq/base/random.h"
#include "pmkvq/kernels/sampling/batch_sampler.h"

namespace pmkvq {
namespace {

constexpr int64_t kVocab = 152064;

enum class Rows : uint8_t {
  kPeaked,  // 50 tokens far above the others, with probabilities like i^-1.5 at temperature 1.
  kFlat,    // Normally distributed with deviation 3: top-p keeps hundreds of tokens.
};

std::vector<float> Logits(int64_t num_rows, Rows kind) {
  std::vector<float> logits(static_cast<size_t>(num_rows * kVocab));
  Random random(1);
  const double deviation = kind == Rows::kPeaked ? 2.5 : 3.0;
  for (float& logit : logits) {
    double sum = -6.0;
    for (int i = 0; i < 12; ++i) sum += random.Uniform();
    logit = static_cast<float>(deviation * sum);
  }
  for (int64_t row = 0; kind == Rows::kPeaked && row < num_rows; ++row) {
    for (int i = 0; i < 50; ++i) {
      const auto id = static_cast<int64_t>(random.Below(static_cast<uint64_t>(kVocab)));
      logits[static_cast<size_t>(row * kVocab + id)] =
          static_cast<float>(22.0 - 1.5 * std::log(i + 1.0));
    }
  }
  return logits;
}

void Run(benchmark::State& state, const SamplingParams& params, Rows kind = Rows::kPeaked,
         int64_t num_logprobs = -1) {
  const int64_t num_rows = state.range(0);
  auto logits = Logits(num_rows, kind);
  std::vector<Random> randoms;
  for (int64_t r = 0; r < num_rows; ++r) randoms.emplace_back(static_cast<uint64_t>(r));
  std::vector<SamplingRow> rows;
  for (int64_t r = 0; r < num_rows; ++r) {
    SamplingRow row;
    row.logits = logits.data() + r * kVocab;
    row.params = &params;
    row.random = &randoms[static_cast<size_t>(r)];
    row.num_logprobs = num_logprobs;
    rows.push_back(row);
  }
  BatchSampler sampler;
  for (auto _ : state) {
    benchmark::DoNotOptimize(sampler.Sample(rows, kVocab, static_cast<int>(state.range(1))).data());
  }
}

void Arguments(benchmark::internal::Benchmark* bench) {
  bench->ArgsProduct({{1, 32}, {1, 2}})
      ->ArgNames({"rows", "threads"})
      ->Unit(benchmark::kMicrosecond)
      ->UseRealTime();
}

void SampleGreedy(benchmark::State& state) { Run(state, {0.0, 0, 1.0, 0.0}); }
void SampleTopP(benchmark::State& state) { Run(state, {0.6, 0, 0.95, 0.0}); }
void SampleTopKTopP(benchmark::State& state) { Run(state, {0.6, 20, 0.95, 0.0}); }
void SampleMinP(benchmark::State& state) { Run(state, {0.6, 0, 1.0, 0.05}); }
void SampleUnfiltered(benchmark::State& state) { Run(state, {1.0, 0, 1.0, 0.0}); }
void SampleTopPLogprobs(benchmark::State& state) {
  Run(state, {0.6, 0, 0.95, 0.0}, Rows::kPeaked, 5);
}
void SampleFlatTopP(benchmark::State& state) { Run(state, {0.6, 0, 0.95, 0.0}, Rows::kFlat); }
BENCHMARK(SampleGreedy)->Apply(Arguments);
BENCHMARK(SampleTopP)->Apply(Arguments);
BENCHMARK(SampleTopKTopP)->Apply(Arguments);
BENCHMARK(SampleMinP)->Apply(Arguments);
BENCHMARK(SampleUnfiltered)->Apply(Arguments);
BENCHMARK(SampleTopPLogprobs)->Apply(Arguments);
BENCHMARK(SampleFlatTopP)->Apply(Arguments);

// The scalar definition, row by row.
void SampleByDefinition(benchmark::State& state) {
  const int64_t num_rows = state.range(0);
  const auto logits = Logits(num_rows, Rows::kPeaked);
  const SamplingParams params{0.6, 0, 0.95, 0.0};
  Random random(1);
  for (auto _ : state) {
    for (int64_t r = 0; r < num_rows; ++r) {
      benchmark::DoNotOptimize(
          ref::SampleToken(params, logits.data() + r * kVocab, kVocab, random));
    }
  }
}
BENCHMARK(SampleByDefinition)->Arg(1)->Arg(32)->ArgName("rows")->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace pmkvq
