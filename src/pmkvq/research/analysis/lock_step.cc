#include "pmkvq/research/analysis/lock_step.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"
#include "pmkvq/engine/request_check.h"
#include "pmkvq/kernels/softmax_xent/softmax_xent.h"
#include "pmkvq/research/analysis/attention_recorder.h"
#include "pmkvq/research/analysis/series.h"

namespace pmkvq {
namespace {

// One cache, its sequence and the memory of its Forwards.
struct Lane {
  Lane(const KvOptions& kv, const KvRequirements& needs, const Model& given)
      : replaced(ModelWithWeightsOf(kv, given, needs.num_threads)),
        model(replaced == nullptr ? given : *replaced),
        store(MakeKvStore(kv, needs), needs.geometry, *needs.rope),
        seq(store.Open().value()) {}

  std::shared_ptr<const Model> replaced;  // Null: the given one.
  const Model& model;
  AttentionRecorder store;
  SequenceId seq;
  ForwardWorkspace workspace;
};

class LockStep {
 public:
  LockStep(const std::shared_ptr<const Model>& model, std::span<const int32_t> tokens,
           const std::vector<KvOptions>& caches, const LockStepOptions& options)
      : model_(*model), tokens_(tokens), options_(options) {
    Check();
    // Attention weights are recorded over all tokens.
    RefuseSlidingWindows(model_.kv_geometry(), model_.checkpoint().folder());
    const int64_t max_len = options.max_len > 0 ? options.max_len : Length();
    const KvRequirements needs{
        model_.kv_geometry(), 1, max_len, options.num_threads, &model_.rope(),
        &model_.checkpoint()};
    KvOptions unquantised;
    unquantised.kv_dtype = caches.empty() ? DType::kF16 : caches.front().kv_dtype;
    reference_ = std::make_unique<Lane>(unquantised, needs, model_);
    for (const KvOptions& kv : caches) lanes_.push_back(std::make_unique<Lane>(kv, needs, model_));
    result_.caches.resize(caches.size());
  }

  LockStepResult Run() {
    // The last token predicts nothing that is known.
    const int64_t end = Length() - 1;
    for (int64_t start = 0; start < end;) {
      ThrowIfCancelled(options_.cancel, "analyze");
      const bool measured = start >= options_.first;
      const int64_t count = measured ? std::min(options_.chunk, end - start)
                                     : std::min(options_.prefill_chunk, options_.first - start);
      Step(start, count, measured);
      start += count;
      if (measured && options_.progress != nullptr) options_.progress->Advance(count);
    }
    for (size_t i = 0; i < lanes_.size(); ++i) {
      const KvSequenceStats stats = lanes_[i]->store.SequenceStats(lanes_[i]->seq);
      result_.caches[i].peak_bytes = stats.peak_bytes;
      result_.caches[i].budget_bytes = stats.budget_bytes;
    }
    return std::move(result_);
  }

 private:
  int64_t Length() const { return static_cast<int64_t>(tokens_.size()); }

  void Check() const {
    PMKVQ_CHECK(options_.chunk >= 1 && options_.prefill_chunk >= 1 && options_.first >= 0);
    PMKVQ_CHECK(options_.attention_stride == 0 || options_.chunk == 1);
    const int64_t positions = model_.config().max_position_embeddings;
    const int64_t most = options_.max_len > 0 ? std::min(options_.max_len, positions) : positions;
    if (Length() < options_.first + 2 || Length() > most) {
      throw InvalidInput("tokens", fmt::format("found {}, expected {} to {} (--max-len and the "
                                               "model's positions)",
                                               Length(), options_.first + 2, most));
    }
    CheckTokenIds({tokens_.begin(), tokens_.end()}, model_.config().vocab_size, "tokens");
  }

  bool RecordsAttention(int64_t position, bool measured) const {
    const int64_t stride = options_.attention_stride;
    // Pages open at multiples of 128 tokens behind the sink: not in the middle of a usual stride.
    return measured && stride > 0 && (position - options_.first) % stride == stride / 2;
  }

  void Step(int64_t start, int64_t count, bool measured) {
    const bool attention = RecordsAttention(start, measured);
    Advance(*reference_, start, count, measured, attention);
    if (measured) AddPredictions(*reference_, start, count, result_.unquantised);
    for (size_t i = 0; i < lanes_.size(); ++i) {
      CacheTrace& trace = result_.caches[i];
      if (trace.spent_at >= 0) continue;
      if (!Advance(*lanes_[i], start, count, measured, attention)) {
        trace.spent_at = start;
        continue;
      }
      if (measured) AddPredictions(*lanes_[i], start, count, trace.predictions);
      if (attention) AddAttention(*lanes_[i], start, trace);
    }
  }

  // False when the budget is spent.
  bool Advance(Lane& lane, int64_t start, int64_t count, bool measured, bool attention) {
    if (attention) lane.store.RecordNext(lane.seq);
    const ReserveResult reserved = lane.store.Reserve(lane.seq, count);
    if (reserved == ReserveResult::kBudgetExhausted) return false;
    if (reserved == ReserveResult::kFailed) ThrowIfFailed({{0, *lane.store.FailureOf(lane.seq)}});
    ForwardChunk chunk{lane.seq,
                       tokens_.subspan(static_cast<size_t>(start), static_cast<size_t>(count)),
                       start, measured ? ForwardChunk::Logits::kAll : ForwardChunk::Logits::kNone};
    chunk.ends_prompt = !measured && start + count == options_.first;
    ThrowIfFailed(
        lane.model.Forward({&chunk, 1}, lane.store, lane.workspace, options_.num_threads));
    ThrowIfFailed(lane.model.FailuresOfLogits({&chunk, 1}, lane.workspace));
    lane.store.TakeHalvingEvents();
    return true;
  }

  void AddPredictions(const Lane& lane, int64_t start, int64_t count,
                      std::vector<Prediction>& predictions) const {
    const int64_t vocab_size = model_.config().vocab_size;
    for (int64_t row = 0; row < count; ++row) {
      const float* logits = lane.workspace.logits.data() + row * vocab_size;
      const float* exact = reference_->workspace.logits.data() + row * vocab_size;
      Prediction prediction;
      prediction.loss =
          CrossEntropy(logits, vocab_size, tokens_[static_cast<size_t>(start + row) + 1]);
      // Rounding may leave a little less than nothing between equal distributions.
      prediction.kl = std::max(KlDivergence(exact, logits, vocab_size), 0.0);
      prediction.top = static_cast<int32_t>(std::max_element(logits, logits + vocab_size) - logits);
      predictions.push_back(prediction);
    }
  }

  void AddAttention(const Lane& lane, int64_t position, CacheTrace& trace) const {
    const UniformKvGeometry geometry = AttendedKeysOf(model_.kv_geometry());
    AttentionSample sample;
    sample.position = position;
    sample.bytes = lane.store.SequenceStats(lane.seq).bytes;
    for (size_t layer = 0; layer < static_cast<size_t>(geometry.num_layers); ++layer) {
      const std::vector<float>& exact = reference_->store.log_weights()[layer];
      const std::vector<float>& tested = lane.store.log_weights()[layer];
      const int64_t count = position + 1;
      PMKVQ_CHECK(static_cast<int64_t>(exact.size()) == geometry.num_heads * count &&
                  exact.size() == tested.size());
      double sum = 0;
      for (int64_t head = 0; head < geometry.num_heads; ++head) {
        sum += KlOfLogs(exact.data() + head * count, tested.data() + head * count, count);
      }
      sample.kl.push_back(sum / static_cast<double>(geometry.num_heads));
    }
    trace.attention.push_back(std::move(sample));
  }

  const Model& model_;
  std::span<const int32_t> tokens_;
  const LockStepOptions& options_;
  std::unique_ptr<Lane> reference_;
  std::vector<std::unique_ptr<Lane>> lanes_;
  LockStepResult result_;
};

}  // namespace

LockStepResult RunLockStep(const std::shared_ptr<const Model>& model,
                           std::span<const int32_t> tokens, const std::vector<KvOptions>& caches,
                           const LockStepOptions& options) {
  LockStep lock_step(model, tokens, caches, options);
  return lock_step.Run();
}

std::vector<CacheMeans> MeasureMeans(const std::shared_ptr<const Model>& model,
                                     const std::vector<std::vector<int32_t>>& texts,
                                     const std::vector<KvOptions>& caches,
                                     const LockStepOptions& options) {
  std::vector<CacheMeans> means(caches.size());
  for (size_t text = 0; text < texts.size(); ++text) {
    const LockStepResult result = RunLockStep(model, texts[text], caches, options);
    for (size_t i = 0; i < caches.size(); ++i) {
      const CacheTrace& trace = result.caches[i];
      if (trace.spent_at >= 0) {
        throw InvalidInput("--memory-budget",
                           fmt::format("{} spent its budget after {} of the {} tokens of text {}, "
                                       "expected room for all",
                                       caches[i].spec, trace.spent_at, texts[text].size(), text));
      }
      means[i].num_predictions += static_cast<int64_t>(trace.predictions.size());
      for (size_t p = 0; p < trace.predictions.size(); ++p) {
        means[i].loss += trace.predictions[p].loss;
        means[i].kl += trace.predictions[p].kl;
        means[i].fp16_loss += result.unquantised[p].loss;
      }
    }
  }
  for (CacheMeans& mean : means) {
    const auto count = static_cast<double>(std::max<int64_t>(mean.num_predictions, 1));
    mean.loss /= count;
    mean.kl /= count;
    mean.fp16_loss /= count;
  }
  return means;
}

}  // namespace pmkvq
