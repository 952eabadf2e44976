// Drawing the tokens of a decoding step from logits of a large vocabulary.
#include <fmt/format.h>

#include <algorithm>
#include <ctime>
#include <iterator>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "pmkvq/base/check.h"
#include "pmkvq/base/random.h"
#include "pmkvq/kernels/sampling/batch_sampler.h"
#include "pmkvq/research/bench/rounds.h"
#include "pmkvq/research/bench/sampling_rows.h"
#include "pmkvq/research/bench/shapes.h"

namespace pmkvq {
namespace {

using internal::kSamplingModes;
using internal::SamplingMode;

constexpr int kCallsPerRound = 5;
constexpr int kCountedTokens = 1000;

// Of all threads of the process. Unlike wall time it hardly depends on other work of the machine.
double ProcessorSeconds() {
  timespec time;
  PMKVQ_CHECK(clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time) == 0);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// Rows of one mode that are drawn from again and again.
class SamplingCase {
 public:
  SamplingCase(const SamplingMode& mode, int64_t batch, int64_t vocab_size,
               std::vector<float>& logits)
      : mode_(mode), vocab_size_(vocab_size) {
    Random random(2);
    for (int64_t r = 0; r < batch; ++r) randoms_.emplace_back(static_cast<uint64_t>(r));
    if (mode.has_penalties) {
      rules_.repetition_penalty = 1.1;
      rules_.presence_penalty = 0.5;
      counts_.resize(static_cast<size_t>(batch));
      for (TokenCounts& counts : counts_) {
        while (std::ssize(counts) < std::min<int64_t>(kCountedTokens, vocab_size / 2)) {
          counts.emplace(static_cast<int32_t>(random.Below(static_cast<uint64_t>(vocab_size))), 1);
        }
      }
    }
    for (int64_t r = 0; r < batch; ++r) {
      SamplingRow row;
      row.logits = logits.data() + r * vocab_size;
      row.params = &mode.params;
      row.random = &randoms_[static_cast<size_t>(r)];
      row.num_logprobs = mode.num_logprobs;
      if (mode.has_penalties) {
        row.rules = &rules_;
        row.counts = &counts_[static_cast<size_t>(r)];
      }
      rows_.push_back(row);
    }
  }

  void Round(bool measured, int num_threads) {
    for (int call = 0; call <= kCallsPerRound; ++call) {
      const std::vector<float> before = CountedLogits();
      const double cpu_before = ProcessorSeconds();
      const double seconds = TimeSeconds([&] {
        for (const SampledRow& row : sampler_.Sample(rows_, vocab_size_, num_threads)) {
          PMKVQ_CHECK(row.outcome == SamplingOutcome::kDrawn);
        }
      });
      const double cpu_seconds = ProcessorSeconds() - cpu_before;
      RestoreLogits(before);
      if (!measured || call == 0) continue;
      microseconds_.Add(seconds * 1e6);
      cpu_microseconds_.Add(cpu_seconds * 1e6 / num_threads);
    }
  }

  BenchFields Describe(double read_gb_per_s) const {
    const Spread time = microseconds_.ToSpread();
    const auto bytes = static_cast<double>(std::ssize(rows_) * vocab_size_) * sizeof(float);
    const double gb_per_s = bytes / time.median / 1e3;
    BenchFields row;
    row.Add("mode", std::string(mode_.name), "mode");
    row.Add("batch", std::ssize(rows_), "batch");
    row.AddSpread("us", time, "us a batch", 0);
    row.Add("us_least", microseconds_.Quantile(0), "least", 0);
    row.AddSpread("cpu_us", cpu_microseconds_.ToSpread(), "cpu us a thread", 0);
    row.Add("gb_per_s", gb_per_s, "GB/s of logits", 1);
    row.Add("percent_of_read", 100.0 * gb_per_s / read_gb_per_s, "% of read", 0);
    return row;
  }

 private:
  // Of each row, in the order of its counted tokens: penalties change them, and would do so again
  // in the next call.
  std::vector<float> CountedLogits() const {
    std::vector<float> values;
    for (const SamplingRow& row : rows_) {
      if (row.counts == nullptr) continue;
      for (const auto& [token, count] : *row.counts) values.push_back(row.logits[token]);
    }
    return values;
  }
  void RestoreLogits(const std::vector<float>& values) const {
    auto value = values.begin();
    for (const SamplingRow& row : rows_) {
      if (row.counts == nullptr) continue;
      for (const auto& [token, count] : *row.counts) row.logits[token] = *value++;
    }
  }

  const SamplingMode& mode_;
  int64_t vocab_size_;
  LogitRules rules_;
  std::vector<TokenCounts> counts_;
  std::vector<Random> randoms_;
  std::vector<SamplingRow> rows_;
  BatchSampler sampler_;
  Measurements microseconds_;
  Measurements cpu_microseconds_;  // Per thread.
};

}  // namespace

BenchReport BenchSampling(const BenchOptions& options, int64_t vocab_size) {
  internal::CheckOptions(options);
  PMKVQ_CHECK(vocab_size >= internal::kPeaks);
  const int64_t most_rows = *std::max_element(options.batches.begin(), options.batches.end());
  CheckMemory(2 * most_rows * vocab_size * static_cast<int64_t>(sizeof(float)),
              "give a smaller --batch or --vocab");
  std::vector<float> peaked = internal::RandomLogits(most_rows, vocab_size, false);
  std::vector<float> flat = internal::RandomLogits(most_rows, vocab_size, true);
  std::vector<std::unique_ptr<SamplingCase>> cases;
  for (const int64_t batch : options.batches) {
    for (const SamplingMode& mode : kSamplingModes) {
      cases.push_back(
          std::make_unique<SamplingCase>(mode, batch, vocab_size, mode.flat ? flat : peaked));
    }
  }
  Ceilings ceilings(options.num_threads);
  internal::RunRounds(options, "sampling", ceilings, [&](bool measured) {
    for (const auto& one : cases) {
      ThrowIfCancelled(options.cancel, "bench");
      one->Round(measured, options.num_threads);
    }
  });

  BenchReport report;
  report.facts.Add("bench", std::string("sampling"));
  report.facts.Add("vocab", vocab_size, "vocabulary");
  report.facts.Add("repeat", int64_t{options.repeat});
  ceilings.AddTo(report.facts);
  BenchTable table{"rows", "one token of each row of the batch", {}};
  for (const auto& one : cases) {
    table.rows.push_back(one->Describe(ceilings.read_gb_per_s()));
  }
  report.tables.push_back(std::move(table));
  report.notes.push_back(
      fmt::format("penalties: {} counted tokens a row; flat: hundreds of tokens share the mass",
                  kCountedTokens));
  return report;
}

}  // namespace pmkvq
