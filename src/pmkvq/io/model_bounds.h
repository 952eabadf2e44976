// Sizes that a model may have, whichever file says them. Internal to io/.
#pragma once

#include <cstdint>

namespace pmkvq::internal {

// Far above every published model; the product of any two, in bytes, stays far below 2^63.
inline constexpr int64_t kMaxVocab = int64_t{1} << 24;
inline constexpr int64_t kMaxHidden = int64_t{1} << 20;
inline constexpr int64_t kMaxIntermediate = int64_t{1} << 22;
inline constexpr int64_t kMaxLayers = 4096;
inline constexpr int64_t kMaxHeads = 4096;
inline constexpr int64_t kMaxHeadDim = 256;
inline constexpr int64_t kMaxExperts = 1024;            // Of a block.
inline constexpr int64_t kMaxExpertsInAll = 64 * 1024;  // Kimi K2 has 23,040.

}  // namespace pmkvq::internal
