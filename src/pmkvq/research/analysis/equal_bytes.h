// The default caches of a comparison: several methods within the same bytes.
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
// within the bytes, and pm-kvq with the bytes as its budget. The bytes: common.budget_bytes, else
// the sum of the plan's budgets, else enough for the narrowest setting of every method. Methods
// that do not fit are left out. `few`: static widths and pm-kvq only.
EqualBytes CachesAtEqualBytes(const KvOptions& common, const KvRequirements& requirements,
                              bool few);

}  // namespace pmkvq
