#include "pmkvq/server/log.h"

#include <fcntl.h>
#include <fmt/chrono.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>

#include "pmkvq/base/error.h"

namespace pmkvq::server {

Log::Log(const std::string& path) : path_(path) {
  if (path_.empty()) return;
  descriptor_ = open(path_.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
  if (descriptor_ < 0) {
    throw IoError(path_, fmt::format("cannot be opened for the log: {}", std::strerror(errno)));
  }
}

Log::~Log() {
  if (!path_.empty()) close(descriptor_);
}

void Log::Reopen() {
  if (path_.empty()) return;
  const int next = open(path_.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
  if (next < 0) return;  // The old one still works.
  close(descriptor_);
  descriptor_ = next;
}

void Log::Write(std::string_view level, std::string_view event,
                const std::function<void(JsonWriter&)>& add_fields) {
  const auto now = std::chrono::system_clock::now();
  const auto milliseconds =
      std::chrono::duration_cast<std::chrono::milliseconds>(now.time_since_epoch()).count() % 1000;
  JsonWriter json;
  json.BeginObject();
  json.Key("ts").String(fmt::format("{:%Y-%m-%dT%H:%M:%S}.{:03}Z",
                                    fmt::gmtime(std::chrono::system_clock::to_time_t(now)),
                                    milliseconds));
  json.Key("level").String(level).Key("event").String(event);
  if (add_fields) add_fields(json);
  json.EndObject();
  const std::string line = json.text() + "\n";
  const ssize_t written = write(descriptor_, line.data(), line.size());
  if (written != static_cast<ssize_t>(line.size())) ++num_dropped_;
}

}  // namespace pmkvq::server
