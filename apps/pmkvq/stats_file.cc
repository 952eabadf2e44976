#include "stats_file.h"

#include "pmkvq/io/json.h"

namespace pmkvq::cli {
namespace {

std::vector<int64_t> AsVector(const PagesPerWidth& pages) { return {pages.begin(), pages.end()}; }

void WriteBlocks(const Engine& engine, SequenceId seq, JsonWriter& json) {
  json.Key("blocks").BeginArray();
  for (int64_t layer = 0; layer < engine.model().config().num_layers; ++layer) {
    const KvLayerStats stats = engine.store().LayerStats(seq, layer);
    json.BeginObject();
    json.Key("bytes").Int(stats.bytes);
    if (stats.kept_share < 1) json.Key("kept_share").Number(stats.kept_share);
    json.Key("k").Array(AsVector(stats.k_pages));
    json.Key("v").Array(AsVector(stats.v_pages));
    json.EndObject();
  }
  json.EndArray();
}

}  // namespace

void StatsFile::WriteLine(const std::string& line) {
  const std::string text = line + "\n";
  file_.Append(text.data(), text.size());
}

void StatsFile::WriteToken(const Engine& engine, RequestId id) {
  const std::optional<SequenceId> seq = engine.SequenceOf(id);
  if (!seq) return;
  const KvSequenceStats stats = engine.store().SequenceStats(*seq);
  JsonWriter json;
  json.BeginObject();
  json.Key("event").String("token");
  json.Key("request").Int(id);
  json.Key("position").Int(stats.num_tokens);
  json.Key("bytes").Int(stats.bytes);
  json.Key("budget_bytes").Int(stats.budget_bytes);
  if (stats.kept_share < 1) json.Key("kept_share").Number(stats.kept_share);
  json.Key("pages").Array(AsVector(stats.pages));
  const auto [last, is_first] = last_bytes_.try_emplace(id, -1);
  if (is_first || last->second != stats.bytes) WriteBlocks(engine, *seq, json);
  last->second = stats.bytes;
  json.EndObject();
  WriteLine(json.text());
}

void StatsFile::WriteHalving(RequestId id, const HalvingEvent& event) {
  JsonWriter json;
  json.BeginObject();
  json.Key("event").String("halving");
  json.Key("request").Int(id);
  json.Key("position").Int(event.num_tokens);
  json.Key("block").Int(event.layer);
  json.Key("from_bits").Int(event.from_bits);
  json.Key("to_bits").Int(event.from_bits / 2);
  json.Key("k_pages").Int(event.num_k_pages);
  json.Key("v_pages").Int(event.num_v_pages);
  json.Key("microseconds").Number(event.duration_us);
  json.EndObject();
  WriteLine(json.text());
}

void StatsFile::WriteFinish(const Engine& engine, const Completion& completion) {
  const KvStoreStats store = engine.store().StoreStats();
  JsonWriter json;
  json.BeginObject();
  json.Key("event").String("finish");
  json.Key("request").Int(completion.id);
  json.Key("position").Int(completion.kv.num_tokens);
  json.Key("finish_reason").String(NameOf(completion.finish_reason));
  json.Key("peak_bytes").Int(completion.kv.peak_bytes);
  if (completion.kv.kept_share < 1) json.Key("kept_share").Number(completion.kv.kept_share);
  json.Key("budget_bytes").Int(completion.kv.budget_bytes);
  json.Key("pages").Array(AsVector(completion.kv.pages));
  json.Key("longest_pause_us").Number(completion.longest_pause_us);
  json.Key("arena_bytes").Int(static_cast<int64_t>(store.arena_bytes));
  json.Key("cache_scratch_bytes").Int(static_cast<int64_t>(store.scratch_bytes));
  json.Key("activation_bytes").Int(static_cast<int64_t>(engine.workspace_bytes()));
  json.EndObject();
  WriteLine(json.text());
}

}  // namespace pmkvq::cli
