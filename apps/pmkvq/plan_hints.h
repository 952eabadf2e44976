// Hints at plans that would serve a command better than its present settings.
#pragma once

#include <string>

#include "pmkvq/kv/spec/kv_options.h"

namespace pmkvq::cli {

// A hint about running `kv` with the model in `folder`, or "": pm-kvq without a plan, although the
// folder holds one (plan.json). A SPEC whose bits= sets the budget, or that names a plan, needs no
// hint.
std::string PlanHint(const KvOptions& kv, const std::string& folder);

}  // namespace pmkvq::cli
