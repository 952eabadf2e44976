#include "pmkvq/io/rope_config.h"

#include <cmath>

namespace pmkvq::internal {
namespace {

constexpr int64_t kMaxOriginalPositions = int64_t{1} << 30;

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

void ParseLlama3(const JsonValue& json, RopeScaling& scaling) {
  scaling.factor = Factor(json);
  scaling.low_freq_factor = PositiveNumber(json.Find("low_freq_factor"));
  scaling.high_freq_factor = PositiveNumber(json.Find("high_freq_factor"));
  if (scaling.high_freq_factor <= scaling.low_freq_factor) {
    json.At("high_freq_factor").Fail("a number above low_freq_factor");
  }
  scaling.original_max_position_embeddings =
      json.Find("original_max_position_embeddings").AsInt(1, kMaxOriginalPositions);
}

// YaRN's temperature correction (arXiv:2309.00071, section 3.4), with DeepSeek's two weights.
double Mscale(double factor, double weight) {
  return factor <= 1 ? 1.0 : 0.1 * weight * std::log(factor) + 1.0;
}

double YarnAttentionFactor(const JsonValue& json, double factor) {
  if (json.Has("attention_factor")) return PositiveNumber(json.At("attention_factor"));
  const double mscale = json.Has("mscale") ? json.At("mscale").AsDouble() : 0;
  const double all_dim = json.Has("mscale_all_dim") ? json.At("mscale_all_dim").AsDouble() : 0;
  if (mscale < 0) json.At("mscale").Fail("a number of at least 0");
  if (all_dim < 0) json.At("mscale_all_dim").Fail("a number of at least 0");
  // As in transformers, a weight of 0 counts as not given.
  if (mscale == 0 || all_dim == 0) return Mscale(factor, 1);
  return Mscale(factor, mscale) / Mscale(factor, all_dim);
}

void ParseYarn(const JsonValue& json, int64_t max_positions, RopeScaling& scaling) {
  scaling.original_max_position_embeddings = max_positions;
  if (json.Has("original_max_position_embeddings")) {
    scaling.original_max_position_embeddings =
        json.At("original_max_position_embeddings").AsInt(1, kMaxOriginalPositions);
  }
  scaling.factor = Factor(json);
  scaling.beta_fast = PositiveNumberOr(json, "beta_fast", scaling.beta_fast);
  scaling.beta_slow = PositiveNumberOr(json, "beta_slow", scaling.beta_slow);
  if (scaling.beta_fast < scaling.beta_slow) {
    json.Find("beta_fast").Fail("a number of at least beta_slow");
  }
  scaling.attention_factor = YarnAttentionFactor(json, scaling.factor);
  if (json.Has("truncate")) scaling.truncate = json.At("truncate").AsBool();
}

RopeScaling ParseScaling(const JsonValue& json, const JsonValue& type, int64_t max_positions) {
  RopeScaling scaling;
  const std::string name = type.AsString();
  if (name == "default") {
    scaling.type = RopeScaling::Type::kDefault;
  } else if (name == "linear") {
    scaling.type = RopeScaling::Type::kLinear;
    scaling.factor = Factor(json);
  } else if (name == "llama3") {
    scaling.type = RopeScaling::Type::kLlama3;
    ParseLlama3(json, scaling);
  } else if (name == "yarn") {
    scaling.type = RopeScaling::Type::kYarn;
    ParseYarn(json, max_positions, scaling);
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

}  // namespace

RopeConfig ParseRopeConfig(const JsonValue& json, int64_t max_position_embeddings) {
  const JsonValue parameters = json.Find("rope_parameters");
  const JsonValue old_scaling = json.Find("rope_scaling");
  const bool is_new = !parameters.IsNull();
  const JsonValue& scaling = is_new ? parameters : old_scaling;
  if (!scaling.IsNull() && !scaling.IsObject()) scaling.Fail("an object or null");
  RefusePartialRotary(json);
  RefusePartialRotary(scaling);

  RopeConfig config;
  const JsonValue theta =
      scaling.Has("rope_theta") ? scaling.At("rope_theta") : json.Find("rope_theta");
  if (!theta.IsNull()) config.theta = PositiveNumber(theta);
  if (scaling.IsNull()) return config;

  const JsonValue type = scaling.Has("rope_type") || !scaling.Has("type")
                             ? scaling.Find("rope_type")
                             : scaling.Find("type");
  if (!is_new && type.IsNull()) type.Fail("default, linear, llama3 or yarn");
  if (!type.IsNull()) config.scaling = ParseScaling(scaling, type, max_position_embeddings);
  return config;
}

}  // namespace pmkvq::internal
