// Engines for any SPEC: packed caches and simulated ones.
#pragma once

#include <memory>

#include "pmkvq/engine/engine.h"

namespace pmkvq {

struct SpecEngineOptions : EngineOptions {
  KvOptions kv;
};

// What one sequence may take, known without making an engine: for checks before long work.
// Throws InvalidInput as OpenEngine does for its cache options (SPEC, budget, a plan for another
// model).
KvBudget CheckKvOptions(const Model& model, const SpecEngineOptions& options);
// The same without loading weights.
KvBudget CheckKvOptions(const Checkpoint& checkpoint, const SpecEngineOptions& options);

// An engine with the cache that the SPEC names. `tokenizer` may be null.
// Throws InvalidInput (options; a plan for another model), IoError (memory).
Engine OpenEngine(std::shared_ptr<const Model> model, std::shared_ptr<const Tokenizer> tokenizer,
                  const SpecEngineOptions& options);

}  // namespace pmkvq
