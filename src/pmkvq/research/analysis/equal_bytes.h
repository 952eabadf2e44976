// Caches to compare where the user names none: several methods inside the same bytes.
#pragma once

#include <cstdint>
#include <vector>

#include "pmkvq/research/methods/registry.h"

namespace pmkvq {

struct EqualBytes {
  int64_t budget_bytes = 0;  // What each cache may take.
  std::vector<KvOptions> caches;
};

// Static widths, kivi and rtn, each at the widest setting that holds requirements.max_len tokens
// within the bytes, and pm-kvq with the bytes as its budget. The bytes: common.budget_bytes, or the
// sum of the plan's budgets, or without either the largest of what the narrowest settings take.
// Methods that do not fit are left out. `few`: static widths and pm-kvq only.
EqualBytes CachesAtEqualBytes(const KvOptions& common, const KvRequirements& requirements,
                              bool few);

}  // namespace pmkvq
