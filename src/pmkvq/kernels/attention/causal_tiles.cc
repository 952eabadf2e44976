#include "pmkvq/kernels/attention/causal_tiles.h"

#include <algorithm>

#include "pmkvq/kernels/attention/attention_internal.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "pmkvq/kernels/attention/causal_tiles.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
// After foreach_target.h.
#include "hwy/contrib/math/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pmkvq::internal::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

using D = hn::ScalableTag<float>;
using V = hn::Vec<D>;

// Sums of kGroupRows rows by two vectors stay in registers: 24 of the 32 that AVX-512 and NEON
// have, 12 of the 16 of AVX2 and SSE4.
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL || HWY_TARGET == HWY_NEON
constexpr int kGroupRows = 12;
#else
constexpr int kGroupRows = 6;
#endif
// With D = 128 a block of queries and a panel of keys fit the first-level cache together.
constexpr int kGroupsPerBlock = 4;

int64_t Width() { return 2 * static_cast<int64_t>(hn::Lanes(D())); }
int64_t BlockRows() { return int64_t{kGroupRows} * kGroupsPerBlock; }

// out [kGroupRows, P] = a [kGroupRows, count] times a panel [count, P].
HWY_INLINE void MultiplyPanel(const float* HWY_RESTRICT a, int64_t a_stride,
                              const float* HWY_RESTRICT panel, int64_t count,
                              float* HWY_RESTRICT out, int64_t out_stride) {
  const D d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  V sum[kGroupRows][2];
#pragma GCC unroll 12
  for (int r = 0; r < kGroupRows; ++r) sum[r][0] = sum[r][1] = hn::Zero(d);
  for (int64_t k = 0; k < count; ++k, panel += 2 * lanes) {
    const V left = hn::LoadU(d, panel);
    const V right = hn::LoadU(d, panel + lanes);
#pragma GCC unroll 12
    for (int r = 0; r < kGroupRows; ++r) {
      const V factor = hn::Set(d, a[r * a_stride + k]);
      sum[r][0] = hn::MulAdd(factor, left, sum[r][0]);
      sum[r][1] = hn::MulAdd(factor, right, sum[r][1]);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < kGroupRows; ++r) {
    hn::StoreU(sum[r][0], d, out + r * out_stride);
    hn::StoreU(sum[r][1], d, out + r * out_stride + lanes);
  }
}

void PackKeys(const float* HWY_RESTRICT k, int64_t stride, int64_t count, int64_t dim,
              float* HWY_RESTRICT panel) {
  const int64_t width = Width();
  for (int64_t i = 0; i < dim; ++i) {
    for (int64_t key = 0; key < count; ++key) panel[i * width + key] = k[key * stride + i];
    for (int64_t key = count; key < width; ++key) panel[i * width + key] = 0.0f;
  }
}

void PackAllValues(const float* HWY_RESTRICT v, int64_t stride, int64_t num_tokens, int64_t dim,
                   float* HWY_RESTRICT panels) {
  const int64_t width = Width();
  for (int64_t begin = 0; begin < dim; begin += width) {
    const int64_t count = std::min(width, dim - begin);
    for (int64_t t = 0; t < num_tokens; ++t, panels += width) {
      std::copy_n(v + t * stride + begin, count, panels);
      std::fill(panels + count, panels + width, 0.0f);
    }
  }
}

// q * q_factor * scale, [BlockRows, D] with zero rows past the block's.
void CopyQueries(const CausalBlock& block, float* HWY_RESTRICT out) {
  const int64_t half = block.dim / 2;
  for (int64_t r = 0; r < block.rows; ++r) {
    const float* HWY_RESTRICT row = block.q + r * block.stride;
    float* HWY_RESTRICT to = out + r * block.dim;
    if (block.q_factor == nullptr) {
      for (int64_t i = 0; i < block.dim; ++i) to[i] = row[i] * block.scale;
      continue;
    }
    for (int64_t i = 0; i < half; ++i) {
      to[i] = row[i] * block.q_factor[i] * block.scale;
      to[i + half] = row[i + half] * block.q_factor[i] * block.scale;
    }
  }
  std::fill(out + block.rows * block.dim, out + BlockRows() * block.dim, 0.0f);
}

// Of a key that a row does not see: its exponential is 0.
constexpr float kLowestScore = -3e38f;

// x[i] = exp(x[i] - max x), for `count` values; gives 1 / sum. Writes zeros from there to `end`.
float SoftmaxRow(int64_t count, int64_t end, float* HWY_RESTRICT x) {
  const D d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  // Whole vectors: scores past `count` were computed, and must not count.
  const auto lowest = hn::Set(d, kLowestScore);
  const int64_t full = count / lanes * lanes;
  if (full != count) {
    const auto seen = hn::FirstN(d, static_cast<size_t>(count - full));
    hn::StoreU(hn::IfThenElse(seen, hn::LoadU(d, x + full), lowest), d, x + full);
  }
  auto max = hn::LoadU(d, x);
  for (int64_t i = lanes; i < count; i += lanes) max = hn::Max(max, hn::LoadU(d, x + i));
  max = hn::MaxOfLanes(d, max);
  auto sum = hn::Zero(d);
  for (int64_t i = 0; i < count; i += lanes) {
    const auto e = hn::Exp(d, hn::Sub(hn::LoadU(d, x + i), max));
    sum = hn::Add(sum, e);
    hn::StoreU(e, d, x + i);
  }
  std::fill(x + count, x + std::max(count, end), 0.0f);
  return 1.0f / hn::GetLane(hn::SumOfLanes(d, sum));
}

// Stores `count` dims of one row of the output.
HWY_INLINE void StoreOutput(const float* HWY_RESTRICT sums, float factor, const float* subtract,
                            int64_t count, float* out) {
  if (subtract == nullptr) {
    for (int64_t i = 0; i < count; ++i) out[i] = sums[i] * factor;
  } else {
    for (int64_t i = 0; i < count; ++i) out[i] = sums[i] * factor - subtract[i];
  }
}

int64_t ScoreStride(int64_t num_tokens) { return RoundUpTo(num_tokens, Width()); }

int64_t ScratchFloats(int64_t num_tokens, int64_t dim) {
  return BlockRows() * (dim + ScoreStride(num_tokens)) + kGroupRows * Width();
}

// The first key that a row of the block sees.
int64_t FirstSeen(const CausalBlock& block, int64_t row) {
  return block.sliding_window == 0
             ? 0
             : std::max<int64_t>(0, block.first + row - block.sliding_window + 1);
}

// Scores of the whole block: rows see keys before `visible` at most.
void ScoreBlock(const CausalBlock& block, const float* queries, int64_t stride, float* scores) {
  const int64_t width = Width();
  const int64_t num_groups = (block.rows + kGroupRows - 1) / kGroupRows;
  const int64_t visible = block.first + block.rows;
  for (int64_t key = FirstSeen(block, 0) / width * width; key < visible; key += width) {
    // The first group of rows that sees the panel.
    const int64_t begin = std::max<int64_t>(0, key - block.first) / kGroupRows;
    for (int64_t group = begin; group < num_groups; ++group) {
      const int64_t row = group * kGroupRows;
      if (key + width <= FirstSeen(block, row)) break;  // Later rows see even less.
      MultiplyPanel(queries + row * block.dim, block.dim, block.keys + key * block.dim, block.dim,
                    scores + row * stride + key, stride);
    }
  }
}

void Attend(const CausalBlock& block, float* scratch) {
  const int64_t width = Width();
  const int64_t stride = ScoreStride(block.num_tokens);
  float* queries = scratch;
  float* scores = queries + BlockRows() * block.dim;
  float* sums = scores + BlockRows() * stride;
  CopyQueries(block, queries);
  ScoreBlock(block, queries, stride, scores);
  for (int64_t row = 0; row < block.rows; row += kGroupRows) {
    const int64_t rows = std::min<int64_t>(kGroupRows, block.rows - row);
    const int64_t begin = FirstSeen(block, row) / width * width;
    const int64_t visible = block.first + row + rows - begin;
    float factor[kGroupRows];
    for (int64_t r = 0; r < rows; ++r) {
      float* x = scores + (row + r) * stride;
      std::fill(x + begin, x + FirstSeen(block, row + r), kLowestScore);
      factor[r] = SoftmaxRow(block.first + row + r + 1 - begin, visible, x + begin);
    }
    for (int64_t dim = 0; dim < block.dim; dim += width) {
      MultiplyPanel(scores + row * stride + begin, stride,
                    block.values + dim * block.num_tokens + begin * width, visible, sums, width);
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t offset = (row + r) * block.stride + dim;
        StoreOutput(sums + r * width, factor[r],
                    block.subtract == nullptr ? nullptr : block.subtract + offset,
                    std::min(width, block.dim - dim), block.out + offset);
      }
    }
  }
}

int64_t Target() { return HWY_TARGET; }

}  // namespace
}  // namespace pmkvq::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pmkvq::internal {

HWY_EXPORT(Width);
HWY_EXPORT(BlockRows);
HWY_EXPORT(PackKeys);
HWY_EXPORT(PackAllValues);
HWY_EXPORT(ScratchFloats);
HWY_EXPORT(Attend);
HWY_EXPORT(Target);

int64_t PanelWidth() { return HWY_DYNAMIC_DISPATCH(Width)(); }

int64_t QueryBlockRows() { return HWY_DYNAMIC_DISPATCH(BlockRows)(); }

void PackKeyPanel(const float* k, int64_t stride, int64_t count, int64_t dim, float* panel) {
  HWY_DYNAMIC_DISPATCH(PackKeys)(k, stride, count, dim, panel);
}

void PackValues(const float* v, int64_t stride, int64_t num_tokens, int64_t dim, float* panels) {
  HWY_DYNAMIC_DISPATCH(PackAllValues)(v, stride, num_tokens, dim, panels);
}

int64_t CausalScratchFloats(int64_t num_tokens, int64_t dim) {
  return HWY_DYNAMIC_DISPATCH(ScratchFloats)(num_tokens, dim);
}

void AttendCausalBlock(const CausalBlock& block, float* scratch) {
  HWY_DYNAMIC_DISPATCH(Attend)(block, scratch);
}

int64_t CausalTilesTarget() { return HWY_DYNAMIC_DISPATCH(Target)(); }

}  // namespace pmkvq::internal
#endif  // HWY_ONCE
