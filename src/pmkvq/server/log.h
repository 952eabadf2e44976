// The server's log: one JSON object a line. Never blocks on a full disk and never throws.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "pmkvq/io/json.h"

namespace pmkvq::server {

class Log {
 public:
  // "": stderr. Throws IoError when the file cannot be opened.
  explicit Log(const std::string& path);
  ~Log();
  Log(const Log&) = delete;
  Log& operator=(const Log&) = delete;

  // `add_fields` writes more members of the line's object; null: none.
  void Write(std::string_view level, std::string_view event,
             const std::function<void(JsonWriter&)>& add_fields = nullptr);
  // Opens the file again, after it was moved away.
  void Reopen();
  int64_t num_dropped() const { return num_dropped_; }

 private:
  std::string path_;
  int descriptor_ = 2;
  int64_t num_dropped_ = 0;
};

}  // namespace pmkvq::server
