// The cache under test and an unquantised one in step.
#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <optional>
#include <span>
#include <utility>

#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"
#include "pmkvq/base/threads.h"
#include "pmkvq/comm/all_or_none.h"
#include "pmkvq/engine/engine.h"
#include "pmkvq/engine/request_check.h"
#include "pmkvq/kernels/softmax_xent/softmax_xent.h"
#include "pmkvq/kv/spec/packed_spec.h"
#include "pmkvq/model/ranks/model_ranks.h"
#include "pmkvq/research/eval/perplexity.h"
#include "pmkvq/research/methods/registry.h"

namespace pmkvq {
namespace {

// Enough rows that a weight matrix is read once for many tokens.
constexpr int64_t kMaxBatch = 8;
// The unquantised caches of a batch stay below this, but for one sequence at least.
constexpr int64_t kMaxBatchBytes = int64_t{1} << 30;

// The same options, key scales among them, unquantised.
KvOptions Fp16Options(const KvOptions& kv) {
  KvOptions options;
  options.spec = KeyScalesOf(kv).empty() ? "fp16:scales=off" : "fp16";
  options.plan = kv.plan;
  options.sink_tokens = kv.sink_tokens;
  options.kv_dtype = kv.kv_dtype;
  return options;
}

std::string WhereOf(size_t index) { return fmt::format("sequence {}", index); }

// Longest sequence, in tokens.
int64_t CheckSequences(const std::vector<std::vector<int32_t>>& sequences,
                       const ModelConfig& model) {
  if (sequences.empty()) throw InvalidInput("perplexity", "no sequences, expected at least one");
  size_t longest = 0;
  for (size_t i = 0; i < sequences.size(); ++i) {
    const size_t length = sequences[i].size();
    if (length < 2 || static_cast<int64_t>(length) > model.max_position_embeddings) {
      throw InvalidInput(
          WhereOf(i), fmt::format("{} tokens, expected 2 to the model's max_position_embeddings {}",
                                  length, model.max_position_embeddings));
    }
    CheckTokenIds(sequences[i], model.vocab_size, WhereOf(i));
    longest = std::max(longest, length);
  }
  return static_cast<int64_t>(longest);
}

// One cache and the activations of its Forwards.
struct Runner {
  std::unique_ptr<KvStore> store;
  ForwardWorkspace workspace;

  // Runs token `position` of each sequence; sequence i of the batch is sequence ids[i] of the
  // store. Logits: one row per sequence.
  void Step(const Model& model, std::span<const std::vector<int32_t>* const> sequences,
            std::span<const SequenceId> ids, int64_t position, int num_threads) {
    std::vector<ForwardChunk> chunks;
    for (size_t i = 0; i < sequences.size(); ++i) {
      const ReserveResult reserved = store->Reserve(ids[i], 1);
      if (reserved == ReserveResult::kBudgetExhausted) {
        throw InvalidInput("--kv-budget", fmt::format("spent after {} of {} tokens, expected room "
                                                      "for the longest sequence",
                                                      position, sequences[i]->size()));
      }
      if (reserved == ReserveResult::kFailed) ThrowIfFailed({{i, *store->FailureOf(ids[i])}});
      chunks.push_back(
          {ids[i], {sequences[i]->data() + position, 1}, position, ForwardChunk::Logits::kLast});
    }
    ThrowIfFailed(model.Forward(chunks, *store, workspace, num_threads));
    ThrowIfFailed(model.FailuresOfLogits(chunks, workspace));
    store->TakeHalvingEvents();
  }
};

struct Sums {
  double loss = 0;
  double kl = 0;
};

class Measurement {
 public:
  Measurement(const Model& model, const Model& reference_model, Runner& tested, Runner& reference,
              int num_threads)
      : model_(model),
        reference_model_(reference_model),
        tested_(tested),
        reference_(reference),
        num_threads_(num_threads) {}

  // `batch` from longest to shortest. `on_step(n)` follows each step of n predictions. Returns the
  // sums per sequence, so that a total does not depend on which sequences ran together.
  template <class OnStep>
  std::vector<Sums> Run(const std::vector<const std::vector<int32_t>*>& batch,
                        const OnStep& on_step) {
    std::vector<SequenceId> tested_ids, reference_ids;
    for (size_t i = 0; i < batch.size(); ++i) {
      tested_ids.push_back(tested_.store->Open().value());
      reference_ids.push_back(reference_.store->Open().value());
    }
    std::vector<Sums> sums(batch.size());
    size_t live = batch.size();
    for (int64_t pos = 0; pos + 1 < static_cast<int64_t>(batch[0]->size()); ++pos) {
      while (static_cast<int64_t>(batch[live - 1]->size()) <= pos + 1) --live;
      const std::span<const std::vector<int32_t>* const> running(batch.data(), live);
      tested_.Step(model_, running, {tested_ids.data(), live}, pos, num_threads_);
      reference_.Step(reference_model_, running, {reference_ids.data(), live}, pos, num_threads_);
      for (size_t i = 0; i < live; ++i) {
        AddRow(i, (*batch[i])[static_cast<size_t>(pos) + 1], sums[i]);
      }
      on_step(static_cast<int64_t>(live));
    }
    for (const SequenceId id : tested_ids) tested_.store->Close(id);
    for (const SequenceId id : reference_ids) reference_.store->Close(id);
    return sums;
  }

 private:
  void AddRow(size_t row, int32_t target, Sums& sums) const {
    const int64_t vocab_size = model_.config().vocab_size;
    const auto offset = static_cast<int64_t>(row) * vocab_size;
    const float* logits = tested_.workspace.logits.data() + offset;
    sums.loss += CrossEntropy(logits, vocab_size, target);
    sums.kl += KlDivergence(reference_.workspace.logits.data() + offset, logits, vocab_size);
  }

  const Model& model_;
  const Model& reference_model_;
  Runner& tested_;
  Runner& reference_;
  int num_threads_;
};

// Collects predictions and passes them on in portions.
class ProgressCounter {
 public:
  ProgressCounter(ProgressSink* sink, int64_t portion, int64_t total)
      : sink_(sink), portion_(portion) {
    if (sink_ != nullptr) sink_->Begin("perplexity", total, 0);
  }
  void Add(int64_t predictions) {
    pending_ += predictions;
    if (pending_ >= portion_) Report();
  }
  void End() {
    Report();
    if (sink_ != nullptr) sink_->End();
  }

 private:
  void Report() {
    if (sink_ != nullptr && pending_ > 0) sink_->Advance(pending_);
    pending_ = 0;
  }

  ProgressSink* sink_;
  int64_t portion_;
  int64_t pending_ = 0;
};

}  // namespace

PerplexityResult MeasurePerplexity(const std::shared_ptr<const Model>& model,
                                   const std::vector<std::vector<int32_t>>& sequences,
                                   const KvOptions& given_kv, int64_t chunk, int num_threads,
                                   ProgressSink* progress, const CancelFlag* cancel,
                                   const Model* reference_model, const PerplexityShare& share) {
  PMKVQ_CHECK(model != nullptr && chunk >= 1);
  if (reference_model == nullptr) reference_model = model.get();
  if (reference_model->config().vocab_size != model->config().vocab_size ||
      reference_model->kv_geometry() != model->kv_geometry()) {
    throw InvalidInput(
        "reference model",
        fmt::format(
            "found {} with another vocabulary, or other blocks, heads or head size than {}, "
            "expected the same model with other weights",
            reference_model->checkpoint().folder(), model->checkpoint().folder()));
  }
  const KvOptions kv = ApplySpecKeysFor(model->checkpoint().Identity(), given_kv);
  const int threads = num_threads > 0 ? num_threads : DefaultThreads();
  KvRequirements needs{model->kv_geometry(),
                       1,
                       CheckSequences(sequences, model->config()),
                       threads,
                       &model->rope(),
                       &model->checkpoint(),
                       chunk,
                       model->device(),
                       PackedStoresOf(*model)};
  const KvBudget budget = ResolveKvBudget(kv, needs);
  int64_t total = 0;
  for (size_t i = 0; i < sequences.size(); ++i) {
    const auto length = static_cast<int64_t>(sequences[i].size());
    CheckBudgetHolds(budget, length - 1, WhereOf(i));
    total += length - 1;
  }

  const KvOptions reference_kv = Fp16Options(kv);
  const int64_t bytes_per_sequence =
      budget.total_bytes() + ResolveKvBudget(reference_kv, needs).total_bytes();
  needs.max_sequences =
      std::min(std::clamp(kMaxBatchBytes / bytes_per_sequence, int64_t{1}, kMaxBatch),
               static_cast<int64_t>(sequences.size()));
  Runner tested{MakeKvStore(kv, needs), {}};
  KvRequirements reference_needs = needs;
  reference_needs.device = reference_model->device();
  reference_needs.make_packed = PackedStoresOf(*reference_model);
  Runner reference{MakeKvStore(reference_kv, reference_needs), {}};
  const std::shared_ptr<const Model> replaced = ModelWithWeightsOf(kv, *model, threads);
  Measurement measurement(replaced == nullptr ? *model : *replaced, *reference_model, tested,
                          reference, threads);

  std::vector<const std::vector<int32_t>*> order;  // Equal lengths together.
  for (const auto& sequence : sequences) order.push_back(&sequence);
  std::stable_sort(order.begin(), order.end(),
                   [](const auto* a, const auto* b) { return a->size() > b->size(); });
  std::vector<size_t> mine(order.size());  // Of `order`, ascending.
  std::iota(mine.begin(), mine.end(), size_t{0});
  const bool is_shared = !share.checkpoint_path.empty() || share.sharing.is_shared();
  std::optional<SharedSamples> shared;
  if (is_shared) {
    shared.emplace(SharedSamplesOptions{.task = "perplexity",
                                        .counts = {order.size(), 2, 2},
                                        .path = share.checkpoint_path,
                                        .fingerprint = share.fingerprint,
                                        .sharing = share.sharing});
    mine = shared->mine();
  }
  int64_t num_mine = 0;
  for (const size_t i : mine) num_mine += static_cast<int64_t>(order[i]->size()) - 1;
  Sums all;
  AllOrNone(share.sharing.ranks, [&] {
    ProgressCounter counter(progress, chunk, num_mine);
    const auto batch_size = static_cast<size_t>(needs.max_sequences);
    for (size_t first = 0; first < mine.size(); first += batch_size) {
      const size_t last = std::min(first + batch_size, mine.size());
      std::vector<const std::vector<int32_t>*> batch;
      for (size_t i = first; i < last; ++i) batch.push_back(order[mine[i]]);
      const std::vector<Sums> sums = measurement.Run(batch, [&](int64_t predictions) {
        ThrowIfCancelled(cancel, "perplexity");
        counter.Add(predictions);
      });
      for (size_t i = 0; i < sums.size(); ++i) {
        if (shared) shared->Add(mine[first + i], {sums[i].loss, sums[i].kl});
        all.loss += sums[i].loss;
        all.kl += sums[i].kl;
      }
    }
    counter.End();
  });
  if (shared) {
    const std::vector<double> values = shared->Finish();
    all = {values[0], values[1]};
  }
  const auto count = static_cast<double>(total);
  return {total, all.loss / count, all.kl / count};
}

}  // namespace pmkvq
