// What `pmkvq run` and its chat show while tokens are drawn, and the --stats history.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "pmkvq/engine/engine.h"
#include "stats_file.h"
#include "terminal.h"
#include "thinking_style.h"

namespace pmkvq::cli {

struct RunOutput {
  bool streams = true;       // Print the text as it comes: one sample, and stdout is for text.
  bool prints = true;        // Print samples at all.
  bool several = false;      // Name the sample of a text and of the status line.
  bool in_thinking = false;  // The prompt ends in an opened <think>.
  bool reports_all = true;   // A closing line per sample; false: only for a spent budget.
  // Of the prompt, for its log-probabilities; null: tokens are shown as ids.
  const Tokenizer* tokenizer = nullptr;
  int32_t first_token = 0;
  // What to do when the budget is spent.
  std::string budget_remedy;
};

// Prints text as it comes (one sample) or when a sample is done (several), keeps the status line
// and writes the history. `engine` and `stats` (may be null) must outlive the observer.
class RunObserver : public EngineObserver {
 public:
  RunObserver(const Engine& engine, const RunOutput& output, StatsFile* stats);

  void OnPromptLogprobs(RequestId id, const std::vector<TokenLogprobs>& logprobs) override;
  void OnToken(RequestId id, int32_t token, const std::string& text) override;
  void OnHalving(RequestId id, const HalvingEvent& event) override;
  void OnFinished(const Completion& completion) override;

 private:
  double TokensPerSecond() const;
  std::string StatusText(RequestId id) const;
  void Report(const Completion& completion) const;

  const Engine& engine_;
  RunOutput output_;
  StatsFile* stats_;
  StatusLine status_;
  ThinkingStyle style_;
  bool has_shown_prompt_ = false;  // All samples have the same.
  int64_t num_tokens_ = 0;
  size_t num_printed_ = 0;  // Bytes of the one sample's text.
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace pmkvq::cli
