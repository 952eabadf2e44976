// Counters of the server in Prometheus' text format, version 0.0.4. I/O thread only.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "pmkvq/server/engine_thread.h"

namespace pmkvq::server {

class Histogram {
 public:
  // Upper bounds of its buckets, rising.
  explicit Histogram(std::vector<double> bounds);
  void Observe(double value);
  // Samples with the name of the metric. `label`: one more of each sample, "model=\"x\"" say.
  void AppendTo(std::string& out, const std::string& name, const std::string& label = "") const;

 private:
  std::vector<double> bounds_;
  std::vector<int64_t> counts_;  // By bucket, not cumulative; one more than bounds.
  double sum_ = 0;
};

struct Metrics {
  void CountRequest(const std::string& endpoint, int status) { ++requests[{endpoint, status}]; }
  // `build`: version text for pmkvq_build_info.
  std::string Text(const EngineSnapshot& engine, int64_t kv_pool_bytes,
                   const std::string& build) const;

  // Those that gateways and autoscalers read, under vLLM's names.
  std::string TextAsVllm(const EngineSnapshot& engine, int64_t kv_pool_bytes,
                         const std::string& model) const;

  std::map<std::pair<std::string, int>, int64_t> requests;  // By endpoint and status.
  std::map<std::string, int64_t> finished;                  // Choices by reason.
  int64_t prompt_tokens = 0;
  int64_t cached_tokens = 0;  // Of them: not computed again.
  int64_t generated_tokens = 0;
  int64_t reasoning_tokens = 0;
  int64_t connections = 0;  // Open now.
  int64_t slow_readers = 0;
  int64_t clients_gone = 0;
  int64_t tls_failures = 0;
  int64_t log_lines_dropped = 0;
  Histogram time_to_first_token{{0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300}};
  Histogram inter_token{{0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3}};
  Histogram request_seconds{{0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000}};
};

}  // namespace pmkvq::server
