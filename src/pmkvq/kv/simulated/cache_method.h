// A published cache method in the simulated cache: a rule that quantises stored floats in place,
// and a count of the bytes that the method would take. Methods live in research/methods/, one file
// each.
//
// The simulated cache keeps dense floats. After each append the method rewrites stored rows as its
// paper says. Bytes are counted by BlockBytes alone; nothing is packed. Sixteen-bit values are
// rounded to the cache's float type before the method sees them, and rows that the method wrote are
// rounded to it for attention, as dequantised values are on 16-bit hardware.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "pmkvq/base/aligned.h"
#include "pmkvq/kernels/attention/attention.h"
#include "pmkvq/kv/kv_types.h"

namespace pmkvq {

// What a method sees besides stored keys and values.
struct MethodNeeds {
  bool keys_before_rope = false;  // Keys are handed over, and damaged, as they are before RoPE.
  // Attention weights of the new tokens. Costs a slower attention; not with keys_before_rope.
  bool attention = false;
  bool block_input = false;  // The block's input (residual stream) of the new tokens.
};

// The floats of one block of one sequence, as the method left them, and a copy that attention
// reads.
class SimulatedBlock {
 public:
  explicit SimulatedBlock(const UniformKvGeometry& geometry)
      : num_kv_heads_(geometry.num_kv_heads), head_dim_(geometry.head_dim) {}

  int64_t num_tokens() const { return num_tokens_; }
  int64_t num_kv_heads() const { return num_kv_heads_; }
  int64_t head_dim() const { return head_dim_; }

  // `count` tokens of one KV head to be rewritten, [count, D]; all of one page (kPageTokens).
  float* Key(int64_t token, int64_t head, int64_t count = 1) {
    MarkChanged(changed_keys_, token, count);
    return Row(keys_, token, head);
  }
  float* Value(int64_t token, int64_t head, int64_t count = 1) {
    MarkChanged(changed_values_, token, count);
    return Row(values_, token, head);
  }
  const float* Key(int64_t token, int64_t head) const { return Row(keys_, token, head); }
  const float* Value(int64_t token, int64_t head) const { return Row(values_, token, head); }

 private:
  friend class SimulatedKvCache;
  using Pages = std::vector<AlignedVector<float>>;              // Each [Hkv, kPageTokens, D].
  using AttendedPages = std::vector<AlignedVector<std::byte>>;  // The same in the float type.
  // Of one page: tokens first .. last - 1 were changed since attention's copy was made.
  struct Changes {
    int64_t first = 0;
    int64_t last = 0;
  };

  size_t Offset(int64_t token, int64_t head) const {
    return static_cast<size_t>((head * kPageTokens + token % kPageTokens) * head_dim_);
  }
  float* Row(Pages& pages, int64_t token, int64_t head) {
    return pages[static_cast<size_t>(token / kPageTokens)].data() + Offset(token, head);
  }
  const float* Row(const Pages& pages, int64_t token, int64_t head) const {
    return pages[static_cast<size_t>(token / kPageTokens)].data() + Offset(token, head);
  }
  static void MarkChanged(std::vector<Changes>& changes, int64_t token, int64_t count) {
    Changes& page = changes[static_cast<size_t>(token / kPageTokens)];
    const int64_t first = token % kPageTokens;
    page = page.first == page.last
               ? Changes{first, first + count}
               : Changes{std::min(page.first, first), std::max(page.last, first + count)};
  }
  void Resize(int64_t num_tokens, size_t float_bytes);

  int64_t num_kv_heads_;
  int64_t head_dim_;
  int64_t num_tokens_ = 0;
  Pages keys_;
  Pages values_;
  AttendedPages attended_keys_;  // After RoPE, also where the method works before it.
  AttendedPages attended_values_;
  std::vector<Changes> changed_keys_;
  std::vector<Changes> changed_values_;
};

// Tokens first .. first + count - 1 of a block, which are stored now.
struct AppendedTokens {
  int64_t first = 0;
  int64_t count = 0;
  const float* q = nullptr;  // [count, H, D], of the new tokens, after RoPE.
  // Null unless the method needs them.
  const double* attention_sums = nullptr;  // [Hkv, first + count]: weights that each stored token
                                           // got, summed over new tokens and the heads of a group.
  const float* block_input = nullptr;      // [count, input_width]
  int64_t input_width = 0;                 // E
};

// What a method remembers of one block of one sequence.
class MethodState {
 public:
  virtual ~MethodState() = default;
  // The block was cut to `num_tokens` tokens.
  virtual void Truncate(int64_t num_tokens) = 0;
};

// How the bytes of a block grow with its tokens: for every n >= `from`,
// BlockBytes(n + period) >= BlockBytes(n). From one token to the next they may fall, when a window
// is flushed. {1, 1}: they never fall.
struct ByteGrowth {
  int64_t from = 1;    // Tokens, >= 1.
  int64_t period = 1;  // Tokens, >= 1.
};

// Immutable: one object serves all blocks and sequences of a cache.
class CacheMethod {
 public:
  virtual ~CacheMethod() = default;

  virtual MethodNeeds needs() const { return {}; }
  // For a new sequence; null for a method whose rule depends on the lengths alone.
  virtual std::unique_ptr<MethodState> NewState(int64_t /*layer*/) const { return nullptr; }

  // Quantises rows that lose full precision by this append. Rows that a Truncate cut off and an
  // append stored again may have been quantised before. All given values are finite. Throws
  // UnfitValues (kv_failure.h) for values whose metadata the method cannot hold: the sequence ends
  // then, and its block and state are not used any more.
  virtual void OnAppend(int64_t layer, const AppendedTokens& tokens, SimulatedBlock& block,
                        MethodState* state) const = 0;

  // Everything that the method keeps of a block with `num_tokens` tokens: codes, metadata, values
  // at full precision, tags, scores. 0 for no tokens; need not grow with every token.
  virtual int64_t BlockBytes(int64_t layer, int64_t num_tokens) const = 0;
  // Of BlockBytes. Budgets are found by looking at `from` + `period` lengths, so both are small.
  virtual ByteGrowth Growth(int64_t layer) const = 0;
};

}  // namespace pmkvq
