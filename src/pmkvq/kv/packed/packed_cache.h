// The product: a cache of real packed codes in one fixed arena. Runs pm-kvq, static-8|4|2, fp16.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <unordered_map>
#include <utility>
#include <vector>

#include "pmkvq/kernels/attention/attention.h"
#include "pmkvq/kernels/attention/latent_attention.h"
#include "pmkvq/kv/cache_config.h"
#include "pmkvq/kv/forward_pass.h"
#include "pmkvq/kv/kv_store.h"
#include "pmkvq/kv/packed/device_side.h"
#include "pmkvq/kv/packed/halving_steps.h"
#include "pmkvq/kv/packed/page_store.h"
#include "pmkvq/kv/packed/policy/pool_pressure.h"
#include "pmkvq/kv/packed/prefix_tree.h"

namespace pmkvq {

// Throws InvalidInput (ValidateCacheConfig), IoError (arena memory refused), and for a device
// Unsupported (no code for such pages, naming them) and DeviceError.
//
// Arena: the pool's bytes, or max_sequences * sum(budget_bytes), rounded up to extents per
// sequence, plus the extents that partly filled slot classes may waste; allocated once, never
// exceeded. For f16 the bits of an appended value are its rounding to f16, so that pm-kvq equals
// fp16 until the budget bites.
std::unique_ptr<KvStore> MakePackedKvCache(const CacheConfig& config);

// What MakePackedKvCache makes. All blocks with a cache have the same pages of a sequence, only
// their sizes and widths differ; a block with a sliding window has given up the oldest, when a page
// was opened and no token to come could attend to them. So a token that opens no page costs O(1) in
// Reserve and O(1) per block around Attend, without heap allocation. OldestFirst decides the widths
// for the next page, O(pages), with the token after the one that opened a page.
class PackedKvCache final : public KvStore {
 public:
  explicit PackedKvCache(const CacheConfig& config);

  const KeyScales* key_scales() const override { return config_.key_scales.get(); }
  DeviceKvStore* OnDevice() override { return device_.get(); }
  std::optional<SequenceId> Open() override;
  void Close(SequenceId seq) override;
  // Closed pages and a full sink are shared; the open page is copied. With budgets each sequence
  // counts shared pages as its own, so that its budget does not depend on others, and halves them
  // for itself. In a pool they count once, and are halved once for all who have them; pages are
  // halved to make room for what is copied, and there is no copy where that does not do, nor of a
  // sequence that follows a history.
  std::optional<SequenceId> Fork(SequenceId seq) override;
  std::optional<SequenceImage> ImageOf(SequenceId seq) const override;
  std::optional<SequenceId> OpenImage(const SequenceImage& image,
                                      const std::string& where) override;
  [[nodiscard]] ReserveResult Reserve(SequenceId seq, int64_t num_tokens) override;
  [[nodiscard]] int64_t ReserveOneByOne(SequenceId seq, int64_t num_tokens) override;
  [[nodiscard]] ReserveResult ReserveAll(std::span<const BatchChunk> chunks) override;
  void SetPoolTerms(SequenceId seq, const KvPoolTerms& terms) override { At(seq).terms = terms; }
  void FollowHistory(SequenceId seq, std::vector<HalvingEvent> events) override;
  void KeepPrefix(SequenceId seq, std::string_view salt, std::span<const int32_t> tokens) override;
  int64_t TakePrefix(SequenceId seq, std::string_view salt,
                     std::span<const int32_t> tokens) override;
  void BeginForward(const Batch& batch) override;
  const KvFailure* FailureOf(SequenceId seq) const override;
  void AppendAndAttend(int64_t layer, const float* q, const float* k, const float* v,
                       float* out) override;
  // As AppendAndAttend, without attending: a cache of any depth in the time that storing takes, for
  // benchmarks and tests.
  void Append(int64_t layer, const float* k, const float* v);
  void EndForward() override;
  void AbandonForward() override { forward_.Abandon(); }
  void SwapForwards() override { std::swap(forward_, set_aside_); }
  int64_t LongestTruncation(SequenceId seq, int64_t num_tokens) const override;
  // Also drops a reservation whose Forward has not begun.
  void Truncate(SequenceId seq, int64_t num_tokens) override;

  int64_t NumTokens(SequenceId seq) const override;
  KvSequenceStats SequenceStats(SequenceId seq) const override;
  KvLayerStats LayerStats(SequenceId seq, int64_t layer) const override;
  KvStoreStats StoreStats() const override;
  std::vector<HalvingEvent> TakeHalvingEvents() override;

  // Of the arena; for tests.
  int64_t num_free_extents() const { return store_.slots().num_free_extents(); }

  // The stored values of one block as they read now, k_out and v_out [NumTokens, Hkv, D]; of a
  // latent block [NumTokens, r] and [NumTokens, dr]. For tests and inspection: slow, allocates.
  void ReadTokens(SequenceId seq, int64_t layer, float* k_out, float* v_out) const;
  // The same of a cache on a device, launched on its stream: see DeviceTokens. Not in a Forward.
  // Returns how many tokens behind the sink a window has freed.
  int64_t LaunchRead(SequenceId seq, int64_t layer, const DeviceTokens& tokens);
  // In a Forward on a device: see DeviceSide::LaunchGiven.
  void LaunchGiven(int64_t layer, const DeviceGivenRows& rows);
  // Of all pages of one block, oldest first; for tests and inspection.
  std::vector<PageWidths> WidthsOfPages(SequenceId seq, int64_t layer) const;

 private:
  // What OldestFirst does before a sequence opens its next page, and when (packed_cache_ahead.cc).
  struct AheadStep {
    size_t layer = 0;
    NarrowStep narrow;
    int64_t tokens_before = 0;  // How many tokens before the one that opens the page.
  };
  struct NextPage {
    bool is_planned = false;
    int64_t opened_at = 0;                        // Tokens that are stored then.
    std::vector<std::vector<PageWidths>> widths;  // Of all pages then; empty: there is no room.
    std::vector<AheadStep> steps;                 // In the order in which they are done.
    size_t num_done = 0;
  };
  // What halves the pages of a sequence, in place of the pool's need.
  struct Script {
    std::vector<HalvingEvent> events;
    size_t next = 0;  // That has not been carried out.
  };
  struct Sequence : SequencePages {
    bool is_open = false;
    int64_t num_tokens = 0;       // Stored.
    int64_t reserved_tokens = 0;  // Made room for, not stored yet.
    NextPage next;
    KvPoolTerms terms;      // Of a pool.
    int64_t opened_as = 0;  // How many were opened before.
    std::optional<Script> script;
  };
  struct Chunk {
    Sequence* seq = nullptr;
    int64_t num_tokens = 0;
    int64_t first_row = 0;  // In the batch's rows.
    bool one_by_one = false;
    int64_t num_before = 0;  // Tokens of the sequence before this Forward.
  };
  // What is attended and stored at once: all chunks, but of those with one_by_one the first row
  // only; or the next row of each of these. The same in every block.
  struct AttentionStep {
    std::vector<Chunk> parts;
    std::vector<AttentionPlan> plans;      // Of attention_shapes_.
    std::vector<LatentPlan> latent_plans;  // Of latent_shapes_.
  };
  struct Pass : ForwardPass<Chunk> {
    bool has_failed_chunk = false;
    bool is_planned = false;  // Planned anew when a chunk fails.
    std::vector<AttentionStep> steps;
    size_t num_steps = 0;  // The others are kept for their memory.
  };
  // Rows of one AppendAndAttend.
  struct Rows {
    const float* q = nullptr;
    const float* k = nullptr;
    const float* v = nullptr;
    float* out = nullptr;
  };

  // Of one block with a cache.
  struct BlockShape {
    bool is_latent = false;
    size_t plan = 0;       // Of attention_shapes_, or of latent_shapes_.
    int64_t head_dim = 0;  // D; r
    int64_t q_dim = 0;     // H * D; H * (r + dr)
    int64_t out_dim = 0;   // H * D; H * r
    // Values of a token of each stream, by Side: Hkv * D; r and dr.
    std::array<int64_t, 2> stream_dims{};
  };

  Sequence& At(SequenceId id);
  const Sequence& At(SequenceId id) const;
  SequenceId IdOf(const Sequence& seq) const;
  bool IsInForward(const Sequence& seq) const {
    return forward_.Holds(seq) || set_aside_.Holds(seq);
  }
  // Pages of each block with a cache, open one included.
  size_t NumPagesOf(const Sequence& seq) const {
    return seq.blocks[cached_layers_[0]].pages.size();
  }

  // packed_cache.cc: Forward.
  void BeginOnDevice();
  void EndOnDevice();
  std::span<float> Rotated(const float* x, int64_t count, int64_t head_dim,
                           AlignedVector<float>& memory) const;
  Rows Prepared(size_t layer, int64_t num_rows, const Rows& rows);
  void FindUnfitValues(int64_t layer, const float* k, const float* v);
  void PlanSteps();
  void PlanStep(int64_t token, AttentionStep& step);
  size_t NumViews(int64_t num_tokens) const;
  void RebuildViews(Sequence& seq, size_t layer) const;
  const KvPageView* CurrentViews(Sequence& seq, size_t layer) const;
  void AttendAndStore(size_t layer, const Rows& rows, const AttentionStep& step);
  void StoreChunk(const Chunk& chunk, size_t layer, const float* k, const float* v);
  void StoreRows(const Chunk& chunk, size_t layer, Side side, const float* rows);
  // packed_cache_latent.cc
  Rows PreparedLatents(size_t layer, int64_t num_rows, const Rows& rows);
  void RestoreLatents(size_t layer, int64_t num_rows, float* out) const;
  void StoreClosingPage(Sequence& seq, size_t layer, size_t page, Side side, const float* rows,
                        int64_t num_rows, int64_t first);

  // packed_cache_reserve.cc: everything that changes page tables.
  bool DecideAllWidths(const Sequence& seq, int64_t num_tokens, int64_t pages_after);
  bool DecideWidths(const Sequence& seq, size_t layer, int64_t num_tokens, int64_t pages_after);
  size_t FirstSeen(size_t layer, int64_t num_tokens) const {
    return static_cast<size_t>(FirstSeenPage(config_, layer, num_tokens));
  }
  void ApplyWidths(Sequence& seq, size_t layer, int64_t pages_after);
  using NarrowingStart = std::chrono::steady_clock::time_point;
  NarrowingStart StartNarrowing();
  using Readers = std::vector<Sequence*>;
  void FinishNarrowing(Sequence& seq, size_t layer, NarrowingStart start) {
    FinishNarrowing(Readers{&seq}, layer, start);
  }
  void FinishNarrowing(const Readers& readers, size_t layer, NarrowingStart start);
  void NarrowStepByStep(const Readers& readers, size_t layer);
  void AddNarrowSteps(const PagePair& pair, size_t page, const PageWidths& widths,
                      const PageWidths& closed_at);
  void MakeNewPages(Sequence& seq, size_t layer, size_t pages_after);
  void RestoreMovedRows(Sequence& seq);
  void CutPages(Sequence& seq, int64_t num_tokens);
  void UpdatePresentWidths(BlockPages& block, size_t layer) const;
  BlockLimits LimitsOf(size_t layer) const;

  // packed_cache_image.cc: sequences as plain data.
  void CheckImage(const SequenceImage& image, const std::string& where) const;
  void CheckImageBlock(const SequenceImage& image, size_t layer, const std::string& where) const;
  void CheckImageSteps(const SequenceImage& image, const std::string& where) const;

  // packed_cache_pool.cc: sequences that share a pool.
  struct Opening {  // A sequence whose chunk opens pages.
    Sequence* seq = nullptr;
    int64_t num_tokens = 0;  // After the chunk.
    int64_t pages_after = 0;
    std::optional<size_t> table;  // Of pool_tables_.
    // Of a sequence that follows a history: its table, in script_tables_, and Script::next then.
    std::optional<size_t> script;
    size_t script_next = 0;
  };
  // Widths of all pages, by block with a cache.
  using ScriptTable = std::vector<std::vector<PageWidths>>;
  void MakePressure();
  int64_t BytesAfter(const Opening& opening) const;
  PageWidths WidthsAsDecided(const Opening& opening, size_t index, size_t page,
                             size_t num_closed) const;
  PageWidths WidthsAfter(const Sequence& seq, size_t layer, size_t page, size_t num_closed) const;
  size_t NumClosedAfter(size_t layer, int64_t num_tokens, int64_t pages_after) const;
  bool GivesPages(const Sequence& seq) const;
  void FillPoolTables();
  PoolSequence TableOf(const Sequence& seq) const;
  PoolSequence TableAfter(const Opening& opening) const;
  int64_t OpeningSoonBytes() const;
  void PayForReading(int64_t excess_bytes, int64_t most_read_bytes);
  bool PayInPool(int64_t new_bytes);
  int64_t ExcessOfReading(int64_t new_bytes) const;
  void NarrowTo(const Readers& readers, const PoolSequence& before, const PoolSequence& after);
  void NarrowBeforeOpening(const Opening& opening);
  void OpenPages(const Opening& opening);
  void DecideAsTable(const Opening& opening, size_t index);

  // packed_cache_shared.cc: pages that sequences of a pool share.
  size_t NumSharedByFork(const Sequence& seq) const;
  const Opening* OpeningOf(const Sequence& seq) const;
  const PagePair& PairOf(const Readers& readers, size_t layer, size_t page) const;
  bool IsNarrowerThan(const Readers& readers, size_t page, size_t other) const;
  void FindColumnReaders();
  void TrimColumns(Sequence& seq);
  void AddSharedTables();
  std::optional<PoolSequence> SharedTable(const Readers& readers, size_t begin, size_t end) const;
  KeptChunk* KeptChunkOf(const Sequence& seq, size_t page);
  int64_t SharedFreedBytes(const Opening& opening) const;

  // packed_cache_history.cc: sequences that follow a history.
  ScriptTable ScriptTableOf(const Sequence& seq, const Opening* opening) const;
  size_t AddScripted(Sequence& seq, const Opening* opening, ScriptTable& table) const;
  void NarrowAsScripted(Sequence& seq);

  // packed_cache_prefix.cc: prompts that a pool keeps.
  static double NowSeconds();
  int64_t HalveIdlePrefixes(int64_t bytes, double now_s);
  bool IsWorthKeeping(const KeptChunk& kept) const;
  int64_t DropPrefix(PrefixTree::NodeId leaf);
  int64_t DropPrefixes(int64_t bytes);
  int64_t DropAllPrefixes();
  int64_t GiveUpPrefixes(int64_t bytes, double now_s);
  bool MakePrefixRoom(int64_t new_bytes, int64_t more_kept, double now_s);
  void NoteColumns(const KeptChunk& kept, PrefixTree::NodeId node);
  void ForgetColumns(const KeptChunk& kept);
  void TellTakenWidths(const Sequence& seq);
  size_t NumWidePages(const Sequence& seq) const;

  // packed_cache_ahead.cc: halving before a page is opened.
  void NarrowAhead(Sequence& seq, int64_t num_tokens);
  void PlanNextPage(Sequence& seq, int64_t tokens_before);
  int64_t TokensToNextStep(const Sequence& seq) const;

  CacheConfig config_;
  std::vector<AttentionShape> attention_shapes_;  // All that occur, each once.
  std::vector<LatentShape> latent_shapes_;
  std::vector<BlockShape> shapes_;     // By layer; empty ones of blocks without cache.
  std::vector<size_t> cached_layers_;  // The blocks with a cache; the others have no pages.
  PageStore store_;
  std::unique_ptr<DeviceSide> device_;  // Where the pages lie on a device.
  std::vector<Sequence> sequences_;
  Pass forward_;    // The Forward under way.
  Pass set_aside_;  // SwapForwards

  // Of PlanStep.
  std::vector<PageTokens> page_tokens_;
  std::vector<AttentionSequence> attention_sequences_;

  std::vector<const KvPageView*> first_views_;  // Of a block, by part.
  AttentionScratch attention_scratch_;
  AlignedVector<float> rotated_q_, rotated_k_, rotated_v_;  // Of a Forward's rows.

  std::vector<std::vector<PageWidths>> decided_;  // Per block: widths of all pages after Reserve.
  std::vector<PageWidths> closed_pages_;          // A policy's working copy.
  std::vector<NarrowStep> narrow_steps_;          // Of a block.
  HalvingSteps steps_;                            // Of a block.
  std::vector<HalvingEvent> halving_events_;

  // Of a pool.
  std::unique_ptr<PoolPressure> pressure_;
  WaterLevel water_level_;
  int64_t num_opened_ = 0;
  int64_t column_bytes_ = 0;               // 128 tokens of all blocks at 16 bits.
  std::vector<Opening> openings_;          // Of a reservation.
  std::vector<PoolSequence> pool_tables_;  // Of sequences whose pages may be halved; others: none.
  std::vector<PoolSequence> tables_before_;
  std::vector<ScriptTable> script_tables_;
  std::vector<Readers> table_owners_;                             // By pool table.
  std::unordered_map<int64_t, Readers> column_readers_;           // By number of a page.
  std::unique_ptr<PrefixTree> prefixes_;                          // Null: no prompt is kept.
  std::unordered_map<int64_t, PrefixTree::NodeId> column_nodes_;  // Which chunk keeps a page.
  int64_t prefix_hits_ = 0;
  int64_t prefix_hit_tokens_ = 0;
};

}  // namespace pmkvq
