#include "pmkvq/research/bench/rounds.h"

#include <fmt/format.h>

#include <algorithm>

#include "pmkvq/base/error.h"
#include "pmkvq/research/bench/shapes.h"

namespace pmkvq {

namespace internal {
namespace {

constexpr int64_t kMaxDepth = int64_t{1} << 20;
constexpr int64_t kMaxBatch = 256;
constexpr int64_t kMaxLayers = 256;
constexpr int kMaxThreads = 1024;
constexpr int kMaxRounds = 10000;

void CheckRange(const char* option, int64_t value, int64_t least, int64_t most) {
  if (value >= least && value <= most) return;
  throw InvalidInput(option, fmt::format("found {}, expected {} to {}", value, least, most));
}

}  // namespace

void CheckOptions(const BenchOptions& options) {
  CheckRange("--layers", options.layers, 0, kMaxLayers);
  CheckRange("--threads", options.num_threads, 1, kMaxThreads);
  CheckRange("--repeat", options.repeat, 1, kMaxRounds);
  for (const int64_t depth : options.depths) CheckRange("--depth", depth, 0, kMaxDepth);
  for (const int64_t batch : options.batches) CheckRange("--batch", batch, 1, kMaxBatch);
  const auto check_width = [](const char* option, int bits) {
    if (bits != 16 && bits != 8 && bits != 4 && bits != 2) {
      throw InvalidInput(option, fmt::format("found {}, expected 16, 8, 4 or 2", bits));
    }
  };
  for (const int bits : options.bits) check_width("--bits", bits);
  for (const KvBits& bits : options.apart) {
    check_width("--apart", bits.k);
    check_width("--apart", bits.v);
  }
}

ModelConfig ShapeOf(const BenchOptions& options, int64_t default_layers) {
  return NamedShape(options.shape, options.layers > 0 ? options.layers : default_layers);
}

void RunRounds(const BenchOptions& options, const char* task, Ceilings& ceilings,
               const std::function<void(bool measured)>& round) {
  if (options.progress != nullptr) options.progress->Begin(task, options.repeat, 0);
  round(false);
  for (int i = 0; i < options.repeat; ++i) {
    ThrowIfCancelled(options.cancel, "bench");
    ceilings.Measure();
    round(true);
    if (options.progress != nullptr) options.progress->Advance(1);
  }
  if (options.progress != nullptr) options.progress->End();
}

BenchReport NewReport(const BenchOptions& options, const char* bench, const ModelConfig& shape) {
  BenchReport report;
  report.facts.Add("bench", std::string(bench));
  report.facts.Add("shape", options.shape);
  report.facts.Add("layers", shape.num_layers);
  report.facts.Add("repeat", int64_t{options.repeat});
  report.facts.AddText(
      "shape", fmt::format("{}: {} block{}, {} query heads, {} KV heads of {}, hidden {}, MLP {}",
                           options.shape, shape.num_layers, shape.num_layers == 1 ? "" : "s",
                           shape.num_heads, shape.num_kv_heads, shape.head_dim, shape.hidden_size,
                           shape.intermediate_size));
  return report;
}

}  // namespace internal
}  // namespace pmkvq
