// The machine's ceilings, measured in the process and during the run whose speeds they judge.
#pragma once

#include <cstdint>

#include "pmkvq/base/aligned.h"
#include "pmkvq/research/bench/measurements.h"
#include "pmkvq/research/bench/report.h"

namespace pmkvq {

// Owns the memory that is streamed: 256 MiB, or four times the last cache where that is more.
//
// A benchmark calls Measure once in each of its rounds. Other work on the machine then slows the
// ceiling and the measured code alike. A ceiling is the median of its samples.
class Ceilings {
 public:
  explicit Ceilings(int num_threads);

  // One more sample of every ceiling. About 0.1 s.
  void Measure();
  // Fills the caches with other memory, so that the next measurement reads from DRAM.
  void EvictCaches();
  // One more sample of OpenBLAS: x [rows, K] times W [N, K]^T in float, W cut over the threads,
  // each calling BLAS on its own part.
  void MeasureSgemm(int64_t rows);

  double read_gb_per_s() const { return read_.Median(); }
  // Read plus written.
  double copy_gb_per_s() const { return copy_.Median(); }
  double float_gflop_per_s() const { return float_.Median(); }
  double int8_gmac_per_s() const { return int8_.Median(); }
  double sgemm_gflop_per_s() const { return sgemm_.Median(); }

  // Adds the ceilings that were measured, with their spread, and the machine: processor, its number
  // of threads, the load, the instruction set.
  void AddTo(BenchFields& facts) const;

 private:
  int num_threads_;
  AlignedVector<uint64_t> memory_;
  AlignedVector<float> sgemm_x_, sgemm_w_, sgemm_y_;
  Measurements read_, copy_, float_, int8_, sgemm_;
};

}  // namespace pmkvq
