#include "pmkvq/server/engine_thread.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <utility>

#include "pmkvq/base/error.h"

namespace pmkvq::server {
namespace {

int64_t NowNs() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// Requests that the engine is given before it says that its pool has no room for more: they stay in
// front of those that come later, whoever sent them.
constexpr int64_t kMostAhead = 4;

// A request of priority 100 goes behind all of its client that come 100 s later, and not behind
// those that come for ever.
constexpr int64_t kNsPerPriority = 1'000'000'000;

// Pages are halved from the oldest on, so that counts tell their order; but for pages that requests
// share, which may be wider than those behind them, and are shown behind them then.
std::vector<float> BitsByAge(const KvStore& store, SequenceId seq, int64_t num_layers) {
  std::vector<double> sums;
  int64_t num_columns = 0;
  for (int64_t layer = 0; layer < num_layers; ++layer) {
    const KvLayerStats stats = store.LayerStats(seq, layer);
    for (const PagesPerWidth* pages : {&stats.k_pages, &stats.v_pages}) {
      ++num_columns;
      size_t age = 0;
      for (const int bits : {2, 4, 8, 16}) {
        for (int64_t i = 0; i < (*pages)[WidthIndex(bits)]; ++i, ++age) {
          if (age >= sums.size()) sums.resize(age + 1);
          sums[age] += bits;
        }
      }
    }
  }
  const auto count = std::ssize(sums);
  const int64_t shown = std::min(count, kMostAges);
  std::vector<float> bits;
  for (int64_t i = 0; i < shown; ++i) {
    const int64_t begin = i * count / shown;
    const int64_t end = (i + 1) * count / shown;
    double sum = 0;
    for (int64_t age = begin; age < end; ++age) sum += sums[static_cast<size_t>(age)];
    bits.push_back(static_cast<float>(sum / static_cast<double>((end - begin) * num_columns)));
  }
  return bits;
}

ApiError RefusalOf(const InvalidInput& error) {
  const std::string message = WithoutBrackets(error.what());
  const bool is_budget = message.find("KV budget") != std::string::npos ||
                         message.find("KV pool") != std::string::npos;
  return InvalidRequest(is_budget ? "kv_pool_too_small" : "invalid_value", "", message);
}

}  // namespace

class EngineThread::Observer : public EngineObserver {
 public:
  explicit Observer(EngineThread* owner) : owner_(owner) {}

  void OnPromptLogprobs(RequestId id, const std::vector<TokenLogprobs>& logprobs) override {
    GenerationEvent event = EventOf(id);
    event.kind = GenerationEvent::Kind::kPrompt;
    event.prompt_logprobs = logprobs;
    owner_->events_.push_back(std::move(event));
  }
  void OnLogprobs(RequestId, const TokenLogprobs& logprobs) override { logprobs_ = logprobs; }
  void OnToken(RequestId id, int32_t token, const std::string& text) override {
    GenerationEvent event = EventOf(id);
    event.token = token;
    event.text = text;
    event.logprobs = std::exchange(logprobs_, std::nullopt);
    owner_->events_.push_back(std::move(event));
  }
  void OnHalving(RequestId /*id*/, const HalvingEvent& halving) override {
    owner_->num_halvings_ += halving.num_k_pages + halving.num_v_pages;
  }
  void OnPreempted(RequestId id, int64_t /*num_tokens*/) override {
    const auto found = owner_->places_.find(id);
    if (found != owner_->places_.end()) found->second.was_preempted = true;
  }
  void OnFinished(const Completion& completion) override {
    const auto place = owner_->places_.find(completion.id);
    const bool has_run = !completion.output_ids.empty() || completion.kv.num_tokens > 0;
    if (place != owner_->places_.end() && has_run) owner_->TellBegun(place->second);
    GenerationEvent event = EventOf(completion.id);
    event.kind = GenerationEvent::Kind::kFinished;
    event.completion = std::make_unique<Completion>(completion);
    if (completion.finish_reason != FinishReason::kCancelled) {
      const auto tokens = static_cast<double>(completion.output_ids.size());
      owner_->mean_output_ += 0.05 * (tokens - owner_->mean_output_);
    }
    auto running = owner_->running_.find(event.generation);
    if (running != owner_->running_.end()) {
      std::erase(running->second, completion.id);
      if (running->second.empty()) owner_->running_.erase(running);
    }
    owner_->places_.erase(completion.id);
    owner_->events_.push_back(std::move(event));
  }

 private:
  GenerationEvent EventOf(RequestId id) const {
    GenerationEvent event;
    const auto place = owner_->places_.find(id);
    if (place != owner_->places_.end()) {
      event.generation = place->second.generation;
      event.choice = place->second.choice;
    }
    return event;
  }

  EngineThread* owner_;
  std::optional<TokenLogprobs> logprobs_;
};

EngineThread::EngineThread(Engine engine, int64_t max_sequences, Deliver deliver, Failed failed)
    : engine_(std::move(engine)),
      max_sequences_(max_sequences),
      deliver_(std::move(deliver)),
      failed_(std::move(failed)) {
  is_pool_ = engine_.store().StoreStats().pool.bytes > 0;
  thread_ = std::thread([this] {
    try {
      Run();
    } catch (const std::exception& error) {
      failed_(error.what());
    }
  });
}

EngineThread::~EngineThread() {
  {
    const std::lock_guard lock(mutex_);
    ends_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

GenerationId EngineThread::Submit(Generation generation) {
  GenerationId id = 0;
  {
    const std::lock_guard lock(mutex_);
    id = next_id_++;
    commands_.push_back({id, std::move(generation)});
  }
  wake_.notify_one();
  return id;
}

void EngineThread::Cancel(GenerationId generation) {
  {
    const std::lock_guard lock(mutex_);
    commands_.push_back({generation, std::nullopt});
  }
  wake_.notify_one();
}

EngineSnapshot EngineThread::snapshot() const {
  const std::lock_guard lock(mutex_);
  return snapshot_;
}

double EngineThread::SecondsInStep() const {
  const int64_t began = step_began_ns_.load();
  return began == 0 ? 0 : static_cast<double>(NowNs() - began) * 1e-9;
}

// Waits for a command where the engine has nothing to do. False: the thread ends.
bool EngineThread::TakeCommands(std::vector<Command>* commands) {
  std::unique_lock lock(mutex_);
  if (is_idle_) wake_.wait(lock, [&] { return ends_ || !commands_.empty(); });
  *commands = std::exchange(commands_, {});
  return !ends_;
}

void EngineThread::Carry(Command command, Observer& observer) {
  if (command.generation) {
    Generation& generation = *command.generation;
    if (generation.most_queue_seconds > 0) {
      const std::chrono::duration<double> most(generation.most_queue_seconds);
      queue_ends_.emplace(std::chrono::steady_clock::now() +
                              std::chrono::duration_cast<std::chrono::steady_clock::duration>(most),
                          command.id);
    }
    queue_.Push(command.id, generation.client,
                NowNs() + generation.prompts.front().priority * kNsPerPriority, CostOf(generation));
    num_waiting_choices_ += generation.num_choices();
    waiting_.emplace(command.id, std::move(generation));
    return;
  }
  if (const std::optional<Generation> generation = TakeWaiting(command.id)) {
    for (int64_t choice = 0; choice < generation->num_choices(); ++choice) {
      GenerationEvent event;
      event.kind = GenerationEvent::Kind::kFinished;
      event.generation = command.id;
      event.choice = static_cast<size_t>(choice);
      event.completion = std::make_unique<Completion>();
      event.completion->finish_reason = FinishReason::kCancelled;
      events_.push_back(std::move(event));
    }
    return;
  }
  const auto running = running_.find(command.id);
  if (running == running_.end()) return;
  const std::vector<RequestId> ids = running->second;
  for (const RequestId id : ids) engine_.Cancel(id, &observer);
}

// The tokens that it is expected to take.
int64_t EngineThread::CostOf(const Generation& generation) const {
  int64_t tokens = 0;
  for (const Request& prompt : generation.prompts) {
    auto output = std::max<int64_t>(1, std::llround(mean_output_));
    if (prompt.max_tokens > 0) output = std::min(output, prompt.max_tokens);
    tokens += std::ssize(prompt.prompt_ids) + std::ssize(generation.seeds) * output;
  }
  return tokens;
}

std::optional<Generation> EngineThread::TakeWaiting(GenerationId id) {
  const auto found = waiting_.find(id);
  if (found == waiting_.end()) return std::nullopt;
  queue_.Remove(id);  // Unless it is its turn.
  Generation generation = std::move(found->second);
  waiting_.erase(found);
  num_waiting_choices_ -= generation.num_choices();
  return generation;
}

// To the engine, whose turn it is: one more than it has places for, so that none stays empty for a
// step. A pool may have no room for them: no more where the last step has left some waiting.
void EngineThread::HandOver() {
  const EngineStats stats = engine_.stats();
  int64_t most = max_sequences_ - stats.num_running + 1 - stats.num_waiting;
  if (is_pool_) most = stats.num_waiting > 0 ? 0 : std::min(most, kMostAhead);
  while (most > 0) {
    const std::optional<GenerationId> id = queue_.Pop();
    if (!id) return;
    Generation generation = TakeWaiting(*id).value();
    most -= generation.num_choices();
    Begin(*id, std::move(generation));
  }
}

void EngineThread::Begin(GenerationId id, Generation generation) {
  std::vector<RequestId> submitted;
  try {
    size_t choice = 0;
    const auto add = [&](RequestId one) {
      submitted.push_back(one);
      places_[one] = {id, choice++, false, false};
      not_begun_.push_back(one);
    };
    for (Request& prompt : generation.prompts) {
      if (generation.histories.empty()) {
        for (const RequestId one : engine_.SubmitSamples(prompt, generation.seeds)) add(one);
        continue;
      }
      for (const uint64_t seed : generation.seeds) {
        Request sample = prompt;
        sample.seed = seed;
        sample.kv_history = std::move(generation.histories[choice]);
        add(engine_.Submit(std::move(sample)));
      }
    }
    running_[id] = std::move(submitted);
  } catch (const InvalidInput& error) {
    running_[id] = std::move(submitted);
    Refuse(id, RefusalOf(error));
  }
}

// The engine gives places at the beginning of a step.
void EngineThread::TellBegun(Place& place) {
  if (std::exchange(place.has_begun, true)) return;
  GenerationEvent event;
  event.kind = GenerationEvent::Kind::kBegun;
  event.generation = place.generation;
  event.choice = place.choice;
  event.time = std::chrono::steady_clock::time_point(std::chrono::nanoseconds(step_began_ns_));
  events_.push_back(std::move(event));
}

void EngineThread::TellThoseBegun() {
  std::erase_if(not_begun_, [&](RequestId id) {
    const auto place = places_.find(id);
    if (place == places_.end()) return true;
    if (!engine_.SequenceOf(id)) return false;
    TellBegun(place->second);
    return true;
  });
}

void EngineThread::Refuse(GenerationId generation, ApiError error) {
  if (const auto running = running_.find(generation); running != running_.end()) {
    for (const RequestId id : running->second) {
      places_.erase(id);
      engine_.Cancel(id, nullptr);
    }
    running_.erase(running);
  }
  GenerationEvent event;
  event.kind = GenerationEvent::Kind::kRefused;
  event.generation = generation;
  event.error = std::move(error);
  events_.push_back(std::move(event));
}

// Of generations whose time in the queue has passed, those of which nothing has begun.
void EngineThread::RefuseOverdue() {
  const auto now = std::chrono::steady_clock::now();
  while (!queue_ends_.empty() && queue_ends_.begin()->first <= now) {
    const GenerationId generation = queue_ends_.begin()->second;
    queue_ends_.erase(queue_ends_.begin());
    if (!TakeWaiting(generation)) {
      const auto running = running_.find(generation);
      if (running == running_.end()) continue;
      const bool has_begun =
          std::any_of(running->second.begin(), running->second.end(), [&](RequestId id) {
            return engine_.SequenceOf(id).has_value() || places_.at(id).was_preempted;
          });
      if (has_begun) continue;
    }
    ApiError error = StatusError(503, "server_error", "queue_timeout",
                                 "the request has waited too long for its turn (--queue-timeout)");
    error.retry_after = 30;
    Refuse(generation, std::move(error));
  }
}

void EngineThread::Publish() {
  EngineSnapshot now;
  now.stats = engine_.stats();
  now.stats.num_waiting += num_waiting_choices_;
  now.num_halvings = num_halvings_;
  now.pool = engine_.store().StoreStats().pool;
  const int64_t num_layers = engine_.model().config().num_layers;
  for (const auto& [id, place] : places_) {
    const std::optional<SequenceId> seq = engine_.SequenceOf(id);
    if (!seq) continue;
    const KvSequenceStats stats = engine_.store().SequenceStats(*seq);
    now.kv_bytes += stats.bytes;
    for (size_t i = 0; i < stats.pages.size(); ++i) now.kv_pages[i] += stats.pages[i];
    now.sequences.push_back({place.generation, place.choice, stats.num_tokens, stats.bytes,
                             stats.budget_bytes, stats.pages,
                             BitsByAge(engine_.store(), *seq, num_layers)});
  }
  // What requests share counts once.
  if (now.pool.bytes > 0) now.kv_bytes = now.pool.used_bytes - now.pool.prefix_bytes;
  std::sort(now.sequences.begin(), now.sequences.end(), [](const auto& a, const auto& b) {
    return std::pair(a.generation, a.choice) < std::pair(b.generation, b.choice);
  });
  const std::lock_guard lock(mutex_);
  snapshot_ = std::move(now);
}

void EngineThread::Run() {
  Observer observer(this);
  std::vector<Command> commands;
  int64_t published_ns = 0;
  constexpr int64_t kPublishEveryNs = 100'000'000;
  while (TakeCommands(&commands)) {
    for (Command& command : commands) Carry(std::move(command), observer);
    commands.clear();
    RefuseOverdue();
    HandOver();
    step_began_ns_ = NowNs();
    is_idle_ = !engine_.Step(&observer) && waiting_.empty();
    TellThoseBegun();
    step_began_ns_ = 0;
    // Whoever has the end of a request finds a snapshot without it.
    const bool any_ended =
        std::any_of(events_.begin(), events_.end(), [](const GenerationEvent& event) {
          return event.kind == GenerationEvent::Kind::kFinished;
        });
    const int64_t now = NowNs();
    if (is_idle_ || any_ended || now - published_ns >= kPublishEveryNs) {
      Publish();
      published_ns = now;
    }
    if (!events_.empty()) deliver_(std::exchange(events_, {}));
  }
}

}  // namespace pmkvq::server
