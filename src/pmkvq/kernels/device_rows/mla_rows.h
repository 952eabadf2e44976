// What latent attention (model/blocks/attention_mla.h) does on a CUDA device between matrix
// products. Rows and products are as device_rows.h has them; a row's bits depend on that row alone.
//
// Sums of stacked projections are wider than what is read of them: `width` values a row, of which a
// step reads some from `at` on.
#pragma once

#include <cstdint>

#include "pmkvq/kernels/device_rows/device_rows.h"

namespace pmkvq {

struct StackedSums {
  ProductSums sums;
  int64_t width = 0;
  int64_t at = 0;
};

// RoPE of rows: rotations of MakeRotations, and which channels turn together (kernels/rope/rope.h).
struct RopeOfRows {
  const float* rotations = nullptr;  // [rows, dr / 2, 2]
  int64_t width = 0;                 // dr, at most 128.
  bool in_pairs = true;
};

// (u [r], k_r [dr]) of each row: latents = u / sqrt(mean(u^2) + eps) * weight, rope_keys = k_r
// rotated.
struct LatentRows {
  StackedSums from;
  int64_t rows = 0;
  int64_t latent = 0;             // r
  const float* weight = nullptr;  // [r]
  float eps = 0.0f;
  RopeOfRows rope;
  float* latents = nullptr;    // [rows, r]
  float* rope_keys = nullptr;  // [rows, dr]
};
void MakeLatentRows(const LatentRows& op, Stream& stream);

// out = x / sqrt(mean(x^2) + eps) * weight of `count` values of each row.
void NormSums(const StackedSums& from, int64_t rows, int64_t count, const float* weight, float eps,
              const ProductRows& out, Stream& stream);

// Queries [H, dn + dr] of each row: the first dn values of a head go to `nope` [H, dn], rounded;
// the others, rotated and times `scale`, to the last dr of q [rows, H, r + dr].
struct LatentQueryRows {
  StackedSums from;
  int64_t rows = 0;
  int64_t num_heads = 0;  // H
  int64_t nope = 0;       // dn
  int64_t latent = 0;     // r
  RopeOfRows rope;
  float scale = 1.0f;
  ProductRows nope_rows;
  float* q = nullptr;
};
void MakeLatentQueries(const LatentQueryRows& op, Stream& stream);

// The first r values of each head of q [rows, H, r + dr] = sums [rows, H, r] times `scale`.
void PutAbsorbedQueries(const ProductSums& sums, int64_t rows, int64_t num_heads, int64_t latent,
                        int64_t rope, float scale, float* q, Stream& stream);

// out = sums [rows, width], rounded.
void RoundSums(const ProductSums& sums, int64_t rows, int64_t width, const ProductRows& out,
               Stream& stream);

}  // namespace pmkvq
