#include "plan_hints.h"

#include <fmt/format.h>

#include "pmkvq/io/file.h"
#include "pmkvq/kv/spec/packed_spec.h"
#include "pmkvq/kv/spec/spec.h"

namespace pmkvq::cli {
namespace {

std::string HowToSplit(const std::string& plan_path) {
  return fmt::format(
      "pmkvq calibrate --from {} --separate-kv --memory-budget SIZE --max-len N --plan split.json "
      "makes one in a moment",
      plan_path);
}

}  // namespace

std::string PlanHint(const KvOptions& kv, const std::string& folder, bool is_best) {
  const MethodSpec spec = ParseMethodSpec(kv.spec);
  const PackedMethod* const packed = FindPackedMethod(spec.name);
  if (packed == nullptr || !packed->progressive) return "";
  for (const char* key : {"bits", "k", "v", "plan"}) {
    if (spec.keys.contains(key)) return "";
  }
  const std::string shipped = JoinPath(folder, "plan.json");
  const bool has_shipped = FileExists(shipped);
  if (kv.plan == nullptr) {
    if (is_best) {
      return "hint: --recipe best is made for --plan with widths of K and V apart; " +
             (has_shipped ? HowToSplit(shipped)
                          : std::string("pmkvq calibrate --separate-kv makes one"));
    }
    return has_shipped ? fmt::format(
                             "hint: pm-kvq runs without a plan; --plan {} gives it key "
                             "scales and widths per block",
                             shipped)
                       : "";
  }
  // Latents and their rope parts have widths apart in any plan.
  if (is_best && kv.plan->k_bits == kv.plan->v_bits && !HasLatents(kv.plan->geometry)) {
    return fmt::format(
        "hint: --recipe best is made for a plan with widths of K and V apart, {} has "
        "none; {}",
        kv.plan_path, HowToSplit(kv.plan_path));
  }
  return "";
}

}  // namespace pmkvq::cli
