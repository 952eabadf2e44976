// How errors grow along one chain of thought: the chain of an unquantised cache, fed token by token
// through other caches (docs/analysis.md).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "pmkvq/research/analysis/lock_step.h"
#include "pmkvq/research/analysis/series.h"
#include "pmkvq/research/report/html_page.h"
#include "pmkvq/text/tokenizer.h"

namespace pmkvq {

struct Chain {
  std::string problem;  // Its id, or the file it came from.
  std::string origin;   // "fp16, greedy", or the file that was given.
  std::vector<int32_t> tokens;
  int64_t prompt_tokens = 0;  // Of tokens, from the front.

  int64_t chain_tokens() const { return static_cast<int64_t>(tokens.size()) - prompt_tokens; }
};

// The answer of fp16 to `prompt` by greedy decoding: at most max_len tokens with the prompt, and at
// most max_tokens new ones (0: no such limit). Throws as Engine does, and Cancelled.
Chain GenerateChain(const std::shared_ptr<const Model>& model, const std::vector<int32_t>& prompt,
                    int64_t max_len, int64_t max_tokens, int num_threads, const CancelFlag* cancel);

struct ErrorGrowthOptions {
  std::vector<KvOptions> caches;
  int64_t attention_stride = 16;
  int64_t num_bins = 48;  // Fewer when a bin would hold less than two attention samples.
  int64_t max_len = 0;    // Length that budgets are for; at least that of the chain.
  int num_threads = 1;
  ProgressSink* progress = nullptr;
  const CancelFlag* cancel = nullptr;
};

struct CacheGrowth {
  std::string spec;
  CacheTrace trace;
  std::vector<double> kl;                            // Bin means; NaN behind the end of the budget.
  std::vector<double> attention;                     // Bin means of the mean over blocks.
  std::vector<std::vector<double>> block_attention;  // [block][bin]
  PowerLaw kl_law;                                   // Of the bin means, against the position.
  PowerLaw attention_law;
  double late_over_early = 0;  // Mean KL of the last quarter over that of the first; may be NaN.
  double early_kl = 0;         // Of the first quarter; NaN for fewer than four positions.
  double mean_kl = 0;
  double mean_attention = 0;
  std::vector<int64_t> disagreements;  // Positions where the most likely token is not fp16's.
  std::vector<int64_t> gold_lost;      // Positions where it is not the chain's next token.
};

struct ErrorGrowth {
  Chain chain;
  int64_t max_len = 0;
  int64_t attention_stride = 0;
  PositionBins bins;
  std::vector<Prediction> unquantised;  // From position prompt_tokens - 1 on.
  std::vector<CacheGrowth> caches;
};

// Cost: one decode of the chain per cache and for fp16, and one reading of all keys of each cache
// per attention sample. Throws as RunLockStep.
ErrorGrowth MeasureErrorGrowth(const std::shared_ptr<const Model>& model, const Chain& chain,
                               const ErrorGrowthOptions& options);

// Bits per stored value at the cache's largest size.
double EffectiveBitsOf(const ErrorGrowth& growth, const CacheGrowth& cache,
                       const KvGeometry& geometry);
// late_over_early for a table: "from 0" where the KL of the first quarter is only rounding.
std::string FormatLateOverEarly(const CacheGrowth& cache);
// The exponent, "-" where the bin means do not follow a power law (R2 below 0.5).
std::string FormatExponent(const PowerLaw& law);
// The result in a sentence or two: which caches changed tokens, and whether their bytes are equal.
std::string ErrorGrowthVerdict(const ErrorGrowth& growth, const KvGeometry& geometry);

// `tokenizer` (may be null) shows tokens as text on the page.
std::string ErrorGrowthJson(const ErrorGrowth& growth, const std::string& command);
HtmlPage ErrorGrowthPage(const ErrorGrowth& growth, const KvGeometry& geometry,
                         const Tokenizer* tokenizer, const PageOrigin& origin);

}  // namespace pmkvq
