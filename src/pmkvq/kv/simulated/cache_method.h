// A published cache method in the simulated cache: a rule that quantises stored floats in place,
// and a count of the bytes that the method would take. Methods live in research/methods/, one file
// each.
//
// The simulated cache keeps dense floats. After each append the method rewrites stored rows as its
// paper says, or evicts tokens: attention masks them then, and nothing moves, so that a survivor
// keeps its position. Bytes are those that the method counts; nothing is packed. Sixteen-bit values
// are rounded to the cache's float type before the method sees them, and rows that the method wrote
// are rounded to it for attention, as dequantised values are on 16-bit hardware.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <span>
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
  bool block_input = false;      // The block's input (residual stream) of the new tokens.
  bool attention_input = false;  // The same behind the norm of attention.
  // Stored tokens get weights in attention, or are evicted (SimulatedBlock). As slow as `attention`
  // and, like that, not with keys_before_rope.
  bool token_weights = false;
  bool steps = false;   // OnStep is called.
  bool logits = false;  // StepInfo::logits.
  // BytesNow is asked: the bytes depend on more than the number of tokens.
  bool own_bytes = false;
  // AppendedTokens::q is read. It is there all the same wherever a model runs.
  bool queries = false;

  // Whether attention is computed densely, on the method's floats.
  bool dense_attention() const { return attention || token_weights; }
};

// The floats of one block of one sequence, as the method left them, and a copy that attention
// reads.
class SimulatedBlock {
 public:
  explicit SimulatedBlock(const UniformKvGeometry& geometry)
      : num_kv_heads_(geometry.num_kv_heads),
        head_dim_(geometry.head_dim),
        weights_(static_cast<size_t>(geometry.num_kv_heads)) {}

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

  // Weights of stored tokens in attention, for methods that need token_weights. With scores s of
  // all tokens m of a head, and a, c their log weights,
  //   out = sum_m exp(s_m + a_m) v_m / sum_m exp(s_m + c_m).
  // Both are 0 at first; the rows of an append see its tokens with 0. Minus infinity takes a token
  // out of the sum.
  void SetLogWeights(int64_t token, int64_t head, float log_numerator, float log_denominator);
  // Both weights become minus infinity. What Truncate leaves stays evicted.
  void Evict(int64_t token, int64_t head) { SetLogWeights(token, head, kEvicted, kEvicted); }
  // False: evicted.
  bool IsKept(int64_t token, int64_t head) const {
    const Weights& weights = weights_[static_cast<size_t>(head)];
    const auto at = static_cast<size_t>(token);
    return weights.numerators.empty() || weights.numerators[at] != kEvicted ||
           weights.denominators[at] != kEvicted;
  }
  int64_t NumKept(int64_t head) const {
    return num_tokens_ - weights_[static_cast<size_t>(head)].num_evicted;
  }
  // Of all heads.
  int64_t NumKept() const;

 private:
  static constexpr float kEvicted = -std::numeric_limits<float>::infinity();
  // Of one KV head, by token; both arrays are empty while all weights are 0.
  struct Weights {
    std::vector<float> numerators;
    std::vector<float> denominators;
    int64_t num_evicted = 0;
  };

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
  std::vector<Weights> weights_;  // Per KV head.
};

class MethodState;

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
  const float* attention_input = nullptr;  // [count, input_width]

  bool ends_prompt = false;  // They hold the last token of a prompt.
  // The same sequence's state of block layer - 1, which has seen these tokens. Null in block 0.
  MethodState* below = nullptr;
};

// The tokens that a Forward has stored of a sequence.
struct StepInfo {
  int64_t first = 0;
  int64_t count = 0;
  bool ends_prompt = false;
  // Of the last token, where the method needs them and the Forward computed them: not of the chunks
  // of a prompt before its last.
  std::span<const float> logits = {};  // [V]
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
  // Where needs().steps: after all blocks of a Forward, for what concerns the whole sequence.
  // `blocks` and `states` by layer. As OnAppend otherwise.
  virtual void OnStep(const StepInfo& /*step*/, std::span<SimulatedBlock> /*blocks*/,
                      std::span<const std::unique_ptr<MethodState>> /*states*/) const {}

  // Everything that the method keeps of a block with `num_tokens` tokens: codes, metadata, values
  // at full precision, tags, scores. 0 for no tokens; need not grow with every token.
  virtual int64_t BlockBytes(int64_t layer, int64_t num_tokens) const = 0;
  // Of BlockBytes. Budgets are found by looking at `from` + `period` lengths, so both are small.
  virtual ByteGrowth Growth(int64_t layer) const = 0;

  // Where needs().own_bytes: what the method keeps of the block now; BlockBytes is then a bound.
  // It is also asked before OnAppend, when the block has the new tokens and the state has not seen
  // them: that is what the method holds before its rule runs, and counts for the peak, though not
  // beyond the bound (a chunk counts as if its tokens came one by one).
  virtual int64_t BytesNow(int64_t layer, const SimulatedBlock& block,
                           const MethodState* /*state*/) const {
    return BlockBytes(layer, block.num_tokens());
  }
  // A bound for all blocks together at any length up to `num_tokens`, in place of the sum of
  // BlockBytes; it never falls. For methods that share out one budget among blocks; nothing: none.
  virtual std::optional<int64_t> SequenceBytes(int64_t /*num_tokens*/) const {
    return std::nullopt;
  }
};

}  // namespace pmkvq
