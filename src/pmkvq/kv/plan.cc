#include "pmkvq/kv/plan.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>
#include <utility>

#include "pmkvq/base/error.h"
#include "pmkvq/io/checkpoint.h"
#include "pmkvq/io/file.h"
#include "pmkvq/io/json.h"
#include "pmkvq/io/limits.h"
#include "pmkvq/io/safetensors.h"

namespace pmkvq {
namespace {

constexpr char kFormatName[] = "pmkvq-plan";
constexpr char kLatentKind[] = "latent";
// Bounds that no model or budget reaches and no product of which overflows.
constexpr int64_t kMaxLayers = 10'000;
constexpr int64_t kMaxHeads = 1 << 20;
constexpr int64_t kMaxTokens = int64_t{1} << 40;
constexpr int64_t kMaxBytes = int64_t{1} << 50;

std::string TensorPath(const std::string& path) {
  constexpr std::string_view kEnding = ".json";
  if (!path.ends_with(kEnding)) {
    throw InvalidInput(path, "a plan's file name: expected one ending in .json");
  }
  return path.substr(0, path.size() - kEnding.size()) + ".safetensors";
}

std::string ScaleName(size_t block) { return fmt::format("rep_scales.{}", block); }

// ---- Writing.

void WriteSide(JsonWriter& json, const std::vector<std::vector<double>>& by_width) {
  json.BeginObject();
  for (size_t i = 0; i < by_width.size(); ++i) {
    json.Key(std::to_string(kWidths[i])).Array(by_width[i]);
  }
  json.EndObject();
}

void WriteSettings(JsonWriter& json, const CacheSettings& settings) {
  for (const CacheField& field : CacheFields()) {
    if (*field.plan_key == '\0') continue;
    const std::string text = field.text(settings);
    json.Key(field.plan_key);
    switch (field.kind) {
      case CacheField::Kind::kFlag:
        json.Bool(text == "true");
        break;
      case CacheField::Kind::kChoice:
        json.String(text);
        break;
      default:
        json.Int(std::stoll(text));
    }
  }
}

void WriteBlock(JsonWriter& json, const KvBlockGeometry& block, size_t count) {
  json.BeginObject();
  json.Key("count").Int(static_cast<int64_t>(count));
  json.Key("num_heads").Int(block.num_heads);
  json.Key("streams").BeginArray();
  for (const KvStream& stream : block.streams) {
    json.BeginObject();
    json.Key("heads").Int(stream.heads);
    json.Key("width").Int(stream.width);
    json.Key("group").Int(stream.group);
    json.EndObject();
  }
  json.EndArray();
  if (block.sliding_window > 0) json.Key("sliding_window").Int(block.sliding_window);
  if (block.is_latent()) json.Key("kind").String(kLatentKind);
  json.EndObject();
}

void WriteModel(JsonWriter& json, const Plan& plan) {
  json.BeginObject();
  json.Key("identity").String(plan.model_identity);
  json.Key("blocks").BeginArray();
  const std::vector<KvBlockGeometry>& blocks = plan.geometry.blocks;
  for (size_t begin = 0; begin < blocks.size();) {
    size_t end = begin + 1;
    while (end < blocks.size() && blocks[end] == blocks[begin]) ++end;
    WriteBlock(json, blocks[begin], end - begin);
    begin = end;
  }
  json.EndArray();
  json.EndObject();
}

// Per block the width of each stream.
void WriteBits(JsonWriter& json, const Plan& plan) {
  json.BeginArray();
  for (size_t i = 0; i < plan.k_bits.size(); ++i) {
    std::vector<int> bits;
    if (plan.geometry.blocks[i].has_cache()) bits = {plan.k_bits[i], plan.v_bits[i]};
    json.Array(bits);
  }
  json.EndArray();
}

void WriteCalibration(JsonWriter& json, const CalibrationRecord& record) {
  json.BeginObject();
  json.Key("dataset").String(record.dataset);
  json.Key("pack").String(record.pack);
  json.Key("num_samples").Int(record.num_samples);
  json.Key("seq_len").Int(record.seq_len);
  json.Key("effective_len").Int(record.effective_len);
  json.Key("seed").String(std::to_string(record.seed));  // 64 bits do not fit a JSON number.
  if (record.weights != CalibrationRecord::kStoredWeights)
    json.Key("weights").String(record.weights);
  json.EndObject();
}

std::string ToJson(const Plan& plan, const std::string& tensor_hash) {
  JsonWriter json(2);
  json.BeginObject();
  json.Key("format").String(kFormatName);
  const bool has_latents = HasLatents(plan.geometry);
  json.Key("version").Int(has_latents ? kLatentPlanVersion : kPlanVersion);
  json.Key("model");
  WriteModel(json, plan);
  WriteSettings(json, plan.settings);
  json.Key("max_len").Int(plan.max_len);
  json.Key("memory_budget_bytes").Int(plan.memory_budget_bytes);
  if (has_latents) json.Key("rope_floor_bits").Int(plan.rope_floor_bits);
  // Left out where it is false, which is what its absence says.
  if (plan.mirrored) json.Key("mirrored").Bool(true);
  json.Key("bits");
  WriteBits(json, plan);
  json.Key("budget_bytes").Array(plan.budget_bytes);
  if (!plan.sensitivity.k.empty()) {
    json.Key("sensitivity").BeginObject().Key("k");
    WriteSide(json, plan.sensitivity.k);
    json.Key("v");
    WriteSide(json, plan.sensitivity.v);
    json.EndObject();
  }
  if (!plan.alpha.empty()) {
    json.Key("rep_scales").BeginObject();
    json.Key("alpha").Array(plan.alpha);
    json.Key("k_bits").Int(plan.rep_k_bits);
    json.Key("v_bits").Int(plan.rep_v_bits);
    json.Key("tensor_hash").String(tensor_hash);
    json.EndObject();
  }
  json.Key("calibration");
  WriteCalibration(json, plan.record);
  json.EndObject();
  return json.text() + "\n";
}

// ---- Reading.

int ReadWidth(const JsonValue& value) {
  const int64_t bits = value.AsInt();
  if (std::find(kWidths.begin(), kWidths.end(), bits) == kWidths.end()) {
    value.Fail("16, 8, 4 or 2");
  }
  return static_cast<int>(bits);
}

// An array with one entry per block.
JsonValue ReadPerBlock(const JsonValue& parent, const std::string& key, int64_t num_layers) {
  const JsonValue value = parent.At(key);
  if (!value.IsArray() || value.size() != static_cast<size_t>(num_layers)) {
    value.Fail(fmt::format("an array with one entry per block ({})", num_layers));
  }
  return value;
}

std::vector<int> ReadWidths(const JsonValue& root, const std::string& key, int64_t num_layers) {
  const JsonValue array = ReadPerBlock(root, key, num_layers);
  std::vector<int> widths;
  for (size_t i = 0; i < array.size(); ++i) widths.push_back(ReadWidth(array.At(i)));
  return widths;
}

// The hash names or identities are made of: 32 lower-case hex digits.
std::string ReadHash(const JsonValue& value) {
  std::string hash = value.AsString();
  if (hash.size() != 32 || hash.find_first_not_of("0123456789abcdef") != std::string::npos) {
    value.Fail("32 hexadecimal digits");
  }
  return hash;
}

// Version 1: all blocks alike.
KvGeometry ReadUniformGeometry(const JsonValue& model) {
  UniformKvGeometry geometry;
  geometry.num_layers = model.At("num_layers").AsInt(1, kMaxLayers);
  geometry.num_heads = model.At("num_heads").AsInt(1, kMaxHeads);
  geometry.num_kv_heads = model.At("num_kv_heads").AsInt(1, kMaxHeads);
  geometry.head_dim = model.At("head_dim").AsInt(8, 256);
  if (geometry.num_heads % geometry.num_kv_heads != 0) {
    model.At("num_heads")
        .Fail(fmt::format("a multiple of num_kv_heads ({})", geometry.num_kv_heads));
  }
  return geometry;
}

// `num_heads`: what the heads of a stream divide, or 0.
KvStream ReadStream(const JsonValue& value, const JsonValue& block, int64_t num_heads) {
  KvStream stream;
  stream.heads = value.At("heads").AsInt(1, kMaxHeads);
  stream.width = value.At("width").AsInt(8, 256);
  stream.group = value.At("group").AsInt(1, stream.width);
  if (stream.width % stream.group != 0) {
    value.At("group").Fail(fmt::format("a divisor of width ({})", stream.width));
  }
  if (num_heads % stream.heads != 0) {
    block.At("num_heads")
        .Fail(fmt::format("a multiple of the heads of streams ({})", stream.heads));
  }
  return stream;
}

// Of a block with two streams: c and k_r as LatentBlockOf makes them.
void CheckLatents(const JsonValue& streams, const KvBlockGeometry& block) {
  bool is_one = block.streams.size() == 2 && block.sliding_window == 0;
  if (is_one) {
    try {
      is_one = block == LatentBlockOf(block.num_heads, block.latent_width(), block.rope_width());
    } catch (const Unsupported&) {
      is_one = false;
    }
  }
  if (!is_one) {
    streams.Fail(
        "latents of r values in groups of min(r, 128), and their rope part of up to 128 "
        "values, without a sliding window");
  }
}

KvGeometry ReadGeometry(const JsonValue& model, int64_t version) {
  const JsonValue runs = model.At("blocks");
  if (!runs.IsArray() || runs.size() == 0) runs.Fail("an array of blocks");
  KvGeometry geometry;
  for (size_t i = 0; i < runs.size(); ++i) {
    const JsonValue run = runs.At(i);
    const int64_t count = run.At("count").AsInt(1, kMaxLayers - geometry.num_layers());
    KvBlockGeometry block;
    block.num_heads = run.At("num_heads").AsInt(1, kMaxHeads);
    const JsonValue streams = run.At("streams");
    if (!streams.IsArray() || (streams.size() != 0 && streams.size() != 2)) {
      streams.Fail("keys and values, or an empty array");
    }
    if (version >= kLatentPlanVersion && run.Has("kind")) {
      if (run.At("kind").AsString() != kLatentKind) {
        run.At("kind").Fail(fmt::format("\"{}\", or none", kLatentKind));
      }
      block.kind = KvBlockKind::kLatent;
    }
    for (size_t j = 0; j < streams.size(); ++j) {
      block.streams.push_back(
          ReadStream(streams.At(j), run, block.is_latent() ? 0 : block.num_heads));
    }
    if (run.Has("sliding_window")) {
      block.sliding_window = run.At("sliding_window").AsInt(1, limits::kPositions);
    }
    if (block.is_latent()) CheckLatents(streams, block);
    geometry.blocks.insert(geometry.blocks.end(), static_cast<size_t>(count), block);
  }
  return geometry;
}

std::vector<std::vector<double>> ReadSide(const JsonValue& side, int64_t num_layers) {
  std::vector<std::vector<double>> by_width;
  for (const int bits : kWidths) {
    const JsonValue array = ReadPerBlock(side, std::to_string(bits), num_layers);
    by_width.push_back(array.AsDoubleArray());
    for (size_t i = 0; i < array.size(); ++i) {
      if (by_width.back()[i] < 0) array.At(i).Fail("a number that is not negative");
    }
  }
  return by_width;
}

void ReadRepScales(const JsonValue& value, Plan& plan, std::string& tensor_hash) {
  const JsonValue alpha = ReadPerBlock(value, "alpha", plan.geometry.num_layers());
  plan.alpha = alpha.AsDoubleArray();
  for (size_t i = 0; i < alpha.size(); ++i) {
    if (plan.alpha[i] < 0 || plan.alpha[i] > 1) alpha.At(i).Fail("a number from 0 to 1");
  }
  plan.rep_k_bits = ReadWidth(value.At("k_bits"));
  plan.rep_v_bits = ReadWidth(value.At("v_bits"));
  tensor_hash = ReadHash(value.At("tensor_hash"));
}

CalibrationRecord ReadCalibration(const JsonValue& value) {
  CalibrationRecord record;
  record.dataset = value.At("dataset").AsString();
  record.pack = value.At("pack").AsString();
  record.num_samples = value.At("num_samples").AsInt(0, kMaxTokens);
  record.seq_len = value.At("seq_len").AsInt(0, kMaxTokens);
  record.effective_len = value.At("effective_len").AsInt(0, kMaxTokens);
  const std::string seed = value.At("seed").AsString();
  const auto [end, error] = std::from_chars(seed.data(), seed.data() + seed.size(), record.seed);
  if (error != std::errc{} || end != seed.data() + seed.size()) {
    value.At("seed").Fail("a decimal number below 2^64");
  }
  if (value.Has("weights")) record.weights = value.At("weights").AsString();
  return record;
}

std::string ReadField(const CacheField& field, const JsonValue& value) {
  switch (field.kind) {
    case CacheField::Kind::kFlag:
      return value.AsBool() ? "true" : "false";
    case CacheField::Kind::kChoice: {
      const std::string text = value.AsString();
      if (std::find(field.choices.begin(), field.choices.end(), text) == field.choices.end()) {
        value.Fail(fmt::format("one of {}", fmt::join(field.choices, ", ")));
      }
      return text;
    }
    default: {
      const int64_t number = value.AsInt(field.least, field.most_in_plan);
      if (number % field.multiple_of != 0) {
        value.Fail(fmt::format("a multiple of {}", field.multiple_of));
      }
      return std::to_string(number);
    }
  }
}

void ReadSettings(const JsonValue& root, CacheSettings& settings) {
  for (const CacheField& field : CacheFields()) {
    if (*field.plan_key != '\0') field.set(settings, ReadField(field, root.At(field.plan_key)));
  }
}

// Version 2: per block the width of each stream.
void ReadBits(const JsonValue& root, Plan& plan) {
  const JsonValue array = ReadPerBlock(root, "bits", plan.geometry.num_layers());
  for (size_t i = 0; i < array.size(); ++i) {
    const size_t num_streams = plan.geometry.blocks[i].streams.size();
    const JsonValue bits = array.At(i);
    if (!bits.IsArray() || bits.size() != num_streams) {
      bits.Fail(fmt::format("an array with one width per stream ({})", num_streams));
    }
    // What a block without cache is given has no effect.
    plan.k_bits.push_back(num_streams == 0 ? 16 : ReadWidth(bits.At(0)));
    plan.v_bits.push_back(num_streams == 0 ? 16 : ReadWidth(bits.At(1)));
  }
}

void ReadAllocation(const JsonValue& root, int64_t version, Plan& plan) {
  ReadSettings(root, plan.settings);
  plan.max_len = root.At("max_len").AsInt(1, kMaxTokens);
  plan.memory_budget_bytes = root.At("memory_budget_bytes").AsInt(0, kMaxBytes);
  if (version >= kLatentPlanVersion) plan.rope_floor_bits = ReadWidth(root.At("rope_floor_bits"));
  if (root.Has("mirrored")) plan.mirrored = root.At("mirrored").AsBool();
  if (version == 1) {
    plan.k_bits = ReadWidths(root, "k_bits", plan.geometry.num_layers());
    plan.v_bits = ReadWidths(root, "v_bits", plan.geometry.num_layers());
  } else {
    ReadBits(root, plan);
  }
  const JsonValue budgets = ReadPerBlock(root, "budget_bytes", plan.geometry.num_layers());
  for (size_t i = 0; i < budgets.size(); ++i) {
    const int64_t least = plan.geometry.blocks[i].has_cache() ? 1 : 0;
    plan.budget_bytes.push_back(budgets.At(i).AsInt(least, kMaxBytes));
  }
}

std::vector<Tensor> ReadKeyScales(const Plan& plan, const SafetensorsFile& file) {
  std::vector<Tensor> scales;
  for (size_t block = 0; block < plan.alpha.size(); ++block) {
    if (!plan.geometry.blocks[block].has_cache()) {
      scales.emplace_back();
      continue;
    }
    const Shape shape = KeyScales::ShapeOf(plan.geometry.blocks[block]);
    const TensorView& view = file.Get(ScaleName(block), DType::kF32, shape);
    Tensor tensor(DType::kF32, shape);
    std::copy_n(view.data, view.num_bytes(), reinterpret_cast<std::byte*>(tensor.As<float>()));
    const float* values = tensor.As<float>();
    for (int64_t i = 0; i < tensor.num_elements(); ++i) {
      if (std::isfinite(values[i]) && values[i] > 0) continue;
      throw InvalidInput(file.path(), fmt::format("{}: found {}, expected positive finite numbers",
                                                  ScaleName(block), values[i]));
    }
    scales.push_back(std::move(tensor));
  }
  return scales;
}

void CheckShapes(const Plan& plan) {
  const auto num_layers = plan.geometry.blocks.size();
  PMKVQ_CHECK(plan.k_bits.size() == num_layers && plan.v_bits.size() == num_layers);
  PMKVQ_CHECK(plan.budget_bytes.size() == num_layers);
  PMKVQ_CHECK(plan.alpha.empty() || plan.alpha.size() == num_layers);
  PMKVQ_CHECK(plan.key_scales.size() == plan.alpha.size());
  PMKVQ_CHECK(plan.sensitivity.k.empty() || plan.sensitivity.k.size() == kWidths.size());
  PMKVQ_CHECK(plan.sensitivity.v.size() == plan.sensitivity.k.size());
}

}  // namespace

void SavePlan(const Plan& plan, const std::string& path) {
  CheckShapes(plan);
  const std::string tensor_path = TensorPath(path);
  std::string tensor_hash;
  if (!plan.key_scales.empty()) {
    std::map<std::string, TensorView> tensors;
    for (size_t block = 0; block < plan.key_scales.size(); ++block) {
      if (!plan.geometry.blocks[block].has_cache()) continue;
      tensors.emplace(ScaleName(block), plan.key_scales[block].view());
    }
    WriteSafetensors(tensor_path, tensors, {{"format", kFormatName}});
    tensor_hash = HashFile(tensor_path);
  }
  WriteFileAtomically(path, ToJson(plan, tensor_hash));
}

Plan ParsePlanJson(std::string_view text, const std::string& source, std::string* tensor_hash) {
  const JsonValue root = JsonValue::Parse(text, source);
  if (!root.IsObject()) root.Fail("an object");
  const JsonValue format = root.Find("format");
  if (!format.IsString() || format.AsString() != kFormatName)
    format.Fail(fmt::format("\"{}\"", kFormatName));
  const int64_t version = root.At("version").AsInt();
  if (version < 1 || version > kLatentPlanVersion) {
    root.At("version").Fail(fmt::format("1 to {}", kLatentPlanVersion));
  }

  Plan plan;
  const JsonValue model = root.At("model");
  plan.model_identity = ReadHash(model.At("identity"));
  plan.geometry = version == 1 ? ReadUniformGeometry(model) : ReadGeometry(model, version);
  ReadAllocation(root, version, plan);
  if (root.Has("sensitivity")) {
    const JsonValue sensitivity = root.At("sensitivity");
    plan.sensitivity.k = ReadSide(sensitivity.At("k"), plan.geometry.num_layers());
    plan.sensitivity.v = ReadSide(sensitivity.At("v"), plan.geometry.num_layers());
  }
  tensor_hash->clear();
  if (root.Has("rep_scales")) ReadRepScales(root.At("rep_scales"), plan, *tensor_hash);
  plan.record = ReadCalibration(root.At("calibration"));
  return plan;
}

Plan LoadPlan(const std::string& path) {
  const std::string tensor_path = TensorPath(path);
  std::string expected_hash;
  Plan plan = ParsePlanJson(ReadFile(path), path, &expected_hash);
  if (plan.alpha.empty()) return plan;
  const std::string found_hash = HashFile(tensor_path);
  if (found_hash != expected_hash) {
    throw InvalidInput(tensor_path, fmt::format("found a file with hash {}, expected the one that "
                                                "{} names: {}",
                                                found_hash, path, expected_hash));
  }
  plan.key_scales = ReadKeyScales(plan, SafetensorsFile::Open(tensor_path));
  return plan;
}

void CheckPlanMatches(const Plan& plan, const std::string& model_identity,
                      const std::string& plan_path) {
  if (plan.model_identity == model_identity) return;
  throw InvalidInput(plan_path,
                     fmt::format("model.identity: found {}, expected that of this model, "
                                 "{}: the plan was made for another one",
                                 plan.model_identity, model_identity));
}

}  // namespace pmkvq
