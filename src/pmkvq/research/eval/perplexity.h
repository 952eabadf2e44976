// Loss of given texts under a cache, and its distance from the unquantised cache.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "pmkvq/base/interrupt.h"
#include "pmkvq/base/sinks.h"
#include "pmkvq/kv/spec/kv_options.h"
#include "pmkvq/model/model.h"
#include "pmkvq/research/calib/shared_samples.h"

namespace pmkvq {

// Teacher-forced next-token loss of `tokens` through a cache of these options, token by token, and
// KL to the same model with an unquantised cache of the same float type and key scales.
struct PerplexityResult {
  int64_t num_tokens = 0;  // Predictions made: the tokens of all sequences but their first ones.
  double loss = 0;         // Mean cross entropy, nats.
  double kl_to_fp16 = 0;   // Mean KL(fp16 || this), nats.
};
// The sequences of one measurement that several processes share (research/calib/shared_samples.h).
struct PerplexityShare {
  std::string checkpoint_path;  // "": nothing is kept.
  std::string fingerprint;      // All that the sums of a sequence depend on.
  SampleSharing sharing;        // Without a checkpoint the shard is whole.
};
// KL is to `reference_model` where one is given: the same model with other weights, in memory or in
// its files. Its vocabulary and cache geometry must be the same (InvalidInput).
// Several sequences run as one batch, which changes no bit of the result; memory is that of the
// batch in both caches. Reports to `progress` (may be null) at least every `chunk` predictions, in
// predictions.
// Throws InvalidInput naming the sequence (none, shorter than 2 tokens, longer than the model's
// maximum, token id out of range, a budget that does not hold it at the floor width) or the option,
// or the block and position of a value that a cache's float type cannot hold or of logits that are
// not finite; and Cancelled. With `share`, what SharedSamples throws, PartDone among it; what was
// measured is then kept. The result has the bits of one process.
PerplexityResult MeasurePerplexity(const std::shared_ptr<const Model>& model,
                                   const std::vector<std::vector<int32_t>>& sequences,
                                   const KvOptions& kv, int64_t chunk, int num_threads,
                                   ProgressSink* progress, const CancelFlag* cancel,
                                   const Model* reference_model = nullptr,
                                   const PerplexityShare& share = {});

}  // namespace pmkvq
