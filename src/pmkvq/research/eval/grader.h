// Grades responses beside their generation.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "pmkvq/base/interrupt.h"
#include "pmkvq/research/benchmarks/benchmark.h"
#include "pmkvq/research/eval/evaluation.h"

namespace pmkvq {

// Answers are judged at once; code, whose tests may run for seconds, on threads that wait for it.
//
// Cancelled by the flag, judging ends within a moment: what has no grade then never gets one.
// Threads: used by one thread. Judging that throws (RunCodeTests) throws from the next Take or
// Wait, after what was added before it has been taken.
class Grader {
 public:
  // `num_workers`: programs that are tested at the same time, at least 1. Their limit is processor
  // time, which they do not take from each other; but they all must get theirs within the wall
  // time. `cancel` may be null, and must outlive the grader.
  Grader(Grading grading, int num_workers, const CancelFlag* cancel);
  // Ends what is being judged, and drops what waits.
  ~Grader();
  Grader(const Grader&) = delete;
  Grader& operator=(const Grader&) = delete;

  // `response` has its text; `gold` is what the problem's answer is (ProblemRow::answer).
  void Add(Response response, std::string gold);
  // Those that can be taken in the order in which they were added: each with `extracted` and
  // `correct`, none twice, none before one that was added earlier.
  std::vector<Response> TakeGraded();
  // The same once all that were added have been judged, or judging was cancelled. After the latter
  // what was judged behind an unfinished response is returned, too.
  std::vector<Response> WaitForAll();

 private:
  enum class JobState : uint8_t { kWaits, kRuns, kGraded, kFailed, kDropped };
  struct Job {
    Response response;
    std::string gold;
    JobState state = JobState::kWaits;
    std::exception_ptr error;  // kFailed
  };

  void StartWorkers();
  void Work();
  Job* NextJob();  // Null: none waits. Called with the mutex.
  JobState Judge(Job& job) const;
  bool AnyUnfinished() const;
  std::vector<Response> Take(std::unique_lock<std::mutex> lock);

  const Grading grading_;
  const size_t num_workers_;
  const CancelFlag* const cancel_;
  CancelFlag ends_{false};  // The destructor's.
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::unique_ptr<Job>> jobs_;  // Not taken yet, in order.
  std::vector<std::thread> workers_;       // Of code; started when there is work for them.
};

}  // namespace pmkvq
