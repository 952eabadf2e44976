// Requests whose output is given: for the log-probabilities of a continuation.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "pmkvq/engine/engine.h"

namespace pmkvq {

// A request that draws the tokens `output_ids`, all in [0, vocab_size), one after the other,
// whatever their probabilities are, end-of-sequence tokens among them. Completion::logprobs then
// has the log-probability of each and the likeliest token in its place. The prompt is stored chunk
// by chunk and the continuation token by token through the cache, at the widths that a request
// which drew these tokens has: so this measures what the cache does to a text. Each token costs a
// step of decoding and O(vocab_size). A token whose logit is -inf cannot be drawn; the request ends
// there with kError. Throws InvalidInput naming "output_ids" (none, an id out of range).
Request MakeForcedRequest(std::vector<int32_t> prompt_ids, std::vector<int32_t> output_ids,
                          int64_t vocab_size);

}  // namespace pmkvq
