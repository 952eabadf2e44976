#include "pmkvq/research/compare/compare_list.h"

#include <algorithm>
#include <limits>

#include "pmkvq/io/json.h"

namespace pmkvq {
namespace {

constexpr const char* kFormat = "pmkvq-comparison";
constexpr int64_t kVersion = 2;  // Version 1 is read.
constexpr int64_t kMost = std::numeric_limits<int64_t>::max();

bool IsSameRun(const ListedRun& a, const ListedRun& b) {
  return a.method == b.method && a.budget_bytes == b.budget_bytes;
}

bool ComparesTheSame(const ComparisonList& a, const ComparisonList& b) {
  return a.benchmark == b.benchmark && a.model == b.model && a.problems == b.problems &&
         a.num_responses == b.num_responses && !a.runs.empty() && !b.runs.empty() &&
         IsSameRun(a.runs.front(), b.runs.front());
}

// Version 1: blocks of keys and values of one shape.
int64_t ValuesOfGeometry(const JsonValue& geometry) {
  if (!geometry.IsArray() || geometry.size() != 4) {
    geometry.Fail("an array of layers, heads, KV heads and head size");
  }
  constexpr int64_t kMostOfShape = int64_t{1} << 20;
  const auto shape = [&](size_t i) { return geometry.At(i).AsInt(1, kMostOfShape); };
  shape(1);
  return 2 * shape(0) * shape(2) * shape(3);
}

}  // namespace

std::string ComparisonListJson(const ComparisonList& list) {
  JsonWriter json(2);
  json.BeginObject();
  json.Key("format").String(kFormat);
  json.Key("version").Int(kVersion);
  json.Key("benchmark").String(list.benchmark);
  json.Key("model").String(list.model);
  json.Key("values_per_token").Int(list.values_per_token);
  json.Key("against").String(list.against);
  json.Key("responses_per_problem").Int(list.num_responses);
  json.Key("problems").BeginArray();
  for (const std::string& id : list.problems) json.String(id);
  json.EndArray();
  json.Key("runs").BeginArray();
  for (const ListedRun& run : list.runs) {
    json.BeginObject();
    json.Key("kv").String(run.method);
    json.Key("budget_bytes").Int(run.budget_bytes);
    json.Key("run").Bool(run.is_run);
    json.Key("needed_bytes").Int(run.needed_bytes);
    json.Key("needed_tokens").Int(run.needed_tokens);
    json.EndObject();
  }
  json.EndArray().EndObject();
  return json.text();
}

ComparisonList ParseComparisonList(std::string_view text, const std::string& source) {
  const JsonValue json = JsonValue::Parse(text, source);
  if (!json.IsObject()) json.Fail("an object, the list of a comparison");
  const JsonValue format = json.Find("format");
  if (format.AsString() != kFormat) format.Fail(std::string("\"") + kFormat + "\"");
  const JsonValue version = json.Find("version");
  if (version.AsInt() != 1 && version.AsInt() != kVersion) version.Fail("1 or 2");
  ComparisonList list;
  list.benchmark = json.Find("benchmark").AsString();
  list.model = json.Find("model").AsString();
  list.values_per_token = version.AsInt() == 1 ? ValuesOfGeometry(json.Find("geometry"))
                                               : json.Find("values_per_token").AsInt(1, kMost);
  list.against = json.Find("against").AsString();
  list.num_responses = json.Find("responses_per_problem").AsInt(1, kMost);
  const JsonValue problems = json.Find("problems");
  if (!problems.IsArray()) problems.Fail("an array of problem ids");
  for (size_t i = 0; i < problems.size(); ++i) list.problems.push_back(problems.At(i).AsString());
  const JsonValue runs = json.Find("runs");
  if (!runs.IsArray() || runs.size() == 0) runs.Fail("an array of one run or more");
  for (size_t i = 0; i < runs.size(); ++i) {
    const JsonValue row = runs.At(i);
    if (!row.IsObject()) row.Fail("an object, one run");
    list.runs.push_back({row.Find("kv").AsString(), row.Find("budget_bytes").AsInt(0, kMost),
                         row.Find("run").AsBool(), row.Find("needed_bytes").AsInt(0, kMost),
                         row.Find("needed_tokens").AsInt(0, kMost)});
  }
  return list;
}

ComparisonList MergeLists(const ComparisonList& list, const ComparisonList& earlier) {
  ComparisonList merged = list;
  if (!ComparesTheSame(list, earlier)) return merged;
  for (const ListedRun& run : earlier.runs) {
    const bool is_there =
        std::any_of(list.runs.begin(), list.runs.end(),
                    [&](const ListedRun& other) { return IsSameRun(other, run); });
    if (!is_there) merged.runs.push_back(run);
  }
  return merged;
}

}  // namespace pmkvq
