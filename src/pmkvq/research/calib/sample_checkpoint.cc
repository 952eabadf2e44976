#include "pmkvq/research/calib/sample_checkpoint.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <filesystem>

#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"
#include "pmkvq/io/file.h"
#include "pmkvq/io/file_lock.h"
#include "pmkvq/io/json.h"
#include "pmkvq/io/json_lines.h"

namespace pmkvq {
namespace {

constexpr std::string_view kFormat = "pmkvq-calibration-checkpoint";
constexpr int64_t kVersion = 1;
constexpr std::string_view kPartFormat = "pmkvq-calibration-samples";
constexpr std::chrono::seconds kSaveInterval{5};

void Warn(LogSink* log, const std::string& text) {
  if (log != nullptr) log->Warning(text);
}

}  // namespace

std::optional<SamplePrefix> SampleCheckpoint::Load(const SampleCounts& counts, LogSink* log) const {
  if (path_.empty() || !FileExists(path_)) return std::nullopt;
  try {
    const JsonValue json = JsonValue::ParseFile(path_);
    if (json.At("format").AsString() != kFormat) json.At("format").Fail(std::string(kFormat));
    json.At("version").AsInt(kVersion, kVersion);
    if (json.At("fingerprint").AsString() != fingerprint_) {
      Warn(log, fmt::format("{}: made by another run (model, data or options differ), "
                            "starting anew",
                            path_));
      return std::nullopt;
    }
    SamplePrefix prefix;
    prefix.samples_done = static_cast<size_t>(
        json.At("samples_done").AsInt(0, static_cast<int64_t>(counts.num_samples)));
    prefix.values = json.At("values").AsDoubleArray();
    if (prefix.values.size() != counts.num_values) {
      json.At("values").Fail(fmt::format("{} numbers", counts.num_values));
    }
    return prefix;
  } catch (const InvalidInput& error) {
    Warn(log, fmt::format("{}; starting anew", error.what()));
    return std::nullopt;
  }
}

void SampleCheckpoint::SaveNow(const SamplePrefix& prefix) {
  if (path_.empty()) return;
  JsonWriter json;
  json.BeginObject().Key("format").String(kFormat).Key("version").Int(kVersion);
  json.Key("fingerprint").String(fingerprint_);
  json.Key("samples_done").Int(static_cast<int64_t>(prefix.samples_done));
  json.Key("values").Array(prefix.values).EndObject();
  WriteFileAtomically(path_, json.text());
  last_save_ = Clock::now();
}

void SampleCheckpoint::SaveSometimes(const SamplePrefix& prefix) {
  if (Clock::now() - last_save_ >= kSaveInterval) SaveNow(prefix);
}

void SampleCheckpoint::Remove() const {
  // A device or pipe of that name is not ours to remove.
  std::error_code error;
  if (std::filesystem::is_regular_file(path_, error)) std::filesystem::remove(path_, error);
}

std::string SampleLine(size_t sample, const SampleValues& values) {
  std::vector<int64_t> at;
  std::vector<double> maxima;
  for (const auto& [index, value] : values.maxima) {
    at.push_back(static_cast<int64_t>(index));
    maxima.push_back(value);
  }
  JsonWriter json;
  json.BeginObject();
  json.Key("sample").Int(static_cast<int64_t>(sample));
  json.Key("sums").Array(values.sums);
  json.Key("at").Array(at);
  json.Key("maxima").Array(maxima);
  json.EndObject();
  return json.text() + "\n";
}

void SampleTable::AddLines(std::string_view lines, const std::string& source) {
  ForEachLineOf(lines, source, [&](std::string_view line, const std::string& where, int64_t) {
    const JsonValue json = JsonValue::Parse(line, where);
    if (!json.IsObject()) json.Fail("an object, the values of a sample");
    const auto sample = static_cast<size_t>(
        json.Find("sample").AsInt(0, static_cast<int64_t>(counts_.num_samples) - 1));
    SampleValues values;
    values.sums = json.Find("sums").AsDoubleArray();
    if (values.sums.size() != counts_.num_sums) {
      json.At("sums").Fail(fmt::format("{} numbers", counts_.num_sums));
    }
    const JsonValue at = json.Find("at");
    const std::vector<double> maxima = json.Find("maxima").AsDoubleArray();
    if (!at.IsArray() || at.size() != maxima.size()) {
      at.Fail(fmt::format("{} numbers", maxima.size()));
    }
    const auto num_maxima = static_cast<int64_t>(counts_.num_values - counts_.num_sums);
    for (size_t i = 0; i < maxima.size(); ++i) {
      values.maxima.emplace_back(static_cast<size_t>(at.At(i).AsInt(0, num_maxima - 1)), maxima[i]);
    }
    const auto [known, is_new] = samples_.try_emplace(sample, values);
    if (is_new) return;
    if (known->second.sums != values.sums) {
      json.At("sums").Fail(
          fmt::format("those of an earlier line for sample {}; the machines of "
                      "the two runs compute differently",
                      sample));
    }
    // Each has those that exceed the ones before it in its own file.
    std::vector<std::pair<size_t, double>>& all = known->second.maxima;
    all.insert(all.end(), values.maxima.begin(), values.maxima.end());
  });
}

void SampleTable::AddFile(const std::string& path, const std::string& fingerprint, LogSink* log) {
  const std::string content = ReadWholeLines(path);
  const size_t first = content.find('\n');
  if (first == std::string::npos) return;
  if (content.substr(0, first + 1) != SamplePartHeader(fingerprint)) {
    Warn(log,
         fmt::format("{}: made by another run (model, data or options differ), left out", path));
    return;
  }
  // The header keeps its place, so that messages have the file's line numbers.
  std::string lines = content;
  std::fill(lines.begin(), lines.begin() + static_cast<std::ptrdiff_t>(first), ' ');
  AddLines(lines, path);
}

void SampleTable::AddTo(size_t sample, std::vector<double>& values) const {
  const std::vector<double>& sums = samples_.at(sample).sums;
  for (size_t i = 0; i < sums.size(); ++i) values[i] += sums[i];
}

void SampleTable::RaiseMaxima(std::vector<double>& values) const {
  PMKVQ_CHECK(values.size() == counts_.num_values);
  for (const auto& [sample, one] : samples_) {
    for (const auto& [index, value] : one.maxima) {
      double& most = values[counts_.num_sums + index];
      most = std::max(most, value);
    }
  }
}

void RemoveSampleFiles(const std::string& path) {
  if (!FileExists(path) && SamplePartFiles(path).List().empty()) return;
  auto alone = FileLock::Try(path + ".lock", FileLock::Kind::kExclusive);
  if (!alone) return;
  std::remove(path.c_str());
  SamplePartFiles(path).Remove();
  alone->RemoveFile();
}

PartFiles SamplePartFiles(const std::string& path) {
  const std::filesystem::path file(path);
  return {file.parent_path().string(), file.filename().string() + ".", ""};
}

std::string SamplePartHeader(const std::string& fingerprint) {
  JsonWriter json;
  json.BeginObject().Key("format").String(kPartFormat).Key("version").Int(1);
  json.Key("fingerprint").String(fingerprint).EndObject();
  return json.text() + "\n";
}

}  // namespace pmkvq
