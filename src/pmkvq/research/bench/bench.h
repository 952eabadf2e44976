// pmkvq bench: how fast the kernels and whole steps are, against the ceilings that the same process
// measures meanwhile. docs/performance.md explains the reports.
//
// All measure in rounds: a round measures every row once, and the ceilings once, so that rows are
// compared under the same conditions. Reports give medians over the rounds, and the 10th and 90th
// percentile. Only public interfaces are called, so that the code that is measured is the
// product's.
//
// Errors: InvalidInput for sizes out of range or more memory than there is; Cancelled.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "pmkvq/base/interrupt.h"
#include "pmkvq/base/sinks.h"
#include "pmkvq/kernels/attention/attention.h"
#include "pmkvq/model/model.h"
#include "pmkvq/research/bench/report.h"
#include "pmkvq/tensor/device/device.h"
#include "pmkvq/tensor/weight_format.h"

namespace pmkvq {

// Widths of the pages of keys and of values.
struct KvBits {
  int k = 16;
  int v = 16;
  bool operator==(const KvBits&) const = default;
};

struct BenchOptions {
  std::string shape = "qwen2-7b";  // NamedShape
  int64_t layers = 0;              // Blocks; 0: each benchmark's own default.
  std::vector<int64_t> depths;     // Tokens stored before the measurement.
  std::vector<int> bits;           // 16, 8, 4, 2
  // Of attention: more rows, for keys and values of these widths; groups of keys per channel.
  std::vector<KvBits> apart;
  bool keys_by_channel = false;
  std::vector<int64_t> batches;  // Sequences (decode) or rows (gemv) at a time.
  AttentionMode attention = AttentionMode::kAccurate;
  WeightMode weights = WeightMode::kAsStored;  // Of decoding and prefill.
  int num_threads = 1;
  int repeat = 9;                    // Rounds.
  ProgressSink* progress = nullptr;  // May be null, like the next one.
  const CancelFlag* cancel = nullptr;
};

// One decoding token's attention in one block, all KV heads, from DRAM: a row per depth and width,
// those of `apart` last.
BenchReport BenchAttention(const BenchOptions& options);

// The weight products of a block with few rows: a row per format and batch; with `per_matrix` one
// for each matrix, too. All formats are measured in the same rounds.
BenchReport BenchGemv(const BenchOptions& options, const std::vector<WeightFormat>& formats,
                      bool per_matrix);

// A decoding step of the whole model (2 blocks unless told): a row per depth, width and batch.
BenchReport BenchDecode(const BenchOptions& options);

// Prefill of `num_tokens` tokens in chunks of `chunk` (2 blocks unless told), compared with
// OpenBLAS: a row per depth and width.
BenchReport BenchPrefill(const BenchOptions& options, int64_t num_tokens, int64_t chunk);

// Halving of stored pages, and the longest time that a single token waits for it while a cache of
// the whole shape steps down from 16 to 2 bits inside a budget of `budget_tokens` tokens at 16
// bits.
BenchReport BenchHalving(const BenchOptions& options, int64_t budget_tokens);

// Drawing a token of each of `batches` rows of `vocab_size` logits (at least 50): greedy, with each
// filter, with penalties, with log-probabilities. A row per batch and mode; `shape` is not used.
BenchReport BenchSampling(const BenchOptions& options, int64_t vocab_size);

struct EngineBenchOptions {
  int64_t waiting = 1000;        // Requests in the queue.
  int64_t prompt_tokens = 2048;  // Of the request that comes while others decode.
  int64_t chunk = 512;
  double prefill_share = 0.25;
};
// An engine with `batches` running requests: the cost of scheduling beside a queue, and the time
// between tokens while another one's prompt is computed (2 blocks unless told; 16-bit cache).
BenchReport BenchEngine(const BenchOptions& options, const EngineBenchOptions& load);

struct CalibrationBenchOptions {
  std::string model;       // Folder; empty: a made-up model of BenchOptions::shape, random tokens.
  std::string dataset;     // Texts; empty: MODEL/calibration.jsonl
  int64_t vocab_size = 0;  // Of a made-up model.
  int64_t num_samples = 64;
  int64_t seq_len = 512;
  DeviceId device;
};
// The steps of calibration, one after the other, each with what it prepares (on a device its
// weights). `depths` and so on are not used.
BenchReport BenchCalibration(const BenchOptions& options,
                             const CalibrationBenchOptions& calibration);

}  // namespace pmkvq
