#include "pmkvq/engine/engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>
#include <variant>

#include "pmkvq/base/check.h"
#include "pmkvq/base/threads.h"
#include "pmkvq/engine/engine_impl.h"
#include "pmkvq/engine/request_check.h"
#include "pmkvq/engine/session_file.h"
#include "pmkvq/kv/spec/packed_spec.h"
#include "pmkvq/model/model_size.h"
#include "pmkvq/model/ranks/model_ranks.h"

namespace pmkvq {
namespace {

std::vector<Completion> RunToEnd(Engine& engine, std::span<const RequestId> ids,
                                 EngineObserver* observer, const CancelFlag* cancel) {
  CompletionCollector collector(observer);
  const CancelScope scope(cancel, "generate");
  for (size_t next = 0; next < ids.size();) {
    if (collector.Has(ids[next])) {
      ++next;
    } else if (IsCancelled(cancel)) {
      engine.CancelAll(&collector);
    } else {
      engine.Step(&collector);
    }
  }
  std::vector<Completion> completions;
  for (const RequestId id : ids) completions.push_back(collector.Take(id));
  return completions;
}

}  // namespace

KvRequirements RequirementsOf(const Checkpoint& checkpoint, const EngineOptions& options) {
  KvRequirements needs;
  needs.geometry = KvGeometryOf(checkpoint.config());
  needs.max_sequences = options.max_sequences;
  needs.max_len = CheckEngineOptions(options, checkpoint.config());
  needs.num_threads = options.num_threads > 0 ? options.num_threads : DefaultThreads();
  needs.checkpoint = &checkpoint;
  needs.chunk_tokens = options.chunk;
  return needs;
}

KvRequirements RequirementsOf(const Model& model, const EngineOptions& options) {
  KvRequirements needs = RequirementsOf(model.checkpoint(), options);
  needs.rope = &model.rope();
  needs.device = model.device();
  needs.make_packed = PackedStoresOf(model);
  return needs;
}

EngineCache MakePackedCache(const Model& model, const KvOptions& options,
                            const EngineOptions& engine) {
  const KvOptions kv = ApplySpecKeysFor(model.checkpoint().Identity(), options);
  const CacheConfig config = ResolvePackedConfig(kv, RequirementsOf(model, engine));
  return {MakePackedStore(model, config), KvBudget(config)};
}

std::string_view NameOf(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kKvBudget:
      return "kv_budget";
    case FinishReason::kCancelled:
      return "cancelled";
    case FinishReason::kError:
      break;
  }
  return "error";
}

Engine::Impl::Impl(std::shared_ptr<const Model> m, std::shared_ptr<const Tokenizer> t,
                   EngineCache cache, const EngineOptions& o)
    : model(std::move(m)),
      tokenizer(std::move(t)),
      options(o),
      max_len(CheckEngineOptions(o, model->config())),
      num_threads(o.num_threads > 0 ? o.num_threads : DefaultThreads()),
      budget(std::move(cache.budget)),
      store(std::move(cache.store)),
      sequences(store.get()),
      prefill_turns(model.get(), store.get(), num_threads),
      by_seq(static_cast<size_t>(o.max_sequences), nullptr) {
  // Ranks compute one Forward after another: a prompt's chunk is not set aside for tokens.
  if (model->ranks() != nullptr) options.prefill_share = 1;
  running.reserve(by_seq.size());
  if (budget.has_pool()) {
    pool = std::make_unique<PoolScheduler>(*budget.packed(), options.pool, max_len);
  }
}

void Engine::Impl::Check(const Request& request) const {
  CheckRequest(request, model->config(), budget, max_len, tokenizer != nullptr);
  if (pool != nullptr) {
    pool->Check(request);
  } else if (request.kv_min_bits != 0 || request.priority != 0 || request.kv_history) {
    throw InvalidInput(request.kv_min_bits != 0 ? "kv_min_bits"
                       : request.priority != 0  ? "priority"
                                                : "kv_replay",
                       "found one where each request has a budget to itself, expected none "
                       "(--kv-mode pool has it)");
  }
}

RequestId Engine::Impl::Submit(Request request, std::shared_ptr<SampleGroup> group) {
  auto task = std::make_unique<Task>(next_id, std::move(request), tokenizer);
  task->end_ids = task->request.stop_ids;
  if (!task->request.ignore_eos) {
    for (const int64_t id : model->config().eos_token_ids) {
      if (id >= 0 && id < model->config().vocab_size) {
        task->end_ids.push_back(static_cast<int32_t>(id));
      }
    }
  }
  task->group = std::move(group);
  const int64_t room = max_len - task->prompt_len();
  const int64_t asked = task->request.max_tokens;
  task->max_drawn = asked == 0 ? room : std::min(asked, room);
  const int64_t num_prompt_logprobs = task->request.num_prompt_logprobs;
  if (num_prompt_logprobs >= 0) {
    task->prompt_logprobs = std::make_unique<PromptLogprobs>(model.get(), task->request.prompt_ids,
                                                             num_prompt_logprobs, num_threads);
  }
  if (task->max_drawn == 0 && num_prompt_logprobs < 0) {  // The prompt fills max_len.
    over.push_back(std::move(task));
  } else {
    if (task->max_drawn > 0) PushReplayed(*task);
    waiting.Push(std::move(task));
  }
  return next_id++;
}

void Engine::Impl::PushReplayed(Task& task) {
  for (const int32_t token : task.request.replay_ids) {
    if (task.finish_after_replay) break;
    Push(task, token, task.finish_after_replay);
  }
  SkipSamples(task.request.sampling, task.num_drawn(), task.random);
}

void Engine::Impl::Admit() {
  for (const auto& task : over) Finish(*task, task->finish.value_or(FinishReason::kLength));
  over.clear();
  while (static_cast<int64_t>(running.size()) < options.max_sequences) {
    std::unique_ptr<Task> task = waiting.Pop();
    if (task == nullptr) return;
    if (pool != nullptr && !pool->Admits(*task, running)) {
      waiting.PutBack(std::move(task));  // Nobody passes it: it would wait for ever.
      return;
    }
    try {
      task->seq = sequences.Acquire(task->request.session, task->request.prompt_ids);
      // What it draws is added without moving the tokens, which chunks under way point to.
      task->tokens.reserve(static_cast<size_t>(task->prompt_len() + task->max_drawn));
    } catch (...) {  // No memory.
      waiting.PutBack(std::move(task));
      throw;
    }
    PMKVQ_CHECK(task->seq.has_value());
    if (pool != nullptr) StartSequence(*task);
    by_seq[static_cast<size_t>(*task->seq)] = task.get();
    running.push_back(std::move(task));
  }
}

bool Engine::Impl::Step(EngineObserver* observer) {
  const AddTime timing(&stats.step_seconds);
  ++stats.num_steps;
  const UncancelledScope whole;  // Requests are cancelled between steps.
  // What a Step that the observer or a lack of memory ended has left.
  Report(observer);
  RemoveFinished();
  Admit();
  const Clock::time_point start = Clock::now();
  SortRunning();
  if (!prefilling.empty() && (decoding.empty() || options.prefill_share >= 1)) {
    Prefill(whole);
  } else if (!decoding.empty()) {
    Decode(observer, whole);
    const double share = options.prefill_share;
    const double seconds = SecondsSince(start);
    Report(observer);
    if (!prefilling.empty()) PrefillBesideDecoding(seconds * share / (1 - share), whole);
  }
  Report(observer);
  const double seconds = SecondsSince(start);
  for (const auto& task : running) {
    if (task->clock != nullptr) *task->clock += seconds;
    task->clock = nullptr;
  }
  RemoveFinished();
  Report(observer);
  return !running.empty() || !waiting.empty() || !over.empty();
}

bool Engine::Impl::Cancel(RequestId id, EngineObserver* observer) {
  const auto run = std::find_if(running.begin(), running.end(),
                                [&](const std::unique_ptr<Task>& task) { return task->id == id; });
  bool is_found = false;
  if (const std::unique_ptr<Task> ended = waiting.Take(id)) {
    Finish(*ended, FinishReason::kCancelled);
    is_found = true;
  } else if (run != running.end() && !(*run)->finish) {
    const std::unique_ptr<Task> task = std::move(*run);
    running.erase(run);
    Finish(*task, FinishReason::kCancelled);
    is_found = true;
  }
  Report(observer);
  return is_found;
}

void Engine::Impl::Finish(Task& task, FinishReason reason) {
  task.text.Finish();
  Completion completion;
  completion.id = task.id;
  completion.output_ids.assign(task.tokens.begin() + task.prompt_len(), task.tokens.end());
  completion.text = task.text.text();
  completion.logprobs = std::move(task.logprobs);
  completion.finish_reason = reason;
  if (reason == FinishReason::kStop) completion.stop_string = task.text.stop_string();
  completion.error = std::move(task.error);
  completion.prefill_seconds = task.prefill_seconds;
  completion.decode_seconds = task.decode_seconds;
  completion.longest_pause_us = task.longest_pause_us;
  completion.num_preemptions = task.num_preemptions;
  completion.num_cached_tokens = task.num_cached;
  if (pool != nullptr) pool->OnEnded(task, reason);
  if (task.seq) {
    TakeHalvings();  // While it is known whose they are.
    EndHistory(store->NumTokens(*task.seq), task.history);
    if (prefill_turns.task() == &task) prefill_turns.GiveUp();
    by_seq[static_cast<size_t>(*task.seq)] = nullptr;
    waiting.FreeSession(task.request.session);
    if (task.group != nullptr && task.group->leader == &task) task.group->leader = nullptr;
    completion.kv = store->SequenceStats(*task.seq);
    if (pool != nullptr) KeepPrefix(task);  // It may have been given up meanwhile.
    if (task.prompt_logprobs != nullptr) completion.prompt_logprobs = task.prompt_logprobs->Take();
    // A failed sequence is of no use to the next request of its session. A sequence whose Forward
    // was cancelled has failed, too.
    const bool failed = reason == FinishReason::kError || store->FailureOf(*task.seq) != nullptr;
    const int64_t session = failed ? -1 : task.request.session;
    sequences.Release(*task.seq, session, std::move(task.tokens));
  }
  completion.history = std::move(task.history);
  completion.prompt_ids = std::move(task.request.prompt_ids);
  events.Push(std::move(completion));
}

void Engine::Impl::RemoveFinished() {
  for (auto it = running.begin(); it != running.end();) {
    if (!(*it)->finish) {
      ++it;
      continue;
    }
    const std::unique_ptr<Task> ended = std::move(*it);
    it = running.erase(it);
    Finish(*ended, *ended->finish);
  }
}

void Engine::Impl::Report(EngineObserver* observer) {
  while (!events.empty()) {
    const Event event = events.Pop();
    if (observer == nullptr) continue;
    const AddTime timing(&stats.observer_seconds);
    Tell(*observer, event);
  }
}

Engine::Engine(std::shared_ptr<const Model> model, std::shared_ptr<const Tokenizer> tokenizer,
               EngineCache cache, const EngineOptions& options) {
  PMKVQ_CHECK(model != nullptr && cache.store != nullptr);
  impl_ = std::make_unique<Impl>(std::move(model), std::move(tokenizer), std::move(cache), options);
}

Engine::~Engine() = default;
Engine::Engine(Engine&&) noexcept = default;
Engine& Engine::operator=(Engine&&) noexcept = default;

RequestId Engine::Submit(Request request) {
  impl_->Check(request);
  return impl_->Submit(std::move(request));
}

std::vector<RequestId> Engine::SubmitSamples(const Request& request,
                                             std::span<const uint64_t> seeds) {
  impl_->Check(request);
  std::vector<Request> samples(seeds.size(), request);
  for (size_t i = 0; i < seeds.size(); ++i) samples[i].seed = seeds[i];
  return SubmitSamples(std::move(samples));
}

std::vector<RequestId> Engine::SubmitSamples(std::vector<Request> requests) {
  for (const Request& request : requests) {
    impl_->Check(request);
    if (request.session >= 0) {
      throw InvalidInput("session", "found one with several samples, expected none");
    }
    if (!request.replay_ids.empty()) {
      throw InvalidInput("replay_ids", "found some with several samples, expected none");
    }
    if (request.kv_history && requests.size() > 1) {
      throw InvalidInput("kv_replay", "found one with several samples, expected one for each");
    }
    if (request.prompt_ids != requests.front().prompt_ids) {
      throw InvalidInput("prompt_ids", "found several prompts, expected samples of one");
    }
    if (request.num_prompt_logprobs != requests.front().num_prompt_logprobs) {
      throw InvalidInput("num_prompt_logprobs",
                         "found several values, expected one for all samples");
    }
  }
  const auto group = std::make_shared<SampleGroup>();
  std::vector<RequestId> ids;
  for (Request& request : requests) ids.push_back(impl_->Submit(std::move(request), group));
  return ids;
}

bool Engine::Step(EngineObserver* observer) { return impl_->Step(observer); }

std::vector<Completion> Engine::Generate(std::vector<Request> requests, EngineObserver* observer,
                                         const CancelFlag* cancel) {
  for (const Request& request : requests) impl_->Check(request);  // All of them, or none is queued.
  std::vector<RequestId> ids;
  for (Request& request : requests) ids.push_back(impl_->Submit(std::move(request)));
  return RunToEnd(*this, ids, observer, cancel);
}

std::vector<Completion> Engine::GenerateSamples(const Request& request,
                                                std::span<const uint64_t> seeds,
                                                EngineObserver* observer,
                                                const CancelFlag* cancel) {
  return RunToEnd(*this, SubmitSamples(request, seeds), observer, cancel);
}

bool Engine::Cancel(RequestId id, EngineObserver* observer) { return impl_->Cancel(id, observer); }

void Engine::CancelAll(EngineObserver* observer) {
  const UncancelledScope whole;  // All completions reach the observer, as in a step.
  for (const auto& task : impl_->running) {
    if (!task->finish) task->finish = FinishReason::kCancelled;
  }
  impl_->RemoveFinished();
  for (const auto& task : std::exchange(impl_->over, {})) {
    impl_->Finish(*task, FinishReason::kCancelled);
  }
  while (const std::unique_ptr<Task> task = impl_->waiting.TakeAny()) {
    impl_->Finish(*task, FinishReason::kCancelled);
  }
  impl_->Report(observer);
}

void Engine::CloseSession(int64_t session) {
  for (const auto& task : impl_->running) {
    if (task->request.session == session) task->request.session = -1;
  }
  impl_->waiting.FreeSession(session);
  impl_->sequences.CloseSession(session);
}

void Engine::SaveSession(int64_t session, const std::string& path, const std::string& note) const {
  const SequenceKeeper::Session* kept = impl_->sequences.FindIdle(session);
  if (kept == nullptr) {
    throw InvalidInput("session", fmt::format("found {}, expected an idle session", session));
  }
  std::optional<SequenceImage> image = impl_->store->ImageOf(kept->seq);
  if (!image) throw Unsupported(path, "the cache of this method cannot be saved");
  WriteSession(path,
               {impl_->model->checkpoint().Identity(), note, kept->tokens, std::move(*image)});
}

SavedSession Engine::LoadSession(int64_t session, const std::string& path) {
  const bool runs = std::any_of(impl_->running.begin(), impl_->running.end(),
                                [&](const auto& task) { return task->request.session == session; });
  if (session < 0 || runs) {
    throw InvalidInput("session",
                       fmt::format("found {}, expected 0 or more, and no running request "
                                   "of it",
                                   session));
  }
  StoredSession stored = ReadSession(path, impl_->model->checkpoint().Identity());
  const SequenceId seq = impl_->sequences.Adopt(session, stored.tokens, stored.image, path);
  return {std::move(stored.tokens), std::move(stored.note), impl_->store->SequenceStats(seq)};
}

EngineStats Engine::stats() const {
  EngineStats stats = impl_->stats;
  stats.num_running = std::ssize(impl_->running);
  stats.num_waiting = static_cast<int64_t>(impl_->waiting.size() + impl_->over.size());
  if (impl_->pool != nullptr) {
    stats.expected_kv_bytes = impl_->pool->ExpectedBytes(impl_->running);
  }
  return stats;
}
const Model& Engine::model() const { return *impl_->model; }
const KvBudget& Engine::kv_budget() const { return impl_->budget; }
const KvStore& Engine::store() const { return *impl_->store; }

std::optional<SequenceId> Engine::SequenceOf(RequestId id) const {
  for (const auto& task : impl_->running) {
    if (task->id == id) return task->seq;
  }
  return std::nullopt;
}

size_t Engine::workspace_bytes() const {
  return impl_->workspace.num_bytes() + impl_->prefill_turns.workspace().num_bytes();
}

}  // namespace pmkvq
