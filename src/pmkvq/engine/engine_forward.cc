// What a step computes: chunks of prompts, tokens of running requests, drawing.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "pmkvq/engine/engine_impl.h"

namespace pmkvq {
namespace {

constexpr std::chrono::hours kWholeChunk{24 * 365};
constexpr int kMostStepsWithoutPrefill = 8;
// Beginning and ending a turn takes some 40 us.
constexpr double kShortestTurnSeconds = 200e-6;

}  // namespace

void Engine::Impl::SortRunning() {
  prefilling.clear();
  decoding.clear();
  for (const auto& task : running) {
    if (pool != nullptr) ResumeAsInHistory(*task);
    task->pause_us = 0;
    task->clock = &task->decode_seconds;
    if (IsPrefilling(*task)) {
      task->clock = &task->prefill_seconds;
      if (ComputesPrompt(*task)) prefilling.push_back(task.get());
    } else {
      // The time of replayed tokens was counted when they were drawn.
      if (task->num_waiting(store->NumTokens(*task->seq)) > 0) task->clock = nullptr;
      decoding.push_back(task.get());
    }
  }
}

void Engine::Impl::Fail(Task& task, const KvFailure& failure) {
  task.finish = FinishReason::kError;
  task.error = InvalidInput(failure.where, failure.what).what();
}

bool Engine::Impl::Reserve(Task& task, int64_t num_tokens, double* pause_us) {
  const AddTime timing(&stats.reserve_seconds);
  const Clock::time_point start = Clock::now();
  while (true) {
    switch (store->Reserve(*task.seq, num_tokens)) {
      case ReserveResult::kReserved:
        return true;
      case ReserveResult::kReservedAfterHalving:
        *pause_us = SecondsSince(start) * 1e6;
        return true;
      case ReserveResult::kBudgetExhausted:
        if (!MakeRoomFor(task)) return false;
        break;
      case ReserveResult::kFailed:
        Fail(task, *store->FailureOf(*task.seq));
        return false;
    }
  }
}

void Engine::Impl::TakeHalvings() {
  for (const HalvingEvent& event : store->TakeHalvingEvents()) {
    Task* const task = by_seq[static_cast<size_t>(event.seq)];
    if (task == nullptr) continue;
    task->pause_us += event.duration_us;
    AddHalving(event, task->history);
    events.Push(std::pair(task->id, event));
  }
}

bool Engine::Impl::ReserveChunk(Task& task, ForwardChunk* chunk) {
  if (pool != nullptr && store->NumTokens(*task.seq) == 0) TakePrefix(task);
  const int64_t begin = store->NumTokens(*task.seq);
  // Boundaries are counted from token 0, so that the same prompt always meets the same chunks.
  const int64_t end = std::min(task.num_prefilled, (begin / options.chunk + 1) * options.chunk);
  double pause_us = 0;  // Of a whole chunk: no pause of a token.
  if (!Reserve(task, end - begin, &pause_us)) return false;
  const bool draws = end == std::ssize(task.tokens) && task.num_drawn() < task.max_drawn &&
                     !task.finish_after_replay;
  *chunk = {*task.seq,
            {task.tokens.data() + begin, static_cast<size_t>(end - begin)},
            begin,
            draws ? ForwardChunk::Logits::kLast : ForwardChunk::Logits::kNone};
  chunk->ends_prompt = begin < task.prompt_len() && task.prompt_len() <= end;
  if (task.prompt_logprobs != nullptr && !task.prompt_is_told) {
    task.prompt_logprobs->StartChunk(begin);
    chunk->reader = task.prompt_logprobs.get();
    chunk->num_read = task.prompt_logprobs->NumRows(begin, end);
  }
  return true;
}

void Engine::Impl::FinishChunk(Task& task, const ForwardChunk& chunk,
                               const std::vector<ForwardFailure>& chunk_failures, float* logits) {
  TakeHalvings();
  stats.prompt_tokens += std::ssize(chunk.tokens);
  if (!chunk_failures.empty()) {
    return Fail(task, chunk_failures.front().failure);
  }
  if (task.prompt_logprobs != nullptr && task.prompt_logprobs->failure()) {
    return Fail(task, *task.prompt_logprobs->failure());
  }
  if (pool != nullptr) KeepPrefix(task);
  if (chunk.logits == ForwardChunk::Logits::kLast) {
    ShareOutPrompt(task, logits);
  } else if (!IsPrefilling(task)) {
    TellPrompt(task);
    if (task.max_drawn == 0) task.finish = FinishReason::kLength;
  }
}

void Engine::Impl::TellPrompt(Task& task) {
  if (task.prompt_logprobs == nullptr || task.prompt_is_told) return;
  task.prompt_is_told = true;
  events.Push(PromptEvent{task.id, task.prompt_logprobs->logprobs()});
}

bool Engine::Impl::ComputesPrompt(Task& task) {
  if (task.group == nullptr) return true;
  if (task.group->leader == nullptr) task.group->leader = &task;
  return task.group->leader == &task;
}

void Engine::Impl::ShareOutPrompt(Task& leader, float* logits) {
  std::vector<Task*> samples = {&leader};
  for (const auto& task : running) {
    const bool waits = leader.group != nullptr && task->group == leader.group &&
                       task.get() != &leader && !task->finish && IsPrefilling(*task);
    if (!waits) continue;
    by_seq[static_cast<size_t>(*task->seq)] = nullptr;
    store->Close(*task->seq);
    const std::optional<SequenceId> fork = store->Fork(*leader.seq);
    if (fork) {
      samples.push_back(task.get());
      TakeHalvings();  // Room for the copy is made by halving what is copied, too.
      task->history = leader.history;
      if (leader.prompt_logprobs != nullptr) {
        task->prompt_logprobs->CopyFrom(*leader.prompt_logprobs);
      }
    }
    task->seq = fork ? fork : store->Open();  // Not every store forks.
    by_seq[static_cast<size_t>(*task->seq)] = task.get();
    if (!fork && pool != nullptr) StartSequence(*task);
  }
  if (leader.group != nullptr) leader.group->leader = nullptr;
  if (samples.size() > 1) {
    const auto count = static_cast<size_t>(model->config().vocab_size);
    group_logits.clear();
    for (size_t i = 0; i < samples.size(); ++i) {
      group_logits.insert(group_logits.end(), logits, logits + count);
    }
    logits = group_logits.data();
  }
  for (Task* const sample : samples) TellPrompt(*sample);
  Draw(samples, logits);
}

void Engine::Impl::Prefill(const UncancelledScope& step) {
  if (prefill_turns.task() != nullptr) {  // Begun while others decoded.
    TakePrefillTurn(kWholeChunk, step);
    return;
  }
  Task& task = *prefilling.front();
  ForwardChunk chunk;
  if (!ReserveChunk(task, &chunk)) return;
  const bool ended = RunUnlessCancelled(step, [&] {
    const AddTime timing(&stats.prefill_seconds);
    failures = model->Forward({&chunk, 1}, *store, workspace, num_threads);
  });
  if (ended) {
    FinishChunk(task, chunk, failures, workspace.logits.data());
  } else {
    task.finish = FinishReason::kCancelled;
  }
}

void Engine::Impl::PrefillBesideDecoding(double seconds, const UncancelledScope& step) {
  // A turn ends at the next pause, which one tile of a product may put off by 10 ms. The steps
  // after it make up for that, but not for long: prompts get on, however small their share is.
  prefill_credit = std::min(prefill_credit, 0.0) + seconds;
  if (prefill_credit <= 0 && ++steps_without_prefill <= kMostStepsWithoutPrefill) return;
  steps_without_prefill = 0;
  const Clock::time_point begin = Clock::now();
  const Clock::time_point end =
      begin + std::chrono::duration_cast<Clock::duration>(
                  std::chrono::duration<double>(std::max(prefill_credit, kShortestTurnSeconds)));
  Clock::time_point now = begin;
  do {
    if (prefill_turns.task() == nullptr && !BeginPrefillTurns()) break;
    if (!TakePrefillTurn(end - now, step)) break;
    now = Clock::now();
  } while (now < end);
  prefill_credit -= SecondsSince(begin);
}

bool Engine::Impl::BeginPrefillTurns() {
  for (Task* const task : prefilling) {
    ForwardChunk chunk;
    const bool has_place = !task->finish && task->seq.has_value();
    if (!has_place || !IsPrefilling(*task) || !ReserveChunk(*task, &chunk)) continue;
    prefill_turns.Start(*task, chunk);
    return true;
  }
  return false;
}

bool Engine::Impl::TakePrefillTurn(Clock::duration turn, const UncancelledScope& step) {
  Task& task = *prefill_turns.task();
  bool ended = false;
  const bool went_on = RunUnlessCancelled(step, [&] {
    const AddTime timing(&stats.prefill_seconds);
    ended = prefill_turns.Resume(turn);
  });
  if (!went_on) {
    task.finish = FinishReason::kCancelled;
    return false;
  }
  if (ended) {
    FinishChunk(task, prefill_turns.chunk(), prefill_turns.failures(),
                prefill_turns.workspace().logits.data());
  }
  return ended;
}

void Engine::Impl::RunDecode() {
  const AddTime timing(&stats.decode_seconds);
  for (const ForwardChunk& chunk : chunks) stats.decoded_tokens += std::ssize(chunk.tokens);
  failures = model->Forward(chunks, *store, workspace, num_threads);
}

void Engine::Impl::Decode(EngineObserver* observer, const UncancelledScope& step) {
  chunks.clear();
  chunk_tasks.clear();
  drawing.clear();
  bool is_replaying = false;
  if (pool != nullptr) ReserveDecoding(step);
  for (Task* const task : decoding) {
    if (task->finish || !task->seq) continue;  // Gave up its place.
    const int64_t stored = store->NumTokens(*task->seq);
    if (task->num_waiting(stored) > 0) {
      is_replaying = true;
      if (AddReplayed(*task, stored)) chunk_tasks.push_back(task);
    } else if (task->finish_after_replay) {
      task->finish = task->finish_after_replay;
    } else {
      if (pool == nullptr) {
        task->reserve_us = 0;
        if (!Reserve(*task, 1, &task->reserve_us)) continue;
      }
      chunks.push_back(
          {*task->seq, {&task->tokens.back(), 1}, stored, ForwardChunk::Logits::kLast});
      chunk_tasks.push_back(task);
      drawing.push_back(task);
    }
  }
  TakeHalvings();
  if (!is_replaying) AskForDraws();
  // All of Reserve counts for a token's pause, not the halvings alone.
  for (Task* const task : drawing) task->pause_us = task->reserve_us;
  Report(observer);
  failures.clear();
  if (is_replaying) {
    if (!RunUnlessCancelled(step, [&] { RunDecode(); })) {
      for (Task* const task : chunk_tasks) task->finish = FinishReason::kCancelled;
      return;
    }
  } else if (!chunks.empty()) {
    RunDecode();
  }
  // Pages that were halved while storing (closed at less than 16 bits, reference accounting).
  TakeHalvings();
  for (const ForwardFailure& failed : failures) Fail(*chunk_tasks[failed.chunk], failed.failure);

  if (workspace.drawn.empty()) {
    Draw(drawing, workspace.logits.data());
  } else {
    TakeDraws();
  }
  for (Task* const task : decoding) {
    task->longest_pause_us = std::max(task->longest_pause_us, task->pause_us);
  }
}

// Tokens are drawn where the logits are, if that is all that anybody wants of the logits.
void Engine::Impl::AskForDraws() {
  asked_draws.clear();
  if (!model->draws_tokens() || store->OnDevice() == nullptr) return;
  for (const Task* const task : drawing) {
    const Request& request = task->request;
    if (request.num_logprobs >= 0 || !request.rules.changes_nothing() || task->mask != nullptr ||
        task->num_drawn() < request.min_tokens) {
      return;
    }
  }
  for (Task* const task : drawing) {
    const SamplingParams& params = task->request.sampling;
    asked_draws.push_back({params, params.temperature > 0 ? task->random.Uniform() : 0.0});
  }
  for (size_t i = 0; i < chunks.size(); ++i) chunks[i].draw = &asked_draws[i];
}

void Engine::Impl::TakeDraws() {
  const AddTime timing(&stats.sampling_seconds);
  const int64_t vocab_size = model->config().vocab_size;
  for (size_t i = 0; i < drawing.size(); ++i) {
    if (drawing[i]->finish) continue;
    SampledRow drawn;
    drawn.outcome = workspace.drawn[i].outcome;
    drawn.token = workspace.drawn[i].token;
    TakeDrawn(*drawing[i], workspace.logits.data() + static_cast<int64_t>(i) * vocab_size, drawn);
  }
}

bool Engine::Impl::AddReplayed(Task& task, int64_t stored) {
  // All replays of a step together have the rows of a prefill chunk.
  const int64_t share = std::max<int64_t>(1, options.chunk / std::ssize(running));
  const int64_t count =
      store->ReserveOneByOne(*task.seq, std::min(share, task.num_waiting(stored)));
  if (const KvFailure* const failure = store->FailureOf(*task.seq)) {
    Fail(task, *failure);
    return false;
  }
  if (count == 0) {
    if (pool != nullptr && std::ssize(running) > 1) {
      Preempt(task);
    } else {
      task.finish = FinishReason::kKvBudget;
    }
    return false;
  }
  chunks.push_back({*task.seq,
                    {task.tokens.data() + stored, static_cast<size_t>(count)},
                    stored,
                    ForwardChunk::Logits::kNone,
                    count > 1});
  return true;
}

void Engine::Impl::Draw(std::span<Task* const> tasks, float* logits) {
  const AddTime timing(&stats.sampling_seconds);
  const int64_t vocab_size = model->config().vocab_size;
  sampling_rows.clear();
  sampling_tasks.clear();
  for (size_t i = 0; i < tasks.size(); ++i) {
    Task& task = *tasks[i];
    if (task.finish) continue;
    const Request& request = task.request;
    SamplingRow row;
    row.logits = logits + static_cast<int64_t>(i) * vocab_size;
    row.params = &request.sampling;
    row.rules = &request.rules;
    row.counts = &task.counts;
    if (task.mask != nullptr) {
      row.forbidden = task.mask->Forbidden();
    } else if (task.num_drawn() < request.min_tokens) {
      row.forbidden = task.end_ids;
    }
    row.random = &task.random;
    row.num_logprobs = request.num_logprobs;
    sampling_rows.push_back(row);
    sampling_tasks.push_back(&task);
  }
  const std::span<SampledRow> drawn = sampler.Sample(sampling_rows, vocab_size, num_threads);
  for (size_t i = 0; i < drawn.size(); ++i) {
    TakeDrawn(*sampling_tasks[i], sampling_rows[i].logits, drawn[i]);
  }
}

void Engine::Impl::TakeDrawn(Task& task, const float* logits, SampledRow& drawn) {
  const auto position = static_cast<int64_t>(task.tokens.size()) - 1;
  switch (drawn.outcome) {
    case SamplingOutcome::kDrawn:
      break;
    case SamplingOutcome::kNotFinite:
      return Fail(task, model->FailureOfLogits(logits, position).value());
    case SamplingOutcome::kNoneLeft:
      return Fail(task, {fmt::format("sampling, position {}", position),
                         "no token may be drawn: grammar, min_tokens and logit_bias leave none"});
  }
  if (drawn.logprobs) task.logprobs.push_back(*drawn.logprobs);
  std::string text = Push(task, drawn.token, task.finish);
  if (task.finish) text += task.text.Finish();
  events.Push(TokenEvent{task.id, drawn.token, std::move(text), std::move(drawn.logprobs)});
}

std::string Engine::Impl::Push(Task& task, int32_t token, std::optional<FinishReason>& end) {
  task.tokens.push_back(token);
  if (task.request.rules.has_penalties()) ++task.counts[token];
  if (task.mask != nullptr) task.mask->Accept(token);
  const bool is_end =
      std::find(task.end_ids.begin(), task.end_ids.end(), token) != task.end_ids.end();
  std::string text = is_end ? "" : task.text.Push(token);
  if (is_end || task.text.stopped()) {
    end = FinishReason::kStop;
  } else if (task.num_drawn() == task.max_drawn) {
    end = FinishReason::kLength;
  }
  return text;
}

}  // namespace pmkvq
