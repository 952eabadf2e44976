#include "pmkvq/model/device/device_model.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "pmkvq/base/check.h"
#include "pmkvq/base/float16.h"
#include "pmkvq/base/interrupt.h"
#include "pmkvq/base/turns.h"
#include "pmkvq/kernels/device_rows/device_rows.h"
#include "pmkvq/kernels/gemm/device_gemm_few.h"
#include "pmkvq/kv/device_kv_store.h"
#include "pmkvq/model/detail.h"
#include "pmkvq/model/device/device_blocks.h"
#include "pmkvq/model/device/device_products.h"
#include "pmkvq/model/device/device_workspace.h"
#include "pmkvq/model/forward_layout.h"

namespace pmkvq {
namespace {

using model_detail::GrowTo;

// Captured launches are made for 1, 2, 4, ... kDecodeRows rows, then for multiples of kDecodeRows.
int64_t CapturedRows(int64_t rows) {
  if (rows > kDecodeRows) return (rows + kDecodeRows - 1) / kDecodeRows * kDecodeRows;
  int64_t captured = 1;
  while (captured < rows) captured *= 2;
  return captured;
}

// Of the 32-bit words that each row is given: its token, its position, and which row is picked.
constexpr int64_t kInputsOfRow = 3;

bool IsSingleToken(const ForwardChunk& chunk) {
  return chunk.tokens.size() == 1 && chunk.logits == ForwardChunk::Logits::kLast &&
         chunk.num_read == 0;
}

}  // namespace

// One Forward.
class DeviceModel::Pass {
 public:
  Pass(const DeviceModel& model, std::span<const ForwardChunk> chunks, KvStore& store,
       ForwardWorkspace& host)
      : model_(model),
        config_(model.config_),
        chunks_(chunks),
        store_(store),
        on_device_(store.OnDevice()),
        host_(host),
        own_(*host.device),
        extra_needs_(store.ExtraNeeds()),
        widths_(BlockWidthsOf(model.config_)) {
    if (on_device_ == nullptr && own_.stream == nullptr) {
      own_.stream = std::make_unique<Stream>(model.device_);
    }
    stream_ = on_device_ == nullptr ? own_.stream.get() : &on_device_->stream();
    has_few_sequences_ = on_device_ != nullptr && on_device_->max_sequences() <= kMostFewRows;
    products_.emplace(own_, *stream_, has_few_sequences_);
    blocks_.emplace(config_, own_, *products_, *stream_);
    num_rows_ = std::ssize(host_.positions);
    for (const ForwardChunk& chunk : chunks_) {
      if (IsDecode(chunk)) decode_rows_ += NumTokens(chunk);
    }
    is_captured_ =
        on_device_ != nullptr && std::all_of(chunks_.begin(), chunks_.end(), IsSingleToken);
    has_draws_ = !chunks_.empty() && chunks_.front().draw != nullptr;
    for (const ForwardChunk& chunk : chunks_) {
      PMKVQ_CHECK_MSG((chunk.draw != nullptr) == has_draws_ && (!has_draws_ || is_captured_),
                      "tokens are drawn in Forwards of one token each, with pages on the device");
    }
    if (is_captured_) decode_rows_ = num_rows_ = CapturedRows(num_rows_);
    if (on_device_ != nullptr) on_device_->PrepareRows(decode_rows_);
    MakeSlices();
    TakeMemory();
  }

  void Run() {
    Upload();
    if (!is_captured_) {
      RunBlocks();
      ReadLogits();
      return;
    }
    std::unique_ptr<CapturedWork>& captured = own_.captured[{num_rows_, has_draws_}];
    if (captured == nullptr) {
      products_->Prepare(model_.weights_);
      blocks_->Prepare(model_.weights_);
      captured = std::make_unique<CapturedWork>(*stream_, [&] {
        RunBlocks();
        for (int64_t first = 0; first < num_rows_; first += kDecodeRows) {
          const int64_t rows = std::min(kDecodeRows, num_rows_ - first);
          LaunchLogits(first, rows);
          if (has_draws_) LaunchDraws(first, rows);
        }
      });
    }
    captured->Launch(*stream_);
    if (has_draws_ && ReadDrawn()) return;
    const int64_t count = std::ssize(chunks_);
    GrowTo(host_.logits, count * config_.vocab_size);
    CopyLogits(0, count, host_.logits.data());
    host_.num_logit_rows = count;
  }

 private:
  // Rows that go through the linear layers together.
  void MakeSlices() {
    if (!is_captured_) {
      slices_.assign(host_.slices.begin(), host_.slices.end());
    } else {
      for (int64_t first = 0; first < num_rows_; first += kDecodeRows) {
        slices_.push_back({first, std::min(kDecodeRows, num_rows_ - first), true});
      }
    }
    for (const RowSlice& slice : slices_)
      most_slice_rows_ = std::max(most_slice_rows_, slice.num_rows);
    for (size_t i = 0; i < chunks_.size(); ++i) num_logit_rows_ += NumLogitRows(chunks_[i]);
    if (!has_draws_) GrowTo(host_.logits, num_logit_rows_ * config_.vocab_size);
  }

  void TakeMemory() {
    const DeviceId device = model_.device_;
    const int64_t hidden = config_.hidden_size;
    const int64_t stacked = std::max(config_.q_dim() + 2 * config_.kv_dim(), widths_.sums);
    const int64_t shared = config_.moe ? config_.moe->shared_size : 0;
    const int64_t inner = std::max(config_.intermediate_size, shared);
    const int64_t part_rows = DeviceGemm::PaddedRows(2 * PartRows(most_slice_rows_));
    const int64_t vocab = config_.vocab_size;
    const auto take = [&](GrowingBuffer& buffer, int64_t count) {
      Grow(buffer, static_cast<size_t>(count) * sizeof(float));
    };
    if (num_rows_ > own_.input_rows) {
      const int64_t rows = RoundUpTo(num_rows_, kDecodeRows);
      Grow(own_.inputs,
           static_cast<size_t>(rows) * (kInputsOfRow * sizeof(int32_t) + sizeof(DeviceDraw)));
      own_.input_staging = std::make_unique<PinnedBuffer>(device, own_.inputs.num_bytes());
      own_.input_rows = rows;
    }
    take(own_.rotations, num_rows_ * config_.rope_dim());
    if (model_.weights_.local_frequencies() != nullptr) {
      take(own_.local_rotations, num_rows_ * config_.head_dim);
    }
    take(own_.x, num_rows_ * hidden);
    take(own_.operand, part_rows * std::max({hidden, config_.q_dim(), inner, widths_.operand}));
    if (has_few_sequences_) take(own_.gated, part_rows * inner);
    take(own_.sums, part_rows * std::max({hidden, stacked, 2 * inner}));
    take(own_.q, num_rows_ * widths_.q);
    take(own_.k, num_rows_ * widths_.k);
    take(own_.v, num_rows_ * widths_.v);
    take(own_.out, num_rows_ * widths_.out);
    if (blocks_->TakeExpertMemory(most_slice_rows_)) own_.captured.clear();
    if (extra_needs_.keys_before_rope) take(own_.raw_k, num_rows_ * config_.kv_dim());
    if (extra_needs_.attention_input) take(own_.attention_input, num_rows_ * hidden);
    take(own_.head_sums, DeviceGemm::PaddedRows(2 * kDecodeRows) * vocab);
    // Captured launches leave the logits of all rows.
    take(own_.logits, std::max(kDecodeRows, is_captured_ ? num_rows_ : 0) * vocab);
    if (has_draws_) TakeDrawMemory();
    const uint64_t id = on_device_ == nullptr ? 0 : on_device_->id();
    if (id != own_.store_id) own_.captured.clear();
    own_.store_id = id;
    if (on_device_ == nullptr) UploadFactors();
  }

  // Captured launches hold the addresses.
  void Grow(GrowingBuffer& buffer, size_t num_bytes) {
    if (buffer.num_bytes() < num_bytes) own_.captured.clear();
    buffer.Grow(model_.device_, num_bytes);
  }

  void TakeDrawMemory() {
    const DeviceId device = model_.device_;
    const auto rows = static_cast<size_t>(RoundUpTo(num_rows_, kDecodeRows));
    Grow(own_.drawn, rows * sizeof(DeviceDrawn));
    const auto stage = [&](std::unique_ptr<PinnedBuffer>& staging, size_t num_bytes) {
      if (staging != nullptr && staging->num_bytes() >= num_bytes) return;
      staging = std::make_unique<PinnedBuffer>(device, num_bytes);
    };
    stage(own_.drawn_staging, rows * sizeof(DeviceDrawn));
    if (own_.sampler == nullptr) {
      own_.sampler = std::make_unique<DeviceSampler>(device, config_.vocab_size, kDecodeRows);
    }
  }

  // Key scales of a store of the host.
  void UploadFactors() {
    // Of latents the store applies them itself.
    const KeyScales* const scales = config_.mla ? nullptr : store_.key_scales();
    own_.has_factors = scales != nullptr;
    if (scales == nullptr) return;
    std::vector<float> values;
    own_.factor_offsets.clear();
    for (const bool is_query : {true, false}) {
      for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
        const float* const from =
            is_query ? scales->query_factors(layer) : scales->key_factors(layer);
        const int64_t count = (is_query ? config_.q_dim() : config_.kv_dim()) / 2;
        own_.factor_offsets.push_back(values.size());
        values.insert(values.end(), from, from + count);
      }
    }
    own_.factors.Grow(model_.device_, values.size() * sizeof(float));
    CopyToDevice(*stream_, own_.factors.As<std::byte>(), values.data(),
                 values.size() * sizeof(float));
    stream_->Synchronize();
  }

  const float* FactorsOf(int64_t layer, bool is_query) const {
    if (on_device_ != nullptr) {
      return is_query ? on_device_->query_factors(layer) : on_device_->key_factors(layer);
    }
    if (!own_.has_factors) return nullptr;
    const int64_t index = layer + (is_query ? 0 : config_.num_layers);
    return own_.factors.As<const float>() + own_.factor_offsets[static_cast<size_t>(index)];
  }

  int32_t* ids() const { return own_.inputs.As<int32_t>(); }
  int32_t* positions() const { return ids() + own_.input_rows; }
  int32_t* picked() const { return ids() + 2 * own_.input_rows; }
  // Behind them.
  size_t DrawsAt() const {
    return static_cast<size_t>(kInputsOfRow * own_.input_rows) * sizeof(int32_t);
  }
  DeviceDraw* draws() const {
    return reinterpret_cast<DeviceDraw*>(own_.inputs.As<std::byte>() + DrawsAt());
  }

  void Upload() {
    const int64_t rows = own_.input_rows;
    auto* const staged = reinterpret_cast<int32_t*>(own_.input_staging->data());
    std::fill_n(staged, kInputsOfRow * rows, 0);
    int64_t picked = 0;
    for (size_t i = 0; i < chunks_.size(); ++i) {
      const int64_t first = host_.chunk_first_rows[i];
      int64_t row = first;
      for (const int32_t token : chunks_[i].tokens) {
        PMKVQ_CHECK_MSG(token >= 0 && token < config_.vocab_size, "token id out of range");
        staged[row++] = token;
      }
      const int64_t end = first + NumTokens(chunks_[i]);
      for (int64_t r = end - NumLogitRows(chunks_[i]); r < end; ++r) {
        staged[2 * rows + picked++] = static_cast<int32_t>(r);
      }
    }
    for (size_t i = 0; i < host_.positions.size(); ++i) {
      staged[static_cast<size_t>(rows) + i] = static_cast<int32_t>(host_.positions[i]);
    }
    if (has_draws_) StageDraws();
    CopyToDevice(*stream_, own_.inputs.As<std::byte>(), staged,
                 has_draws_ ? own_.input_staging->num_bytes() : DrawsAt());
  }

  void StageDraws() {
    auto* const staged = reinterpret_cast<DeviceDraw*>(own_.input_staging->data() + DrawsAt());
    std::fill_n(staged, num_rows_, DeviceDraw{});
    for (size_t i = 0; i < chunks_.size(); ++i) {
      const ForwardDraw& draw = *chunks_[i].draw;
      staged[i] = {draw.params.temperature, draw.params.top_k, draw.params.top_p,
                   draw.params.min_p,       draw.uniform,      1};
    }
  }

  void LaunchDraws(int64_t first, int64_t rows) {
    own_.sampler->Launch(own_.logits.As<float>() + first * config_.vocab_size, rows,
                         draws() + first, own_.drawn.As<DeviceDrawn>() + first, *stream_);
  }

  // Waits. Whether all logits were finite: else somebody wants to know which were not.
  bool ReadDrawn() {
    const size_t count = chunks_.size();
    auto* const staged = reinterpret_cast<DeviceDrawn*>(own_.drawn_staging->data());
    CopyToHost(*stream_, staged, own_.drawn.As<const std::byte>(), count * sizeof(DeviceDrawn));
    on_device_->LaunchLookAtUnfit();
    stream_->Synchronize();
    bool all_finite = true;
    for (size_t i = 0; i < count; ++i) {
      const auto outcome = static_cast<SamplingOutcome>(staged[i].outcome);
      host_.drawn.push_back({staged[i].token, outcome});
      all_finite &= outcome == SamplingOutcome::kDrawn;
    }
    return all_finite;
  }

  void RunBlocks() {
    EmbedRows(model_.weights_.embedding().data, model_.weights_.embedding().type, ids(), num_rows_,
              config_.hidden_size, own_.x.As<float>(), *stream_, model_.embedding_factor_,
              {positions(), model_.weights_.frequencies(), config_.rope_dim() / 2,
               model_.rope_factor_, own_.rotations.As<float>()});
    if (model_.weights_.local_frequencies() != nullptr) {
      MakeRotations({positions(), model_.weights_.local_frequencies(), config_.head_dim / 2,
                     model_.local_rope_factor_, own_.local_rotations.As<float>()},
                    num_rows_, *stream_);
    }
    for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
      if (!is_captured_) CancelPoint();
      RunBlock(layer);
    }
    if (mlp_sums_.data != nullptr) {
      NormRows add;
      add.x = own_.x.As<float>();
      add.rows = num_rows_;
      add.width = config_.hidden_size;
      add.sums = mlp_sums_;
      add.sums_weight = mlp_sums_weight_;
      add.eps = static_cast<float>(config_.rms_norm_eps);
      AddAndNormRows(add, *stream_);
    }
  }

  float* RowOf(const GrowingBuffer& buffer, const RowSlice& slice, int64_t width) const {
    return buffer.As<float>() + slice.first_row * width;
  }

  void RunBlock(int64_t layer) {
    const DeviceBlockWeights& weights = model_.weights_.block(layer);
    std::optional<AppendOperands> fused_append;
    if (is_captured_) fused_append = on_device_->FusedAppend(layer, decode_rows_);
    for (const RowSlice& slice : slices_) ProjectRows(layer, weights, slice, fused_append);
    // One slice takes its outputs rounded.
    const bool has_operand = is_captured_ && slices_.size() == 1 && !weights.mla;
    Attend(layer, fused_append.has_value(),
           has_operand ? products_->OperandOf(weights.o, slices_.front().num_rows) : ProductRows{});
    for (const RowSlice& slice : slices_) {
      RunMlp(weights, slice, AttentionSums(weights, slice, has_operand));
      if (slices_.size() == 1) return;  // The next block's norm adds them.
      if (mlp_sums_.data == nullptr) continue;
      NormRows add;
      add.x = RowOf(own_.x, slice, config_.hidden_size);
      add.rows = slice.num_rows;
      add.width = config_.hidden_size;
      add.sums = std::exchange(mlp_sums_, {});
      add.sums_weight = mlp_sums_weight_;
      add.eps = static_cast<float>(config_.rms_norm_eps);
      AddAndNormRows(add, *stream_);
    }
  }

  // The rows that `norm` rounded for the product, as floats.
  void KeepAttentionInput(const RowSlice& slice, NormRows norm) {
    norm.sums = {};
    norm.sums_weight = nullptr;
    norm.out = {};
    norm.out.data =
        reinterpret_cast<std::byte*>(RowOf(own_.attention_input, slice, config_.hidden_size));
    norm.out.type = DType::kF32;
    norm.out.part_rows = slice.num_rows;
    AddAndNormRows(norm, *stream_);
  }

  // What the block before left is added to the rows; then queries, keys and values are made.
  void ProjectRows(int64_t layer, const DeviceBlockWeights& weights, const RowSlice& slice,
                   const std::optional<AppendOperands>& fused_append) {
    const int64_t hidden = config_.hidden_size;
    const DeviceMatrix& first = weights.mla ? weights.mla->q_kv_a : weights.qkv;
    float* const sums = own_.sums.As<float>();
    NormRows norm;
    norm.x = RowOf(own_.x, slice, hidden);
    norm.rows = slice.num_rows;
    norm.width = hidden;
    norm.sums = mlp_sums_;
    norm.sums_weight = mlp_sums_weight_;
    norm.weight = weights.attn_norm;
    norm.eps = static_cast<float>(config_.rms_norm_eps);
    norm.out = products_->OperandOf(first, slice.num_rows);
    AddAndNormRows(norm, *stream_);
    if (extra_needs_.attention_input) KeepAttentionInput(slice, norm);
    if (weights.mla) return blocks_->ProjectLatents(weights, slice, sums);
    HeadRows heads;
    heads.sums = products_->Multiply(weights.qkv, slice.num_rows, slice.joinable, sums);
    heads.rows = slice.num_rows;
    heads.num_heads = config_.num_heads;
    heads.num_kv_heads = config_.num_kv_heads;
    heads.head_dim = config_.head_dim;
    heads.bias = weights.qkv_bias;
    heads.q_norm = weights.q_norm;
    heads.k_norm = weights.k_norm;
    heads.eps = norm.eps;
    heads.rotations = RowOf(weights.has_local_rope ? own_.local_rotations : own_.rotations, slice,
                            config_.head_dim);
    heads.query_factors = FactorsOf(layer, true);
    heads.key_factors = FactorsOf(layer, false);
    heads.q = RowOf(own_.q, slice, config_.q_dim());
    heads.k = RowOf(own_.k, slice, config_.kv_dim());
    heads.v = RowOf(own_.v, slice, config_.kv_dim());
    if (extra_needs_.keys_before_rope) heads.raw_k = RowOf(own_.raw_k, slice, config_.kv_dim());
    if (fused_append) heads.append = AppendOf(*fused_append, slice);
    MakeHeadRows(heads, *stream_);
  }

  // Attention's outputs through o.
  ProductSums AttentionSums(const DeviceBlockWeights& weights, const RowSlice& slice,
                            bool has_operand) {
    float* const sums = own_.sums.As<float>();
    if (weights.mla) return blocks_->ProjectSums(weights, slice, sums);
    if (!has_operand) {
      RoundRows(RowOf(own_.out, slice, config_.q_dim()), slice.num_rows, config_.q_dim(),
                products_->OperandOf(weights.o, slice.num_rows), *stream_);
    }
    return products_->Multiply(weights.o, slice.num_rows, slice.joinable, sums);
  }

  // Leaves what the MLP gives, or the shared expert, in mlp_sums_.
  void RunMlp(const DeviceBlockWeights& weights, const RowSlice& slice,
              const ProductSums& attention) {
    float* const sums = own_.sums.As<float>();
    NormRows norm;
    norm.x = RowOf(own_.x, slice, config_.hidden_size);
    norm.rows = slice.num_rows;
    norm.width = config_.hidden_size;
    norm.sums = attention;
    norm.bias = weights.o_bias;
    norm.sums_weight = weights.attn_post_norm;
    norm.weight = weights.mlp_norm;
    norm.eps = static_cast<float>(config_.rms_norm_eps);
    norm.out = weights.moe ? blocks_->ExpertInput(slice.num_rows)
                           : products_->OperandOf(weights.gate_up, slice.num_rows);
    AddAndNormRows(norm, *stream_);
    mlp_sums_ = weights.moe ? blocks_->RunExperts(weights, slice, sums)
                            : products_->MultiplyMlp(weights, slice, sums);
    mlp_sums_weight_ = weights.mlp_post_norm;
  }

  AppendOperands AppendOf(AppendOperands whole, const RowSlice& slice) const {
    whole.targets += slice.first_row;
    whole.q_rounded += static_cast<size_t>(slice.first_row * config_.q_dim()) * sizeof(F16);
    whole.unfit += slice.first_row;
    return whole;
  }

  void Attend(int64_t layer, bool is_stored, const ProductRows& operand) {
    if (on_device_ == nullptr) {
      AttendOnHost(layer);
      return;
    }
    DeviceBlockRows rows;
    rows.q = own_.q.As<float>();
    rows.k = own_.k.As<float>();
    rows.v = own_.v.As<float>();
    rows.out = own_.out.As<float>();
    rows.decode_rows = decode_rows_;
    rows.is_stored = is_stored;
    rows.operand = operand;
    on_device_->LaunchBlock(layer, rows);
  }

  void AttendOnHost(int64_t layer) {
    const auto fetch = [&](const GrowingBuffer& buffer, int64_t width,
                           AlignedVector<float>& memory) {
      memory.resize(static_cast<size_t>(num_rows_ * width));
      CopyToHost(*stream_, memory.data(), buffer.As<const std::byte>(),
                 memory.size() * sizeof(float));
      return memory.data();
    };
    const float* const q = fetch(own_.q, widths_.q, own_.host_q);
    const float* const k = fetch(own_.k, widths_.k, own_.host_k);
    const float* const v = fetch(own_.v, widths_.v, own_.host_v);
    KvExtras extras;
    if (extra_needs_.keys_before_rope) {
      extras.keys_before_rope = fetch(own_.raw_k, config_.kv_dim(), own_.host_raw_k);
    }
    if (extra_needs_.block_input) {
      extras.block_input = fetch(own_.x, config_.hidden_size, own_.host_x);
    }
    if (extra_needs_.attention_input) {
      extras.attention_input =
          fetch(own_.attention_input, config_.hidden_size, own_.host_attention_input);
    }
    extras.input_width = config_.hidden_size;
    own_.host_out.resize(static_cast<size_t>(num_rows_ * widths_.out));
    stream_->Synchronize();
    if (extra_needs_.of_blocks()) store_.OfferExtras(layer, extras);
    store_.AppendAndAttend(layer, q, k, v, own_.host_out.data());
    CopyToDevice(*stream_, own_.out.As<std::byte>(), own_.host_out.data(),
                 own_.host_out.size() * sizeof(float));
  }

  // Logits of at most kDecodeRows picked rows, from `first` on, to their place in `logits`.
  // `are_single`: not those of a prompt's reader, which wants many.
  void LaunchLogits(int64_t first, int64_t rows, bool are_single = true) {
    const DeviceMatrix& head = model_.weights_.output_head();
    NormRows norm;
    norm.x = own_.x.As<float>();
    norm.rows = rows;
    norm.width = config_.hidden_size;
    norm.weight = model_.weights_.final_norm();
    norm.eps = static_cast<float>(config_.rms_norm_eps);
    norm.picked = picked() + first;
    norm.out = products_->OperandOf(head, rows);
    AddAndNormRows(norm, *stream_);
    float* const logits = own_.logits.As<float>() + (is_captured_ ? first * config_.vocab_size : 0);
    if (products_->MultipliesFew(head, are_single)) {
      products_->Multiply(head, rows, are_single, logits);
      return;
    }
    const ProductSums sums =
        products_->Multiply(head, rows, are_single, own_.head_sums.As<float>());
    AddPartsOfRows(sums, rows, config_.vocab_size, logits, *stream_);
  }

  // Waits.
  void CopyLogits(int64_t first, int64_t rows, float* to) {
    const auto bytes = static_cast<size_t>(rows * config_.vocab_size) * sizeof(float);
    const float* const from = own_.logits.As<const float>() + first * config_.vocab_size;
    CopyToHost(*stream_, to, reinterpret_cast<const std::byte*>(from), bytes);
    stream_->Synchronize();
  }

  void ReadLogits() {
    for (size_t i = 0; i < chunks_.size(); ++i) {
      if (chunks_[i].num_read > 0) HandOver(i);
    }
    for (int64_t first = 0; first < num_logit_rows_; first += kDecodeRows) {
      const int64_t rows = std::min(kDecodeRows, num_logit_rows_ - first);
      LaunchLogits(first, rows);
      CopyLogits(0, rows, host_.logits.data() + first * config_.vocab_size);
    }
    host_.num_logit_rows = num_logit_rows_;
  }

  // Logits of the rows that this chunk's reader wants.
  void HandOver(size_t index) {
    const ForwardChunk& chunk = chunks_[index];
    GrowTo(host_.read_logits, std::min(chunk.num_read, kMostReadRows) * config_.vocab_size);
    for (int64_t row = 0; row < chunk.num_read; row += kMostReadRows) {
      const int64_t rows = std::min(kMostReadRows, chunk.num_read - row);
      // The picks of the rows that keep their logits are uploaded again behind these.
      auto* const staged = reinterpret_cast<int32_t*>(own_.input_staging->data());
      const int64_t first = host_.chunk_first_rows[index] + row;
      std::vector<int32_t> picks(static_cast<size_t>(rows));
      for (int64_t i = 0; i < rows; ++i)
        picks[static_cast<size_t>(i)] = static_cast<int32_t>(first + i);
      CopyToDevice(*stream_, reinterpret_cast<std::byte*>(picked()), picks.data(),
                   picks.size() * sizeof(int32_t));
      LaunchLogits(0, rows, false);
      CopyLogits(0, rows, host_.read_logits.data());
      CopyToDevice(*stream_, reinterpret_cast<std::byte*>(picked()), staged + 2 * own_.input_rows,
                   static_cast<size_t>(own_.input_rows) * sizeof(int32_t));
      chunk.reader->Read(row, rows, host_.read_logits.data());
    }
  }

  const DeviceModel& model_;
  const ModelConfig& config_;
  std::span<const ForwardChunk> chunks_;
  KvStore& store_;
  DeviceKvStore* const on_device_;
  ForwardWorkspace& host_;
  DeviceWorkspace& own_;
  const KvExtraNeeds extra_needs_;
  const BlockWidths widths_;
  Stream* stream_ = nullptr;
  bool has_few_sequences_ = false;
  std::optional<DeviceProducts> products_;
  std::optional<DeviceBlocks> blocks_;
  int64_t num_rows_ = 0;     // With rows without meaning, where launches are captured.
  int64_t decode_rows_ = 0;  // The first ones: of single tokens.
  bool is_captured_ = false;
  bool has_draws_ = false;
  std::vector<RowSlice> slices_;
  int64_t most_slice_rows_ = 0;
  int64_t num_logit_rows_ = 0;
  ProductSums mlp_sums_;  // Of the block before, not yet added to x.
  const float* mlp_sums_weight_ = nullptr;
};

DeviceModel::DeviceModel(const ModelConfig& config, const ModelParts& parts,
                         const RopeTables& ropes, float embedding_factor, DeviceId device,
                         int num_threads)
    : config_(config),
      rope_factor_(static_cast<float>(ropes.global().attention_factor())),
      local_rope_factor_(
          ropes.local() == nullptr ? 1.0f : static_cast<float>(ropes.local()->attention_factor())),
      embedding_factor_(embedding_factor),
      device_(device),
      weights_(config, parts, ropes, device, num_threads) {}

DeviceModel::~DeviceModel() = default;

std::vector<ForwardFailure> DeviceModel::Forward(std::span<const ForwardChunk> chunks,
                                                 KvStore& store,
                                                 ForwardWorkspace& workspace) const {
  // A pause between launches would let another Forward take the store's tables.
  const UnpausedScope whole;
  if (workspace.device == nullptr) workspace.device = std::make_shared<DeviceWorkspace>(device_);
  LayOutRows(chunks, workspace);
  Pass pass(*this, chunks, store, workspace);
  const OpenForward open(store);  // First: a store may run out of memory at the beginning.
  store.BeginForward(workspace.batch);
  pass.Run();
  OfferLogits(chunks, workspace, config_.vocab_size, store);
  store.EndForward();
  workspace.device_bytes = workspace.device->num_bytes();
  return FailuresOf(chunks, store);
}

}  // namespace pmkvq
