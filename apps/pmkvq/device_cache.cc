#include "device_cache.h"

#include "pmkvq/kv/packed/slot_layout.h"
#include "pmkvq/tensor/device/device_info.h"

namespace pmkvq::cli {

int64_t CacheBytesOnDevice(const Model& model, const SpecEngineOptions& options) {
  const KvBudget budget = CheckKvOptions(model, options);
  return budget.packed() == nullptr ? 0 : ArenaBytes(*budget.packed());
}

int64_t MemoryFor(const Model& model, int64_t on_host) {
  if (model.device_model() == nullptr) return on_host;
  return static_cast<int64_t>(Query(model.device()).free_bytes) + model.weight_bytes();
}

}  // namespace pmkvq::cli
