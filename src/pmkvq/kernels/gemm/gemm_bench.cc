// Speed of weight products at the shapes of a 7B model's MLP (K 3584, N 18944).
//
// Decode is bound by reading the weights: compare bytes_per_second with ReadBandwidth of the same
// run. Prefill is bound by arithmetic: compare GFLOP/s with RawSgemm (one thread, weights already
// float) times the number of threads.
#include <benchmark/benchmark.h>

#include <atomic>
#include <cstdint>
#include <numeric>

#include "pmkvq/base/aligned.h"
#include "pmkvq/base/check.h"
#include "pmkvq/base/float16.h"
#include "pmkvq/base/parallel.h"
#include "pmkvq/base/random.h"
#include "pmkvq/kernels/gemm/gemm.h"
#include "pmkvq/kernels/gemm/weight_q8.h"

namespace pmkvq {
namespace {

constexpr int64_t kHidden = 3584;
constexpr int64_t kIntermediate = 18944;

AlignedVector<float> RandomFloats(int64_t count) {
  Random random(1);
  AlignedVector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = static_cast<float>(random.Uniform() - 0.5);
  return values;
}

AlignedVector<uint16_t> RandomBf16(int64_t count) {
  Random random(2);
  AlignedVector<uint16_t> values(static_cast<size_t>(count));
  for (uint16_t& value : values) value = ToBF16(static_cast<float>(random.Uniform() - 0.5)).bits;
  return values;
}

void SetFlops(benchmark::State& state, int64_t rows, int64_t outs, int64_t cols) {
  const double flops = 2.0 * static_cast<double>(rows) * static_cast<double>(outs * cols);
  state.counters["FLOP/s"] = benchmark::Counter(flops * static_cast<double>(state.iterations()),
                                                benchmark::Counter::kIsRate);
}

// The ceiling of decode: threads summing up memory larger than any cache.
void ReadBandwidth(benchmark::State& state) {
  const int threads = static_cast<int>(state.range(0));
  const int64_t count = kHidden * kIntermediate / 4;
  constexpr int64_t kGrain = int64_t{1} << 16;
  AlignedVector<uint64_t> memory(static_cast<size_t>(count), 1);
  for (auto _ : state) {
    std::atomic<uint64_t> total{0};
    ParallelForRanges(threads, count, kGrain, [&](int64_t begin, int64_t end) {
      total += std::accumulate(memory.begin() + begin, memory.begin() + end, uint64_t{0});
    });
    benchmark::DoNotOptimize(total.load());
  }
  state.SetBytesProcessed(state.iterations() * count * 8);
}
BENCHMARK(ReadBandwidth)->ArgName("threads")->Arg(1)->Arg(2)->UseRealTime();

Q8Weight RandomQ8(int64_t rows, int64_t cols) {
  const AlignedVector<uint16_t> weights = RandomBf16(rows * cols);
  const WeightView view{reinterpret_cast<const std::byte*>(weights.data()), WeightFormat::kBF16,
                        rows, cols};
  Q8Weight quantized;
  PMKVQ_CHECK(QuantizeWeight(view, 2, quantized));
  return quantized;
}

void Decode(benchmark::State& state, const WeightView& weight, int64_t weight_bytes) {
  const int64_t rows = state.range(0);
  const int threads = static_cast<int>(state.range(1));
  const AlignedVector<float> x = RandomFloats(rows * kHidden);
  AlignedVector<float> y(static_cast<size_t>(rows * kIntermediate));
  for (auto _ : state) {
    MatMul(x.data(), rows, weight, nullptr, y.data(), threads);
    benchmark::DoNotOptimize(y.data());
  }
  state.SetBytesProcessed(state.iterations() * weight_bytes);
  SetFlops(state, rows, kIntermediate, kHidden);
}

void DecodeBf16(benchmark::State& state) {
  const AlignedVector<uint16_t> weights = RandomBf16(kHidden * kIntermediate);
  Decode(state,
         {reinterpret_cast<const std::byte*>(weights.data()), WeightFormat::kBF16, kIntermediate,
          kHidden},
         kHidden * kIntermediate * 2);
}

void DecodeQ8(benchmark::State& state) {
  const Q8Weight weight = RandomQ8(kIntermediate, kHidden);
  Decode(state, weight.view(), kIntermediate * RowBytes(WeightFormat::kQ8, kHidden));
}

void DecodeShapes(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"rows", "threads"})->ArgsProduct({{1, 2, 4, 8, 16}, {1, 2}})->UseRealTime();
}
BENCHMARK(DecodeBf16)->Apply(DecodeShapes);
BENCHMARK(DecodeQ8)->Apply(DecodeShapes);

// Products of the width of k and v in grouped attention: so short that starting threads shows.
void SmallProducts(benchmark::State& state, bool shared) {
  constexpr int64_t kOuts = 512;
  constexpr size_t kProducts = 2;
  const int threads = static_cast<int>(state.range(0));
  const AlignedVector<uint16_t> weights = RandomBf16(kHidden * kOuts);
  const WeightView view{reinterpret_cast<const std::byte*>(weights.data()), WeightFormat::kBF16,
                        kOuts, kHidden};
  const AlignedVector<float> x = RandomFloats(kHidden);
  AlignedVector<float> y(kProducts * kOuts);
  Projection<float> projections[kProducts];
  for (size_t i = 0; i < kProducts; ++i) projections[i] = {&view, nullptr, y.data() + i * kOuts};
  for (auto _ : state) {
    if (shared) {
      MatMulShared<float>(x.data(), 1, projections, threads);
    } else {
      for (const auto& p : projections) MatMul(x.data(), 1, view, nullptr, p.y, threads);
    }
    benchmark::DoNotOptimize(y.data());
  }
  SetFlops(state, kProducts, kOuts, kHidden);
}
void SmallSeparate(benchmark::State& state) { SmallProducts(state, false); }
void SmallShared(benchmark::State& state) { SmallProducts(state, true); }
BENCHMARK(SmallSeparate)->ArgName("threads")->Arg(1)->Arg(2)->UseRealTime();
BENCHMARK(SmallShared)->ArgName("threads")->Arg(1)->Arg(2)->UseRealTime();

// Quantising at load.
void Quantize(benchmark::State& state) {
  const int threads = static_cast<int>(state.range(0));
  const AlignedVector<uint16_t> weights = RandomBf16(kHidden * kHidden);
  const WeightView view{reinterpret_cast<const std::byte*>(weights.data()), WeightFormat::kBF16,
                        kHidden, kHidden};
  Q8Weight quantized;
  for (auto _ : state) {
    PMKVQ_CHECK(QuantizeWeight(view, threads, quantized));
    benchmark::DoNotOptimize(quantized.data.data());
  }
  state.SetBytesProcessed(state.iterations() * kHidden * kHidden * 2);
}
BENCHMARK(Quantize)->ArgName("threads")->Arg(1)->Arg(2)->UseRealTime();

void PrefillBf16(benchmark::State& state) {
  const int64_t rows = state.range(0);
  const int threads = static_cast<int>(state.range(1));
  const AlignedVector<uint16_t> weights = RandomBf16(kHidden * kHidden);
  const WeightView view{reinterpret_cast<const std::byte*>(weights.data()), WeightFormat::kBF16,
                        kHidden, kHidden};
  const AlignedVector<float> x = RandomFloats(rows * kHidden);
  AlignedVector<float> y(static_cast<size_t>(rows * kHidden));
  for (auto _ : state) {
    MatMul(x.data(), rows, view, nullptr, y.data(), threads);
    benchmark::DoNotOptimize(y.data());
  }
  SetFlops(state, rows, kHidden, kHidden);
}
BENCHMARK(PrefillBf16)
    ->ArgNames({"rows", "threads"})
    ->ArgsProduct({{32, 512}, {1, 2}})
    ->UseRealTime();

void GradInputBf16(benchmark::State& state) {
  const int64_t rows = 512;
  const int threads = static_cast<int>(state.range(0));
  const AlignedVector<uint16_t> weights = RandomBf16(kHidden * kHidden);
  const WeightView view{reinterpret_cast<const std::byte*>(weights.data()), WeightFormat::kBF16,
                        kHidden, kHidden};
  const AlignedVector<float> dy = RandomFloats(rows * kHidden);
  AlignedVector<float> dx(static_cast<size_t>(rows * kHidden));
  for (auto _ : state) {
    MatMulGradInput(dy.data(), rows, view, dx.data(), false, threads);
    benchmark::DoNotOptimize(dx.data());
  }
  SetFlops(state, rows, kHidden, kHidden);
}
BENCHMARK(GradInputBf16)->ArgName("threads")->Arg(1)->Arg(2)->UseRealTime();

void RawSgemm(benchmark::State& state) {
  const int64_t rows = 512;
  const AlignedVector<float> weights = RandomFloats(kHidden * kHidden);
  const AlignedVector<float> x = RandomFloats(rows * kHidden);
  AlignedVector<float> y(static_cast<size_t>(rows * kHidden));
  for (auto _ : state) {
    BlasGemm<float>(false, true, rows, kHidden, kHidden, 1.0f, x.data(), kHidden, weights.data(),
                    kHidden, 0.0f, y.data(), kHidden);
    benchmark::DoNotOptimize(y.data());
  }
  SetFlops(state, rows, kHidden, kHidden);
}
BENCHMARK(RawSgemm)->UseRealTime();

}  // namespace
}  // namespace pmkvq
