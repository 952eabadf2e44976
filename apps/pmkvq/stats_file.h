// --stats FILE: the history of the cache as JSON lines (docs/formats.md).
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "pmkvq/engine/engine.h"
#include "pmkvq/io/file.h"

namespace pmkvq::cli {

// One line per drawn token {"event":"token",...}, one per halving {"event":"halving",...}, one per
// finished request {"event":"finish",...}. Pages per width of every block are written with a token
// whenever they changed. Written to a temporary name and renamed by Commit.
class StatsFile {
 public:
  // Throws IoError when the file cannot be written.
  explicit StatsFile(const std::string& path) : file_(path) {}

  void WriteToken(const Engine& engine, RequestId id);
  void WriteHalving(RequestId id, const HalvingEvent& event);
  void WriteFinish(const Engine& engine, const Completion& completion);
  void Commit() { file_.Commit(); }

 private:
  void WriteLine(const std::string& line);

  AtomicFileWriter file_;
  std::map<RequestId, int64_t> last_bytes_;
};

}  // namespace pmkvq::cli
