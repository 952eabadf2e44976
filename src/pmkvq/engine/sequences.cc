#include "pmkvq/engine/sequences.h"

#include <algorithm>
#include <utility>

#include "pmkvq/base/error.h"

namespace pmkvq {

bool SequenceKeeper::CloseOldest() {
  if (idle_.empty()) return false;
  const auto oldest = std::min_element(
      idle_.begin(), idle_.end(),
      [](const auto& a, const auto& b) { return a.second.released_at < b.second.released_at; });
  CloseSession(oldest->first);
  return true;
}

std::optional<SequenceId> SequenceKeeper::Open() {
  std::optional<SequenceId> seq = store_->Open();
  if (!seq && CloseOldest()) seq = store_->Open();
  return seq;
}

const SequenceKeeper::Session* SequenceKeeper::FindIdle(int64_t session) const {
  const auto found = idle_.find(session);
  return found == idle_.end() ? nullptr : &found->second;
}

SequenceId SequenceKeeper::Adopt(int64_t session, std::vector<int32_t> tokens,
                                 const SequenceImage& image, const std::string& where) {
  std::optional<SequenceId> seq = store_->OpenImage(image, where);
  if (!seq) {
    if (FindIdle(session) != nullptr) {
      CloseSession(session);
    } else if (!CloseOldest()) {
      throw InvalidInput(where,
                         "all sequences of the engine are running; load it between requests");
    }
    seq = store_->OpenImage(image, where);
  }
  CloseSession(session);
  idle_.emplace(session, Session{*seq, std::move(tokens), clock_++});
  return *seq;
}

std::optional<SequenceId> SequenceKeeper::Acquire(int64_t session,
                                                  const std::vector<int32_t>& prompt) {
  const auto found = session >= 0 ? idle_.find(session) : idle_.end();
  if (found == idle_.end()) return Open();
  const Session kept = std::move(found->second);
  idle_.erase(found);
  const auto end =
      std::mismatch(kept.tokens.begin(), kept.tokens.end(), prompt.begin(), prompt.end() - 1);
  const int64_t common = store_->LongestTruncation(kept.seq, end.first - kept.tokens.begin());
  // A new conversation, or one whose pages have left a sliding window: nothing of the old one, its
  // peak included, remains.
  if (common == 0) {
    store_->Close(kept.seq);
    return store_->Open();
  }
  store_->Truncate(kept.seq, common);
  return kept.seq;
}

void SequenceKeeper::Release(SequenceId seq, int64_t session, std::vector<int32_t> tokens) {
  if (session < 0) {
    store_->Close(seq);
    return;
  }
  tokens.resize(static_cast<size_t>(store_->NumTokens(seq)));
  CloseSession(session);
  idle_.emplace(session, Session{seq, std::move(tokens), clock_++});
}

void SequenceKeeper::CloseSession(int64_t session) {
  const auto found = idle_.find(session);
  if (found == idle_.end()) return;
  store_->Close(found->second.seq);
  idle_.erase(found);
}

}  // namespace pmkvq
