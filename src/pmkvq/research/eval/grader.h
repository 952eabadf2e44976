// Grades responses while others are generated.
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

// Answers are judged at once in Add. Code, whose tests may run for seconds, is judged by worker
// threads.
//
// Once the flag is set, judging ends within 0.1 s: responses without a grade then never get one.
// Threads: used by one thread. What judging throws (RunCodeTests) is thrown by a later Take or
// Wait, after the responses that were added before the failed one have been taken.
class Grader {
 public:
  // `num_workers`: programs that are tested at the same time, at least 1. Programs are limited by
  // their own processor time, and by a wall time: with too many workers for the processors, a
  // program may reach the wall time first. `cancel` may be null, and must outlive the grader.
  Grader(Grading grading, int num_workers, const CancelFlag* cancel);
  // Ends the judging that is under way, and drops the responses that wait for it.
  ~Grader();
  Grader(const Grader&) = delete;
  Grader& operator=(const Grader&) = delete;

  // `response` has its text; `gold` is ProblemRow::answer.
  void Add(Response response, std::string gold);
  // Graded responses in the order in which they were added, each once, with `extracted` and
  // `correct`; up to the first response that is not graded yet.
  std::vector<Response> TakeGraded();
  // The same once all that were added have been judged, or judging was cancelled. After a
  // cancellation, judged responses behind one that was not judged are returned, too.
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
