#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>

#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"
#include "pmkvq/base/turns.h"
#include "pmkvq/kernels/act/act.h"
#include "pmkvq/kernels/norm/norm.h"
#include "pmkvq/model/detail.h"
#include "pmkvq/model/model_impl.h"

namespace pmkvq {
namespace {

using model_detail::AddTo;
using model_detail::DataOrNull;
using model_detail::GrowTo;

// Its rows are computed as those of chunks of one token.
bool IsDecode(const ForwardChunk& chunk) { return chunk.tokens.size() == 1 || chunk.one_by_one; }

int64_t NumTokens(const ForwardChunk& chunk) { return static_cast<int64_t>(chunk.tokens.size()); }

int64_t NumLogitRows(const ForwardChunk& chunk) {
  switch (chunk.logits) {
    case ForwardChunk::Logits::kNone:
      return 0;
    case ForwardChunk::Logits::kLast:
      return 1;
    case ForwardChunk::Logits::kAll:
      return NumTokens(chunk);
  }
  return 0;
}

// One Forward: the layout of its rows, and the steps on them.
//
// Rows with one token per sequence share the linear layers in slices of at most kDecodeRows, where
// MatMul's bits do not depend on the number of rows; every longer chunk is a slice of its own.
// Behind the attention of the last block only rows that asked for logits are left; one row of a
// longer chunk is then like a row with one token.
class ForwardPass {
 public:
  ForwardPass(const Model& model, std::span<const ForwardChunk> chunks, ForwardWorkspace& workspace,
              const KvExtraNeeds& extra_needs, int num_threads)
      : model_(model),
        config_(model.config()),
        chunks_(chunks),
        workspace_(workspace),
        extra_needs_(extra_needs),
        num_threads_(num_threads) {
    LayOutRows();
    LayOutBuffers();
  }

  void Embed() {
    for (size_t i = 0; i < chunks_.size(); ++i) {
      float* row = x_ + workspace_.chunk_first_rows[i] * config_.hidden_size;
      for (const int32_t token : chunks_[i].tokens) {
        PMKVQ_CHECK_MSG(token >= 0 && token < config_.vocab_size, "token id out of range");
        ExpandRow(model_.embedding(), token, row);
        row += config_.hidden_size;
      }
    }
  }

  void RunBlock(int64_t layer, KvStore& store) {
    const KeyScales* scales = store.key_scales();
    const BlockWeights& block = model_.block(layer);
    for (const RowSlice& slice : workspace_.slices) {
      ProjectQkv(block, slice);
      if (extra_needs_.keys_before_rope) {
        const int64_t begin = slice.first_row * config_.kv_dim();
        std::copy_n(k_ + begin, slice.num_rows * config_.kv_dim(), keys_before_rope_ + begin);
      }
      Rotate(slice, scales != nullptr ? scales->query_factors(layer) : nullptr,
             scales != nullptr ? scales->key_factors(layer) : nullptr);
    }
    OfferExtras(layer, store);
    {
      // Other Forwards of the store may move pages, so a pause comes before or after.
      const UnpausedScope pages_stay;
      store.AppendAndAttend(layer, q_, k_, v_, attention_);
    }
    const bool is_last = layer + 1 == config_.num_layers;
    for (const RowSlice& slice : is_last ? workspace_.last_slices : workspace_.slices) {
      AddAttentionOutput(block, slice);
      AddMlp(block, slice);
    }
  }

  void ComputeLogits() {
    int64_t num_logit_rows = 0;
    for (const ForwardChunk& chunk : chunks_) num_logit_rows += NumLogitRows(chunk);
    GrowTo(workspace_.logits, num_logit_rows * config_.vocab_size);
    workspace_.num_logit_rows = 0;
    int64_t pending = 0;
    for (size_t i = 0; i < chunks_.size(); ++i) {
      const int64_t num_rows = NumLogitRows(chunks_[i]);
      if (num_rows == 0) continue;
      // Several rows of one sequence are one product, whatever surrounds them.
      if (num_rows > 1 || pending == kDecodeRows) pending = FlushLogits(pending);
      const int64_t end = workspace_.chunk_first_rows[i] + NumTokens(chunks_[i]);
      RmsNorm(x_ + (end - num_rows) * config_.hidden_size, num_rows, config_.hidden_size,
              model_.final_norm().data(), config_.rms_norm_eps,
              normed_ + pending * config_.hidden_size, num_threads_);
      pending += num_rows;
      if (num_rows > 1) pending = FlushLogits(pending);
    }
    FlushLogits(pending);
  }

 private:
  void LayOutRows() {
    workspace_.batch.clear();
    workspace_.positions.clear();
    workspace_.slices.clear();
    workspace_.last_slices.clear();
    workspace_.chunk_first_rows.resize(chunks_.size());
    for (const bool decode : {true, false}) {
      for (size_t i = 0; i < chunks_.size(); ++i) {
        if (IsDecode(chunks_[i]) == decode) AddChunk(i);
      }
    }
  }

  void AddChunk(size_t index) {
    const ForwardChunk& chunk = chunks_[index];
    const int64_t num_tokens = NumTokens(chunk);
    PMKVQ_CHECK_MSG(num_tokens > 0, "empty chunk");
    const auto first_row = static_cast<int64_t>(workspace_.positions.size());
    workspace_.chunk_first_rows[index] = first_row;
    workspace_.batch.push_back({chunk.seq, num_tokens, chunk.one_by_one});
    for (int64_t t = 0; t < num_tokens; ++t) workspace_.positions.push_back(chunk.start_pos + t);
    const int64_t piece = IsDecode(chunk) ? 1 : num_tokens;
    for (int64_t t = 0; t < num_tokens; t += piece) {
      AddSlice(first_row + t, piece, workspace_.slices);
    }
    // Nothing reads what the last block makes of the other rows.
    const int64_t num_logit_rows = NumLogitRows(chunk);
    PMKVQ_CHECK(!chunk.one_by_one || num_logit_rows <= 1);
    if (num_logit_rows > 0) {
      AddSlice(first_row + num_tokens - num_logit_rows, num_logit_rows, workspace_.last_slices);
    }
  }

  // Rows with one token of a sequence join the slice before them where they follow it.
  static void AddSlice(int64_t first_row, int64_t num_rows, std::vector<RowSlice>& slices) {
    if (num_rows == 1 && !slices.empty() && slices.back().joinable &&
        slices.back().first_row + slices.back().num_rows == first_row &&
        slices.back().num_rows < kDecodeRows) {
      ++slices.back().num_rows;
    } else {
      slices.push_back({first_row, num_rows, num_rows == 1});
    }
  }

  void LayOutBuffers() {
    const auto num_rows = static_cast<int64_t>(workspace_.positions.size());
    int64_t slice_rows = kDecodeRows;
    for (const RowSlice& slice : workspace_.slices) {
      slice_rows = std::max(slice_rows, slice.num_rows);
    }
    struct Part {
      float** pointer;
      int64_t count;
    };
    const Part parts[] = {
        {&x_, num_rows * config_.hidden_size},
        {&q_, num_rows * config_.q_dim()},
        {&k_, num_rows * config_.kv_dim()},
        {&v_, num_rows * config_.kv_dim()},
        {&keys_before_rope_, extra_needs_.keys_before_rope ? num_rows * config_.kv_dim() : 0},
        {&attention_, num_rows * config_.q_dim()},
        {&normed_, slice_rows * config_.hidden_size},
        {&gate_, slice_rows * config_.intermediate_size},
        {&up_, slice_rows * config_.intermediate_size}};
    constexpr int64_t kLine = static_cast<int64_t>(kAlignment / sizeof(float));
    const auto aligned = [](int64_t count) { return (count + kLine - 1) / kLine * kLine; };
    int64_t total = 0;
    for (const Part& part : parts) total += aligned(part.count);
    GrowTo(workspace_.buffer, total);
    float* next = workspace_.buffer.data();
    for (const Part& part : parts) {
      *part.pointer = next;
      next += aligned(part.count);
    }
  }

  void ProjectQkv(const BlockWeights& block, const RowSlice& slice) {
    RmsNorm(x_ + slice.first_row * config_.hidden_size, slice.num_rows, config_.hidden_size,
            block.attention_norm.data(), config_.rms_norm_eps, normed_, num_threads_);
    float* q = q_ + slice.first_row * config_.q_dim();
    float* k = k_ + slice.first_row * config_.kv_dim();
    float* v = v_ + slice.first_row * config_.kv_dim();
    const int64_t rows = slice.num_rows;
    const Projection<float> projections[] = {{&block.q_proj, DataOrNull(block.q_bias), q},
                                             {&block.k_proj, DataOrNull(block.k_bias), k},
                                             {&block.v_proj, DataOrNull(block.v_bias), v}};
    MatMulShared<float>(normed_, rows, projections, num_threads_);
    if (!config_.qk_norm) return;
    RmsNorm(q, rows * config_.num_heads, config_.head_dim, block.q_norm.data(),
            config_.rms_norm_eps, q, num_threads_);
    RmsNorm(k, rows * config_.num_kv_heads, config_.head_dim, block.k_norm.data(),
            config_.rms_norm_eps, k, num_threads_);
  }

  // The factors may be null.
  void Rotate(const RowSlice& slice, const float* query_factors, const float* key_factors) {
    const int64_t* positions = workspace_.positions.data() + slice.first_row;
    ApplyRope(model_.rope(), positions, slice.num_rows, config_.num_heads, query_factors,
              q_ + slice.first_row * config_.q_dim(), num_threads_);
    ApplyRope(model_.rope(), positions, slice.num_rows, config_.num_kv_heads, key_factors,
              k_ + slice.first_row * config_.kv_dim(), num_threads_);
  }

  void OfferExtras(int64_t layer, KvStore& store) const {
    if (!extra_needs_.keys_before_rope && !extra_needs_.block_input) return;
    KvExtras extras;
    if (extra_needs_.keys_before_rope) extras.keys_before_rope = keys_before_rope_;
    if (extra_needs_.block_input) extras.block_input = x_;
    extras.input_width = config_.hidden_size;
    store.OfferExtras(layer, extras);
  }

  void AddAttentionOutput(const BlockWeights& block, const RowSlice& slice) {
    MatMul(attention_ + slice.first_row * config_.q_dim(), slice.num_rows, block.o_proj,
           DataOrNull(block.o_bias), normed_, num_threads_);
    AddTo(x_ + slice.first_row * config_.hidden_size, normed_,
          slice.num_rows * config_.hidden_size);
  }

  void AddMlp(const BlockWeights& block, const RowSlice& slice) {
    float* x = x_ + slice.first_row * config_.hidden_size;
    const int64_t rows = slice.num_rows;
    RmsNorm(x, rows, config_.hidden_size, block.mlp_norm.data(), config_.rms_norm_eps, normed_,
            num_threads_);
    const Projection<float> projections[] = {{&block.gate_proj, nullptr, gate_},
                                             {&block.up_proj, nullptr, up_}};
    MatMulShared<float>(normed_, rows, projections, num_threads_);
    SiluMul(gate_, up_, rows * config_.intermediate_size, gate_, num_threads_);
    MatMul(gate_, rows, block.down_proj, nullptr, normed_, num_threads_);
    AddTo(x, normed_, rows * config_.hidden_size);
  }

  // Multiplies the `num_rows` rows waiting in normed_ with the output head. Returns 0, the number
  // of rows that wait now.
  int64_t FlushLogits(int64_t num_rows) {
    if (num_rows == 0) return 0;
    float* logits = workspace_.logits.data() + workspace_.num_logit_rows * config_.vocab_size;
    MatMul(normed_, num_rows, model_.output_head(), nullptr, logits, num_threads_);
    workspace_.num_logit_rows += num_rows;
    return 0;
  }

  const Model& model_;
  const ModelConfig& config_;
  std::span<const ForwardChunk> chunks_;
  ForwardWorkspace& workspace_;
  const KvExtraNeeds extra_needs_;
  const int num_threads_;

  float* x_ = nullptr;  // [rows, E], the residual stream
  float* q_ = nullptr;  // [rows, H, D]
  float* k_ = nullptr;  // [rows, Hkv, D]
  float* v_ = nullptr;
  float* keys_before_rope_ = nullptr;  // [rows, Hkv, D], where the store wants them
  float* attention_ = nullptr;         // [rows, H, D]
  float* normed_ = nullptr;            // [slice rows, E], also the output of a projection back to E
  float* gate_ = nullptr;              // [slice rows, F]
  float* up_ = nullptr;
};

// Ends a Forward that an exception leaves; does nothing after EndForward.
class OpenForward {
 public:
  explicit OpenForward(KvStore& store) : store_(store) {}
  ~OpenForward() { store_.AbandonForward(); }
  OpenForward(const OpenForward&) = delete;
  OpenForward& operator=(const OpenForward&) = delete;

 private:
  KvStore& store_;
};

}  // namespace

void ThrowIfFailed(const std::vector<ForwardFailure>& failures) {
  if (failures.empty()) return;
  throw InvalidInput(failures.front().failure.where, failures.front().failure.what);
}

std::optional<KvFailure> Model::FailureOfLogits(const float* logits, int64_t position) const {
  constexpr uint32_t kInfinity = 0x7f800000u;
  const auto magnitude = [](float x) { return std::bit_cast<uint32_t>(x) & 0x7fffffffu; };
  const int64_t count = config().vocab_size;
  uint32_t largest = 0;  // Magnitudes order like their bits, NaN above all.
  for (int64_t i = 0; i < count; ++i) largest = std::max(largest, magnitude(logits[i]));
  if (largest < kInfinity) return std::nullopt;
  int64_t token = 0;
  while (magnitude(logits[token]) < kInfinity) ++token;
  // The sign of NaN says nothing.
  const float odd = std::isnan(logits[token]) ? std::abs(logits[token]) : logits[token];
  return KvFailure{
      fmt::format("{}, output head, position {}", checkpoint().folder(), position),
      fmt::format("logits are not finite: found {} for token {}, expected finite numbers: a weight "
                  "is not finite, or values overflowed",
                  odd, token)};
}

std::vector<ForwardFailure> Model::FailuresOfLogits(std::span<const ForwardChunk> chunks,
                                                    const ForwardWorkspace& workspace) const {
  std::vector<ForwardFailure> failures;
  const float* logits = workspace.logits.data();
  for (size_t i = 0; i < chunks.size(); ++i) {
    const int64_t num_rows = NumLogitRows(chunks[i]);
    int64_t position = chunks[i].start_pos + NumTokens(chunks[i]) - num_rows;
    std::optional<KvFailure> failure;
    for (int64_t row = 0; row < num_rows; ++row, ++position, logits += config().vocab_size) {
      if (!failure) failure = FailureOfLogits(logits, position);
    }
    if (failure) failures.push_back({i, *failure});
  }
  return failures;
}

std::vector<ForwardFailure> Model::Forward(std::span<const ForwardChunk> chunks, KvStore& store,
                                           ForwardWorkspace& workspace, int num_threads) const {
  workspace.num_logit_rows = 0;
  if (chunks.empty()) return {};
  ForwardPass pass(*this, chunks, workspace, store.ExtraNeeds(), num_threads);
  pass.Embed();
  store.BeginForward(workspace.batch);
  const OpenForward open(store);
  for (int64_t layer = 0; layer < config().num_layers; ++layer) pass.RunBlock(layer, store);
  pass.ComputeLogits();  // Before EndForward: when memory runs out here, nothing counts as stored.
  store.EndForward();
  std::vector<ForwardFailure> failures;
  for (size_t i = 0; i < chunks.size(); ++i) {
    const KvFailure* failure = store.FailureOf(chunks[i].seq);
    if (failure != nullptr) failures.push_back({i, *failure});
  }
  return failures;
}

}  // namespace pmkvq
