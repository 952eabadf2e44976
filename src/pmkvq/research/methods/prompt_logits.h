// Logits of every position of a prompt through a cache, for comparison with other implementations.
#pragma once

#include <cstdint>
#include <span>

#include "pmkvq/base/interrupt.h"
#include "pmkvq/model/model.h"
#include "pmkvq/research/methods/spec_engine.h"
#include "pmkvq/tensor/tensor.h"

namespace pmkvq {

// Logits [T, V] f32 of `ids` [T], computed in chunks of options.chunk tokens: each reads the
// earlier ones from the cache that the options name, and its own rows as floats. max_len may be
// smaller than T. Throws InvalidInput (options; no ids, one out of [0, V), more than the model has
// positions; a budget that does not hold them), Cancelled between chunks ("logits").
Tensor PromptLogits(const Model& model, std::span<const int32_t> ids,
                    const SpecEngineOptions& options, const CancelFlag* cancel);

}  // namespace pmkvq
