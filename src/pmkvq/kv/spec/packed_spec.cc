#include "pmkvq/kv/spec/packed_spec.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <string>
#include <variant>

#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"
#include "pmkvq/kv/spec/spec.h"

namespace pmkvq {
namespace {

// The plan's key, and the fields' that are keys of these methods and wider ones.
SpecKeys KeysOf(CacheField::KeyOf methods) {
  SpecKeys keys = {FileKey("plan", "--plan", "plan in place of --plan", {"none"})};
  for (const CacheField& field : CacheFields()) {
    if (field.key_of != CacheField::KeyOf::kNone && field.key_of <= methods) {
      keys.push_back(KeyOfField(field));
    }
  }
  return keys;
}

constexpr KvRecipe kRecipes[] = {
    {"paper", "pm-kvq", "as published"},
    {"best", "pm-kvq:policy=oldest-first+k=4+v=2",
     "what does best at equal bytes (docs/frontier.md)"},
};

bool IsWidth(int bits) { return std::find(kWidths.begin(), kWidths.end(), bits) != kWidths.end(); }

// A packed SPEC whose keys are declared.
struct PackedSpec {
  MethodSpec spec;
  const PackedMethod* method = nullptr;
  std::string plan;  // Of the key plan=; empty: not given.
};

void CheckKeysAgree(const MethodSpec& spec) {
  const auto fail = [&](const std::string& found, const std::string& expected) {
    return InvalidInput("--kv",
                        fmt::format("'{}': found {}, expected {}", spec.text, found, expected));
  };
  const bool has_k = spec.keys.contains("k");
  if (has_k != spec.keys.contains("v")) {
    throw fail(has_k ? "k without v" : "v without k", "both or neither");
  }
  if (has_k && spec.keys.contains("bits")) throw fail("bits beside k and v", "one of them");
  if (spec.words.contains("static") && spec.keys.contains("policy")) {
    throw fail("policy beside static", "one of them: static pages are never halved");
  }
}

// The name is a packed method's.
PackedSpec Read(const std::string& spec_text) {
  PackedSpec read;
  read.spec = ParseMethodSpec(spec_text);
  read.method = FindPackedMethod(read.spec.name);
  PMKVQ_CHECK(read.method != nullptr);
  read.spec.Check(read.method->keys);
  CheckKeysAgree(read.spec);
  read.plan = read.spec.Text("plan", "");
  return read;
}

// The options with all that their SPEC says.
CacheSettings SettingsOf(const KvOptions& options, const PackedSpec& read) {
  CacheSettings settings = options;
  ApplyFields(read.spec, FieldsToApply::kAll, settings);
  return settings;
}

void CheckPlanShapes(const Plan& plan, const std::string& plan_path, const KvGeometry& geometry) {
  const std::string found = Describe(plan.geometry);
  const std::string expected = Describe(geometry);
  if (found != expected) {
    throw InvalidInput(plan_path, fmt::format("made for {}, expected {}", found, expected));
  }
}

int64_t WholeBlockBytes(const CacheConfig& config, size_t layer, int64_t max_len,
                        PageWidths widths) {
  // The width that a SPEC names is that of c where k_r has a floor above it.
  if (config.geometry.blocks[layer].is_latent() && !config.static_widths) {
    widths.v = std::max(widths.v, FloorWidths(config, layer).v);
  }
  return BlockBytes(config, layer, std::max(max_len, config.sink_tokens + 1), widths.k, widths.v);
}
constexpr BlockByteCount kWholeBytes = {WholeBlockBytes, FloorBytes};

// Of every block at the same widths.
std::vector<int64_t> UniformBudgets(const CacheConfig& config, int64_t max_len, PageWidths widths,
                                    const BlockByteCount& count) {
  std::vector<int64_t> budgets;
  for (size_t layer = 0; layer < config.geometry.blocks.size(); ++layer) {
    budgets.push_back(count.budget(config, layer, max_len, widths));
  }
  return budgets;
}

// Whether k= and v= stand beside budgets of a plan. Budgets of payload are too small for them.
bool KeepsBudgets(const KvOptions& options, const CacheSettings& settings) {
  return std::holds_alternative<BlockWidths>(settings.widths) && !settings.static_widths &&
         options.plan != nullptr && !options.plan->settings.reference_accounting;
}

// Budgets and widths of pm-kvq. Widths of the SPEC take the place of the plan's. bits= is a budget
// as well; k= and v= say an order of halving, so that the plan's budgets stay.
void SetProgressiveBudgets(const KvOptions& options, const CacheSettings& settings, int64_t max_len,
                           const BlockByteCount& count, CacheConfig& config) {
  const auto* const budget_width = std::get_if<BudgetWidth>(&settings.widths);
  const auto* const block_widths = std::get_if<BlockWidths>(&settings.widths);
  const bool has_widths = budget_width != nullptr || block_widths != nullptr;
  const PageWidths widths = block_widths != nullptr ? PageWidths{block_widths->k, block_widths->v}
                            : budget_width != nullptr
                                ? PageWidths{budget_width->bits, budget_width->bits}
                                : PageWidths{0, 0};
  const Plan* const plan = has_widths ? nullptr : options.plan.get();
  const Plan* const planned =
      has_widths && !KeepsBudgets(options, settings) ? nullptr : options.plan.get();
  const bool has_budgets = planned != nullptr && !planned->budget_bytes.empty();
  const size_t num_layers = config.geometry.blocks.size();
  config.static_widths = settings.static_widths;
  if (block_widths != nullptr || (settings.static_widths && has_widths)) {
    config.k_bits.assign(num_layers, widths.k);
    config.v_bits.assign(num_layers, widths.v);
  } else if (plan != nullptr) {
    config.k_bits = plan->k_bits;
    config.v_bits = plan->v_bits;
  } else if (settings.static_widths) {
    throw InvalidInput("--kv", fmt::format("'{}': static has no widths, expected --plan, bits=B or "
                                           "k=B+v=B",
                                           options.spec));
  }
  if (options.budget_bytes > 0) {
    config.budget_bytes = SplitBudget(options.budget_bytes,
                                      has_budgets ? planned->budget_bytes : EvenWeights(config));
  } else if (has_budgets) {
    config.budget_bytes = planned->budget_bytes;
  } else if (has_widths) {
    config.budget_bytes = UniformBudgets(config, max_len, widths, count);
  } else {
    throw InvalidInput(
        "--kv", "pm-kvq has no budget, expected --kv-budget, --plan or pm-kvq:bits=16|8|4|2");
  }
}

std::array<double, 4> OfBlock(const std::vector<std::vector<double>>& by_width, size_t layer) {
  std::array<double, 4> widths{};
  for (size_t i = 0; i < widths.size(); ++i) widths[i] = by_width[i][layer];
  return widths;
}

// Widths of pages close at what the SPEC says and go down to the pool's floor; there are no budgets
// of blocks. The plan tells whose pages are worth most.
void SetPool(const KvOptions& options, const CacheSettings& settings, const PackedMethod& method,
             CacheConfig& config) {
  if (options.budget_bytes > 0) {
    throw InvalidInput("--kv-budget",
                       "found one beside a pool that all requests share, expected "
                       "none (--kv-mode isolated gives each request its budget)");
  }
  // k= and v= without static say which pages are halved first, and in a pool prices do.
  if (std::holds_alternative<BudgetWidth>(settings.widths) ||
      (settings.static_widths && !std::holds_alternative<PlanWidths>(settings.widths))) {
    throw InvalidInput("--kv", fmt::format("'{}': found widths that a budget follows from beside a "
                                           "pool, expected none (static-8 and its like have their "
                                           "widths in a pool, too)",
                                           options.spec));
  }
  const Plan* const plan = options.plan.get();
  if (method.progressive) {
    config.close_bits = settings.init_kv_bits;
    config.floor_bits = std::min(config.close_bits, std::max(method.bits, options.pool.floor_bits));
    config.static_widths = settings.static_widths;
    if (settings.static_widths && plan == nullptr) {
      throw InvalidInput("--kv",
                         fmt::format("'{}': static has no widths, expected --plan", options.spec));
    }
    if (settings.static_widths) {
      config.k_bits = plan->k_bits;
      config.v_bits = plan->v_bits;
    }
  } else {
    config.close_bits = method.bits;
  }
  config.policy = PolicyKind::kOldestFirst;
  config.pool.bytes = options.pool.bytes;
  config.pool.step_bytes = options.pool.step_bytes;
  config.pool.read_limit_bytes = options.pool.read_limit_bytes;
  config.pool.prefix_bytes = std::min(options.pool.prefix_bytes, options.pool.bytes);
  config.pool.prefix_min_bits = std::max(options.pool.prefix_min_bits, config.floor_bits);
  config.pool.prefix_idle_seconds = options.pool.prefix_idle_seconds;
  if (options.pool.prefix_may_be_off && !ObstacleToPrefixes(config).empty()) {
    config.pool.prefix_bytes = 0;
  }
  config.budget_bytes = SplitBudget(options.pool.bytes, EvenWeights(config));
  if (plan == nullptr || plan->sensitivity.k.empty() || plan->sensitivity.v.empty()) return;
  for (size_t layer = 0; layer < config.geometry.blocks.size(); ++layer) {
    config.pool.k_sensitivity.push_back(OfBlock(plan->sensitivity.k, layer));
    config.pool.v_sensitivity.push_back(OfBlock(plan->sensitivity.v, layer));
  }
}

}  // namespace

const std::vector<PackedMethod>& PackedMethods() {
  static const std::vector<PackedMethod> methods = {
      {"fp16", "nothing quantised (the float type of --kv-dtype)", KeysOf(CacheField::KeyOf::kAll),
       false, 16},
      {"static-8", "every closed page at once at 8 bits", KeysOf(CacheField::KeyOf::kQuantised),
       false, 8},
      {"static-4", "every closed page at once at 4 bits", KeysOf(CacheField::KeyOf::kQuantised),
       false, 4},
      {"static-2", "every closed page at once at 2 bits", KeysOf(CacheField::KeyOf::kQuantised),
       false, 2},
      {"pm-kvq", "progressive: 16 -> 8 -> 4 -> 2 bits when the budget is reached",
       KeysOf(CacheField::KeyOf::kProgressive), true, 2},
  };
  return methods;
}

KvOptions ApplySpecKeysFor(const std::string& model_identity, const KvOptions& options) {
  KvOptions kv = ApplySpecKeys(options);
  if (kv.plan != nullptr) CheckPlanMatches(*kv.plan, model_identity, kv.plan_path);
  return kv;
}

std::span<const KvRecipe> KvRecipes() { return kRecipes; }

const PackedMethod* FindPackedMethod(std::string_view name) {
  for (const PackedMethod& method : PackedMethods()) {
    if (name == method.name) return &method;
  }
  return nullptr;
}

KvOptions ApplySpecKeys(const KvOptions& options) {
  KvOptions result = options;
  if (FindPackedMethod(ParseMethodSpec(options.spec).name) == nullptr) return result;
  const PackedSpec read = Read(options.spec);
  ApplyFields(read.spec, FieldsToApply::kOptions, result);
  if (read.plan == "none") {
    result.plan = nullptr;
  } else if (!read.plan.empty() && (result.plan == nullptr || result.plan_path != read.plan)) {
    result.plan = std::make_shared<const Plan>(LoadPlan(read.plan));
    result.plan_path = read.plan;
  }
  return result;
}

void CheckCommonOptions(const KvOptions& options, const KvRequirements& requirements) {
  PMKVQ_CHECK(requirements.max_len > 0 && requirements.max_sequences > 0);
  if (options.plan != nullptr)
    CheckPlanShapes(*options.plan, options.plan_path, requirements.geometry);
  if (options.budget_bytes < 0) {
    throw InvalidInput("--kv-budget",
                       fmt::format("found {}, expected more than 0 bytes", options.budget_bytes));
  }
}

CacheConfig ResolvePackedConfig(const KvOptions& options, const KvRequirements& requirements) {
  if (CountsPayload(options)) {
    throw Unsupported("--reference-accounting",
                      "found budgets of payload alone, which a packed cache does not count by");
  }
  return ResolvePackedConfig(options, requirements, kWholeBytes);
}

bool CountsPayload(const KvOptions& given) {
  const KvOptions options = ApplySpecKeys(given);
  if (options.reference_accounting) return true;
  const PackedSpec read = Read(options.spec);
  // Budgets of payload would be too small for a cache that counts everything.
  return options.plan != nullptr && options.plan->settings.reference_accounting &&
         !options.plan->budget_bytes.empty() && options.budget_bytes <= 0 &&
         read.method->progressive &&
         std::holds_alternative<PlanWidths>(SettingsOf(options, read).widths);
}

CacheConfig ResolvePackedConfig(const KvOptions& given, const KvRequirements& requirements,
                                const BlockByteCount& count) {
  const KvOptions options = ApplySpecKeys(given);
  const PackedSpec read = Read(options.spec);
  const CacheSettings settings = SettingsOf(options, read);
  CheckCommonOptions(options, requirements);
  const Plan* plan = options.plan.get();
  if (options.budget_bytes > 0 && std::holds_alternative<BudgetWidth>(settings.widths) &&
      !settings.static_widths) {
    throw InvalidInput("--kv", fmt::format("'{}': bits sets a budget and so does --kv-budget {}, "
                                           "expected one of them",
                                           options.spec, options.budget_bytes));
  }
  if (read.method->progressive && !IsWidth(settings.init_kv_bits)) {
    throw InvalidInput("--n-init-kv-bits",
                       fmt::format("found {}, expected 16, 8, 4 or 2", settings.init_kv_bits));
  }

  CacheConfig config;
  config.geometry = requirements.geometry;
  config.float_type = settings.kv_dtype;
  config.sink_tokens = settings.sink_tokens >= 0 ? settings.sink_tokens
                       : plan != nullptr         ? plan->settings.sink_tokens
                                                 : 1;
  config.window_tokens = settings.window_tokens >= 0 ? settings.window_tokens
                         : plan != nullptr           ? plan->settings.window_tokens
                                                     : kPageTokens;
  config.max_sequences = requirements.max_sequences;
  config.device = requirements.device;
  config.max_len = requirements.max_len;
  config.chunk_tokens = requirements.chunk_tokens;
  config.policy = settings.policy;
  config.num_threads = requirements.num_threads;
  config.attention = settings.attention;
  config.k_axis = settings.k_axis;
  config.rotate_keys = settings.rotate_keys;
  config.rotate_values = settings.rotate_values;
  config.rope_floor_bits = settings.rope_floor_bits > 0 ? settings.rope_floor_bits
                           : plan != nullptr            ? plan->rope_floor_bits
                                                        : 8;
  config.floor_bits = read.method->bits;
  if (options.pool.bytes > 0) {
    SetPool(options, settings, *read.method, config);
    // Ranks would have to agree on the age of kept prompts.
    if (requirements.make_packed != nullptr && options.pool.prefix_may_be_off) {
      config.pool.prefix_bytes = 0;
    }
  } else if (read.method->progressive) {
    config.close_bits = settings.init_kv_bits;
    SetProgressiveBudgets(options, settings, requirements.max_len, count, config);
  } else {
    const int bits = read.method->bits;
    config.close_bits = bits;
    config.budget_bytes = options.budget_bytes > 0
                              ? SplitBudget(options.budget_bytes, EvenWeights(config))
                              : UniformBudgets(config, requirements.max_len, {bits, bits}, count);
  }
  ValidateCacheConfig(config, count.floor);
  config.key_scales = KeyScales::Make(config.geometry, PackedKeyScales(options));
  return config;
}

const std::vector<Tensor>& PackedKeyScales(const KvOptions& options) {
  static const std::vector<Tensor> kNone;
  const PackedSpec read = Read(options.spec);
  PMKVQ_CHECK_MSG(read.plan.empty() || read.plan == "none" || options.plan_path == read.plan,
                  "ApplySpecKeys is missing");
  const bool has_scales =
      SettingsOf(options, read).use_scales && read.plan != "none" && options.plan != nullptr;
  return has_scales ? options.plan->key_scales : kNone;
}

}  // namespace pmkvq
