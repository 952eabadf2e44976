// What the library reports while it works. The library itself never prints:
// applications implement these interfaces.
#pragma once

#include <cstdint>
#include <string>

namespace pmkvq {

// One-line messages for a person. Implementations must be callable from the
// thread that called the library; the library never calls from its workers.
class LogSink {
 public:
  virtual ~LogSink() = default;
  virtual void Info(const std::string& message) = 0;
  virtual void Warning(const std::string& message) = 0;
};

// Progress of one long task, counted in units (samples, problems).
class ProgressSink {
 public:
  virtual ~ProgressSink() = default;
  // Starts a task of `total` units, of which `done` are already there (resumed).
  virtual void Begin(const std::string& task, int64_t total, int64_t done) = 0;
  virtual void Advance(int64_t units) = 0;
  virtual void End() = 0;
};

// One task of `sink`, which may be null; ends it also when the task is left by an exception.
class ProgressScope {
 public:
  ProgressScope(ProgressSink* sink, const std::string& task, int64_t total, int64_t done)
      : sink_(sink) {
    if (sink_ != nullptr) sink_->Begin(task, total, done);
  }
  ~ProgressScope() {
    if (sink_ != nullptr) sink_->End();
  }
  ProgressScope(const ProgressScope&) = delete;
  ProgressScope& operator=(const ProgressScope&) = delete;

  void Advance() const {
    if (sink_ != nullptr) sink_->Advance(1);
  }

 private:
  ProgressSink* sink_;
};

}  // namespace pmkvq
