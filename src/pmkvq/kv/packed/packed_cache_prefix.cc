// Prompts that a pool keeps for later sequences.
//
// What is kept takes only room that nobody else needs: it counts in the pool like a sequence, and a
// reservation gives it up before it halves a page (PayInPool). A page that a sequence took counts
// for both, so giving up the kept one always frees what was counted for it.
#include <algorithm>

#include "pmkvq/base/check.h"
#include "pmkvq/kv/packed/packed_cache.h"

namespace pmkvq {

// Drops chunks, those unused longest first, until so many bytes are freed or none is left. Returns
// the bytes that were freed.
int64_t PackedKvCache::DropPrefixes(int64_t bytes) {
  int64_t freed = 0;
  while (prefixes_ != nullptr && freed < bytes && prefixes_->OldestLeaf() != PrefixTree::kRoot) {
    const KeptChunk kept = prefixes_->Remove(prefixes_->OldestLeaf());
    store_.DropKept(kept);
    freed += kept.bytes;
    prefix_bytes_ -= kept.bytes;
  }
  return freed;
}

// Room for a chunk to be kept, but for what is reserved for tokens to come. Gives up older ones,
// but none that are used now.
bool PackedKvCache::MakePrefixRoom(int64_t bytes) {
  const int64_t reserved = ReserveOfPool(OpeningSoonBytes(), config_.pool.bytes).least_bytes;
  const auto fits = [&] {
    return store_.used_bytes() + bytes + reserved <= config_.pool.bytes &&
           prefix_bytes_ + bytes <= config_.pool.prefix_bytes;
  };
  while (!fits()) {
    const PrefixTree::NodeId oldest = prefixes_->OldestLeaf();
    if (oldest == PrefixTree::kRoot || prefixes_->IsUsedNow(oldest)) return false;
    DropPrefixes(1);
  }
  return true;
}

// How many of the first pages are at 16 bits in all blocks. What was computed behind a narrower one
// has read it, and has other bits than it has alone.
size_t PackedKvCache::NumWidePages(const Sequence& seq) const {
  size_t count = NumPagesOf(seq);
  for (const size_t layer : cached_layers_) {
    const std::vector<PagePair>& pages = seq.blocks[layer].pages;
    const auto narrow = std::find_if(pages.begin(), pages.end(), [](const PagePair& pair) {
      return pair[kKeys].bits < 16 || pair[kValues].bits < 16;
    });
    count = std::min(count, static_cast<size_t>(narrow - pages.begin()));
  }
  return count;
}

void PackedKvCache::KeepPrefix(SequenceId id, std::string_view salt,
                               std::span<const int32_t> tokens) {
  Sequence& seq = At(id);
  if (prefixes_ == nullptr || seq.failure || IsInForward(seq)) return;
  if (seq.reserved_tokens > 0) Truncate(id, seq.num_tokens);
  const int64_t chunk = config_.chunk_tokens;
  const int64_t num_chunks = std::min<int64_t>(std::ssize(tokens), seq.num_tokens) / chunk;
  tokens = tokens.first(static_cast<size_t>(num_chunks * chunk));
  const std::vector<PrefixTree::NodeId> path = prefixes_->Use(salt, tokens);
  const size_t num_wide = NumWidePages(seq);
  PrefixTree::NodeId parent = path.empty() ? PrefixTree::kRoot : path.back();
  for (int64_t i = std::ssize(path); i < num_chunks; ++i) {
    const int64_t begin = std::max<int64_t>(0, i * chunk - config_.sink_tokens);
    const auto first = static_cast<size_t>(begin / kPageTokens);
    const auto end = static_cast<size_t>(NumPages(config_, (i + 1) * chunk));
    if (end > num_wide || !MakePrefixRoom(store_.KeptBytes(end - first, i == 0))) return;
    KeptChunk kept = store_.Keep(seq, first, end, i == 0);
    prefix_bytes_ += kept.bytes;
    parent = prefixes_->Add(
        parent, salt, tokens.subspan(static_cast<size_t>(i * chunk), static_cast<size_t>(chunk)),
        std::move(kept));
  }
}

int64_t PackedKvCache::TakePrefix(SequenceId id, std::string_view salt,
                                  std::span<const int32_t> tokens) {
  Sequence& seq = At(id);
  PMKVQ_CHECK(seq.num_tokens == 0 && seq.reserved_tokens == 0 && NumPagesOf(seq) == 0);
  if (prefixes_ == nullptr) return 0;
  const std::vector<PrefixTree::NodeId> path = prefixes_->Use(salt, tokens);
  if (path.empty()) return 0;
  std::vector<const KeptChunk*> chunks;
  for (const PrefixTree::NodeId node : path) chunks.push_back(&prefixes_->Kept(node));
  store_.TakeKept(chunks, seq);
  const int64_t num_tokens = std::ssize(path) * config_.chunk_tokens;
  const size_t num_pages = NumPagesOf(seq);
  // Where the pool has no room for both, the kept ones are given up: those of this path last, as
  // they were used now.
  const int64_t new_bytes = store_.KeptBytes(num_pages, true);
  DropPrefixes(store_.used_bytes() + new_bytes - config_.pool.bytes);
  store_.CountTaken(seq);
  const bool ends_in_page = (num_tokens - config_.sink_tokens) % kPageTokens != 0;
  for (const size_t layer : cached_layers_) {
    for (const Side side : kSides) {
      if (num_pages > 0 && ends_in_page) store_.MakeExclusive(seq, layer, num_pages - 1, side);
    }
    UpdatePresentWidths(seq.blocks[layer], layer);
  }
  seq.num_tokens = num_tokens;
  ++prefix_hits_;
  prefix_hit_tokens_ += num_tokens;
  return num_tokens;
}

}  // namespace pmkvq
