// The pool that `pmkvq serve` takes where --kv-pool is not given.
#pragma once

#include <cstdint>

#include "pmkvq/model/model.h"
#include "pmkvq/research/methods/spec_engine.h"

namespace pmkvq::cli {

// Bytes: 80 % of `available` (AvailableMemory before the model was loaded) without the weights and
// the working memory of options.max_sequences requests; no more than those need at 16 bits with
// options.max_len tokens each. Throws InvalidInput naming --kv-pool where the system does not tell
// its memory (`available` 0) or nothing is left.
int64_t DefaultPoolBytes(int64_t available, const Model& model, const SpecEngineOptions& options);

}  // namespace pmkvq::cli
