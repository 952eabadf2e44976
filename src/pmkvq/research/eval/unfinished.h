// Tokens of the responses that a run has begun: DIR/unfinished.jsonl (docs/formats.md).
//
// A response is a function of its seed and the tokens drawn so far (evaluation.h), so a later
// run needs only its tokens to continue it (Request::replay_ids).
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "pmkvq/io/line_file.h"

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
  // Reads the file where there is one; the first Append makes it. Leaves out responses for which
  // `is_done` is true, and a last line without its end. Throws InvalidInput naming file, line and
  // field; IoError.
  // `others` are files of the same form, of shards of this run or an earlier one. They are read,
  // never written; where several files have a response, the one with the most tokens counts: its
  // tokens are a function of the seed, so the others have the first ones of them.
  UnfinishedResponses(const std::string& path, const std::vector<std::string>& others,
                      const std::function<bool(const Key&)>& is_done);

  // The responses of the files as read, without those that are finished since.
  const std::map<Key, Begun>& begun() const { return begun_; }
  // Adds tokens that were drawn since the last call for this response. `seconds`: of decoding, as
  // in Begun. The operating system has the line when this returns. Throws IoError.
  void Append(const Key& key, const std::vector<int32_t>& tokens, double seconds);
  // The response is in the log now.
  void Finish(const Key& key);
  // Rewrites the file without finished responses, and without those of other files that were not
  // gone on with; removes it where none is unfinished. Throws IoError.
  void Compact();
  // The same with those of other files.
  void CompactAll();

 private:
  std::string path_;  // "": nothing is kept.
  LineFile file_;
  std::map<Key, Begun> begun_;
  std::set<Key> elsewhere_;  // Of begun_: those that the file has no line of.
};

}  // namespace pmkvq
