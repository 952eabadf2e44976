// HfCache where tensors and pages lie on a device.
#include <algorithm>
#include <utility>

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

// Room for one more token of each row, in all blocks that are as long as block `like`: the others
// have their token of this Forward of the model already.
bool HfCache::BeginStep(int64_t like) {
  Settle();
  ThrowFailure();
  const auto lengths_of = [&](const Block& block) {
    std::vector<int64_t> lengths;
    for (const SequenceId id : block.rows) lengths.push_back(StoreOf(block).NumTokens(id));
    return lengths;
  };
  const std::vector<int64_t> lengths = lengths_of(At(like));
  std::vector<Batch> batches(stores_.size());
  std::vector<std::optional<int64_t>> first_rows(blocks_.size());
  bool has_room = true;
  for (size_t i = 0; i < blocks_.size() && has_room; ++i) {
    const Block& block = blocks_[i];
    if (lengths_of(block) != lengths) continue;
    Batch& batch = batches[block.store];
    first_rows[i] = std::ssize(batch);
    for (const SequenceId id : block.rows) {
      const ReserveResult result = StoreOf(block).Reserve(id, 1);
      has_room = result != ReserveResult::kBudgetExhausted && result != ReserveResult::kFailed;
      if (!has_room) break;
      batch.push_back({id, 1});
    }
  }
  if (!has_room) {
    for (const Block& block : blocks_) {
      for (const SequenceId id : block.rows) {
        NoteFailure(stores_[block.store], id);
        if (StoreOf(block).FailureOf(id) == nullptr) {
          StoreOf(block).Truncate(id, StoreOf(block).NumTokens(id));
        }
      }
    }
    ThrowFailure();
    return false;
  }
  for (size_t i = 0; i < stores_.size(); ++i) {
    if (batches[i].empty()) continue;
    stores_[i].cache->BeginForward(batches[i]);
    stores_[i].under_way = std::move(batches[i]);
  }
  for (size_t i = 0; i < blocks_.size(); ++i) {
    blocks_[i].first_row = first_rows[i];
    if (first_rows[i]) ++stores_[blocks_[i].store].num_awaited;
  }
  return true;
}

// Of a step that ended before all blocks had their token: what was stored for the others has no
// meaning.
void HfCache::DropAwaited(BlockStore& store) {
  for (const int64_t layer : store.layers) {
    if (!std::exchange(At(layer).first_row, std::nullopt)) continue;
    for (const SequenceId id : At(layer).rows) {
      if (store.cache->FailureOf(id) == nullptr) {
        store.cache->Truncate(id, store.cache->NumTokens(id) - 1);
      }
    }
  }
  store.num_awaited = 0;
}

bool HfCache::AppendToken(int64_t layer, const HfToken& token) {
  const std::lock_guard lock(mutex_);
  PMKVQ_CHECK(is_on_device() && layer >= 0 && layer < std::ssize(blocks_));
  Block& block = At(layer);
  if (!block.first_row && !BeginStep(layer)) return false;
  BlockStore& store = stores_[block.store];
  DeviceKvStore& device = *store.cache->OnDevice();
  DeviceGivenRows rows;
  rows.heads = token.heads;
  rows.first_row = *block.first_row;
  rows.num_rows = std::ssize(block.rows);
  rows.out = {token.out, token.heads.type, 1, rows.num_rows};
  try {
    RecordForeign(config_.device, *given_, token.stream);
    device.stream().Wait(*given_);
    store.cache->LaunchGiven(0, rows);
    if (store.num_awaited == 1) device.LaunchLookAtUnfit();
    done_->Record(device.stream());
    MakeForeignWait(config_.device, token.stream, *done_);
  } catch (...) {
    store.cache->AbandonForward();
    store.under_way.clear();
    DropAwaited(store);
    throw;
  }
  block.first_row.reset();
  --store.num_awaited;
  const bool is_last = std::all_of(stores_.begin(), stores_.end(),
                                   [](const BlockStore& other) { return other.num_awaited == 0; });
  if (is_last) {
    Settle();
    ThrowFailure();
  }
  return true;
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
