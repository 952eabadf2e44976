// The memory of a cache: the arena and its slots, the page tables of sequences, and every change of
// a page's width, with exact accounting. Tables, slots and accounts change here on the host; bytes
// follow by move plans (move_plan.h). Knows nothing of budgets, policies or attention.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "pmkvq/base/aligned.h"
#include "pmkvq/kernels/attention/attention.h"
#include "pmkvq/kernels/kv_quant/fragment_page.h"
#include "pmkvq/kv/cache_config.h"
#include "pmkvq/kv/kv_failure.h"
#include "pmkvq/kv/packed/move_executor.h"
#include "pmkvq/kv/packed/move_plan.h"
#include "pmkvq/kv/packed/page_codec.h"
#include "pmkvq/kv/packed/page_reads.h"
#include "pmkvq/kv/packed/prefix_tree.h"
#include "pmkvq/kv/packed/slot_allocator.h"
#include "pmkvq/kv/packed/slot_layout.h"
#include "pmkvq/kv/packed/stored_page.h"
#include "pmkvq/kv/packed/unfit_words.h"
#include "pmkvq/tensor/device/buffer.h"
#include "pmkvq/tensor/device/stream.h"

namespace pmkvq {

// Page table of one block of one sequence.
struct BlockPages {
  // Empty until there are tokens. K and V slot of each whole piece (kPageTokens tokens, a 16-bit
  // page), then the rest's slot: one for K and V, or one each.
  std::vector<SlotHandle> sink;
  // Oldest first; the last one is the open page. The first `num_freed` have left the block's
  // sliding window: they have no slots any more.
  std::vector<PagePair> pages;
  size_t num_freed = 0;

  int64_t bytes = 0;
  std::array<PagesPerWidth, 2> page_counts{};  // By side.

  // Width at which pages close, and at which the block's closed pages stand (LayerBudget).
  PageWidths present;

  // The page that was open before the chunk now reserved closes below 16 bits in it: until the
  // chunk is stored its rows lie in the 16-bit slot that the last page has taken over.
  std::array<bool, 2> open_rows_moved{};

  // What attention reads: sink, then pages. Valid for one layout of the sequence and one
  // generation of the slots.
  std::vector<KvPageView> views;
  uint64_t views_layout = 0;
  uint64_t views_generation = 0;
};

struct SequencePages {
  int64_t bytes = 0;
  int64_t peak_bytes = 0;
  int64_t narrowed_bytes = 0;  // Codes or floats that Narrow has read.
  uint64_t layout = 1;         // Rises whenever a page table changes.
  // The first thing that the cache could not hold.
  std::optional<KvFailure> failure;
  std::vector<BlockPages> blocks;
  // In a pool: numbers of the first pages, which other sequences or kept prompts may share. Pages
  // (of all blocks and both sides) that have the same number are the same memory.
  std::vector<int64_t> columns;
};

// Statistics, with the budgets of the blocks, or of the block.
KvSequenceStats StatsOf(const SequencePages& seq, int64_t num_tokens,
                        std::span<const int64_t> budget_bytes);
KvLayerStats StatsOf(const BlockPages& block, int64_t budget_bytes);

// A page and the width that it is to have.
struct NarrowStep {
  size_t page = 0;
  Side side = kKeys;
  int bits = 8;
  size_t offset = 0;          // Where it lies in the arena: Narrow's.
  KeptChunk* kept = nullptr;  // That holds the page as well, and is to have it narrow.
};

class PageStore {
 public:
  // The configuration must be valid. Throws IoError when the system refuses the arena, DeviceError
  // when a device does.
  explicit PageStore(const CacheConfig& config);

  // Makes a page's slots at `bits`, content undefined. The arena holds every page while each
  // block's bytes stay within its budget.
  void Allocate(SequencePages& seq, size_t layer, size_t page, Side side, int bits);
  void Release(SequencePages& seq, size_t layer, size_t page, Side side);  // If it has slots.
  // Takes all pages from `first` on out of the block's table.
  void ReleaseFrom(SequencePages& seq, size_t layer, size_t first);
  // Gives up the slots of the pages before `end`, which keep their places in the table.
  void FreeBefore(SequencePages& seq, size_t layer, size_t end);
  void AllocateSink(SequencePages& seq, size_t layer);
  void ReleaseSink(SequencePages& seq, size_t layer);

  // Brings full pages to lower widths: floats are quantised straight to them, codes halved. Bytes
  // only fall. Uses the configuration's threads. Reorders `steps`. Sets `failure` where the bounds
  // of a group do not fit the float type. The pages become narrow for all of `readers` that have
  // not freed them, which share them, and for NarrowStep::kept; other owners keep theirs.
  void Narrow(std::span<SequencePages* const> readers, size_t layer, std::span<NarrowStep> steps);
  void Narrow(SequencePages& seq, size_t layer, std::span<NarrowStep> steps) {
    SequencePages* const reader = &seq;
    Narrow({&reader, 1}, layer, steps);
  }
  // Brings a quantised page back to 16 bits with its values as they read now.
  void Reopen(SequencePages& seq, size_t layer, size_t page, Side side);

  // Gives `copy`, an empty sequence, the pages and the sink of `seq`, which holds `num_tokens`
  // tokens. The first `num_shared` pages are shared, and so is the sink where it is full; the rest
  // is copied, which takes CopyBytes in a pool. Without a pool memory that is shared counts for
  // each owner, so the arena has room for what one of them changes later; in a pool it counts once.
  void Share(SequencePages& seq, int64_t num_tokens, size_t num_shared, SequencePages& copy);
  int64_t CopyBytes(const SequencePages& seq, int64_t num_tokens, size_t num_shared) const;
  // Numbers the first `count` pages, those that have none anew.
  void NumberColumns(SequencePages& seq, size_t count);
  // Copies the slots of a page, or of the sink, where other sequences share them: before tokens
  // are written there.
  void MakeExclusive(SequencePages& seq, size_t layer, size_t page, Side side);
  void MakeSinkExclusive(SequencePages& seq, size_t layer);

  // The whole sequence's memory.
  void ReleaseAll(SequencePages& seq);

  // Pages that outlive their sequences (prefix_tree.h). Keep shares the pages [first, full_end) of
  // each block of `seq`, all of 16 bits, and the sink if `with_sink`; of those up to `end`, which
  // go on in the next chunk, it makes copies. NarrowKept brings the full pages of a chunk that no
  // sequence reads to `bits`, or to their floor.
  KeptChunk Keep(SequencePages& seq, size_t first, size_t full_end, size_t end, bool with_sink);
  int64_t KeptBytes(size_t num_pages, bool with_sink) const;  // KeptChunk::bytes of 16-bit pages.
  void NarrowKept(KeptChunk& kept, int bits);
  void DropKept(const KeptChunk& kept);
  // How many sequences have the full pages of the chunk; 0 where it has none.
  int64_t NumReaders(const KeptChunk& kept) const;
  // Gives `seq`, an empty sequence, the pages of these chunks, which follow one another from the
  // first one on. The caller makes the last page exclusive where tokens are to be written to it.
  void TakeKept(std::span<const KeptChunk* const> chunks, SequencePages& seq);

  KvTensorView View(const StoredPage& page) const;
  // The sink lies in pieces of kPageTokens tokens and a shorter rest: piece i holds the tokens from
  // i * kPageTokens on.
  int64_t num_sink_pieces() const { return (config_.sink_tokens + kPageTokens - 1) / kPageTokens; }
  int64_t SinkPieceTokens(int64_t piece) const {
    return std::min(kPageTokens, config_.sink_tokens - piece * kPageTokens);
  }
  KvTensorView SinkView(const BlockPages& block, size_t layer, int64_t piece, Side side) const;
  std::byte* Data(const StoredPage& page) const { return At(page.data); }
  std::byte* SinkData(const BlockPages& block, size_t layer, int64_t piece, Side side) const;
  std::byte* Metadata(const StoredPage& page) const {
    return page.metadata == kNoSlot ? nullptr : At(page.metadata);
  }

  // Appends the views of the sink's pieces and of all pages; those of freed pages are empty.
  void AddViews(const BlockPages& block, size_t layer, std::vector<KvPageView>& views) const;
  // Appends the tokens of the views that `num_tokens` stored tokens use: the first ones.
  void AddPageTokens(int64_t num_tokens, std::vector<PageTokens>& pages) const;
  // The first `num_tokens` stored values of a block as they read now, not rotated any more: k_out
  // and v_out [num_tokens, Hkv, D], or [num_tokens, r] and [num_tokens, dr] of a latent block;
  // zeros of freed pages. Slow, allocates.
  void ReadTokens(const SequencePages& seq, size_t layer, int64_t num_tokens, float* k_out,
                  float* v_out) const;

  // Why rows [num_rows, Hkv, D], of positions from `first` on, cannot be stored: the first value
  // that the float type does not hold. Nothing when all fit.
  std::optional<KvFailure> FindUnfitValue(size_t layer, Side side, const float* rows,
                                          int64_t num_rows, int64_t first) const;
  // "key", "value"; of a latent block "latent", "rope key".
  const char* NameOf(size_t layer, Side side) const;
  // Sets seq.failure, unless it is set: the bounds of this group of the page do not fit the float
  // type.
  void SetRangeFailure(SequencePages& seq, size_t layer, size_t page, Side side,
                       const UnfitGroup& group) const;

  const StreamSlots& SlotsOf(size_t layer, Side side) const {
    return layout_.blocks[layer].sides[side];
  }
  // Of a page's codes or floats at that width, without metadata.
  size_t CodeBytes(size_t layer, Side side, int bits) const {
    return slots_.slot_bytes(SlotsOf(layer, side).code_class[WidthIndex(bits)]);
  }

  // Of a quantised page's metadata.
  size_t MetadataBytes(size_t layer, Side side) const {
    return slots_.slot_bytes(SlotsOf(layer, side).metadata_class);
  }

  // Sum over all sequences. Without a pool every owner of shared memory counts it; in a pool it
  // counts once, kept chunks are part of it, and it is at most the pool's bytes.
  int64_t used_bytes() const { return used_bytes_; }
  // Of these, what kept chunks alone have; and the sum of all KeptChunk::bytes.
  int64_t unread_bytes() const { return unread_bytes_; }
  int64_t kept_bytes() const { return kept_bytes_; }
  int64_t peak_used_bytes() const { return peak_used_bytes_; }
  int64_t narrowed_bytes() const { return narrowed_bytes_; }  // Codes or floats that Narrow read.

  // Of pages of a stream of the block.
  const PageCodec& codec(size_t layer, Side side) const { return codecs_[layer][side]; }
  const SlotAllocator& slots() const { return slots_; }
  float* values() { return values_.data(); }  // Scratch for one page of any block.
  size_t scratch_bytes() const {
    return values_.size() * sizeof(float) + plan_.num_bytes() + arena_.num_bytes() -
           slots_.arena_bytes();
  }

  // On a device a page whose range does not fit shows late. LaunchUnfitCopy launches the look at
  // what was quantised since the last time; once the stream has come there, TakeUnfit sets the
  // failures of its sequences. SettleUnfit does both, and waits, where there is something to see.
  void LaunchUnfitCopy();
  void TakeUnfit();
  void SettleUnfit();

  // On a device: its stream, which all work on pages is launched on, else null.
  Stream* stream() const { return stream_.get(); }
  std::byte* arena() const { return arena_.data(); }
  // Behind the arena's slots a device has room for kStagedPages pages of 16 bits of any block,
  // where pages are put together that are stored at fewer bits.
  static constexpr int64_t kStagedPages = 8;
  size_t StagedPage(int64_t index) const {
    return slots_.arena_bytes() + static_cast<size_t>(index) * staged_page_bytes_;
  }

  // What lies in the slots, in the CPU's layout wherever the arena is: the codes or floats of a
  // page, its metadata, the floats [Hkv, tokens, D] of a piece of the sink. Waits for the device,
  // or leaves that to `reads`. The memory given has CodeBytes, MetadataBytes, the bytes of the
  // floats.
  void ReadPage(size_t layer, Side side, const StoredPage& page, std::byte* out,
                PageReads* reads = nullptr) const;
  void ReadMetadata(size_t layer, Side side, const StoredPage& page, std::byte* out,
                    PageReads* reads = nullptr) const;
  void ReadSink(const BlockPages& block, size_t layer, int64_t piece, Side side, std::byte* out,
                PageReads* reads = nullptr) const;
  void WritePage(size_t layer, Side side, const StoredPage& page, const std::byte* in);
  void WriteMetadata(size_t layer, Side side, const StoredPage& page, const std::byte* in);
  void WriteSink(const BlockPages& block, size_t layer, int64_t piece, Side side,
                 const std::byte* in);

 private:
  std::byte* At(SlotHandle slot) const { return arena_.data() + slots_.Offset(slot); }
  // `bits` 0: as they are, else those of a page, whose layout changes on the way.
  FragmentPageShape FragmentShape(size_t layer, Side side) const;
  void ReadBytes(size_t layer, Side side, int bits, const std::byte* from, size_t count,
                 std::byte* out, PageReads* reads) const;
  void WriteBytes(size_t layer, Side side, int bits, const std::byte* in, size_t count,
                  std::byte* to);
  size_t SinkPieceBytes(size_t layer, int64_t piece, Side side) const;
  void DropPage(SequencePages& seq, size_t layer, size_t page, Side side);
  void DropPagesFrom(SequencePages& seq, size_t layer, size_t first);
  void DropSink(SequencePages& seq, size_t layer);
  // Pages are narrowed in waves of so many at most: enough to share out to threads, and few enough
  // that little memory is used that never was before.
  size_t WavePages() const;
  std::optional<UnfitPage> MoveBytes(size_t layer, uint32_t* unfit_word = nullptr);
  // On a device, for changes of which one quantises floats.
  uint32_t* TakeUnfitWord(SequencePages& seq, size_t layer, size_t first_page);
  // All bytes of a slot, to one of the same class.
  void CopySlot(SlotHandle from, SlotHandle to);
  // The same slot where it has one owner; else a new one with the same bytes, this owner's.
  SlotHandle CopyIfShared(SlotHandle slot, int64_t bytes);
  void AccountNarrowed(SequencePages& seq, size_t layer, Side side, int from_bits, int to_bits);
  int64_t PageBytesOf(size_t layer, Side side, int bits) const {
    return SlotsOf(layer, side).page_bytes[WidthIndex(bits)];
  }

  SlotHandle AllocateSlot(int slot_class);
  void Account(SequencePages& seq, size_t layer, int64_t bytes);
  void CountUsed(int64_t bytes);
  // One owner more, or less, of a slot that stands for `bytes` of used_bytes: of a page the slot
  // of its data. `keeps`: the owner is a kept chunk.
  void AddOwner(SlotHandle slot, int64_t bytes, bool keeps = false);
  void DropOwner(SlotHandle slot, int64_t bytes, bool keeps = false);
  void AddPageOwner(const StoredPage& page, int64_t bytes, bool keeps = false);
  void DropPageOwner(const StoredPage& page, int64_t bytes, bool keeps = false);
  int32_t& KeptReferences(SlotHandle slot);
  bool IsUnread(SlotHandle slot) const;

  CacheConfig config_;
  SlotLayout layout_;
  SlotAllocator slots_;
  std::unique_ptr<Stream> stream_;  // Of a device.
  size_t staged_page_bytes_ = 0;    // 0 on the CPU.
  struct UnfitOwner {
    SequencePages* seq = nullptr;
    size_t layer = 0;
    size_t page = 0;  // The first that was quantised.
  };
  std::unique_ptr<UnfitWords<UnfitOwner>> unfit_words_;  // Of a device.
  Buffer arena_;                                         // Staged pages behind it.
  std::vector<std::array<PageCodec, 2>> codecs_;         // By layer and side.
  MovePlan plan_;                                        // Of the change under way.
  std::vector<PageChange> changes_;                      // Of Narrow.
  std::vector<StoredPage*> sharers_;                     // Of changes_.
  AlignedVector<float> values_;
  int64_t used_bytes_ = 0;
  int64_t peak_used_bytes_ = 0;
  int64_t narrowed_bytes_ = 0;
  int64_t unread_bytes_ = 0;
  int64_t kept_bytes_ = 0;
  std::vector<int32_t> kept_references_;  // By slot: owners that are kept chunks.
  int64_t num_columns_ = 0;               // Numbers that were given to pages.
};

}  // namespace pmkvq
