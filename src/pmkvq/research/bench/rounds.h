// The common course of a benchmark. Internal to bench/.
#pragma once

#include <functional>

#include "pmkvq/io/model_config.h"
#include "pmkvq/kv/kv_geometry.h"
#include "pmkvq/research/bench/bench.h"
#include "pmkvq/research/bench/ceilings.h"

namespace pmkvq::internal {

// Throws InvalidInput for depths, widths, batches, threads or rounds out of range.
void CheckOptions(const BenchOptions& options);

// The shape asked for, with `default_layers` blocks where the options say none.
ModelConfig ShapeOf(const BenchOptions& options, int64_t default_layers);

// Runs `round` options.repeat times and once before, unmeasured (`measured` false), with a sample
// of the ceilings before each measured one.
void RunRounds(const BenchOptions& options, const char* task, Ceilings& ceilings,
               const std::function<void(bool measured)>& round);

// A report whose facts begin with the shape.
BenchReport NewReport(const BenchOptions& options, const char* bench, const ModelConfig& shape);

// Of attention: the blocks asked for, of a shape with keys and values or of one with latents.
KvGeometry AttentionGeometry(const BenchOptions& options);
// Widths of its rows: those of `bits`, then those of `apart`. Throws InvalidInput for latents
// apart.
std::vector<KvBits> AttentionWidths(const BenchOptions& options, const KvGeometry& geometry);
// "4", or "4:2" where keys and values differ.
std::string NameOfWidths(const KvBits& bits);
BenchReport NewAttentionReport(const BenchOptions& options, const KvGeometry& geometry);

}  // namespace pmkvq::internal
