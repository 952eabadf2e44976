// What a rank's part of a model on a CUDA device does beside the steps of device_rows.h: columns
// of rows for products with slices of a weight, sums over slices and ranks in a fixed order, rows
// from the columns of several products.
//
// All pointers are of the device. Functions launch on the stream and return; may be captured.
// Threads: one caller per stream. Errors: Unsupported in a program without CUDA, DeviceError.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "pmkvq/kernels/device_rows/device_rows.h"
#include "pmkvq/tensor/device/stream.h"

namespace pmkvq {

// out [rows, width] = columns [first, first + width) of x [rows, x_width], rounded.
void RoundColumns(const float* x, int64_t rows, int64_t x_width, int64_t first, int64_t width,
                  const ProductRows& out, Stream& stream);

inline constexpr size_t kMostAddedSums = 64;

// out [rows, width] = the sum of sums[0 .. n - 1], each [rows, width], in the tree of
// comm/sum_tree.h: neighbours first. n is a power of two, at most kMostAddedSums. Sums without data
// are zeros. `out` may be one of them, where that has one part.
void AddSumsInTree(std::span<const ProductSums> sums, int64_t rows, int64_t width, float* out,
                   Stream& stream);

// Columns [from, from + width) of sums [rows, sums_width] become columns [at, at + width).
struct JoinedColumns {
  ProductSums sums;
  int64_t sums_width = 0;
  int64_t from = 0;
  int64_t width = 0;
  int64_t at = 0;
};
inline constexpr size_t kMostJoined = 48;  // In one launch; more are several launches.

// out [rows, out_width]: the columns of all pieces, each in its place.
void JoinColumns(std::span<const JoinedColumns> pieces, int64_t rows, float* out, int64_t out_width,
                 Stream& stream);

}  // namespace pmkvq
