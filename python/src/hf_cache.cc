#include "hf_cache.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <utility>

#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"
#include "pmkvq/base/threads.h"
#include "pmkvq/kv/spec/packed_spec.h"

namespace pmkvq::python {
namespace {

// Rows that are attended as one Forward. More are a prompt, whose rows come one after another in
// chunks, as in the engine.
constexpr int64_t kMostRowsTogether = 64;

CacheConfig Resolve(const HfCacheOptions& options) {
  const std::string method = ParseMethodSpec(options.kv.spec).name;
  const PackedMethod* const packed = FindPackedMethod(method);
  if (packed == nullptr) {
    std::string names;
    for (const PackedMethod& known : PackedMethods()) {
      names += (names.empty() ? "" : ", ") + known.name;
    }
    throw InvalidInput("kv",
                       fmt::format("found \"{}\", expected a packed method: {}", method, names));
  }
  KvRequirements needs;
  needs.geometry = options.geometry;
  needs.max_len = options.max_len;
  needs.num_threads = options.num_threads > 0 ? options.num_threads : DefaultThreads();
  needs.chunk_tokens = options.chunk;
  CacheConfig config = ResolvePackedConfig(options.kv, needs);
  if (packed->progressive && options.floor_bits > 0 && !config.static_widths) {
    config.floor_bits = options.floor_bits;
    config.close_bits = std::max(config.close_bits, options.floor_bits);
    ValidateCacheConfig(config);
  }
  return config;
}

[[noreturn]] void ThrowFailedRow() {
  throw InvalidInput("PackedCache",
                     "found a row with values that it cannot hold, expected none; "
                     "reset() drops all rows");
}

}  // namespace

HfCache::HfCache(const HfCacheOptions& options) : config_(Resolve(options)) {}

int64_t HfCache::batch_size() const {
  const std::lock_guard lock(mutex_);
  return blocks_.empty() ? 0 : std::ssize(blocks_[0].rows);
}

// Of one block, for a store with this block only. Key scales are applied before the store.
CacheConfig HfCache::ConfigOf(int64_t layer, int64_t max_sequences) const {
  const auto index = static_cast<size_t>(layer);
  CacheConfig config = config_;
  config.geometry.blocks = {config_.geometry.block(layer)};
  config.budget_bytes = {config_.budget_bytes[index]};
  if (!config_.k_bits.empty()) config.k_bits = {config_.k_bits[index]};
  if (!config_.v_bits.empty()) config.v_bits = {config_.v_bits[index]};
  config.most_bytes_per_token = std::max<int64_t>(1, config_.most_bytes_per_token / num_layers());
  config.key_scales = nullptr;
  config.max_sequences = max_sequences;
  return config;
}

bool HfCache::AreAlike(int64_t layer, int64_t other) const {
  const auto a = static_cast<size_t>(layer);
  const auto b = static_cast<size_t>(other);
  return config_.geometry.blocks[a] == config_.geometry.blocks[b] &&
         config_.budget_bytes[a] == config_.budget_bytes[b] &&
         (config_.k_bits.empty() || config_.k_bits[a] == config_.k_bits[b]) &&
         (config_.v_bits.empty() || config_.v_bits[a] == config_.v_bits[b]);
}

void HfCache::MakeStores(int64_t max_rows) {
  max_rows_ = max_rows;
  stores_.clear();
  blocks_.assign(static_cast<size_t>(num_layers()), Block{});
  for (int64_t layer = 0; layer < num_layers(); ++layer) {
    const auto alike = std::find_if(stores_.begin(), stores_.end(), [&](const BlockStore& store) {
      return AreAlike(layer, store.layers[0]);
    });
    At(layer).store = static_cast<size_t>(alike - stores_.begin());
    if (alike == stores_.end()) stores_.emplace_back();
    stores_[At(layer).store].layers.push_back(layer);
  }
  for (BlockStore& store : stores_) {
    store.cache = std::make_unique<PackedKvCache>(
        ConfigOf(store.layers[0], max_rows * std::ssize(store.layers)));
  }
}

void HfCache::Open(int64_t batch_size, DeviceId device) {
  const std::lock_guard lock(mutex_);
  PMKVQ_CHECK(batch_size > 0);
  config_.device = device;
  MakeEvents();
  MakeStores(batch_size);
  halved_pages_ = 0;
  failure_.reset();
  for (Block& block : blocks_) {
    for (int64_t row = 0; row < batch_size; ++row) block.rows.push_back(*StoreOf(block).Open());
  }
}

void HfCache::Close() {
  const std::lock_guard lock(mutex_);
  blocks_.clear();
  stores_.clear();
}

bool HfCache::HasRoom(std::span<const int64_t> tokens) {
  const std::lock_guard lock(mutex_);
  Settle();
  for (int64_t layer = 0; layer < std::ssize(blocks_); ++layer) {
    const Block& block = At(layer);
    PMKVQ_CHECK(tokens.size() == block.rows.size());
    int64_t longest = 0;
    for (size_t row = 0; row < tokens.size(); ++row) {
      longest = std::max(longest, StoreOf(block).NumTokens(block.rows[row]) + tokens[row]);
    }
    const auto index = static_cast<size_t>(layer);
    // Page tables of a device have a fixed size.
    if (is_on_device() && longest > config_.max_len) return false;
    if (FloorBytes(config_, index, longest) > config_.budget_bytes[index]) return false;
  }
  return true;
}

// Queries and keys with the factors that they have in the store.
HfRows HfCache::Scaled(int64_t layer, const HfRows& rows) {
  const KeyScales* const scales = config_.key_scales.get();
  HfRows scaled = rows;
  const KvBlockGeometry& geometry = config_.geometry.block(layer);
  const int64_t count = std::ssize(At(layer).rows) * rows.num_tokens;
  const int64_t pairs = geometry.k().width / 2;
  // Heads of all tokens times their pairs' factors [heads, D/2], and times one factor.
  const auto scale = [&](const float* x, int64_t heads, const float* factors, float factor,
                         AlignedVector<float>& memory) {
    memory.resize(static_cast<size_t>(count * heads * 2 * pairs));
    float* to = memory.data();
    for (int64_t token = 0; token < count; ++token) {
      for (int64_t head = 0; head < heads; ++head) {
        for (int64_t i = 0; i < 2 * pairs; ++i) {
          const float pair = factors == nullptr ? 1.0f : factors[head * pairs + i % pairs];
          *to++ = *x++ * (pair * factor);
        }
      }
    }
    return memory.data();
  };
  if (rows.q != nullptr && (scales != nullptr || rows.query_factor != 1.0f)) {
    scaled.q = scale(rows.q, geometry.num_heads,
                     scales == nullptr ? nullptr : scales->query_factors(layer), rows.query_factor,
                     scaled_q_);
  }
  if (scales != nullptr) {
    scaled.k = scale(rows.k, geometry.k().heads, scales->key_factors(layer), 1.0f, scaled_k_);
  }
  return scaled;
}

bool HfCache::Append(int64_t layer, const HfRows& given) {
  const std::lock_guard lock(mutex_);
  PMKVQ_CHECK(layer >= 0 && layer < std::ssize(blocks_));
  Block& block = At(layer);
  const auto batch_size = std::ssize(block.rows);
  PMKVQ_CHECK(given.skip.empty() || std::ssize(given.skip) == batch_size);
  End(stores_[block.store]);
  ThrowFailure();
  const HfRows rows = is_on_device() ? given : Scaled(layer, given);
  if (is_on_device()) RecordForeign(config_.device, *given_, rows.stream);
  bool has_room = true;
  const bool are_few = batch_size * rows.num_tokens <= kMostRowsTogether;
  if (rows.skip.empty() && (are_few || (is_on_device() && rows.num_tokens == 1))) {
    has_room = StoreTogether(block, rows);
  } else {
    for (int64_t row = 0; row < batch_size && has_room; ++row) {
      has_room = StoreRow(block, layer, row, rows);
    }
  }
  // With the last block a Forward of transformers ends.
  if (!is_on_device() || layer == num_layers() - 1) {
    Settle();
    ThrowFailure();
  }
  return has_room;
}

// The first one is kept. A store has one block, so it does not know which of the model's failed.
void HfCache::NoteFailure(const BlockStore& store, SequenceId id) {
  const KvFailure* const failure = store.cache->FailureOf(id);
  if (failure == nullptr || failure_) return;
  failure_ = *failure;
  const std::string found = "block 0";
  const size_t begin = failure_->where.find(found);
  for (const int64_t layer : store.layers) {
    const std::vector<SequenceId>& rows = At(layer).rows;
    if (begin == std::string::npos || std::find(rows.begin(), rows.end(), id) == rows.end()) {
      continue;
    }
    failure_->where.replace(begin, found.size(), fmt::format("block {}", layer));
    return;
  }
}

void HfCache::ThrowFailure() const {
  if (failure_) throw InvalidInput(failure_->where, failure_->what);
}

// Ends the store's Forward, if one is under way.
void HfCache::End(BlockStore& store) {
  if (store.under_way.empty()) return;
  const Batch batch = std::exchange(store.under_way, {});
  store.cache->EndForward();
  for (const HalvingEvent& event : store.cache->TakeHalvingEvents()) {
    halved_pages_ += event.num_k_pages + event.num_v_pages;
  }
  for (const BatchChunk& chunk : batch) {
    NoteFailure(store, chunk.seq);
  }
  if (store.num_awaited > 0) DropAwaited(store);
}

void HfCache::Settle() {
  for (BlockStore& store : stores_) End(store);
}

// The same tokens of all rows in one Forward.
bool HfCache::StoreTogether(Block& block, const HfRows& rows) {
  Batch batch;
  for (const SequenceId id : block.rows) batch.push_back({id, rows.num_tokens});
  return Store(block, batch, rows);
}

bool HfCache::StoreRow(Block& block, int64_t layer, int64_t row, const HfRows& rows) {
  const KvBlockGeometry& geometry = config_.geometry.block(layer);
  const int64_t q_dim = geometry.q_values();
  const int64_t kv_dim = geometry.k().values();
  const SequenceId id = block.rows[static_cast<size_t>(row)];
  const int64_t begin = row * rows.num_tokens;
  // Each chunk costs a wait for the device. Where widths do not depend on what is stored, and no
  // page is freed, chunks that nothing attends to leave what one of them leaves.
  const bool has_own_widths = config_.static_widths || config_.floor_bits >= config_.close_bits;
  const bool store_at_once =
      is_on_device() && rows.q == nullptr && has_own_widths && geometry.sliding_window == 0;
  int64_t done = rows.skip.empty() ? 0 : rows.skip[static_cast<size_t>(row)];
  while (done < rows.num_tokens) {
    // Chunks are cut at fixed places counted from token 0, as the engine's are.
    const int64_t room = config_.chunk_tokens - StoreOf(block).NumTokens(id) % config_.chunk_tokens;
    HfRows chunk;
    chunk.num_tokens = rows.num_tokens - done;
    if (!store_at_once) chunk.num_tokens = std::min(chunk.num_tokens, room);
    chunk.k = rows.k + (begin + done) * kv_dim;
    chunk.v = rows.v + (begin + done) * kv_dim;
    if (rows.q != nullptr) {
      chunk.q = rows.q + (begin + done) * q_dim;
      chunk.out = rows.out + (begin + done) * q_dim;
    }
    if (!Store(block, {{id, chunk.num_tokens}}, chunk)) return false;
    done += chunk.num_tokens;
  }
  return true;
}

bool HfCache::Store(Block& block, const Batch& batch, const HfRows& rows) {
  BlockStore& of_block = stores_[block.store];
  PackedKvCache& store = *of_block.cache;
  End(of_block);
  ThrowFailure();
  const auto drop_reservations = [&] {
    for (const BatchChunk& chunk : batch) {
      if (store.FailureOf(chunk.seq) == nullptr)
        store.Truncate(chunk.seq, store.NumTokens(chunk.seq));
    }
  };
  for (const BatchChunk& chunk : batch) {
    const ReserveResult result = store.Reserve(chunk.seq, chunk.num_tokens);
    if (result == ReserveResult::kBudgetExhausted || result == ReserveResult::kFailed) {
      drop_reservations();
      NoteFailure(of_block, chunk.seq);
      ThrowFailure();
      return false;
    }
  }
  store.BeginForward(batch);
  try {
    if (is_on_device()) {
      Launch(store, batch, rows);
    } else if (rows.q == nullptr) {
      store.Append(0, rows.k, rows.v);
    } else {
      store.AppendAndAttend(0, rows.q, rows.k, rows.v, rows.out);
    }
  } catch (...) {
    store.AbandonForward();
    throw;
  }
  of_block.under_way = batch;
  return true;
}

void HfCache::Read(int64_t layer, int64_t row, float* k, float* v) {
  const std::lock_guard lock(mutex_);
  Settle();
  const Block& block = At(layer);
  const SequenceId id = block.rows[static_cast<size_t>(row)];
  StoreOf(block).ReadTokens(id, 0, k, v);
  if (config_.key_scales == nullptr) return;
  const KvStream& stream = config_.geometry.block(layer).k();
  const int64_t pairs = stream.width / 2;
  const float* const factors = config_.key_scales->key_factors(layer);
  for (int64_t token = 0; token < StoreOf(block).NumTokens(id); ++token) {
    for (int64_t i = 0; i < stream.values(); ++i) {
      *k++ /= factors[i / stream.width * pairs + i % pairs];
    }
  }
}

std::array<std::vector<std::byte>, 2> HfCache::PackedBytes(int64_t layer, int64_t row) {
  const std::lock_guard lock(mutex_);
  Settle();
  const Block& block = At(layer);
  std::optional<SequenceImage> image = StoreOf(block).ImageOf(block.rows[static_cast<size_t>(row)]);
  if (!image) ThrowFailedRow();
  return std::move(image->blocks[0].bytes);
}

int64_t HfCache::NumTokens(int64_t layer, int64_t row) {
  const std::lock_guard lock(mutex_);
  Settle();
  const Block& block = At(layer);
  return StoreOf(block).NumTokens(block.rows[static_cast<size_t>(row)]);
}

bool HfCache::CanTruncate(int64_t layer, int64_t row, int64_t num_tokens) {
  const std::lock_guard lock(mutex_);
  Settle();
  const Block& block = At(layer);
  return StoreOf(block).LongestTruncation(block.rows[static_cast<size_t>(row)], num_tokens) ==
         num_tokens;
}

void HfCache::Truncate(int64_t layer, int64_t row, int64_t num_tokens) {
  const std::lock_guard lock(mutex_);
  Settle();
  const Block& block = At(layer);
  StoreOf(block).Truncate(block.rows[static_cast<size_t>(row)], num_tokens);
}

void HfCache::Select(int64_t layer, std::span<const int64_t> rows) {
  const std::lock_guard lock(mutex_);
  Settle();
  if (std::ssize(rows) > max_rows_) Grow(std::ssize(rows));
  Block& block = At(layer);
  PackedKvCache& store = StoreOf(block);
  std::vector<int64_t> uses(block.rows.size(), 0);
  for (const int64_t row : rows) {
    PMKVQ_CHECK(row >= 0 && row < std::ssize(block.rows));
    ++uses[static_cast<size_t>(row)];
    if (store.FailureOf(block.rows[static_cast<size_t>(row)]) != nullptr) ThrowFailedRow();
  }
  // Rows that go on nowhere make place for copies of others.
  for (size_t row = 0; row < uses.size(); ++row) {
    if (uses[row] == 0) store.Close(block.rows[row]);
  }
  std::vector<SequenceId> selected;
  for (const int64_t from : rows) {
    const auto row = static_cast<size_t>(from);
    const bool is_first = std::exchange(uses[row], 0) > 0;
    selected.push_back(is_first ? block.rows[row] : *store.Fork(block.rows[row]));
  }
  block.rows = std::move(selected);
}

void HfCache::CopyRows(const HfCache& from) {
  for (int64_t layer = 0; layer < num_layers(); ++layer) {
    for (const SequenceId id : from.At(layer).rows) {
      const std::optional<SequenceImage> image = from.StoreOf(from.At(layer)).ImageOf(id);
      if (!image) ThrowFailedRow();
      At(layer).rows.push_back(*StoreOf(At(layer)).OpenImage(*image, "PackedCache"));
    }
  }
}

void HfCache::Grow(int64_t max_rows) {
  HfCache grown(config_);
  grown.MakeStores(max_rows);
  grown.CopyRows(*this);
  max_rows_ = max_rows;
  stores_ = std::move(grown.stores_);
  blocks_ = std::move(grown.blocks_);
}

std::unique_ptr<HfCache> HfCache::Copy() {
  const std::lock_guard lock(mutex_);
  Settle();
  auto copy = std::unique_ptr<HfCache>(new HfCache(config_));
  if (blocks_.empty()) return copy;
  copy->MakeEvents();
  copy->MakeStores(max_rows_);
  copy->CopyRows(*this);
  copy->halved_pages_ = halved_pages_;
  return copy;
}

HfCacheStats HfCache::Stats() {
  const std::lock_guard lock(mutex_);
  Settle();
  HfCacheStats stats;
  for (const int64_t budget : config_.budget_bytes) stats.budget_bytes += budget;
  stats.halved_pages = halved_pages_;
  stats.scratch_bytes =
      static_cast<int64_t>((scaled_q_.capacity() + scaled_k_.capacity()) * sizeof(float));
  for (const BlockStore& one : stores_) {
    const KvStoreStats store = one.cache->StoreStats();
    stats.bytes += store.pool.used_bytes;
    stats.peak_bytes += store.pool.peak_bytes;
    stats.arena_bytes += static_cast<int64_t>(store.arena_bytes);
    stats.scratch_bytes += static_cast<int64_t>(store.scratch_bytes);
  }
  for (const Block& block : blocks_) {
    for (const SequenceId id : block.rows) {
      const KvLayerStats row = StoreOf(block).LayerStats(id, 0);
      for (size_t width = 0; width < stats.pages.size(); ++width) {
        stats.pages[width] += row.k_pages[width] + row.v_pages[width];
      }
    }
  }
  return stats;
}

}  // namespace pmkvq::python
