// Hints at plans that would serve a command better than its present settings.
#pragma once

#include <string>

#include "pmkvq/kv/spec/kv_options.h"

namespace pmkvq::cli {

// A hint about running `kv` with the model in `folder`, or "":
// - pm-kvq without a plan, although the folder holds one (plan.json);
// - `is_best`, the recipe of that name, without a plan or with one whose K and V have equal widths.
// SPECs with widths or a plan of their own need no hint.
std::string PlanHint(const KvOptions& kv, const std::string& folder, bool is_best);

}  // namespace pmkvq::cli
