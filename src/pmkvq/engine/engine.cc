#include "pmkvq/engine/engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <deque>
#include <limits>
#include <map>
#include <set>
#include <utility>
#include <variant>

#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"
#include "pmkvq/base/interrupt.h"
#include "pmkvq/base/threads.h"
#include "pmkvq/engine/events.h"
#include "pmkvq/engine/request_check.h"
#include "pmkvq/engine/sequences.h"
#include "pmkvq/engine/task.h"
#include "pmkvq/kv/packed/packed_cache.h"
#include "pmkvq/kv/spec/packed_spec.h"

namespace pmkvq {
namespace {

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

KvRequirements RequirementsOf(const Model& model, const EngineOptions& options) {
  const int64_t max_len = CheckEngineOptions(options, model.config());
  const int num_threads = options.num_threads > 0 ? options.num_threads : DefaultThreads();
  return {model.kv_geometry(), options.max_sequences, max_len,
          num_threads,         &model.rope(),         &model.checkpoint()};
}

EngineCache MakePackedCache(const Model& model, const KvOptions& options,
                            const EngineOptions& engine) {
  const KvOptions kv = ApplySpecKeysFor(model.checkpoint().Identity(), options);
  const CacheConfig config = ResolvePackedConfig(kv, RequirementsOf(model, engine));
  return {MakePackedKvCache(config), KvBudget(config)};
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

struct Engine::Impl {
  Impl(std::shared_ptr<const Model> m, std::shared_ptr<const Tokenizer> t, EngineCache cache,
       const EngineOptions& o);

  void Check(const Request& request) const;
  RequestId Submit(Request request);
  bool Step(EngineObserver* observer);
  bool Cancel(RequestId id, EngineObserver* observer);
  void Admit();
  void Prefill(Task& task, const UncancelledScope& step);
  void Decode(EngineObserver* observer, const UncancelledScope& step);
  bool Reserve(Task& task, int64_t num_tokens, double* pause_us);
  // The Forward of many tokens, which takes seconds in a large model: where an open CancelScope
  // around `step` is cancelled, its requests end with kCancelled. Returns false then.
  bool ForwardUnlessCancelled(const UncancelledScope& step, std::span<const ForwardChunk> chunks,
                              const std::vector<Task*>& tasks,
                              std::vector<ForwardFailure>* failures);
  void Fail(Task& task, const KvFailure& failure);
  // Queues the events; returns the time that each running request's halvings took.
  std::map<RequestId, double> TakeHalvings();
  // Draws from `logits` [V], which the request's rules may change.
  void Draw(Task& task, float* logits);
  bool EndsRequest(const Task& task, int32_t token) const;
  // Adds a drawn token. Returns the text that it completes; `end`: how it ends the request, if so.
  std::string Push(Task& task, int32_t token, std::optional<FinishReason>& end);
  void PushReplayed(Task& task);
  // Adds a chunk of replayed tokens, or ends the task where the budget does not hold one.
  bool AddReplayed(Task& task, int64_t stored, std::vector<ForwardChunk>& chunks);
  bool IsPrefilling(const Task& task) const {
    return store->NumTokens(*task.seq) < task.prompt_len();
  }
  // Ends a request that is in neither queue any more.
  void Finish(Task& task, FinishReason reason);
  void RemoveFinished();
  // Hands the observer the events. One that it throws at is not repeated.
  void Report(EngineObserver* observer);

  std::shared_ptr<const Model> model;
  std::shared_ptr<const Tokenizer> tokenizer;
  EngineOptions options;
  int64_t max_len;
  int num_threads;
  KvBudget budget;
  std::unique_ptr<KvStore> store;
  SequenceKeeper sequences;
  ForwardWorkspace workspace;
  std::deque<std::unique_ptr<Task>> waiting;
  std::vector<std::unique_ptr<Task>> running;  // In order of admission.
  std::deque<Event> events;                    // Not reported yet.
  RequestId next_id = 1;
};

Engine::Impl::Impl(std::shared_ptr<const Model> m, std::shared_ptr<const Tokenizer> t,
                   EngineCache cache, const EngineOptions& o)
    : model(std::move(m)),
      tokenizer(std::move(t)),
      options(o),
      max_len(CheckEngineOptions(o, model->config())),
      num_threads(o.num_threads > 0 ? o.num_threads : DefaultThreads()),
      budget(std::move(cache.budget)),
      store(std::move(cache.store)),
      sequences(store.get()) {}

void Engine::Impl::Check(const Request& request) const {
  CheckRequest(request, model->config(), budget, max_len, tokenizer != nullptr);
}

RequestId Engine::Impl::Submit(Request request) {
  auto task = std::make_unique<Task>(next_id, std::move(request), tokenizer);
  const int64_t room = max_len - task->prompt_len();
  const int64_t asked = task->request.max_tokens;
  task->max_drawn = asked == 0 ? room : std::min(asked, room);
  if (task->max_drawn > 0) PushReplayed(*task);
  waiting.push_back(std::move(task));
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
  for (auto it = waiting.begin(); it != waiting.end();) {
    Task& task = **it;
    if (task.max_drawn == 0) {  // The prompt fills max_len.
      const std::unique_ptr<Task> ended = std::move(*it);
      it = waiting.erase(it);
      Finish(*ended, FinishReason::kLength);
      continue;
    }
    const int64_t session = task.request.session;
    const bool busy = session >= 0 && std::any_of(running.begin(), running.end(), [&](auto& other) {
                        return other->request.session == session;
                      });
    if (!busy) {
      if (static_cast<int64_t>(running.size()) == options.max_sequences) return;
      task.seq = sequences.Acquire(session, task.request.prompt_ids);
      PMKVQ_CHECK(task.seq.has_value());
      running.push_back(std::move(*it));
      it = waiting.erase(it);
    } else {
      ++it;  // Its session's sequence comes back when the request before it ends.
    }
  }
}

bool Engine::Impl::Step(EngineObserver* observer) {
  const UncancelledScope whole;  // Requests are cancelled between steps.
  // What a Step that the observer or a lack of memory ended has left.
  Report(observer);
  RemoveFinished();
  Admit();
  const Clock::time_point start = Clock::now();
  std::vector<std::pair<Task*, double*>> clocks;
  Task* prefilling = nullptr;
  for (const auto& task : running) {
    const bool is_prefilling = IsPrefilling(*task);
    if (is_prefilling && prefilling == nullptr) prefilling = task.get();
    // The time of replayed tokens was counted when they were drawn.
    if (!is_prefilling && task->num_waiting(store->NumTokens(*task->seq)) > 0) continue;
    clocks.emplace_back(task.get(), is_prefilling ? &task->prefill_seconds : &task->decode_seconds);
  }
  if (prefilling != nullptr) {
    Prefill(*prefilling, whole);
  } else if (!running.empty()) {
    Decode(observer, whole);
  }
  Report(observer);
  const double seconds = SecondsSince(start);
  for (const auto& [task, clock] : clocks) *clock += seconds;
  RemoveFinished();
  Report(observer);
  return !running.empty() || !waiting.empty();
}

bool Engine::Impl::Cancel(RequestId id, EngineObserver* observer) {
  const auto has_id = [&](const std::unique_ptr<Task>& task) { return task->id == id; };
  bool is_found = false;
  const auto wait = std::find_if(waiting.begin(), waiting.end(), has_id);
  const auto run = std::find_if(running.begin(), running.end(), has_id);
  if (wait != waiting.end()) {
    const std::unique_ptr<Task> ended = std::move(*wait);
    waiting.erase(wait);
    Finish(*ended, FinishReason::kCancelled);
    is_found = true;
  } else if (run != running.end() && !(*run)->finish) {
    const std::unique_ptr<Task> ended = std::move(*run);
    running.erase(run);
    Finish(*ended, FinishReason::kCancelled);
    is_found = true;
  }
  Report(observer);
  return is_found;
}

void Engine::Impl::Fail(Task& task, const KvFailure& failure) {
  task.finish = FinishReason::kError;
  task.error = InvalidInput(failure.where, failure.what).what();
}

bool Engine::Impl::Reserve(Task& task, int64_t num_tokens, double* pause_us) {
  const Clock::time_point start = Clock::now();
  switch (store->Reserve(*task.seq, num_tokens)) {
    case ReserveResult::kReserved:
      return true;
    case ReserveResult::kReservedAfterHalving:
      *pause_us = SecondsSince(start) * 1e6;
      return true;
    case ReserveResult::kBudgetExhausted:
      task.finish = FinishReason::kKvBudget;
      return false;
    case ReserveResult::kFailed:
      break;
  }
  Fail(task, *store->FailureOf(*task.seq));
  return false;
}

std::map<RequestId, double> Engine::Impl::TakeHalvings() {
  std::map<RequestId, double> durations_us;
  for (const HalvingEvent& event : store->TakeHalvingEvents()) {
    for (const auto& task : running) {
      if (task->seq != event.seq) continue;
      durations_us[task->id] += event.duration_us;
      events.emplace_back(std::pair(task->id, event));
    }
  }
  return durations_us;
}

bool Engine::Impl::ForwardUnlessCancelled(const UncancelledScope& step,
                                          std::span<const ForwardChunk> chunks,
                                          const std::vector<Task*>& tasks,
                                          std::vector<ForwardFailure>* failures) {
  try {
    const CancellableAgainScope many_tokens(step);
    *failures = model->Forward(chunks, *store, workspace, num_threads);
    return true;
  } catch (const Cancelled&) {
    for (Task* const task : tasks) task->finish = FinishReason::kCancelled;
    return false;
  }
}

void Engine::Impl::Prefill(Task& task, const UncancelledScope& step) {
  const int64_t begin = store->NumTokens(*task.seq);
  // Boundaries are counted from token 0, so that the same prompt always meets the same chunks.
  const int64_t end = std::min(task.prompt_len(), (begin / options.chunk + 1) * options.chunk);
  const bool last = end == task.prompt_len();
  double pause_us = 0;  // Of a whole chunk: no pause of a token.
  if (!Reserve(task, end - begin, &pause_us)) return;
  const std::span<const int32_t> tokens(task.tokens.data() + begin,
                                        static_cast<size_t>(end - begin));
  const bool draws = last && task.num_drawn() == 0;
  const ForwardChunk chunk{*task.seq, tokens, begin,
                           draws ? ForwardChunk::Logits::kLast : ForwardChunk::Logits::kNone};
  std::vector<ForwardFailure> failures;
  if (!ForwardUnlessCancelled(step, {&chunk, 1}, {&task}, &failures)) return;
  TakeHalvings();
  if (!failures.empty()) {
    Fail(task, failures.front().failure);
  } else if (draws) {
    Draw(task, workspace.logits.data());
  }
}

void Engine::Impl::Decode(EngineObserver* observer, const UncancelledScope& step) {
  std::vector<ForwardChunk> chunks;
  std::vector<Task*> chunk_tasks;  // Of each chunk.
  std::vector<Task*> drawing;      // Of each row of logits.
  std::map<RequestId, double> pauses_us;
  std::set<RequestId> replaying;
  for (const auto& task : running) {
    const int64_t stored = store->NumTokens(*task->seq);
    if (task->num_waiting(stored) > 0) {
      replaying.insert(task->id);
      if (AddReplayed(*task, stored, chunks)) chunk_tasks.push_back(task.get());
    } else if (task->finish_after_replay) {
      task->finish = task->finish_after_replay;
    } else if (Reserve(*task, 1, &pauses_us[task->id])) {
      chunks.push_back(
          {*task->seq, {&task->tokens.back(), 1}, stored, ForwardChunk::Logits::kLast});
      chunk_tasks.push_back(task.get());
      drawing.push_back(task.get());
    }
  }
  for (const auto& [id, duration_us] : TakeHalvings()) {
    if (replaying.contains(id)) pauses_us[id] = duration_us;
  }
  Report(observer);
  std::vector<ForwardFailure> failures;
  if (!replaying.empty()) {
    if (!ForwardUnlessCancelled(step, chunks, chunk_tasks, &failures)) return;
  } else if (!chunks.empty()) {
    failures = model->Forward(chunks, *store, workspace, num_threads);
  }
  // Pages that were halved while storing (closed at less than 16 bits, reference accounting).
  for (const auto& [id, duration_us] : TakeHalvings()) pauses_us[id] += duration_us;
  for (const ForwardFailure& failed : failures) Fail(*chunk_tasks[failed.chunk], failed.failure);

  const int64_t vocab_size = model->config().vocab_size;
  for (size_t row = 0; row < drawing.size(); ++row) {
    if (drawing[row]->finish) continue;
    Draw(*drawing[row], workspace.logits.data() + static_cast<int64_t>(row) * vocab_size);
  }
  for (const auto& task : running) {
    task->longest_pause_us = std::max(task->longest_pause_us, pauses_us[task->id]);
  }
}

bool Engine::Impl::AddReplayed(Task& task, int64_t stored, std::vector<ForwardChunk>& chunks) {
  // All replays of a step together have the rows of a prefill chunk.
  const int64_t share = std::max<int64_t>(1, options.chunk / std::ssize(running));
  const int64_t count =
      store->ReserveOneByOne(*task.seq, std::min(share, task.num_waiting(stored)));
  if (const KvFailure* const failure = store->FailureOf(*task.seq)) {
    Fail(task, *failure);
    return false;
  }
  if (count == 0) {
    task.finish = FinishReason::kKvBudget;
    return false;
  }
  chunks.push_back({*task.seq,
                    {task.tokens.data() + stored, static_cast<size_t>(count)},
                    stored,
                    ForwardChunk::Logits::kNone,
                    count > 1});
  return true;
}

void Engine::Impl::Draw(Task& task, float* logits) {
  const auto position = static_cast<int64_t>(task.tokens.size()) - 1;
  if (const std::optional<KvFailure> failure = model->FailureOfLogits(logits, position)) {
    return Fail(task, *failure);
  }
  const Request& request = task.request;
  const int64_t vocab_size = model->config().vocab_size;
  // Log-probabilities are of what the model says, so that row is kept where rules change it.
  std::vector<float> as_given;
  const bool has_rules = !request.rules.changes_nothing() || task.num_drawn() < request.min_tokens;
  if (has_rules && request.num_logprobs >= 0) as_given.assign(logits, logits + vocab_size);
  ApplyLogitRules(request.rules, task.counts, logits);
  if (task.num_drawn() < request.min_tokens) {
    constexpr float kNever = -std::numeric_limits<float>::infinity();
    if (!request.ignore_eos) {
      for (const int64_t token : model->config().eos_token_ids) logits[token] = kNever;
    }
    for (const int32_t token : request.stop_ids) logits[token] = kNever;
  }
  const std::optional<int32_t> token =
      SampleToken(request.sampling, logits, vocab_size, task.random);
  if (!token) {
    return Fail(task, {fmt::format("sampling, position {}", position),
                       "no token may be drawn: min_tokens and logit_bias leave none"});
  }
  std::optional<TokenLogprobs> logprobs;
  if (request.num_logprobs >= 0) {
    logprobs = LogprobsOf(as_given.empty() ? logits : as_given.data(), vocab_size, *token,
                          request.num_logprobs);
    task.logprobs.push_back(*logprobs);
  }
  std::string text = Push(task, *token, task.finish);
  if (task.finish) text += task.text.Finish();
  events.emplace_back(TokenEvent{task.id, *token, std::move(text), std::move(logprobs)});
}

bool Engine::Impl::EndsRequest(const Task& task, int32_t token) const {
  const auto holds = [&](const auto& ids) {
    return std::find(ids.begin(), ids.end(), token) != ids.end();
  };
  return holds(task.request.stop_ids) ||
         (!task.request.ignore_eos && holds(model->config().eos_token_ids));
}

std::string Engine::Impl::Push(Task& task, int32_t token, std::optional<FinishReason>& end) {
  task.tokens.push_back(token);
  if (task.request.rules.has_penalties()) ++task.counts[token];
  const bool is_end = EndsRequest(task, token);
  std::string text = is_end ? "" : task.text.Push(token);
  if (is_end || task.text.stopped()) {
    end = FinishReason::kStop;
  } else if (task.num_drawn() == task.max_drawn) {
    end = FinishReason::kLength;
  }
  return text;
}

void Engine::Impl::Finish(Task& task, FinishReason reason) {
  task.text.Finish();
  Completion completion;
  completion.id = task.id;
  completion.output_ids.assign(task.tokens.begin() + task.prompt_len(), task.tokens.end());
  completion.prompt_ids = std::move(task.request.prompt_ids);
  completion.text = task.text.text();
  completion.logprobs = std::move(task.logprobs);
  completion.finish_reason = reason;
  completion.error = std::move(task.error);
  completion.prefill_seconds = task.prefill_seconds;
  completion.decode_seconds = task.decode_seconds;
  completion.longest_pause_us = task.longest_pause_us;
  if (task.seq) {
    completion.kv = store->SequenceStats(*task.seq);
    // A failed sequence is of no use to the next request of its session. A sequence whose Forward
    // was cancelled has failed, too.
    const bool failed = reason == FinishReason::kError || store->FailureOf(*task.seq) != nullptr;
    const int64_t session = failed ? -1 : task.request.session;
    sequences.Release(*task.seq, session, std::move(task.tokens));
  }
  events.emplace_back(std::move(completion));
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
    const Event event = std::move(events.front());
    events.pop_front();
    if (observer != nullptr) Tell(*observer, event);
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

bool Engine::Step(EngineObserver* observer) { return impl_->Step(observer); }

std::vector<Completion> Engine::Generate(std::vector<Request> requests, EngineObserver* observer,
                                         const CancelFlag* cancel) {
  for (const Request& request : requests) impl_->Check(request);  // All of them, or none is queued.
  std::vector<RequestId> ids;
  for (Request& request : requests) ids.push_back(impl_->Submit(std::move(request)));
  CompletionCollector collector(observer);
  const CancelScope scope(cancel, "generate");
  const auto unfinished = [&](RequestId id) { return !collector.Has(id); };
  while (std::any_of(ids.begin(), ids.end(), unfinished)) {
    if (IsCancelled(cancel)) {
      CancelAll(&collector);
    } else {
      impl_->Step(&collector);
    }
  }
  std::vector<Completion> completions;
  for (const RequestId id : ids) completions.push_back(collector.Take(id));
  return completions;
}

bool Engine::Cancel(RequestId id, EngineObserver* observer) { return impl_->Cancel(id, observer); }

void Engine::CancelAll(EngineObserver* observer) {
  for (const auto& task : impl_->running) {
    if (!task->finish) task->finish = FinishReason::kCancelled;
  }
  impl_->RemoveFinished();
  while (!impl_->waiting.empty()) {
    const std::unique_ptr<Task> task = std::move(impl_->waiting.front());
    impl_->waiting.pop_front();
    impl_->Finish(*task, FinishReason::kCancelled);
  }
  impl_->Report(observer);
}

void Engine::CloseSession(int64_t session) {
  for (const auto& task : impl_->running) {
    if (task->request.session == session) task->request.session = -1;
  }
  impl_->sequences.CloseSession(session);
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

size_t Engine::workspace_bytes() const { return impl_->workspace.num_bytes(); }

}  // namespace pmkvq
