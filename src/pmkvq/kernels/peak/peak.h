// Measured ceilings of this machine, with which speeds of kernels are compared.
//
// Memory: one pass of reading, or copying, by all threads at once. Arithmetic: independent chains
// of one instruction, operands in registers. Everything runs on the instruction set that Highway
// chose, as the kernels do.
//
// Threads: each call uses up to `num_threads` (base/parallel.h). Cost: memory_bytes / bandwidth, or
// about a millisecond per thread for arithmetic.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace pmkvq {

// Sum (mod 2^64) of the words: reads each of them once. The oracle of a read pass.
uint64_t SumWords(std::span<const uint64_t> words, int num_threads);

// Bytes per second of one SumWords over `words`. For the bandwidth of memory, not of a cache,
// `words` has to be several times as large as the last cache.
double MeasureReadBandwidth(std::span<const uint64_t> words, int num_threads);

// Bytes per second, read plus written, of one copy of `source` to `target` (same size).
double MeasureCopyBandwidth(std::span<const uint64_t> source, std::span<uint64_t> target,
                            int num_threads);

// Float operations per second; a fused multiply-add counts as two.
double MeasureFloatPeak(int num_threads);

// Products of an unsigned with a signed byte, added in pairs to 16 bits, per second. Where the
// instruction set has no such instruction (SSE2, NEON): 16-bit multiply-adds.
double MeasureInt8Peak(int num_threads);

// Name of the instruction set in use, as Highway spells it.
const char* PeakTargetName();

}  // namespace pmkvq
