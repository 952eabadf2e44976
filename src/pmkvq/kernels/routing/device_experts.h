// A mixture of experts on a CUDA device: routing of rows, products of each expert with its rows,
// and the sum of their results. The host learns nothing of the choice, so all of it can be captured
// (tensor/device/captured_work.h): launches depend on numbers of rows only, and read the matrices
// of experts that have rows.
//
// n experts, k of them for each row. A pair is a row and one of its experts: pair row * k + j is
// the jth by falling score. Pairs are sorted by expert, those of one expert in their order; the
// place of a pair is where it stands then.
//
// A row's bits depend on that row alone. All pointers are of the device. Functions launch on the
// stream and return. Threads: one caller per stream. Errors: a wrong shape is a caller's bug;
// Unsupported in a program without CUDA; DeviceError.
#pragma once

#include <cstddef>
#include <cstdint>

#include "pmkvq/kernels/device_rows/device_rows.h"
#include "pmkvq/kernels/routing/routing.h"
#include "pmkvq/tensor/device/stream.h"

namespace pmkvq {

// Memory of a routing of at most `rows` rows.
struct DeviceRouting {
  int32_t* experts = nullptr;  // [rows, k]
  float* weights = nullptr;    // [rows, k]
  int32_t* places = nullptr;   // [rows, k]: the place of each pair.
  int32_t* pairs = nullptr;    // [rows * k]: the pair at each place.
  int32_t* first = nullptr;    // [n + 1]: expert e has the places first[e] to first[e + 1] - 1.
  int32_t* used = nullptr;     // [n + 1]: how many experts have rows, then which.
};
size_t DeviceRoutingBytes(const RoutingRule& rule, int64_t rows);
// Cuts memory of DeviceRoutingBytes.
DeviceRouting CutRouting(const RoutingRule& rule, int64_t rows, std::byte* memory);

// RouteRows and GroupByExpert of logits [rows, n]; `bias` [n] may be null.
void RouteOnDevice(const RoutingRule& rule, const float* bias, const float* logits, int64_t rows,
                   const DeviceRouting& routing, Stream& stream);

// y[place] = W[expert of the place] x, for all places. W: n matrices [n_out, k_in] behind each
// other.
struct ExpertProduct {
  ProductRows x;  // Of the type of W, one part (F32) or two.
  // Row pair / k of x where `of_rows`, else row `place`.
  bool of_rows = false;
  const std::byte* w = nullptr;
  int64_t n_out = 0;
  int64_t k_in = 0;
  float* y = nullptr;  // [rows * k, n_out]
};
void MultiplyExperts(const RoutingRule& rule, int64_t rows, const DeviceRouting& routing,
                     const ExpertProduct& product, Stream& stream);

// x [rows, width] += the weighted results y [rows * k, width] of a row's experts, in the order of
// their numbers.
void AddExperts(const RoutingRule& rule, int64_t rows, const DeviceRouting& routing, const float* y,
                int64_t width, float* x, Stream& stream);

}  // namespace pmkvq
