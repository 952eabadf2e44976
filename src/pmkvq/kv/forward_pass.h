// A store's bookkeeping of one Forward under way.
#pragma once

#include <algorithm>
#include <vector>

#include "pmkvq/kv/kv_failure.h"

namespace pmkvq {

// Chunk has a pointer `seq` to a sequence, which has `failure`.
template <class Chunk>
struct ForwardPass {
  bool is_open = false;
  std::vector<Chunk> chunks;

  // Whether `seq` takes part in it, which must not be touched then.
  template <class Sequence>
  bool Holds(const Sequence& seq) const {
    return is_open && std::any_of(chunks.begin(), chunks.end(),
                                  [&](const Chunk& chunk) { return chunk.seq == &seq; });
  }
  // KvStore::AbandonForward.
  void Abandon() {
    if (!is_open) return;
    is_open = false;
    for (const Chunk& chunk : chunks) {
      if (!chunk.seq->failure) chunk.seq->failure = AbandonedForward();
    }
  }
};

}  // namespace pmkvq
