// BenchDecode and BenchPrefill of a model from files, with its own weights and output layer, over a
// cache of made-up content. For comparisons with other engines that read the same file.
#pragma once

#include <cstdint>
#include <memory>

#include "pmkvq/research/bench/bench.h"

namespace pmkvq {

// As BenchDecode; the shape, blocks and weights of `options` are not looked at. `model` is on the
// CPU. Rows say how many tokens a second, not what share of the read bandwidth.
BenchReport BenchDecodeOf(const std::shared_ptr<const Model>& model, const BenchOptions& options);

// As BenchPrefill, likewise.
BenchReport BenchPrefillOf(const std::shared_ptr<const Model>& model, const BenchOptions& options,
                           int64_t num_tokens, int64_t chunk);

}  // namespace pmkvq
