// The cache behind pmkvq.hf.PackedCache: packed pages of a batch, block by block.
//
// transformers runs a whole prompt through block 0, then through block 1, and tells nobody where a
// Forward begins or ends. So a row of the batch is one sequence per block here, in a store whose
// geometry is a single block: a block can take a prompt in the engine's chunks while others have
// not seen it, and be read at any time. Blocks with equal settings share a store, so that its
// working memory and the partly filled ends of its arena are there once.
//
// On a device (hf_cache_device.cc) rows are memory of the device, and the caller's stream and the
// stores' wait for each other there. Single tokens are a step: room for one more token of each row
// in all blocks is made at once, in one Forward of each store, whose tables and lengths go to the
// device in one copy. Blocks then attend to their part of it in their turn, and the host waits for
// the device once, behind the last of them. Of prompts a Forward is one chunk of one block, and
// ends, which waits for the device, when its store is needed again.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "pmkvq/kv/packed/packed_cache.h"
#include "pmkvq/kv/spec/kv_options.h"
#include "pmkvq/tensor/device/foreign_stream.h"

namespace pmkvq::python {

struct HfCacheOptions {
  KvOptions kv;
  KvGeometry geometry;
  int64_t max_len = 0;  // Tokens of the longest row; sizes caches without a budget.
  int64_t chunk = 512;  // Most tokens of a row that are stored at once, as in the engine.
  int floor_bits = 0;   // 0: the method's. Progressive methods only.
  int num_threads = 1;
};

// New tokens of a batch in one block: row b of q [B, T, H, D], k and v [B, T, Hkv, D] begins with
// skip[b] places that hold no token (left padding). `skip` is empty where no row has any.
// On a device: memory of the device, q, k and v with key scales and query_factor applied, and
// changed; `stream` is the caller's, in whose order they were computed and `out` will be read.
struct HfRows {
  const float* q = nullptr;  // Null: nothing attends.
  const float* k = nullptr;
  const float* v = nullptr;
  float* out = nullptr;    // [B, T, H, D]; the places of skip are left alone.
  int64_t num_tokens = 0;  // T
  float query_factor = 1;  // Of q, since stores attend with the scale 1 / sqrt(D).
  std::span<const int64_t> skip;
  CUstream_st* stream = nullptr;
};

// One new token of each row of a batch in one block, on a device: heads as the caller's library has
// them, which are only read. `out` [B, H, D] is of their type.
struct HfToken {
  GivenHeads heads;
  std::byte* out = nullptr;
  CUstream_st* stream = nullptr;  // As of HfRows.
};

struct HfCacheStats {
  int64_t bytes = 0;         // Pages and sinks of all rows now; what rows share counts for each.
  int64_t peak_bytes = 0;    // The most since Open; with a plan the sum over its kinds of blocks.
  int64_t budget_bytes = 0;  // Of one row.
  int64_t arena_bytes = 0;   // Reserved; pages take memory when they are used.
  int64_t scratch_bytes = 0;
  PagesPerWidth pages{};     // K and V pages of all rows and blocks.
  int64_t halved_pages = 0;  // Since the batch was opened.
};

// Threads: all functions may be called from any thread, without the GIL; one at a time works.
class HfCache {
 public:
  // Takes no memory for pages. Throws as ResolvePackedConfig; InvalidInput for a SPEC that is no
  // packed method, Unsupported for block shapes that a packed cache cannot have.
  explicit HfCache(const HfCacheOptions& options);

  int64_t num_layers() const { return std::ssize(config_.budget_bytes); }
  const CacheConfig& config() const { return config_; }
  // Rows of a batch, 0 before Open.
  int64_t batch_size() const;

  // Makes empty rows. What was stored is dropped. Throws IoError (memory); for a device Unsupported
  // (no code for it, or for such pages there) and DeviceError.
  void Open(int64_t batch_size, DeviceId device = {});
  // Drops everything, memory as well.
  void Close();

  // Whether each row b has room for tokens[b] more in every block, at the floor at least.
  bool HasRoom(std::span<const int64_t> tokens);

  // Attends (where rows.q is not null) and stores. False: the budget is exhausted; then nothing of
  // these rows was stored, provided that HasRoom was true before.
  // Throws InvalidInput for values that the cache cannot hold; the rows can only be closed then. On
  // a device that shows with a later block of the same tokens, with the last one at the latest.
  bool Append(int64_t layer, const HfRows& rows);
  // The same for one token of each row on a device, in a step. Not where something is rotated.
  bool AppendToken(int64_t layer, const HfToken& token);
  // All tokens of a row as they read now: k, v [NumTokens, Hkv, D]. What a sliding window has freed
  // reads as 0.
  void Read(int64_t layer, int64_t row, float* k, float* v);
  // The same on a device, in the order of `stream`: see PackedKvCache::LaunchRead. Key scales are
  // not divided out.
  int64_t ReadOnDevice(int64_t layer, int64_t row, const DeviceTokens& tokens, CUstream_st* stream);

  // Keys and values of a row as they are packed, wherever they lie: sequence_image.h. For tests.
  std::array<std::vector<std::byte>, 2> PackedBytes(int64_t layer, int64_t row);

  int64_t NumTokens(int64_t layer, int64_t row);
  // Whether a row can be cut to `num_tokens`: not where a sliding window has freed pages.
  bool CanTruncate(int64_t layer, int64_t row, int64_t num_tokens);
  void Truncate(int64_t layer, int64_t row, int64_t num_tokens);
  // Row i becomes what row rows[i] was; any number of rows, some more than once. Closed pages are
  // shared until one of their rows narrows them.
  void Select(int64_t layer, std::span<const int64_t> rows);
  // A cache of the same tokens that shares no memory with this one.
  std::unique_ptr<HfCache> Copy();

  HfCacheStats Stats();

 private:
  // Of blocks with equal settings.
  struct BlockStore {
    std::unique_ptr<PackedKvCache> cache;
    std::vector<int64_t> layers;
    Batch under_way;         // Chunks of the Forward that has not ended yet.
    size_t num_awaited = 0;  // Blocks of a step whose token has not come.
  };
  struct Block {
    size_t store = 0;  // Of stores_.
    std::vector<SequenceId> rows;
    // Of a step, while the block's token has not come: where its rows begin in the Forward.
    std::optional<int64_t> first_row;
  };

  explicit HfCache(const CacheConfig& config) : config_(config) {}
  bool is_on_device() const { return config_.device.device != Device::kCpu; }
  bool AreAlike(int64_t layer, int64_t other) const;
  void MakeStores(int64_t max_rows);
  // The sequences of `from`'s blocks, in stores that were made for them.
  void CopyRows(const HfCache& from);
  PackedKvCache& StoreOf(const Block& block) { return *stores_[block.store].cache; }
  const PackedKvCache& StoreOf(const Block& block) const { return *stores_[block.store].cache; }
  void Grow(int64_t max_rows);
  CacheConfig ConfigOf(int64_t layer, int64_t max_sequences) const;
  Block& At(int64_t layer) { return blocks_[static_cast<size_t>(layer)]; }
  const Block& At(int64_t layer) const { return blocks_[static_cast<size_t>(layer)]; }
  HfRows Scaled(int64_t layer, const HfRows& rows);
  bool StoreTogether(Block& block, const HfRows& rows);
  bool StoreRow(Block& block, int64_t layer, int64_t row, const HfRows& rows);
  bool Store(Block& block, const Batch& batch, const HfRows& rows);
  void End(BlockStore& store);
  void Settle();
  void NoteFailure(const BlockStore& store, SequenceId id);
  void ThrowFailure() const;
  // hf_cache_device.cc
  void MakeEvents();
  bool BeginStep(int64_t like);
  void DropAwaited(BlockStore& store);
  void Launch(PackedKvCache& store, const Batch& batch, const HfRows& rows);

  CacheConfig config_;    // Of all blocks, for one row.
  int64_t max_rows_ = 0;  // That stores_ have room for.
  std::vector<BlockStore> stores_;
  std::vector<Block> blocks_;
  int64_t halved_pages_ = 0;
  std::optional<KvFailure> failure_;  // Of a row, since the batch was opened.
  // Points in the caller's stream and in a store's.
  std::unique_ptr<StreamEvent> given_, done_;
  AlignedVector<float> scaled_q_, scaled_k_;
  mutable std::mutex mutex_;
};

}  // namespace pmkvq::python
