// The two file formats of an evaluation run: lines of responses.jsonl, and run.json.
#include <fmt/format.h>

#include <limits>

#include "pmkvq/io/json.h"
#include "pmkvq/research/eval/evaluation.h"

namespace pmkvq {
namespace {

constexpr const char* kFormat = "pmkvq-eval";
constexpr int64_t kVersion = 1;
constexpr int64_t kMaxCount = std::numeric_limits<int64_t>::max();

int64_t Count(const JsonValue& json, const std::string& key) {
  return json.Find(key).AsInt(0, kMaxCount);
}

double NotNegative(const JsonValue& value) {
  const double number = value.AsDouble();
  if (number < 0) value.Fail("a number that is not negative");
  return number;
}

}  // namespace

std::string ResponseLine(const Response& response) {
  JsonWriter json;
  json.BeginObject();
  json.Key("id").String(response.id);
  json.Key("task").String(response.task);
  json.Key("level").Int(response.level);
  json.Key("response").Int(response.response);
  if (response.grading == Grading::kCode) json.Key("grading").String("code");
  json.Key("answer").String(response.answer);
  json.Key("extracted").String(response.extracted);
  json.Key("correct").Bool(response.correct);
  json.Key("finish_reason").String(response.finish_reason);
  if (!response.error.empty()) json.Key("error").String(response.error);
  json.Key("prompt_tokens").Int(response.prompt_tokens);
  json.Key("output_tokens").Int(response.output_tokens);
  json.Key("peak_bytes").Int(response.peak_bytes);
  json.Key("budget_bytes").Int(response.budget_bytes);
  json.Key("final_pages")
      .Array(std::vector<int64_t>(response.final_pages.begin(), response.final_pages.end()));
  if (response.kept_share < 1) json.Key("kept_share").Number(response.kept_share);
  json.Key("longest_pause_us").Number(response.longest_pause_us);
  json.Key("decode_seconds").Number(response.decode_seconds);
  json.Key("text").String(response.text);
  json.EndObject();
  return json.text();
}

Response ParseResponse(std::string_view line, const std::string& source) {
  const JsonValue json = JsonValue::Parse(line, source);
  if (!json.IsObject()) json.Fail("an object, one response");
  Response response;
  response.id = json.Find("id").AsString();
  response.task = json.Find("task").AsString();
  response.level = json.Find("level").AsInt();
  response.response = json.Find("response").AsInt(0, std::numeric_limits<int32_t>::max());
  if (json.Has("grading")) {
    const JsonValue grading = json.At("grading");
    if (grading.AsString() != "code") grading.Fail("\"code\"");
    response.grading = Grading::kCode;
  }
  response.answer = json.Find("answer").AsString();
  response.extracted = json.Find("extracted").AsString();
  response.correct = json.Find("correct").AsBool();
  const JsonValue reason = json.Find("finish_reason");
  response.finish_reason = reason.AsString();
  if (response.finish_reason != "stop" && response.finish_reason != "length" &&
      response.finish_reason != "kv_budget" && response.finish_reason != kErrorReason) {
    reason.Fail("\"stop\", \"length\", \"kv_budget\" or \"error\"");
  }
  if (json.Has("error")) response.error = json.At("error").AsString();
  response.prompt_tokens = Count(json, "prompt_tokens");
  response.output_tokens = Count(json, "output_tokens");
  response.peak_bytes = Count(json, "peak_bytes");
  response.budget_bytes = Count(json, "budget_bytes");
  const JsonValue pages = json.Find("final_pages");
  if (!pages.IsArray() || pages.size() != response.final_pages.size()) {
    pages.Fail("an array of the pages at 16, 8, 4 and 2 bits");
  }
  for (size_t i = 0; i < response.final_pages.size(); ++i) {
    response.final_pages[i] = pages.At(i).AsInt(0, kMaxCount);
  }
  if (json.Has("kept_share")) {
    const JsonValue share = json.At("kept_share");
    response.kept_share = share.AsDouble();
    if (response.kept_share < 0 || response.kept_share > 1) share.Fail("a share from 0 to 1");
  }
  response.longest_pause_us = NotNegative(json.Find("longest_pause_us"));
  response.decode_seconds = NotNegative(json.Find("decode_seconds"));
  response.text = json.Find("text").AsString();
  return response;
}

std::string RunSettingsJson(const RunSettings& settings) {
  JsonWriter json(2);
  json.BeginObject();
  json.Key("format").String(kFormat);
  json.Key("version").Int(kVersion);
  json.Key("benchmark").String(settings.benchmark);
  json.Key("model").String(settings.model_identity);
  json.Key("kv").String(settings.kv);
  json.Key("plan").String(settings.plan_hash);
  json.Key("options").BeginObject();
  for (const auto& [option, value] : settings.options) json.Key(option).String(value);
  json.EndObject().EndObject();
  return json.text();
}

RunSettings ParseRunSettings(std::string_view text, const std::string& source) {
  const JsonValue json = JsonValue::Parse(text, source);
  if (!json.IsObject()) json.Fail("an object, the settings of an evaluation");
  const JsonValue format = json.Find("format");
  if (format.AsString() != kFormat) format.Fail(std::string("\"") + kFormat + "\"");
  const JsonValue version = json.Find("version");
  if (version.AsInt() != kVersion) version.Fail("1");
  RunSettings settings;
  settings.benchmark = json.Find("benchmark").AsString();
  settings.model_identity = json.Find("model").AsString();
  settings.kv = json.Find("kv").AsString();
  settings.plan_hash = json.Find("plan").AsString();
  const JsonValue options = json.Find("options");
  if (!options.IsObject()) options.Fail("an object");
  constexpr size_t kMaxOptions = 4096;
  if (options.size() > kMaxOptions) options.Fail(fmt::format("at most {} options", kMaxOptions));
  options.ForEachMember([&](std::string_view option, const JsonValue& value) {
    settings.options.emplace_back(option, value.AsString());
  });
  return settings;
}

}  // namespace pmkvq
