#include "pmkvq/research/methods/spec_engine.h"

#include <utility>

#include "pmkvq/kv/spec/packed_spec.h"
#include "pmkvq/research/methods/registry.h"

namespace pmkvq {

KvBudget CheckKvOptions(const Model& model, const SpecEngineOptions& options) {
  const KvOptions kv = ApplySpecKeys(options.kv);
  if (kv.plan != nullptr) {
    CheckPlanMatches(*kv.plan, model.checkpoint().Identity(), kv.plan_path);
  }
  return ResolveKvBudget(kv, RequirementsOf(model, options));
}

Engine OpenEngine(std::shared_ptr<const Model> model, std::shared_ptr<const Tokenizer> tokenizer,
                  const SpecEngineOptions& options) {
  KvBudget budget = CheckKvOptions(*model, options);
  EngineCache cache{MakeKvStore(ApplySpecKeys(options.kv), RequirementsOf(*model, options)),
                    std::move(budget)};
  return Engine(std::move(model), std::move(tokenizer), std::move(cache), options);
}

}  // namespace pmkvq
