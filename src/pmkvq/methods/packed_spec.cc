#include "pmkvq/methods/packed_spec.h"

#include <fmt/format.h>

#include <algorithm>

#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"
#include "pmkvq/methods/spec.h"

namespace pmkvq {
namespace {

constexpr PackedMethod kMethods[] = {
    {"fp16", "nothing quantised (the float type of --kv-dtype)", false, 16},
    {"static-8", "every closed page at once at 8 bits", false, 8},
    {"static-4", "every closed page at once at 4 bits", false, 4},
    {"static-2", "every closed page at once at 2 bits", false, 2},
    {"pm-kvq", "progressive: 16 -> 8 -> 4 -> 2 bits when the budget is reached", true, 2},
};

bool IsWidth(int bits) { return std::find(kWidths.begin(), kWidths.end(), bits) != kWidths.end(); }

// A packed SPEC with its keys.
struct Choice {
  MethodSpec spec;
  const PackedMethod* method = nullptr;
  int bits = 0;  // The bits key of pm-kvq; 0: not given.
  bool use_scales = true;
};

Choice Read(const std::string& spec_text) {
  Choice choice;
  choice.spec = ParseMethodSpec(spec_text);
  choice.method = FindPackedMethod(choice.spec.name);
  PMKVQ_CHECK(choice.method != nullptr);
  const std::string& text = choice.spec.text;
  if (choice.method->progressive) {
    choice.spec.CheckNames({"bits", "scales"});
  } else {
    choice.spec.CheckNames({"scales"});
  }
  for (const auto& [key, value] : choice.spec.keys) {
    const auto fail = [&](const std::string& expected) {
      return InvalidInput("--kv",
                          fmt::format("'{}': {}={}, expected {}", text, key, value, expected));
    };
    if (key == "scales") {
      if (value != "on" && value != "off") throw fail("on or off");
      choice.use_scales = value == "on";
    } else {
      for (const int bits : kWidths) {
        if (value == std::to_string(bits)) choice.bits = bits;
      }
      if (choice.bits == 0) throw fail("16, 8, 4 or 2");
    }
  }
  return choice;
}

void CheckPlanShapes(const Plan& plan, const KvGeometry& geometry) {
  const auto describe = [](const KvGeometry& g) {
    return fmt::format("{} blocks, {} heads, {} KV heads, head_dim {}", g.num_layers, g.num_heads,
                       g.num_kv_heads, g.head_dim);
  };
  const std::string found = describe(plan.geometry);
  const std::string expected = describe(geometry);
  if (found != expected) {
    throw InvalidInput("--plan", fmt::format("made for {}, expected {}", found, expected));
  }
}

std::vector<int64_t> UniformBudgets(const CacheConfig& config, int64_t max_len, int bits) {
  const int64_t bytes =
      config.reference_accounting
          ? ReferenceBlockBytes(config.geometry, max_len, bits, bits)
          : BlockBytes(config, std::max(max_len, config.sink_tokens + 1), bits, bits);
  return std::vector<int64_t>(static_cast<size_t>(config.geometry.num_layers), bytes);
}

// Budgets of the progressive method, and the plan's widths where its budgets are in use.
void SetProgressiveBudgets(const KvOptions& options, const Choice& choice, int64_t max_len,
                           CacheConfig& config) {
  const Plan* plan = choice.bits == 0 ? options.plan.get() : nullptr;
  if (plan != nullptr) {
    config.k_bits = plan->k_bits;
    config.v_bits = plan->v_bits;
  }
  if (options.budget_bytes > 0) {
    const std::vector<int64_t> weights =
        plan != nullptr ? plan->budget_bytes : std::vector<int64_t>();
    config.budget_bytes = SplitBudget(options.budget_bytes, config.geometry.num_layers, weights);
  } else if (choice.bits != 0) {
    config.budget_bytes = UniformBudgets(config, max_len, choice.bits);
  } else if (plan != nullptr && !plan->budget_bytes.empty()) {
    config.budget_bytes = plan->budget_bytes;
    // Budgets that count payload only would be too small for a cache that counts everything.
    config.reference_accounting |= plan->reference_accounting;
  } else {
    throw InvalidInput(
        "--kv", "pm-kvq has no budget, expected --kv-budget, --plan or pm-kvq:bits=16|8|4|2");
  }
}

}  // namespace

std::span<const PackedMethod> PackedMethods() { return kMethods; }

const PackedMethod* FindPackedMethod(std::string_view name) {
  for (const PackedMethod& method : kMethods) {
    if (name == method.name) return &method;
  }
  return nullptr;
}

void CheckCommonOptions(const KvOptions& options, const KvRequirements& requirements) {
  PMKVQ_CHECK(requirements.max_len > 0 && requirements.max_sequences > 0);
  if (options.plan != nullptr) CheckPlanShapes(*options.plan, requirements.geometry);
  if (options.budget_bytes < 0) {
    throw InvalidInput("--kv-budget",
                       fmt::format("found {}, expected more than 0 bytes", options.budget_bytes));
  }
}

CacheConfig ResolvePackedConfig(const KvOptions& options, const KvRequirements& requirements) {
  const Choice choice = Read(options.spec);
  CheckCommonOptions(options, requirements);
  const Plan* plan = options.plan.get();
  if (options.budget_bytes > 0 && choice.bits != 0) {
    throw InvalidInput("--kv", fmt::format("'{}': bits sets a budget and so does --kv-budget {}, "
                                           "expected one of them",
                                           options.spec, options.budget_bytes));
  }
  if (choice.method->progressive && !IsWidth(options.init_kv_bits)) {
    throw InvalidInput("--n-init-kv-bits",
                       fmt::format("found {}, expected 16, 8, 4 or 2", options.init_kv_bits));
  }

  CacheConfig config;
  config.geometry = requirements.geometry;
  config.float_type = options.kv_dtype;
  config.sink_tokens = options.sink_tokens >= 0 ? options.sink_tokens
                       : plan != nullptr        ? plan->sink_tokens
                                                : 1;
  config.window_tokens = options.window_tokens >= 0 ? options.window_tokens
                         : plan != nullptr          ? plan->window_tokens
                                                    : kPageTokens;
  config.max_sequences = requirements.max_sequences;
  config.policy = options.policy;
  config.num_threads = requirements.num_threads;
  config.reference_accounting = options.reference_accounting;
  config.floor_bits = choice.method->bits;
  if (choice.method->progressive) {
    config.close_bits = options.init_kv_bits;
    SetProgressiveBudgets(options, choice, requirements.max_len, config);
  } else {
    config.close_bits = choice.method->bits;
    config.budget_bytes = options.budget_bytes > 0
                              ? SplitBudget(options.budget_bytes, config.geometry.num_layers, {})
                              : UniformBudgets(config, requirements.max_len, choice.method->bits);
  }
  ValidateCacheConfig(config);
  return config;
}

const std::vector<Tensor>& PackedKeyScales(const KvOptions& options) {
  static const std::vector<Tensor> kNone;
  const bool use_scales = Read(options.spec).use_scales;
  return use_scales && options.plan != nullptr ? options.plan->key_scales : kNone;
}

}  // namespace pmkvq
