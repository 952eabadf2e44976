// Packed rows of latents made floats: whole rows of a panel, or a vector of each row between the
// multiply-adds of another product.
//
// A tile's floats do not fit the first-level cache. Expanded all at once, each line is brought
// there to be overwritten, 2 cycles for a vector on Zen 5, whatever its format. So a panel is
// overwritten with the next tile's values a block of columns at a time, right after the product has
// read these lines, and with one vector for 16 multiply-adds: these take 8 cycles, with one or two
// stores among them 8.3 and 8.5, with three 10.9.
#include "hwy/highway.h"

#if defined(PMKVQ_KERNELS_ATTENTION_LATENT_EXPAND_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PMKVQ_KERNELS_ATTENTION_LATENT_EXPAND_INL_H_
#undef PMKVQ_KERNELS_ATTENTION_LATENT_EXPAND_INL_H_
#else
#define PMKVQ_KERNELS_ATTENTION_LATENT_EXPAND_INL_H_
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "pmkvq/kernels/attention/attention_internal.h"
#include "pmkvq/kernels/attention/latent_attention_internal.h"
#include "pmkvq/kernels/attention/read_ahead.h"
#include "pmkvq/kernels/kv_quant/codes-inl.h"
#include "pmkvq/kernels/kv_quant/kv_quant.h"
#include "pmkvq/kernels/kv_quant/kv_quant_common.h"

HWY_BEFORE_NAMESPACE();
namespace pmkvq::internal::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

// Columns of a panel that are multiplied, or expanded, together: two vectors.
HWY_INLINE int64_t VectorColumns() {
  return static_cast<int64_t>(hn::Lanes(hn::ScalableTag<float>()));
}
HWY_INLINE int64_t BlockColumns() { return 2 * VectorColumns(); }

// Some tokens of one head of a page.
struct GroupRows {
  const std::byte* data = nullptr;
  const std::byte* mins = nullptr;
  const std::byte* ranges = nullptr;
  int64_t row_bytes = 0;
  int64_t metadata_bytes = 0;  // Of all minima, or ranges.
};

// Some tokens of a page.
struct TileSource {
  const KvPageView* page = nullptr;
  int64_t capacity = 0;
  int64_t first = 0;
  int64_t count = 0;  // 0: none.
};

TileSource FirstTile(const KvPageView* page, const PageTokens& tokens) {
  return {page, tokens.capacity, 0, std::min<int64_t>(kLatentTileTokens, tokens.num_tokens)};
}

// Group `index` of c; of k_r where there is no such group.
GroupRows RowsOf(const LatentShape& shape, const TileSource& tile, int64_t index) {
  const bool is_rope = index == shape.latent / shape.group;
  const KvTensorView& tensor = is_rope ? tile.page->v : tile.page->k;
  const int64_t group = is_rope ? shape.rope : shape.group;
  const int64_t head = is_rope ? 0 : index;
  GroupRows rows;
  const bool is_float = tensor.bits == 16;
  rows.row_bytes = is_float ? group * static_cast<int64_t>(SizeOf(shape.float_type))
                            : PackedGroupBytes(group, tensor.bits);
  rows.data = tensor.data + (head * tile.capacity + tile.first) * rows.row_bytes;
  if (is_float) return rows;
  const auto size = static_cast<int64_t>(SizeOf(shape.metadata_type));
  rows.mins = tensor.metadata + (2 * head * tile.capacity + tile.first) * size;
  rows.ranges = rows.mins + tile.capacity * size;
  rows.metadata_bytes = tile.count * size;
  return rows;
}

// Rows that become a panel.
struct PanelRows {
  const std::byte* data = nullptr;
  int64_t row_bytes = 0;
  int64_t count = 0;
  int64_t group = 0;
  float* panel = nullptr;
  // From a row to the same one of the tile that will be asked for meanwhile; 0: none.
  int64_t to_ahead = 0;
  struct Scale {
    float min;
    float step;
  };
  Scale scales[kLatentTileTokens];  // Of rows of codes.
#if HWY_TARGET == HWY_AVX3
  // Of codes with at most 4 bits: the values of all codes of a row, again and again. Looking them
  // up leaves the multipliers to the product.
  HWY_ALIGN float values[kLatentTileTokens][16];
#endif
};

// A vector of each row of packed codes: columns from `first` on.
template <int kBits>
class CodeColumns {
 public:
  static constexpr int64_t kPlanes = 8 / kBits;
  // Whether every vector lies in one plane.
  static bool Divides(int64_t group) { return group / kPlanes % VectorColumns() == 0; }

  // From row `row` on.
  HWY_INLINE CodeColumns(const PanelRows& p, int64_t first, int64_t row)
      : panel_(p), row_(row), row_bytes_(p.row_bytes), to_(p.panel + row * kPanelStride + first) {
    const int64_t plane_bytes = p.group / kPlanes;
    from_ = reinterpret_cast<const uint8_t*>(p.data) + row * row_bytes_ + first % plane_bytes;
    shift_ = static_cast<uint32_t>(first / plane_bytes) * kBits;
    // Each cache line of codes is prefetched once.
    const bool is_new = shift_ == 0 && first % ReadAhead::kLineBytes == 0;
    to_ahead_ = is_new ? p.to_ahead : 0;
  }
  // The next row.
  HWY_INLINE void Expand() {
    const hn::ScalableTag<float> d;
    const hn::Rebind<int32_t, decltype(d)> di;
    const hn::Rebind<uint32_t, decltype(d)> du;
    __builtin_prefetch(from_ + to_ahead_);
    auto codes = hn::PromoteTo(di, hn::LoadU(hn::Rebind<uint8_t, decltype(d)>(), from_));
    if constexpr (kBits < 8) {
      codes = hn::BitCast(di, hn::Shr(hn::BitCast(du, codes), hn::Set(du, shift_)));
    }
    hn::StoreU(ValuesOf(codes), d, to_);
    from_ += row_bytes_;
    to_ += kPanelStride;
    ++row_;
  }
  // Once for a panel, after its scales are there.
  static void Prepare([[maybe_unused]] PanelRows& p) {
#if HWY_TARGET == HWY_AVX3
    if constexpr (kBits < 8) {
      const hn::ScalableTag<float> d;
      const hn::Rebind<int32_t, decltype(d)> di;
      const auto codes = hn::And(hn::Iota(di, 0), hn::Set(di, kMaxCode));
      for (int64_t t = 0; t < p.count; ++t) {
        hn::Store(Scaled(hn::ConvertTo(d, codes), p.scales[t]), d, p.values[t]);
      }
    }
#endif
  }
  // All columns of a row, of any group.
  static void ExpandRow(const PanelRows& p, int64_t t) {
    const auto [least, width] = p.scales[t];
    pmkvq::HWY_NAMESPACE::ExpandGroup<kBits>(
        reinterpret_cast<const uint8_t*>(p.data + t * p.row_bytes), p.group,
        [min = least, step = width](auto df, auto codes)
            HWY_ATTR { return hn::MulAdd(codes, hn::Set(df, step), hn::Set(df, min)); },
        p.panel + t * kPanelStride);
  }

 private:
  static constexpr int kMaxCode = (1 << kBits) - 1;

  template <class V>
  static HWY_INLINE V Scaled(V codes, const PanelRows::Scale& scale) {
    const hn::DFromV<V> d;
    return hn::MulAdd(codes, hn::Set(d, scale.step), hn::Set(d, scale.min));
  }
  // Of codes with other bits above them.
  template <class VI>
  HWY_INLINE auto ValuesOf(VI codes) const {
    const hn::ScalableTag<float> d;
    const hn::DFromV<VI> di;
#if HWY_TARGET == HWY_AVX3
    if constexpr (kBits < 8) {  // Reads the lowest 4 bits.
      return hn::Vec<decltype(d)>{
          _mm512_permutexvar_ps(codes.raw, hn::Load(d, panel_.values[row_]).raw)};
    }
#endif
    if constexpr (kBits < 8) codes = hn::And(codes, hn::Set(di, kMaxCode));
    return Scaled(hn::ConvertTo(d, codes), panel_.scales[row_]);
  }

  const PanelRows& panel_;
  int64_t row_;
  int64_t row_bytes_;
  float* to_;
  const uint8_t* from_;
  int64_t to_ahead_;
  uint32_t shift_;
};

// The same of floats: T is a type that Highway promotes to float, or float.
template <class T>
class FloatColumns {
 public:
  static bool Divides(int64_t group) { return group % VectorColumns() == 0; }
  static void Prepare(PanelRows&) {}

  HWY_INLINE FloatColumns(const PanelRows& p, int64_t first, int64_t row)
      : from_(p.data + row * p.row_bytes + first * static_cast<int64_t>(sizeof(T))),
        row_bytes_(p.row_bytes),
        to_(p.panel + row * kPanelStride + first),
        to_ahead_(p.to_ahead) {}
  HWY_INLINE void Expand() {
    __builtin_prefetch(from_ + to_ahead_);
    Copy(hn::ScalableTag<float>(), reinterpret_cast<const T*>(from_), to_);
    from_ += row_bytes_;
    to_ += kPanelStride;
  }
  static void ExpandRow(const PanelRows& p, int64_t t) {
    const auto* row = reinterpret_cast<const T*>(p.data + t * p.row_bytes);
    float* out = p.panel + t * kPanelStride;
    int64_t i = 0;
    const auto run = [&](auto df) HWY_ATTR {
      const auto lanes = static_cast<int64_t>(hn::Lanes(df));
      for (; i + lanes <= p.group; i += lanes) Copy(df, row + i, out + i);
    };
    run(hn::ScalableTag<float>());
    run(hn::CappedTag<float, 8>());  // Divides every group.
  }

 private:
  template <class D>
  static HWY_INLINE void Copy(D df, const T* from, float* to) {
    if constexpr (std::is_same_v<T, float>) {
      hn::StoreU(hn::LoadU(df, from), df, to);
    } else {
      hn::StoreU(hn::PromoteTo(df, hn::LoadU(hn::Rebind<T, D>(), from)), df, to);
    }
  }

  const std::byte* from_;
  int64_t row_bytes_;
  float* to_;
  int64_t to_ahead_;
};

// Calls function.template operator()<Columns>() with the class above that expands `bits`.
template <class Function>
HWY_INLINE void VisitColumns(const LatentShape& shape, int bits, const Function& function) {
  if (bits == 8) {
    function.template operator()<CodeColumns<8>>();
  } else if (bits == 4) {
    function.template operator()<CodeColumns<4>>();
  } else if (bits == 2) {
    function.template operator()<CodeColumns<2>>();
  } else if (shape.float_type == DType::kF16) {
    function.template operator()<FloatColumns<hwy::float16_t>>();
  } else if (shape.float_type == DType::kBF16) {
    function.template operator()<FloatColumns<hwy::bfloat16_t>>();
  } else {
    function.template operator()<FloatColumns<float>>();
  }
}

// Some rows of `columns`, whose Expand is to be called `num` times.
template <class Columns>
struct Share {
  Columns columns;
  int64_t num;
};

// A block of columns of a panel, expanded in shares while something else is multiplied.
template <class Columns>
class Expansion {
 public:
  Expansion(const PanelRows& panel, int64_t first) : panel_(panel), first_(first) {}
  HWY_INLINE Share<Columns> Take(int64_t most) {
    const bool is_second = next_ >= panel_.count;
    const int64_t row = is_second ? next_ - panel_.count : next_;
    const int64_t num = std::min(most, panel_.count - row);
    next_ += num;
    return {Columns(panel_, first_ + (is_second ? VectorColumns() : 0), row), num};
  }
  void Finish() {
    while (next_ < 2 * panel_.count) {
      auto [columns, num] = Take(panel_.count);
      for (; num > 0; --num) columns.Expand();
    }
  }

 private:
  const PanelRows& panel_;
  int64_t first_;
  int64_t next_ = 0;  // Rows of the first vector, then those of the second.
};

// Nothing to do meanwhile.
struct NoExpansion {
  struct NoColumns {
    HWY_INLINE void Expand() {}
  };
  HWY_INLINE Share<NoColumns> Take(int64_t) { return {{}, 0}; }
};

}  // namespace
}  // namespace pmkvq::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // PMKVQ_KERNELS_ATTENTION_LATENT_EXPAND_INL_H_
