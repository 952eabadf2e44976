// What /set changes in a chat.
#pragma once

#include <cstdint>
#include <string>

#include "pmkvq/kernels/sampling/sampling.h"

namespace pmkvq::cli {

struct ChatSettings {
  SamplingParams sampling;
  uint64_t seed = 0;
  int64_t max_tokens = 0;  // 0: as many as fit.

  // "temperature 0.6, top-p 0.95, ...", one line.
  std::string Describe() const;
  // Takes "NAME VALUE" (also NAME=VALUE) and returns the line to show. Throws InvalidInput naming
  // the setting, the value found and what was expected; nothing is changed then.
  std::string Set(const std::string& assignment);
};

}  // namespace pmkvq::cli
