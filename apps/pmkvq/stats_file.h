// --stats FILE: the history of the cache as JSON lines (docs/formats.md).
#pragma once

#include <cstdint>
#include <fstream>
#include <map>
#include <string>

#include "pmkvq/engine/engine.h"

namespace pmkvq::cli {

// One line per drawn token {"event":"token",...}, one per halving {"event":"halving",...}, one per
// finished request {"event":"finish",...}. Pages per width of every block are written with a token
// whenever they changed. Written to a temporary name and renamed by Commit.
class StatsFile {
 public:
  // Throws IoError when the file cannot be written.
  explicit StatsFile(const std::string& path);
  ~StatsFile();
  StatsFile(const StatsFile&) = delete;
  StatsFile& operator=(const StatsFile&) = delete;

  void WriteToken(const Engine& engine, RequestId id);
  void WriteHalving(RequestId id, const HalvingEvent& event);
  void WriteFinish(const Engine& engine, const Completion& completion);
  void Commit();

 private:
  void WriteLine(const std::string& line);

  std::string path_;
  std::string temporary_;
  std::ofstream stream_;
  std::map<RequestId, int64_t> last_bytes_;
};

}  // namespace pmkvq::cli
