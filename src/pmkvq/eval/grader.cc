#include "pmkvq/eval/grader.h"

#include <utility>

#include "pmkvq/eval/code_problem.h"
#include "pmkvq/eval/judge.h"

namespace pmkvq {
namespace {

void SetGrade(JudgedText judged, Response& response) {
  response.extracted = std::move(judged.extracted);
  response.correct = judged.correct;
}

}  // namespace

Grader::Grader(Grading grading) : grading_(grading) {}

Grader::~Grader() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stops_ = true;
  }
  changed_.notify_all();
  if (worker_.joinable()) worker_.join();
}

void Grader::Add(Response response, std::string gold) {
  if (grading_ == Grading::kAnswer) {
    SetGrade(JudgeText(response.text, gold), response);
    graded_.push_back(std::move(response));
    return;
  }
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    waiting_.push_back({std::move(response), std::move(gold)});
  }
  changed_.notify_all();
  if (!worker_.joinable()) worker_ = std::thread([this] { Work(); });
}

void Grader::Work() {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return stops_ || !waiting_.empty(); });
    if (stops_) return;
    const Job& job = waiting_.front();  // Stays where it is while others are added.
    JudgedText judged;
    std::exception_ptr error;
    lock.unlock();
    try {
      judged = JudgeCode(job.response.text, job.gold);
    } catch (...) {
      error = std::current_exception();
    }
    lock.lock();
    if (error != nullptr) {
      // Nothing is known about this one, and those behind it would fare no better.
      error_ = error;
      waiting_.clear();
    } else {
      graded_.push_back(std::move(waiting_.front().response));
      SetGrade(std::move(judged), graded_.back());
      waiting_.pop_front();
    }
    changed_.notify_all();
  }
}

std::vector<Response> Grader::Take(std::unique_lock<std::mutex> lock) {
  // What was judged before the error is to be kept.
  if (graded_.empty() && error_ != nullptr) {
    const std::exception_ptr error = std::exchange(error_, nullptr);
    lock.unlock();
    std::rethrow_exception(error);
  }
  return std::exchange(graded_, {});
}

std::vector<Response> Grader::TakeGraded() { return Take(std::unique_lock<std::mutex>(mutex_)); }

std::vector<Response> Grader::WaitForAll() {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [&] { return waiting_.empty(); });
  return Take(std::move(lock));
}

}  // namespace pmkvq
