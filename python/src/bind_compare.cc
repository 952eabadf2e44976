// Comparisons of cache methods.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <utility>

#include "bindings.h"
#include "interruptible.h"
#include "pmkvq/base/error.h"
#include "pmkvq/base/threads.h"
#include "pmkvq/io/file.h"
#include "pmkvq/research/compare/compare_files.h"
#include "pmkvq/research/compare/compare_report.h"
#include "pmkvq/research/compare/compare_run.h"

namespace nb = nanobind;

namespace pmkvq::python {
namespace {

// Calls begin(spec, budget in bytes, responses that are asked for, that are there) and
// response(spec, budget, Response), both of which may be None.
class CallbackProgress : public CompareProgress {
 public:
  CallbackProgress(nb::object begin, nb::object response)
      : begin_(std::move(begin)), response_(std::move(response)) {}
  void Begin(const CompareJob& job, int64_t total, const std::vector<Response>& present) override {
    job_ = &job;
    const nb::gil_scoped_acquire acquire;
    if (!begin_.is_none()) begin_(job.spec, job.budget_bytes, total, present.size());
  }
  void OnResponse(const Response& response) override {
    const nb::gil_scoped_acquire acquire;
    if (!response_.is_none()) response_(job_->spec, job_->budget_bytes, nb::cast(response));
  }
  void End() override {}

 private:
  nb::object begin_;
  nb::object response_;
  const CompareJob* job_ = nullptr;
};

Comparison Compare(const LoadedModel& model, const TextCodec& codec,
                   const std::string& benchmark_name, const std::string& data,
                   const std::vector<std::string>& kv, const PlanFile* plan,
                   const std::vector<int64_t>& kv_budget, const std::string& against,
                   bool allow_partial, const std::string& kv_dtype, int64_t batch, int64_t max_len,
                   int64_t chunk, int threads, std::optional<double> temperature,
                   std::optional<double> top_p, uint64_t seed, std::optional<int64_t> n_responses,
                   std::optional<int64_t> max_tokens, int64_t start, int64_t end, int64_t per_cell,
                   int64_t min_level, int64_t max_level, const std::string& out,
                   const nb::object& on_begin, const nb::object& on_response) {
  Comparison comparison;
  CallbackProgress progress(on_begin, on_response);
  RunInterruptibly("compare", [&](const CancelFlag* cancel) {
    const BenchmarkInfo protocol = FindBenchmark(benchmark_name);
    const Benchmark benchmark = LoadBenchmark(benchmark_name, data);
    const std::vector<ProblemRow> problems =
        SelectProblems(benchmark.problems, {start, end, per_cell, min_level, max_level});
    CompareOptions options;
    options.specs = kv;
    options.budget_bytes = kv_budget;
    options.against = against;
    options.allow_partial = allow_partial;
    options.out = out;
    options.engine.kv.kv_dtype = ParseKvDtype(kv_dtype);
    SetPlan(plan, options.engine.kv);
    options.engine.max_sequences = batch;
    options.engine.max_len = max_len;
    options.engine.chunk = chunk;
    options.engine.num_threads = threads > 0 ? threads : DefaultThreads();
    const ComparisonRun run(std::move(options), model.model);
    EvaluationOptions evaluation;
    evaluation.chat_template = codec.chat_template;
    evaluation.sampling.temperature = temperature.value_or(protocol.temperature);
    evaluation.sampling.top_p = top_p.value_or(protocol.top_p);
    evaluation.seed = seed;
    evaluation.num_responses = n_responses.value_or(protocol.num_responses);
    evaluation.max_tokens = max_tokens.value_or(protocol.max_tokens);
    comparison = run.Run(benchmark, problems, codec.tokenizer, evaluation, &progress, cancel);
    ThrowIfCancelled(cancel, "compare");
  });
  return comparison;
}

}  // namespace

void BindCompare(nb::module_& module) {
  nb::class_<Comparison>(module, "Comparison")
      .def_static(
          "load",
          [](const std::vector<std::string>& paths, const std::string& against) {
            return CompareSavedRuns(LoadRuns(paths), against);
          },
          nb::arg("paths"), nb::arg("against"))
      .def("json", [](const Comparison& self) { return FormatComparisonJson(self); })
      .def(
          "text",
          [](const Comparison& self, bool by_level) {
            return FormatComparisonText(self, by_level);
          },
          nb::arg("by_level"))
      .def("markdown", [](const Comparison& self) { return FormatComparisonMarkdown(self); })
      .def(
          "save_html",
          [](const Comparison& self, const std::string& path, const std::string& call) {
            PageOrigin origin;
            origin.command = call;
            WriteFileAtomically(path, ComparisonPage(self, origin).Render());
          },
          nb::arg("path"), nb::arg("call"));
  module.def("compare", &Compare, nb::arg("model"), nb::arg("tokenizer"), nb::kw_only(),
             nb::arg("benchmark"), nb::arg("data"), nb::arg("kv"), nb::arg("plan").none(),
             nb::arg("kv_budget"), nb::arg("against"), nb::arg("allow_partial"),
             nb::arg("kv_dtype"), nb::arg("batch"), nb::arg("max_len"), nb::arg("chunk"),
             nb::arg("threads"), nb::arg("temperature").none(), nb::arg("top_p").none(),
             nb::arg("seed"), nb::arg("n_responses").none(), nb::arg("max_tokens").none(),
             nb::arg("start"), nb::arg("end"), nb::arg("per_cell"), nb::arg("min_level"),
             nb::arg("max_level"), nb::arg("out"), nb::arg("on_begin").none(),
             nb::arg("on_response").none());
}

}  // namespace pmkvq::python
