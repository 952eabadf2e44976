#include "pmkvq/model/forward_layout.h"

#include "pmkvq/base/check.h"

namespace pmkvq {
namespace {

// Rows with one token of a sequence join the slice before them where they follow it.
void AddSlice(int64_t first_row, int64_t num_rows, std::vector<RowSlice>& slices) {
  if (num_rows == 1 && !slices.empty() && slices.back().joinable &&
      slices.back().first_row + slices.back().num_rows == first_row &&
      slices.back().num_rows < kDecodeRows) {
    ++slices.back().num_rows;
  } else {
    slices.push_back({first_row, num_rows, num_rows == 1});
  }
}

void AddChunk(const ForwardChunk& chunk, size_t index, ForwardWorkspace& workspace) {
  const int64_t num_tokens = NumTokens(chunk);
  PMKVQ_CHECK_MSG(num_tokens > 0, "empty chunk");
  const auto first_row = static_cast<int64_t>(workspace.positions.size());
  workspace.chunk_first_rows[index] = first_row;
  workspace.batch.push_back({chunk.seq, num_tokens, chunk.one_by_one, chunk.ends_prompt});
  for (int64_t t = 0; t < num_tokens; ++t) workspace.positions.push_back(chunk.start_pos + t);
  const int64_t piece = IsDecode(chunk) ? 1 : num_tokens;
  for (int64_t t = 0; t < num_tokens; t += piece) {
    AddSlice(first_row + t, piece, workspace.slices);
  }
  // The last block's result is read for these rows only.
  const int64_t num_logit_rows = NumLogitRows(chunk);
  PMKVQ_CHECK(!chunk.one_by_one || (num_logit_rows <= 1 && chunk.num_read == 0));
  PMKVQ_CHECK(chunk.num_read == 0 || (chunk.reader != nullptr && num_logit_rows <= 1 &&
                                      chunk.num_read + num_logit_rows <= num_tokens));
  if (chunk.num_read > 0) AddSlice(first_row, chunk.num_read, workspace.last_slices);
  if (num_logit_rows > 0) {
    AddSlice(first_row + num_tokens - num_logit_rows, num_logit_rows, workspace.last_slices);
  }
}

}  // namespace

int64_t NumLogitRows(const ForwardChunk& chunk) {
  switch (chunk.logits) {
    case ForwardChunk::Logits::kNone:
      return 0;
    case ForwardChunk::Logits::kLast:
      return 1;
    case ForwardChunk::Logits::kAll:
      return NumTokens(chunk);
  }
  return 0;
}

void LayOutRows(std::span<const ForwardChunk> chunks, ForwardWorkspace& workspace) {
  workspace.batch.clear();
  workspace.positions.clear();
  workspace.slices.clear();
  workspace.last_slices.clear();
  workspace.chunk_first_rows.resize(chunks.size());
  for (const bool decode : {true, false}) {
    for (size_t i = 0; i < chunks.size(); ++i) {
      if (IsDecode(chunks[i]) == decode) AddChunk(chunks[i], i, workspace);
    }
  }
}

void OfferLogits(std::span<const ForwardChunk> chunks, const ForwardWorkspace& workspace,
                 int64_t vocab_size, KvStore& store) {
  if (!store.ExtraNeeds().logits) return;
  const float* row = workspace.logits.data();
  for (const ForwardChunk& chunk : chunks) {
    const int64_t num_rows = NumLogitRows(chunk);
    if (num_rows == 0) continue;
    row += num_rows * vocab_size;
    store.OfferLogits(chunk.seq, {row - vocab_size, static_cast<size_t>(vocab_size)});
  }
}

std::vector<ForwardFailure> FailuresOf(std::span<const ForwardChunk> chunks, const KvStore& store) {
  std::vector<ForwardFailure> failures;
  for (size_t i = 0; i < chunks.size(); ++i) {
    const KvFailure* failure = store.FailureOf(chunks[i].seq);
    if (failure != nullptr) failures.push_back({i, *failure});
  }
  return failures;
}

}  // namespace pmkvq
