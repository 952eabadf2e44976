// Absorbed attention of one item: some query rows over a run of pages and the chunk's own tokens.
//
// Latents are expanded to floats a tile at a time, once for all rows, and the tile serves as keys
// and as values. So the time goes into two matrix products, H (2 r + dr) multiply-adds for a stored
// token; expanding its r + dr values costs a few operations for each 16.
#include <algorithm>
#include <limits>

#include "pmkvq/kernels/attention/attention_internal.h"
#include "pmkvq/kernels/attention/latent_attention_internal.h"
#include "pmkvq/kernels/kv_quant/kv_quant_common.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "pmkvq/kernels/attention/latent_kernel.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
// After foreach_target.h.
#include "hwy/contrib/math/math-inl.h"
#include "pmkvq/kernels/attention/latent_expand-inl.h"
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
    TileSource tile = NextTile({});
    TileSource next = NextTile(tile);
    const TileSource behind = FirstTile(item_.pages + item_.tokens.size(), item_.behind);
    for (int64_t i = 0; tile.count > 0 && i <= layout_.num_groups; ++i) ExpandPanel(tile, i);
    while (tile.count > 0) {
      const TileSource ahead = NextTile(next);
      AttendTile(tile.count, next, ahead.count > 0 ? ahead : behind);
      tile = next;
      next = ahead;
    }
    for (int64_t first = 0; first < item_.num_chunk_tokens; first += kLatentTileTokens) {
      const int64_t count = std::min(kLatentTileTokens, item_.num_chunk_tokens - first);
      LoadChunk(first, count);
      chunk_first_ = first;
      AttendTile(count, {}, {});
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
    constexpr int64_t kRows = LatentLayout::kLine;  // A line is written at once.
    for (int64_t first = 0; first < memory_.row_stride; first += kRows) {
      const float* q[kRows];
      for (int64_t r = 0; r < kRows; ++r) {
        q[r] = item_.q + RowOf(std::min(first + r, rows_ - 1), shape_.num_heads) * width;
      }
      float* out = memory_.queries + first;
      for (int64_t i = 0; i < width; ++i, out += memory_.row_stride) {
        for (int64_t r = 0; r < kRows; ++r) out[r] = q[r][i];
      }
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

  // The tile behind this one, of the pages; the first one behind none. Tiles are asked for in
  // order.
  TileSource NextTile(const TileSource& tile) {
    if (tile.page != nullptr) {
      const int64_t begin = tile.first + tile.count;
      const int64_t rest = item_.tokens[page_].num_tokens - begin;
      if (rest > 0) return {tile.page, tile.capacity, begin, std::min(kLatentTileTokens, rest)};
      ++page_;
    }
    for (; page_ < item_.tokens.size(); ++page_) {
      const TileSource first = FirstTile(item_.pages + page_, item_.tokens[page_]);
      if (first.count > 0) return first;
    }
    return {};
  }

  // Groups of c, then k_r.
  float* Panel(int64_t index) const { return memory_.tile + index * kPanelFloats; }
  int64_t GroupOf(int64_t index) const {
    return index < layout_.num_groups ? shape_.group : shape_.rope;
  }
  int BitsOf(const TileSource& tile, int64_t index) const {
    return index < layout_.num_groups ? tile.page->k.bits : tile.page->v.bits;
  }

  // Prepares the expansion of a panel of `tile`. `ahead` is the tile that is prefetched at the same
  // time.
  void LoadPanel(const TileSource& tile, int64_t index, const TileSource& ahead) {
    const GroupRows rows = RowsOf(shape_, tile, index);
    panel_.data = rows.data;
    panel_.row_bytes = rows.row_bytes;
    panel_.count = tile.count;
    panel_.group = GroupOf(index);
    panel_.panel = Panel(index);
    panel_.to_ahead = ahead.count > 0 ? RowsOf(shape_, ahead, index).data - rows.data : 0;
    if (rows.mins == nullptr) return;
    float mins[kLatentTileTokens];
    float ranges[kLatentTileTokens];
    ConvertRows({.data = rows.mins, .float_type = shape_.metadata_type}, 1, tile.count, mins);
    ConvertRows({.data = rows.ranges, .float_type = shape_.metadata_type}, 1, tile.count, ranges);
    const float max_code = MaxCode(BitsOf(tile, index));
    for (int64_t t = 0; t < tile.count; ++t) panel_.scales[t] = {mins[t], ranges[t] / max_code};
  }

  template <class Columns>
  void ExpandPanel(const TileSource& tile, int64_t index) {
    LoadPanel(tile, index, {});
    for (int64_t t = 0; t < tile.count; ++t) Columns::ExpandRow(panel_, t);
  }
  void ExpandPanel(const TileSource& tile, int64_t index) {
    VisitColumns(shape_, BitsOf(tile, index),
                 [&]<class Columns>() HWY_ATTR { ExpandPanel<Columns>(tile, index); });
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

  // The tile's first `count` tokens. Meanwhile `next` is expanded in its place, and lines of
  // `ahead` are asked for; both may be none.
  void AttendTile(int64_t count, const TileSource& next, const TileSource& ahead) {
    std::fill_n(memory_.scores, count * memory_.row_stride, 0.0f);
    // Queries of so many channels, and the panel's part of them, lie in the first-level cache.
    const int64_t depth = memory_.row_stride > 32 ? 64 : 128;
    const float* queries = memory_.queries;
    for (int64_t index = 0; index <= layout_.num_groups; ++index) {
      const int64_t channels = GroupOf(index);
      LinesAhead lines = LinesOf(ahead, index);
      for (int64_t i = 0; i < channels; i += depth) {
        AddScores({Panel(index) + i, queries + i * memory_.row_stride,
                   std::min(depth, channels - i), memory_.scores, memory_.row_stride},
                  count, memory_.row_stride, lines);
      }
      queries += channels * memory_.row_stride;
    }
    Softmax(count);
    if (next.count == 0) {
      NoExpansion none;
      for (int64_t block = 0; block < NumBlocks(); ++block) AddBlockValues(block, count, none);
      return;
    }
    VisitColumns(shape_, next.page->v.bits, [&]<class Columns>() HWY_ATTR {
      AddFirstValuesAndExpandRope<Columns>(count, next, ahead);
    });
    VisitColumns(shape_, next.page->k.bits, [&]<class Columns>() HWY_ATTR {
      AddValuesAndExpand<Columns>(count, next, ahead);
    });
  }

  // Lines of a panel's rows; their minima and ranges are asked for at once.
  LinesAhead LinesOf(const TileSource& tile, int64_t index) const {
    if (tile.count == 0) {
      const auto* any = reinterpret_cast<const std::byte*>(memory_.queries);
      return {any, any};
    }
    const GroupRows rows = RowsOf(shape_, tile, index);
    for (const std::byte* metadata : {rows.mins, rows.ranges}) {
      ReadAhead{metadata, rows.metadata_bytes}.Next(ReadAhead::Lines(rows.metadata_bytes));
    }
    return {rows.data, rows.data + tile.count * rows.row_bytes - 1};
  }

  // Blocks of columns of all groups of c.
  int64_t BlocksOfGroup() const { return layout_.padded_group / BlockColumns(); }
  int64_t NumBlocks() const { return layout_.num_groups * BlocksOfGroup(); }

  template <class Work>
  void AddBlockValues(int64_t block, int64_t count, Work& meanwhile) {
    const int64_t group = block / BlocksOfGroup();
    AddValues({memory_.scores, memory_.row_stride, Panel(group), count, memory_.factors,
               memory_.out + group * layout_.padded_group, layout_.out_stride()},
              RoundUpTo(rows_, 4), block % BlocksOfGroup() * BlockColumns(), meanwhile);
  }

  // Nobody reads k_r after the scores: a block of it is expanded while the first one is multiplied.
  template <class Columns>
  void AddFirstValuesAndExpandRope(int64_t count, const TileSource& next, const TileSource& ahead) {
    if (!Columns::Divides(shape_.rope) || shape_.rope % BlockColumns() != 0) {
      NoExpansion none;
      AddBlockValues(0, count, none);
      ExpandPanel<Columns>(next, layout_.num_groups);
      return;
    }
    LoadPanel(next, layout_.num_groups, ahead);
    Columns::Prepare(panel_);
    for (int64_t column = 0; column < shape_.rope; column += BlockColumns()) {
      Expansion<Columns> expansion(panel_, column);
      if (column == 0) AddBlockValues(0, count, expansion);
      expansion.Finish();
    }
  }

  // A block of columns is expanded while the one behind it is multiplied.
  template <class Columns>
  void AddValuesAndExpand(int64_t count, const TileSource& next, const TileSource& ahead) {
    const int64_t blocks = BlocksOfGroup();
    if (!Columns::Divides(shape_.group) || shape_.group % BlockColumns() != 0) {
      NoExpansion none;
      for (int64_t block = 1; block < NumBlocks(); ++block) AddBlockValues(block, count, none);
      for (int64_t group = 0; group < layout_.num_groups; ++group)
        ExpandPanel<Columns>(next, group);
      return;
    }
    for (int64_t block = 1; block <= NumBlocks(); ++block) {
      const int64_t done = block - 1;
      if (done % blocks == 0) {
        LoadPanel(next, done / blocks, ahead);
        Columns::Prepare(panel_);
      }
      Expansion<Columns> expansion(panel_, done % blocks * BlockColumns());
      if (block < NumBlocks()) AddBlockValues(block, count, expansion);
      expansion.Finish();
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
  PanelRows panel_;  // That is expanded.
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
