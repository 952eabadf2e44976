// Drawing the tokens of many rows on a device: only tokens go back to the host, no logits.
//
// The definition is ref::DrawToken's: weights exp((logit - max) / temperature) in double, filters
// in the order top-k, top-p, min-p, sums in the order of ids or, behind a sort, in that order. Here
// sums are exact: weights are added as integer multiples of 2^-84. So they depend on no order, a
// row's token depends on the row only, and repeats are equal. ref::DrawToken rounds each of its V
// sums. So both give the same token except where
// * the uniform number, or top_p or min_p, lies within 1e-13 + V 2^-53, relatively, of a boundary
//   between two tokens (4e-11 for V = 262,144; the rounding errors of random weights are below
//   1e-13);
// * two different logits have a difference below 2^-51 of the temperature: their weights may be
// equal
//   for one and not for the other, and equal ones lie in the order of their ids. Here tokens are
//   sorted by logit, then by id.
#pragma once

#include <cstddef>
#include <cstdint>

#include "pmkvq/tensor/device/buffer.h"
#include "pmkvq/tensor/device/stream.h"

namespace pmkvq {

// What to draw of a row; ranges as in SamplingParams.
struct DeviceDraw {
  double temperature = 0.0;
  int64_t top_k = 0;
  double top_p = 1.0;
  double min_p = 0.0;
  double uniform = 0.0;  // In [0, 1): what the row's Random gave. Unused when temperature is 0.
  int32_t active = 0;    // 0: the row is passed over, and its result is not written.
};
static_assert(sizeof(DeviceDraw) == 48);

struct DeviceDrawn {
  int32_t token = 0;
  // A SamplingOutcome: kDrawn, or kNotFinite where a logit is NaN or +inf, or all are -inf; token
  // is then 0.
  int32_t outcome = 0;
};
static_assert(sizeof(DeviceDrawn) == 8);

// Owns scratch of the device: about 42 KB a row.
// Threads: one call at a time; launches follow each other in stream order.
class DeviceSampler {
 public:
  static constexpr int64_t kMostVocabulary = int64_t{1} << 20;

  // vocab_size <= kMostVocabulary. Throws Unsupported in a program without code for the device.
  DeviceSampler(DeviceId device, int64_t vocab_size, int64_t max_rows);

  // logits [rows, V], draws [rows], out [rows], all of the device; rows <= max_rows. Launches and
  // returns; may be captured (CapturedWork). Does not change the logits.
  void Launch(const float* logits, int64_t rows, const DeviceDraw* draws, DeviceDrawn* out,
              Stream& stream);

 private:
  int64_t vocab_size_;
  int64_t max_rows_;
  Buffer scratch_;
};

namespace internal {
// Of a backend.
size_t DeviceSamplerScratchBytes(DeviceId device, int64_t vocab_size, int64_t max_rows);
void RunDeviceSampler(const float* logits, int64_t vocab_size, int64_t rows,
                      const DeviceDraw* draws, DeviceDrawn* out, const DeviceBytes& scratch,
                      Stream& stream);
}  // namespace internal

}  // namespace pmkvq
