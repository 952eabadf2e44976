#include "pmkvq/research/methods/prompt_logits.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>

#include "pmkvq/base/error.h"
#include "pmkvq/base/threads.h"
#include "pmkvq/kv/spec/packed_spec.h"
#include "pmkvq/research/methods/registry.h"

namespace pmkvq {

Tensor PromptLogits(const Model& model, std::span<const int32_t> ids,
                    const SpecEngineOptions& options, const CancelFlag* cancel) {
  const ModelConfig& config = model.config();
  const auto num_tokens = std::ssize(ids);
  if (ids.empty()) throw InvalidInput("ids", "found none, expected at least one token");
  for (const int32_t id : ids) {
    if (id >= 0 && id < config.vocab_size) continue;
    throw InvalidInput("ids", fmt::format("token id {} is out of range; expected 0 to {}", id,
                                          config.vocab_size - 1));
  }
  if (num_tokens > config.max_position_embeddings) {
    throw InvalidInput("ids", fmt::format("found {} tokens; the model has {} positions", num_tokens,
                                          config.max_position_embeddings));
  }
  const KvOptions kv = ApplySpecKeysFor(model.checkpoint().Identity(), options.kv);
  const int threads = options.num_threads > 0 ? options.num_threads : DefaultThreads();
  const KvRequirements requirements{model.kv_geometry(),
                                    1,
                                    std::max<int64_t>(options.max_len, num_tokens),
                                    threads,
                                    &model.rope(),
                                    &model.checkpoint(),
                                    options.chunk,
                                    kv.kv_dtype == DType::kF16 ? model.device() : DeviceId{}};
  const std::unique_ptr<KvStore> store = MakeKvStore(kv, requirements);
  const std::shared_ptr<const Model> replaced = ModelWithWeightsOf(kv, model, threads);
  const Model& computed = replaced == nullptr ? model : *replaced;
  const SequenceId seq = store->Open().value();
  Tensor logits(DType::kF32, {num_tokens, config.vocab_size});
  ForwardWorkspace workspace;
  for (int64_t start = 0; start < num_tokens; start += options.chunk) {
    ThrowIfCancelled(cancel, "logits");
    const int64_t count = std::min<int64_t>(options.chunk, num_tokens - start);
    const ReserveResult reserved = store->Reserve(seq, count);
    if (reserved == ReserveResult::kFailed) ThrowIfFailed({{0, *store->FailureOf(seq)}});
    if (reserved == ReserveResult::kBudgetExhausted) {
      const KvBudget limits = ResolveKvBudget(kv, requirements);
      throw InvalidInput(
          "--kv-budget",
          fmt::format(
              "{} bytes are too few for a prompt of {} tokens; the smallest that works is {}",
              limits.total_bytes(), num_tokens, limits.SmallestThatHolds(num_tokens)));
    }
    ForwardChunk chunk{seq, ids.subspan(static_cast<size_t>(start), static_cast<size_t>(count)),
                       start, ForwardChunk::Logits::kAll};
    chunk.ends_prompt = start + count == num_tokens;
    ThrowIfFailed(computed.Forward({&chunk, 1}, *store, workspace, threads));
    ThrowIfFailed(computed.FailuresOfLogits({&chunk, 1}, workspace));
    std::copy_n(workspace.logits.begin(), count * config.vocab_size,
                logits.As<float>() + start * config.vocab_size);
  }
  return logits;
}

}  // namespace pmkvq
