#include "plan_hints.h"

#include <fmt/format.h>

#include "pmkvq/io/file.h"
#include "pmkvq/kv/spec/packed_spec.h"
#include "pmkvq/kv/spec/spec.h"

namespace pmkvq::cli {

std::string PlanHint(const KvOptions& kv, const std::string& folder) {
  const MethodSpec spec = ParseMethodSpec(kv.spec);
  const PackedMethod* const packed = FindPackedMethod(spec.name);
  if (packed == nullptr || !packed->progressive) return "";
  if (kv.plan != nullptr || spec.keys.contains("bits") || spec.keys.contains("plan")) return "";
  const std::string shipped = JoinPath(folder, "plan.json");
  if (!FileExists(shipped)) return "";
  return fmt::format("hint: pm-kvq runs without a plan; --plan {} gives it key scales{}", shipped,
                     spec.keys.contains("k") ? "" : " and widths per block");
}

}  // namespace pmkvq::cli
