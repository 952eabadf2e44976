#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <tuple>

#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"
#include "pmkvq/kernels/norm/norm.h"
#include "pmkvq/model/detail.h"
#include "pmkvq/model/device/device_model.h"
#include "pmkvq/model/forward_layout.h"
#include "pmkvq/model/model_impl.h"
#include "pmkvq/model/ranks/model_ranks.h"

namespace pmkvq {
namespace {

using model_detail::EmbedToken;
using model_detail::GrowTo;

// One Forward on the CPU: the layout of its rows, and the steps on them.
class ForwardPass {
 public:
  ForwardPass(const Model& model, std::span<const ForwardChunk> chunks, ForwardWorkspace& workspace,
              const KvExtraNeeds& extra_needs, int num_threads)
      : model_(model),
        config_(model.config()),
        chunks_(chunks),
        workspace_(workspace),
        num_threads_(num_threads),
        has_logits_(model.shard() == nullptr || model.shard()->rank == 0),
        frame_(workspace.scratch) {
    LayOutRows(chunks_, workspace_);
    TakeBuffers(extra_needs);
  }

  void Embed() {
    for (size_t i = 0; i < chunks_.size(); ++i) {
      float* row = x_ + workspace_.chunk_first_rows[i] * config_.hidden_size;
      for (const int32_t token : chunks_[i].tokens) {
        PMKVQ_CHECK_MSG(token >= 0 && token < config_.vocab_size, "token id out of range");
        EmbedToken(model_, token, row);
        row += config_.hidden_size;
      }
    }
  }

  void RunBlock(int64_t layer, KvStore& store) {
    const bool is_last = layer + 1 == config_.num_layers;
    rows_.read_slices = is_last ? workspace_.last_slices : workspace_.slices;
    model_.attention(layer).Forward(rows_, store, x_);
    model_.mlp(layer).Forward(rows_, x_);
  }

  void ComputeLogits() {
    int64_t num_logit_rows = 0;
    for (const ForwardChunk& chunk : chunks_) num_logit_rows += NumLogitRows(chunk);
    GrowTo(workspace_.logits, num_logit_rows * config_.vocab_size);
    workspace_.num_logit_rows = 0;
    int64_t pending = 0;
    for (size_t i = 0; i < chunks_.size(); ++i) {
      if (chunks_[i].num_read > 0) {
        pending = FlushLogits(pending);
        HandOver(i);
      }
      const int64_t num_rows = NumLogitRows(chunks_[i]);
      if (num_rows == 0) continue;
      // Several rows of one sequence are always one product: their bits depend on its number of
      // rows.
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
  void TakeBuffers(const KvExtraNeeds& extra_needs) {
    rows_.num_rows = std::ssize(workspace_.positions);
    rows_.positions = workspace_.positions.data();
    rows_.slices = workspace_.slices;
    for (const auto* slices : {&workspace_.slices, &workspace_.last_slices}) {
      for (const RowSlice& slice : *slices) {
        rows_.max_slice_rows = std::max(rows_.max_slice_rows, slice.num_rows);
      }
    }
    rows_.extra_needs = extra_needs;
    rows_.scratch = &workspace_.scratch;
    rows_.num_threads = num_threads_;
    std::tie(x_, normed_) = TakeRowBuffers(config_, rows_);
  }

  // Logits of the rows that this chunk's reader wants. Pieces are counted from the chunk's first
  // row: a row's bits depend on its chunk only.
  void HandOver(size_t index) {
    const ForwardChunk& chunk = chunks_[index];
    const float* const x = x_ + workspace_.chunk_first_rows[index] * config_.hidden_size;
    GrowTo(workspace_.read_logits, std::min(chunk.num_read, kMostReadRows) * config_.vocab_size);
    for (int64_t row = 0; row < chunk.num_read; row += kMostReadRows) {
      const int64_t num_rows = std::min(kMostReadRows, chunk.num_read - row);
      RmsNorm(x + row * config_.hidden_size, num_rows, config_.hidden_size,
              model_.final_norm().data(), config_.rms_norm_eps, normed_, num_threads_);
      MultiplyWithHead(num_rows, workspace_.read_logits.data());
      if (has_logits_) chunk.reader->Read(row, num_rows, workspace_.read_logits.data());
    }
  }

  // Multiplies the `num_rows` rows waiting in normed_ with the output head. Returns 0, the number
  // of rows that wait now.
  int64_t FlushLogits(int64_t num_rows) {
    if (num_rows == 0) return 0;
    float* logits = workspace_.logits.data() + workspace_.num_logit_rows * config_.vocab_size;
    MultiplyWithHead(num_rows, logits);
    workspace_.num_logit_rows += num_rows;
    return 0;
  }

  // logits [num_rows, V] of the rows in normed_; of a shard that is not rank 0's they are
  // undefined.
  void MultiplyWithHead(int64_t num_rows, float* logits) {
    const ModelShard* const shard = model_.shard();
    const WeightView& head = model_.output_head();
    if (shard == nullptr) return MatMul(normed_, num_rows, head, nullptr, logits, num_threads_);
    float* local = logits;
    if (shard->size > 1) {
      GrowTo(workspace_.local_logits, num_rows * head.rows);
      local = workspace_.local_logits.data();
    }
    const Projection<float> product[] = {{&head, nullptr, local}};
    const SliceRange* const range[] = {&shard->vocab};
    SlicedProducts(normed_, num_rows, product, range, num_threads_);
    if (shard->size > 1) GatherLogits(local, num_rows, *shard, logits);
  }

  const Model& model_;
  const ModelConfig& config_;
  std::span<const ForwardChunk> chunks_;
  ForwardWorkspace& workspace_;
  const int num_threads_;
  const bool has_logits_;
  const Scratch<float>::Frame frame_;
  ForwardRows rows_;

  float* x_ = nullptr;  // [rows, E], the residual stream
  float* normed_ =
      nullptr;  // [max(kDecodeRows, slice rows), E], rows that wait for the output head
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
  // NaN may have either sign; messages show it without one.
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
  workspace.drawn.clear();
  if (chunks.empty()) return {};
  if (impl_->device != nullptr) return impl_->device->Forward(chunks, store, workspace);
  if (impl_->ranks != nullptr) {
    return impl_->ranks->Forward(*this, chunks, store, workspace, num_threads);
  }
  return ForwardHere(*this, chunks, store, workspace, num_threads);
}

std::vector<ForwardFailure> ForwardHere(const Model& model, std::span<const ForwardChunk> chunks,
                                        KvStore& store, ForwardWorkspace& workspace,
                                        int num_threads) {
  if (chunks.empty()) return {};
  PMKVQ_CHECK_MSG(store.OnDevice() == nullptr, "a model on the CPU with pages on a device");
  const int64_t num_layers = model.config().num_layers;
  ForwardPass pass(model, chunks, workspace, store.ExtraNeeds(), num_threads);
  pass.Embed();
  store.BeginForward(workspace.batch);
  const OpenForward open(store);
  for (int64_t layer = 0; layer < num_layers; ++layer) pass.RunBlock(layer, store);
  pass.ComputeLogits();  // Before EndForward: when memory runs out here, nothing counts as stored.
  OfferLogits(chunks, workspace, model.config().vocab_size, store);
  store.EndForward();
  return FailuresOf(chunks, store);
}

}  // namespace pmkvq
