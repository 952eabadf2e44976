#include "pmkvq/kv/kv_store.h"

#include "pmkvq/base/error.h"

namespace pmkvq {

std::optional<SequenceId> KvStore::OpenImage(const SequenceImage& /*image*/,
                                             const std::string& where) {
  throw Unsupported(where, "the cache of this method cannot take up a saved sequence");
}

}  // namespace pmkvq
