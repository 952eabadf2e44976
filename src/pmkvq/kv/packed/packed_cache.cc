#include "pmkvq/kv/packed/packed_cache.h"

#include <algorithm>
#include <utility>

#include "pmkvq/base/check.h"
#include "pmkvq/kernels/linalg/hadamard.h"

namespace pmkvq {
namespace {

const CacheConfig& Validated(const CacheConfig& config) {
  ValidateCacheConfig(config);
  if (config.device.device != Device::kCpu) CheckDeviceCache(config);
  return config;
}

AttentionShape ShapeOf(const CacheConfig& config, const KvBlockGeometry& block) {
  AttentionShape shape = AttentionShapeOf(block, config.float_type);
  shape.whole_heads = config.whole_heads;
  return shape;
}

// Where `value` is, or is appended.
template <class T>
size_t IndexOf(const T& value, std::vector<T>& values) {
  const auto same = std::find(values.begin(), values.end(), value);
  const auto index = static_cast<size_t>(same - values.begin());
  if (same == values.end()) values.push_back(value);
  return index;
}

}  // namespace

std::unique_ptr<KvStore> MakePackedKvCache(const CacheConfig& config) {
  return std::make_unique<PackedKvCache>(config);
}

PackedKvCache::PackedKvCache(const CacheConfig& config)
    : config_(Validated(config)),
      shapes_(config.geometry.blocks.size()),
      store_(config),
      sequences_(static_cast<size_t>(config.max_sequences)),
      decided_(config.geometry.blocks.size()) {
  for (size_t layer = 0; layer < shapes_.size(); ++layer) {
    const KvBlockGeometry& block = config.geometry.blocks[layer];
    if (!block.has_cache()) continue;
    cached_layers_.push_back(layer);
    const auto plan = block.is_latent()
                          ? IndexOf(LatentShapeOf(block, config.float_type), latent_shapes_)
                          : IndexOf(ShapeOf(config, block), attention_shapes_);
    shapes_[layer] = {.is_latent = block.is_latent(),
                      .plan = plan,
                      .head_dim = block.is_latent() ? block.latent_width() : block.k().width,
                      .q_dim = block.q_values(),
                      .out_dim = block.out_values(),
                      .stream_dims = {block.k().values(), block.v().values()}};
  }
  if (config_.pool.bytes > 0) MakePressure();
  if (config_.pool.prefix_bytes > 0) prefixes_ = std::make_unique<PrefixTree>(config.chunk_tokens);
  if (config_.device.device != Device::kCpu)
    device_ = std::make_unique<DeviceSide>(config_, store_);
}

PackedKvCache::Sequence& PackedKvCache::At(SequenceId id) {
  return const_cast<Sequence&>(std::as_const(*this).At(id));
}

const PackedKvCache::Sequence& PackedKvCache::At(SequenceId id) const {
  PMKVQ_CHECK(id >= 0 && static_cast<size_t>(id) < sequences_.size());
  const Sequence& seq = sequences_[static_cast<size_t>(id)];
  PMKVQ_CHECK_MSG(seq.is_open, "the sequence is not open");
  return seq;
}

SequenceId PackedKvCache::IdOf(const Sequence& seq) const {
  return static_cast<SequenceId>(&seq - sequences_.data());
}

std::optional<SequenceId> PackedKvCache::Open() {
  for (Sequence& seq : sequences_) {
    if (seq.is_open) continue;
    seq = Sequence{};
    seq.is_open = true;
    seq.opened_as = num_opened_++;
    seq.blocks.resize(shapes_.size());
    for (const size_t layer : cached_layers_) UpdatePresentWidths(seq.blocks[layer], layer);
    return IdOf(seq);
  }
  return std::nullopt;
}

void PackedKvCache::Close(SequenceId id) {
  Sequence& seq = At(id);
  PMKVQ_CHECK(!IsInForward(seq));
  store_.ReleaseAll(seq);
  seq.is_open = false;
}

std::optional<SequenceId> PackedKvCache::Fork(SequenceId id) {
  Sequence& seq = At(id);
  PMKVQ_CHECK(!IsInForward(seq));
  store_.SettleUnfit();
  if (seq.failure) return std::nullopt;
  Truncate(id, seq.num_tokens);
  const size_t num_shared = NumSharedByFork(seq);
  if (config_.pool.bytes > 0) {
    if (seq.script) return std::nullopt;
    openings_.clear();
    const int64_t new_bytes = store_.CopyBytes(seq, seq.num_tokens, num_shared);
    if (!PayInPool(new_bytes) || seq.failure) return std::nullopt;
  }
  const std::optional<SequenceId> copy_id = Open();
  if (!copy_id) return std::nullopt;
  Sequence& copy = At(*copy_id);
  store_.Share(seq, seq.num_tokens, num_shared, copy);
  copy.num_tokens = seq.num_tokens;
  copy.next = seq.next;
  copy.terms = seq.terms;
  return copy_id;
}

void PackedKvCache::BeginForward(const Batch& batch) {
  PMKVQ_CHECK_MSG(!forward_.is_open, "EndForward is missing");
  forward_.chunks.clear();
  forward_.has_failed_chunk = false;
  forward_.is_planned = false;
  int64_t first_row = 0;
  for (const BatchChunk& part : batch) {
    Sequence& seq = At(part.seq);
    PMKVQ_CHECK_MSG(!seq.failure && part.num_tokens == seq.reserved_tokens, "Reserve is missing");
    if (part.num_tokens == 0) continue;
    PMKVQ_CHECK(!IsInForward(seq));
    forward_.chunks.push_back({&seq, part.num_tokens, first_row, part.one_by_one, seq.num_tokens});
    first_row += part.num_tokens;
  }
  forward_.is_open = true;
  if (device_ != nullptr) BeginOnDevice();
}

void PackedKvCache::BeginOnDevice() {
  std::vector<DeviceSide::Chunk> chunks;
  for (const Chunk& chunk : forward_.chunks) {
    chunks.push_back({chunk.seq, IdOf(*chunk.seq), chunk.num_tokens, chunk.num_before,
                      chunk.num_tokens == 1 || chunk.one_by_one});
  }
  device_->Begin(chunks);
}

// Waits for the device, which knows only then what did not fit.
void PackedKvCache::EndOnDevice() {
  const std::vector<std::optional<KvFailure>> failures = device_->End();
  for (size_t i = 0; i < failures.size(); ++i) {
    Sequence& seq = *forward_.chunks[i].seq;
    if (!seq.failure) seq.failure = failures[i];
    for (BlockPages& block : seq.blocks) {
      if (!block.open_rows_moved[kKeys] && !block.open_rows_moved[kValues]) continue;
      block.open_rows_moved = {};
      block.views_layout = 0;
    }
  }
}

const KvFailure* PackedKvCache::FailureOf(SequenceId id) const {
  const Sequence& seq = At(id);
  return seq.failure ? &*seq.failure : nullptr;
}

// Fails the sequences of chunks with a value that does not fit. One pass over all rows while all is
// well.
void PackedKvCache::FindUnfitValues(int64_t layer, const float* k, const float* v) {
  const auto index = static_cast<size_t>(layer);
  const std::array<int64_t, 2>& dims = shapes_[index].stream_dims;
  const int64_t num_rows = forward_.chunks.back().first_row + forward_.chunks.back().num_tokens;
  if (!forward_.has_failed_chunk && store_.codec(index, kKeys).AllFit(k, num_rows * dims[kKeys]) &&
      store_.codec(index, kValues).AllFit(v, num_rows * dims[kValues])) {
    return;
  }
  for (const Chunk& chunk : forward_.chunks) {
    if (chunk.seq->failure) continue;
    const auto find = [&](Side side, const float* rows) {
      return store_.FindUnfitValue(index, side, rows + chunk.first_row * dims[side],
                                   chunk.num_tokens, chunk.seq->num_tokens);
    };
    chunk.seq->failure = find(kKeys, k);
    if (!chunk.seq->failure) chunk.seq->failure = find(kValues, v);
    if (!chunk.seq->failure) continue;
    forward_.has_failed_chunk = true;
    forward_.is_planned = false;
  }
}

// Plans attention for the chunks that have not failed.
void PackedKvCache::PlanSteps() {
  forward_.is_planned = true;
  forward_.num_steps = 0;
  int64_t most_tokens = 1;  // Of chunks that are stored one by one.
  bool has_chunk = false;
  for (const Chunk& chunk : forward_.chunks) {
    if (chunk.seq->failure) continue;
    has_chunk = true;
    if (chunk.one_by_one) most_tokens = std::max(most_tokens, chunk.num_tokens);
  }
  if (!has_chunk) return;
  forward_.num_steps = static_cast<size_t>(most_tokens);
  if (forward_.steps.size() < forward_.num_steps) forward_.steps.resize(forward_.num_steps);
  for (int64_t token = 0; token < most_tokens; ++token) {
    PlanStep(token, forward_.steps[static_cast<size_t>(token)]);
  }
}

// token 0: all chunks, but of those that are stored one by one only the first row. Then row `token`
// of these, whose sequences count their earlier rows as stored meanwhile.
void PackedKvCache::PlanStep(int64_t token, AttentionStep& step) {
  step.parts.clear();
  page_tokens_.clear();
  attention_sequences_.clear();
  for (const Chunk& chunk : forward_.chunks) {
    if (chunk.seq->failure) continue;
    if (token > 0 && (!chunk.one_by_one || token >= chunk.num_tokens)) continue;
    const int64_t num_rows = chunk.one_by_one ? 1 : chunk.num_tokens;
    const int64_t row = chunk.first_row + token;
    step.parts.push_back({chunk.seq, num_rows, row, chunk.one_by_one, chunk.num_before + token});
    store_.AddPageTokens(chunk.num_before + token, page_tokens_);
  }
  // Spans of page_tokens_ once it no longer grows.
  size_t first_page = 0;
  for (const Chunk& part : step.parts) {
    const size_t num_pages = NumViews(part.num_before);
    attention_sequences_.push_back(
        {std::span(page_tokens_).subspan(first_page, num_pages), part.num_tokens, part.first_row});
    first_page += num_pages;
  }
  step.plans.resize(attention_shapes_.size());
  for (size_t i = 0; i < attention_shapes_.size(); ++i) {
    PlanAttention(attention_shapes_[i], attention_sequences_, config_.num_threads,
                  config_.attention, step.plans[i]);
  }
  step.latent_plans.resize(latent_shapes_.size());
  for (size_t i = 0; i < latent_shapes_.size(); ++i) {
    PlanLatentAttention(latent_shapes_[i], attention_sequences_, config_.num_threads,
                        step.latent_plans[i]);
  }
}

// Views that attention reads of a sequence with so many stored tokens.
size_t PackedKvCache::NumViews(int64_t num_tokens) const {
  const int64_t sink_tokens = std::min(num_tokens, config_.sink_tokens);
  return static_cast<size_t>((sink_tokens + kPageTokens - 1) / kPageTokens +
                             NumPages(config_, num_tokens));
}

void PackedKvCache::RebuildViews(Sequence& seq, size_t layer) const {
  BlockPages& block = seq.blocks[layer];
  block.views.clear();
  store_.AddViews(block, layer, block.views);
  const auto open_page = static_cast<size_t>(NumPages(config_, seq.num_tokens)) - 1;
  for (const Side side : kSides) {
    if (!block.open_rows_moved[side]) continue;
    KvPageView& view = block.views[block.views.size() - block.pages.size() + open_page];
    (side == kKeys ? view.k : view.v) = store_.View(block.pages.back()[side]);
  }
  block.views_layout = seq.layout;
  block.views_generation = store_.slots().generation();
}

// The first of all views of the block. The ones in use come first.
const KvPageView* PackedKvCache::CurrentViews(Sequence& seq, size_t layer) const {
  BlockPages& block = seq.blocks[layer];
  if (block.views_layout != seq.layout || block.views_generation != store_.slots().generation()) {
    RebuildViews(seq, layer);
  }
  return block.views.data();
}

// A copy of heads [count], rotated.
std::span<float> PackedKvCache::Rotated(const float* x, int64_t count, int64_t head_dim,
                                        AlignedVector<float>& memory) const {
  memory.assign(x, x + count);
  HadamardHeads(memory.data(), count, head_dim);
  return memory;
}

// The rows as they are stored and attended to: rotated, and of a latent block scaled. q and out may
// be null.
PackedKvCache::Rows PackedKvCache::Prepared(size_t layer, int64_t num_rows, const Rows& rows) {
  const BlockShape& shape = shapes_[layer];
  if (shape.is_latent) return PreparedLatents(layer, num_rows, rows);
  Rows prepared = rows;
  const int64_t kv_count = num_rows * shape.stream_dims[kKeys];
  if (config_.rotate_keys) {
    if (rows.q != nullptr) {
      prepared.q = Rotated(rows.q, num_rows * shape.q_dim, shape.head_dim, rotated_q_).data();
    }
    prepared.k = Rotated(rows.k, kv_count, shape.head_dim, rotated_k_).data();
  }
  if (config_.rotate_values) {
    prepared.v = Rotated(rows.v, kv_count, shape.head_dim, rotated_v_).data();
  }
  return prepared;
}

void PackedKvCache::AppendAndAttend(int64_t layer, const float* q, const float* k, const float* v,
                                    float* out) {
  PMKVQ_CHECK_MSG(device_ == nullptr, "pages on a device");
  PMKVQ_CHECK(forward_.is_open && layer >= 0 && layer < config_.geometry.num_layers());
  PMKVQ_CHECK_MSG(config_.geometry.block(layer).has_cache(), "a block without cache");
  if (forward_.chunks.empty()) return;
  const int64_t num_rows = forward_.chunks.back().first_row + forward_.chunks.back().num_tokens;
  const BlockShape& shape = shapes_[static_cast<size_t>(layer)];
  const Rows rows = Prepared(static_cast<size_t>(layer), num_rows, {q, k, v, out});
  FindUnfitValues(layer, rows.k, rows.v);
  for (size_t i = 0;; ++i) {
    if (!forward_.is_planned) PlanSteps();
    if (i >= forward_.num_steps) break;
    AttendAndStore(static_cast<size_t>(layer), rows, forward_.steps[i]);
  }
  for (const Chunk& chunk : forward_.chunks) {
    if (chunk.one_by_one) chunk.seq->num_tokens = chunk.num_before;
    forward_.has_failed_chunk |= chunk.seq->failure.has_value();
  }
  if (shape.is_latent) {
    RestoreLatents(static_cast<size_t>(layer), num_rows, out);
  } else if (config_.rotate_values) {
    HadamardHeads(out, num_rows * shape.out_dim, shape.head_dim);
  }
}

void PackedKvCache::AttendAndStore(size_t layer, const Rows& rows, const AttentionStep& step) {
  const BlockShape& shape = shapes_[layer];
  first_views_.clear();
  for (const Chunk& part : step.parts) {
    part.seq->num_tokens = part.num_before;
    first_views_.push_back(CurrentViews(*part.seq, layer));
  }
  if (shape.is_latent) {
    RunLatentAttention(step.latent_plans[shape.plan],
                       {first_views_, rows.q, rows.k, rows.v, rows.out}, attention_scratch_);
  } else {
    RunAttention(step.plans[shape.plan], {first_views_, rows.q, rows.k, rows.v, rows.out},
                 attention_scratch_);
  }
  for (const Chunk& part : step.parts) {
    StoreChunk(part, layer, rows.k + part.first_row * shape.stream_dims[kKeys],
               rows.v + part.first_row * shape.stream_dims[kValues]);
  }
}

void PackedKvCache::Append(int64_t layer, const float* k, const float* v) {
  PMKVQ_CHECK_MSG(device_ == nullptr, "pages on a device");
  PMKVQ_CHECK(forward_.is_open && layer >= 0 && layer < config_.geometry.num_layers());
  PMKVQ_CHECK_MSG(config_.geometry.block(layer).has_cache(), "a block without cache");
  if (forward_.chunks.empty()) return;
  const int64_t num_rows = forward_.chunks.back().first_row + forward_.chunks.back().num_tokens;
  const std::array<int64_t, 2>& dims = shapes_[static_cast<size_t>(layer)].stream_dims;
  const Rows rows = Prepared(static_cast<size_t>(layer), num_rows, {nullptr, k, v, nullptr});
  FindUnfitValues(layer, rows.k, rows.v);
  for (const Chunk& chunk : forward_.chunks) {
    if (!chunk.seq->failure)
      StoreChunk(chunk, static_cast<size_t>(layer), rows.k + chunk.first_row * dims[kKeys],
                 rows.v + chunk.first_row * dims[kValues]);
    forward_.has_failed_chunk |= chunk.seq->failure.has_value();
  }
}

void PackedKvCache::StoreChunk(const Chunk& chunk, size_t layer, const float* k, const float* v) {
  StoreRows(chunk, layer, kKeys, k);
  StoreRows(chunk, layer, kValues, v);
  BlockPages& block = chunk.seq->blocks[layer];
  if (block.open_rows_moved[kKeys] || block.open_rows_moved[kValues]) {
    block.open_rows_moved = {};
    block.views_layout = 0;
  }
  if (chunk.seq->failure) forward_.is_planned = false;
}

void PackedKvCache::StoreRows(const Chunk& chunk, size_t layer, Side side, const float* rows) {
  BlockPages& block = chunk.seq->blocks[layer];
  const PageCodec& codec = store_.codec(layer, side);
  const int64_t end = chunk.seq->num_tokens + chunk.num_tokens;
  for (int64_t position = chunk.seq->num_tokens; position < end;) {
    int64_t num_rows = 0;
    if (position < config_.sink_tokens) {
      const int64_t piece = position / kPageTokens;
      const int64_t capacity = store_.SinkPieceTokens(piece);
      num_rows = std::min(end, piece * kPageTokens + capacity) - position;
      codec.WriteRows(rows, num_rows, position % kPageTokens, capacity,
                      store_.SinkData(block, layer, piece, side));
    } else {
      const int64_t paged = position - config_.sink_tokens;
      const auto page = static_cast<size_t>(paged / kPageTokens);
      const int64_t first = paged % kPageTokens;
      num_rows = std::min(end - position, kPageTokens - first);
      const StoredPage& stored = block.pages[page][side];
      if (stored.bits == 16) {
        codec.WriteRows(rows, num_rows, first, kPageTokens, store_.Data(stored));
      } else {
        StoreClosingPage(*chunk.seq, layer, page, side, rows, num_rows, first);
      }
    }
    rows += num_rows * shapes_[layer].stream_dims[side];
    position += num_rows;
  }
}

// Fills a page that closes at a lower width within the chunk. Rows that it held before the chunk
// still lie in the slot of the last page, which is written later.
void PackedKvCache::StoreClosingPage(Sequence& seq, size_t layer, size_t page, Side side,
                                     const float* rows, int64_t num_rows, int64_t first) {
  const BlockPages& block = seq.blocks[layer];
  const PageCodec& codec = store_.codec(layer, side);
  PMKVQ_DCHECK(first + num_rows == kPageTokens);
  if (first > 0) {
    PMKVQ_DCHECK(block.open_rows_moved[side]);
    codec.Decode(store_.View(block.pages.back()[side]), kPageTokens, store_.values());
  }
  codec.GatherRows(rows, num_rows, first, kPageTokens, store_.values());
  const StoredPage& stored = block.pages[page][side];
  if (!codec.Encode(store_.values(), stored.bits, stored.axis, store_.Data(stored),
                    store_.Metadata(stored))) {
    store_.SetRangeFailure(seq, layer, page, side,
                           *codec.FindUnfitGroup(store_.values(), stored.axis));
  }
}

void PackedKvCache::EndForward() {
  PMKVQ_CHECK(forward_.is_open);
  if (device_ != nullptr) EndOnDevice();
  forward_.is_open = false;
  for (const Chunk& chunk : forward_.chunks) {
    Sequence& seq = *chunk.seq;
    if (seq.failure) continue;
    seq.num_tokens += chunk.num_tokens;
    seq.reserved_tokens = 0;
  }
}

int64_t PackedKvCache::NumTokens(SequenceId id) const { return At(id).num_tokens; }

KvSequenceStats PackedKvCache::SequenceStats(SequenceId id) const {
  const Sequence& seq = At(id);
  return StatsOf(seq, seq.num_tokens, config_.budget_bytes);
}

KvLayerStats PackedKvCache::LayerStats(SequenceId id, int64_t layer) const {
  PMKVQ_CHECK(layer >= 0 && layer < config_.geometry.num_layers());
  const auto i = static_cast<size_t>(layer);
  return StatsOf(At(id).blocks[i], config_.budget_bytes[i]);
}

KvStoreStats PackedKvCache::StoreStats() const {
  const size_t rotated = rotated_q_.capacity() + rotated_k_.capacity() + rotated_v_.capacity();
  const KvPoolStats pool = {
      config_.pool.bytes,
      store_.used_bytes(),
      store_.peak_used_bytes(),
      store_.narrowed_bytes(),
      water_level_.value(),
      store_.unread_bytes(),
      prefixes_ == nullptr ? 0 : prefixes_->num_nodes() * config_.chunk_tokens,
      prefix_hits_,
      prefix_hit_tokens_};
  return {store_.slots().arena_bytes(),
          store_.scratch_bytes() + attention_scratch_.num_bytes() + rotated * sizeof(float) +
              (device_ == nullptr ? 0 : device_->num_bytes()),
          pool};
}

std::vector<HalvingEvent> PackedKvCache::TakeHalvingEvents() {
  return std::exchange(halving_events_, {});
}

void PackedKvCache::ReadTokens(SequenceId id, int64_t layer, float* k_out, float* v_out) const {
  const Sequence& seq = At(id);
  PMKVQ_CHECK(!IsInForward(seq) && seq.reserved_tokens == 0);
  PMKVQ_CHECK(layer >= 0 && layer < config_.geometry.num_layers());
  store_.ReadTokens(seq, static_cast<size_t>(layer), seq.num_tokens, k_out, v_out);
}

std::vector<PageWidths> PackedKvCache::WidthsOfPages(SequenceId id, int64_t layer) const {
  std::vector<PageWidths> widths;
  for (const PagePair& pair : At(id).blocks[static_cast<size_t>(layer)].pages) {
    widths.push_back(WidthsOf(pair));
  }
  return widths;
}

}  // namespace pmkvq
