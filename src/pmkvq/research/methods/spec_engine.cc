#include "pmkvq/research/methods/spec_engine.h"

#include <string>
#include <utility>

#include "pmkvq/base/threads.h"
#include "pmkvq/kv/spec/packed_spec.h"
#include "pmkvq/research/methods/registry.h"

namespace pmkvq {

KvBudget CheckKvOptions(const Checkpoint& checkpoint, const SpecEngineOptions& options) {
  // An identity reads a part of every tensor; only a plan asks for it.
  const bool has_plan = ApplySpecKeys(options.kv).plan != nullptr;
  const std::string identity = has_plan ? checkpoint.Identity() : "";
  return ResolveKvBudget(ApplySpecKeysFor(identity, options.kv),
                         RequirementsOf(checkpoint, options));
}

KvBudget CheckKvOptions(const Model& model, const SpecEngineOptions& options) {
  return CheckKvOptions(model.checkpoint(), options);
}

Engine OpenEngine(std::shared_ptr<const Model> model, std::shared_ptr<const Tokenizer> tokenizer,
                  const SpecEngineOptions& options) {
  const KvOptions kv = ApplySpecKeysFor(model->checkpoint().Identity(), options.kv);
  const int threads = options.num_threads > 0 ? options.num_threads : DefaultThreads();
  if (auto replaced = ModelWithWeightsOf(kv, *model, threads)) model = std::move(replaced);
  const KvRequirements needs = RequirementsOf(*model, options);
  KvBudget budget = ResolveKvBudget(kv, needs);
  EngineCache cache{MakeKvStore(kv, needs), std::move(budget)};
  return Engine(std::move(model), std::move(tokenizer), std::move(cache), options);
}

}  // namespace pmkvq
