#include "pmkvq/research/analysis/error_growth.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>

#include "pmkvq/base/error.h"
#include "pmkvq/research/methods/spec_engine.h"

namespace pmkvq {
namespace {

// Values of a trace with their positions.
struct Values {
  std::vector<int64_t> positions;
  std::vector<double> values;
};

Values KlOf(const CacheTrace& trace, int64_t first) {
  Values kl;
  for (const Prediction& prediction : trace.predictions) {
    kl.positions.push_back(first + static_cast<int64_t>(kl.positions.size()));
    kl.values.push_back(prediction.kl);
  }
  return kl;
}

// Of one block, or the mean over blocks for -1.
Values AttentionOf(const CacheTrace& trace, int64_t layer) {
  Values kl;
  for (const AttentionSample& sample : trace.attention) {
    kl.positions.push_back(sample.position);
    kl.values.push_back(layer < 0 ? MeanOf(sample.kl) : sample.kl[static_cast<size_t>(layer)]);
  }
  return kl;
}

// Mean of the last quarter over the mean of the first.
double LateOverEarly(const std::vector<double>& values) {
  const auto quarter = static_cast<std::ptrdiff_t>(values.size() / 4);
  if (quarter == 0) return std::numeric_limits<double>::quiet_NaN();
  const double early = std::accumulate(values.begin(), values.begin() + quarter, 0.0);
  const double late = std::accumulate(values.end() - quarter, values.end(), 0.0);
  return early > 0 ? late / early : std::numeric_limits<double>::quiet_NaN();
}

CacheGrowth Summarise(const ErrorGrowth& growth, std::string spec, CacheTrace trace,
                      int64_t num_layers) {
  const int64_t first = growth.chain.prompt_tokens - 1;
  CacheGrowth cache;
  cache.spec = std::move(spec);
  const Values kl = KlOf(trace, first);
  const Values attention = AttentionOf(trace, -1);
  cache.kl = BinMeans(growth.bins, kl.positions, kl.values);
  cache.attention = BinMeans(growth.bins, attention.positions, attention.values);
  for (int64_t layer = 0; layer < num_layers; ++layer) {
    const Values block = AttentionOf(trace, layer);
    cache.block_attention.push_back(BinMeans(growth.bins, block.positions, block.values));
  }
  cache.kl_law = FitPowerLaw(growth.bins.Centres(), cache.kl);
  cache.attention_law = FitPowerLaw(growth.bins.Centres(), cache.attention);
  cache.late_over_early = LateOverEarly(kl.values);
  const auto quarter = static_cast<std::ptrdiff_t>(kl.values.size() / 4);
  cache.early_kl = MeanOf({kl.values.begin(), kl.values.begin() + quarter});
  cache.mean_kl = MeanOf(kl.values);
  cache.mean_attention = MeanOf(attention.values);
  for (size_t i = 0; i < trace.predictions.size(); ++i) {
    const int64_t position = first + static_cast<int64_t>(i);
    const int32_t top = trace.predictions[i].top;
    if (top != growth.unquantised[i].top) cache.disagreements.push_back(position);
    if (top != growth.chain.tokens[static_cast<size_t>(position) + 1]) {
      cache.gold_lost.push_back(position);
    }
  }
  cache.trace = std::move(trace);
  return cache;
}

}  // namespace

Chain GenerateChain(const std::shared_ptr<const Model>& model, const std::vector<int32_t>& prompt,
                    int64_t max_len, int64_t max_tokens, int num_threads,
                    const CancelFlag* cancel) {
  SpecEngineOptions options;
  options.max_len = max_len;
  options.num_threads = num_threads;
  Engine engine = OpenEngine(model, nullptr, options);
  Request request;
  request.prompt_ids = prompt;
  request.sampling.temperature = 0;
  request.max_tokens = max_tokens;
  const Completion completion = engine.Generate({request}, nullptr, cancel).front();
  ThrowIfCancelled(cancel, "analyze");
  if (completion.finish_reason == FinishReason::kError) {
    throw InvalidInput("chain", completion.error);
  }
  Chain chain;
  chain.origin = "fp16, greedy";
  chain.tokens = prompt;
  chain.tokens.insert(chain.tokens.end(), completion.output_ids.begin(),
                      completion.output_ids.end());
  chain.prompt_tokens = static_cast<int64_t>(prompt.size());
  return chain;
}

ErrorGrowth MeasureErrorGrowth(const std::shared_ptr<const Model>& model, const Chain& chain,
                               const ErrorGrowthOptions& options) {
  if (chain.prompt_tokens < 1 || chain.chain_tokens() < 1) {
    throw InvalidInput("chain",
                       "found no token of the prompt or of the chain, expected one of "
                       "each at least");
  }
  LockStepOptions lock_step;
  lock_step.first = chain.prompt_tokens - 1;
  lock_step.attention_stride = options.attention_stride;
  lock_step.max_len = options.max_len;
  lock_step.num_threads = options.num_threads;
  lock_step.progress = options.progress;
  lock_step.cancel = options.cancel;
  if (options.progress != nullptr) {
    options.progress->Begin("error growth", chain.chain_tokens(), 0);
  }
  LockStepResult result = RunLockStep(model, chain.tokens, options.caches, lock_step);
  if (options.progress != nullptr) options.progress->End();

  ErrorGrowth growth;
  growth.chain = chain;
  growth.max_len = options.max_len;
  growth.attention_stride = options.attention_stride;
  const int64_t most_bins =
      chain.chain_tokens() / std::max<int64_t>(2 * options.attention_stride, 1);
  growth.bins = MakeBins(lock_step.first, static_cast<int64_t>(chain.tokens.size()) - 1,
                         std::clamp<int64_t>(most_bins, 1, options.num_bins));
  growth.unquantised = std::move(result.unquantised);
  for (size_t i = 0; i < options.caches.size(); ++i) {
    growth.caches.push_back(Summarise(growth, options.caches[i].spec, std::move(result.caches[i]),
                                      model->config().num_layers));
  }
  return growth;
}

}  // namespace pmkvq
