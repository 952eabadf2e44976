#include "pmkvq/research/eval/evaluation.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <map>
#include <mutex>
#include <optional>
#include <utility>

#include "pmkvq/base/error.h"
#include "pmkvq/base/random.h"
#include "pmkvq/base/threads.h"
#include "pmkvq/engine/request_check.h"
#include "pmkvq/io/checkpoint.h"
#include "pmkvq/io/file.h"
#include "pmkvq/io/hash.h"
#include "pmkvq/research/benchmarks/code_problem.h"
#include "pmkvq/research/eval/grader.h"
#include "pmkvq/research/eval/replicas.h"
#include "pmkvq/research/methods/registry.h"

namespace pmkvq {
namespace {

// Longest reply that still counts, for problems whose reference chain is known.
int64_t ReplyLimit(const Tokenizer& tokenizer, const std::string& reference_chain) {
  const auto tokens = static_cast<double>(tokenizer.Encode(reference_chain).size());
  return static_cast<int64_t>(std::ceil(tokens * 1.04)) + 48;
}

// One response that is still to be made.
struct Pending {
  const ProblemRow* problem = nullptr;
  int64_t response = 0;
  int64_t max_tokens = 0;  // 0: whatever fits.
};

// Those that may take longest come first, so that the batch is full until near the end.
std::vector<Pending> PendingResponses(const Tokenizer& tokenizer,
                                      const std::vector<ProblemRow>& problems,
                                      const EvaluationOptions& options, const ResponseLog& log) {
  std::vector<Pending> all;
  for (const ProblemRow& problem : problems) {
    int64_t max_tokens = options.max_tokens;
    if (max_tokens == 0 && !problem.reference_chain.empty()) {
      max_tokens = ReplyLimit(tokenizer, problem.reference_chain);
    }
    for (int64_t i = 0; i < options.num_responses; ++i) all.push_back({&problem, i, max_tokens});
  }
  const auto length = [](const Pending& one) {
    return one.max_tokens == 0 ? std::numeric_limits<int64_t>::max() : one.max_tokens;
  };
  std::stable_sort(all.begin(), all.end(),
                   [&](const Pending& a, const Pending& b) { return length(a) > length(b); });
  std::vector<Pending> pending;
  int64_t num_dealt = 0;
  for (const Pending& one : all) {
    const bool is_missing = !log.Has(one.problem->id, one.response);
    if (options.not_dealt != nullptr &&
        options.not_dealt->contains({one.problem->id, one.response})) {
      continue;
    }
    if (options.shard.Owns(num_dealt++) && is_missing) pending.push_back(one);
  }
  return pending;
}

Response DescribeResponse(const Pending& pending, Grading grading) {
  const ProblemRow& problem = *pending.problem;
  Response response;
  response.id = problem.id;
  response.task = problem.task;
  response.level = problem.level;
  response.response = pending.response;
  response.grading = grading;
  if (grading == Grading::kAnswer) response.answer = problem.answer;
  return response;
}

// Keeps responses as they finish, hands everything to the caller's observer, and tokens to the log
// of what is unfinished.
class ResponseObserver : public EngineObserver {
 public:
  ResponseObserver(Grading grading, UnfinishedResponses& unfinished, EngineObserver* next)
      : grading_(grading), unfinished_(unfinished), next_(next) {}

  void Expect(RequestId id, const Pending& pending, double seconds_before) {
    Running& running = running_[id];
    running.pending = pending;
    running.seconds_before = seconds_before;
  }

  void OnToken(RequestId id, int32_t token, const std::string& text) override {
    Running& running = running_.at(id);
    if (!running.first_token) running.first_token = Clock::now();
    running.tokens.push_back(token);
    if (next_ != nullptr) next_->OnToken(id, token, text);
  }
  void OnHalving(RequestId id, const HalvingEvent& event) override {
    if (next_ != nullptr) next_->OnHalving(id, event);
  }
  void OnFinished(const Completion& completion) override {
    if (next_ != nullptr) next_->OnFinished(completion);
    Running& running = running_.at(completion.id);
    // Also of what is finished: grading may take longer than the process lives.
    Keep(running);
    if (completion.finish_reason == FinishReason::kCancelled) return;
    finished_.push_back({MakeResponse(running, completion), running.pending.problem->answer});
    running_.erase(completion.id);
  }

  struct Finished {
    Response response;
    std::string gold;
  };
  // Those that finished since the last call.
  std::vector<Finished> TakeFinished() { return std::exchange(finished_, {}); }

  // Writes the tokens that were drawn since the last time, twice a second.
  void KeepUnfinished() {
    constexpr std::chrono::milliseconds kInterval(500);
    if (Clock::now() - last_kept_ < kInterval) return;
    for (auto& [id, running] : running_) Keep(running);
    last_kept_ = Clock::now();
  }

 private:
  using Clock = std::chrono::steady_clock;

  struct Running {
    Pending pending;
    double seconds_before = 0;  // Of decoding, in earlier runs.
    std::optional<Clock::time_point> first_token;
    std::vector<int32_t> tokens;  // Not kept yet.
  };

  void Keep(Running& running) {
    if (running.tokens.empty()) return;
    const std::chrono::duration<double> seconds = Clock::now() - *running.first_token;
    unfinished_.Append({running.pending.problem->id, running.pending.response}, running.tokens,
                       running.seconds_before + seconds.count());
    running.tokens.clear();
  }

  Response MakeResponse(const Running& running, const Completion& completion) const {
    Response response = DescribeResponse(running.pending, grading_);
    response.finish_reason = NameOf(completion.finish_reason);
    response.error = completion.error;
    response.prompt_tokens = static_cast<int64_t>(completion.prompt_ids.size());
    response.output_tokens = static_cast<int64_t>(completion.output_ids.size());
    response.peak_bytes = completion.kv.peak_bytes;
    response.budget_bytes = completion.kv.budget_bytes;
    response.final_pages = completion.kv.pages;
    response.kept_share = completion.kv.kept_share;
    response.longest_pause_us = completion.longest_pause_us;
    response.decode_seconds = running.seconds_before + completion.decode_seconds;
    response.text = completion.text;
    return response;
  }

  Grading grading_;
  UnfinishedResponses& unfinished_;
  EngineObserver* next_;
  std::vector<Finished> finished_;
  std::map<RequestId, Running> running_;
  Clock::time_point last_kept_ = Clock::now();
};

// Why no token can follow a prompt of so many tokens, if so.
std::optional<FinishReason> WhyPromptIsTooLong(const KvBudget& budget, int64_t prompt_tokens,
                                               int64_t max_len) {
  if (prompt_tokens >= max_len) return FinishReason::kLength;
  if (!budget.Holds(prompt_tokens)) return FinishReason::kKvBudget;
  return std::nullopt;
}

std::vector<int32_t> EncodePrompt(const Tokenizer& tokenizer, const ChatTemplate& chat_template,
                                  const ProblemRow& problem) {
  if (chat_template.IsNone()) {
    return tokenizer.EncodeWhole(problem.problem, /*parse_special=*/false);
  }
  return tokenizer.Encode(chat_template.Render({{"user", problem.problem}}, true));
}

std::string HashOf(const std::vector<ProblemRow>& problems) {
  Hash128 hash;
  for (const ProblemRow& row : problems) {
    for (const std::string& field : {row.id, row.problem, row.answer, row.reference_chain}) {
      hash.Update(field);
      hash.Update(std::string_view("\0", 1));
    }
  }
  return hash.HexDigest();
}

std::vector<Replica> OpenReplicas(const std::shared_ptr<const Model>& model,
                                  const std::shared_ptr<const Tokenizer>& tokenizer,
                                  const EvaluationOptions& options) {
  const EngineOptions& whole = options.engine;
  const int num_threads = whole.num_threads > 0 ? whole.num_threads : DefaultThreads();
  const int64_t count = options.replicas > 0 ? options.replicas
                        : model->device().device != Device::kCpu || model->ranks() != nullptr
                            ? 1  // One step of all sequences is what a device, or ranks, do best.
                            : ChooseReplicas(model->config(), num_threads, whole.max_sequences);
  if (count > 1 && model->ranks() != nullptr) {
    throw Unsupported("--replicas",
                      fmt::format("found {} with ranks that share a model, expected 1", count));
  }
  std::vector<Replica> replicas;
  for (const EngineShare& share : ShareOut(count, num_threads, whole.max_sequences)) {
    SpecEngineOptions engine = options.engine;
    engine.num_threads = share.num_threads;
    engine.max_sequences = share.max_sequences;
    engine.prefill_share = 1;  // Nobody waits for single tokens, and full batches are faster.
    replicas.push_back({OpenEngine(model, tokenizer, engine), share});
  }
  return replicas;
}

}  // namespace

uint64_t ResponseSeed(uint64_t seed, std::string_view id, int64_t response) {
  uint64_t hash = 0xcbf29ce484222325ull;
  for (const char c : id) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3ull;
  return StreamSeed(StreamSeed(seed, hash), static_cast<uint64_t>(response));
}

RunSettings MakeRunSettings(const Benchmark& benchmark, const Model& model,
                            const EvaluationOptions& options, const std::string& plan_path) {
  const KvOptions& kv = options.engine.kv;
  RunSettings settings;
  settings.benchmark = benchmark.name;
  settings.model_identity = model.checkpoint().Identity();
  settings.kv = kv.spec;
  if (!plan_path.empty()) settings.plan_hash = HashFile(plan_path);
  const auto add = [&](const char* option, const auto& value) {
    settings.options.emplace_back(option, fmt::format("{}", value));
  };
  add("--data", HashOf(benchmark.problems));
  // Files that the SPEC names may change under the same name.
  for (const auto& [key, path] : FilesOfSpec(kv.spec)) {
    settings.options.emplace_back("--kv " + key, HashFile(path));
  }
  // So may the code of a method that was added at run time.
  const std::string code_hash = CodeHashOfSpec(kv.spec);
  if (!code_hash.empty()) add("--kv code", code_hash);
  // Left out for the default, so that runs made before there was a choice can go on.
  if (model.weights() != WeightMode::kAsStored) add("--weights", NameOf(model.weights()));
  // Devices round in other places; which of several does not matter.
  if (model.device().device != Device::kCpu) add("--device", "cuda");
  add("--kv-budget", kv.budget_bytes);
  for (const CacheField& field : CacheFields()) {
    if (field.record == CacheField::Record::kNever) continue;
    const std::string value = field.record_text ? field.record_text(kv) : field.text(kv);
    if (field.record == CacheField::Record::kUnlessDefault && value == field.text({})) continue;
    add(field.option, value);
  }
  add("--max-len", options.engine.max_len == 0 ? model.config().max_position_embeddings
                                               : options.engine.max_len);
  add("--chunk", options.engine.chunk);
  add("--chat-template", options.chat_template.Identity());
  add("--temperature", options.sampling.temperature);
  add("--top-k", options.sampling.top_k);
  add("--top-p", options.sampling.top_p);
  add("--min-p", options.sampling.min_p);
  add("--seed", options.seed);
  add("--max-tokens", options.max_tokens);
  return settings;
}

std::vector<Response> ResponsesTo(const ResponseLog& log, const std::vector<ProblemRow>& problems,
                                  int64_t num_responses) {
  std::map<std::pair<std::string, int64_t>, const Response*> by_key;
  for (const Response& response : log.responses()) {
    by_key[{response.id, response.response}] = &response;
  }
  std::vector<Response> ordered;
  for (const ProblemRow& problem : problems) {
    for (int64_t i = 0; i < num_responses; ++i) {
      const auto found = by_key.find({problem.id, i});
      if (found != by_key.end()) ordered.push_back(*found->second);
    }
  }
  return ordered;
}

int64_t NumPending(const Tokenizer& tokenizer, const std::vector<ProblemRow>& problems,
                   const EvaluationOptions& options, const ResponseLog& log) {
  return std::ssize(PendingResponses(tokenizer, problems, options, log));
}

ResponseSummary SummarizeResponses(const std::vector<Response>& responses) {
  ResponseSummary summary;
  std::vector<GradedResponse> graded;
  double evicted_shares = 0;
  for (const Response& row : responses) {
    graded.push_back({row.id, row.response, row.grading == Grading::kCode, row.extracted,
                      row.correct, row.finish_reason, row.output_tokens});
    summary.num_correct += row.correct ? 1 : 0;
    summary.output_tokens += row.output_tokens;
    summary.peak_bytes = std::max(summary.peak_bytes, row.peak_bytes);
    evicted_shares += 1 - row.kept_share;
    summary.budget_bytes = std::max(summary.budget_bytes, row.budget_bytes);
    summary.num_cut_by_length += row.finish_reason == "length" ? 1 : 0;
    summary.num_cut_by_budget += row.finish_reason == "kv_budget" ? 1 : 0;
    const bool is_cut = row.finish_reason == "length" || row.finish_reason == "kv_budget";
    summary.num_prompts_too_long += is_cut && row.output_tokens == 0 ? 1 : 0;
    for (size_t i = 0; i < kWidths.size(); ++i) summary.final_pages[i] += row.final_pages[i];
    summary.longest_pause_us = std::max(summary.longest_pause_us, row.longest_pause_us);
  }
  if (!responses.empty()) {
    summary.kept_share = 1 - evicted_shares / static_cast<double>(responses.size());
  }
  summary.judged = SummarizeGraded(graded);
  return summary;
}

void CheckCanGrade(Grading grading) {
  if (grading == Grading::kCode) PythonSandbox::Shared();
}

double Evaluate(const std::shared_ptr<const Model>& model,
                const std::shared_ptr<const Tokenizer>& tokenizer, Grading grading,
                const std::vector<ProblemRow>& problems, const EvaluationOptions& options,
                ResponseLog& log, EngineObserver* observer, const ResponseCallback& on_response,
                const CancelFlag* cancel) {
  const auto start = std::chrono::steady_clock::now();
  const std::vector<Pending> pending = PendingResponses(*tokenizer, problems, options, log);
  if (pending.empty()) return 0;
  CheckCanGrade(grading);
  std::vector<Replica> replicas = OpenReplicas(model, tokenizer, options);
  const KvBudget& budget = replicas.front().engine.kv_budget();
  const int64_t max_len = RequirementsOf(*model, options.engine).max_len;
  const int num_threads = options.engine.num_threads;
  Grader grader(grading, num_threads > 0 ? num_threads : DefaultThreads(), cancel);
  UnfinishedResponses& unfinished = log.unfinished();
  ResponseObserver finished(grading, unfinished, observer);
  std::mutex mutex;  // Of `finished`, the log and the caller's observer and callback.
  const auto keep = [&](const std::vector<Response>& responses) {
    const std::lock_guard<std::mutex> lock(mutex);
    for (const Response& response : responses) {
      log.Append(response);
      if (on_response) on_response(response);
    }
    return !responses.empty();
  };
  const auto take_finished = [&] {
    const std::lock_guard<std::mutex> lock(mutex);
    return finished.TakeFinished();
  };
  const auto grade = [&] {
    for (auto& [response, gold] : take_finished()) grader.Add(std::move(response), std::move(gold));
  };
  const ProblemRow* encoded = nullptr;  // The responses to one problem are neighbours.
  std::vector<int32_t> prompt_ids;
  std::vector<PromptSamples> prompts;
  RequestId num_samples = 0;
  const ProblemRow* sampled = nullptr;  // Whose samples the last of `prompts` may take.
  for (const Pending& one : pending) {
    if (IsCancelled(cancel)) return 0;
    try {
      if (one.problem != encoded) {
        prompt_ids = EncodePrompt(*tokenizer, options.chat_template, *one.problem);
        encoded = one.problem;
      }
      const auto reason = WhyPromptIsTooLong(budget, std::ssize(prompt_ids), max_len);
      if (reason) {
        Response response = DescribeResponse(one, grading);
        response.finish_reason = NameOf(*reason);
        response.prompt_tokens = std::ssize(prompt_ids);
        response.budget_bytes = budget.total_bytes();
        keep({response});
        continue;
      }
      Request request;
      request.prompt_ids = prompt_ids;
      request.sampling = options.sampling;
      const uint64_t seed = ResponseSeed(options.seed, one.problem->id, one.response);
      request.max_tokens = one.max_tokens;
      const auto begun = unfinished.begun().find({one.problem->id, one.response});
      const bool goes_on = begun != unfinished.begun().end();
      if (goes_on) request.replay_ids = begun->second.tokens;
      CheckRequest(request, model->config(), budget, max_len, /*has_tokenizer=*/true);
      finished.Expect(num_samples++, one, goes_on ? begun->second.seconds : 0);
      if (one.problem == sampled && !goes_on) {
        prompts.back().seeds.push_back(seed);
        continue;
      }
      sampled = goes_on ? nullptr : one.problem;
      prompts.push_back({std::move(request), {seed}});
    } catch (const InvalidInput& error) {
      throw InvalidInput("problem " + one.problem->id, error.what());
    }
  }
  const auto between_steps = [&] {
    grade();
    keep(grader.TakeGraded());
    const std::lock_guard<std::mutex> lock(mutex);
    finished.KeepUnfinished();
  };
  RunReplicas(replicas, std::move(prompts), finished, mutex, between_steps, cancel);
  grade();
  while (keep(grader.WaitForAll())) {
  }
  unfinished.Compact();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace pmkvq
