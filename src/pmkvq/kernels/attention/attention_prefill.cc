// Prefill: many query rows. Each block of stored tokens is expanded to floats once per block of
// query rows, and both products are matrix products. The chunk's own keys and values are used
// where they lie.
#include <algorithm>
#include <limits>

#include "pmkvq/kernels/attention/attention_internal.h"
#include "pmkvq/kernels/gemm/gemm.h"

namespace pmkvq::internal {
namespace {

// Query rows (token, head) of one work item: enough to make expansion cheap beside the products.
constexpr int64_t kQueryRows = 256;
constexpr int64_t kMinQueryTokens = 16;

// Memory of one thread.
struct PrefillScratch {
  PrefillScratch(const AttentionShape& shape, std::byte* memory) {
    const auto take = [&](int64_t count, size_t size) {
      std::byte* taken = memory == nullptr ? nullptr : memory + num_bytes;
      num_bytes += static_cast<size_t>(
          RoundUpTo(count * static_cast<int64_t>(size), static_cast<int64_t>(kAlignment)));
      return taken;
    };
    const auto take_floats = [&](int64_t count) {
      return reinterpret_cast<float*>(take(count, sizeof(float)));
    };
    const int64_t rows = QueryTokens(shape) * QueryHeads(shape);
    q = take_floats(rows * shape.head_dim);
    out = take_floats(rows * shape.head_dim);
    scores = take_floats(rows * kBlockTokens);
    k = take_floats(kBlockTokens * shape.head_dim);
    v = take_floats(kBlockTokens * shape.head_dim);
    max = take_floats(rows);
    sum = take_floats(rows);
    rescale = take_floats(rows);
    visible = reinterpret_cast<int64_t*>(take(rows, sizeof(int64_t)));
    if (shape.sliding_window > 0) {
      hidden = reinterpret_cast<int64_t*>(take(rows, sizeof(int64_t)));
    }
  }
  float* q;                   // [rows, D]
  float* out;                 // [rows, D]
  float* scores;              // [rows, 128]
  float* k;                   // [128, D], or [D, 128]
  float* v;                   // [128, D]
  float* max;                 // [rows]
  float* sum;                 // [rows]
  float* rescale;             // [rows]
  int64_t* visible;           // [rows]
  int64_t* hidden = nullptr;  // [rows], with a sliding window.
  size_t num_bytes = 0;
};

// Stored rows to floats, out [count, D]; of keys per channel [D, 128].
void ExpandRows(const AttentionShape& shape, const TensorRows& rows, int64_t count, float* out) {
  if (rows.axis == QuantAxis::kChannel) {
    DequantizeGroups({kPageTokens, rows.bits, shape.metadata_type},
                     reinterpret_cast<const uint8_t*>(rows.data), rows.mins, rows.ranges,
                     shape.head_dim, out);
    return;
  }
  if (rows.bits == 16) return ConvertRows(rows, count, shape.head_dim, out);
  const GroupFormat format{shape.group, rows.bits, shape.metadata_type};
  DequantizeGroups(format, reinterpret_cast<const uint8_t*>(rows.data), rows.mins, rows.ranges,
                   count * (shape.head_dim / shape.group), out);
}

class BlockAttention {
 public:
  BlockAttention(const AttentionShape& shape, const SequenceBlock& sequence,
                 const AttentionPlan::QueryBlock& block, std::byte* memory)
      : shape_(shape),
        sequence_(sequence),
        block_(block),
        heads_(QueryHeads(shape)),
        rows_(block.num_tokens * heads_),
        scratch_(shape, memory) {}

  void Run() {
    for (int64_t r = 0; r < rows_; ++r) {
      std::copy_n(sequence_.q + RowOffset(r), shape_.head_dim, scratch_.q + r * shape_.head_dim);
    }
    std::fill_n(scratch_.out, rows_ * shape_.head_dim, 0.0f);
    std::fill_n(scratch_.max, rows_, -std::numeric_limits<float>::infinity());
    std::fill_n(scratch_.sum, rows_, 0.0f);
    int64_t first = sequence_.num_unseen - sequence_.num_stored;
    for (auto p = static_cast<size_t>(sequence_.first_seen_page); p < sequence_.tokens.size();
         ++p) {
      AttendPage(sequence_.pages[p], sequence_.tokens[p], first);
      first += sequence_.tokens[p].num_tokens;
    }
    AttendChunk();
    for (int64_t r = 0; r < rows_; ++r) {
      float* out = sequence_.out + RowOffset(r);
      for (int64_t i = 0; i < shape_.head_dim; ++i) {
        out[i] = scratch_.out[r * shape_.head_dim + i] / scratch_.sum[r];
      }
    }
  }

 private:
  // Where row (token, head) lies in q and out.
  int64_t RowOffset(int64_t r) const {
    const int64_t token = block_.first_token + r / heads_;
    return (token * shape_.num_heads + block_.first_head + r % heads_) * shape_.head_dim;
  }

  // Whether no row of the block sees a token of these: positions count from the chunk's first row.
  bool AreHidden(int64_t first, int64_t count) const {
    return HiddenTokens(shape_.sliding_window, block_.first_token, first, count) == count;
  }

  void AttendPage(const KvPageView& page, const PageTokens& tokens, int64_t first) {
    const TensorRows k = PageRows(shape_, page.k, tokens.capacity, block_.kv_head);
    const TensorRows v = PageRows(shape_, page.v, tokens.capacity, block_.kv_head);
    for (int64_t t = 0; t < tokens.num_tokens; t += kBlockTokens) {
      const int64_t count = std::min(kBlockTokens, tokens.num_tokens - t);
      if (AreHidden(first + t, count)) continue;
      ExpandRows(shape_, k.From(t, shape_), count, scratch_.k);
      ExpandRows(shape_, v.From(t, shape_), count, scratch_.v);
      std::fill_n(scratch_.visible, rows_, count);
      const bool by_channel = k.axis == QuantAxis::kChannel;
      HideTokens(first + t, count);
      AttendTokens({scratch_.k, by_channel ? kPageTokens : shape_.head_dim, by_channel}, scratch_.v,
                   shape_.head_dim, count);
    }
  }

  void HideTokens(int64_t first, int64_t count) {
    if (scratch_.hidden == nullptr) return;
    for (int64_t r = 0; r < rows_; ++r) {
      scratch_.hidden[r] =
          HiddenTokens(shape_.sliding_window, block_.first_token + r / heads_, first, count);
    }
  }

  // The chunk's own tokens: row t sees rows 0..t.
  void AttendChunk() {
    const int64_t stride = shape_.num_kv_heads * shape_.head_dim;
    const int64_t end = block_.first_token + block_.num_tokens;
    for (int64_t m = 0; m < end; m += kBlockTokens) {
      const int64_t count = std::min(kBlockTokens, end - m);
      if (AreHidden(m, count)) continue;
      HideTokens(m, count);
      for (int64_t r = 0; r < rows_; ++r) {
        scratch_.visible[r] =
            std::clamp<int64_t>(block_.first_token + r / heads_ - m + 1, 0, count);
      }
      const int64_t offset = m * stride + block_.kv_head * shape_.head_dim;
      AttendTokens({sequence_.k_new + offset, stride, false}, sequence_.v_new + offset, stride,
                   count);
    }
  }

  struct ExpandedKeys {
    const float* data;
    int64_t stride;
    bool by_channel;  // [D, 128] instead of [128, D].
  };

  void AttendTokens(const ExpandedKeys& k, const float* v, int64_t v_stride, int64_t count) {
    const int64_t dim = shape_.head_dim;
    BlasGemm<float>(false, !k.by_channel, rows_, count, dim, shape_.scale, scratch_.q, dim, k.data,
                    k.stride, 0.0f, scratch_.scores, kBlockTokens);
    OnlineSoftmax(rows_, count, kBlockTokens, {scratch_.visible, scratch_.hidden}, scratch_.scores,
                  scratch_.max, scratch_.sum, scratch_.rescale);
    ScaleRows(rows_, dim, dim, scratch_.rescale, scratch_.out);
    BlasGemm<float>(false, false, rows_, dim, count, 1.0f, scratch_.scores, kBlockTokens, v,
                    v_stride, 1.0f, scratch_.out, dim);
  }

  const AttentionShape& shape_;
  const SequenceBlock& sequence_;
  const AttentionPlan::QueryBlock& block_;
  const int64_t heads_;
  const int64_t rows_;
  const PrefillScratch scratch_;
};

}  // namespace

int64_t QueryHeads(const AttentionShape& shape) {
  return shape.whole_heads > 0 ? 1 : shape.num_heads / shape.num_kv_heads;
}

int64_t QueryTokens(const AttentionShape& shape) {
  return std::max(kMinQueryTokens, kQueryRows / QueryHeads(shape));
}

size_t PrefillScratchBytes(const AttentionShape& shape) {
  return PrefillScratch(shape, nullptr).num_bytes;
}

void RunQueryBlock(const AttentionShape& shape, const SequenceBlock& sequence,
                   const AttentionPlan::QueryBlock& block, std::byte* scratch) {
  BlockAttention(shape, sequence, block, scratch).Run();
}

}  // namespace pmkvq::internal
