// The packed methods (fp16, static-b, pm-kvq): their names, the keys of their SPEC, and what these
// and the options of a command come to.
//
// Keys, which win over the options of a command:
//   scales=on|off          use the plan's key scales (on)
//   plan=FILE|none         that plan, or none, in place of --plan
// static-b and pm-kvq:
//   sink=N, window=N       --n-sink-token, --n-window-token
// pm-kvq:
//   bits=16|8|4|2          the budget of that width at max_len in every block, in place of the
//                          plan's budgets; not together with --kv-budget
//   k=B+v=B                planned widths of K and V in every block, in place of the plan's; and
//                          their budget at max_len where there is no --kv-budget
//   policy=layer-budget|oldest-first
//   axis=token|channel     what a (min, range) of quantised keys is for (token)
//   rotate=off|keys|values|both
//                          Walsh-Hadamard transform per head before storing (off); D a power of two
//   static                 (a word) pages close at once at the planned widths (of k and v, bits or
//                          the plan) and stay there
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

// The options with the keys of their SPEC applied: sink, window, policy, and the plan, which is
// loaded. Applying them twice changes nothing; the options of simulated methods are not changed.
// Whoever asks for key scales or checks the plan's identity does so on the result.
// Throws InvalidInput for a wrong key of a packed SPEC, and what LoadPlan throws.
KvOptions ApplySpecKeys(const KvOptions& options);

// Settings of pm-kvq by name: --recipe NAME stands for --kv SPEC.
struct KvRecipe {
  const char* name;
  const char* spec;
  const char* description;
};
std::span<const KvRecipe> KvRecipes();

// What packed and simulated methods have in common. Throws InvalidInput: a plan for other shapes, a
// negative budget.
void CheckCommonOptions(const KvOptions& options, const KvRequirements& requirements);

// Contracts: ResolveCacheConfig and KeyScalesOf of registry.h. The SPEC's name is a packed one;
// a plan that it names has been loaded (ApplySpecKeys) before key scales are asked for.
CacheConfig ResolvePackedConfig(const KvOptions& options, const KvRequirements& requirements);
const std::vector<Tensor>& PackedKeyScales(const KvOptions& options);

}  // namespace pmkvq
