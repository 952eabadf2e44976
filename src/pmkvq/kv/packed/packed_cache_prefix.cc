// Prompts that a pool keeps for later sequences.
//
// What is kept takes only room that nobody else needs: a reservation gives it up before it halves a
// page (PayInPool). Chunks that nobody has used for a while are halved, then chunks are dropped,
// but for those that two running sequences or more have: they are memory once, and dropping them
// would free none of it. Pages that sequences have are halved for their need
// (packed_cache_shared.cc).
//
// All chunks were computed as they are alone, at 16 bits. So a sequence that takes halved ones has
// the bits of one that stored them, and whose pages were halved then: that is what its events say.
#include <algorithm>
#include <chrono>
#include <utility>

#include "pmkvq/base/check.h"
#include "pmkvq/kv/packed/packed_cache.h"

namespace pmkvq {
namespace {

// A chunk that is narrower is not taken over. The newest pages of a sequence stay at 16 bits, so
// with a window of closed pages it takes no narrow ones, which might be among them.
int LeastBitsToTake(const CacheConfig& config) {
  return config.window_tokens > kPageTokens ? 16 : config.pool.prefix_min_bits;
}

}  // namespace

double PackedKvCache::NowSeconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Halves chunks until so many bytes are freed, step_bytes are read, or all that no sequence has and
// that are unused for prefix_idle_seconds are as narrow as prefix_min_bits allows. Returns the
// bytes that were freed.
int64_t PackedKvCache::HalveIdlePrefixes(int64_t bytes, double now_s) {
  if (config_.window_tokens > kPageTokens) return 0;
  const int64_t read_before = store_.narrowed_bytes();
  const int64_t used_before = store_.used_bytes();
  const auto is_unread = [&](const KeptChunk& kept) { return store_.NumReaders(kept) == 0; };
  while (used_before - store_.used_bytes() < bytes &&
         store_.narrowed_bytes() - read_before < config_.pool.step_bytes) {
    const PrefixTree::NodeId node = prefixes_->NextToHalve(
        config_.pool.prefix_min_bits, now_s - config_.pool.prefix_idle_seconds, is_unread);
    if (node == PrefixTree::kRoot) break;
    KeptChunk& kept = prefixes_->Kept(node);
    store_.NarrowKept(kept, kept.bits / 2);
  }
  return used_before - store_.used_bytes();
}

// Where memory is short.
bool PackedKvCache::IsWorthKeeping(const KeptChunk& kept) const {
  return store_.NumReaders(kept) > 1 && kept.bits >= LeastBitsToTake(config_);
}

// Returns the bytes that were freed.
int64_t PackedKvCache::DropPrefix(PrefixTree::NodeId leaf) {
  const int64_t used_before = store_.used_bytes();
  const KeptChunk kept = prefixes_->Remove(leaf);
  ForgetColumns(kept);
  store_.DropKept(kept);
  return used_before - store_.used_bytes();
}

// Drops chunks, those unused longest first, until so many bytes are freed or none is left but those
// that are worth keeping. Returns the bytes that were freed.
int64_t PackedKvCache::DropPrefixes(int64_t bytes) {
  int64_t freed = 0;
  const auto can_go = [&](const KeptChunk& kept) { return !IsWorthKeeping(kept); };
  while (freed < bytes) {
    const PrefixTree::NodeId leaf = prefixes_->OldestLeaf(can_go);
    if (leaf == PrefixTree::kRoot) break;
    freed += DropPrefix(leaf);
  }
  return freed;
}

// Where there is no other room. Returns the bytes that were freed.
int64_t PackedKvCache::DropAllPrefixes() {
  if (prefixes_ == nullptr) return 0;
  int64_t freed = 0;
  while (prefixes_->num_nodes() > 0) freed += DropPrefix(prefixes_->OldestLeaf());
  return freed;
}

// Frees so many bytes of what is kept, or all that can be freed. Returns how many.
int64_t PackedKvCache::GiveUpPrefixes(int64_t bytes, double now_s) {
  if (prefixes_ == nullptr || bytes <= 0) return 0;
  const int64_t freed = HalveIdlePrefixes(bytes, now_s);
  return freed + DropPrefixes(bytes - freed);
}

// Room to keep `more_kept` bytes, for which `new_bytes` are taken, but for what is reserved for
// tokens to come. Halves chunks that are idle and drops older ones, but none that are used now.
bool PackedKvCache::MakePrefixRoom(int64_t new_bytes, int64_t more_kept, double now_s) {
  const int64_t reserved = ReserveOfPool(OpeningSoonBytes(), config_.pool.bytes).least_bytes;
  const auto missing = [&] {
    return std::max(store_.used_bytes() + new_bytes + reserved - config_.pool.bytes,
                    store_.kept_bytes() + more_kept - config_.pool.prefix_bytes);
  };
  if (missing() > 0) HalveIdlePrefixes(missing(), now_s);
  const auto can_go = [&](const KeptChunk& kept) { return !IsWorthKeeping(kept); };
  while (missing() > 0) {
    const PrefixTree::NodeId oldest = prefixes_->OldestLeaf(can_go);
    if (oldest == PrefixTree::kRoot || prefixes_->IsUsedNow(oldest)) return false;
    DropPrefix(oldest);
  }
  return true;
}

void PackedKvCache::NoteColumns(const KeptChunk& kept, PrefixTree::NodeId node) {
  for (const int64_t column : kept.columns) column_nodes_[column] = node;
}

void PackedKvCache::ForgetColumns(const KeptChunk& kept) {
  for (const int64_t column : kept.columns) column_nodes_.erase(column);
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
  // What follows a history halves its pages for nobody else's need.
  if (prefixes_ == nullptr || seq.failure || seq.script || IsInForward(seq)) return;
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
    const int64_t copied_bytes = store_.KeptBytes(end - full_end, false);
    const int64_t bytes = store_.KeptBytes(end - first, i == 0);
    if (end > num_wide || !MakePrefixRoom(copied_bytes, bytes - former_bytes, now_s)) return;
    if (former != nullptr) {
      ForgetColumns(*former);
      store_.DropKept(*former);
    }
    KeptChunk kept = store_.Keep(seq, first, full_end, end, i == 0);
    if (former != nullptr) {
      *former = std::move(kept);
      NoteColumns(*former, parent);
      continue;
    }
    parent = prefixes_->Add(
        parent, salt, tokens.subspan(static_cast<size_t>(i * chunk), static_cast<size_t>(chunk)),
        std::move(kept));
    NoteColumns(prefixes_->Kept(parent), parent);
  }
}

// As if the sequence had stored all tokens and its pages were halved then.
void PackedKvCache::TellTakenWidths(const Sequence& seq) {
  for (const size_t layer : cached_layers_) {
    HalvingSteps steps;
    const std::vector<PagePair>& pages = seq.blocks[layer].pages;
    for (size_t page = 0; page < pages.size(); ++page) {
      for (const Side side : kSides) steps.Add(side, page, 16, pages[page][side].bits);
    }
    const HalvingEvent event = {IdOf(seq), static_cast<int64_t>(layer), seq.num_tokens};
    steps.AppendEvents(event, 0, true, halving_events_);
  }
}

int64_t PackedKvCache::TakePrefix(SequenceId id, std::string_view salt,
                                  std::span<const int32_t> tokens) {
  Sequence& seq = At(id);
  PMKVQ_CHECK(seq.num_tokens == 0 && seq.reserved_tokens == 0 && NumPagesOf(seq) == 0);
  if (prefixes_ == nullptr) return 0;
  const double now_s = NowSeconds();
  const int least_bits = std::max(LeastBitsToTake(config_), seq.terms.min_bits);
  std::vector<PrefixTree::NodeId> path = prefixes_->Use(salt, tokens, now_s);
  path.resize(prefixes_->NumReadable(path, least_bits));
  if (path.empty()) return 0;
  std::vector<const KeptChunk*> chunks;
  for (const PrefixTree::NodeId node : path) {
    chunks.push_back(&std::as_const(*prefixes_).Kept(node));
  }
  store_.TakeKept(chunks, seq);
  const int64_t num_tokens = std::ssize(path) * config_.chunk_tokens;
  const size_t num_pages = NumPagesOf(seq);
  const bool ends_in_page = num_pages > 0 && (num_tokens - config_.sink_tokens) % kPageTokens != 0;
  seq.num_tokens = num_tokens;
  for (const size_t layer : cached_layers_) UpdatePresentWidths(seq.blocks[layer], layer);
  const size_t events_before = halving_events_.size();
  TellTakenWidths(seq);
  if (ends_in_page) {
    openings_.clear();
    if (!PayInPool(column_bytes_)) {  // No room for a copy of the page that goes on.
      halving_events_.resize(events_before);
      store_.ReleaseAll(seq);
      seq.num_tokens = 0;
      seq.peak_bytes = 0;
      return 0;
    }
    for (const size_t layer : cached_layers_) {
      for (const Side side : kSides) store_.MakeExclusive(seq, layer, num_pages - 1, side);
    }
  }
  ++prefix_hits_;
  prefix_hit_tokens_ += num_tokens;
  return num_tokens;
}

}  // namespace pmkvq
