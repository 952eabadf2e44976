// Tokens of the responses that a run has begun: DIR/unfinished.jsonl (docs/formats.md).
//
// A response is a function of its seed and the tokens drawn so far (evaluation.h), so its tokens
// are all that a later run needs to go on with it (Request::replay_ids).
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "pmkvq/research/eval/line_file.h"

namespace pmkvq {

// Not for several threads. The caller holds the folder's lock.
class UnfinishedResponses {
 public:
  struct Begun {
    std::vector<int32_t> tokens;  // Drawn so far.
    double seconds = 0;           // Of decoding, of all runs.
  };
  using Key = std::pair<std::string, int64_t>;  // Problem id, response index.

  UnfinishedResponses() = default;  // Keeps nothing.
  // Reads what is there; the file is made with the first Append. Leaves out what `is_done` says to
  // be finished, and a last line without its end. Throws InvalidInput naming file, line and field;
  // IoError.
  UnfinishedResponses(const std::string& path, const std::function<bool(const Key&)>& is_done);

  // What was there when the file was read, without those that are finished since.
  const std::map<Key, Begun>& begun() const { return begun_; }
  // Adds tokens that were drawn since the last call for this response. `seconds`: of decoding, as
  // in Begun. With the operating system before it returns. Throws IoError.
  void Append(const Key& key, const std::vector<int32_t>& tokens, double seconds);
  // The response is in the log now.
  void Finish(const Key& key);
  // Rewrites the file without what is finished; removes it where nothing is left. Throws IoError.
  void Compact();

 private:
  std::string path_;  // "": nothing is kept.
  LineFile file_;
  std::map<Key, Begun> begun_;
};

}  // namespace pmkvq
