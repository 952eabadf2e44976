// The engine under load: what scheduling costs beside a long queue, and how far apart the tokens of
// running requests are while another one's prompt is computed.
#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "pmkvq/base/check.h"
#include "pmkvq/base/random.h"
#include "pmkvq/engine/engine.h"
#include "pmkvq/research/bench/rounds.h"
#include "pmkvq/research/bench/shapes.h"
#include "pmkvq/research/bench/synthetic.h"

namespace pmkvq {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kDefaultLayers = 2;
constexpr int64_t kRunningPrompt = 16;  // Tokens.
constexpr int64_t kStepsPerRound = 5;

EngineOptions OptionsOf(const BenchOptions& options, const EngineBenchOptions& load,
                        int64_t max_sequences, int64_t max_len) {
  EngineOptions engine;
  engine.max_sequences = max_sequences;
  engine.max_len = max_len;
  engine.chunk = load.chunk;
  engine.num_threads = options.num_threads;
  engine.prefill_share = load.prefill_share;
  return engine;
}

Request RandomRequest(const ModelConfig& shape, int64_t num_tokens, uint64_t seed) {
  Random random(seed);
  Request request;
  for (int64_t i = 0; i < num_tokens; ++i) {
    request.prompt_ids.push_back(
        static_cast<int32_t>(random.Below(static_cast<uint64_t>(shape.vocab_size))));
  }
  request.sampling.temperature = 0.6;
  request.sampling.top_p = 0.95;
  request.seed = seed;
  request.ignore_eos = true;
  return request;
}

// When tokens of one request came.
class TokenTimes : public EngineObserver {
 public:
  void Watch(RequestId id) { id_ = id; }
  void OnToken(RequestId id, int32_t, const std::string&) override {
    if (id == id_) times.push_back(Clock::now());
    ++num_tokens[id];
  }
  // Milliseconds between neighbours since the last call.
  std::vector<double> TakeGaps() {
    std::vector<double> gaps;
    for (size_t i = 1; i < times.size(); ++i) {
      gaps.push_back(std::chrono::duration<double, std::milli>(times[i] - times[i - 1]).count());
    }
    times.clear();
    return gaps;
  }

  std::vector<Clock::time_point> times;
  std::map<RequestId, int64_t> num_tokens;

 private:
  RequestId id_ = -1;
};

Engine MakeEngine(const std::shared_ptr<const Model>& model, const EngineOptions& options) {
  return {model, nullptr, MakePackedCache(*model, KvOptions{}, options), options};
}

// `count` requests that decode. Returns the first one's id.
RequestId StartRunning(Engine& engine, const ModelConfig& shape, int64_t count,
                       TokenTimes& observer) {
  std::vector<RequestId> ids;
  for (int64_t i = 0; i < count; ++i) {
    ids.push_back(
        engine.Submit(RandomRequest(shape, kRunningPrompt, static_cast<uint64_t>(i) + 1)));
  }
  while (!std::all_of(ids.begin(), ids.end(),
                      [&](RequestId id) { return observer.num_tokens.contains(id); })) {
    engine.Step(&observer);
  }
  return ids[0];
}

// Steps of `batch` running requests beside `waiting` ones.
class QueueCase {
 public:
  QueueCase(const std::shared_ptr<const Model>& model, const BenchOptions& options,
            const EngineBenchOptions& load, int64_t batch, int64_t waiting)
      : batch_(batch),
        waiting_(waiting),
        engine_(MakeEngine(model, OptionsOf(options, load, batch, MaxLen(options, batch)))) {
    StartRunning(engine_, model->config(), batch, observer_);
    for (int64_t i = 0; i < waiting; ++i) {
      engine_.Submit(
          RandomRequest(model->config(), kRunningPrompt, static_cast<uint64_t>(batch + i) + 1));
    }
  }

  // The first requests decode while the prompts of the others are computed.
  static int64_t MaxLen(const BenchOptions& options, int64_t batch) {
    return kRunningPrompt + (options.repeat + 2) * kStepsPerRound + 64 * batch;
  }

  void Round(bool measured) {
    for (int64_t i = 0; i < kStepsPerRound; ++i) {
      const EngineStats before = engine_.stats();
      engine_.Step(&observer_);
      const EngineStats after = engine_.stats();
      PMKVQ_CHECK(after.num_running == batch_ && after.num_waiting == waiting_);
      if (!measured) continue;
      const double step = after.step_seconds - before.step_seconds;
      const double sampling = after.sampling_seconds - before.sampling_seconds;
      const double rest = step - sampling - (after.decode_seconds - before.decode_seconds) -
                          (after.reserve_seconds - before.reserve_seconds) -
                          (after.observer_seconds - before.observer_seconds);
      step_ms_.Add(step * 1e3);
      sampling_ms_.Add(sampling * 1e3);
      scheduling_ms_.Add(rest * 1e3);
    }
  }

  BenchFields Describe() const {
    BenchFields row;
    row.Add("running", batch_, "running");
    row.Add("waiting", waiting_, "waiting");
    row.AddSpread("ms_per_step", step_ms_.ToSpread(), "ms/step", 1);
    row.AddSpread("sampling_ms", sampling_ms_.ToSpread(), "sampling ms", 2);
    row.AddSpread("scheduling_ms", scheduling_ms_.ToSpread(), "scheduling ms", 3);
    row.Add("scheduling_percent", 100 * scheduling_ms_.Median() / step_ms_.Median(), "scheduling %",
            3);
    return row;
  }

 private:
  int64_t batch_;
  int64_t waiting_;
  Engine engine_;
  TokenTimes observer_;
  Measurements step_ms_;
  Measurements sampling_ms_;
  Measurements scheduling_ms_;
};

// Running requests without, then with the prompt of another one; alternating.
class PromptCase {
 public:
  PromptCase(const std::shared_ptr<const Model>& model, const BenchOptions& options,
             const EngineBenchOptions& load, int64_t batch)
      : shape_(model->config()),
        batch_(batch),
        prompt_tokens_(load.prompt_tokens),
        options_(OptionsOf(options, load, batch + 1,
                           std::max(load.prompt_tokens + 2, kRunningPrompt + 2 + kMostSteps))),
        model_(model) {}

  // A new engine each time: the running requests are as long in every round.
  void Round(bool measured) {
    Engine engine = MakeEngine(model_, options_);
    TokenTimes observer;
    observer.Watch(StartRunning(engine, shape_, batch_, observer));
    engine.Step(&observer);
    for (int64_t i = 0; i < kStepsPerRound; ++i) engine.Step(&observer);
    const std::vector<double> alone = observer.TakeGaps();
    const Clock::time_point begin = Clock::now();
    const RequestId prompt = engine.Submit(RandomRequest(shape_, prompt_tokens_, 12345));
    engine.Step(&observer);
    while (!observer.num_tokens.contains(prompt)) engine.Step(&observer);
    const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    const std::vector<double> beside = observer.TakeGaps();
    engine.CancelAll(nullptr);
    if (!measured) return;
    for (const double gap : alone) alone_ms_.Add(gap);
    for (const double gap : beside) beside_ms_.Add(gap);
    prompt_seconds_.Add(seconds);
  }

  BenchFields Describe() const {
    BenchFields row;
    row.Add("running", batch_, "running");
    row.Add("prompt_tokens", prompt_tokens_, "prompt");
    row.AddSpread("token_ms", alone_ms_.ToSpread(), "ms/token alone", 1);
    row.AddSpread("token_ms_beside_prompt", beside_ms_.ToSpread(), "beside the prompt", 1);
    row.Add("longest_ms_beside_prompt", beside_ms_.Max(), "longest", 1);
    row.Add("ratio", beside_ms_.Median() / alone_ms_.Median(), "ratio", 2);
    row.Add("ratio_p90", beside_ms_.Quantile(0.9) / alone_ms_.Median(), "ratio p90", 2);
    row.AddSpread("prompt_s", prompt_seconds_.ToSpread(), "prompt s", 2);
    return row;
  }

 private:
  static constexpr int64_t kMostSteps = 4096;

  const ModelConfig& shape_;
  int64_t batch_;
  int64_t prompt_tokens_;
  EngineOptions options_;
  std::shared_ptr<const Model> model_;
  Measurements alone_ms_;
  Measurements beside_ms_;
  Measurements prompt_seconds_;
};

}  // namespace

BenchReport BenchEngine(const BenchOptions& options, const EngineBenchOptions& load) {
  internal::CheckOptions(options);
  const ModelConfig shape = internal::ShapeOf(options, kDefaultLayers);
  const std::shared_ptr<const Model> model =
      SyntheticModel(shape, options.weights, options.num_threads);
  std::vector<std::unique_ptr<QueueCase>> queues;
  std::vector<std::unique_ptr<PromptCase>> prompts;
  for (const int64_t batch : options.batches) {
    for (const int64_t waiting : {int64_t{0}, load.waiting}) {
      queues.push_back(std::make_unique<QueueCase>(model, options, load, batch, waiting));
    }
    prompts.push_back(std::make_unique<PromptCase>(model, options, load, batch));
  }
  Ceilings ceilings(options.num_threads);
  internal::RunRounds(options, "engine", ceilings, [&](bool measured) {
    for (const auto& queue : queues) queue->Round(measured);
    for (const auto& prompt : prompts) {
      ThrowIfCancelled(options.cancel, "bench");
      prompt->Round(measured);
    }
  });

  BenchReport report = internal::NewReport(options, "engine", shape);
  ceilings.AddTo(report.facts);
  report.facts.Add("chunk", load.chunk, "chunk");
  report.facts.Add("prefill_share", load.prefill_share, "prefill share");
  BenchTable queue_table{"queue", "a step beside waiting requests", {}};
  for (const auto& queue : queues) queue_table.rows.push_back(queue->Describe());
  report.tables.push_back(std::move(queue_table));
  BenchTable prompt_table{"prompt", "tokens of running requests beside another one's prompt", {}};
  for (const auto& prompt : prompts) prompt_table.rows.push_back(prompt->Describe());
  report.tables.push_back(std::move(prompt_table));
  report.notes.push_back(
      "scheduling: time of a step minus its Forward, its calls of Reserve and its sampling");
  return report;
}

}  // namespace pmkvq
