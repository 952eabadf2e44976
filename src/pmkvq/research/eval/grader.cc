#include "pmkvq/research/eval/grader.h"

#include <algorithm>
#include <utility>

#include "pmkvq/research/benchmarks/code_problem.h"
#include "pmkvq/research/eval/scored_responses.h"
#include "pmkvq/research/judge/judged_text.h"

namespace pmkvq {

Grader::Grader(Grading grading, int num_workers, const CancelFlag* cancel)
    : grading_(grading),
      num_workers_(static_cast<size_t>(std::max(1, num_workers))),
      cancel_(cancel) {}

Grader::~Grader() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    ends_ = true;
  }
  changed_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void Grader::Add(Response response, std::string gold) {
  auto job = std::make_unique<Job>();
  job->response = std::move(response);
  job->gold = std::move(gold);
  // A response that ended with an error is wrong, even if the text before the error has the answer.
  const bool is_error = job->response.finish_reason == kErrorReason;
  if (is_error) job->state = JobState::kGraded;
  if (grading_ == Grading::kAnswer && !is_error) {
    const CancelScope scope(cancel_, "grading");
    job->state = Judge(*job);
  }
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    jobs_.push_back(std::move(job));
  }
  if (grading_ == Grading::kAnswer || is_error) return;
  StartWorkers();
  changed_.notify_all();
}

void Grader::StartWorkers() {
  if (workers_.size() < std::min(num_workers_, jobs_.size())) {
    workers_.emplace_back([this] { Work(); });
  }
}

// Grades the job's response and returns the job's new state, which is the caller's to set.
Grader::JobState Grader::Judge(Job& job) const {
  try {
    CancelPoint();
    JudgedText judged = grading_ == Grading::kCode ? JudgeCode(job.response.text, job.gold)
                                                   : JudgeText(job.response.text, job.gold);
    job.response.extracted = std::move(judged.extracted);
    job.response.correct = judged.correct;
    return JobState::kGraded;
  } catch (const Cancelled&) {
    return JobState::kDropped;
  } catch (...) {
    job.error = std::current_exception();
    return JobState::kFailed;
  }
}

// Behind a failure nothing more is begun: it would fare no better.
Grader::Job* Grader::NextJob() {
  for (const std::unique_ptr<Job>& job : jobs_) {
    if (job->state == JobState::kFailed) return nullptr;
    if (job->state == JobState::kWaits) return job.get();
  }
  return nullptr;
}

void Grader::Work() {
  const CancelScope ending(&ends_, "grading");
  const CancelScope scope(cancel_, "grading");
  std::unique_lock<std::mutex> lock(mutex_);
  while (!ends_) {
    Job* const next = NextJob();
    if (next == nullptr) {
      changed_.wait(lock);
      continue;
    }
    next->state = JobState::kRuns;
    lock.unlock();
    const JobState state = Judge(*next);  // Nobody else looks into a job that runs.
    lock.lock();
    next->state = state;
    changed_.notify_all();
  }
}

bool Grader::AnyUnfinished() const {
  for (const std::unique_ptr<Job>& job : jobs_) {
    if (job->state == JobState::kFailed) return false;
    if (job->state == JobState::kWaits || job->state == JobState::kRuns) return true;
  }
  return false;
}

std::vector<Response> Grader::Take(std::unique_lock<std::mutex> lock) {
  std::vector<Response> graded;
  while (!jobs_.empty()) {
    Job& job = *jobs_.front();
    if (job.state == JobState::kWaits || job.state == JobState::kRuns) break;
    if (job.state == JobState::kFailed) {
      if (!graded.empty()) break;  // What was judged before it is to be kept.
      changed_.wait(lock, [&] {
        return std::none_of(jobs_.begin(), jobs_.end(),
                            [](const auto& other) { return other->state == JobState::kRuns; });
      });
      const std::exception_ptr error = job.error;
      jobs_.clear();
      lock.unlock();
      std::rethrow_exception(error);
    }
    if (job.state == JobState::kGraded) graded.push_back(std::move(job.response));
    jobs_.pop_front();
  }
  return graded;
}

std::vector<Response> Grader::TakeGraded() { return Take(std::unique_lock<std::mutex>(mutex_)); }

std::vector<Response> Grader::WaitForAll() {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [&] { return !AnyUnfinished(); });
  return Take(std::move(lock));
}

}  // namespace pmkvq
