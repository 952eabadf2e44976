// One evaluation run by several ranks (comm/communicator.h): each is a shard of what is missing.
//
//   SharedRun run(folder, settings, ranks);          // All ranks.
//   EvaluationOptions mine = run.PartOf(options);
//   const double seconds = Evaluate(..., mine, run.log(), ...);
//   const FanOutFigures figures = run.Finish(num_tokens, seconds);  // Rank 0's log has everything.
//
// One rank, or no communicator: the log of a shard of a job array, or of a whole run, and nothing
// is exchanged.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "pmkvq/base/shard.h"
#include "pmkvq/comm/communicator.h"
#include "pmkvq/research/eval/evaluation.h"

namespace pmkvq {

// What all ranks did in one Evaluate. On rank 0; elsewhere this rank alone.
struct FanOutFigures {
  int64_t num_ranks = 1;
  int64_t num_responses = 0;  // New ones.
  int64_t num_tokens = 0;     // Of these.
  double seconds = 0;         // Of the slowest rank.
  double busy_share = 1;      // Mean over ranks of their seconds, over `seconds`.
  double responses_per_second() const {
    return seconds > 0 ? static_cast<double>(num_responses) / seconds : 0;
  }
};

// Not for several threads. Collective: all ranks make one with the same arguments, and call the
// same functions.
class SharedRun {
 public:
  // `folder` "": in memory. `ranks` may be null. Rank 0 opens the folder first, alone, and merges
  // what killed ranks left; then all ranks have it as shards. The folder should be on a file system
  // that all hosts share: where it is not, rank 0 still gets every response in Finish, but its host
  // alone has all of them.
  // With several ranks `shard` must be whole. Throws as ResponseLog, on all ranks with the message
  // of the first rank that failed.
  SharedRun(const std::string& folder, const RunSettings& settings, const Shard& shard,
            Communicator* ranks);

  ResponseLog& log() { return *log_; }
  // Of rank 0 before this run.
  const std::vector<Response>& responses_before() const { return before_; }
  // `options` for this rank: an even part of the responses that rank 0 lacks.
  EvaluationOptions PartOf(EvaluationOptions options) const;

  // After Evaluate, on all ranks, also when it was cancelled. `seconds` and `num_tokens`: of this
  // rank. Rank 0's log then has the responses of all ranks. is_merged: as ResponseLog::Close.
  FanOutFigures Finish(int64_t num_tokens, double seconds);
  bool is_merged() const { return is_merged_; }

 private:
  bool is_shared() const { return ranks_ != nullptr && ranks_->size() > 1; }

  Communicator* ranks_;
  Shard shard_;
  std::unique_ptr<ResponseLog> log_;
  std::vector<Response> before_;
  std::shared_ptr<const ResponseKeys> keys_before_;
  bool is_merged_ = true;
};

}  // namespace pmkvq
