// Absorbed attention of one item: some query rows over a run of pages and the chunk's own tokens.
//
// Latents are expanded to floats a tile at a time, once for all rows, and the tile serves as keys
// and as values. So the time goes into two matrix products, H (2 r + dr) multiply-adds for a stored
// token; expanding its r + dr values costs a few operations for each 16.
#include <algorithm>
#include <limits>

#include "pmkvq/kernels/attention/attention_internal.h"
#include "pmkvq/kernels/attention/latent_attention_internal.h"
#include "pmkvq/kernels/attention/read_ahead.h"
#include "pmkvq/kernels/kv_quant/kv_quant_common.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "pmkvq/kernels/attention/latent_kernel.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
// After foreach_target.h.
#include "hwy/contrib/math/math-inl.h"
#include "pmkvq/kernels/attention/latent_tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pmkvq::internal::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

constexpr float kLowest = std::numeric_limits<float>::lowest();

// Memory of an item, and its number of rows, padded to full vectors of every instruction set.
struct Memory {
  Memory(const LatentShape& shape, const LatentLayout& layout, int64_t num_rows, float* memory)
      : row_stride(RoundUpTo(num_rows, LatentLayout::kLine)) {
    const auto take = [&](int64_t count) {
      float* taken = memory;
      memory += count;
      return taken;
    };
    tile = take(layout.tile_floats());
    queries = take(layout.query_floats(shape));
    scores = take(LatentLayout::kScoreFloats);
    out = take(layout.out_floats());
    max = take(kLatentRows);
    sum = take(kLatentRows);
    factors = take(kLatentRows);
  }
  int64_t row_stride;
  float* tile;     // Panels of the groups of c, then one of k_r.
  float* queries;  // [r + dr, row_stride]
  float* scores;   // [kLatentTileTokens, row_stride]
  float* out;      // [row_stride, layout.out_stride()], group after group.
  float* max;      // [row_stride]
  float* sum;
  float* factors;  // What sums so far are multiplied with.
};

// Some tokens of one head of a page.
struct GroupRows {
  const std::byte* data = nullptr;
  const std::byte* mins = nullptr;
  const std::byte* ranges = nullptr;
  int64_t row_bytes = 0;
  int64_t metadata_bytes = 0;  // Of all minima, or ranges.
};

// `head` of c; of k_r 0.
GroupRows RowsOf(const LatentShape& shape, const KvTensorView& tensor, int64_t group,
                 int64_t capacity, int64_t head, int64_t first, int64_t count) {
  GroupRows rows;
  const bool is_float = tensor.bits == 16;
  rows.row_bytes = is_float ? group * static_cast<int64_t>(SizeOf(shape.float_type))
                            : PackedGroupBytes(group, tensor.bits);
  rows.data = tensor.data + (head * capacity + first) * rows.row_bytes;
  if (is_float) return rows;
  const auto size = static_cast<int64_t>(SizeOf(shape.metadata_type));
  rows.mins = tensor.metadata + (2 * head * capacity + first) * size;
  rows.ranges = rows.mins + capacity * size;
  rows.metadata_bytes = count * size;
  return rows;
}

// Some tokens of a page.
struct TileSource {
  const KvPageView* page = nullptr;
  int64_t capacity = 0;
  int64_t first = 0;
  int64_t count = 0;  // 0: none.
};

// Asks for a tile line by line while the one before it is multiplied; then for its last line again
// and again, which costs next to nothing.
class TileAhead {
 public:
  TileAhead(const LatentShape& shape, const TileSource& next)
      : shape_(shape), next_(next), num_groups_(shape.latent / shape.group) {
    if (next.count > 0) Begin();
  }
  HWY_INLINE void Next() {
    __builtin_prefetch(line_);
    line_ += step_;
    if (line_ >= end_) Advance();
  }

 private:
  HWY_NOINLINE void Advance() {
    if (head_ < num_groups_ && next_.count > 0) {
      ++head_;
      Begin();
    } else {
      line_ -= step_;
      step_ = 0;
      end_ = line_ + 1;
    }
  }
  void Begin() {
    const bool is_rope = head_ == num_groups_;
    const GroupRows rows = RowsOf(shape_, is_rope ? next_.page->v : next_.page->k,
                                  is_rope ? shape_.rope : shape_.group, next_.capacity,
                                  is_rope ? 0 : head_, next_.first, next_.count);
    line_ = rows.data;
    end_ = line_ + next_.count * rows.row_bytes;
    step_ = ReadAhead::kLineBytes;
    for (const std::byte* metadata : {rows.mins, rows.ranges}) {
      ReadAhead{metadata, rows.metadata_bytes}.Next(ReadAhead::Lines(rows.metadata_bytes));
    }
  }

  const LatentShape& shape_;
  TileSource next_;
  int64_t num_groups_;
  int64_t head_ = 0;
  const std::byte* line_ = nullptr;
  const std::byte* end_ = nullptr;
  int64_t step_ = 0;
};

// Packed rows to a panel. `steps` and `mins`: of each row.
template <int kBits>
void ExpandCodes(const GroupRows& rows, int64_t count, int64_t group, const float* mins,
                 const float* steps, float* panel) {
  for (int64_t t = 0; t < count; ++t, panel += kPanelStride) {
    const auto* packed = reinterpret_cast<const uint8_t*>(rows.data + t * rows.row_bytes);
    const float min = mins[t];
    const float step = steps[t];
    pmkvq::HWY_NAMESPACE::ExpandGroup<kBits>(
        packed, group,
        [min, step](auto df, auto codes)
            HWY_ATTR { return hn::MulAdd(codes, hn::Set(df, step), hn::Set(df, min)); },
        panel);
  }
}

// Rows of floats of 16 bits to a panel.
template <class HwyType>
void ExpandHalves(const GroupRows& rows, int64_t count, int64_t group, float* panel) {
  for (int64_t t = 0; t < count; ++t, panel += kPanelStride) {
    const auto* row = reinterpret_cast<const HwyType*>(rows.data + t * rows.row_bytes);
    int64_t i = 0;
    const auto run = [&](auto df) HWY_ATTR {
      const auto lanes = static_cast<int64_t>(hn::Lanes(df));
      for (; i + lanes <= group; i += lanes) {
        const auto values = hn::LoadU(hn::Rebind<HwyType, decltype(df)>(), row + i);
        hn::StoreU(hn::PromoteTo(df, values), df, panel + i);
      }
    };
    run(hn::ScalableTag<float>());
    run(hn::CappedTag<float, 8>());  // Divides every group.
  }
}

// The values of some tokens of one head, `group` of each, to a panel.
void ExpandHead(const LatentShape& shape, const KvTensorView& tensor, const GroupRows& rows,
                int64_t count, int64_t group, float* panel) {
  if (tensor.bits == 16) {
    if (shape.float_type == DType::kF16) {
      return ExpandHalves<hwy::float16_t>(rows, count, group, panel);
    }
    if (shape.float_type == DType::kBF16) {
      return ExpandHalves<hwy::bfloat16_t>(rows, count, group, panel);
    }
    for (int64_t t = 0; t < count; ++t) {
      const auto* row = reinterpret_cast<const float*>(rows.data + t * rows.row_bytes);
      std::copy_n(row, group, panel + t * kPanelStride);
    }
    return;
  }
  HWY_ALIGN float mins[kLatentTileTokens];
  HWY_ALIGN float steps[kLatentTileTokens];
  ConvertRows({.data = rows.mins, .float_type = shape.metadata_type}, 1, count, mins);
  ConvertRows({.data = rows.ranges, .float_type = shape.metadata_type}, 1, count, steps);
  for (int64_t t = 0; t < count; ++t) steps[t] /= MaxCode(tensor.bits);
  const auto expand = tensor.bits == 8   ? ExpandCodes<8>
                      : tensor.bits == 4 ? ExpandCodes<4>
                                         : ExpandCodes<2>;
  expand(rows, count, group, mins, steps, panel);
}

class ItemAttention {
 public:
  ItemAttention(const LatentShape& shape, const LatentItem& item, float* memory)
      : shape_(shape),
        item_(item),
        layout_(shape),
        rows_(item.num_tokens * item.num_heads),
        memory_(shape, layout_, rows_, memory) {}

  void Run() {
    LoadQueries();
    std::fill_n(memory_.out, memory_.row_stride * layout_.out_stride(), 0.0f);
    std::fill_n(memory_.max, memory_.row_stride, kLowest);
    std::fill_n(memory_.sum, memory_.row_stride, 0.0f);
    ZeroPadding();
    TileSource source = NextTile({});
    while (source.count > 0) {
      const TileSource next = NextTile(source);
      Expand(source);
      TileAhead ahead(shape_, next);
      AttendTile(source.count, ahead);
      source = next;
    }
    for (int64_t first = 0; first < item_.num_chunk_tokens; first += kLatentTileTokens) {
      const int64_t count = std::min(kLatentTileTokens, item_.num_chunk_tokens - first);
      LoadChunk(first, count);
      chunk_first_ = first;
      TileAhead ahead(shape_, {});
      AttendTile(count, ahead);
    }
    Store();
  }

 private:
  // Where row r lies among rows of `heads` heads.
  int64_t RowOf(int64_t r, int64_t heads) const {
    return r / item_.num_heads * heads + r % item_.num_heads;
  }

  // Queries with rows in lanes.
  void LoadQueries() {
    const int64_t width = shape_.key_values();
    for (int64_t r = 0; r < memory_.row_stride; ++r) {
      const float* q = item_.q + RowOf(std::min(r, rows_ - 1), shape_.num_heads) * width;
      float* out = memory_.queries + r;
      for (int64_t i = 0; i < width; ++i, out += memory_.row_stride) *out = q[i];
    }
  }

  // What pads a group in a panel is multiplied with weights, too.
  void ZeroPadding() {
    const int64_t padding = layout_.padded_group - shape_.group;
    if (padding == 0) return;
    for (int64_t t = 0; t < layout_.num_groups * kLatentTileTokens; ++t) {
      std::fill_n(memory_.tile + t * kPanelStride + shape_.group, padding, 0.0f);
    }
  }

  // The tile behind this one, of the pages; the first one behind none.
  TileSource NextTile(const TileSource& tile) {
    if (tile.page != nullptr) {
      const int64_t begin = tile.first + tile.count;
      const int64_t rest = item_.tokens[page_].num_tokens - begin;
      if (rest > 0) return {tile.page, tile.capacity, begin, std::min(kLatentTileTokens, rest)};
      ++page_;
    }
    for (; page_ < item_.tokens.size(); ++page_) {
      const PageTokens& tokens = item_.tokens[page_];
      if (tokens.num_tokens == 0) continue;
      return {item_.pages + page_, tokens.capacity, 0,
              std::min<int64_t>(kLatentTileTokens, tokens.num_tokens)};
    }
    return {};
  }

  float* Panel(int64_t index) const { return memory_.tile + index * kPanelFloats; }

  void Expand(const TileSource& source) {
    const auto expand = [&](const KvTensorView& tensor, int64_t group, int64_t head, float* panel) {
      const GroupRows rows =
          RowsOf(shape_, tensor, group, source.capacity, head, source.first, source.count);
      ExpandHead(shape_, tensor, rows, source.count, group, panel);
    };
    for (int64_t g = 0; g < layout_.num_groups; ++g) {
      expand(source.page->k, shape_.group, g, Panel(g));
    }
    expand(source.page->v, shape_.rope, 0, Panel(layout_.num_groups));
  }

  void LoadChunk(int64_t first, int64_t count) {
    for (int64_t t = 0; t < count; ++t) {
      const float* c = item_.c_new + (first + t) * shape_.latent;
      for (int64_t g = 0; g < layout_.num_groups; ++g) {
        std::copy_n(c + g * shape_.group, shape_.group, Panel(g) + t * kPanelStride);
      }
      std::copy_n(item_.kr_new + (first + t) * shape_.rope, shape_.rope,
                  Panel(layout_.num_groups) + t * kPanelStride);
    }
  }

  // The tile's first `count` tokens.
  void AttendTile(int64_t count, TileAhead& ahead) {
    std::fill_n(memory_.scores, count * memory_.row_stride, 0.0f);
    // Queries of so many channels, and the panel's part of them, lie in the first-level cache.
    const int64_t depth = memory_.row_stride > 32 ? 64 : 128;
    const float* queries = memory_.queries;
    for (int64_t g = 0; g <= layout_.num_groups; ++g) {
      const int64_t channels = g < layout_.num_groups ? shape_.group : shape_.rope;
      for (int64_t i = 0; i < channels; i += depth) {
        AddScores({Panel(g) + i, queries + i * memory_.row_stride, std::min(depth, channels - i),
                   memory_.scores, memory_.row_stride},
                  count, memory_.row_stride);
      }
      queries += channels * memory_.row_stride;
    }
    Softmax(count);
    for (int64_t g = 0; g < layout_.num_groups; ++g) {
      AddValues({memory_.scores, memory_.row_stride, Panel(g), count, memory_.factors,
                 memory_.out + g * layout_.padded_group, layout_.out_stride()},
                RoundUpTo(rows_, 4), layout_.padded_group, ahead);
    }
  }

  // Scores become weights exp(score - max); max, sum and factors follow. Rows in lanes. Of the
  // chunk's own tokens a row sees those up to its own.
  void Softmax(int64_t count) {
    const hn::ScalableTag<float> d;
    const auto lanes = static_cast<int64_t>(hn::Lanes(d));
    const bool is_causal = chunk_first_ >= 0 && chunk_first_ + count > item_.first_token + 1;
    HWY_ALIGN float visible[kLatentRows];
    for (int64_t r = 0; is_causal && r < memory_.row_stride; ++r) {
      const int64_t token = std::min(r / item_.num_heads, item_.num_tokens - 1);
      visible[r] = static_cast<float>(item_.first_token + token + 1 - chunk_first_);
    }
    for (int64_t r = 0; r < memory_.row_stride; r += lanes) {
      float* scores = memory_.scores + r;
      const auto hidden = [&](int64_t t) HWY_ATTR {
        return hn::Ge(hn::Set(d, static_cast<float>(t)), hn::Load(d, visible + r));
      };
      const auto old_max = hn::Load(d, memory_.max + r);
      auto max = old_max;
      for (int64_t t = 0; t < count; ++t) {
        auto score = hn::Load(d, scores + t * memory_.row_stride);
        if (is_causal) score = hn::IfThenElse(hidden(t), hn::Set(d, kLowest), score);
        max = hn::Max(max, score);
      }
      const auto factor = hn::Exp(d, hn::Sub(old_max, max));
      auto sum = hn::Mul(factor, hn::Load(d, memory_.sum + r));
      for (int64_t t = 0; t < count; ++t) {
        float* score = scores + t * memory_.row_stride;
        auto weight = hn::Exp(d, hn::Sub(hn::Load(d, score), max));
        if (is_causal) weight = hn::IfThenZeroElse(hidden(t), weight);
        hn::Store(weight, d, score);
        sum = hn::Add(sum, weight);
      }
      hn::Store(max, d, memory_.max + r);
      hn::Store(sum, d, memory_.sum + r);
      hn::Store(factor, d, memory_.factors + r);
    }
  }

  void Store() {
    for (int64_t r = 0; r < rows_; ++r) {
      float* to = item_.out + RowOf(r, item_.out_heads) * shape_.latent;
      for (int64_t g = 0; g < layout_.num_groups; ++g, to += shape_.group) {
        const float* from = memory_.out + r * layout_.out_stride() + g * layout_.padded_group;
        if (item_.max != nullptr) {
          std::copy_n(from, shape_.group, to);
        } else {
          for (int64_t i = 0; i < shape_.group; ++i) to[i] = from[i] / memory_.sum[r];
        }
      }
      if (item_.max == nullptr) continue;
      item_.max[r] = memory_.max[r];
      item_.sum[r] = memory_.sum[r];
    }
  }

  const LatentShape& shape_;
  const LatentItem& item_;
  const LatentLayout layout_;
  const int64_t rows_;
  const Memory memory_;
  size_t page_ = 0;
  int64_t chunk_first_ = -1;  // Of the tile, where it holds the chunk's own tokens.
};

void RunItem(const LatentShape& shape, const LatentItem& item, float* memory) {
  ItemAttention(shape, item, memory).Run();
}

int64_t Target() { return HWY_TARGET; }

}  // namespace
}  // namespace pmkvq::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pmkvq::internal {

HWY_EXPORT(RunItem);
HWY_EXPORT(Target);

void RunLatentItem(const LatentShape& shape, const LatentItem& item, float* scratch) {
  HWY_DYNAMIC_DISPATCH(RunItem)(shape, item, scratch);
}

int64_t LatentAttentionTarget() { return HWY_DYNAMIC_DISPATCH(Target)(); }

}  // namespace pmkvq::internal
#endif  // HWY_ONCE
