// Grades responses beside their generation.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <exception>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "pmkvq/eval/benchmark.h"
#include "pmkvq/eval/evaluation.h"

namespace pmkvq {

// Answers are judged at once; code, whose tests may run for seconds, on a thread of its own, one
// response at a time: more at once would take each other's processor time, which is limited.
//
// Used by one thread. Judging that throws (RunCodeTests) throws from the next Take or Wait.
class Grader {
 public:
  explicit Grader(Grading grading);
  // Waits for the response that is being judged and drops those that wait.
  ~Grader();
  Grader(const Grader&) = delete;
  Grader& operator=(const Grader&) = delete;

  // `response` has its text; `gold` is what the problem's answer is (ProblemRow::answer).
  void Add(Response response, std::string gold);
  // Those that have been judged since the last call, in the order in which they were added, with
  // `extracted` and `correct`.
  std::vector<Response> TakeGraded();
  // The same once all that were added have been judged.
  std::vector<Response> WaitForAll();

 private:
  struct Job {
    Response response;
    std::string gold;
  };

  void Work();
  std::vector<Response> Take(std::unique_lock<std::mutex> lock);

  const Grading grading_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Job> waiting_;  // The first one is being judged.
  std::vector<Response> graded_;
  std::exception_ptr error_;
  bool stops_ = false;
  std::thread worker_;  // Of code; started with the first response.
};

}  // namespace pmkvq
