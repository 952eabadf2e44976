#include "pmkvq/research/analysis/equal_bytes.h"

#include <algorithm>
#include <numeric>
#include <string>

#include "pmkvq/kv/plan.h"

namespace pmkvq {
namespace {

// SPECs of one method, widest first.
using Family = std::vector<std::string>;

int64_t BytesOf(const KvOptions& common, const std::string& spec,
                const KvRequirements& requirements) {
  KvOptions options = common;
  options.spec = spec;
  options.budget_bytes = 0;
  return ResolveKvBudget(options, requirements).total_bytes();
}

}  // namespace

EqualBytes CachesAtEqualBytes(const KvOptions& common, const KvRequirements& requirements,
                              bool few) {
  std::vector<Family> families = {{"static-8", "static-4", "static-2"}};
  if (!few && !HasLatents(requirements.geometry)) {  // Published methods have no latents.
    families.push_back({"kivi:bits=4", "kivi"});
    families.push_back({"rtn:bits=8", "rtn:bits=4", "rtn:bits=3", "rtn:bits=2"});
  }
  EqualBytes result;
  result.budget_bytes = common.budget_bytes;
  if (result.budget_bytes == 0 && common.plan != nullptr) {
    const std::vector<int64_t>& blocks = common.plan->budget_bytes;
    result.budget_bytes = std::accumulate(blocks.begin(), blocks.end(), int64_t{0});
  }
  if (result.budget_bytes == 0) {
    for (const Family& family : families) {
      result.budget_bytes =
          std::max(result.budget_bytes, BytesOf(common, family.back(), requirements));
    }
  }
  const auto add = [&](const std::string& spec) {
    result.caches.push_back(common);
    result.caches.back().spec = spec;
    result.caches.back().budget_bytes = result.budget_bytes;
  };
  for (const Family& family : families) {
    const auto widest = std::find_if(family.begin(), family.end(), [&](const std::string& spec) {
      return BytesOf(common, spec, requirements) <= result.budget_bytes;
    });
    if (widest != family.end()) add(*widest);
  }
  add("pm-kvq");
  return result;
}

}  // namespace pmkvq
