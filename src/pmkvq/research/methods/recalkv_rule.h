// ReCalKV's steps: which KV heads share a low-rank factor, the factor, and ranks by importance.
//
// `second_moment` [E, E] is X^T X of the rows X that a projection [C, E] is applied to: with the
// whitening M = S S^T, a singular value decomposition of W S truncated to rank r, times the inverse
// of S, is U_r U_r^T W, where U_r has the eigenvectors of W M W^T with the largest eigenvalues. So
// no inverse of S is needed.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace pmkvq {

// Linear centred kernel alignment of the outputs of the heads, [H, H]: with K_ab = W_a (M - n m
// m^T) W_b^T of `num_rows` = n rows of mean m [E], |K_ab|^2 / (|K_aa| |K_bb|).
std::vector<double> HeadAlignment(std::span<const float> weight, int64_t num_heads,
                                  std::span<const double> second_moment,
                                  std::span<const double> mean, double num_rows);

// `num_heads` / `group` groups of `group` heads, each ascending. Pairs by falling alignment (of
// equal ones the lower heads): two free heads go to the first group with room, a free one to the
// group of the other if that has room. A group with a head too many passes its last one on, and
// heads that are left fill up.
std::vector<std::vector<int64_t>> GroupHeads(std::span<const double> alignment, int64_t num_heads,
                                             int64_t group);

// The best approximation of rank `rank` of W [rows, E] for these inputs.
struct LowRankWeight {
  std::vector<float> weight;   // [rows, E]
  std::vector<float> vectors;  // [rank, rows]: U_r^T, orthonormal rows.
};
LowRankWeight LowRank(std::span<const float> weight, int64_t rows,
                      std::span<const double> second_moment, int64_t rank);

// Ranks of matrices of `full` rows: together `share` of their rows, in proportion to importance,
// each in [step, full] and then the nearest multiple of `step`.
std::vector<int64_t> RanksByImportance(std::span<const double> importance, double share,
                                       int64_t full, int64_t step);

}  // namespace pmkvq
