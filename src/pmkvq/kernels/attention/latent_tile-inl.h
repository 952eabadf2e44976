// Products of absorbed attention with a tile of expanded latents.
//
// Scores have the query rows in lanes: an element of the tile, broadcast from memory, serves all
// heads, so the tile needs no transposing and sums no reduction. Values have the channels in lanes:
// a weight is broadcast to them. Every element of both results is one chain of fused multiply-adds,
// so its bits do not depend on the blocking.
#include "hwy/highway.h"

#if defined(PMKVQ_KERNELS_ATTENTION_LATENT_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PMKVQ_KERNELS_ATTENTION_LATENT_TILE_INL_H_
#undef PMKVQ_KERNELS_ATTENTION_LATENT_TILE_INL_H_
#else
#define PMKVQ_KERNELS_ATTENTION_LATENT_TILE_INL_H_
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "pmkvq/kernels/attention/latent_attention_internal.h"
#include "pmkvq/kernels/attention/read_ahead.h"

HWY_BEFORE_NAMESPACE();
namespace pmkvq::internal::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

// Registers that hold sums: the rest is for operands.
#if HWY_TARGET <= HWY_AVX3 || HWY_ARCH_ARM_A64
constexpr int kSums = 24;
#else
constexpr int kSums = 12;
#endif

// A product scores [tokens, row_stride] += panel [tokens, depth] queries [depth, row_stride].
struct ScoreProduct {
  const float* HWY_RESTRICT panel;
  const float* HWY_RESTRICT queries;
  int64_t depth;
  float* HWY_RESTRICT scores;
  int64_t row_stride;
};

// Lines of memory that are asked for one by one; beyond the last one that one again and again,
// which costs next to nothing.
struct LinesAhead {
  const std::byte* line = nullptr;
  const std::byte* last = nullptr;
  HWY_INLINE void Next() {
    __builtin_prefetch(line);
    line = std::min(line + ReadAhead::kLineBytes, last);
  }
};
// Channels between two lines.
constexpr int64_t kChannelsOfLine = 4;

// kTokens tokens from `token` on, kVecs vectors of rows from `row` on.
template <int kTokens, int kVecs>
HWY_INLINE void AddScoreBlock(const ScoreProduct& p, int64_t token, int64_t row,
                              LinesAhead& ahead) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  float* scores = p.scores + token * p.row_stride + row;
  const float* panel = p.panel + token * kPanelStride;
  const float* queries = p.queries + row;
  hn::Vec<decltype(d)> sum[kTokens][kVecs];
  HWY_UNROLL(24) for (int t = 0; t < kTokens; ++t) {
    HWY_UNROLL(4) for (int v = 0; v < kVecs; ++v) {
      sum[t][v] = hn::LoadU(d, scores + t * p.row_stride + v * lanes);
    }
  }
  const int64_t row_stride = p.row_stride;
  const int64_t depth = p.depth;
  LinesAhead lines = ahead;  // In registers.
  for (int64_t first = 0; first < depth; first += kChannelsOfLine) {
    lines.Next();
    HWY_UNROLL(4) for (int64_t i = first; i < first + kChannelsOfLine; ++i) {
      hn::Vec<decltype(d)> query[kVecs];
      HWY_UNROLL(4) for (int v = 0; v < kVecs; ++v) {
        query[v] = hn::LoadU(d, queries + i * row_stride + v * lanes);
      }
      HWY_UNROLL(24) for (int t = 0; t < kTokens; ++t) {
        const auto element = hn::Set(d, panel[t * kPanelStride + i]);
        HWY_UNROLL(4) for (int v = 0; v < kVecs; ++v) {
          sum[t][v] = hn::MulAdd(element, query[v], sum[t][v]);
        }
      }
    }
  }
  ahead = lines;
  HWY_UNROLL(24) for (int t = 0; t < kTokens; ++t) {
    HWY_UNROLL(4) for (int v = 0; v < kVecs; ++v) {
      hn::StoreU(sum[t][v], d, scores + t * p.row_stride + v * lanes);
    }
  }
}

template <int kTokens, int kVecs>
HWY_INLINE int64_t AddScoreTokens(const ScoreProduct& p, int64_t token, int64_t end, int64_t row,
                                  LinesAhead& ahead) {
  for (; token + kTokens <= end; token += kTokens) {
    AddScoreBlock<kTokens, kVecs>(p, token, row, ahead);
  }
  return token;
}

template <int kVecs>
HWY_INLINE void AddScoreColumns(const ScoreProduct& p, int64_t count, int64_t row,
                                LinesAhead& ahead) {
  constexpr int kMost = kSums / kVecs;
  int64_t token = AddScoreTokens<kMost, kVecs>(p, 0, count, row, ahead);
  if constexpr (kMost > 16) token = AddScoreTokens<16, kVecs>(p, token, count, row, ahead);
  if constexpr (kMost > 8) token = AddScoreTokens<8, kVecs>(p, token, count, row, ahead);
  if constexpr (kMost > 4) token = AddScoreTokens<4, kVecs>(p, token, count, row, ahead);
  AddScoreTokens<1, kVecs>(p, token, count, row, ahead);
}

// `count` tokens, `rows` rows in full vectors, a depth that kChannelsOfLine divides.
HWY_NOINLINE void AddScores(const ScoreProduct& p, int64_t count, int64_t rows, LinesAhead& ahead) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(hn::ScalableTag<float>()));
  int64_t row = 0;
  if constexpr (kSums == 24) {
    for (; row + 4 * lanes <= rows; row += 4 * lanes) AddScoreColumns<4>(p, count, row, ahead);
  }
  for (; row + 2 * lanes <= rows; row += 2 * lanes) AddScoreColumns<2>(p, count, row, ahead);
  for (; row < rows; row += lanes) AddScoreColumns<1>(p, count, row, ahead);
}

// A product out [rows, out_stride] = factor[row] out + weights [tokens, row_stride]^T panel.
struct ValueProduct {
  const float* HWY_RESTRICT weights;
  int64_t row_stride;
  const float* HWY_RESTRICT panel;
  int64_t count;  // Tokens.
  const float* HWY_RESTRICT factors;
  float* HWY_RESTRICT out;
  int64_t out_stride;
};

// kRows rows from `row` on, two vectors of columns from `column` on.
template <int kRows, class Work>
HWY_INLINE void AddValueBlock(const ValueProduct& p, int64_t row, int64_t column, Work& meanwhile) {
  constexpr int kVecs = 2;
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  float* out = p.out + row * p.out_stride + column;
  const float* panel = p.panel + column;
  const float* weights = p.weights + row;
  hn::Vec<decltype(d)> sum[kRows][kVecs];
  HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
    const auto factor = hn::Set(d, p.factors[row + r]);
    HWY_UNROLL(2) for (int v = 0; v < kVecs; ++v) {
      sum[r][v] = hn::Mul(factor, hn::LoadU(d, out + r * p.out_stride + v * lanes));
    }
  }
  const int64_t row_stride = p.row_stride;
  const int64_t count = p.count;
  auto [columns, num] = meanwhile.Take(count);
  int64_t t = 0;
  const auto add_token = [&]() HWY_ATTR {
    hn::Vec<decltype(d)> value[kVecs];
    HWY_UNROLL(2) for (int v = 0; v < kVecs; ++v) {
      value[v] = hn::LoadU(d, panel + t * kPanelStride + v * lanes);
    }
    HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
      const auto weight = hn::Set(d, weights[t * row_stride + r]);
      HWY_UNROLL(2) for (int v = 0; v < kVecs; ++v) {
        sum[r][v] = hn::MulAdd(weight, value[v], sum[r][v]);
      }
    }
    ++t;
  };
  while (t < num) {
    columns.Expand();
    add_token();
  }
  while (t < count) add_token();
  HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
    HWY_UNROLL(2) for (int v = 0; v < kVecs; ++v) {
      hn::StoreU(sum[r][v], d, out + r * p.out_stride + v * lanes);
    }
  }
}

// All rows of one block of columns: the tile's part of it stays in the first-level cache. `rows` is
// a multiple of 4. Between the products the function runs the steps of `meanwhile`
// (latent_expand-inl.h), until none is left.
template <class Work>
HWY_NOINLINE void AddValues(const ValueProduct& p, int64_t rows, int64_t column, Work& meanwhile) {
  constexpr int kMost = kSums / 2 >= 8 ? 8 : 4;
  int64_t row = 0;
  for (; row + kMost <= rows; row += kMost) AddValueBlock<kMost>(p, row, column, meanwhile);
  for (; row < rows; row += 4) AddValueBlock<4>(p, row, column, meanwhile);
}

}  // namespace
}  // namespace pmkvq::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // PMKVQ_KERNELS_ATTENTION_LATENT_TILE_INL_H_
