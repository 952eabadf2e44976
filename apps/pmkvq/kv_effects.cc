#include "kv_effects.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <optional>

#include "pmkvq/base/byte_size.h"
#include "pmkvq/base/error.h"
#include "pmkvq/kv/spec/packed_spec.h"
#include "pmkvq/kv/spec/spec.h"
#include "terminal.h"

namespace pmkvq::cli {
namespace {

// A SPEC and its packed method; null for a simulated method.
struct Method {
  MethodSpec spec;
  const PackedMethod* packed = nullptr;

  bool steps_down() const {
    return packed != nullptr && packed->progressive && !spec.words.contains("static");
  }
  bool is_quantised() const {
    return packed != nullptr && (packed->progressive || packed->bits < 16);
  }
  bool has(const char* key) const { return spec.keys.contains(key); }
};

std::optional<Method> ReadMethod(const std::string& text) {
  try {
    Method method{ParseMethodSpec(text), nullptr};
    method.packed = FindPackedMethod(method.spec.name);
    return method;
  } catch (const InvalidInput&) {
    return std::nullopt;
  }
}

bool IsGiven(const CLI::App& command, const std::string& name) {
  const CLI::Option* const option = command.get_option_no_throw(name);
  return option != nullptr && option->count() > 0;
}

std::string ValueOf(const CLI::App& command, const std::string& name) {
  return command.get_option(name)->results().back();
}

// Why the option changes nothing for the method, or "" where it does change something.
using Reason = std::string (*)(const Method& method);

std::string KeyCounts(const Method& method, const char* key) {
  return fmt::format("{}={} of --kv counts", key, method.spec.keys.at(key));
}

std::string ReasonOfPolicy(const Method& method) {
  if (method.has("policy")) return KeyCounts(method, "policy");
  if (method.steps_down()) return "";
  return fmt::format("--kv {} never halves pages, pm-kvq does", method.spec.text);
}

std::string ReasonOfStart(const Method& method) {
  if (method.steps_down()) return "";
  return fmt::format("--kv {} does not step down from a width, pm-kvq does", method.spec.text);
}

std::string ReasonOfAttention(const Method& method) {
  if (method.is_quantised()) return "";
  return fmt::format("--kv {} has no packed pages to read", method.spec.text);
}

std::string ReasonOfTokens(const Method& method, const char* key) {
  if (method.packed == nullptr) {
    return fmt::format("{} has settings of this kind in its SPEC only (pmkvq methods {})",
                       method.spec.name, method.spec.name);
  }
  if (!method.is_quantised()) return fmt::format("--kv {} quantises nothing", method.spec.text);
  return method.has(key) ? KeyCounts(method, key) : "";
}

std::string ReasonOfSink(const Method& method) { return ReasonOfTokens(method, "sink"); }
std::string ReasonOfWindow(const Method& method) { return ReasonOfTokens(method, "window"); }

std::string ReasonOfPlan(const Method& method) {
  return method.has("plan") ? KeyCounts(method, "plan") : "";
}

struct Rule {
  const char* option;
  Reason reason;
  const char* only_value;  // The rule is for this value only; null: for all.
};

constexpr Rule kRules[] = {
    {"--policy", ReasonOfPolicy, nullptr},         {"--n-init-kv-bits", ReasonOfStart, nullptr},
    {"--attention", ReasonOfAttention, "fast"},    {"--n-sink-token", ReasonOfSink, nullptr},
    {"--n-window-token", ReasonOfWindow, nullptr}, {"--plan", ReasonOfPlan, nullptr},
};

}  // namespace

void WarnWithoutEffect(const CLI::App& command, const std::vector<std::string>& names,
                       const std::string& reason) {
  for (const std::string& name : names) {
    if (IsGiven(command, name)) {
      PrintError(fmt::format("warning: {} has no effect: {}", name, reason));
    }
  }
}

void WarnOfUnusedKvOptions(const CLI::App& command, const std::vector<std::string>& specs) {
  std::vector<Method> methods;
  for (const std::string& spec : specs) {
    const std::optional<Method> method = ReadMethod(spec);
    if (!method) return;
    methods.push_back(*method);
  }
  if (methods.empty()) return;
  for (const Rule& rule : kRules) {
    if (!IsGiven(command, rule.option)) continue;
    if (rule.only_value != nullptr && ValueOf(command, rule.option) != rule.only_value) continue;
    const bool is_unused = std::all_of(methods.begin(), methods.end(), [&](const Method& method) {
      return !rule.reason(method).empty();
    });
    if (is_unused) WarnWithoutEffect(command, {rule.option}, rule.reason(methods.front()));
  }
}

void WarnOfUnusedBudget(const KvCommandOptions& options) {
  const std::optional<Method> method = ReadMethod(options.spec);
  if (!method || (method->packed != nullptr && method->packed->progressive)) return;
  if (!options.budget.empty()) {
    PrintError(
        fmt::format("warning: --kv {} does not step down: output ends where --kv-budget is "
                    "reached; --kv pm-kvq steps down inside it",
                    method->spec.name));
  } else if (!options.plan_path.empty() && !method->has("plan")) {
    PrintError(fmt::format(
        "warning: --kv {} takes {}; --kv pm-kvq steps down inside its budgets", method->spec.name,
        method->packed == nullptr ? "nothing from --plan"
                                  : "the key scales of --plan only, not its budgets"));
  }
}

void WarnOfMemory(int64_t budget_bytes, int64_t max_sequences) {
  const auto memory = static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE);
  if (budget_bytes <= memory / max_sequences) return;
  PrintError(
      fmt::format("warning: --kv-budget {}{} is more than the memory of this machine, {}",
                  FormatByteSize(budget_bytes),
                  max_sequences > 1 ? fmt::format(" for each of {} sequences", max_sequences) : "",
                  FormatByteSize(memory)));
}

bool PlanSetsBudget(const KvOptions& kv) {
  if (kv.plan == nullptr || kv.budget_bytes > 0) return false;
  const std::optional<Method> method = ReadMethod(kv.spec);
  return method && method->steps_down() && !method->has("bits");
}

void WarnOfShortPlan(const SpecEngineOptions& options) {
  const KvOptions& kv = options.kv;
  if (!PlanSetsBudget(kv) || options.max_len <= kv.plan->max_len) return;
  PrintError(
      fmt::format("warning: the budgets of {} are for {} tokens, not for --max-len {}: longer "
                  "sequences may end with kv_budget; calibrate --from {} makes a plan for them",
                  kv.plan_path, kv.plan->max_len, options.max_len, kv.plan_path));
}

}  // namespace pmkvq::cli
