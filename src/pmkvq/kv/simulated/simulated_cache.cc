#include "pmkvq/kv/simulated/simulated_cache.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"
#include "pmkvq/base/float16.h"
#include "pmkvq/kernels/gemm/gemm.h"
#include "pmkvq/kernels/kv_quant/kv_quant_common.h"

namespace pmkvq {
namespace {

float RoundTo(DType type, float x) {
  switch (type) {
    case DType::kF16:
      return ToFloat(ToF16(x));
    case DType::kBF16:
      return ToFloat(ToBF16(x));
    default:
      return x;
  }
}

float LargestOf(DType type) {
  return internal::VisitFloatType(type, []<class T>(T) { return internal::MaxFinite<T>(); });
}

// Index of the first value that the type cannot hold, or `count`.
int64_t FirstUnfit(DType type, const float* x, int64_t count) {
  const float* end = x + count;
  return std::find_if(x, end, [&](float value) { return !std::isfinite(RoundTo(type, value)); }) -
         x;
}

// scores = weights exp(score - max) / sum.
void Softmax(float* scores, int64_t count) {
  const float largest = *std::max_element(scores, scores + count);
  double total = 0;
  for (int64_t i = 0; i < count; ++i) {
    scores[i] = std::exp(scores[i] - largest);
    total += double{scores[i]};
  }
  const auto factor = static_cast<float>(1.0 / total);
  for (int64_t i = 0; i < count; ++i) scores[i] *= factor;
}

}  // namespace

void SimulatedBlock::Resize(int64_t num_tokens, size_t float_bytes) {
  const auto num_pages = static_cast<size_t>((num_tokens + kPageTokens - 1) / kPageTokens);
  const auto page_values = static_cast<size_t>(num_kv_heads_ * kPageTokens * head_dim_);
  const auto resize = [&](auto& pages, size_t page_size) {
    pages.resize(num_pages);
    for (auto page = pages.rbegin(); page != pages.rend() && page->empty(); ++page) {
      page->resize(page_size);
    }
  };
  resize(keys_, page_values);
  resize(values_, page_values);
  resize(attended_keys_, page_values * float_bytes);
  resize(attended_values_, page_values * float_bytes);
  changed_keys_.resize(num_pages);
  changed_values_.resize(num_pages);
  num_tokens_ = num_tokens;
}

int64_t MostBlockBytes(const CacheMethod& method, int64_t layer, int64_t num_tokens) {
  const ByteGrowth growth = method.Growth(layer);
  PMKVQ_DCHECK(growth.from >= 1 && growth.period >= 1);
  int64_t most = 0;
  const auto look = [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) most = std::max(most, method.BlockBytes(layer, n));
  };
  // From each length >= from, steps of a period lead up into the last period without ever falling.
  const int64_t early_end = std::min(growth.from, num_tokens + 1);
  look(1, early_end);
  look(std::max(early_end, num_tokens - growth.period + 1), num_tokens + 1);
  return most;
}

void ValidateSimulatedConfig(const SimulatedConfig& config, const CacheMethod& method) {
  const UniformKvGeometry& geometry = config.geometry;
  PMKVQ_CHECK(config.budget_bytes.size() == static_cast<size_t>(geometry.num_layers));
  if (geometry.head_dim < 8 || geometry.head_dim > 256 || geometry.head_dim % 8 != 0 ||
      geometry.head_dim % geometry.group() != 0) {
    throw InvalidInput("model", fmt::format("head_dim: found {}, expected a multiple of 8 up to "
                                            "128, or 256",
                                            geometry.head_dim));
  }
  for (int64_t layer = 0; layer < geometry.num_layers; ++layer) {
    const int64_t needed = method.BlockBytes(layer, 1);
    const int64_t found = config.budget_bytes[static_cast<size_t>(layer)];
    if (found < needed) {
      throw InvalidInput("--kv-budget",
                         fmt::format("found {} bytes for block {}, expected at least {}, what one "
                                     "token takes",
                                     found, layer, needed));
    }
  }
}

SimulatedKvCache::SimulatedKvCache(const SimulatedConfig& config,
                                   std::shared_ptr<const CacheMethod> method)
    : config_(config),
      method_(std::move(method)),
      needs_(method_->needs()),
      attention_shape_(AttentionShapeOf(BlockOf(config.geometry), config.float_type)),
      sequences_(static_cast<size_t>(config.max_sequences)),
      most_bytes_(static_cast<size_t>(config.geometry.num_layers), {0}),
      codec_(BlockOf(config.geometry).k(), config.float_type) {
  ValidateSimulatedConfig(config_, *method_);
  PMKVQ_CHECK_MSG(!needs_.attention || !needs_.keys_before_rope, "a method needs one of them");
  PMKVQ_CHECK_MSG(!needs_.keys_before_rope || config_.rope != nullptr, "no RoPE table");
}

const SimulatedKvCache::Sequence& SimulatedKvCache::At(SequenceId id) const {
  PMKVQ_CHECK(id >= 0 && static_cast<size_t>(id) < sequences_.size());
  const Sequence& seq = sequences_[static_cast<size_t>(id)];
  PMKVQ_CHECK_MSG(seq.is_open, "sequence is not open");
  return seq;
}

SimulatedKvCache::Sequence& SimulatedKvCache::At(SequenceId id) {
  return const_cast<Sequence&>(std::as_const(*this).At(id));
}

std::optional<SequenceId> SimulatedKvCache::Open() {
  const auto free = std::find_if(sequences_.begin(), sequences_.end(),
                                 [](const Sequence& seq) { return !seq.is_open; });
  if (free == sequences_.end()) return std::nullopt;
  free->is_open = true;
  for (int64_t layer = 0; layer < config_.geometry.num_layers; ++layer) {
    free->blocks.emplace_back(config_.geometry);
    free->states.push_back(method_->NewState(layer));
  }
  return static_cast<SequenceId>(free - sequences_.begin());
}

void SimulatedKvCache::Close(SequenceId seq) {
  PMKVQ_CHECK(!IsInForward(At(seq)));
  At(seq) = Sequence();
}

int64_t SimulatedKvCache::MostBytes(size_t layer, int64_t num_tokens) {
  std::vector<int64_t>& most = most_bytes_[layer];
  while (static_cast<int64_t>(most.size()) <= num_tokens) {
    const auto n = static_cast<int64_t>(most.size());
    most.push_back(std::max(most.back(), method_->BlockBytes(static_cast<int64_t>(layer), n)));
  }
  return most[static_cast<size_t>(num_tokens)];
}

ReserveResult SimulatedKvCache::Reserve(SequenceId id, int64_t num_tokens) {
  Sequence& seq = At(id);
  PMKVQ_CHECK(!IsInForward(seq) && num_tokens >= 1);
  if (seq.failure) return ReserveResult::kFailed;
  for (size_t layer = 0; layer < seq.blocks.size(); ++layer) {
    if (MostBytes(layer, seq.num_tokens + num_tokens) > config_.budget_bytes[layer]) {
      return ReserveResult::kBudgetExhausted;
    }
  }
  seq.reserved_tokens = num_tokens;
  return ReserveResult::kReserved;
}

void SimulatedKvCache::BeginForward(const Batch& batch) {
  PMKVQ_CHECK_MSG(!forward_.is_open, "EndForward is missing");
  forward_.chunks.clear();
  int64_t row = 0;
  for (const BatchChunk& part : batch) {
    Sequence& seq = At(part.seq);
    PMKVQ_CHECK_MSG(!seq.failure && part.num_tokens >= 1 && part.num_tokens <= seq.reserved_tokens,
                    "tokens were not reserved");
    PMKVQ_CHECK(!IsInForward(seq));
    forward_.chunks.push_back({&seq, part.num_tokens, row});
    row += part.num_tokens;
  }
  views_.resize(std::max(views_.size(), forward_.chunks.size()));
  page_tokens_.resize(views_.size());
  forward_.is_open = true;
}

void SimulatedKvCache::OfferExtras(int64_t, const KvExtras& extras) { extras_ = extras; }

SimulatedKvCache::Rows SimulatedKvCache::RowsOf(const Chunk& chunk, const float* q, const float* k,
                                                const float* v, float* out) const {
  const int64_t q_begin = chunk.first_row * config_.geometry.num_heads * config_.geometry.head_dim;
  const int64_t kv_begin = chunk.first_row * config_.geometry.kv_dim();
  return {q + q_begin, k + kv_begin, v + kv_begin, out + q_begin};
}

void SimulatedKvCache::AppendAndAttend(int64_t layer, const float* q, const float* k,
                                       const float* v, float* out) {
  PMKVQ_CHECK(forward_.is_open && layer >= 0 && layer < config_.geometry.num_layers);
  PMKVQ_CHECK(!needs_.keys_before_rope || extras_.keys_before_rope != nullptr);
  PMKVQ_CHECK(!needs_.block_input || extras_.block_input != nullptr);
  if (forward_.chunks.empty()) return;
  for (const Chunk& chunk : forward_.chunks) {
    if (!chunk.seq->failure) CheckRows(chunk, layer, RowsOf(chunk, q, k, v, out));
  }
  if (!needs_.attention) AttendPaged(static_cast<size_t>(layer), q, k, v, out);
  for (const Chunk& chunk : forward_.chunks) {
    const Rows rows = RowsOf(chunk, q, k, v, out);
    if (needs_.attention && !chunk.seq->failure) {
      AttendDense(chunk, chunk.seq->blocks[static_cast<size_t>(layer)], rows);
      CheckAttention(chunk, layer);
    }
    if (!chunk.seq->failure) StoreRows(chunk, layer, rows);
  }
  extras_ = {};
}

// Methods compute with all of these.
void SimulatedKvCache::CheckRows(const Chunk& chunk, int64_t layer, const Rows& rows) const {
  const UniformKvGeometry& geometry = config_.geometry;
  CheckFits(chunk, layer, "key", rows.k);
  CheckFits(chunk, layer, "value", rows.v);
  CheckFinite(chunk, layer, "query", rows.q, geometry.num_heads * geometry.head_dim);
  if (needs_.keys_before_rope) {
    CheckFits(chunk, layer, "key", extras_.keys_before_rope + chunk.first_row * geometry.kv_dim());
  }
  if (needs_.block_input) {
    CheckFinite(chunk, layer, "block input",
                extras_.block_input + chunk.first_row * extras_.input_width, extras_.input_width);
  }
}

void SimulatedKvCache::CheckAttention(const Chunk& chunk, int64_t layer) const {
  for (const double sum : attention_sums_) {
    if (std::isfinite(sum)) continue;
    return Fail(chunk, layer, chunk.num_tokens - 1,
                UnfitValueMessage("attention weight", static_cast<float>(sum), DType::kF32));
  }
}

const KvFailure* SimulatedKvCache::FailureOf(SequenceId id) const {
  const Sequence& seq = At(id);
  return seq.failure ? &*seq.failure : nullptr;
}

void SimulatedKvCache::Fail(const Chunk& chunk, int64_t layer, int64_t row,
                            const std::string& message) const {
  if (chunk.seq->failure) return;
  const int64_t position = chunk.seq->num_tokens + row;
  chunk.seq->failure = KvFailure{KvWhere(layer, position, position), message};
}

void SimulatedKvCache::CheckFinite(const Chunk& chunk, int64_t layer, const char* name,
                                   const float* values, int64_t width) const {
  const int64_t count = chunk.num_tokens * width;
  const int64_t unfit = FirstUnfit(DType::kF32, values, count);
  if (unfit == count) return;
  Fail(chunk, layer, unfit / width, UnfitValueMessage(name, values[unfit], DType::kF32));
}

void SimulatedKvCache::CheckFits(const Chunk& chunk, int64_t layer, const char* name,
                                 const float* values) const {
  const int64_t width = config_.geometry.kv_dim();
  const int64_t count = chunk.num_tokens * width;
  const int64_t unfit = FirstUnfit(config_.float_type, values, count);
  if (unfit == count) return;
  Fail(chunk, layer, unfit / width, UnfitValueMessage(name, values[unfit], config_.float_type));
}

void SimulatedKvCache::AttendPaged(size_t layer, const float* q, const float* k, const float* v,
                                   float* out) {
  attention_sequences_.clear();
  first_views_.clear();
  for (size_t i = 0; i < forward_.chunks.size(); ++i) {
    const Chunk& chunk = forward_.chunks[i];
    if (chunk.seq->failure) continue;
    const SimulatedBlock& block = chunk.seq->blocks[layer];
    std::vector<KvPageView>& views = views_[i];
    std::vector<PageTokens>& tokens = page_tokens_[i];
    views.clear();
    tokens.clear();
    for (size_t page = 0; page < block.values_.size(); ++page) {
      const int64_t begin = static_cast<int64_t>(page) * kPageTokens;
      KvPageView view;
      view.k.data = block.attended_keys_[page].data();
      view.v.data = block.attended_values_[page].data();
      views.push_back(view);
      tokens.push_back({static_cast<int32_t>(std::min(block.num_tokens() - begin, kPageTokens)),
                        static_cast<int32_t>(kPageTokens)});
    }
    attention_sequences_.push_back({tokens, chunk.num_tokens, chunk.first_row});
    first_views_.push_back(views.data());
  }
  if (attention_sequences_.empty()) return;
  PlanAttention(attention_shape_, attention_sequences_, config_.num_threads,
                AttentionMode::kAccurate, attention_plan_);
  RunAttention(attention_plan_, {first_views_, q, k, v, out}, attention_scratch_);
}

// Attention that keeps the weights' sums; reads the method's floats. On one thread.
void SimulatedKvCache::AttendDense(const Chunk& chunk, const SimulatedBlock& block,
                                   const Rows& rows) {
  const auto num_tokens = static_cast<size_t>(block.num_tokens() + chunk.num_tokens);
  attention_sums_.assign(static_cast<size_t>(config_.geometry.num_kv_heads) * num_tokens, 0.0);
  for (int64_t kv_head = 0; kv_head < config_.geometry.num_kv_heads; ++kv_head) {
    AttendDenseHead(chunk, block, rows, kv_head);
  }
}

void SimulatedKvCache::AttendDenseHead(const Chunk& chunk, const SimulatedBlock& block,
                                       const Rows& rows, int64_t kv_head) {
  const UniformKvGeometry& geometry = config_.geometry;
  const int64_t dim = geometry.head_dim;
  const int64_t group = geometry.num_heads / geometry.num_kv_heads;
  const int64_t num_rows = chunk.num_tokens * group;
  const int64_t stored = block.num_tokens();
  const int64_t num_tokens = stored + chunk.num_tokens;
  // Rows of one KV head: the heads of the group lie side by side in a token.
  const auto head_rows = [&](const float* from, int64_t row_size, int64_t run, float* to) {
    for (int64_t t = 0; t < chunk.num_tokens; ++t) {
      std::copy_n(from + t * row_size + kv_head * run, run, to + t * run);
    }
  };
  // Calls function(rows of K or V, how many, index of the first) for stored pages, then the chunk.
  const auto for_each_run = [&](const SimulatedBlock::Pages& pages, const float* own,
                                auto function) {
    for (int64_t token = 0; token < stored; token += kPageTokens) {
      function(block.Row(pages, token, kv_head), std::min(kPageTokens, stored - token), token);
    }
    head_rows(own, geometry.kv_dim(), dim, chunk_rows_.data());
    function(chunk_rows_.data(), chunk.num_tokens, stored);
  };
  queries_.resize(static_cast<size_t>(num_rows * dim));
  head_out_.resize(static_cast<size_t>(num_rows * dim));
  chunk_rows_.resize(static_cast<size_t>(chunk.num_tokens * dim));
  scores_.resize(static_cast<size_t>(num_rows * num_tokens));

  head_rows(rows.q, geometry.num_heads * dim, group * dim, queries_.data());
  for_each_run(block.keys_, rows.k, [&](const float* keys, int64_t count, int64_t first) {
    BlasGemm(false, true, num_rows, count, dim, attention_shape_.scale, queries_.data(), dim, keys,
             dim, 0.0f, scores_.data() + first, num_tokens);
  });
  WeightRows(num_rows, stored, num_tokens, attention_sums_.data() + kv_head * num_tokens);
  for_each_run(block.values_, rows.v, [&](const float* values, int64_t count, int64_t first) {
    BlasGemm(false, false, num_rows, dim, count, 1.0f, scores_.data() + first, num_tokens, values,
             dim, first == 0 ? 0.0f : 1.0f, head_out_.data(), dim);
  });
  for (int64_t t = 0; t < chunk.num_tokens; ++t) {
    std::copy_n(head_out_.data() + t * group * dim, group * dim,
                rows.out + (t * geometry.num_heads + kv_head * group) * dim);
  }
}

// Scores to weights, causal in the chunk, and their sums over rows for each token.
void SimulatedKvCache::WeightRows(int64_t num_rows, int64_t stored, int64_t num_tokens,
                                  double* sums) {
  const int64_t group = config_.geometry.num_heads / config_.geometry.num_kv_heads;
  for (int64_t row = 0; row < num_rows; ++row) {
    float* scores = scores_.data() + row * num_tokens;
    const int64_t visible = stored + row / group + 1;
    Softmax(scores, visible);
    std::fill(scores + visible, scores + num_tokens, 0.0f);
    for (int64_t m = 0; m < visible; ++m) sums[m] += double{scores[m]};
  }
}

void SimulatedKvCache::StoreRows(const Chunk& chunk, int64_t layer, const Rows& rows) {
  const UniformKvGeometry& geometry = config_.geometry;
  SimulatedBlock& block = chunk.seq->blocks[static_cast<size_t>(layer)];
  const int64_t first = block.num_tokens();
  const float* keys = needs_.keys_before_rope
                          ? extras_.keys_before_rope + chunk.first_row * geometry.kv_dim()
                          : rows.k;
  block.Resize(first + chunk.num_tokens, SizeOf(config_.float_type));
  for (int64_t t = 0; t < chunk.num_tokens; ++t) {
    for (int64_t head = 0; head < geometry.num_kv_heads; ++head) {
      const int64_t begin = t * geometry.kv_dim() + head * geometry.head_dim;
      float* key = block.Key(first + t, head);
      float* value = block.Value(first + t, head);
      for (int64_t i = 0; i < geometry.head_dim; ++i) {
        key[i] = RoundTo(config_.float_type, keys[begin + i]);
        value[i] = RoundTo(config_.float_type, rows.v[begin + i]);
      }
    }
  }
  AppendedTokens tokens{first, chunk.num_tokens, rows.q};
  if (needs_.attention) tokens.attention_sums = attention_sums_.data();
  if (needs_.block_input) {
    tokens.block_input = extras_.block_input + chunk.first_row * extras_.input_width;
    tokens.input_width = extras_.input_width;
  }
  try {
    method_->OnAppend(layer, tokens, block, chunk.seq->states[static_cast<size_t>(layer)].get());
  } catch (const UnfitValues& error) {
    chunk.seq->failure =
        KvFailure{KvWhere(layer, first, first + chunk.num_tokens - 1), error.message()};
    return;
  }
  if (!needs_.attention) CopyForAttention(block);
}

void SimulatedKvCache::CopyForAttention(SimulatedBlock& block) {
  const int64_t dim = block.head_dim();
  const size_t float_bytes = SizeOf(config_.float_type);
  const float largest = LargestOf(config_.float_type);
  const auto copy = [&](SimulatedBlock::Pages& pages, SimulatedBlock::AttendedPages& attended,
                        std::vector<SimulatedBlock::Changes>& changes, bool rotate) {
    for (size_t page = 0; page < changes.size(); ++page) {
      const int64_t first = static_cast<int64_t>(page) * kPageTokens + changes[page].first;
      const int64_t count =
          std::min(changes[page].last - changes[page].first, block.num_tokens() - first);
      changes[page] = {};
      if (count <= 0) continue;
      for (int64_t head = 0; head < block.num_kv_heads(); ++head) {
        const float* rows = block.Row(pages, first, head);
        if (rotate) {
          rotated_.assign(rows, rows + count * dim);
          RotateKeys(first, count, rotated_);
          rows = rotated_.data();
        }
        read_.assign(rows, rows + count * dim);
        // The value fitted the type, but the value of its code may exceed it by a part of a step.
        for (float& value : read_) value = std::clamp(value, -largest, largest);
        codec_.WriteValues(read_.data(), count * dim,
                           attended[page].data() + block.Offset(first, head) * float_bytes);
      }
    }
  };
  copy(block.keys_, block.attended_keys_, block.changed_keys_, needs_.keys_before_rope);
  copy(block.values_, block.attended_values_, block.changed_values_, false);
}

// Keys of one head, of tokens first .. first + count - 1.
void SimulatedKvCache::RotateKeys(int64_t first, int64_t count, std::vector<float>& keys) const {
  std::vector<int64_t> positions(static_cast<size_t>(count));
  std::iota(positions.begin(), positions.end(), first);
  ApplyRope(*config_.rope, positions.data(), count, 1, nullptr, keys.data(), 1);
}

void SimulatedKvCache::EndForward() {
  PMKVQ_CHECK(forward_.is_open);
  forward_.is_open = false;
  for (const Chunk& chunk : forward_.chunks) {
    Sequence& seq = *chunk.seq;
    if (seq.failure) continue;
    // Of a chunk, the method holds each token in turn.
    for (int64_t t = 0; t < chunk.num_tokens; ++t) {
      ++seq.num_tokens;
      seq.peak_bytes = std::max(seq.peak_bytes, BytesOf(seq));
    }
    seq.reserved_tokens = 0;
  }
}

void SimulatedKvCache::Truncate(SequenceId id, int64_t num_tokens) {
  Sequence& seq = At(id);
  PMKVQ_CHECK(!IsInForward(seq));
  PMKVQ_CHECK(num_tokens >= 0 && num_tokens <= seq.num_tokens);
  seq.reserved_tokens = 0;
  for (SimulatedBlock& block : seq.blocks) {
    block.Resize(num_tokens, SizeOf(config_.float_type));
  }
  for (const auto& state : seq.states) {
    if (state != nullptr) state->Truncate(num_tokens);
  }
  seq.num_tokens = num_tokens;
  seq.peak_bytes = std::max(seq.peak_bytes, BytesOf(seq));
}

int64_t SimulatedKvCache::BytesOf(const Sequence& seq) const {
  int64_t bytes = 0;
  for (int64_t layer = 0; layer < config_.geometry.num_layers; ++layer) {
    bytes += method_->BlockBytes(layer, seq.num_tokens);
  }
  return bytes;
}

KvSequenceStats SimulatedKvCache::SequenceStats(SequenceId id) const {
  const Sequence& seq = At(id);
  KvSequenceStats stats;
  stats.num_tokens = seq.num_tokens;
  stats.bytes = BytesOf(seq);
  stats.peak_bytes = seq.peak_bytes;
  stats.budget_bytes =
      std::accumulate(config_.budget_bytes.begin(), config_.budget_bytes.end(), int64_t{0});
  return stats;
}

KvLayerStats SimulatedKvCache::LayerStats(SequenceId id, int64_t layer) const {
  PMKVQ_CHECK(layer >= 0 && layer < config_.geometry.num_layers);
  KvLayerStats stats;
  stats.bytes = method_->BlockBytes(layer, At(id).num_tokens);
  stats.budget_bytes = config_.budget_bytes[static_cast<size_t>(layer)];
  return stats;
}

KvStoreStats SimulatedKvCache::StoreStats() const {
  size_t bytes = 0;
  for (const Sequence& seq : sequences_) {
    for (const SimulatedBlock& block : seq.blocks) {
      for (const auto* pages : {&block.keys_, &block.values_}) {
        for (const auto& page : *pages) bytes += page.capacity() * sizeof(float);
      }
      for (const auto* pages : {&block.attended_keys_, &block.attended_values_}) {
        for (const auto& page : *pages) bytes += page.capacity();
      }
    }
  }
  size_t scratch = attention_scratch_.num_bytes() + attention_sums_.capacity() * sizeof(double);
  for (const auto* floats : {&queries_, &scores_, &chunk_rows_, &head_out_, &rotated_, &read_}) {
    scratch += floats->capacity() * sizeof(float);
  }
  return {bytes, scratch};
}

const SimulatedBlock& SimulatedKvCache::Block(SequenceId seq, int64_t layer) const {
  PMKVQ_CHECK(layer >= 0 && layer < config_.geometry.num_layers);
  return At(seq).blocks[static_cast<size_t>(layer)];
}

}  // namespace pmkvq
