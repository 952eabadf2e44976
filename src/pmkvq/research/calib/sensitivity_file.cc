#include "pmkvq/research/calib/sensitivity_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <limits>
#include <system_error>
#include <utility>
#include <vector>

#include "pmkvq/io/file.h"
#include "pmkvq/io/json.h"

namespace pmkvq {
namespace {

constexpr int64_t kAnyInt = std::numeric_limits<int64_t>::max();

void WriteSide(const std::vector<std::vector<double>>& side, JsonWriter& json) {
  json.BeginObject();
  for (size_t w = 0; w < side.size(); ++w) {
    if (!side[w].empty()) json.Key(fmt::format("{}", kWidths[w])).Array(side[w]);
  }
  json.EndObject();
}

void WriteRecord(const CalibrationRecord& record, JsonWriter& json) {
  json.BeginObject().Key("dataset").String(record.dataset).Key("pack").String(record.pack);
  json.Key("n_samples").Int(record.num_samples).Key("seq_len").Int(record.seq_len);
  json.Key("effective_len").Int(record.effective_len);
  // As text: JSON integers are signed here, seeds are not.
  json.Key("seed").String(fmt::format("{}", record.seed));
  if (record.weights != CalibrationRecord::kStoredWeights) {
    json.Key("weights").String(record.weights);
  }
  json.EndObject();
}

CalibrationRecord ReadRecord(const JsonValue& json) {
  CalibrationRecord record;
  if (json.Has("dataset")) record.dataset = json.At("dataset").AsString();
  if (json.Has("pack")) record.pack = json.At("pack").AsString();
  if (json.Has("n_samples")) record.num_samples = json.At("n_samples").AsInt(0, kAnyInt);
  if (json.Has("seq_len")) record.seq_len = json.At("seq_len").AsInt(0, kAnyInt);
  if (json.Has("effective_len")) record.effective_len = json.At("effective_len").AsInt(0, kAnyInt);
  if (json.Has("weights")) record.weights = json.At("weights").AsString();
  if (json.Has("seed")) {
    const std::string seed = json.At("seed").AsString();
    const auto parsed = std::from_chars(seed.data(), seed.data() + seed.size(), record.seed);
    if (parsed.ec != std::errc() || parsed.ptr != seed.data() + seed.size()) {
      json.At("seed").Fail("a string of decimal digits below 2^64");
    }
  }
  return record;
}

std::vector<int> ReadWidths(const JsonValue& json) {
  std::vector<int> widths;
  for (size_t i = 0; i < json.size(); ++i) {
    const int64_t bits = json.At(i).AsInt();
    if (std::find(kWidths.begin(), kWidths.end(), bits) == kWidths.end()) {
      json.At(i).Fail("16, 8, 4 or 2");
    }
    const int width = static_cast<int>(bits);
    if (std::find(widths.begin(), widths.end(), width) != widths.end()) {
      json.At(i).Fail("every width once");
    }
    widths.push_back(width);
  }
  if (widths.empty()) json.Fail("a list of widths");
  return widths;
}

// Sets `num_blocks` at the first list and holds the others to it.
std::vector<std::vector<double>> ReadSide(const JsonValue& json, const std::vector<int>& widths,
                                          int64_t& num_blocks) {
  std::vector<std::vector<double>> side(kWidths.size());
  for (const int bits : widths) {
    const JsonValue list = json.At(fmt::format("{}", bits));
    std::vector<double> values = list.AsDoubleArray();
    if (num_blocks == 0) num_blocks = static_cast<int64_t>(values.size());
    if (values.empty() || static_cast<int64_t>(values.size()) != num_blocks) {
      list.Fail(num_blocks == 0 ? "one value per block" : fmt::format("{} values", num_blocks));
    }
    for (size_t block = 0; block < values.size(); ++block) {
      if (values[block] < 0) list.At(block).Fail("a number >= 0");
    }
    side[WidthIndex(bits)] = std::move(values);
  }
  return side;
}

SensitivityFile FromJson(const JsonValue& json) {
  SensitivityFile file;
  const std::vector<int> widths = ReadWidths(json.At("bits"));
  file.sensitivity.k = ReadSide(json.At("k"), widths, file.num_blocks);
  file.sensitivity.v = ReadSide(json.At("v"), widths, file.num_blocks);
  if (json.Has("model_identity")) file.model_identity = json.At("model_identity").AsString();
  if (json.Has("calibration")) file.record = ReadRecord(json.At("calibration"));
  return file;
}

}  // namespace

std::string SensitivityJson(const SensitivityFile& file) {
  std::vector<int32_t> widths;
  for (size_t w = 0; w < file.sensitivity.k.size(); ++w) {
    if (!file.sensitivity.k[w].empty()) widths.push_back(kWidths[w]);
  }
  JsonWriter json(2);
  json.BeginObject().Key("bits").Array(widths).Key("k");
  WriteSide(file.sensitivity.k, json);
  json.Key("v");
  WriteSide(file.sensitivity.v, json);
  json.Key("model_identity").String(file.model_identity).Key("calibration");
  WriteRecord(file.record, json);
  json.EndObject();
  return json.text() + "\n";
}

SensitivityFile ParseSensitivityJson(std::string_view text, const std::string& source) {
  return FromJson(JsonValue::Parse(text, source));
}

SensitivityFile LoadSensitivity(const std::string& path) {
  return FromJson(JsonValue::ParseFile(path));
}

}  // namespace pmkvq
