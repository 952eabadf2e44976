// Who holds which sequence of the store: running requests, and sessions between their requests.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "pmkvq/kv/kv_store.h"

namespace pmkvq {

class SequenceKeeper {
 public:
  // `store` must outlive this object.
  explicit SequenceKeeper(KvStore* store) : store_(store) {}

  // A sequence for a request with this prompt. One of a kept session is cut to the longest common
  // prefix with the prompt (but the prompt's last token, whose logits are needed). Where no
  // sequence is free, the session that was idle longest is closed. Nothing when all are in use.
  std::optional<SequenceId> Acquire(int64_t session, const std::vector<int32_t>& prompt);

  // Gives a sequence back: kept for its session (>= 0), or closed. `tokens`: the tokens of the
  // request; the first NumTokens(seq) of them are stored in the sequence.
  void Release(SequenceId seq, int64_t session, std::vector<int32_t> tokens);

  struct Session {
    SequenceId seq = 0;
    std::vector<int32_t> tokens;
    int64_t released_at = 0;
  };
  // An idle session; null: none of that number.
  const Session* FindIdle(int64_t session) const;
  // Opens a sequence with these tokens from an image, kept for a session, whose sequence it
  // replaces. Throws what KvStore::OpenImage throws; then the session is as before.
  SequenceId Adopt(int64_t session, std::vector<int32_t> tokens, const SequenceImage& image,
                   const std::string& where);

  // Closes an idle session; nothing happens when there is none of that number.
  void CloseSession(int64_t session);

 private:
  std::optional<SequenceId> Open();
  // Closes the session that was idle longest. False: there is none.
  bool CloseOldest();

  KvStore* store_;
  std::map<int64_t, Session> idle_;
  int64_t clock_ = 0;
};

}  // namespace pmkvq
