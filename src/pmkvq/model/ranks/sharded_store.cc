#include "pmkvq/model/ranks/sharded_store.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "pmkvq/base/check.h"

namespace pmkvq {
namespace {

uint64_t Mixed(uint64_t hash, uint64_t value) {
  hash ^= value + 0x9e3779b97f4a7c15u + (hash << 6) + (hash >> 2);
  hash ^= hash >> 31;
  return hash * 0xbf58476d1ce4e5b9u;
}

}  // namespace

ShardedKvStore::ShardedKvStore(const CacheConfig& whole, const ModelShard& shard,
                               std::unique_ptr<KvStore> local,
                               std::function<RecordWriter&(StoreOp)> begin_op,
                               std::function<void()> end)
    : whole_(whole),
      parts_(shard.num_kv_parts),
      num_layers_(whole.geometry.num_layers()),
      local_(std::move(local)),
      begin_op_(std::move(begin_op)),
      end_(std::move(end)) {}

ShardedKvStore::~ShardedKvStore() { end_(); }

std::optional<SequenceId> ShardedKvStore::Open() {
  const std::optional<SequenceId> seq = local_->Open();
  begin_op_(StoreOp::kOpen).Put(seq.value_or(-1));
  return seq;
}

void ShardedKvStore::Close(SequenceId seq) {
  local_->Close(seq);
  failures_.erase(seq);
  begin_op_(StoreOp::kClose).Put(seq);
}

std::optional<SequenceId> ShardedKvStore::Fork(SequenceId seq) {
  if (failures_.contains(seq)) return std::nullopt;
  const std::optional<SequenceId> copy = local_->Fork(seq);
  RecordWriter& record = begin_op_(StoreOp::kFork);
  record.Put(seq);
  record.Put(copy.value_or(-1));
  return copy;
}

ReserveResult ShardedKvStore::Reserve(SequenceId seq, int64_t num_tokens) {
  if (failures_.contains(seq)) return ReserveResult::kFailed;
  const ReserveResult result = local_->Reserve(seq, num_tokens);
  RecordWriter& record = begin_op_(StoreOp::kReserve);
  record.Put(seq);
  record.Put(num_tokens);
  record.Put(result);
  return result;
}

int64_t ShardedKvStore::ReserveOneByOne(SequenceId seq, int64_t num_tokens) {
  if (failures_.contains(seq)) return 0;
  const int64_t result = local_->ReserveOneByOne(seq, num_tokens);
  RecordWriter& record = begin_op_(StoreOp::kReserveOneByOne);
  record.Put(seq);
  record.Put(num_tokens);
  record.Put(result);
  return result;
}

ReserveResult ShardedKvStore::ReserveAll(std::span<const BatchChunk> chunks) {
  std::vector<BatchChunk> going_on;
  for (const BatchChunk& chunk : chunks) {
    if (!failures_.contains(chunk.seq)) going_on.push_back(chunk);
  }
  const ReserveResult result = local_->ReserveAll(going_on);
  RecordWriter& record = begin_op_(StoreOp::kReserveAll);
  record.PutAll(going_on);
  record.Put(result);
  return result;
}

void ShardedKvStore::SetPoolTerms(SequenceId seq, const KvPoolTerms& terms) {
  local_->SetPoolTerms(seq, terms);
  RecordWriter& record = begin_op_(StoreOp::kSetPoolTerms);
  record.Put(seq);
  record.Put(terms);
}

void ShardedKvStore::FollowHistory(SequenceId seq, std::vector<HalvingEvent> events) {
  RecordWriter& record = begin_op_(StoreOp::kFollowHistory);
  record.Put(seq);
  record.PutAll(events);
  local_->FollowHistory(seq, std::move(events));
}

const KvFailure* ShardedKvStore::FailureOf(SequenceId seq) const {
  const auto found = failures_.find(seq);
  return found != failures_.end() ? &found->second : local_->FailureOf(seq);
}

void ShardedKvStore::Truncate(SequenceId seq, int64_t num_tokens) {
  local_->Truncate(seq, num_tokens);
  RecordWriter& record = begin_op_(StoreOp::kTruncate);
  record.Put(seq);
  record.Put(num_tokens);
}

void ShardedKvStore::BeginForward(const Batch& /*batch*/) { PMKVQ_CHECK(false); }
void ShardedKvStore::AppendAndAttend(int64_t, const float*, const float*, const float*, float*) {
  PMKVQ_CHECK(false);
}
void ShardedKvStore::EndForward() { PMKVQ_CHECK(false); }
void ShardedKvStore::SwapForwards() {
  PMKVQ_CHECK_MSG(false, "ranks do not set Forwards aside: prefill_share is 1");
}

KvSequenceStats ShardedKvStore::SequenceStats(SequenceId seq) const {
  KvSequenceStats stats = local_->SequenceStats(seq);
  stats.bytes *= parts_;
  stats.peak_bytes *= parts_;
  stats.narrowed_bytes *= parts_;
  stats.budget_bytes = 0;
  for (const int64_t bytes : whole_.budget_bytes) stats.budget_bytes += bytes;
  return stats;
}

KvLayerStats ShardedKvStore::LayerStats(SequenceId seq, int64_t layer) const {
  KvLayerStats stats = local_->LayerStats(seq, layer);
  stats.bytes *= parts_;
  stats.budget_bytes = whole_.budget_bytes[static_cast<size_t>(layer)];
  return stats;
}

KvStoreStats ShardedKvStore::StoreStats() const {
  KvStoreStats stats = local_->StoreStats();
  stats.arena_bytes *= static_cast<size_t>(parts_);
  stats.pool.bytes = whole_.pool.bytes;
  stats.pool.used_bytes *= parts_;
  stats.pool.peak_bytes *= parts_;
  stats.pool.narrowed_bytes *= parts_;
  return stats;
}

void StorePart::TakeFailure(SequenceId seq) {
  if (const KvFailure* failure = store_->FailureOf(seq)) failures_.emplace(seq, *failure);
}

std::string StorePart::Do(RecordReader& record) {
  const auto op = record.Get<StoreOp>();
  if (op == StoreOp::kReserveAll) {
    std::vector<BatchChunk> chunks = record.GetAll<BatchChunk>();
    const auto expected = record.Get<ReserveResult>();
    const ReserveResult found = store_->ReserveAll(chunks);
    bool failed = false;
    for (const BatchChunk& chunk : chunks) {
      TakeFailure(chunk.seq);
      failed = failed || failures_.contains(chunk.seq);
    }
    if (found == expected || failed) return "";
    return fmt::format("room for {} chunks: result {}, rank 0 has {}", chunks.size(),
                       static_cast<int>(found), static_cast<int>(expected));
  }
  const auto seq = record.Get<SequenceId>();
  // One that has failed here only: rank 0 closes it when it hears of that.
  const bool has_failed = failures_.contains(seq);
  switch (op) {
    case StoreOp::kOpen: {
      const SequenceId found = store_->Open().value_or(-1);
      if (found == seq) return "";
      return fmt::format("opened sequence {}, rank 0 has {}", found, seq);
    }
    case StoreOp::kClose:
      store_->Close(seq);
      failures_.erase(seq);
      return "";
    case StoreOp::kFork: {
      const auto expected = record.Get<SequenceId>();
      std::optional<SequenceId> found = store_->Fork(seq);
      if (!found && expected >= 0) {
        TakeFailure(seq);
        if (!failures_.contains(seq)) return fmt::format("sequence {} cannot be copied here", seq);
        found = store_->Open();  // A copy of what has failed has failed.
        if (found) failures_.emplace(*found, failures_.at(seq));
      }
      if (found.value_or(-1) == expected) return "";
      return fmt::format("copied to sequence {}, rank 0 has {}", found.value_or(-1), expected);
    }
    case StoreOp::kReserve: {
      const auto num_tokens = record.Get<int64_t>();
      const auto expected = record.Get<ReserveResult>();
      if (has_failed) return "";
      const ReserveResult found = store_->Reserve(seq, num_tokens);
      if (found == ReserveResult::kFailed) TakeFailure(seq);
      if (found == expected || found == ReserveResult::kFailed ||
          expected == ReserveResult::kFailed) {
        return "";
      }
      return fmt::format("room for {} tokens of sequence {}: result {}, rank 0 has {}", num_tokens,
                         seq, static_cast<int>(found), static_cast<int>(expected));
    }
    case StoreOp::kReserveOneByOne: {
      const auto num_tokens = record.Get<int64_t>();
      const auto expected = record.Get<int64_t>();
      if (has_failed) return "";
      const int64_t found = store_->ReserveOneByOne(seq, num_tokens);
      TakeFailure(seq);
      if (found == expected || failures_.contains(seq)) return "";
      return fmt::format("room for {} tokens of sequence {}, rank 0 has room for {}", found, seq,
                         expected);
    }
    case StoreOp::kSetPoolTerms:
      store_->SetPoolTerms(seq, record.Get<KvPoolTerms>());
      return "";
    case StoreOp::kFollowHistory:
      store_->FollowHistory(seq, record.GetAll<HalvingEvent>());
      return "";
    case StoreOp::kTruncate: {
      const auto num_tokens = record.Get<int64_t>();
      if (!has_failed) store_->Truncate(seq, num_tokens);
      return "";
    }
    case StoreOp::kReserveAll:
      break;
  }
  PMKVQ_CHECK_MSG(false, "unknown op of a store");
  return "";
}

uint64_t HashOfState(const KvStore& store, std::span<const SequenceId> sequences,
                     int64_t num_layers) {
  uint64_t hash = 0;
  for (const SequenceId seq : sequences) {
    hash = Mixed(hash, static_cast<uint64_t>(seq));
    hash = Mixed(hash, static_cast<uint64_t>(store.NumTokens(seq)));
    for (int64_t layer = 0; layer < num_layers; ++layer) {
      const KvLayerStats stats = store.LayerStats(seq, layer);
      for (const int64_t pages : stats.k_pages) hash = Mixed(hash, static_cast<uint64_t>(pages));
      for (const int64_t pages : stats.v_pages) hash = Mixed(hash, static_cast<uint64_t>(pages));
    }
  }
  return hash;
}

std::string DescribeState(const KvStore& store, std::span<const SequenceId> sequences,
                          int64_t num_layers) {
  std::string text;
  for (const SequenceId seq : sequences) {
    PagesPerWidth pages{};
    for (int64_t layer = 0; layer < num_layers; ++layer) {
      const KvLayerStats stats = store.LayerStats(seq, layer);
      for (size_t i = 0; i < pages.size(); ++i) pages[i] += stats.k_pages[i] + stats.v_pages[i];
    }
    text += fmt::format("{}sequence {}: {} tokens, {} + {} + {} + {} pages of 16, 8, 4, 2 bits",
                        text.empty() ? "" : "; ", seq, store.NumTokens(seq), pages[0], pages[1],
                        pages[2], pages[3]);
  }
  return text;
}

void PutCacheConfig(const CacheConfig& config, RecordWriter& record) {
  record.Put(config.float_type);
  record.Put(config.sink_tokens);
  record.Put(config.window_tokens);
  record.Put(config.max_sequences);
  record.Put(config.max_len);
  record.Put(config.chunk_tokens);
  record.Put(config.close_bits);
  record.Put(config.floor_bits);
  record.Put(config.rope_floor_bits);
  record.Put(config.policy);
  record.Put(config.most_bytes_per_token);
  record.PutAll(config.budget_bytes);
  record.Put(config.pool.bytes);
  record.Put(config.pool.step_bytes);
  record.Put(config.pool.read_limit_bytes);
  record.PutAll(config.pool.k_sensitivity);
  record.PutAll(config.pool.v_sensitivity);
  record.PutAll(config.k_bits);
  record.PutAll(config.v_bits);
  record.Put(config.static_widths);
  record.Put(config.k_axis);
  record.Put(config.rotate_keys);
  record.Put(config.rotate_values);
  record.Put(config.attention);
  record.Put(config.num_threads);
  record.Put(config.key_scales != nullptr);
  if (config.key_scales == nullptr) return;
  for (size_t layer = 0; layer < config.geometry.blocks.size(); ++layer) {
    const KvBlockGeometry& block = config.geometry.blocks[layer];
    if (!block.has_cache()) continue;
    // Factors of queries are the scales, one copy for each query head of a KV head.
    const auto pairs = static_cast<size_t>(block.k().width / 2);
    const float* factors = config.key_scales->query_factors(static_cast<int64_t>(layer));
    for (int64_t head = 0; head < block.k().heads; ++head) {
      record.PutAll(std::span<const float>(factors, pairs));
      factors += block.num_heads / block.k().heads * block.k().width / 2;
    }
  }
}

CacheConfig GetCacheConfig(const KvGeometry& geometry, RecordReader& record) {
  CacheConfig config;
  config.geometry = geometry;
  config.float_type = record.Get<DType>();
  config.sink_tokens = record.Get<int64_t>();
  config.window_tokens = record.Get<int64_t>();
  config.max_sequences = record.Get<int64_t>();
  config.max_len = record.Get<int64_t>();
  config.chunk_tokens = record.Get<int64_t>();
  config.close_bits = record.Get<int>();
  config.floor_bits = record.Get<int>();
  config.rope_floor_bits = record.Get<int>();
  config.policy = record.Get<PolicyKind>();
  config.most_bytes_per_token = record.Get<int64_t>();
  config.budget_bytes = record.GetAll<int64_t>();
  config.pool.bytes = record.Get<int64_t>();
  config.pool.step_bytes = record.Get<int64_t>();
  config.pool.read_limit_bytes = record.Get<int64_t>();
  config.pool.k_sensitivity = record.GetAll<std::array<double, 4>>();
  config.pool.v_sensitivity = record.GetAll<std::array<double, 4>>();
  config.k_bits = record.GetAll<int>();
  config.v_bits = record.GetAll<int>();
  config.static_widths = record.Get<bool>();
  config.k_axis = record.Get<QuantAxis>();
  config.rotate_keys = record.Get<bool>();
  config.rotate_values = record.Get<bool>();
  config.attention = record.Get<AttentionMode>();
  config.num_threads = record.Get<int>();
  if (!record.Get<bool>()) return config;
  std::vector<Tensor> scales;
  for (const KvBlockGeometry& block : geometry.blocks) {
    if (!block.has_cache()) {
      scales.emplace_back();
      continue;
    }
    Tensor& tensor = scales.emplace_back(DType::kF32, KeyScales::ShapeOf(block));
    auto* out = tensor.As<float>();
    for (int64_t head = 0; head < block.k().heads; ++head) {
      const std::vector<float> factors = record.GetAll<float>();
      out = std::copy(factors.begin(), factors.end(), out);
    }
  }
  config.key_scales = KeyScales::Make(geometry, scales);
  return config;
}

}  // namespace pmkvq
