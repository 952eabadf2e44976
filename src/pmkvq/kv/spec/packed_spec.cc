#include "pmkvq/kv/spec/packed_spec.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <string>

#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"
#include "pmkvq/kv/spec/spec.h"

namespace pmkvq {
namespace {

// More than any sequence has.
constexpr int64_t kMaxWindowTokens = int64_t{1} << 24;

SpecKeys PlanKeys() {
  return {FileKey("plan", "--plan", "plan in place of --plan", {"none"}),
          ChoiceKey("scales", {"on", "off"}, "on", "use the plan's key scales")};
}

SpecKeys PageKeys() {
  SpecKeys keys = PlanKeys();
  keys.push_back(IntegerKey("sink", 0, kMaxSinkTokens, "the plan's, or 1",
                            "first tokens that stay at 16 bits (--n-sink-token)"));
  keys.push_back(IntegerKey("window", kPageTokens, kMaxWindowTokens, "the plan's, or 128",
                            "newest tokens that stay at 16 bits, a multiple of 128 "
                            "(--n-window-token)"));
  return keys;
}

SpecKeys ProgressiveKeys() {
  const std::vector<std::string> widths = {"16", "8", "4", "2"};
  SpecKeys keys = PageKeys();
  keys.push_back(ChoiceKey("bits", widths, "the plan's budgets",
                           "the budget of that width at --max-len in every block"));
  keys.push_back(ChoiceKey("k", widths, "the plan's", "planned width of keys, with v="));
  keys.push_back(ChoiceKey("v", widths, "the plan's", "planned width of values, with k="));
  keys.push_back(ChoiceKey("policy", {"layer-budget", "oldest-first"}, "--policy",
                           "which pages are halved first"));
  keys.push_back(
      ChoiceKey("axis", {"token", "channel"}, "token", "what a minimum and range of keys is for"));
  keys.push_back(ChoiceKey("rotate", {"off", "keys", "values", "both"}, "off",
                           "Walsh-Hadamard transform of each head before storing"));
  keys.push_back(WordKey("static", "pages close at once at the planned widths and stay there"));
  return keys;
}

constexpr KvRecipe kRecipes[] = {
    {"paper", "pm-kvq", "as published"},
    {"best", "pm-kvq:policy=oldest-first", "what does best at equal bytes (docs/results.md)"},
};

bool IsWidth(int bits) { return std::find(kWidths.begin(), kWidths.end(), bits) != kWidths.end(); }

// A packed SPEC with its keys. Negative, 0 or empty: not given.
struct Choice {
  MethodSpec spec;
  const PackedMethod* method = nullptr;
  int bits = 0;
  PageWidths widths = {0, 0};  // Of k and v.
  bool is_static = false;
  bool use_scales = true;
  int64_t sink_tokens = -1;
  int64_t window_tokens = -1;
  std::optional<PolicyKind> policy;
  std::string plan;
  QuantAxis k_axis = QuantAxis::kToken;
  bool rotate_keys = false;
  bool rotate_values = false;

  bool has_widths() const { return widths.k != 0; }
};

void CheckKeysAgree(const Choice& choice) {
  const auto fail = [&](const std::string& found, const std::string& expected) {
    return InvalidInput(
        "--kv", fmt::format("'{}': found {}, expected {}", choice.spec.text, found, expected));
  };
  if ((choice.widths.k == 0) != (choice.widths.v == 0)) {
    throw fail(choice.widths.k == 0 ? "v without k" : "k without v", "both or neither");
  }
  if (choice.has_widths() && choice.bits != 0) throw fail("bits beside k and v", "one of them");
  if (choice.is_static && choice.policy) {
    throw fail("policy beside static", "one of them: static pages are never halved");
  }
}

// The name is a packed method's.
Choice Read(const std::string& spec_text) {
  Choice choice;
  choice.spec = ParseMethodSpec(spec_text);
  const MethodSpec& spec = choice.spec;
  choice.method = FindPackedMethod(spec.name);
  PMKVQ_CHECK(choice.method != nullptr);
  spec.Check(choice.method->keys);
  choice.bits = static_cast<int>(spec.Integer("bits", 0));
  choice.widths = {static_cast<int>(spec.Integer("k", 0)), static_cast<int>(spec.Integer("v", 0))};
  choice.is_static = spec.words.contains("static");
  choice.sink_tokens = spec.Integer("sink", -1);
  choice.window_tokens = spec.Integer("window", -1);
  if (choice.window_tokens % kPageTokens != 0 && spec.keys.contains("window")) {
    throw InvalidInput("--kv", fmt::format("'{}': window={}, expected a multiple of {}", spec.text,
                                           choice.window_tokens, kPageTokens));
  }
  choice.use_scales = spec.Text("scales", "on") == "on";
  for (const PolicyKind kind : {PolicyKind::kLayerBudget, PolicyKind::kOldestFirst}) {
    if (spec.Text("policy", "") == NameOf(kind)) choice.policy = kind;
  }
  if (spec.Text("axis", "token") == "channel") choice.k_axis = QuantAxis::kChannel;
  const std::string rotate = spec.Text("rotate", "off");
  choice.rotate_keys = rotate == "keys" || rotate == "both";
  choice.rotate_values = rotate == "values" || rotate == "both";
  choice.plan = spec.Text("plan", "");
  CheckKeysAgree(choice);
  return choice;
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

// Budgets and widths of pm-kvq. `plan` is null where the SPEC has widths of its own.
void SetProgressiveBudgets(const KvOptions& options, const Choice& choice, const Plan* plan,
                           int64_t max_len, const BlockByteCount& count, CacheConfig& config) {
  const PageWidths widths =
      choice.has_widths() ? choice.widths : PageWidths{choice.bits, choice.bits};
  const auto num_layers = config.geometry.blocks.size();
  config.static_widths = choice.is_static;
  if (choice.has_widths() || (choice.is_static && choice.bits != 0)) {
    config.k_bits.assign(num_layers, widths.k);
    config.v_bits.assign(num_layers, widths.v);
  } else if (plan != nullptr) {
    config.k_bits = plan->k_bits;
    config.v_bits = plan->v_bits;
  } else if (choice.is_static) {
    throw InvalidInput("--kv", fmt::format("'{}': static has no widths, expected --plan, bits=B or "
                                           "k=B+v=B",
                                           choice.spec.text));
  }
  if (options.budget_bytes > 0) {
    const std::vector<int64_t> weights = plan != nullptr && !plan->budget_bytes.empty()
                                             ? plan->budget_bytes
                                             : EvenWeights(config.geometry);
    config.budget_bytes = SplitBudget(options.budget_bytes, weights);
  } else if (widths.k != 0) {
    config.budget_bytes = UniformBudgets(config, max_len, widths, count);
  } else if (plan != nullptr && !plan->budget_bytes.empty()) {
    config.budget_bytes = plan->budget_bytes;
  } else {
    throw InvalidInput(
        "--kv", "pm-kvq has no budget, expected --kv-budget, --plan or pm-kvq:bits=16|8|4|2");
  }
}

}  // namespace

const std::vector<PackedMethod>& PackedMethods() {
  static const std::vector<PackedMethod> methods = {
      {"fp16", "nothing quantised (the float type of --kv-dtype)", PlanKeys(), false, 16},
      {"static-8", "every closed page at once at 8 bits", PageKeys(), false, 8},
      {"static-4", "every closed page at once at 4 bits", PageKeys(), false, 4},
      {"static-2", "every closed page at once at 2 bits", PageKeys(), false, 2},
      {"pm-kvq", "progressive: 16 -> 8 -> 4 -> 2 bits when the budget is reached",
       ProgressiveKeys(), true, 2},
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
  const Choice choice = Read(options.spec);
  if (choice.sink_tokens >= 0) result.sink_tokens = choice.sink_tokens;
  if (choice.window_tokens >= 0) result.window_tokens = choice.window_tokens;
  if (choice.policy) result.policy = *choice.policy;
  if (choice.plan == "none") {
    result.plan = nullptr;
  } else if (!choice.plan.empty() && (result.plan == nullptr || result.plan_path != choice.plan)) {
    result.plan = std::make_shared<const Plan>(LoadPlan(choice.plan));
    result.plan_path = choice.plan;
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
  const Choice choice = Read(options.spec);
  // Budgets of payload would be too small for a cache that counts everything.
  return options.plan != nullptr && options.plan->reference_accounting &&
         !options.plan->budget_bytes.empty() && options.budget_bytes <= 0 &&
         choice.method->progressive && choice.bits == 0 && !choice.has_widths();
}

CacheConfig ResolvePackedConfig(const KvOptions& given, const KvRequirements& requirements,
                                const BlockByteCount& count) {
  const KvOptions options = ApplySpecKeys(given);
  const Choice choice = Read(options.spec);
  CheckCommonOptions(options, requirements);
  const Plan* plan = options.plan.get();
  if (options.budget_bytes > 0 && choice.bits != 0 && !choice.is_static) {
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
  config.attention = options.attention;
  config.k_axis = choice.k_axis;
  config.rotate_keys = choice.rotate_keys;
  config.rotate_values = choice.rotate_values;
  config.floor_bits = choice.method->bits;
  if (choice.method->progressive) {
    config.close_bits = options.init_kv_bits;
    const bool has_own_widths = choice.bits != 0 || choice.has_widths();
    SetProgressiveBudgets(options, choice, has_own_widths ? nullptr : plan, requirements.max_len,
                          count, config);
  } else {
    config.close_bits = choice.method->bits;
    config.budget_bytes = options.budget_bytes > 0
                              ? SplitBudget(options.budget_bytes, EvenWeights(config.geometry))
                              : UniformBudgets(config, requirements.max_len,
                                               {choice.method->bits, choice.method->bits}, count);
  }
  ValidateCacheConfig(config, count.floor);
  config.key_scales = KeyScales::Make(config.geometry, PackedKeyScales(options));
  return config;
}

const std::vector<Tensor>& PackedKeyScales(const KvOptions& options) {
  static const std::vector<Tensor> kNone;
  const Choice choice = Read(options.spec);
  PMKVQ_CHECK_MSG(choice.plan.empty() || choice.plan == "none" || options.plan_path == choice.plan,
                  "ApplySpecKeys is missing");
  const bool has_scales = choice.use_scales && choice.plan != "none" && options.plan != nullptr;
  return has_scales ? options.plan->key_scales : kNone;
}

}  // namespace pmkvq
