// HfCache where tensors and pages lie on a device.
#include "hf_cache.h"
#include "pmkvq/base/check.h"

namespace pmkvq::python {

void HfCache::MakeEvents() {
  given_.reset();
  done_.reset();
  if (!is_on_device()) return;
  given_ = std::make_unique<StreamEvent>(config_.device);
  done_ = std::make_unique<StreamEvent>(config_.device);
}

// Attends and stores in the store's stream, behind what the caller's has come to when its rows were
// given. What the caller launches next, which may read `out` and reuse the memory of the rows,
// waits.
void HfCache::Launch(PackedKvCache& store, const Batch& batch, const HfRows& rows) {
  DeviceKvStore& device = *store.OnDevice();
  device.stream().Wait(*given_);
  DeviceBlockRows on_device;
  // The caller's tensors are its own copies.
  on_device.q = const_cast<float*>(rows.q);
  on_device.k = const_cast<float*>(rows.k);
  on_device.v = const_cast<float*>(rows.v);
  on_device.out = rows.out;
  on_device.decode_rows = rows.num_tokens == 1 ? std::ssize(batch) : 0;
  if (rows.q == nullptr) {
    device.LaunchStore(0, on_device);
  } else {
    device.LaunchBlock(0, on_device);
  }
  device.LaunchLookAtUnfit();
  done_->Record(device.stream());
  MakeForeignWait(config_.device, rows.stream, *done_);
}

int64_t HfCache::ReadOnDevice(int64_t layer, int64_t row, const DeviceTokens& tokens,
                              CUstream_st* stream) {
  const std::lock_guard lock(mutex_);
  Settle();
  PMKVQ_CHECK(is_on_device());
  Block& block = At(layer);
  PackedKvCache& store = StoreOf(block);
  Stream& own = store.OnDevice()->stream();
  RecordForeign(config_.device, *given_, stream);
  own.Wait(*given_);
  const int64_t freed = store.LaunchRead(block.rows[static_cast<size_t>(row)], 0, tokens);
  done_->Record(own);
  MakeForeignWait(config_.device, stream, *done_);
  return freed;
}

}  // namespace pmkvq::python
