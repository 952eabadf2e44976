#include "pmkvq/kernels/peak/peak.h"

#include <atomic>
#include <chrono>
#include <cstring>

#include "hwy/targets.h"
#include "pmkvq/base/check.h"
#include "pmkvq/base/parallel.h"
#include "pmkvq/kernels/peak/peak_vector.h"

namespace pmkvq {
namespace {

using Clock = std::chrono::steady_clock;

// Words of a piece that one thread reads or copies in a row: 1 MiB.
constexpr int64_t kPieceWords = int64_t{1} << 17;
// Pieces of arithmetic per thread, and their length (some 50 us): small enough that a thread that
// starts late costs little.
constexpr int64_t kPieces = 16;
constexpr int64_t kPieceIterations = 20000;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Operations per second of `run`, which returns PeakWork, called kPieces times per thread.
template <class Run>
double Rate(int num_threads, const Run& run) {
  std::atomic<double> operations{0};
  std::atomic<double> result{0};
  const auto start = Clock::now();
  ParallelFor(num_threads, kPieces * num_threads, [&](int64_t, int) {
    const internal::PeakWork work = run();
    operations += work.operations;
    result += work.result;
  });
  const double seconds = SecondsSince(start);
  // Uses the result, which is finite, so that the work has to be done.
  PMKVQ_CHECK(result.load() == result.load());
  return operations.load() / seconds;
}

}  // namespace

uint64_t SumWords(std::span<const uint64_t> words, int num_threads) {
  std::atomic<uint64_t> sum{0};
  ParallelForRanges(num_threads, static_cast<int64_t>(words.size()), kPieceWords,
                    [&](int64_t begin, int64_t end) {
                      sum += internal::SumWordsVector(words.data() + begin,
                                                      static_cast<size_t>(end - begin));
                    });
  return sum.load();
}

double MeasureReadBandwidth(std::span<const uint64_t> words, int num_threads) {
  static std::atomic<uint64_t> sink{0};
  const auto start = Clock::now();
  sink = SumWords(words, num_threads);
  return static_cast<double>(words.size_bytes()) / SecondsSince(start);
}

double MeasureCopyBandwidth(std::span<const uint64_t> source, std::span<uint64_t> target,
                            int num_threads) {
  PMKVQ_CHECK(source.size() == target.size());
  const auto start = Clock::now();
  ParallelForRanges(num_threads, static_cast<int64_t>(source.size()), kPieceWords,
                    [&](int64_t begin, int64_t end) {
                      std::memcpy(target.data() + begin, source.data() + begin,
                                  static_cast<size_t>(end - begin) * sizeof(uint64_t));
                    });
  return 2.0 * static_cast<double>(source.size_bytes()) / SecondsSince(start);
}

double MeasureFloatPeak(int num_threads) {
  volatile float seed = 1.0f;
  return Rate(num_threads, [operand = static_cast<float>(seed)] {
    return internal::RunFloatChains(kPieceIterations, operand);
  });
}

double MeasureInt8Peak(int num_threads) {
  volatile int seed = 3;
  return Rate(num_threads, [operand = static_cast<int>(seed)] {
    return internal::RunInt8Chains(kPieceIterations, operand);
  });
}

const char* PeakTargetName() { return hwy::TargetName(internal::PeakKernelTarget()); }

}  // namespace pmkvq
