#include "pmkvq/kv/simulated/simulated_cache.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"
#include "pmkvq/base/float16.h"
#include "pmkvq/kernels/kv_quant/kv_quant_common.h"

namespace pmkvq {
namespace {

// Of a value in attention's copy: dense attention reads floats.
size_t AttendedBytes(const MethodNeeds& needs, DType float_type) {
  return needs.dense_attention() ? sizeof(float) : SizeOf(float_type);
}

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

}  // namespace

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

std::vector<int64_t> BudgetsFor(const CacheMethod& method, int64_t num_layers, int64_t num_tokens) {
  if (const std::optional<int64_t> bytes = method.SequenceBytes(num_tokens)) {
    return std::vector<int64_t>(static_cast<size_t>(num_layers),
                                (*bytes + num_layers - 1) / num_layers);
  }
  std::vector<int64_t> budgets;
  for (int64_t layer = 0; layer < num_layers; ++layer) {
    budgets.push_back(MostBlockBytes(method, layer, num_tokens));
  }
  return budgets;
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
  PMKVQ_CHECK_MSG(!needs_.dense_attention() || !needs_.keys_before_rope,
                  "a method needs one of them");
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

int64_t SimulatedKvCache::budget_bytes() const {
  return std::accumulate(config_.budget_bytes.begin(), config_.budget_bytes.end(), int64_t{0});
}

bool SimulatedKvCache::Fits(int64_t num_tokens) {
  if (const std::optional<int64_t> bytes = method_->SequenceBytes(num_tokens)) {
    return *bytes <= budget_bytes();
  }
  for (size_t layer = 0; layer < config_.budget_bytes.size(); ++layer) {
    if (MostBytes(layer, num_tokens) > config_.budget_bytes[layer]) return false;
  }
  return true;
}

ReserveResult SimulatedKvCache::Reserve(SequenceId id, int64_t num_tokens) {
  Sequence& seq = At(id);
  PMKVQ_CHECK(!IsInForward(seq) && num_tokens >= 1);
  if (seq.failure) return ReserveResult::kFailed;
  if (!Fits(seq.num_tokens + num_tokens)) return ReserveResult::kBudgetExhausted;
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
    forward_.chunks.push_back({&seq, part.num_tokens, row, part.ends_prompt});
    seq.bytes_before_rules = 0;
    seq.logits = {};
    row += part.num_tokens;
  }
  views_.resize(std::max(views_.size(), forward_.chunks.size()));
  page_tokens_.resize(views_.size());
  forward_.is_open = true;
}

void SimulatedKvCache::OfferExtras(int64_t, const KvExtras& extras) { extras_ = extras; }

void SimulatedKvCache::OfferLogits(SequenceId id, std::span<const float> logits) {
  PMKVQ_CHECK(forward_.is_open && forward_.Holds(At(id)));
  At(id).logits = logits;
}

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
  PMKVQ_CHECK(!needs_.attention_input || extras_.attention_input != nullptr);
  if (forward_.chunks.empty()) return;
  for (const Chunk& chunk : forward_.chunks) {
    if (!chunk.seq->failure) CheckRows(chunk, layer, RowsOf(chunk, q, k, v, out));
  }
  const bool is_dense = needs_.dense_attention();
  if (!is_dense) AttendPaged(static_cast<size_t>(layer), q, k, v, out);
  for (const Chunk& chunk : forward_.chunks) {
    const Rows rows = RowsOf(chunk, q, k, v, out);
    if (is_dense && !chunk.seq->failure) {
      SimulatedBlock& block = chunk.seq->blocks[static_cast<size_t>(layer)];
      CopyForAttention(block);
      AttendDense(chunk, block, rows);
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
  if (needs_.attention_input) {
    CheckFinite(chunk, layer, "attention input",
                extras_.attention_input + chunk.first_row * extras_.input_width,
                extras_.input_width);
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

void SimulatedKvCache::StoreRows(const Chunk& chunk, int64_t layer, const Rows& rows) {
  const UniformKvGeometry& geometry = config_.geometry;
  SimulatedBlock& block = chunk.seq->blocks[static_cast<size_t>(layer)];
  const int64_t first = block.num_tokens();
  const float* keys = needs_.keys_before_rope
                          ? extras_.keys_before_rope + chunk.first_row * geometry.kv_dim()
                          : rows.k;
  block.Resize(first + chunk.num_tokens, AttendedBytes(needs_, config_.float_type));
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
  if (needs_.attention_input) {
    tokens.attention_input = extras_.attention_input + chunk.first_row * extras_.input_width;
    tokens.input_width = extras_.input_width;
  }
  tokens.ends_prompt = chunk.ends_prompt;
  if (layer > 0) tokens.below = chunk.seq->states[static_cast<size_t>(layer - 1)].get();
  MethodState* const state = chunk.seq->states[static_cast<size_t>(layer)].get();
  if (needs_.own_bytes) {
    chunk.seq->bytes_before_rules +=
        std::min(method_->BytesNow(layer, block, state),
                 MostBytes(static_cast<size_t>(layer), block.num_tokens()));
  }
  try {
    method_->OnAppend(layer, tokens, block, state);
  } catch (const UnfitValues& error) {
    chunk.seq->failure =
        KvFailure{KvWhere(layer, first, first + chunk.num_tokens - 1), error.message()};
    return;
  }
  PMKVQ_CHECK_MSG(
      needs_.token_weights || block.NumKept() == block.num_kv_heads() * block.num_tokens(),
      "a method evicts without token_weights");
  if (!needs_.dense_attention()) CopyForAttention(block);
}

void SimulatedKvCache::CopyForAttention(SimulatedBlock& block) {
  const int64_t dim = block.head_dim();
  if (needs_.dense_attention()) {  // Keys as [D, kPageTokens] for products of few rows.
    for (size_t page = 0; page < block.changed_keys_.size(); ++page) {
      SimulatedBlock::Changes& changes = block.changed_keys_[page];
      const int64_t begin = static_cast<int64_t>(page) * kPageTokens;
      const int64_t last = std::min(changes.last, block.num_tokens() - begin);
      for (int64_t head = 0; head < block.num_kv_heads(); ++head) {
        auto* const to =
            reinterpret_cast<float*>(block.attended_keys_[page].data()) + head * kPageTokens * dim;
        for (int64_t t = changes.first; t < last; ++t) {
          const float* const row = block.Row(std::as_const(block.keys_), begin + t, head);
          for (int64_t i = 0; i < dim; ++i) to[i * kPageTokens + t] = row[i];
        }
      }
      changes = {};
    }
    return;
  }
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
    if (chunk.seq->failure) continue;
    CountPeak(chunk);
    if (needs_.steps) TakeStep(chunk);
    chunk.seq->reserved_tokens = 0;
    chunk.seq->logits = {};
  }
}

void SimulatedKvCache::CountPeak(const Chunk& chunk) {
  Sequence& seq = *chunk.seq;
  if (needs_.own_bytes) {
    seq.num_tokens += chunk.num_tokens;
    int64_t bytes = 0;
    for (int64_t layer = 0; layer < config_.geometry.num_layers; ++layer) {
      bytes += std::min(BytesOf(seq, layer), MostBytes(static_cast<size_t>(layer), seq.num_tokens));
    }
    int64_t held = std::max(seq.bytes_before_rules, bytes);
    if (const std::optional<int64_t> most = method_->SequenceBytes(seq.num_tokens)) {
      held = std::min(held, *most);
    }
    seq.peak_bytes = std::max(seq.peak_bytes, held);
    return;
  }
  // Of a chunk, the method holds each token in turn.
  for (int64_t t = 0; t < chunk.num_tokens; ++t) {
    ++seq.num_tokens;
    seq.peak_bytes = std::max(seq.peak_bytes, BytesOf(seq));
  }
}

void SimulatedKvCache::TakeStep(const Chunk& chunk) {
  Sequence& seq = *chunk.seq;
  StepInfo step;
  step.first = seq.num_tokens - chunk.num_tokens;
  step.count = chunk.num_tokens;
  step.ends_prompt = chunk.ends_prompt;
  step.logits = seq.logits;
  try {
    method_->OnStep(step, seq.blocks, seq.states);
  } catch (const UnfitValues& error) {
    seq.failure = KvFailure{KvWhere(0, step.first, seq.num_tokens - 1), error.message()};
    return;
  }
  if (needs_.dense_attention()) return;
  for (SimulatedBlock& block : seq.blocks) CopyForAttention(block);
}

void SimulatedKvCache::Truncate(SequenceId id, int64_t num_tokens) {
  Sequence& seq = At(id);
  PMKVQ_CHECK(!IsInForward(seq));
  PMKVQ_CHECK(num_tokens >= 0 && num_tokens <= seq.num_tokens);
  seq.reserved_tokens = 0;
  for (SimulatedBlock& block : seq.blocks) {
    block.Resize(num_tokens, AttendedBytes(needs_, config_.float_type));
  }
  for (const auto& state : seq.states) {
    if (state != nullptr) state->Truncate(num_tokens);
  }
  seq.num_tokens = num_tokens;
  seq.peak_bytes = std::max(seq.peak_bytes, BytesOf(seq));
}

int64_t SimulatedKvCache::BytesOf(const Sequence& seq, int64_t layer) const {
  if (!needs_.own_bytes) return method_->BlockBytes(layer, seq.num_tokens);
  const auto index = static_cast<size_t>(layer);
  return method_->BytesNow(layer, seq.blocks[index], seq.states[index].get());
}

int64_t SimulatedKvCache::BytesOf(const Sequence& seq) const {
  int64_t bytes = 0;
  for (int64_t layer = 0; layer < config_.geometry.num_layers; ++layer) {
    bytes += BytesOf(seq, layer);
  }
  return bytes;
}

double SimulatedKvCache::KeptShare(const SimulatedBlock& block) {
  const int64_t count = block.num_kv_heads() * block.num_tokens();
  return count == 0 ? 1.0 : static_cast<double>(block.NumKept()) / static_cast<double>(count);
}

KvSequenceStats SimulatedKvCache::SequenceStats(SequenceId id) const {
  const Sequence& seq = At(id);
  KvSequenceStats stats;
  stats.num_tokens = seq.num_tokens;
  stats.bytes = BytesOf(seq);
  stats.peak_bytes = seq.peak_bytes;
  stats.budget_bytes = budget_bytes();
  // Blocks have equally many tokens.
  stats.kept_share = 0;
  for (const SimulatedBlock& block : seq.blocks) stats.kept_share += KeptShare(block);
  stats.kept_share /= static_cast<double>(seq.blocks.size());
  return stats;
}

KvLayerStats SimulatedKvCache::LayerStats(SequenceId id, int64_t layer) const {
  PMKVQ_CHECK(layer >= 0 && layer < config_.geometry.num_layers);
  KvLayerStats stats;
  stats.bytes = BytesOf(At(id), layer);
  stats.kept_share = KeptShare(Block(id, layer));
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
