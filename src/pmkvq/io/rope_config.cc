#include "pmkvq/io/rope_config.h"

#include <cmath>

#include "pmkvq/io/limits.h"

namespace pmkvq::internal {
namespace {

// One set of RoPE values, and the fields of the config outside of it that complete it.
struct RopeSet {
  JsonValue config;
  JsonValue values;
  bool nested;            // `values` is that of a layer type.
  int64_t max_positions;  // max_position_embeddings of the config.
};

double PositiveNumber(const JsonValue& value) {
  if (!value.IsNumber() || value.AsDouble() <= 0) value.Fail("a number above 0");
  return value.AsDouble();
}

double PositiveNumberOr(const JsonValue& json, const char* key, double fallback) {
  return json.Has(key) ? PositiveNumber(json.At(key)) : fallback;
}

// The factor by which the context is stretched.
double Factor(const JsonValue& json) {
  const JsonValue value = json.Find("factor");
  if (!value.IsNumber() || value.AsDouble() < 1) value.Fail("a number of at least 1");
  return value.AsDouble();
}

// The context before stretching.
int64_t OriginalPositions(const RopeSet& set) {
  constexpr char kKey[] = "original_max_position_embeddings";
  const JsonValue beside = set.config.Find(kKey);
  const JsonValue value = set.nested || beside.IsMissing() ? set.values.Find(kKey) : beside;
  return value.IsMissing() ? set.max_positions : value.AsInt(1, limits::kPositions);
}

void ParseLlama3(const RopeSet& set, RopeScaling& scaling) {
  const JsonValue& json = set.values;
  scaling.factor = Factor(json);
  scaling.low_freq_factor = PositiveNumber(json.Find("low_freq_factor"));
  scaling.high_freq_factor = PositiveNumber(json.Find("high_freq_factor"));
  if (scaling.high_freq_factor <= scaling.low_freq_factor) {
    json.At("high_freq_factor").Fail("a number above low_freq_factor");
  }
  scaling.original_max_position_embeddings = OriginalPositions(set);
}

// YaRN's temperature correction (arXiv:2309.00071, section 3.4), with DeepSeek's two weights.
double Mscale(double factor, double weight) {
  return factor <= 1 ? 1.0 : 0.1 * weight * std::log(factor) + 1.0;
}

double MscaleWeight(const JsonValue& json, const char* key) {
  const double weight = json.Has(key) ? json.At(key).AsDouble() : 0;
  if (weight < 0) json.At(key).Fail("a number of at least 0");
  return weight;
}

double YarnAttentionFactor(const JsonValue& json, double factor) {
  if (json.Has("attention_factor")) return PositiveNumber(json.At("attention_factor"));
  const double mscale = MscaleWeight(json, "mscale");
  const double all_dim = MscaleWeight(json, "mscale_all_dim");
  // As in transformers, a weight of 0 counts as not given.
  if (mscale == 0 || all_dim == 0) return Mscale(factor, 1);
  return Mscale(factor, mscale) / Mscale(factor, all_dim);
}

void ParseYarn(const RopeSet& set, RopeScaling& scaling) {
  const JsonValue& json = set.values;
  scaling.original_max_position_embeddings = OriginalPositions(set);
  const JsonValue factor = json.Find("factor");
  if (factor.IsNull() && !factor.IsMissing()) {
    scaling.factor = static_cast<double>(set.max_positions) /
                     static_cast<double>(scaling.original_max_position_embeddings);
    if (scaling.factor < 1) {
      factor.Fail(
          "a number, where max_position_embeddings is below "
          "original_max_position_embeddings");
    }
  } else {
    scaling.factor = Factor(json);
  }
  scaling.beta_fast = PositiveNumberOr(json, "beta_fast", scaling.beta_fast);
  scaling.beta_slow = PositiveNumberOr(json, "beta_slow", scaling.beta_slow);
  if (scaling.beta_fast < scaling.beta_slow) {
    json.Find("beta_fast").Fail("a number of at least beta_slow");
  }
  scaling.attention_factor = YarnAttentionFactor(json, scaling.factor);
  scaling.mscale_all_dim = MscaleWeight(json, "mscale_all_dim");
  const JsonValue truncate = json.Find("truncate");
  if (truncate.IsMissing()) return;
  scaling.truncate = truncate.AsBool();
  // transformers looks for it beside the layer types only.
  if (set.nested && !scaling.truncate) truncate.Refuse("true inside of a layer type's values");
}

RopeScaling ParseScaling(const RopeSet& set, const JsonValue& type) {
  RopeScaling scaling;
  const std::string name = type.AsString();
  if (name == "default") {
    scaling.type = RopeScaling::Type::kDefault;
  } else if (name == "linear") {
    scaling.type = RopeScaling::Type::kLinear;
    scaling.factor = Factor(set.values);
  } else if (name == "llama3") {
    scaling.type = RopeScaling::Type::kLlama3;
    ParseLlama3(set, scaling);
  } else if (name == "yarn") {
    scaling.type = RopeScaling::Type::kYarn;
    ParseYarn(set, scaling);
  } else {
    type.Refuse("default, linear, llama3 or yarn");
  }
  return scaling;
}

void RefusePartialRotary(const JsonValue& json) {
  if (!json.Has("partial_rotary_factor")) return;
  const JsonValue value = json.At("partial_rotary_factor");
  if (value.AsDouble() != 1) value.Refuse("1 (all of head_dim is rotated)");
}

// Without a type, transformers would ignore these.
void CheckTypeIsNotForgotten(const JsonValue& values, const JsonValue& type) {
  for (const char* key :
       {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings",
        "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate",
        "short_factor", "long_factor"}) {
    if (values.Has(key)) type.Fail("default, linear, llama3 or yarn");
  }
}

// The values of full_attention, where `values` holds one set for each layer type. Unless
// `may_differ`, all layer types must have the same: one table of frequencies serves all blocks.
JsonValue FullAttentionValues(const JsonValue& values, bool may_differ, bool* nested) {
  *nested = false;
  if (!values.IsObject()) return values;
  values.ForEachMember(
      [&](std::string_view, const JsonValue& value) { *nested = *nested || value.IsObject(); });
  if (!*nested) return values;
  const JsonValue full = values.Find("full_attention");
  values.ForEachMember([&](std::string_view name, const JsonValue& value) {
    if (value.IsNull() || name == "full_attention") return;
    if (name == "sliding_attention" && may_differ) return;
    if (name != "sliding_attention" || !full.IsObject() || value.Dump() != full.Dump()) {
      value.Refuse("no other values than those of full_attention: one RoPE serves all blocks");
    }
  });
  if (!full.IsObject()) full.Fail("an object");
  return full;
}

RopeScaling ParseTypeAndScaling(const RopeSet& set) {
  const JsonValue old_type = set.values.Find("type");
  JsonValue type = set.values.Find("rope_type");
  if (type.IsMissing() && !old_type.IsMissing()) type = old_type;
  if (!type.IsMissing()) return ParseScaling(set, type);
  CheckTypeIsNotForgotten(set.values, type);
  return {};
}

}  // namespace

RopeConfig ParseRopeConfig(const JsonValue& json, int64_t max_position_embeddings,
                           const RopeRules& rules) {
  const JsonValue parameters = json.Find("rope_parameters");
  const JsonValue scaling = json.Find("rope_scaling");
  for (const JsonValue& value : {parameters, scaling}) {
    if (!value.IsNull() && !value.IsObject()) value.Fail("an object or null");
  }
  const bool scaling_rules = scaling.size() > 0;
  RopeSet set{json, json, false, max_position_embeddings};
  set.values =
      FullAttentionValues(scaling_rules ? scaling : parameters, rules.by_layer_type, &set.nested);
  RefusePartialRotary(json);
  RefusePartialRotary(set.values);

  RopeConfig config;
  config.theta = rules.theta;
  const JsonValue inside = set.values.Find("rope_theta");
  const JsonValue theta = inside.IsMissing() ? json.Find("rope_theta") : inside;
  if (!theta.IsMissing()) config.theta = PositiveNumber(theta);
  const JsonValue replaced = parameters.Find("rope_theta");
  if (scaling_rules && theta.IsMissing() && !replaced.IsNull() &&
      PositiveNumber(replaced) != config.theta) {
    replaced.Refuse(
        "it in rope_scaling, too (rope_scaling replaces rope_parameters, and transformers would "
        "take 10000)");
  }
  config.scaling = ParseTypeAndScaling(set);
  return config;
}

RopeConfig ParseLocalRopeConfig(const JsonValue& json, int64_t max_position_embeddings) {
  const JsonValue values = json.Find("rope_parameters").Find("sliding_attention");
  if (!values.IsNull() && !values.IsObject()) values.Fail("an object or null");
  RefusePartialRotary(values);
  RopeConfig config;
  const JsonValue inside = values.Find("rope_theta");
  const JsonValue theta = inside.IsMissing() ? json.Find("rope_local_base_freq") : inside;
  if (!theta.IsMissing()) config.theta = PositiveNumber(theta);
  config.scaling = ParseTypeAndScaling({json, values, true, max_position_embeddings});
  return config;
}

}  // namespace pmkvq::internal
