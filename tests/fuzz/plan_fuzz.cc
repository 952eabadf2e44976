// The JSON part of a plan.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "pmkvq/base/error.h"
#include "pmkvq/kv/plan.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    std::string hash;
    const pmkvq::Plan plan = pmkvq::ParsePlanJson(
        std::string_view(reinterpret_cast<const char*>(data), size), "fuzz.json", &hash);
    const auto num_layers = static_cast<size_t>(plan.geometry.num_layers());
    if (plan.k_bits.size() != num_layers || plan.v_bits.size() != num_layers ||
        plan.budget_bytes.size() != num_layers) {
      std::abort();
    }
    if (hash.empty() != plan.alpha.empty()) std::abort();
  } catch (const pmkvq::Error&) {
  }
  return 0;
}
