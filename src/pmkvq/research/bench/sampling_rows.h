// What the benchmarks of sampling draw from. Internal to bench/.
#pragma once

#include <cstdint>
#include <vector>

#include "pmkvq/kernels/sampling/sampling.h"

namespace pmkvq::internal {

// What a row of the table asks for.
struct SamplingMode {
  const char* name;
  SamplingParams params;
  bool flat = false;
  bool has_penalties = false;
  int64_t num_logprobs = -1;
};

inline constexpr SamplingMode kSamplingModes[] = {
    {"greedy", {0.0, 0, 1.0, 0.0}},
    {"temperature 1", {1.0, 0, 1.0, 0.0}},
    {"temperature 1, flat", {1.0, 0, 1.0, 0.0}, true},
    {"top-k 20", {0.6, 20, 1.0, 0.0}},
    {"top-p 0.95", {0.6, 0, 0.95, 0.0}},
    {"top-p 0.95, flat", {0.6, 0, 0.95, 0.0}, true},
    {"top-k 20, top-p 0.95", {0.6, 20, 0.95, 0.0}},
    {"min-p 0.05", {0.6, 0, 1.0, 0.05}},
    {"top-p 0.95, penalties", {0.6, 0, 0.95, 0.0}, false, true},
    {"greedy, 5 log-probabilities", {0.0, 0, 1.0, 0.0}, false, false, 5},
    {"top-p 0.95, 5 log-probabilities", {0.6, 0, 0.95, 0.0}, false, false, 5},
    {"top-p 0.95, penalties, 5 log-probabilities", {0.6, 0, 0.95, 0.0}, false, true, 5},
};

inline constexpr int kPeaks = 50;  // The least vocabulary.

// [rows, vocab]: flat, normally distributed with deviation 3, of which top-p keeps hundreds of
// tokens; or with deviation 2.5 and kPeaks tokens far above, whose probabilities fall like i^-1.5.
std::vector<float> RandomLogits(int64_t num_rows, int64_t vocab_size, bool flat);

}  // namespace pmkvq::internal
