// The rows of a batched Forward, which are the same on every device. Private to this module.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "pmkvq/kv/kv_store.h"
#include "pmkvq/model/forward_workspace.h"
#include "pmkvq/model/model.h"

namespace pmkvq {

// Its rows are computed as those of chunks of one token.
inline bool IsDecode(const ForwardChunk& chunk) {
  return chunk.tokens.size() == 1 || chunk.one_by_one;
}
inline int64_t NumTokens(const ForwardChunk& chunk) {
  return static_cast<int64_t>(chunk.tokens.size());
}
int64_t NumLogitRows(const ForwardChunk& chunk);

// Fills the workspace's batch, positions, first rows and slices.
//
// Rows with one token per sequence share the linear layers in slices of at most kDecodeRows, where
// MatMul's bits do not depend on the number of rows; every longer chunk is one slice.
// Behind the attention of the last block only rows that asked for logits are computed; one row of a
// longer chunk is then like a row with one token.
void LayOutRows(std::span<const ForwardChunk> chunks, ForwardWorkspace& workspace);

// Ends a Forward that an exception leaves; does nothing after EndForward.
class OpenForward {
 public:
  explicit OpenForward(KvStore& store) : store_(store) {}
  ~OpenForward() { store_.AbandonForward(); }
  OpenForward(const OpenForward&) = delete;
  OpenForward& operator=(const OpenForward&) = delete;

 private:
  KvStore& store_;
};

// Hands the last row of each chunk that asked for logits to a store that wants it. Before
// EndForward.
void OfferLogits(std::span<const ForwardChunk> chunks, const ForwardWorkspace& workspace,
                 int64_t vocab_size, KvStore& store);

// The chunks whose sequence has failed.
std::vector<ForwardFailure> FailuresOf(std::span<const ForwardChunk> chunks, const KvStore& store);

}  // namespace pmkvq
