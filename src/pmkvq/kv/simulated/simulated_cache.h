// A cache for comparisons: dense floats that a published method quantises in place as its paper
// says, and an exact count of the bytes that the method would take. Its real memory is larger: it
// holds four bytes a value for the method, and two (or four, --kv-dtype f32) for attention.
#pragma once

#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "pmkvq/kernels/attention/attention.h"
#include "pmkvq/kernels/rope/rope.h"
#include "pmkvq/kv/forward_pass.h"
#include "pmkvq/kv/kv_store.h"
#include "pmkvq/kv/packed/page_codec.h"
#include "pmkvq/kv/simulated/cache_method.h"

namespace pmkvq {

struct SimulatedConfig {
  UniformKvGeometry geometry;
  DType float_type = DType::kF16;  // Of values at full precision: kF16, kBF16 or kF32.
  int64_t max_sequences = 1;
  std::vector<int64_t> budget_bytes;  // Per block, for one sequence. Size L.
  const RopeTable* rope = nullptr;    // For methods that work on keys before RoPE; not owned.
  int num_threads = 1;
};

// Most bytes that a block takes at any length of 1 .. num_tokens tokens. Bytes may fall with a
// token (a window that is flushed), but the sequence passes through the larger lengths first. Costs
// from + period calls of BlockBytes (ByteGrowth), for any number of tokens.
int64_t MostBlockBytes(const CacheMethod& method, int64_t layer, int64_t num_tokens);

// Per block, what `num_tokens` tokens may take: MostBlockBytes, or the method's bound for the whole
// sequence, shared out evenly.
std::vector<int64_t> BudgetsFor(const CacheMethod& method, int64_t num_layers, int64_t num_tokens);

// Throws InvalidInput naming the option: head_dim or a budget that does not hold one token.
void ValidateSimulatedConfig(const SimulatedConfig& config, const CacheMethod& method);

// Differences to the packed cache: methods have fixed rates, so a spent budget is final (Reserve
// never halves); there are no pages to count in the statistics. The budget rule is the same for
// every chunk size: a sequence may grow to n tokens when MostBlockBytes(n) fits in every block, or,
// where the method bounds the sequence (CacheMethod::SequenceBytes), that bound fits all budgets
// together. What Truncate cuts reads as it did and may count at full precision again.
class SimulatedKvCache final : public KvStore {
 public:
  SimulatedKvCache(const SimulatedConfig& config, std::shared_ptr<const CacheMethod> method);

  std::optional<SequenceId> Open() override;
  void Close(SequenceId seq) override;
  [[nodiscard]] ReserveResult Reserve(SequenceId seq, int64_t num_tokens) override;
  void BeginForward(const Batch& batch) override;
  KvExtraNeeds ExtraNeeds() const override {
    return {needs_.keys_before_rope, needs_.block_input, needs_.attention_input, needs_.logits};
  }
  void OfferExtras(int64_t layer, const KvExtras& extras) override;
  void OfferLogits(SequenceId seq, std::span<const float> logits) override;
  const KvFailure* FailureOf(SequenceId seq) const override;
  void AppendAndAttend(int64_t layer, const float* q, const float* k, const float* v,
                       float* out) override;
  void EndForward() override;
  void AbandonForward() override { forward_.Abandon(); }
  void SwapForwards() override { std::swap(forward_, set_aside_); }
  void Truncate(SequenceId seq, int64_t num_tokens) override;

  int64_t NumTokens(SequenceId seq) const override { return At(seq).num_tokens; }
  KvSequenceStats SequenceStats(SequenceId seq) const override;
  KvLayerStats LayerStats(SequenceId seq, int64_t layer) const override;
  // arena_bytes: the floats held now.
  KvStoreStats StoreStats() const override;
  std::vector<HalvingEvent> TakeHalvingEvents() override { return {}; }

  const CacheMethod& method() const { return *method_; }
  // Stored floats, for tests and inspection. Before RoPE where the method works there.
  const SimulatedBlock& Block(SequenceId seq, int64_t layer) const;

 private:
  struct Sequence {
    bool is_open = false;
    int64_t num_tokens = 0;
    int64_t reserved_tokens = 0;
    int64_t peak_bytes = 0;
    // Of the Forward under way, where needs_.own_bytes: before each block's rule ran.
    int64_t bytes_before_rules = 0;
    std::span<const float> logits;     // Likewise, where needs_.logits; empty: none.
    std::optional<KvFailure> failure;  // The first thing that the cache could not hold.
    std::vector<SimulatedBlock> blocks;
    std::vector<std::unique_ptr<MethodState>> states;
  };
  struct Chunk {
    Sequence* seq = nullptr;
    int64_t num_tokens = 0;
    int64_t first_row = 0;
    bool ends_prompt = false;
  };
  // q, k, v, out of one chunk's rows.
  struct Rows {
    const float* q;
    const float* k;
    const float* v;
    float* out;
  };

  Sequence& At(SequenceId id);
  const Sequence& At(SequenceId id) const;
  bool IsInForward(const Sequence& seq) const {
    return forward_.Holds(seq) || set_aside_.Holds(seq);
  }
  int64_t BytesOf(const Sequence& seq, int64_t layer) const;
  int64_t BytesOf(const Sequence& seq) const;
  int64_t MostBytes(size_t layer, int64_t num_tokens);
  bool Fits(int64_t num_tokens);
  int64_t budget_bytes() const;
  void CountPeak(const Chunk& chunk);
  void TakeStep(const Chunk& chunk);
  // Tokens of all KV heads that attention reads, of one block.
  static double KeptShare(const SimulatedBlock& block);
  Rows RowsOf(const Chunk& chunk, const float* q, const float* k, const float* v, float* out) const;
  // The following set the failure of the chunk's sequence. The values of a chunk's rows, each
  // [num_tokens, width], are finite, or fit the float type as well.
  void CheckRows(const Chunk& chunk, int64_t layer, const Rows& rows) const;
  void CheckAttention(const Chunk& chunk, int64_t layer) const;
  void CheckFinite(const Chunk& chunk, int64_t layer, const char* name, const float* values,
                   int64_t width) const;
  void CheckFits(const Chunk& chunk, int64_t layer, const char* name, const float* values) const;
  void Fail(const Chunk& chunk, int64_t layer, int64_t row, const std::string& message) const;
  void AttendPaged(size_t layer, const float* q, const float* k, const float* v, float* out);
  void AttendDense(const Chunk& chunk, const SimulatedBlock& block, const Rows& rows);
  void AttendDenseHead(const Chunk& chunk, const SimulatedBlock& block, const Rows& rows,
                       int64_t kv_head);
  void WeightRows(const SimulatedBlock::Weights& weights, int64_t num_rows, int64_t stored,
                  int64_t num_tokens, double* sums);
  void StoreRows(const Chunk& chunk, int64_t layer, const Rows& rows);
  void CopyForAttention(SimulatedBlock& block);
  void RotateKeys(int64_t first, int64_t count, std::vector<float>& keys) const;

  SimulatedConfig config_;
  std::shared_ptr<const CacheMethod> method_;
  MethodNeeds needs_;
  AttentionShape attention_shape_;
  std::vector<Sequence> sequences_;
  std::vector<std::vector<int64_t>> most_bytes_;  // Per block, by length; grows as asked.

  ForwardPass<Chunk> forward_;    // The Forward under way.
  ForwardPass<Chunk> set_aside_;  // SwapForwards
  KvExtras extras_;
  // Of AttendPaged: per chunk that is attended.
  std::vector<std::vector<PageTokens>> page_tokens_;
  std::vector<std::vector<KvPageView>> views_;
  std::vector<const KvPageView*> first_views_;
  std::vector<AttentionSequence> attention_sequences_;
  AttentionPlan attention_plan_;
  AttentionScratch attention_scratch_;
  PageCodec codec_;
  // Of the dense path, one KV head: R = rows x heads of the group.
  std::vector<float> queries_;     // [R, D]
  std::vector<float> scores_;      // [R, tokens]
  std::vector<float> chunk_rows_;  // [rows, D], the chunk's own keys or values.
  std::vector<float> head_out_;    // [R, D]
  std::vector<float> rotated_;
  std::vector<float> read_;             // What attention is to read of one head and page.
  std::vector<double> attention_sums_;  // [Hkv, tokens] of the chunk under way.
};

}  // namespace pmkvq
