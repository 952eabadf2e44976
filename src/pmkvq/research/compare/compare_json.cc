// The JSON form of a comparison (docs/formats.md).
#include <limits>
#include <set>
#include <string>

#include "pmkvq/io/json.h"
#include "pmkvq/research/compare/compare_report.h"

namespace pmkvq {
namespace {

void WriteInterval(JsonWriter& json, const char* key, const Interval& interval) {
  json.Key(key).Array(std::vector<double>{interval.low, interval.high});
}

// Members of an object that is open.
void WriteShare(JsonWriter& json, const Score& score) {
  json.Key("share").Number(score.share());
  WriteInterval(json, "interval", score.interval);
}

void WriteDifference(JsonWriter& json, const PairedResult& pair) {
  json.Key("difference").Number(pair.difference);
  WriteInterval(json, "interval", pair.interval);
  json.Key("p_value").Number(pair.p_value);
}

void WritePair(JsonWriter& json, const char* key, const std::optional<PairedResult>& pair) {
  json.Key(key);
  if (!pair) {
    json.Null();
    return;
  }
  json.BeginObject();
  json.Key("both").Int(pair->both);
  json.Key("only_other").Int(pair->only_other);
  json.Key("only_method").Int(pair->only_method);
  json.Key("neither").Int(pair->neither);
  WriteDifference(json, *pair);
  json.EndObject();
}

// Members of an object that is open.
void WriteScore(JsonWriter& json, const Score& score) {
  json.Key("responses").Int(score.num_responses);
  json.Key("solved").Int(score.num_correct);
  WriteShare(json, score);
  WritePair(json, "to_baseline", score.baseline);
  WritePair(json, "to_against", score.against);
}

void WriteBits(JsonWriter& json, const char* key, double bits) {
  json.Key(key);
  if (bits > 0) {
    json.Number(bits);
  } else {
    json.Null();
  }
}

void WriteMethod(JsonWriter& json, const Comparison& comparison, const ComparisonTable& table,
                 const MethodResult& row) {
  const int64_t budget = row.method == comparison.baseline ? 0 : table.budget_bytes;
  json.BeginObject();
  json.Key("kv").String(row.method);
  json.Key("status").String(NameOf(row.status));
  json.Key("simulated").Bool(row.is_simulated);
  json.Key("budget_bytes").Int(budget);
  json.Key("needed_bytes").Int(row.needed_bytes);
  json.Key("needed_tokens").Int(row.needed_tokens);
  json.Key("expected_responses").Int(row.num_expected);
  if (row.status == MethodStatus::kDone) {
    WriteScore(json, row.total);
    json.Key("peak_bytes").Int(row.peak_bytes);
    if (row.kept_share < 1) json.Key("kept_share").Number(row.kept_share);
    WriteBits(json, "effective_bits_by_budget", EffectiveBitsOf(comparison, budget));
    WriteBits(json, "effective_bits_by_peak", EffectiveBitsOf(comparison, row.peak_bytes));
    json.Key("output_tokens").Int(row.output_tokens);
    json.Key("mean_output_tokens").Number(row.mean_output_tokens());
    json.Key("cut_by_length").Int(row.num_cut_by_length);
    json.Key("cut_by_budget").Int(row.num_cut_by_budget);
    json.Key("prompts_too_long").Int(row.num_prompts_too_long);
    json.Key("tokens_per_second").Number(row.tokens_per_second);
    json.Key("levels").BeginArray();
    for (const auto& [level, score] : row.levels) {
      json.BeginObject().Key("level").Int(level);
      WriteScore(json, score);
      json.EndObject();
    }
    json.EndArray();
  }
  json.EndObject();
}

void CheckMembers(const JsonValue& json, const std::set<std::string>& expected) {
  for (const std::string& key : json.Keys()) {
    if (!expected.contains(key)) {
      json.Fail(
          "{\"solved\",\"responses\"} or "
          "{\"both\",\"only_other\",\"only_method\",\"neither\"}");
    }
  }
}

}  // namespace

std::string FormatComparisonJson(const Comparison& comparison) {
  JsonWriter json;
  json.BeginObject();
  json.Key("benchmark").String(comparison.benchmark);
  json.Key("model").String(comparison.model);
  json.Key("baseline").String(comparison.baseline);
  json.Key("against").String(comparison.against);
  if (comparison.num_ranks > 1) json.Key("ranks").Int(comparison.num_ranks);
  json.Key("problems").Int(comparison.num_problems);
  json.Key("responses_per_problem").Int(comparison.num_responses);
  json.Key("max_len").Int(comparison.max_len);
  json.Key("confidence").Number(0.95);
  json.Key("pairs").String("(problem, response); the responses to one problem are a cluster");
  json.Key("settings").BeginObject();
  for (const auto& [option, value] : comparison.settings) json.Key(option).String(value);
  json.EndObject();
  json.Key("budgets").BeginArray();
  for (const ComparisonTable& table : comparison.tables) {
    json.BeginObject();
    json.Key("budget_bytes").Int(table.budget_bytes);
    WriteBits(json, "effective_bits", EffectiveBitsOf(comparison, table.budget_bytes));
    json.Key("methods").BeginArray();
    for (const MethodResult& row : table.methods) WriteMethod(json, comparison, table, row);
    json.EndArray().EndObject();
  }
  json.EndArray().EndObject();
  return json.text();
}

std::string FormatFiguresOf(std::string_view counts, const std::string& source) {
  const JsonValue json = JsonValue::Parse(counts, source);
  // Sums of four still fit.
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  const auto count = [&](const char* key) { return json.At(key).AsInt(0, kMost); };
  JsonWriter figures;
  figures.BeginObject();
  if (json.Has("both")) {
    CheckMembers(json, {"both", "only_other", "only_method", "neither"});
    WriteDifference(figures, MakePairedResult(count("both"), count("only_other"),
                                              count("only_method"), count("neither")));
  } else {
    CheckMembers(json, {"solved", "responses"});
    Score score;
    score.num_responses = count("responses");
    score.num_correct = json.At("solved").AsInt(0, score.num_responses);
    score.interval = WilsonInterval(score.num_correct, score.num_responses);
    WriteShare(figures, score);
  }
  figures.EndObject();
  return figures.text();
}

}  // namespace pmkvq
