// Vector kernels of dense causal attention in floats. Private to this folder.
//
// Keys and values of one KV head are packed into panels of PanelWidth() floats:
//   keys    [ceil(N / P)][D][P]  a panel is P keys, transposed: lanes are keys
//   values  [ceil(D / P)][N][P]  a panel is P dims of all tokens: lanes are dims
// with zeros past N and D. The products of a few rows with a panel then read both factors in order
// and keep their sums in registers.
#pragma once

#include <cstdint>

namespace pmkvq::internal {

// P, and the query rows that are worked on at once, for the instruction set in use.
int64_t PanelWidth();
int64_t QueryBlockRows();

// One panel of keys: k points to its first key, `count` keys (at most P) every `stride` floats.
void PackKeyPanel(const float* k, int64_t stride, int64_t count, int64_t dim, float* panel);
// All panels of a head's values: v points to its first token.
void PackValues(const float* v, int64_t stride, int64_t num_tokens, int64_t dim, float* panels);

// A block of at most QueryBlockRows() query rows of one head.
struct CausalBlock {
  const float* q = nullptr;  // First row; rows every `stride` floats.
  int64_t stride = 0;        // Of q, subtract and out.
  // Row factors per channel pair (i, i + D/2), or null.
  const float* q_factor = nullptr;  // [D/2]
  int64_t first = 0;                // Position of the first row: row r sees keys 0 .. first + r.
  int64_t rows = 0;
  int64_t num_tokens = 0;  // N, of the packed values
  int64_t dim = 0;         // D
  float scale = 1.0f;
  int64_t sliding_window = 0;  // W: row r sees no keys before first + r - W + 1; 0: none.
  const float* keys = nullptr;
  const float* values = nullptr;
  const float* subtract = nullptr;  // Subtracted from the output; may be null.
  float* out = nullptr;
};

// Floats of scratch that AttendCausalBlock needs.
int64_t CausalScratchFloats(int64_t num_tokens, int64_t dim);

// out = softmax(scale * (q * q_factor) K^T) V - subtract, for the rows of the block.
void AttendCausalBlock(const CausalBlock& block, float* scratch);

// For tests: the Highway target whose code these functions would run now.
int64_t CausalTilesTarget();

}  // namespace pmkvq::internal
