// The packed methods (fp16, static-b, pm-kvq): their names, the keys of their SPEC, and what these
// and the options of a command come to.
//
// Keys: bits=16|8|4|2 (pm-kvq: the budget of that width at max_len in every block, in place of the
//       plan's budgets; not together with --kv-budget),
//       scales=on|off (use the plan's key scales; on by default).
#pragma once

#include <span>
#include <string_view>
#include <vector>

#include "pmkvq/kv/cache_config.h"
#include "pmkvq/methods/kv_options.h"

namespace pmkvq {

struct PackedMethod {
  const char* name;
  const char* description;  // One line for --help.
  bool progressive;
  int bits;  // Width of closed pages; pm-kvq: the floor.
};

std::span<const PackedMethod> PackedMethods();
// Null for a name that is none of them.
const PackedMethod* FindPackedMethod(std::string_view name);

// What packed and simulated methods have in common. Throws InvalidInput: a plan for other shapes, a
// negative budget.
void CheckCommonOptions(const KvOptions& options, const KvRequirements& requirements);

// Contracts: ResolveCacheConfig and KeyScalesOf of registry.h. The SPEC's name is a packed one.
CacheConfig ResolvePackedConfig(const KvOptions& options, const KvRequirements& requirements);
const std::vector<Tensor>& PackedKeyScales(const KvOptions& options);

}  // namespace pmkvq
