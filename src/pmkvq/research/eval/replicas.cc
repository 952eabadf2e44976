#include "pmkvq/research/eval/replicas.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <map>
#include <thread>
#include <utility>

#include "pmkvq/base/error.h"
#include "pmkvq/base/thread_pool.h"
#include "pmkvq/model/model_size.h"

namespace pmkvq {
namespace {

// Fewer rows make poor use of a weight that is in registers.
constexpr int64_t kLeastSequences = 4;
constexpr int64_t kUsualCacheBytes = int64_t{32} << 20;

// Of what a step with many rows reads: all matrices but the embedding, experts too.
int64_t WeightBytes(const ModelConfig& model) {
  constexpr int64_t kBytesPerWeight = 2;
  const int64_t of_embedding = model.tie_word_embeddings ? 0 : model.vocab_size * model.hidden_size;
  return kBytesPerWeight * (NumMatrixWeights(model) - of_embedding);
}

// One RunReplicas.
class Group {
 public:
  Group(std::vector<PromptSamples> prompts, EngineObserver& observer, std::mutex& mutex,
        const CancelFlag* cancel)
      : prompts_(std::move(prompts)), observer_(observer), mutex_(mutex), cancel_(cancel) {}

  // Steps the engine until there is nothing to do for it. Keeps the first error of all engines.
  void Run(Replica& replica, const std::function<void()>& between_steps) noexcept {
    try {
      const CancelScope ending(&ends_, "replicas");
      LocalObserver local(*this);
      try {
        while (!IsCancelled(cancel_) && !IsCancelled(&ends_)) {
          while (Deal(replica.engine, replica.share.max_sequences - local.num_running(), local)) {
          }
          if (local.num_running() == 0) break;
          replica.engine.Step(&local);
          if (between_steps) between_steps();
        }
      } catch (const Cancelled&) {
        // An interrupt that is seen here, and not by the loop, is no error either.
        if (!IsCancelled(cancel_)) throw;
      }
      replica.engine.CancelAll(&local);
    } catch (...) {
      Fail(std::current_exception());
    }
  }

  void Fail(std::exception_ptr error) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (error_ == nullptr) error_ = std::move(error);
    ends_ = true;
  }

  void Leave() {
    const std::lock_guard<std::mutex> lock(mutex_);
    --num_others_;
    left_.notify_all();
  }
  void Enter() {
    const std::lock_guard<std::mutex> lock(mutex_);
    ++num_others_;
  }
  // Returns whether others still run, after 50 ms at most.
  bool WaitForOthers() {
    std::unique_lock<std::mutex> lock(mutex_);
    return !left_.wait_for(lock, std::chrono::milliseconds(50), [&] { return num_others_ == 0; });
  }

  void RethrowError() {
    if (error_ != nullptr) std::rethrow_exception(error_);
  }

 private:
  // Tells the common observer what one engine reports.
  class LocalObserver : public EngineObserver {
   public:
    explicit LocalObserver(Group& group) : group_(group) {}

    void Add(RequestId id, RequestId index) { indices_.emplace(id, index); }
    int64_t num_running() const { return std::ssize(indices_); }

    void OnToken(RequestId id, int32_t token, const std::string& text) override {
      const std::lock_guard<std::mutex> lock(group_.mutex_);
      group_.observer_.OnToken(indices_.at(id), token, text);
    }
    void OnLogprobs(RequestId id, const TokenLogprobs& logprobs) override {
      const std::lock_guard<std::mutex> lock(group_.mutex_);
      group_.observer_.OnLogprobs(indices_.at(id), logprobs);
    }
    void OnHalving(RequestId id, const HalvingEvent& event) override {
      const std::lock_guard<std::mutex> lock(group_.mutex_);
      group_.observer_.OnHalving(indices_.at(id), event);
    }
    void OnFinished(const Completion& completion) override {
      Completion named = completion;
      named.id = indices_.at(completion.id);
      indices_.erase(completion.id);
      const std::lock_guard<std::mutex> lock(group_.mutex_);
      group_.observer_.OnFinished(named);
    }

   private:
    Group& group_;
    std::map<RequestId, RequestId> indices_;  // Of the engine's requests.
  };

  // Hands the engine samples of the next prompt, `num_places` at most. Returns false when there is
  // no place or no sample is left.
  bool Deal(Engine& engine, int64_t num_places, LocalObserver& local) {
    PromptSamples dealt;
    RequestId first_index = 0;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (num_places == 0 || next_ == prompts_.size()) return false;
      const PromptSamples& prompt = prompts_[next_];
      const auto begin = prompt.seeds.begin() + num_dealt_;
      const int64_t count = std::min(num_places, prompt.seeds.end() - begin);
      dealt = {prompt.request, {begin, begin + count}};
      first_index = next_index_;
      next_index_ += count;
      num_dealt_ += count;
      if (num_dealt_ == std::ssize(prompt.seeds)) {
        ++next_;
        num_dealt_ = 0;
      }
    }
    std::vector<RequestId> ids;
    if (dealt.seeds.size() > 1) {
      ids = engine.SubmitSamples(dealt.request, dealt.seeds);
    } else {
      dealt.request.seed = dealt.seeds.front();
      ids = {engine.Submit(std::move(dealt.request))};
    }
    for (const RequestId id : ids) local.Add(id, first_index++);
    return true;
  }

  std::vector<PromptSamples> prompts_;
  size_t next_ = 0;           // The prompt of which samples are left,
  int64_t num_dealt_ = 0;     // how many of its samples were dealt,
  RequestId next_index_ = 0;  // and the index of the next one.
  EngineObserver& observer_;
  std::mutex& mutex_;
  const CancelFlag* const cancel_;
  CancelFlag ends_{false};  // After an error.
  std::exception_ptr error_;
  int64_t num_others_ = 0;
  std::condition_variable left_;
};

}  // namespace

int64_t ChooseReplicas(int64_t weight_bytes, int64_t cache_bytes, int num_threads, int64_t batch) {
  if (weight_bytes > cache_bytes) return 1;
  return std::clamp<int64_t>(batch / kLeastSequences, 1, std::max(num_threads, 1));
}

int64_t ChooseReplicas(const ModelConfig& model, int num_threads, int64_t batch) {
  const long cache_bytes = sysconf(_SC_LEVEL3_CACHE_SIZE);
  return ChooseReplicas(WeightBytes(model), cache_bytes > 0 ? cache_bytes : kUsualCacheBytes,
                        num_threads, batch);
}

std::vector<EngineShare> ShareOut(int64_t replicas, int num_threads, int64_t batch) {
  if (replicas > batch) {
    throw InvalidInput(
        "--replicas", fmt::format("found {}, expected at most the {} of --batch", replicas, batch));
  }
  std::vector<EngineShare> shares;
  for (int64_t i = 0; i < replicas; ++i) {
    const auto share = [&](int64_t all) { return all / replicas + (i < all % replicas ? 1 : 0); };
    shares.push_back({static_cast<int>(std::max<int64_t>(1, share(num_threads))), share(batch)});
  }
  return shares;
}

void RunReplicas(std::vector<Replica>& replicas, std::vector<PromptSamples> prompts,
                 EngineObserver& observer, std::mutex& mutex,
                 const std::function<void()>& between_steps, const CancelFlag* cancel) {
  Group group(std::move(prompts), observer, mutex, cancel);
  if (replicas.size() == 1) {
    group.Run(replicas.front(), between_steps);
    return group.RethrowError();
  }
  std::vector<std::thread> threads;
  const auto run = [&](Replica& replica, const std::function<void()>& between) {
    ThreadPool pool;
    const ThreadPoolScope scope(pool);
    group.Run(replica, between);
  };
  try {
    for (size_t i = 1; i < replicas.size(); ++i) {
      group.Enter();
      threads.emplace_back([&, i] {
        const CancelScope scope(cancel, "replicas");
        run(replicas[i], nullptr);
        group.Leave();
      });
    }
    run(replicas.front(), between_steps);
    while (group.WaitForOthers()) between_steps();
  } catch (...) {
    group.Fail(std::current_exception());
  }
  for (std::thread& thread : threads) thread.join();
  group.RethrowError();
}

}  // namespace pmkvq
