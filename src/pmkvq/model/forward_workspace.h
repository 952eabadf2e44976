// What a Forward needs besides the model and the store, kept between calls.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "pmkvq/base/aligned.h"
#include "pmkvq/kernels/sampling/sampling.h"
#include "pmkvq/kv/kv_store.h"
#include "pmkvq/model/scratch.h"

namespace pmkvq {

// Rows that go through the linear layers in one call.
struct RowSlice {
  int64_t first_row = 0;
  int64_t num_rows = 0;
  bool joinable = false;  // Made of single rows, so that another one may follow.
};

class DeviceWorkspace;

// Activations and bookkeeping of a Forward, reused between calls: everything grows to the largest
// batch seen, so that a steady state allocates nothing.
struct ForwardWorkspace {
  Scratch<float> scratch;
  AlignedVector<float> logits;  // [rows that asked for logits, V], in order of chunks and rows.
  int64_t num_logit_rows = 0;
  // Of chunks with `draw`, in their order; empty where there were none.
  struct Drawn {
    int32_t token = 0;
    SamplingOutcome outcome = SamplingOutcome::kDrawn;
  };
  std::vector<Drawn> drawn;
  AlignedVector<float> read_logits;   // [kMostReadRows, V], of rows that go to a LogitReader.
  AlignedVector<float> local_logits;  // Of a shard: [rows, its part of V].

  // Inside, chunks of single rows (one token, one_by_one) come first, then the others, each in the
  // caller's order.
  Batch batch;
  std::vector<int64_t> positions;         // Per row.
  std::vector<int64_t> chunk_first_rows;  // Per chunk, in the caller's order.
  std::vector<RowSlice> slices;
  std::vector<RowSlice> last_slices;  // Of the last block behind its attention: rows with logits.

  // Of a model on a device: its memory there, and launches for the store of the last call.
  std::shared_ptr<DeviceWorkspace> device;
  size_t device_bytes = 0;

  size_t num_bytes() const {
    return device_bytes + scratch.num_bytes() +
           (logits.capacity() + read_logits.capacity() + local_logits.capacity()) * sizeof(float) +
           batch.capacity() * sizeof(BatchChunk) +
           (slices.capacity() + last_slices.capacity()) * sizeof(RowSlice) +
           (positions.capacity() + chunk_first_rows.capacity()) * sizeof(int64_t);
  }
};

}  // namespace pmkvq
