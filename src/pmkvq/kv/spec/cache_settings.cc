#include "pmkvq/kv/spec/cache_settings.h"

#include <fmt/format.h>

#include <string>
#include <vector>

#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"

namespace pmkvq {
namespace {

using Kind = CacheField::Kind;
using KeyOf = CacheField::KeyOf;
using Record = CacheField::Record;

// More than any sequence has.
constexpr int64_t kMaxWindowTokens = int64_t{1} << 24;
constexpr int64_t kMaxPlanTokens = int64_t{1} << 40;

std::string NumberOrDefault(int64_t value) {
  return value < 0 ? std::string("default") : std::to_string(value);
}

std::string Boolean(bool value) { return value ? "true" : "false"; }

BlockWidths& BlockWidthsOf(CacheSettings& settings) {
  if (!std::holds_alternative<BlockWidths>(settings.widths)) settings.widths = BlockWidths{};
  return std::get<BlockWidths>(settings.widths);
}

const std::vector<CacheField>& Fields() {
  using Settings = CacheSettings;
  using Text = const std::string&;
  const std::vector<std::string> widths = {"16", "8", "4", "2"};
  static const std::vector<CacheField> fields = {
      {.kind = Kind::kChoice,
       .choices = {"on", "off"},
       .key_of = KeyOf::kAll,
       .key = "scales",
       .key_default = "on",
       .key_help = "use the plan's key scales",
       .set = [](Settings& s, Text text) { s.use_scales = text == "on"; }},
      {.kind = Kind::kChoice,
       .choices = {"layer-budget", "oldest-first"},
       .key_of = KeyOf::kProgressive,
       .key = "policy",
       .key_default = "--policy",
       .key_help = "which pages are halved first",
       .option = "--policy",
       .option_help = "what is halved when the budget is reached",
       .record = Record::kAlways,
       .text = [](const Settings& s) { return std::string(NameOf(s.policy)); },
       .set = [](Settings& s, Text text) { s.policy = ParsePolicyKind(text); }},
      {.kind = Kind::kInteger,
       .key_of = KeyOf::kQuantised,
       .key = "sink",
       .key_default = "the plan's, or 1",
       .key_help = "first tokens that stay at 16 bits (--n-sink-token)",
       .least = 0,
       .most = kMaxSinkTokens,
       .option = "--n-sink-token",
       .option_help = "first tokens that stay at 16 bit (default: the plan's, or 1)",
       .record = Record::kAlways,
       .plan_key = "sink_tokens",
       .most_in_plan = kMaxSinkTokens,
       .text = [](const Settings& s) { return NumberOrDefault(s.sink_tokens); },
       .set = [](Settings& s, Text text) { s.sink_tokens = std::stoll(text); }},
      {.kind = Kind::kInteger,
       .key_of = KeyOf::kQuantised,
       .key = "window",
       .key_default = "the plan's, or 128",
       .key_help = "newest tokens that stay at 16 bits, a multiple of 128 (--n-window-token)",
       .least = kPageTokens,
       .most = kMaxWindowTokens,
       .multiple_of = kPageTokens,
       .option = "--n-window-token",
       .option_help = "newest tokens at 16 bit, a multiple of 128 (default: the plan's, or 128)",
       .record = Record::kAlways,
       .plan_key = "window_tokens",
       .most_in_plan = kMaxPlanTokens,
       .text = [](const Settings& s) { return NumberOrDefault(s.window_tokens); },
       .set = [](Settings& s, Text text) { s.window_tokens = std::stoll(text); }},
      {.kind = Kind::kWidth,
       .choices = widths,
       .option = "--n-init-kv-bits",
       .option_help = "width at which pm-kvq starts",
       .record = Record::kAlways,
       .text = [](const Settings& s) { return std::to_string(s.init_kv_bits); },
       .set = [](Settings& s, Text text) { s.init_kv_bits = std::stoi(text); }},
      {.kind = Kind::kChoice,
       .choices = {"f16", "bf16", "f32"},
       .option = "--kv-dtype",
       .option_help = "type of what is not quantised",
       .record = Record::kAlways,
       .plan_key = "kv_dtype",
       .text =
           [](const Settings& s) {
             return std::string(s.kv_dtype == DType::kF16    ? "f16"
                                : s.kv_dtype == DType::kBF16 ? "bf16"
                                                             : "f32");
           },
       .set = [](Settings& s, Text text) { s.kv_dtype = ParseKvDtype(text); },
       .record_text = [](const Settings& s) { return std::string(NameOf(s.kv_dtype)); }},
      {.kind = Kind::kFlag,
       .option = "--reference-accounting",
       .option_help = "count payload bytes only, as the Python reference does",
       .record = Record::kAlways,
       .plan_key = "reference_accounting",
       .text = [](const Settings& s) { return Boolean(s.reference_accounting); },
       .set = [](Settings& s, Text text) { s.reference_accounting = text == "true"; }},
      // Left out of run.json at the default, so that runs made before there was a choice can go on.
      {.kind = Kind::kChoice,
       .choices = {"accurate", "fast"},
       .option = "--attention",
       .option_help = "how new tokens attend to quantised pages: accurate (floats) or fast (16-bit "
                      "integers)",
       .record = Record::kUnlessDefault,
       .text = [](const Settings& s) { return std::string(NameOf(s.attention)); },
       .set = [](Settings& s, Text text) { s.attention = ParseAttentionMode(text); }},
      {.kind = Kind::kWidth,
       .choices = widths,
       .key_of = KeyOf::kProgressive,
       .key = "bits",
       .key_default = "the plan's budgets",
       .key_help = "the budget of that width at --max-len in every block",
       .set = [](Settings& s, Text text) { s.widths = BudgetWidth{std::stoi(text)}; }},
      {.kind = Kind::kWidth,
       .choices = widths,
       .key_of = KeyOf::kProgressive,
       .key = "k",
       .key_default = "the plan's",
       .key_help = "planned width of keys, with v=",
       .set = [](Settings& s, Text text) { BlockWidthsOf(s).k = std::stoi(text); }},
      {.kind = Kind::kWidth,
       .choices = widths,
       .key_of = KeyOf::kProgressive,
       .key = "v",
       .key_default = "the plan's",
       .key_help = "planned width of values, with k=",
       .set = [](Settings& s, Text text) { BlockWidthsOf(s).v = std::stoi(text); }},
      {.kind = Kind::kChoice,
       .choices = {"token", "channel"},
       .key_of = KeyOf::kProgressive,
       .key = "axis",
       .key_default = "token",
       .key_help = "what a minimum and range of keys is for",
       .set =
           [](Settings& s, Text text) {
             s.k_axis = text == "channel" ? QuantAxis::kChannel : QuantAxis::kToken;
           }},
      {.kind = Kind::kChoice,
       .choices = {"off", "keys", "values", "both"},
       .key_of = KeyOf::kProgressive,
       .key = "rotate",
       .key_default = "off",
       .key_help = "Walsh-Hadamard transform of each head before storing",
       .set =
           [](Settings& s, Text text) {
             s.rotate_keys = text == "keys" || text == "both";
             s.rotate_values = text == "values" || text == "both";
           }},
      {.kind = Kind::kFlag,
       .key_of = KeyOf::kProgressive,
       .key = "static",
       .key_help = "pages close at once at the planned widths and stay there",
       .set = [](Settings& s, Text text) { s.static_widths = text == "true"; }},
      {.kind = Kind::kWidth,
       .choices = widths,
       .key_of = KeyOf::kQuantised,
       .key = "rope",
       .key_default = "the plan's, or 8",
       .key_help = "least width of the rope part of latents (latent attention)",
       .set = [](Settings& s, Text text) { s.rope_floor_bits = std::stoi(text); }},
  };
  return fields;
}

}  // namespace

std::span<const CacheField> CacheFields() { return Fields(); }

SpecKey KeyOfField(const CacheField& field) {
  switch (field.kind) {
    case Kind::kInteger:
      return IntegerKey(field.key, field.least, field.most, field.key_default, field.key_help);
    case Kind::kFlag:
      return WordKey(field.key, field.key_help);
    default:
      return ChoiceKey(field.key, field.choices, field.key_default, field.key_help);
  }
}

void ApplyFields(const MethodSpec& spec, FieldsToApply fields, CacheSettings& settings) {
  for (const CacheField& field : CacheFields()) {
    const bool has_option = *field.option != '\0';
    if (field.key_of == KeyOf::kNone || (fields == FieldsToApply::kOptions && !has_option))
      continue;
    if (field.kind == Kind::kFlag) {
      if (spec.words.contains(field.key)) field.set(settings, "true");
      continue;
    }
    const auto found = spec.keys.find(field.key);
    if (found == spec.keys.end()) continue;
    if (field.kind == Kind::kInteger && spec.Integer(field.key, 0) % field.multiple_of != 0) {
      throw InvalidInput("--kv", fmt::format("'{}': {}={}, expected a multiple of {}", spec.text,
                                             field.key, found->second, field.multiple_of));
    }
    field.set(settings, found->second);
  }
}

}  // namespace pmkvq
