// Benchmarks and grades.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <tuple>
#include <utility>

#include "bindings.h"
#include "interruptible.h"
#include "pmkvq/base/threads.h"
#include "pmkvq/research/eval/evaluation.h"
#include "pmkvq/research/judge/judged_text.h"

namespace nb = nanobind;

namespace pmkvq::python {
namespace {

// Responses, and seconds of computing what was missing.
std::tuple<std::vector<Response>, double> EvaluateModel(
    const LoadedModel& model, const TextCodec& codec, const std::string& benchmark_name,
    const std::string& data, const std::string& kv, const PlanFile* plan, int64_t kv_budget,
    const std::string& kv_dtype, int64_t batch, int64_t max_len, int64_t chunk, int threads,
    std::optional<double> temperature, std::optional<double> top_p, uint64_t seed,
    std::optional<int64_t> n_responses, std::optional<int64_t> max_tokens, int64_t start,
    int64_t end, int64_t per_cell, int64_t min_level, int64_t max_level,
    const std::optional<std::string>& out, const nb::object& on_response) {
  std::vector<Response> responses;
  double seconds = 0;
  RunInterruptibly("evaluate", [&](const CancelFlag* cancel) {
    const BenchmarkInfo protocol = FindBenchmark(benchmark_name);
    const Benchmark benchmark = LoadBenchmark(benchmark_name, data);
    const std::vector<ProblemRow> problems =
        SelectProblems(benchmark.problems, {start, end, per_cell, min_level, max_level});
    EvaluationOptions options;
    options.engine.kv.spec = kv;
    options.engine.kv.budget_bytes = kv_budget;
    options.engine.kv.kv_dtype = ParseKvDtype(kv_dtype);
    SetPlan(plan, options.engine.kv);
    options.engine.max_sequences = batch;
    options.engine.max_len = max_len;
    options.engine.chunk = chunk;
    options.engine.num_threads = threads > 0 ? threads : DefaultThreads();
    CheckKvOptions(*model.model, options.engine);  // Before the folder is made.
    options.chat_template = codec.chat_template;
    options.sampling.temperature = temperature.value_or(protocol.temperature);
    options.sampling.top_p = top_p.value_or(protocol.top_p);
    options.seed = seed;
    options.num_responses = n_responses.value_or(protocol.num_responses);
    options.max_tokens = max_tokens.value_or(protocol.max_tokens);
    std::optional<ResponseLog> log;
    if (out) {
      log.emplace(*out, MakeRunSettings(benchmark, *model.model, options,
                                        plan == nullptr ? std::string() : plan->path));
    } else {
      log.emplace();
    }
    const auto report = [&](const Response& response) {
      const nb::gil_scoped_acquire acquire;
      on_response(nb::cast(response));
    };
    seconds = Evaluate(model.model, codec.tokenizer, benchmark.grading, problems, options, *log,
                       nullptr, on_response.is_none() ? ResponseCallback() : report, cancel);
    ThrowIfCancelled(cancel, "evaluate");
    responses = ResponsesTo(*log, problems, options.num_responses);
  });
  return {std::move(responses), seconds};
}

}  // namespace

void BindEvaluate(nb::module_& module) {
  nb::class_<Response>(module, "Response", "A graded response to a problem.")
      .def_ro("id", &Response::id, "Of the problem.")
      .def_ro("task", &Response::task)
      .def_ro("level", &Response::level)
      .def_ro("response", &Response::response, "Index among those of the problem, from 0.")
      .def_ro("answer", &Response::answer, "The right one.")
      .def_prop_ro(
          "extracted", [](const Response& self) { return TextOf(self.extracted); },
          "The answer that the response gives; \"\": none.")
      .def_ro("correct", &Response::correct)
      .def_ro("finish_reason", &Response::finish_reason)
      .def_prop_ro("error", [](const Response& self) { return TextOf(self.error); })
      .def_ro("prompt_tokens", &Response::prompt_tokens)
      .def_ro("output_tokens", &Response::output_tokens)
      .def_ro("peak_bytes", &Response::peak_bytes)
      .def_ro("budget_bytes", &Response::budget_bytes)
      .def_ro("kept_share", &Response::kept_share,
              "Of the tokens, at the end; 1: none was evicted.")
      .def_prop_ro("text", [](const Response& self) { return TextOf(self.text); });

  nb::class_<ResponseSummary>(module, "Summary", "Of the responses of a run; shares in [0, 1].")
      .def_prop_ro("num_problems",
                   [](const ResponseSummary& self) { return self.judged.num_problems; })
      .def_prop_ro("num_responses",
                   [](const ResponseSummary& self) { return self.judged.num_responses; })
      .def_ro("num_correct", &ResponseSummary::num_correct)
      .def_prop_ro("pass_at_1", [](const ResponseSummary& self) { return self.judged.pass_at_1; })
      .def_prop_ro(
          "interval",
          [](const ResponseSummary& self) {
            return std::pair(self.judged.interval.low, self.judged.interval.high);
          },
          "Of pass_at_1, 95 %: clustered by problem.")
      .def_prop_ro(
          "voting", [](const ResponseSummary& self) { return self.judged.voting; },
          "Problems whose most frequent answer is right.")
      .def_prop_ro("mean_output_tokens",
                   [](const ResponseSummary& self) { return self.judged.mean_output_tokens; })
      .def_ro("num_cut_by_length", &ResponseSummary::num_cut_by_length)
      .def_ro("num_cut_by_budget", &ResponseSummary::num_cut_by_budget)
      .def_ro("output_tokens", &ResponseSummary::output_tokens)
      .def_ro("peak_bytes", &ResponseSummary::peak_bytes, "The largest of any sequence.")
      .def_ro("budget_bytes", &ResponseSummary::budget_bytes, "Of one sequence.")
      .def_ro("kept_share", &ResponseSummary::kept_share, "Mean over responses.");

  module.def("summarize", &SummarizeResponses, nb::arg("responses"));
  module.def("evaluate", &EvaluateModel, nb::arg("model"), nb::arg("tokenizer"), nb::kw_only(),
             nb::arg("benchmark"), nb::arg("data"), nb::arg("kv"), nb::arg("plan").none(),
             nb::arg("kv_budget"), nb::arg("kv_dtype"), nb::arg("batch"), nb::arg("max_len"),
             nb::arg("chunk"), nb::arg("threads"), nb::arg("temperature").none(),
             nb::arg("top_p").none(), nb::arg("seed"), nb::arg("n_responses").none(),
             nb::arg("max_tokens").none(), nb::arg("start"), nb::arg("end"), nb::arg("per_cell"),
             nb::arg("min_level"), nb::arg("max_level"), nb::arg("out").none(),
             nb::arg("on_response").none());

  nb::class_<JudgedText>(module, "Judgement")
      .def_prop_ro(
          "extracted", [](const JudgedText& self) { return TextOf(self.extracted); },
          "The answer that the response gives; \"\": none.")
      .def_ro("correct", &JudgedText::correct);
  module.def(
      "judge",
      [](const std::string& response, const std::string& gold) {
        const nb::gil_scoped_release release;
        return JudgeText(response, gold);
      },
      nb::arg("response"), nb::arg("gold"), "Grades one response by its reference answer.");
}

}  // namespace pmkvq::python
