// The JSON form of a comparison (docs/formats.md).
#include "pmkvq/eval/compare_report.h"
#include "pmkvq/io/json.h"

namespace pmkvq {
namespace {

void WriteInterval(JsonWriter& json, const char* key, const Interval& interval) {
  json.Key(key).Array(std::vector<double>{interval.low, interval.high});
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
  json.Key("difference").Number(pair->difference);
  WriteInterval(json, "interval", pair->interval);
  json.Key("p_value").Number(pair->p_value);
  json.EndObject();
}

// Members of an object that is open.
void WriteScore(JsonWriter& json, const Score& score) {
  json.Key("responses").Int(score.num_responses);
  json.Key("solved").Int(score.num_correct);
  json.Key("share").Number(score.share());
  WriteInterval(json, "interval", score.interval);
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
    WriteBits(json, "effective_bits_by_budget", EffectiveBitsOf(comparison, budget));
    WriteBits(json, "effective_bits_by_peak", EffectiveBitsOf(comparison, row.peak_bytes));
    json.Key("output_tokens").Int(row.output_tokens);
    json.Key("mean_output_tokens").Number(row.mean_output_tokens());
    json.Key("cut_by_length").Int(row.num_cut_by_length);
    json.Key("cut_by_budget").Int(row.num_cut_by_budget);
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

}  // namespace

std::string FormatComparisonJson(const Comparison& comparison) {
  JsonWriter json;
  json.BeginObject();
  json.Key("benchmark").String(comparison.benchmark);
  json.Key("model").String(comparison.model);
  json.Key("baseline").String(comparison.baseline);
  json.Key("against").String(comparison.against);
  json.Key("problems").Int(comparison.num_problems);
  json.Key("responses_per_problem").Int(comparison.num_responses);
  json.Key("max_len").Int(comparison.max_len);
  json.Key("confidence").Number(0.95);
  json.Key("pairs").String("(problem, response), treated as independent");
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

}  // namespace pmkvq
