#include "run_observer.h"

#include <fmt/format.h>

#include "common_options.h"
#include "logprobs_output.h"
#include "pmkvq/base/byte_size.h"

namespace pmkvq::cli {

RunObserver::RunObserver(const Engine& engine, const RunOutput& output, StatsFile* stats)
    : engine_(engine),
      output_(output),
      stats_(stats),
      style_(output.in_thinking, output.streams && StdoutTakesStyle()) {}

void RunObserver::OnPromptLogprobs(RequestId, const std::vector<TokenLogprobs>& logprobs) {
  if (output_.prints && !has_shown_prompt_) {
    Print(FormatPromptLogprobs(output_.tokenizer, output_.first_token, logprobs));
  }
  has_shown_prompt_ = true;
}

void RunObserver::OnToken(RequestId id, int32_t, const std::string& text) {
  ++num_tokens_;
  if (stats_ != nullptr) stats_->WriteToken(engine_, id);
  if (output_.streams && !text.empty()) Print(style_.Push(text));
  num_printed_ += text.size();
  if (status_.active()) status_.Update(StatusText(id));
}

void RunObserver::OnHalving(RequestId id, const HalvingEvent& event) {
  if (stats_ != nullptr) stats_->WriteHalving(id, event);
}

void RunObserver::OnFinished(const Completion& completion) {
  if (stats_ != nullptr) stats_->WriteFinish(engine_, completion);
  if (output_.streams) {
    // Includes text that was still held back (half a character, the beginning of a stop string).
    Print(style_.Push(completion.text.substr(num_printed_)) + style_.Finish() + "\n");
  } else if (output_.prints) {
    Print(fmt::format("--- sample {} ({})\n{}\n", completion.id, NameOf(completion.finish_reason),
                      completion.text));
  }
  Report(completion);
}

double RunObserver::TokensPerSecond() const {
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  return static_cast<double>(num_tokens_) / seconds;
}

std::string RunObserver::StatusText(RequestId id) const {
  const std::optional<SequenceId> seq = engine_.SequenceOf(id);
  if (!seq) return "";
  const KvSequenceStats kv = engine_.store().SequenceStats(*seq);
  const std::string cache = fmt::format("KV {} / {} | pages {}", FormatByteSize(kv.bytes),
                                        FormatByteSize(kv.budget_bytes), FormatPages(kv.pages));
  if (output_.several) {  // The speed is that of all; the cache is one sample's.
    return fmt::format(" {} tokens of all samples | {:.1f} tok/s | sample {}: {}", num_tokens_,
                       TokensPerSecond(), id, cache);
  }
  return fmt::format(" {} tokens | {:.1f} tok/s | {}", kv.num_tokens, TokensPerSecond(), cache);
}

// Sample by sample on stderr, when it is done.
void RunObserver::Report(const Completion& completion) const {
  if (!output_.reports_all && completion.finish_reason != FinishReason::kKvBudget) return;
  const auto num_output = static_cast<int64_t>(completion.output_ids.size());
  // The first token is drawn from the prompt's logits: a single one took no decoding.
  std::string speed;
  if (num_output > 1 && completion.decode_seconds > 0) {
    const double rate = static_cast<double>(num_output) / completion.decode_seconds;
    speed = fmt::format(", {:.{}f} tok/s", rate, rate < 100 ? 1 : 0);
  }
  const std::string pause =
      completion.longest_pause_us > 0
          ? fmt::format(", longest pause {:.2f} ms", completion.longest_pause_us / 1000)
          : "";
  const std::string stored =
      completion.kv.kept_share < 1
          ? fmt::format("{:.1f} % of the tokens kept", 100 * completion.kv.kept_share)
          : "pages " + FormatPages(completion.kv.pages);
  PrintErrorList(fmt::format(
      "[{}] {} + {} tokens{}, KV peak {} of {}, {}{}{}", NameOf(completion.finish_reason),
      completion.prompt_ids.size(), num_output, speed, FormatByteSize(completion.kv.peak_bytes),
      FormatByteSize(completion.kv.budget_bytes), stored, pause,
      completion.finish_reason == FinishReason::kKvBudget
          ? "; the KV budget is spent, all pages are at their narrowest; " + output_.budget_remedy
          : ""));
}

}  // namespace pmkvq::cli
