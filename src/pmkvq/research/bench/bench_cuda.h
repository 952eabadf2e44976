// pmkvq bench on a CUDA device. The kernels are called as a store on the device will call them.
//
// The ceiling is a copy on the stream in the same run, bytes read plus written over time; rows
// say which part of it their bytes reach. Captured copies are slower and no ceiling. Launches are
// captured and replayed over different pages in turn, more than the second-level cache holds;
// medians over the rounds.
//
// Errors: those of Query and InvalidInput for more memory than the device has free.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "pmkvq/research/bench/bench.h"
#include "pmkvq/tensor/device/device.h"

namespace pmkvq {

// Decode attention of one block: a row per batch, depth and width (`options.bits`, then
// `options.apart`); with `mixed` one more, for pages of which the oldest 50 % have 2 bits, then 39
// % 4, 10 % 8 and 1 % 16.
BenchReport BenchCudaAttention(const BenchOptions& options, DeviceId device, bool mixed);

// Products of a block's weights, q, k and v as one matrix and gate and up too, in BF16 and in q8: a
// row for each and each number of rows (at most 2 * kDecodeRows, in q8 half of that); with
// `per_matrix` one for each matrix.
BenchReport BenchCudaGemv(const BenchOptions& options, DeviceId device, bool per_matrix);

// Drawing tokens: the modes of BenchSampling without rules and log-probabilities.
BenchReport BenchCudaSampling(const BenchOptions& options, DeviceId device, int64_t vocab_size);

// Halving and the first quantisation of many pages, and the time that a step takes longer when it
// halves 8 MiB.
BenchReport BenchCudaHalving(const BenchOptions& options, DeviceId device);

// Decoding steps of a whole synthetic model with `vocab_size` tokens, drawn greedily on the device:
// a row per batch, depth and width, one cache after the other. A step is what an engine does for a
// token: reserving, one Forward, the tokens back on the host.
BenchReport BenchCudaDecode(const BenchOptions& options, DeviceId device, int64_t vocab_size);

// The same with the cache of a published method (`spec`), which stays on the host: a row per batch
// and depth. Of all blocks, or of `options.layers`.
BenchReport BenchCudaMethodDecode(const BenchOptions& options, DeviceId device, int64_t vocab_size,
                                  const std::string& spec);

// Prefill of `num_tokens` tokens in chunks of `chunk`: a row per depth and width.
BenchReport BenchCudaPrefill(const BenchOptions& options, DeviceId device, int64_t num_tokens,
                             int64_t chunk, int64_t vocab_size);

}  // namespace pmkvq
