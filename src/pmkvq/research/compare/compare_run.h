// Running a comparison: every method at every budget on the same problems and seeds, and the
// tables of it. With a folder, each run is one of eval (RunFolder), what is missing is computed,
// and comparison.json says what was compared.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "pmkvq/base/interrupt.h"
#include "pmkvq/base/shard.h"
#include "pmkvq/comm/communicator.h"
#include "pmkvq/research/compare/compare.h"
#include "pmkvq/research/compare/compare_fit.h"
#include "pmkvq/research/eval/evaluation.h"

namespace pmkvq {

struct CompareOptions {
  std::vector<std::string> specs;     // At least one, none twice; one of fp16 is the baseline.
  std::vector<int64_t> budget_bytes;  // Of one sequence; at least one, none twice.
  std::string against;                // One of `specs`, or "".
  // Of all methods: each method takes of it what applies to it. SPEC and budget are not used.
  SpecEngineOptions engine;
  bool allow_partial = false;  // Runs methods whose budget does not hold max_len tokens.
  std::string out;             // Folder; "": in memory only.
  // The part of each run's responses that is made here, and the ranks that share them (may be
  // null): research/eval/fan_out.h. Runs that lack responses of other parts are kInterrupted; of
  // ranks, rank 0 has the table.
  Shard shard;
  Communicator* ranks = nullptr;
};

// One method at one budget.
struct CompareJob {
  std::string spec;
  int64_t budget_bytes = 0;  // 0: the baseline.
  SpecEngineOptions engine;
  BudgetFit fit;
};

// What happens during a run. Called from several threads, one at a time.
class CompareProgress {
 public:
  virtual ~CompareProgress() = default;
  // Responses of this job are missing; `present` are there, of `total`. Of a part: it alone.
  virtual void Begin(const CompareJob& job, int64_t total,
                     const std::vector<Response>& present) = 0;
  virtual void OnResponse(const Response& response) = 0;
  // Sees its tokens; may be null. Asked after Begin.
  virtual EngineObserver* observer() { return nullptr; }
  virtual void End() = 0;
};

class ComparisonRun {
 public:
  // Throws InvalidInput (a SPEC, an option or a plan that is wrong for the model) before anything
  // is run; options that break the rules above name --kv, --kv-budget or --against.
  ComparisonRun(CompareOptions options, std::shared_ptr<const Model> model);

  const CompareJob& baseline() const { return baseline_; }
  // By budget, then in the order of the specs; without the baseline.
  const std::vector<CompareJob>& jobs() const { return jobs_; }
  int64_t max_len() const { return max_len_; }
  // False: the budget does not hold the longest sequence, and that was not allowed.
  bool IsRun(const CompareJob& job) const {
    return job.fit.holds || (options_.allow_partial && job.fit.starts);
  }

  // Runs the jobs one after another. `evaluation.engine` is not used: each job has its own. With a
  // set flag, jobs that have not been begun are kInterrupted, and so is the one that was being run;
  // throws Cancelled where that is the baseline. `progress` may be null. Throws as Evaluate and
  // ResponseLog.
  Comparison Run(const Benchmark& benchmark, const std::vector<ProblemRow>& problems,
                 const std::shared_ptr<const Tokenizer>& tokenizer,
                 const EvaluationOptions& evaluation, CompareProgress* progress,
                 const CancelFlag* cancel) const;

 private:
  struct Work;

  CompareJob MakeJob(const std::string& spec, int64_t budget_bytes) const;
  MethodRun RunJob(const CompareJob& job, const Work& work) const;
  void SaveList(const Work& work) const;
  bool AnyIsCancelled(const CancelFlag* cancel) const;

  CompareOptions options_;
  std::shared_ptr<const Model> model_;
  int64_t max_len_ = 0;
  CompareJob baseline_;
  std::vector<CompareJob> jobs_;
};

}  // namespace pmkvq
