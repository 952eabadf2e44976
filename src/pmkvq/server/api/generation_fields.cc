#include "pmkvq/server/api/generation_fields.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <filesystem>

#include "pmkvq/server/api/api_error.h"

namespace pmkvq::server {
namespace {

constexpr int64_t kMostTokens = int64_t{1} << 40;
constexpr size_t kMostStops = 16;
constexpr size_t kMostStopBytes = 256;
constexpr size_t kMostStopIds = 64;
constexpr size_t kMostBiases = 1024;

void ReadStops(BodyFields& body, int64_t vocab_size, GenerationFields& fields) {
  fields.stop = body.Texts("stop", kMostStops, kMostStopBytes);
  for (const std::string& stop : fields.stop) {
    if (stop.empty()) body.Fail("stop", "an empty string", "strings of at least one byte");
  }
  if (body.Has("stop_token_ids")) {
    const JsonValue ids = body.Value("stop_token_ids");
    if (!ids.IsArray() || ids.size() > kMostStopIds) {
      body.Fail("stop_token_ids", ids.Dump().substr(0, 40),
                fmt::format("a list of at most {} token ids", kMostStopIds));
    }
    for (size_t i = 0; i < ids.size(); ++i) {
      const JsonValue id = ids.At(i);
      if (!id.IsInteger() || id.AsInt() < 0 || id.AsInt() >= vocab_size) {
        body.Fail("stop_token_ids", id.Dump(), fmt::format("ids from 0 to {}", vocab_size - 1));
      }
      fields.stop_ids.push_back(static_cast<int32_t>(id.AsInt()));
    }
  }
  fields.include_stop = body.Bool("include_stop_str_in_output").value_or(false);
  fields.stop_in_reasoning = body.Bool("stop_in_reasoning").value_or(false);
}

void ReadBias(BodyFields& body, int64_t vocab_size, LogitRules& rules) {
  if (!body.Has("logit_bias")) return;
  const JsonValue bias = body.Value("logit_bias");
  if (!bias.IsObject() || bias.size() > kMostBiases) {
    body.Fail("logit_bias", bias.Dump().substr(0, 40),
              fmt::format("an object of at most {} token ids with a number each", kMostBiases));
  }
  bias.ForEachMember([&](std::string_view name, const JsonValue& value) {
    int64_t id = -1;
    const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), id);
    if (error != std::errc() || end != name.data() + name.size() || id < 0 || id >= vocab_size) {
      body.Fail("logit_bias", fmt::format("\"{}\"", name.substr(0, 40)),
                fmt::format("token ids from 0 to {}", vocab_size - 1));
    }
    if (!value.IsNumber() || !(value.AsDouble() >= -100 && value.AsDouble() <= 100)) {
      body.Fail("logit_bias", value.Dump().substr(0, 40), "numbers from -100 to 100");
    }
    rules.bias.emplace_back(static_cast<int32_t>(id), static_cast<float>(value.AsDouble()));
  });
}

void ReadStreaming(BodyFields& body, GenerationFields& fields) {
  fields.stream = body.Bool("stream").value_or(false);
  if (!body.Has("stream_options")) return;
  if (!fields.stream) {
    body.Fail("stream_options", "it without stream", "it only with \"stream\": true");
  }
  BodyFields options(body.Value("stream_options"), "stream_options.");
  fields.include_usage = options.Bool("include_usage").value_or(false);
  fields.continuous_usage = options.Bool("continuous_usage_stats").value_or(false);
}

void ReadPoolFields(BodyFields& body, const PoolFields& pool, GenerationFields& fields) {
  if (!pool.has_pool) body.Refuse({"kv_min_bits"});
  if (const auto bits = body.Integer("kv_min_bits", 0, 16)) {
    const bool is_width = std::find(kWidths.begin(), kWidths.end(), *bits) != kWidths.end();
    if (!is_width || *bits < pool.floor_bits || *bits > pool.close_bits) {
      body.Fail("kv_min_bits", std::to_string(*bits),
                fmt::format("16, 8, 4 or 2, from {} (--kv-floor) to {}", pool.floor_bits,
                            pool.close_bits));
    }
    fields.kv_min_bits = static_cast<int>(*bits);
  }
  if (!pool.priorities) body.Refuse({"priority"});
  fields.priority = body.Integer("priority", -100, 100).value_or(0);
}

// The events of an earlier reply.
void ReadReplay(BodyFields& body, const PoolFields& pool, GenerationFields& fields) {
  if (!pool.replays) body.Refuse({"kv_replay"});
  if (!pool.replays || !body.Has("kv_replay")) return;
  const JsonValue events = body.Value("kv_replay");
  if (!events.IsArray() || std::ssize(events) > kMostReplayedEvents) {
    body.Fail("kv_replay", "something else",
              fmt::format("kv.events of a reply with kv_report \"events\", {} at most",
                          kMostReplayedEvents));
  }
  fields.kv_replay.emplace();
  for (size_t i = 0; i < events.size(); ++i) {
    BodyFields event(events.At(i), fmt::format("kv_replay[{}].", i));
    const auto number = [&](const char* name, int64_t most) {
      const std::optional<int64_t> value = event.Integer(name, 0, most);
      if (!value) event.Fail(name, "nothing", fmt::format("0 to {}", most));
      return *value;
    };
    const auto choice = static_cast<size_t>(number("choice", kMostPrompts - 1));
    KvHistoryEvent one;
    one.num_tokens = number("tokens", kMostTokens);
    if (!event.Bool("resume").value_or(false)) {
      one.layer = number("layer", kMostTokens);
      one.from_bits = static_cast<int>(number("from_bits", 16));
      one.num_k_pages = number("k_pages", kMostTokens);
      one.num_v_pages = number("v_pages", kMostTokens);
      one.first_k_page = event.Integer("k_first", 0, kMostTokens).value_or(-1);
      one.first_v_page = event.Integer("v_first", 0, kMostTokens).value_or(-1);
    }
    if (choice >= fields.kv_replay->size()) fields.kv_replay->resize(choice + 1);
    (*fields.kv_replay)[choice].push_back(one);
  }
}

}  // namespace

SamplingDefaults LoadSamplingDefaults(const std::string& folder) {
  SamplingDefaults defaults;
  const std::string path = folder + "/generation_config.json";
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) return defaults;
  const JsonValue json = JsonValue::ParseFile(path);
  const auto read = [&](const char* name, double least, double most, double* value) {
    if (!json.Has(name)) return;
    const double found = json.At(name).AsDouble();
    if (!(found >= least && found <= most)) {
      json.At(name).Fail(fmt::format("a number from {} to {}", least, most));
    }
    *value = found;
  };
  read("temperature", 0, 100, &defaults.temperature);
  read("top_p", 0, 1, &defaults.top_p);
  read("min_p", 0, 1, &defaults.min_p);
  read("repetition_penalty", 0.001, 1000, &defaults.repetition_penalty);
  if (json.Has("top_k")) defaults.top_k = json.At("top_k").AsInt(0, kMostTokens);
  if (json.Has("do_sample") && !json.At("do_sample").AsBool()) defaults.temperature = 0;
  return defaults;
}

GenerationFields ReadGenerationFields(BodyFields& body, const SamplingDefaults& defaults,
                                      int64_t vocab_size, const PoolFields& pool) {
  GenerationFields fields;
  fields.sampling.temperature = body.Number("temperature", 0, 2).value_or(defaults.temperature);
  fields.sampling.top_p = body.Number("top_p", 0, 1).value_or(defaults.top_p);
  if (fields.sampling.top_p == 0) body.Fail("top_p", "0", "a number above 0, up to 1");
  fields.sampling.min_p = body.Number("min_p", 0, 1).value_or(defaults.min_p);
  const int64_t top_k = body.Integer("top_k", -1, kMostTokens).value_or(defaults.top_k);
  fields.sampling.top_k = std::max<int64_t>(0, top_k);  // -1 is off, as in vLLM.
  // Any 64-bit number is a seed: a negative one is taken by its bits.
  if (const auto seed = body.Integer("seed", INT64_MIN, INT64_MAX)) {
    fields.seed = static_cast<uint64_t>(*seed);
  }
  fields.rules.presence_penalty = body.Number("presence_penalty", -2, 2).value_or(0);
  fields.rules.frequency_penalty = body.Number("frequency_penalty", -2, 2).value_or(0);
  fields.rules.repetition_penalty =
      body.Number("repetition_penalty", 0.001, 1000).value_or(defaults.repetition_penalty);
  ReadBias(body, vocab_size, fields.rules);
  ReadStops(body, vocab_size, fields);

  const auto max_tokens = body.Integer("max_tokens", 0, kMostTokens);
  const auto max_completion_tokens = body.Integer("max_completion_tokens", 0, kMostTokens);
  fields.max_tokens = max_completion_tokens.value_or(max_tokens.value_or(-1));
  fields.min_tokens = body.Integer("min_tokens", 0, kMostTokens).value_or(0);
  fields.ignore_eos = body.Bool("ignore_eos").value_or(false);
  fields.n = body.Integer("n", 1, kMostChoices).value_or(1);
  if (const auto best_of = body.Integer("best_of", 1, INT64_MAX); best_of.value_or(1) != 1) {
    throw RefusedRequest(InvalidRequest("unsupported_parameter", "best_of",
                                        fmt::format("best_of: found {}, expected 1", *best_of)));
  }
  ReadStreaming(body, fields);
  const std::string report = body.Text("kv_report", 16).value_or("summary");
  if (report != "none" && report != "summary" && report != "events") {
    body.Fail("kv_report", "\"" + report + "\"", "none, summary or events");
  }
  fields.kv_report = report == "none"     ? KvReportKind::kNone
                     : report == "events" ? KvReportKind::kEvents
                                          : KvReportKind::kSummary;
  body.Accept({"user", "metadata", "service_tier", "parallel_tool_calls", "safety_identifier",
               "prompt_cache_key"});
  body.Refuse({"grammar", "functions", "function_call", "audio", "store", "background",
               "guided_json", "guided_regex", "guided_choice", "guided_grammar", "bad_words",
               "logits_processors"});
  fields.cache_salt = body.Text("cache_salt", kMostSaltBytes).value_or("");
  ReadPoolFields(body, pool, fields);
  ReadReplay(body, pool, fields);
  return fields;
}

}  // namespace pmkvq::server
