#include "pmkvq/server/metrics.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>

namespace pmkvq::server {
namespace {

void Declare(std::string& out, const std::string& name, const char* type, const char* help) {
  fmt::format_to(std::back_inserter(out), "# HELP {} {}\n# TYPE {} {}\n", name, help, name, type);
}

void Sample(std::string& out, const char* name, const char* type, const char* help, double value) {
  Declare(out, name, type, help);
  fmt::format_to(std::back_inserter(out), "{} {}\n", name, value);
}

}  // namespace

Histogram::Histogram(std::vector<double> bounds)
    : bounds_(std::move(bounds)), counts_(bounds_.size() + 1) {}

void Histogram::Observe(double value) {
  const auto bucket = std::lower_bound(bounds_.begin(), bounds_.end(), value) - bounds_.begin();
  ++counts_[static_cast<size_t>(bucket)];
  sum_ += value;
}

void Histogram::AppendTo(std::string& out, const std::string& name,
                         const std::string& label) const {
  const std::string labels = label.empty() ? "" : "{" + label + "}";
  int64_t count = 0;
  for (size_t i = 0; i < counts_.size(); ++i) {
    count += counts_[i];
    const std::string bound = i < bounds_.size() ? fmt::format("{}", bounds_[i]) : "+Inf";
    fmt::format_to(std::back_inserter(out), "{}_bucket{{{}{}le=\"{}\"}} {}\n", name, label,
                   label.empty() ? "" : ",", bound, count);
  }
  fmt::format_to(std::back_inserter(out), "{0}_sum{1} {2}\n{0}_count{1} {3}\n", name, labels, sum_,
                 count);
}

std::string Metrics::Text(const EngineSnapshot& engine, int64_t kv_pool_bytes,
                          const std::string& build) const {
  std::string out;
  const auto number = [](int64_t value) { return static_cast<double>(value); };
  Declare(out, "pmkvq_build_info", "gauge", "Version of the program.");
  fmt::format_to(std::back_inserter(out), "pmkvq_build_info{{version=\"{}\"}} 1\n", build);
  Declare(out, "pmkvq_requests_total", "counter", "Replies by endpoint and status.");
  for (const auto& [key, count] : requests) {
    fmt::format_to(std::back_inserter(out),
                   "pmkvq_requests_total{{endpoint=\"{}\",code=\"{}\"}} {}\n", key.first,
                   key.second, count);
  }
  Declare(out, "pmkvq_finished_total", "counter", "Ended choices by reason.");
  for (const auto& [reason, count] : finished) {
    fmt::format_to(std::back_inserter(out), "pmkvq_finished_total{{reason=\"{}\"}} {}\n", reason,
                   count);
  }
  Sample(out, "pmkvq_requests_running", "gauge", "Choices that the engine computes.",
         number(engine.stats.num_running));
  Sample(out, "pmkvq_requests_waiting", "gauge", "Choices that wait for a place.",
         number(engine.stats.num_waiting));
  Sample(out, "pmkvq_prompt_tokens_total", "counter", "Tokens of prompts.", number(prompt_tokens));
  Sample(out, "pmkvq_cached_tokens_total", "counter",
         "Tokens of prompts that were not computed again.", number(cached_tokens));
  Sample(out, "pmkvq_generated_tokens_total", "counter", "Tokens drawn.", number(generated_tokens));
  Sample(out, "pmkvq_reasoning_tokens_total", "counter", "Tokens drawn in reasoning.",
         number(reasoning_tokens));
  Sample(out, "pmkvq_kv_pool_bytes", "gauge", "Bytes that the caches may take.",
         number(kv_pool_bytes));
  Sample(out, "pmkvq_kv_used_bytes", "gauge", "Bytes that the caches take.",
         number(engine.kv_bytes));
  Sample(out, "pmkvq_kv_usage_ratio", "gauge", "Used part of the pool.",
         kv_pool_bytes > 0 ? number(engine.kv_bytes) / number(kv_pool_bytes) : 0);
  Declare(out, "pmkvq_kv_pages", "gauge", "Pages of running requests by width.");
  for (const int bits : kWidths) {
    fmt::format_to(std::back_inserter(out), "pmkvq_kv_pages{{bits=\"{}\"}} {}\n", bits,
                   engine.kv_pages[WidthIndex(bits)]);
  }
  Sample(out, "pmkvq_kv_halved_pages_total", "counter", "Steps of pages to a lower width.",
         number(engine.num_halvings));
  if (engine.pool.bytes > 0) {
    Sample(out, "pmkvq_kv_water_level", "gauge",
           "Price up to which pages are halved; the mean price from 8 to 4 bits is 1.",
           engine.pool.water_level);
    Sample(out, "pmkvq_kv_peak_bytes", "gauge", "Most bytes that the caches have taken.",
           number(engine.pool.peak_bytes));
    Sample(out, "pmkvq_kv_halved_bytes_total", "counter", "Bytes of pages read to halve them.",
           number(engine.pool.narrowed_bytes));
    Sample(out, "pmkvq_kv_prefix_bytes", "gauge",
           "Bytes of the pool that kept prompts take beside running requests.",
           number(engine.pool.prefix_bytes));
    Sample(out, "pmkvq_prefix_hits_total", "counter", "Prompts that began as a kept one.",
           number(engine.pool.prefix_hits));
    Sample(out, "pmkvq_kv_expected_bytes", "gauge",
           "Bytes that running requests are expected to take at the target width.",
           engine.stats.expected_kv_bytes);
  }
  Sample(out, "pmkvq_preemptions_total", "counter",
         "Times that a request gave up its place in the pool.",
         number(engine.stats.num_preemptions));
  Sample(out, "pmkvq_recomputed_tokens_total", "counter",
         "Tokens of requests that gave up their places, computed again.",
         number(engine.stats.recomputed_tokens));
  Sample(out, "pmkvq_connections", "gauge", "Open connections.", number(connections));
  Sample(out, "pmkvq_slow_readers_cancelled_total", "counter", "Streams that nobody read.",
         number(slow_readers));
  Sample(out, "pmkvq_tls_failures_total", "counter", "Connections without a TLS handshake.",
         number(tls_failures));
  Sample(out, "pmkvq_clients_gone_total", "counter", "Requests whose client went away.",
         number(clients_gone));
  Sample(out, "pmkvq_log_dropped_total", "counter", "Log lines that could not be written.",
         number(log_lines_dropped));
  Declare(out, "pmkvq_step_seconds_total", "counter", "Time of the engine's steps by kind.");
  const auto step = [&](const char* kind, double seconds) {
    fmt::format_to(std::back_inserter(out), "pmkvq_step_seconds_total{{kind=\"{}\"}} {}\n", kind,
                   seconds);
  };
  step("decode", engine.stats.decode_seconds);
  step("prefill", engine.stats.prefill_seconds);
  step("sampling", engine.stats.sampling_seconds);
  step("reserve", engine.stats.reserve_seconds);
  const auto histogram = [&](const char* name, const char* help, const Histogram& values) {
    Declare(out, name, "histogram", help);
    values.AppendTo(out, name);
  };
  histogram("pmkvq_time_to_first_token_seconds", "From the request to its first token.",
            time_to_first_token);
  histogram("pmkvq_inter_token_seconds", "Between tokens of a choice.", inter_token);
  histogram("pmkvq_request_seconds", "From the request to its end.", request_seconds);
  return out;
}

std::string Metrics::TextAsVllm(const EngineSnapshot& engine, int64_t kv_pool_bytes,
                                const std::string& model) const {
  std::string out;
  std::string escaped;
  for (const char c : model) {
    if (c == '\\' || c == '"') escaped += '\\';
    escaped += c == '\n' ? ' ' : c;
  }
  const std::string label = "model_name=\"" + escaped + "\"";
  const auto sample = [&](const char* name, const char* type, const char* help, double value) {
    Declare(out, name, type, help);
    fmt::format_to(std::back_inserter(out), "{}{{{}}} {}\n", name, label, value);
  };
  const auto number = [](int64_t value) { return static_cast<double>(value); };
  sample("vllm:num_requests_running", "gauge", "As pmkvq_requests_running.",
         number(engine.stats.num_running));
  sample("vllm:num_requests_waiting", "gauge", "As pmkvq_requests_waiting.",
         number(engine.stats.num_waiting));
  sample("vllm:kv_cache_usage_perc", "gauge", "As pmkvq_kv_usage_ratio.",
         kv_pool_bytes > 0 ? number(engine.kv_bytes) / number(kv_pool_bytes) : 0);
  sample("vllm:num_preemptions_total", "counter", "Requests that gave up their place.",
         number(engine.stats.num_preemptions));
  sample("vllm:prompt_tokens_total", "counter", "Tokens of prompts.", number(prompt_tokens));
  sample("vllm:generation_tokens_total", "counter", "Tokens drawn.", number(generated_tokens));
  const auto histogram = [&](const char* name, const Histogram& values) {
    Declare(out, name, "histogram", "As pmkvq's.");
    values.AppendTo(out, name, label);
  };
  histogram("vllm:time_to_first_token_seconds", time_to_first_token);
  histogram("vllm:inter_token_latency_seconds", inter_token);
  histogram("vllm:e2e_request_latency_seconds", request_seconds);
  Declare(out, "vllm:request_success_total", "counter", "Ended choices by reason.");
  for (const auto& [reason, count] : finished) {
    fmt::format_to(std::back_inserter(out),
                   "vllm:request_success_total{{{},finished_reason=\"{}\"}} {}\n", label, reason,
                   count);
  }
  return out;
}

}  // namespace pmkvq::server
