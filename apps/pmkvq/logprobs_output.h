// Log-probabilities as `pmkvq run` shows them.
#pragma once

#include <string>
#include <vector>

#include "pmkvq/io/json.h"
#include "pmkvq/kernels/sampling/logit_rules.h"
#include "pmkvq/text/tokenizer.h"

namespace pmkvq::cli {

// The value of one token: {"token", "logprob", "top"}.
void WriteLogprobs(JsonWriter& json, const TokenLogprobs& logprobs);

// A line for each prompt token with its log-probability and the likeliest tokens in its place, and
// one with their sum. `logprobs`: of the tokens behind the first one. Without a tokenizer (null)
// tokens are shown as ids.
std::string FormatPromptLogprobs(const Tokenizer* tokenizer, int32_t first_token,
                                 const std::vector<TokenLogprobs>& logprobs);

}  // namespace pmkvq::cli
