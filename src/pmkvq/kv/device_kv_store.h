// What a model on a device sees of a KV store whose pages lie on the same device, beside KvStore
// (which opens, reserves, begins and ends a Forward).
//
// Everything is launched on one stream. Where each new token goes, and which pages a sequence has,
// is device memory that KvStore::BeginForward fills, so launches may be captured once and repeated
// (tensor/device/captured_work.h): see LaunchBlock.
//
// Threads: as KvStore.
#pragma once

#include <cstdint>
#include <optional>

#include "pmkvq/kernels/device_rows/device_rows.h"
#include "pmkvq/kernels/kv_quant/page_moves.h"
#include "pmkvq/tensor/device/stream.h"

namespace pmkvq {

// Rows of the batch on the device: first one row of each chunk of one token, and the rows of chunks
// with one_by_one; then those of the other chunks.
// Of a latent block q is [rows, H, r + dr], absorbed and scaled; k is c [rows, r], v is k_r [rows,
// dr], out is [rows, H, r]. Key scales are applied by the store itself.
struct DeviceBlockRows {
  float* q = nullptr;    // [rows, H, D], post-RoPE, key scales applied. Changed.
  float* k = nullptr;    // [rows, Hkv, D]. Changed.
  float* v = nullptr;    // [rows, Hkv, D]. Changed.
  float* out = nullptr;  // [rows, H, D]
  // Rows of the first kind, and behind them rows without meaning: their `out` is undefined. Not
  // more than the batch's where it has chunks of the second kind.
  int64_t decode_rows = 0;
  // Rows of the first kind are stored already, by what FusedAppend says; q, k and v are not read.
  bool is_stored = false;
  // Where its data is not null, outputs of rows of the first kind go there, rounded, and not to
  // `out`.
  ProductRows operand = {};
};

class DeviceKvStore {
 public:
  virtual ~DeviceKvStore() = default;

  virtual Stream& stream() = 0;
  // Sequences that it holds at a time.
  virtual int64_t max_sequences() const = 0;

  // Factors of key scales on the device, as KeyScales has them; null: none.
  virtual const float* query_factors(int64_t layer) const = 0;
  virtual const float* key_factors(int64_t layer) const = 0;

  // Makes room for Forwards with so many rows of the first kind. May change id().
  virtual void PrepareRows(int64_t decode_rows) = 0;
  // Launches what KvStore::AppendAndAttend does in the Forward under way. For rows of the first
  // kind the launches depend on `rows` alone, which they read when they run: captured, they serve
  // every Forward of as many rows while id() is the same. A value that does not fit the float type
  // shows when the Forward ends (KvStore::EndForward, which waits for the device).
  virtual void LaunchBlock(int64_t layer, const DeviceBlockRows& rows) = 0;
  // What rows of the first kind are stored by, so that who computes them stores them as well
  // (MakeHeadRows); nothing where something lies in between, rotation. Holds as long as id().
  virtual std::optional<AppendOperands> FusedAppend(int64_t layer, int64_t decode_rows) = 0;
  // Behind the last LaunchBlock of a Forward: launches the look at what did not fit, so that who
  // waits for the stream anyway has waited for it, too. Without it KvStore::EndForward launches it.
  virtual void LaunchLookAtUnfit() = 0;
  // As LaunchBlock, without attending: a cache of any depth in the time that storing takes, for
  // benchmarks and tests.
  virtual void LaunchStore(int64_t layer, const DeviceBlockRows& rows) = 0;
  // Another number for every store, and after every change of the addresses that launches read.
  virtual uint64_t id() const = 0;
};

}  // namespace pmkvq
