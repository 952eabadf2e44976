// Stress of two engines that take turns on one device, for a time: requests arrive at random
// moments, of 1 to `max_len` tokens, and are cancelled at random ones.
//   Budgets for each request, which force pages from 16 to 2 bits: plain requests, samples that
//   fork their prompt, and sessions, whose next request truncates what is stored. One pool that
//   keeps prompts: pages of all are halved, prompts are shared, places given up.
// In between two caches go through a random history (cache_history.h), and all codes are compared.
// Checked: no request ends with an error, no budget is exceeded, the device's memory stays.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "pmkvq/engine/engine.h"
#include "pmkvq/tensor/device/device_info.h"
#include "support/cache_history.h"
#include "support/device_models.h"
#include "support/engine_fixture.h"
#include "support/temp_folder.h"

namespace pmkvq::testing_support {

struct StressOptions {
  DeviceId device;
  double seconds = 5.0;
  uint64_t seed = 1;
  int64_t max_len = 32768;
  double seconds_between_histories = 1.0;
  // Others use the device's memory, too: only what this process has of it is looked at.
  bool shares_device = false;
  std::string json_file;  // "": none.

  // PMKVQ_STRESS_SECONDS, _SEED, _JSON (a file) and _SHARED, where they are set.
  void FromEnvironment() {
    const auto text = [](const char* name) { return std::getenv(name); };
    if (const char* const value = text("PMKVQ_STRESS_SECONDS")) seconds = std::atof(value);
    if (const char* const value = text("PMKVQ_STRESS_SEED"))
      seed = std::strtoull(value, nullptr, 10);
    if (const char* const value = text("PMKVQ_STRESS_JSON")) json_file = value;
    shares_device = text("PMKVQ_STRESS_SHARED") != nullptr;
  }
};

// MiB of a device: free for anybody, and what this process has, as nvidia-smi says; -1: it does
// not.
struct DeviceMemory {
  double seconds = 0;
  int64_t free_mib = 0;
  int64_t own_mib = -1;
};
inline DeviceMemory MemoryNow(DeviceId device, double seconds) {
  DeviceMemory memory;
  memory.seconds = seconds;
  if (device.device == Device::kCpu) return memory;
  memory.free_mib = static_cast<int64_t>(Query(device).free_bytes >> 20);
  std::FILE* const pipe = popen(
      "nvidia-smi --query-compute-apps=pid,used_memory --format=csv,noheader,nounits 2>/dev/null",
      "r");
  if (pipe == nullptr) return memory;
  std::array<char, 256> line{};
  while (std::fgets(line.data(), line.size(), pipe) != nullptr) {
    long pid = 0;
    long mib = 0;
    if (std::sscanf(line.data(), "%ld, %ld", &pid, &mib) == 2 && pid == getpid()) {
      memory.own_mib = mib;
    }
  }
  pclose(pipe);
  return memory;
}

// From 1 to `most`, each size class as likely as the others.
inline int64_t DrawLength(Random& random, int64_t most) {
  const int64_t bound = std::max<int64_t>(most >> random.Below(16), 1);
  return 1 + static_cast<int64_t>(random.Below(static_cast<uint64_t>(bound)));
}

class EngineStress {
 public:
  // `Other` is the cache beside the one on the CPU.
  template <class Other>
  static void Run(const StressOptions& options) {
    EngineStress stress(options);
    stress.Loop(
        [&](const CacheConfig& config, uint64_t seed) { RunHistoryOn<Other>(config, seed, 6); });
  }

 private:
  static constexpr size_t kSequences = 12;
  static constexpr int64_t kSessions = 3;
  static constexpr double kSecondsBetweenReports = 10.0;
  // By then all code is loaded and the longest sequence was there: memory stays from here on.
  static constexpr double kWarmSeconds = 60.0;
  static constexpr int64_t kSlackMib = 16;

  struct Session {
    std::vector<int32_t> tokens;
    RequestId running = -1;
  };
  // An engine with its open requests.
  struct Side {
    std::unique_ptr<Engine> engine;
    std::vector<RequestId> open;
    std::vector<std::vector<int32_t>> prompts;  // Beginnings that requests of a pool share.
    std::array<Session, kSessions> sessions;
    RecordingObserver observer;
  };

  explicit EngineStress(const StressOptions& options)
      : options_(options), random_(options.seed), model_(LongModel()) {
    SpecEngineOptions budgets = CommonOptions();
    budgets.kv.policy = PolicyKind::kOldestFirst;
    // 3 blocks of two KV heads of 128: 3,072 bytes a token at 16 bits, 100.7 MB for 32,768 tokens,
    // and 14.2 MB at 2 bits; open pages and the sink come on top.
    budgets.kv.budget_bytes = 14'200'000 * options.max_len / 32768 + 700'000;
    sides_[0].engine = std::make_unique<Engine>(OpenEngine(model_, nullptr, budgets));
    SpecEngineOptions pool = CommonOptions();
    pool.kv.pool.bytes = 3 * budgets.kv.budget_bytes;
    pool.kv.pool.prefix_bytes = pool.kv.pool.bytes;
    sides_[1].engine = std::make_unique<Engine>(OpenEngine(model_, nullptr, pool));
    for (uint64_t i = 0; i < 4; ++i) {
      sides_[1].prompts.push_back(RandomPrompt(
          options.max_len / 8 * static_cast<int64_t>(i + 1) / 2, options.seed + i, kVocab));
    }
  }

  SpecEngineOptions CommonOptions() const {
    SpecEngineOptions options;
    options.kv.spec = "pm-kvq";
    options.max_sequences = kSequences;
    options.max_len = options_.max_len;
    options.num_threads = 2;
    return options;
  }

  // A model of random weights for sequences of up to max_len tokens.
  std::shared_ptr<const Model> LongModel() const {
    const TempFolder folder;
    TinyModel tiny = WithHeads(
        {.architecture = "Qwen2ForCausalLM", .qkv_bias = true, .dtype = DType::kBF16}, 4, 2, 128);
    tiny.max_positions = options_.max_len;
    WriteTinyModel(tiny, MakeTinyWeights(tiny), folder);
    ModelOptions options;
    options.device = options_.device;
    return Model::Load(folder.path(), options);
  }

  double Elapsed() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }
  bool OneIn(uint64_t n) { return random_.Below(n) == 0; }

  template <class History>
  void Loop(const History& history) {
    start_ = std::chrono::steady_clock::now();
    // What takes the most memory comes first.
    for (Side& side : sides_) Submit(side, RandomPrompt(options_.max_len - 8, 7, kVocab), 7, 1);
    double next_history = 0.0;
    double next_report = 0.0;
    // Some requests in any case: a machine with much other work does little in a few seconds.
    constexpr int64_t kLeastRequests = 10;
    while ((Elapsed() < options_.seconds || num_submitted_ <= kLeastRequests) &&
           !testing::Test::HasFailure()) {
      for (size_t i = 0; i < sides_.size(); ++i) Turn(i);
      if (Elapsed() >= next_history) {
        SCOPED_TRACE(testing::Message() << "history " << num_histories_);
        CacheConfig config = RandomConfig(random_, options_.max_len);
        config.num_threads = 4;
        config.chunk_tokens = std::min(int64_t{512} << random_.Below(4), options_.max_len / 2);
        history(config, random_.Next());
        ++num_histories_;
        next_history = Elapsed() + options_.seconds_between_histories;
      }
      if (Elapsed() >= next_report) {
        Report();
        next_report += kSecondsBetweenReports;
      }
    }
    for (Side& side : sides_) {
      side.engine->CancelAll(&side.observer);
      Note(side);
      EXPECT_TRUE(side.open.empty());
    }
    Report();
    CheckMemory();
    // So long a run has time for all widths.
    EXPECT_TRUE(options_.seconds < kWarmSeconds || (halvings_[8] > 0 && halvings_[4] > 0));
    WriteJson();
  }

  // Now and then an arrival and a cancellation, and one step.
  void Turn(size_t index) {
    Side& side = sides_[index];
    if (side.open.size() < 2 * kSequences && OneIn(3)) Arrive(side, index == 1);
    side.engine->Step(&side.observer);
    Note(side);  // Those that ended are not cancelled.
    // Long requests end so: thousands of steps would pass without an arrival.
    if (!side.open.empty() && OneIn(100)) {
      const RequestId id = side.open[static_cast<size_t>(random_.Below(side.open.size()))];
      EXPECT_TRUE(side.engine->Cancel(id, &side.observer));
    }
    Note(side);
    if (index == 1) {
      const KvPoolStats pool = side.engine->store().StoreStats().pool;
      EXPECT_LE(pool.peak_bytes, pool.bytes);
    }
  }

  void Arrive(Side& side, bool is_pool) {
    if (is_pool && OneIn(2)) {  // Behind a beginning that others have, too.
      std::vector<int32_t> prompt = side.prompts[static_cast<size_t>(random_.Below(4))];
      const std::vector<int32_t> own =
          RandomPrompt(DrawLength(random_, 300), random_.Next(), kVocab);
      prompt.insert(prompt.end(), own.begin(), own.end());
      return Submit(side, std::move(prompt), DrawMost(static_cast<int64_t>(prompt.size())), 1);
    }
    if (!is_pool && OneIn(4)) return ContinueSession(side);
    const int64_t length = DrawLength(random_, options_.max_len - 1);
    Submit(side, RandomPrompt(length, random_.Next(), kVocab), DrawMost(length),
           OneIn(8) ? 2 + random_.Below(3) : 1);
  }
  int64_t DrawMost(int64_t prompt) {
    return DrawLength(random_, std::max<int64_t>(1, options_.max_len - prompt));
  }

  void Submit(Side& side, std::vector<int32_t> prompt, int64_t most, uint64_t samples) {
    Request request = MakeRequest(std::move(prompt), most, random_.Next());
    request.sampling.temperature = OneIn(2) ? 0.0 : 1.0;
    std::vector<uint64_t> seeds(samples);
    for (uint64_t& seed : seeds) seed = random_.Next();
    for (const RequestId id : side.engine->SubmitSamples(request, seeds)) side.open.push_back(id);
    num_submitted_ += static_cast<int64_t>(samples);
    num_samples_ += samples > 1 ? static_cast<int64_t>(samples) : 0;
  }

  // The next request of a session keeps a part of its tokens.
  void ContinueSession(Side& side) {
    const auto number = static_cast<int64_t>(random_.Below(kSessions));
    Session& session = side.sessions[static_cast<size_t>(number)];
    if (session.running >= 0) return;
    std::vector<int32_t> prompt = session.tokens;
    prompt.resize(static_cast<size_t>(random_.Below(prompt.size() + 1)));
    if (static_cast<int64_t>(prompt.size()) > options_.max_len / 2) prompt.clear();
    num_truncated_ += static_cast<int64_t>(prompt.size() < session.tokens.size());
    const std::vector<int32_t> more =
        RandomPrompt(DrawLength(random_, 2000), random_.Next(), kVocab);
    prompt.insert(prompt.end(), more.begin(), more.end());
    prompt.resize(std::min(prompt.size(), static_cast<size_t>(options_.max_len - 1)));
    session.tokens = prompt;
    const int64_t most = DrawMost(static_cast<int64_t>(prompt.size()));
    Request request = MakeRequest(std::move(prompt), most, random_.Next());
    request.session = number;
    session.running = side.engine->Submit(std::move(request));
    side.open.push_back(session.running);
    ++num_submitted_;
    ++num_continued_;
  }

  // What the engine has reported.
  void Note(Side& side) {
    for (const Completion& done : side.observer.finished) {
      EXPECT_NE(done.finish_reason, FinishReason::kError) << done.error;
      if (&side == sides_.data()) {
        EXPECT_LE(done.kv.peak_bytes, done.kv.budget_bytes);
      }
      ++finished_[std::string(NameOf(done.finish_reason))];
      longest_ = std::max(longest_, done.kv.num_tokens);
      num_tokens_ += static_cast<int64_t>(done.output_ids.size());
      num_preemptions_ += done.num_preemptions;
      num_cached_ += done.num_cached_tokens;
      std::erase(side.open, done.id);
      for (Session& session : side.sessions) {
        if (session.running != done.id) continue;
        session.running = -1;
        session.tokens.insert(session.tokens.end(), done.output_ids.begin(), done.output_ids.end());
      }
    }
    for (const auto& [id, event] : side.observer.halvings) ++halvings_.at(event.from_bits);
    side.observer = {};
  }

  void Report() {
    memory_.push_back(MemoryNow(options_.device, Elapsed()));
    const DeviceMemory& now = memory_.back();
    std::printf(
        "%5.0f s: %ld requests, %ld ended, %ld cancelled, %ld + %ld + %ld halvings of 16, 8, 4 "
        "bits, "
        "%ld preempted, %ld histories, longest %ld tokens; MiB free %ld, own %ld\n",
        now.seconds, num_submitted_, NumFinished() - finished_["cancelled"], finished_["cancelled"],
        halvings_[16], halvings_[8], halvings_[4], num_preemptions_, num_histories_, longest_,
        now.free_mib, now.own_mib);
    std::fflush(stdout);
  }
  int64_t NumFinished() const {
    int64_t sum = 0;
    for (const auto& [name, count] : finished_) sum += count;
    return sum;
  }

  // Nothing is taken after the first minute.
  void CheckMemory() const {
    const auto warm = std::find_if(memory_.begin(), memory_.end(), [](const DeviceMemory& memory) {
      return memory.seconds >= kWarmSeconds;
    });
    for (auto memory = warm; memory != memory_.end(); ++memory) {
      if (warm->own_mib >= 0) {
        EXPECT_LE(memory->own_mib, warm->own_mib + kSlackMib) << "after " << memory->seconds;
      } else if (!options_.shares_device) {
        EXPECT_GE(memory->free_mib + kSlackMib, warm->free_mib) << "after " << memory->seconds;
      }
    }
  }

  void WriteJson() const {
    if (options_.json_file.empty()) return;
    std::string finished;
    for (const auto& [name, count] : finished_) {
      finished += fmt::format("{}\"{}\": {}", finished.empty() ? "" : ", ", name, count);
    }
    std::string series;
    for (const DeviceMemory& memory : memory_) {
      series += fmt::format("{}[{:.0f}, {}, {}]", series.empty() ? "" : ", ", memory.seconds,
                            memory.free_mib, memory.own_mib);
    }
    std::ofstream(options_.json_file) << fmt::format(
        "{{\"seconds\": {:.1f}, \"seed\": {}, \"device\": \"{}\", \"max_len\": {}, \"failed\": "
        "{},\n"
        " \"requests\": {}, \"of_samples\": {}, \"of_sessions\": {}, \"truncated\": {}, "
        "\"finished\": {{{}}},\n \"output_tokens\": {}, \"longest\": {}, \"cached_tokens\": {}, "
        "\"preemptions\": {},\n \"halvings\": {{\"16\": {}, \"8\": {}, \"4\": {}}}, "
        "\"histories\": {}, \"compared_bytes\": {},\n \"memory\": [\"seconds, free MiB, own MiB\", "
        "{}]}}\n",
        Elapsed(), options_.seed, options_.device.device == Device::kCpu ? "cpu" : "cuda",
        options_.max_len, testing::Test::HasFailure(), num_submitted_, num_samples_, num_continued_,
        num_truncated_, finished, num_tokens_, longest_, num_cached_, num_preemptions_,
        halvings_[16], halvings_[8], halvings_[4], num_histories_, ComparedBytes(), series);
  }

  static constexpr int64_t kVocab = 200;
  const StressOptions options_;
  Random random_;
  std::shared_ptr<const Model> model_;
  std::array<Side, 2> sides_;
  std::chrono::steady_clock::time_point start_;
  std::array<int64_t, 17> halvings_{};  // By the width before.
  std::map<std::string, int64_t> finished_;
  std::vector<DeviceMemory> memory_;
  int64_t num_submitted_ = 0, num_samples_ = 0, num_continued_ = 0, num_truncated_ = 0;
  int64_t num_tokens_ = 0, longest_ = 0, num_cached_ = 0, num_preemptions_ = 0, num_histories_ = 0;
};

}  // namespace pmkvq::testing_support
