#include "pmkvq/research/bench/ceilings.h"

#include <fmt/format.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <span>
#include <string>

#include "pmkvq/base/parallel.h"
#include "pmkvq/base/threads.h"
#include "pmkvq/kernels/gemm/gemm.h"
#include "pmkvq/kernels/peak/peak.h"

namespace pmkvq {
namespace {

constexpr double kGiga = 1e9;
// A product large enough that BLAS is at its best, and small enough to be measured often.
constexpr int64_t kSgemmInputs = 2048;
constexpr int64_t kSgemmPiece = 512;  // Outputs of one call.

size_t StreamedWords() {
  constexpr long kLeast = 256L << 20;
  const long last_cache = std::max(0L, sysconf(_SC_LEVEL3_CACHE_SIZE));
  return static_cast<size_t>(std::max(kLeast, 4 * last_cache)) / sizeof(uint64_t);
}

std::string ProcessorName() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with("model name")) continue;
    const size_t colon = line.find(": ");
    if (colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown";
}

// Processes that wanted to run in the last minute, on average.
double LoadAverage() {
  double load = 0;
  return getloadavg(&load, 1) == 1 ? load : -1;
}

}  // namespace

Ceilings::Ceilings(int num_threads) : num_threads_(num_threads), memory_(StreamedWords(), 1) {}

void Ceilings::Measure() {
  read_.Add(MeasureReadBandwidth(memory_, num_threads_) / kGiga);
  const std::span<uint64_t> all(memory_);
  const size_t half = all.size() / 2;
  copy_.Add(MeasureCopyBandwidth(all.first(half), all.last(half), num_threads_) / kGiga);
  float_.Add(MeasureFloatPeak(num_threads_) / kGiga);
  int8_.Add(MeasureInt8Peak(num_threads_) / kGiga);
}

void Ceilings::EvictCaches() { SumWords(memory_, num_threads_); }

void Ceilings::MeasureSgemm(int64_t rows) {
  // Several pieces per thread, so that a thread that starts late costs little.
  const int64_t pieces = 4 * num_threads_;
  if (sgemm_w_.empty()) {
    sgemm_w_.assign(static_cast<size_t>(pieces * kSgemmPiece * kSgemmInputs), 0.5f);
    sgemm_x_.assign(static_cast<size_t>(rows * kSgemmInputs), 0.25f);
    sgemm_y_.assign(static_cast<size_t>(rows * pieces * kSgemmPiece), 0.0f);
  }
  const double seconds = TimeSeconds([&] {
    ParallelFor(num_threads_, pieces, [&](int64_t piece, int) {
      BlasGemm<float>(false, true, rows, kSgemmPiece, kSgemmInputs, 1.0f, sgemm_x_.data(),
                      kSgemmInputs, sgemm_w_.data() + piece * kSgemmPiece * kSgemmInputs,
                      kSgemmInputs, 0.0f, sgemm_y_.data() + piece * kSgemmPiece,
                      pieces * kSgemmPiece);
    });
  });
  const double flops =
      2.0 * static_cast<double>(rows * kSgemmInputs) * static_cast<double>(pieces * kSgemmPiece);
  sgemm_.Add(flops / seconds / kGiga);
}

void Ceilings::AddTo(BenchFields& facts) const {
  facts.Add(
      "machine",
      fmt::format("{}, {} processors, {}", ProcessorName(), DefaultThreads(), PeakTargetName()),
      "machine");
  facts.Add("load_average", LoadAverage(), "load average");
  facts.Add("threads", int64_t{num_threads_}, "threads");
  const auto add = [&](const char* name, const Measurements& samples, const char* heading) {
    if (samples.empty()) return;
    const Spread spread = samples.ToSpread();
    facts.AddSpread(name, spread);
    facts.AddText(heading,
                  fmt::format("{:.1f}  ({:.1f} to {:.1f})", spread.median, spread.p10, spread.p90));
  };
  add("read_gb_per_s", read_, "reads GB/s");
  add("copy_gb_per_s", copy_, "copies GB/s (r+w)");
  add("float_gflop_per_s", float_, "float peak GFLOP/s");
  add("int8_gmac_per_s", int8_, "int8 peak GMAC/s");
  add("sgemm_gflop_per_s", sgemm_, "sgemm GFLOP/s");
}

}  // namespace pmkvq
