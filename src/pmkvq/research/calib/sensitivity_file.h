// The JSON file that `sensitivity` writes and `allocate` reads (docs/formats.md):
//
//   {"bits": [16, 8, 4, 2], "k": {"16": [per block], ...}, "v": {...},
//    "model_identity": "...", "calibration": {"dataset": ..., "pack": ..., "n_samples": ...,
//    "seq_len": ..., "effective_len": ..., "seed": ..., "weights": ...}}
//
// "weights" is there where they are not as stored. "bits", "k" and "v" are required; "bits" may
// hold only the widths that are needed.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "pmkvq/kv/plan.h"

namespace pmkvq {

struct SensitivityFile {
  Sensitivity sensitivity;     // 4 widths each; those the file does not hold are empty.
  int64_t num_blocks = 0;      // L, the length of every list.
  std::string model_identity;  // "" when the file does not say.
  CalibrationRecord record;    // Fields that the file lacks keep their defaults.
};

// The text of the file, indented; ends in a newline.
std::string SensitivityJson(const SensitivityFile& file);

// Throws InvalidInput naming `source`, field, value found and what was expected: a width other than
// 16, 8, 4, 2 or twice; lists of different lengths or empty; a value that is negative or no number.
SensitivityFile ParseSensitivityJson(std::string_view text, const std::string& source);
SensitivityFile LoadSensitivity(const std::string& path);  // Also throws IoError.

}  // namespace pmkvq
