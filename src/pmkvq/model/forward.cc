#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <tuple>

#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"
#include "pmkvq/kernels/norm/norm.h"
#include "pmkvq/model/detail.h"
#include "pmkvq/model/model_impl.h"

namespace pmkvq {
namespace {

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
// MatMul's bits do not depend on the number of rows; every longer chunk is one slice.
// Behind the attention of the last block only rows that asked for logits are computed; one row of a
// longer chunk is then like a row with one token.
class ForwardPass {
 public:
  ForwardPass(const Model& model, std::span<const ForwardChunk> chunks, ForwardWorkspace& workspace,
              const KvExtraNeeds& extra_needs, int num_threads)
      : model_(model),
        config_(model.config()),
        chunks_(chunks),
        workspace_(workspace),
        num_threads_(num_threads),
        frame_(workspace.scratch) {
    LayOutRows();
    TakeBuffers(extra_needs);
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
    // The last block's result is read for these rows only.
    const int64_t num_logit_rows = NumLogitRows(chunk);
    PMKVQ_CHECK(!chunk.one_by_one || (num_logit_rows <= 1 && chunk.num_read == 0));
    PMKVQ_CHECK(chunk.num_read == 0 || (chunk.reader != nullptr && num_logit_rows <= 1 &&
                                        chunk.num_read + num_logit_rows <= num_tokens));
    if (chunk.num_read > 0) AddSlice(first_row, chunk.num_read, workspace_.last_slices);
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
      MatMul(normed_, num_rows, model_.output_head(), nullptr, workspace_.read_logits.data(),
             num_threads_);
      chunk.reader->Read(row, num_rows, workspace_.read_logits.data());
    }
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
  const int num_threads_;
  const Scratch<float>::Frame frame_;
  ForwardRows rows_;

  float* x_ = nullptr;  // [rows, E], the residual stream
  float* normed_ =
      nullptr;  // [max(kDecodeRows, slice rows), E], rows that wait for the output head
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
