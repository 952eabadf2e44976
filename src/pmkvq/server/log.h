// The server's log: one event a line, as JSON or as name=value. Lines are written by a thread of
// the log, so that neither a full disk nor a reader that has stopped delays anyone.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>

#include "pmkvq/io/json.h"

namespace pmkvq::server {

enum class LogFormat : uint8_t {
  kJson,  // {"ts":"2026-01-31T12:00:00.000Z","level":"info","event":"request","status":200}
  kText,  // ts=2026-01-31T12:00:00.000Z level=info event=request status=200
};

// The longest line, in bytes, without its LF.
inline constexpr size_t kMostLogLineBytes = size_t{256} << 10;

// In both formats control characters (C0, DEL, C1) and the line separators U+2028 and U+2029 are
// escaped as JSON escapes them, and invalid UTF-8 becomes U+FFFD. In text a value is as it is where
// it consists of visible ASCII but " \ and =; another string is quoted as in JSON, and a list or an
// object is its JSON.
//
// Threads: all functions may be called by any thread.
class Log {
 public:
  // `path` "": stderr. Throws IoError when the file cannot be opened.
  explicit Log(const std::string& path, LogFormat format = LogFormat::kJson);
  // Writes what waits, for at most a second.
  ~Log();
  Log(const Log&) = delete;
  Log& operator=(const Log&) = delete;

  // `add_fields` writes more members of the line's object, each name once; null: none. Never waits
  // and never throws but for memory. A line beyond the bound becomes one that says how many bytes
  // it had. A line that cannot be written, or finds 8 MiB that wait, is lost and counted.
  void Write(std::string_view level, std::string_view event,
             const std::function<void(JsonWriter&)>& add_fields = nullptr);
  // Opens the file again behind the lines so far, after it was moved away.
  void Reopen();
  // Waits until all lines so far are written or lost, `seconds` at most. Whether they are.
  bool Flush(double seconds);
  int64_t num_dropped() const { return num_dropped_; }

 private:
  void Push(std::string json);
  void Run();
  void Put(const std::string& json);
  bool WriteAll(std::string_view text);

  const std::string path_;
  const LogFormat format_;
  std::atomic<int64_t> num_dropped_{0};
  std::atomic<bool> gives_up_{false};  // What waits is lost.

  // Of the log's thread.
  int descriptor_ = 2;
  bool is_torn_ = false;  // The last line was written in part.

  std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable idle_;
  std::deque<std::string> queue_;  // JSON; "": opens the file again.
  size_t queued_bytes_ = 0;
  bool is_writing_ = false;
  bool ends_ = false;
  std::thread thread_;
};

// The longest front of `text`, cut between characters, whose form in a line takes `most_bytes` at
// most.
std::string_view FrontForLog(std::string_view text, size_t most_bytes);

}  // namespace pmkvq::server
