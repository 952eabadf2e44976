// Prompts that a pool keeps for later sequences.
//
// What is kept takes only room that nobody else needs: it counts in the pool like a sequence, and a
// reservation gives it up before it halves a page (PayInPool): chunks that nobody has used for a
// while are halved, then chunks are dropped. A page that a sequence took counts for both, so giving
// up the kept one, or bits of it, always frees what was counted for it, and changes no sequence.
//
// All chunks were computed as they are alone, at 16 bits. So a sequence that takes halved ones has
// the bits of one that stored them, and whose pages were halved then: that is what its events say.
#include <algorithm>
#include <chrono>
#include <utility>

#include "pmkvq/base/check.h"
#include "pmkvq/kv/packed/packed_cache.h"

namespace pmkvq {

double PackedKvCache::NowSeconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Halves chunks until so many bytes are freed, step_bytes are read, or all that are unused for
// prefix_idle_seconds are as narrow as prefix_min_bits allows. Returns the bytes that were freed.
int64_t PackedKvCache::HalveIdlePrefixes(int64_t bytes, double now_s) {
  // A sequence that takes chunks would have narrow pages in its window.
  if (config_.window_tokens > kPageTokens) return 0;
  const int64_t read_before = store_.narrowed_bytes();
  int64_t freed = 0;
  while (freed < bytes && store_.narrowed_bytes() - read_before < config_.pool.step_bytes) {
    const PrefixTree::NodeId node = prefixes_->NextToHalve(
        config_.pool.prefix_min_bits, now_s - config_.pool.prefix_idle_seconds);
    if (node == PrefixTree::kRoot) break;
    KeptChunk& kept = prefixes_->Kept(node);
    const int64_t bytes_before = kept.bytes;
    store_.NarrowKept(kept, kept.bits / 2);
    freed += bytes_before - kept.bytes;
  }
  prefix_bytes_ -= freed;
  return freed;
}

// Drops chunks, those unused longest first, until so many bytes are freed or none is left. Returns
// the bytes that were freed.
int64_t PackedKvCache::DropPrefixes(int64_t bytes) {
  int64_t freed = 0;
  while (freed < bytes && prefixes_->OldestLeaf() != PrefixTree::kRoot) {
    const KeptChunk kept = prefixes_->Remove(prefixes_->OldestLeaf());
    store_.DropKept(kept);
    freed += kept.bytes;
    prefix_bytes_ -= kept.bytes;
  }
  return freed;
}

// Frees so many bytes of what is kept, or all of it. Returns how many.
int64_t PackedKvCache::GiveUpPrefixes(int64_t bytes, double now_s) {
  if (prefixes_ == nullptr || bytes <= 0) return 0;
  const int64_t freed = HalveIdlePrefixes(bytes, now_s);
  return freed + DropPrefixes(bytes - freed);
}

// Room for more bytes to be kept, but for what is reserved for tokens to come. Halves chunks that
// are idle and drops older ones, but none that are used now.
bool PackedKvCache::MakePrefixRoom(int64_t bytes, double now_s) {
  const int64_t reserved = ReserveOfPool(OpeningSoonBytes(), config_.pool.bytes).least_bytes;
  const auto missing = [&] {
    return std::max(store_.used_bytes() + bytes + reserved - config_.pool.bytes,
                    prefix_bytes_ + bytes - config_.pool.prefix_bytes);
  };
  if (missing() > 0) HalveIdlePrefixes(missing(), now_s);
  while (missing() > 0) {
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
  const double now_s = NowSeconds();
  const std::vector<PrefixTree::NodeId> path = prefixes_->Use(salt, tokens, now_s);
  const size_t num_wide = NumWidePages(seq);
  PrefixTree::NodeId parent = PrefixTree::kRoot;
  for (int64_t i = 0; i < num_chunks; ++i) {
    // A chunk that was halved meanwhile is replaced.
    KeptChunk* const former =
        i < std::ssize(path) ? &prefixes_->Kept(path[static_cast<size_t>(i)]) : nullptr;
    if (former != nullptr) parent = path[static_cast<size_t>(i)];
    if (former != nullptr && former->bits == 16) continue;
    const int64_t begin = std::max<int64_t>(0, i * chunk - config_.sink_tokens);
    const auto first = static_cast<size_t>(begin / kPageTokens);
    const auto end = static_cast<size_t>(NumPages(config_, (i + 1) * chunk));
    const auto full_end = static_cast<size_t>(
        std::max<int64_t>(0, (i + 1) * chunk - config_.sink_tokens) / kPageTokens);
    const int64_t former_bytes = former == nullptr ? 0 : former->bytes;
    const int64_t bytes = store_.KeptBytes(end - first, i == 0);
    if (end > num_wide || !MakePrefixRoom(bytes - former_bytes, now_s)) return;
    if (former != nullptr) store_.DropKept(*former);
    KeptChunk kept = store_.Keep(seq, first, end, i == 0);
    kept.num_full = full_end - first;
    prefix_bytes_ += kept.bytes - former_bytes;
    if (former != nullptr) {
      *former = std::move(kept);
      continue;
    }
    parent = prefixes_->Add(
        parent, salt, tokens.subspan(static_cast<size_t>(i * chunk), static_cast<size_t>(chunk)),
        std::move(kept));
  }
}

// As if the sequence had stored all tokens and its pages were halved then.
void PackedKvCache::TellTakenWidths(const Sequence& seq) {
  for (const size_t layer : cached_layers_) {
    HalvingSteps steps;
    for (const PagePair& pair : seq.blocks[layer].pages) {
      for (const Side side : kSides) steps.Add(side, 16, pair[side].bits);
    }
    const HalvingEvent event = {IdOf(seq), static_cast<int64_t>(layer), seq.num_tokens};
    steps.AppendEvents(event, 0, halving_events_);
  }
}

int64_t PackedKvCache::TakePrefix(SequenceId id, std::string_view salt,
                                  std::span<const int32_t> tokens) {
  Sequence& seq = At(id);
  PMKVQ_CHECK(seq.num_tokens == 0 && seq.reserved_tokens == 0 && NumPagesOf(seq) == 0);
  if (prefixes_ == nullptr) return 0;
  const double now_s = NowSeconds();
  const int least_bits = std::max(config_.pool.prefix_min_bits, seq.terms.min_bits);
  std::vector<PrefixTree::NodeId> path = prefixes_->Use(salt, tokens, now_s);
  path.resize(prefixes_->NumReadable(path, least_bits));
  if (path.empty()) return 0;
  std::vector<const KeptChunk*> chunks;
  for (const PrefixTree::NodeId node : path) {
    chunks.push_back(&std::as_const(*prefixes_).Kept(node));
  }
  store_.TakeKept(chunks, seq);
  // Where the pool has no room for both, the kept ones are given up: those of this path last, as
  // they were used now.
  GiveUpPrefixes(store_.used_bytes() + store_.TakenBytes(seq) - config_.pool.bytes, now_s);
  store_.CountTaken(seq);
  const int64_t num_tokens = std::ssize(path) * config_.chunk_tokens;
  const size_t num_pages = NumPagesOf(seq);
  const bool ends_in_page = (num_tokens - config_.sink_tokens) % kPageTokens != 0;
  for (const size_t layer : cached_layers_) {
    for (const Side side : kSides) {
      if (num_pages > 0 && ends_in_page) store_.MakeExclusive(seq, layer, num_pages - 1, side);
    }
    UpdatePresentWidths(seq.blocks[layer], layer);
  }
  seq.num_tokens = num_tokens;
  TellTakenWidths(seq);
  ++prefix_hits_;
  prefix_hit_tokens_ += num_tokens;
  return num_tokens;
}

}  // namespace pmkvq
