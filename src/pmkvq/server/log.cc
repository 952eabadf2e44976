#include "pmkvq/server/log.h"

#include <fcntl.h>
#include <fmt/chrono.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <climits>
#include <cstring>
#include <iterator>

#include "pmkvq/base/error.h"
#include "pmkvq/io/utf8.h"

namespace pmkvq::server {
namespace {

constexpr size_t kMostQueuedBytes = size_t{8} << 20;
constexpr double kEndSeconds = 1;
constexpr int kPollMilliseconds = 100;
constexpr size_t kEscapedBytes = 6;      // \u0085
constexpr size_t kReplacementBytes = 3;  // U+FFFD

int Open(const std::string& path) {
  return open(path.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
}

// The bytes at the front of valid UTF-8 that JsonWriter leaves as they are and a line must not
// have: C1 controls, which move the cursor of terminals, and line separators. 0: none.
size_t ControlBytes(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  if (text.size() >= 2 && byte(0) == 0xc2 && byte(1) >= 0x80 && byte(1) <= 0x9f) return 2;
  const bool separates = text.size() >= 3 && byte(0) == 0xe2 && byte(1) == 0x80 &&
                         (byte(2) == 0xa8 || byte(2) == 0xa9);
  return separates ? 3 : 0;
}

// Of JSON text, where such bytes are in strings only.
std::string WithoutControls(std::string_view json) {
  std::string out;
  out.reserve(json.size());
  while (!json.empty()) {
    const size_t begin = std::min(json.find_first_of("\xc2\xe2"), json.size());
    out += json.substr(0, begin);
    json.remove_prefix(begin);
    const size_t bytes = ControlBytes(json);
    if (bytes == 0) {
      out += json.substr(0, 1);
      json.remove_prefix(std::min<size_t>(1, json.size()));
      continue;
    }
    const auto last = static_cast<unsigned char>(json[bytes - 1]);
    fmt::format_to(std::back_inserter(out), "\\u{:04x}", bytes == 2 ? last : 0x2000 + last - 0x80);
    json.remove_prefix(bytes);
  }
  return out;
}

bool NeedsQuotes(std::string_view value) {
  return value.empty() || std::any_of(value.begin(), value.end(), [](char c) {
           return c <= ' ' || c > '~' || c == '"' || c == '\\' || c == '=';
         });
}

std::string AsText(const std::string& json) {
  std::string out;
  try {
    JsonValue::Parse(json, "log").ForEachMember([&](std::string_view name, const JsonValue& value) {
      const bool is_plain = value.IsString() && !NeedsQuotes(value.AsStringView());
      fmt::format_to(std::back_inserter(out), "{}{}={}", out.empty() ? "" : " ", name,
                     is_plain ? value.AsString() : value.Dump());
    });
  } catch (const Error&) {
    return json;  // A name that stands twice: better than nothing.
  }
  return out;
}

}  // namespace

std::string_view FrontForLog(std::string_view text, size_t most_bytes) {
  size_t taken = 0;
  size_t end = 0;
  while (end < text.size()) {
    const size_t valid = end + ValidUtf8Prefix(text.substr(end));
    while (end < valid) {
      const auto c = static_cast<unsigned char>(text[end]);
      const size_t control = ControlBytes(text.substr(end));
      const size_t length = c < 0x80 ? 1 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : 4;
      const bool is_short = c == '"' || c == '\\' || c == '\n' || c == '\r' || c == '\t';
      const bool is_control = control > 0 || c < ' ' || c == 0x7f;
      const size_t bytes = is_short ? 2 : is_control ? kEscapedBytes : length;
      if (taken + bytes > most_bytes) return text.substr(0, end);
      taken += bytes;
      end += length;
    }
    if (end == text.size()) break;
    if (taken + kReplacementBytes > most_bytes) return text.substr(0, end);
    taken += kReplacementBytes;
    ++end;
  }
  return text;
}

Log::Log(const std::string& path, LogFormat format) : path_(path), format_(format) {
  if (!path_.empty()) {
    descriptor_ = Open(path_);
    if (descriptor_ < 0) {
      throw IoError(path_, fmt::format("cannot be opened for the log: {}", std::strerror(errno)));
    }
  }
  thread_ = std::thread([this] { Run(); });
}

Log::~Log() {
  Flush(kEndSeconds);
  gives_up_ = true;
  {
    const std::lock_guard lock(mutex_);
    ends_ = true;
  }
  wake_.notify_one();
  thread_.join();
  if (!path_.empty()) close(descriptor_);
}

void Log::Write(std::string_view level, std::string_view event,
                const std::function<void(JsonWriter&)>& add_fields) {
  const auto now = std::chrono::system_clock::now();
  const auto milliseconds =
      std::chrono::duration_cast<std::chrono::milliseconds>(now.time_since_epoch()).count() % 1000;
  const auto write = [&](const std::function<void(JsonWriter&)>& add) {
    JsonWriter json;
    json.BeginObject();
    json.Key("ts").String(fmt::format("{:%Y-%m-%dT%H:%M:%S}.{:03}Z",
                                      fmt::gmtime(std::chrono::system_clock::to_time_t(now)),
                                      milliseconds));
    json.Key("level").String(level).Key("event").String(event);
    if (add) add(json);
    json.EndObject();
    return WithoutControls(json.text());
  };
  std::string line = write(add_fields);
  if (line.size() > kMostLogLineBytes) {
    line = write([&](JsonWriter& json) { json.Key("line_bytes").Int(std::ssize(line)); });
  }
  Push(std::move(line));
}

void Log::Reopen() {
  if (!path_.empty()) Push("");
}

void Log::Push(std::string json) {
  {
    const std::lock_guard lock(mutex_);
    if (queued_bytes_ + json.size() > kMostQueuedBytes) {
      ++num_dropped_;
      return;
    }
    queued_bytes_ += json.size();
    queue_.push_back(std::move(json));
  }
  wake_.notify_one();
}

bool Log::Flush(double seconds) {
  std::unique_lock lock(mutex_);
  return idle_.wait_for(lock, std::chrono::duration<double>(seconds),
                        [&] { return queue_.empty() && !is_writing_; });
}

void Log::Run() {
  std::unique_lock lock(mutex_);
  while (true) {
    wake_.wait(lock, [&] { return ends_ || !queue_.empty(); });
    if (queue_.empty()) return;
    const std::string line = std::move(queue_.front());
    queue_.pop_front();
    queued_bytes_ -= line.size();
    is_writing_ = true;
    lock.unlock();
    Put(line);
    lock.lock();
    is_writing_ = false;
    if (queue_.empty()) idle_.notify_all();
  }
}

void Log::Put(const std::string& json) {
  if (json.empty()) {
    const int next = Open(path_);
    if (next < 0) return;  // The old one still works.
    close(descriptor_);
    descriptor_ = next;
    is_torn_ = false;
    return;
  }
  const std::string text = format_ == LogFormat::kJson ? json : WithoutControls(AsText(json));
  if (!WriteAll((is_torn_ ? "\n" : "") + text + "\n")) ++num_dropped_;
}

// Where it fails in the middle, the next line begins with an LF.
bool Log::WriteAll(std::string_view text) {
  struct stat status {};
  const bool is_file = fstat(descriptor_, &status) == 0 && S_ISREG(status.st_mode);
  while (!text.empty()) {
    pollfd waits{descriptor_, POLLOUT, 0};
    const int is_ready = poll(&waits, 1, gives_up_ ? 0 : kPollMilliseconds);
    if (is_ready <= 0 && gives_up_) return false;
    if (is_ready <= 0) continue;
    // A pipe that can be written takes so many bytes without waiting.
    const size_t count = is_file ? text.size() : std::min<size_t>(text.size(), PIPE_BUF);
    const ssize_t written = write(descriptor_, text.data(), count);
    if (written < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (written <= 0) return false;
    text.remove_prefix(static_cast<size_t>(written));
    is_torn_ = !text.empty();
  }
  return true;
}

}  // namespace pmkvq::server
