// What a Forward needs besides the model and the store, kept between calls.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "pmkvq/base/aligned.h"
#include "pmkvq/kv/kv_store.h"
#include "pmkvq/model/scratch.h"

namespace pmkvq {

// Rows that go through the linear layers in one call.
struct RowSlice {
  int64_t first_row = 0;
  int64_t num_rows = 0;
  bool joinable = false;  // Made of single rows, so that another one may follow.
};

// Activations and bookkeeping of a Forward, reused between calls: everything grows to the largest
// batch seen, so that a steady state allocates nothing.
struct ForwardWorkspace {
  Scratch<float> scratch;
  AlignedVector<float> logits;  // [rows that asked for logits, V], in order of chunks and rows.
  int64_t num_logit_rows = 0;
  AlignedVector<float> read_logits;  // [kMostReadRows, V], of rows that go to a LogitReader.

  // Inside, chunks of single rows (one token, one_by_one) come first, then the others, each in the
  // caller's order.
  Batch batch;
  std::vector<int64_t> positions;         // Per row.
  std::vector<int64_t> chunk_first_rows;  // Per chunk, in the caller's order.
  std::vector<RowSlice> slices;
  std::vector<RowSlice> last_slices;  // Of the last block behind its attention: rows with logits.

  size_t num_bytes() const {
    return scratch.num_bytes() + (logits.capacity() + read_logits.capacity()) * sizeof(float) +
           batch.capacity() * sizeof(BatchChunk) +
           (slices.capacity() + last_slices.capacity()) * sizeof(RowSlice) +
           (positions.capacity() + chunk_first_rows.capacity()) * sizeof(int64_t);
  }
};

}  // namespace pmkvq
