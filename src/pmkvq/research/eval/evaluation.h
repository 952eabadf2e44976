// Running a benchmark with one cache method: n responses to each problem, graded as they finish.
//
// With a folder, each response is one line of DIR/responses.jsonl (docs/formats.md), written whole
// and at once as it finishes. A later run with the same settings (DIR/run.json) does what is
// missing and nothing twice: a last line that a kill cut short is dropped and done again. Tokens of
// responses that are not finished are kept, too (research/eval/unfinished.h), at least once a
// second; a later run goes on with them. The folder is locked while a run writes to it.
//
// Several processes may share a run, each with a Shard. Each process appends to its part
// file in the folder; the last one to end merges them (research/eval/run_parts.h).
//
// A response depends on the settings, the problem and its index alone: its seed is drawn from
// (seed, problem id, response index), so batch, replicas, order, selection and resumption change
// nothing. The lines stand in the order in which responses finish.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "pmkvq/base/interrupt.h"
#include "pmkvq/base/shard.h"
#include "pmkvq/research/benchmarks/benchmark.h"
#include "pmkvq/research/eval/scored_responses.h"
#include "pmkvq/research/eval/unfinished.h"
#include "pmkvq/research/methods/spec_engine.h"
#include "pmkvq/text/chat_template.h"

namespace pmkvq {

using ResponseKeys = std::set<std::pair<std::string, int64_t>>;  // Problem id, response index.

struct EvaluationOptions {
  SpecEngineOptions engine;  // max_sequences is the batch size.
  // Engines that share threads and batch (research/eval/replicas.h). 0: chosen by ChooseReplicas.
  int64_t replicas = 0;
  ChatTemplate chat_template;  // Renders each problem as one user turn.
  SamplingParams sampling;     // Greedy by default.
  uint64_t seed = 42;
  int64_t num_responses = 1;  // To each problem.
  // Output limit, within engine.max_len. 0: where a problem has a reference chain, 1.04 times its
  // tokens + 48; otherwise whatever fits engine.max_len.
  int64_t max_tokens = 0;
  // The responses that are made here: those of this shard, of all responses to the problems,
  // longest expected first. So a shard's part depends neither on what is there nor on when it
  // starts.
  Shard shard;
  // Responses that are not dealt out, since all shards know that they are there: the parts of the
  // others are then even, also after a run that ended early. Null: all are dealt out.
  std::shared_ptr<const ResponseKeys> not_dealt;
};

// Seed of response `response` to the problem `id`: a stream of (seed, FNV-1a 64 of the id,
// response).
uint64_t ResponseSeed(uint64_t seed, std::string_view id, int64_t response);

// One graded response: one line of responses.jsonl.
struct Response {
  std::string id;  // Of the problem.
  std::string task;
  int64_t level = 0;
  int64_t response = 0;  // Index among those of the problem, from 0.
  Grading grading = Grading::kAnswer;
  std::string answer;  // Gold; "" for kCode, whose tests stay in the data file.
  std::string extracted;
  bool correct = false;
  std::string finish_reason;  // "stop", "length", "kv_budget", "error"
  std::string error;          // Of "error": Completion::error. Such a response is unsolved.
  int64_t prompt_tokens = 0;
  int64_t output_tokens = 0;
  int64_t peak_bytes = 0;
  int64_t budget_bytes = 0;
  PagesPerWidth final_pages{};
  double kept_share = 1;  // KvSequenceStats::kept_share at the end.
  double longest_pause_us = 0;
  double decode_seconds = 0;
  std::string text;
};
std::string ResponseLine(const Response& response);  // JSON, no newline.
// Throws InvalidInput naming `source` and the field.
Response ParseResponse(std::string_view line, const std::string& source);

// What is fixed for all responses of a folder; a rerun has to have the same. Batch size, threads,
// replicas, selection and the number of responses may differ.
struct RunSettings {
  std::string benchmark;
  std::string model_identity;
  std::string kv;         // SPEC
  std::string plan_hash;  // Of the plan file's content, "" without plan.
  // Everything else that changes responses, in a fixed order: (option, value).
  std::vector<std::pair<std::string, std::string>> options;
};
// `plan_path` is the file of options.engine.kv.plan, "" without one. Throws IoError.
RunSettings MakeRunSettings(const Benchmark& benchmark, const Model& model,
                            const EvaluationOptions& options, const std::string& plan_path);
// The content of run.json, and back. Parsing throws InvalidInput naming `source` and the field.
std::string RunSettingsJson(const RunSettings& settings);
RunSettings ParseRunSettings(std::string_view text, const std::string& source);

// The responses of a run, in memory and, with a folder, on disk. Not for several threads.
class ResponseLog {
 public:
  ResponseLog();  // In memory only.
  // Opens or makes the folder, takes its lock, reads what is there, of all shards. Throws
  // InvalidInput when the folder was made with other settings (names the first that differs, both
  // values) or its files are not a run's; IoError, also when another process writes to it.
  // Unfinished responses are read, too.
  //
  // A whole shard has the folder for itself, and merges parts that it finds. Other shards have it
  // together, but each once; they wait up to 10 s for one that merges.
  ResponseLog(const std::string& folder, const RunSettings& settings, const Shard& shard = {});
  ~ResponseLog();
  ResponseLog(const ResponseLog&) = delete;
  ResponseLog& operator=(const ResponseLog&) = delete;

  bool Has(const std::string& id, int64_t response) const;
  // With the operating system before it returns, so that a killed process loses nothing; flushed
  // to the disk by the destructor. The pair must be new (check). Throws IoError (disk full names
  // the file); nothing of the line is then left.
  void Append(const Response& response);
  const std::vector<Response>& responses() const;  // In the order in which they finished.
  UnfinishedResponses& unfinished();

  // Ends the work of this process: gives the lock back. Then has the responses that other shards
  // finished meanwhile. Returns true when this was the last shard in the folder: parts are merged.
  // Afterwards nothing may be appended. Throws as the constructor. Does nothing in memory or for a
  // whole shard, and returns true.
  bool Close();
  // Responses that other processes made and whose files this one does not see. After Close; into
  // responses.jsonl, behind its lines. Those that are there are left out. Throws as Append.
  void AppendOfOthers(const std::vector<Response>& responses);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Responses 0 to num_responses - 1 of `problems` that the log has, by problem, then index.
std::vector<Response> ResponsesTo(const ResponseLog& log, const std::vector<ProblemRow>& problems,
                                  int64_t num_responses);

// How many responses Evaluate will make.
int64_t NumPending(const Tokenizer& tokenizer, const std::vector<ProblemRow>& problems,
                   const EvaluationOptions& options, const ResponseLog& log);

struct ResponseSummary {
  JudgeSummary judged;  // pass@1, vote, shares cut.
  int64_t num_correct = 0;
  int64_t num_cut_by_length = 0;
  int64_t num_cut_by_budget = 0;
  // Of these two, prompts that left no room for a token (max_len, the KV budget).
  int64_t num_prompts_too_long = 0;
  int64_t output_tokens = 0;
  int64_t peak_bytes = 0;       // Largest of any sequence.
  double kept_share = 1;        // Mean over responses.
  int64_t budget_bytes = 0;     // Of one sequence.
  PagesPerWidth final_pages{};  // Summed over the ends of all sequences.
  double longest_pause_us = 0;
};
ResponseSummary SummarizeResponses(const std::vector<Response>& responses);

// Throws Unsupported where this machine cannot grade such responses: code needs an interpreter and
// a sandbox (research/sandbox/code_sandbox.h). To be called before anything is generated.
void CheckCanGrade(Grading grading);

// Called after each response is in the log.
using ResponseCallback = std::function<void(const Response&)>;

// Generates and grades what `log` lacks of `problems` x num_responses, as far as it is
// options.shard's; code is tested while other responses are generated (research/eval/grader.h). A
// prompt longer than max_len ("length") or than the KV budget holds ("kv_budget") is an unsolved
// response without output. Stops early with `cancel`; what has been begun is then in
// log.unfinished(), with which the next call goes on. `observer` (may be null) sees tokens as they
// are drawn; it and `on_response` are called from several threads, but one at a time. Returns the
// wall time in seconds. Throws what Engine and ResponseLog throw, and CheckCanGrade before the
// first response is made; a prompt that is refused is named by its problem.
double Evaluate(const std::shared_ptr<const Model>& model,
                const std::shared_ptr<const Tokenizer>& tokenizer, Grading grading,
                const std::vector<ProblemRow>& problems, const EvaluationOptions& options,
                ResponseLog& log, EngineObserver* observer, const ResponseCallback& on_response,
                const CancelFlag* cancel);

}  // namespace pmkvq
