// Validation of outside input: engine options, requests and token ids.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "pmkvq/engine/engine.h"

namespace pmkvq {

// The longest sequence the options allow. Throws InvalidInput naming the option for sizes out of
// range.
int64_t CheckEngineOptions(const EngineOptions& options, const ModelConfig& model);

// Throws InvalidInput naming the field (see Engine::Submit).
void CheckRequest(const Request& request, const ModelConfig& model, const KvBudget& budget,
                  int64_t max_len, bool has_tokenizer);

// Throws InvalidInput naming `where` and the index of the first id outside [0, V).
void CheckTokenIds(const std::vector<int32_t>& ids, int64_t vocab_size, const std::string& where);

// Throws InvalidInput when the budget does not hold a sequence of `num_tokens`; names the smallest
// that works.
void CheckBudgetHolds(const KvBudget& budget, int64_t num_tokens, const std::string& where);

}  // namespace pmkvq
