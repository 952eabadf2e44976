#include "pmkvq/kv/kv_store.h"

#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"

namespace pmkvq {

std::optional<SequenceId> KvStore::OpenImage(const SequenceImage& /*image*/,
                                             const std::string& where) {
  throw Unsupported(where, "the cache of this method cannot take up a saved sequence");
}

void KvStore::FollowHistory(SequenceId /*seq*/, std::vector<HalvingEvent> /*events*/) {
  PMKVQ_CHECK_MSG(false, "the store has no pool");
}

ReserveResult KvStore::ReserveAll(std::span<const BatchChunk> /*chunks*/) {
  PMKVQ_CHECK_MSG(false, "the store has no pool");
  return ReserveResult::kBudgetExhausted;
}

}  // namespace pmkvq
