// The packed methods (fp16, static-b, pm-kvq): their names, the keys of their SPEC, and the
// settings that follow from these and from the options of a command. Keys win over options.
// PackedMethods() declares them; docs/methods.md describes each.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "pmkvq/kv/cache_config.h"
#include "pmkvq/kv/spec/kv_options.h"
#include "pmkvq/kv/spec/spec.h"

namespace pmkvq {

struct PackedMethod {
  std::string name;
  std::string description;  // One line for --help, without keys.
  SpecKeys keys;
  bool progressive = false;
  int bits = 16;  // Width of closed pages; pm-kvq: the floor.
};

const std::vector<PackedMethod>& PackedMethods();
// Null for a name that is none of them.
const PackedMethod* FindPackedMethod(std::string_view name);

// The options with the keys of their SPEC applied: sink, window, policy, and the plan, which is
// loaded. Applying them twice changes nothing; the options of simulated methods are not changed.
// Key scales and the plan's identity must be read from the result.
// Throws InvalidInput for a wrong key of a packed SPEC, and as LoadPlan.
KvOptions ApplySpecKeys(const KvOptions& options);

// The same, for the model of this identity. Throws also InvalidInput for the plan of another model.
KvOptions ApplySpecKeysFor(const std::string& model_identity, const KvOptions& options);

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

// How a store counts the bytes of a block, where budgets follow from widths.
struct BlockByteCount {
  // What a block is given for sequences of up to `max_len` tokens at these widths.
  int64_t (*budget)(const CacheConfig& config, size_t layer, int64_t max_len, PageWidths widths);
  BytesAtFloor floor;
};
// The same for a store that does not count everything it allocates. ResolvePackedConfig refuses
// options that ask for such a one (CountsPayload): throws Unsupported.
CacheConfig ResolvePackedConfig(const KvOptions& options, const KvRequirements& requirements,
                                const BlockByteCount& count);
// Whether the options, or the plan whose budgets they take, say --reference-accounting. Throws as
// ApplySpecKeys.
bool CountsPayload(const KvOptions& options);
const std::vector<Tensor>& PackedKeyScales(const KvOptions& options);

}  // namespace pmkvq
