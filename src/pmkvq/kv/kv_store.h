// What the model sees of a KV cache. Holds all sequences of an engine.
//
// One Forward is:  Reserve(seq, n) for every chunk;  BeginForward(batch);
//   AppendAndAttend(layer, ...) for layer 0 .. L-1;  EndForward().
//
// A sequence may fail, in Reserve or within a Forward: where a key, a value or the range of a group
// of them is more than the cache's float type can hold. It is then left out of the rest of the
// Forward and can only be closed; other sequences go on with the bits that they have without it.
// Implementations: PackedKvCache (kv/packed/packed_cache.h), the product, and SimulatedKvCache
// (kv/simulated/simulated_cache.h), for published methods. They are made by the registry in
// research/methods/.
//
// Threads: one thread drives a store; AppendAndAttend uses workers inside.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "pmkvq/kv/key_scales.h"
#include "pmkvq/kv/kv_failure.h"
#include "pmkvq/kv/kv_types.h"
#include "pmkvq/kv/sequence_image.h"

namespace pmkvq {

class DeviceKvStore;  // device_kv_store.h

struct KvExtraNeeds {
  bool keys_before_rope = false;
  bool block_input = false;
  bool attention_input = false;
  bool logits = false;  // OfferLogits

  // Whether OfferExtras is to be called.
  bool of_blocks() const { return keys_before_rope || block_input || attention_input; }
};

// Rows as those of AppendAndAttend; null where they are not needed.
struct KvExtras {
  const float* keys_before_rope = nullptr;  // [rows, Hkv, D], before RoPE and key scales.
  const float* block_input = nullptr;       // [rows, E], the residual stream.
  int64_t input_width = 0;                  // E
  // [rows, E], the residual stream behind the norm of attention: what q, k and v are made of.
  const float* attention_input = nullptr;
};

class KvStore {
 public:
  virtual ~KvStore() = default;

  // What Forward multiplies queries and divides keys by, for all sequences; null: nothing. Does not
  // change while the store lives.
  virtual const KeyScales* key_scales() const { return nullptr; }

  // Of a store whose pages lie on a device: what a model there calls in place of AppendAndAttend.
  // Null: the pages lie in the host's memory.
  virtual DeviceKvStore* OnDevice() { return nullptr; }

  // A new empty sequence, or nothing when max_sequences are open.
  virtual std::optional<SequenceId> Open() = 0;
  // Frees all pages of `seq`, but for those that other sequences share.
  virtual void Close(SequenceId seq) = 0;
  // A new sequence with the tokens of `seq`, as they are stored now. Both go on as if each had
  // stored them for itself: the same bits, the same statistics. A store may keep one copy of what
  // neither changes. In a pool pages that both have are halved for both at once, which the events
  // of each tell. Drops a reservation of `seq`. Nothing when max_sequences are open, when `seq` has
  // failed, or when the store cannot do it.
  virtual std::optional<SequenceId> Fork(SequenceId /*seq*/) { return std::nullopt; }

  // The tokens of `seq` as they are stored now; nothing changes. Nothing when `seq` has failed, or
  // when the store cannot do it. Takes as many bytes as the sequence has.
  virtual std::optional<SequenceImage> ImageOf(SequenceId /*seq*/) const { return std::nullopt; }
  // A new sequence that goes on as the one of the image would have: the same bits, the same
  // statistics. Nothing when max_sequences are open. Throws InvalidInput, naming `where` and the
  // field, for an image of a store with other settings and for one that no store has made;
  // Unsupported when the store cannot do it.
  virtual std::optional<SequenceId> OpenImage(const SequenceImage& image, const std::string& where);

  // Makes room for `num_tokens` new tokens of `seq` in every block, before Forward.
  //
  // Budget: where they do not fit, halves closed pages by the policy until they do. Halving cannot
  // be undone. Cost O(blocks), plus O(bytes halved). After kReserved* the following
  // AppendAndAttend for these tokens cannot run out of room. kBudgetExhausted changes nothing.
  // kFailed: the sequence has failed, before or when its pages were halved.
  // Errors: an unknown sequence is a caller bug (check). Never throws.
  [[nodiscard]] virtual ReserveResult Reserve(SequenceId seq, int64_t num_tokens) = 0;

  // Reserve for tokens that are known beforehand and are to leave the cache as decoding leaves it:
  // one Forward with BatchChunk::one_by_one gives the bits of one Forward per token. Makes room for
  // the first tokens of `num_tokens` (1 or more) between which no page is opened or halved.
  // Returns how many they are, 0 where the budget is exhausted (nothing was changed then) or the
  // sequence failed (FailureOf).
  [[nodiscard]] virtual int64_t ReserveOneByOne(SequenceId seq, int64_t /*num_tokens*/) {
    const ReserveResult result = Reserve(seq, 1);
    const bool has_room =
        result == ReserveResult::kReserved || result == ReserveResult::kReservedAfterHalving;
    return has_room ? 1 : 0;
  }

  // Reserve for all chunks of a Forward at once, of a store whose sequences share a pool
  // (StoreStats().pool.bytes > 0, else a check). Where they do not fit, pages of any sequence are
  // halved, but those of one in a Forward that was set aside. Chunks of failed sequences are left
  // out; a sequence may fail here, one without a chunk among them (FailureOf).
  // kBudgetExhausted: no room with all pages at their floors; nothing was changed.
  [[nodiscard]] virtual ReserveResult ReserveAll(std::span<const BatchChunk> chunks);
  // Of a pool; before the sequence's first tokens.
  virtual void SetPoolTerms(SequenceId /*seq*/, const KvPoolTerms& /*terms*/) {}

  // Of a pool, before the sequence's first tokens: its pages are halved as `events` say, when it
  // holds so many tokens, and not for others' need. The sequence fails where it cannot have such an
  // event. Of no use where blocks have sliding windows.
  virtual void FollowHistory(SequenceId seq, std::vector<HalvingEvent> events);

  // Of a pool that keeps prompts (PoolConfig::prefix_bytes > 0; elsewhere nothing happens).
  // KeepPrefix keeps the pages of the whole chunks (CacheConfig::chunk_tokens) of `tokens`, the
  // first ones that `seq` holds, for later sequences with the same salt, as far as all of them are
  // at 16 bits and the pool has room that nobody needs; chunks that are kept at less are replaced.
  // Before a page of any sequence is halved, kept chunks that no sequence has and nobody has used
  // for PoolConfig::prefix_idle_seconds are halved, down to prefix_min_bits, and then chunks are
  // dropped that no two sequences have, those unused longest first; pages that sequences have are
  // halved for their need, and are then narrow in what is kept. The tokens must have been stored
  // chunk by chunk, so that they have the bits that another sequence would give them. Nothing is
  // kept of a sequence that follows a history.
  // Drops a reservation of `seq`.
  virtual void KeepPrefix(SequenceId /*seq*/, std::string_view /*salt*/,
                          std::span<const int32_t> /*tokens*/) {}
  // Gives `seq`, which is empty, the longest kept beginning of `tokens` that is at prefix_min_bits
  // and at its KvPoolTerms::min_bits or more: the same bits, statistics and budget as if it had
  // stored these tokens itself, at 16 bits, and its pages were halved then to the widths of the
  // kept ones, which its events tell. For the copy of a page that goes on behind them pages of any
  // sequence may be halved; where that does not do, nothing is taken. Returns how many tokens they
  // are.
  virtual int64_t TakePrefix(SequenceId /*seq*/, std::string_view /*salt*/,
                             std::span<const int32_t> /*tokens*/) {
    return 0;
  }

  // Why the sequence failed; null: it did not. Valid until the sequence is closed.
  virtual const KvFailure* FailureOf(SequenceId seq) const = 0;

  // Starts a Forward over chunks whose tokens were reserved; a sequence occurs at most once.
  virtual void BeginForward(const Batch& batch) = 0;

  // Inputs that AppendAndAttend needs besides its arguments. Where there are any, OfferExtras is
  // called before each AppendAndAttend, with data that is valid until AppendAndAttend returns.
  virtual KvExtraNeeds ExtraNeeds() const { return {}; }
  virtual void OfferExtras(int64_t /*layer*/, const KvExtras& /*extras*/) {}
  // Logits [V] of the last token of a chunk, where ExtraNeeds wants them: called before EndForward
  // for chunks whose last logits were asked for, with data that is valid until EndForward returns.
  virtual void OfferLogits(SequenceId /*seq*/, std::span<const float> /*logits*/) {}

  // For the rows of all chunks of the batch, in order: attends to the stored tokens of the row's
  // sequence at their present widths plus the chunk's own earlier rows as floats, then stores the
  // chunk's K and V; of a chunk with one_by_one, row after row. q, out [rows, H, D]; k, v [rows,
  // Hkv, D], post-RoPE, key scales applied. `out` is undefined for chunks whose sequence has
  // failed. Not for a store on a device (check).
  //
  // Of a latent block (kv_geometry.h) k is c [rows, r], v is k_r [rows, dr] post-RoPE, q [rows, H,
  // r + dr] absorbed queries that contain the factor of scores, and out [rows, H, r] sums of c: the
  // caller goes on from there to values. Key scales are not applied before: the store does that.
  virtual void AppendAndAttend(int64_t layer, const float* q, const float* k, const float* v,
                               float* out) = 0;

  // Ends the Forward: the tokens of chunks whose sequence has not failed count as stored.
  virtual void EndForward() = 0;

  // Ends a Forward that cannot be finished (no memory): its sequences have failed. Nothing happens
  // when none is under way.
  virtual void AbandonForward() = 0;

  // Sets the Forward under way aside and takes up the one that was set aside before; either may be
  // none. So a Forward of other sequences can run while one of many rows waits between two blocks.
  virtual void SwapForwards() = 0;

  // How many of the first `num_tokens` tokens Truncate can leave: all of them, or 0 where a block
  // with a sliding window has freed pages that their continuation would attend to.
  virtual int64_t LongestTruncation(SequenceId /*seq*/, int64_t num_tokens) const {
    return num_tokens;
  }
  // Drops all tokens from `num_tokens` on (num_tokens <= current length, and what LongestTruncation
  // gives for it: check). A quantised page that is
  // cut becomes the open page again, with its values as they read now.
  virtual void Truncate(SequenceId seq, int64_t num_tokens) = 0;

  virtual int64_t NumTokens(SequenceId seq) const = 0;
  virtual KvSequenceStats SequenceStats(SequenceId seq) const = 0;
  virtual KvLayerStats LayerStats(SequenceId seq, int64_t layer) const = 0;
  virtual KvStoreStats StoreStats() const = 0;
  // Halvings since the last call, oldest first.
  virtual std::vector<HalvingEvent> TakeHalvingEvents() = 0;
};

}  // namespace pmkvq
