// Engine, and Run: requests that somebody waits for.
#include <nanobind/nanobind.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <utility>
#include <variant>

#include "bindings.h"
#include "engine_driver.h"
#include "pmkvq/base/random.h"
#include "pmkvq/research/methods/spec_engine.h"

namespace nb = nanobind;

namespace pmkvq::python {
namespace {

// Its requests end with it.
class Run {
 public:
  Run(std::shared_ptr<EngineDriver> driver, std::vector<RequestId> ids)
      : driver_(std::move(driver)), ids_(std::move(ids)) {}
  ~Run() { Forget(); }
  Run(const Run&) = delete;
  Run& operator=(const Run&) = delete;

  // Whether all have finished.
  bool Step() {
    const nb::gil_scoped_release release;
    return driver_->Step(ids_).has_finished;
  }

  // What happened since the last call, with a step where that is nothing; all at once.
  nb::list Events() {
    EngineDriver::StepResult result;
    {
      const nb::gil_scoped_release release;
      result = driver_->Step(ids_);
    }
    nb::list events;
    for (RunEvent& event : result.events) {
      std::visit([&](auto& known) { events.append(nb::cast(std::move(known))); }, event);
    }
    return events;
  }

  void Cancel() {
    const nb::gil_scoped_release release;
    driver_->Cancel(ids_);
  }

  // They end before the next step; waits for none. No other function may follow.
  void Forget() { driver_->Forget(ids_); }

  std::vector<Completion> Completions() {
    const nb::gil_scoped_release release;
    return driver_->CompletionsOf(ids_);
  }

 private:
  const std::shared_ptr<EngineDriver> driver_;
  const std::vector<RequestId> ids_;
};

std::shared_ptr<EngineDriver> Open(const LoadedModel& model, const TextCodec* codec,
                                   const std::string& kv, const PlanFile* plan, int64_t kv_budget,
                                   int64_t max_sequences, int64_t max_len, int64_t chunk,
                                   int threads, const std::string& kv_dtype) {
  const std::shared_ptr<const Tokenizer> tokenizer = codec == nullptr ? nullptr : codec->tokenizer;
  const nb::gil_scoped_release release;
  SpecEngineOptions options;
  options.kv.spec = kv;
  options.kv.budget_bytes = kv_budget;
  options.kv.kv_dtype = ParseKvDtype(kv_dtype);
  SetPlan(plan, options.kv);
  options.max_sequences = max_sequences;
  options.max_len = max_len;
  options.chunk = chunk;
  options.num_threads = threads;
  // A cache may hold Python objects (bind_methods.cc), and its threads may wait for the GIL.
  const auto end = [](EngineDriver* driver) {
    if (PyGILState_Check() == 0) {
      delete driver;
      return;
    }
    const nb::gil_scoped_release unlocked;
    delete driver;
  };
  return {new EngineDriver(OpenEngine(model.model, tokenizer, options)), end};
}

std::vector<Request> CopiesOf(const std::vector<const Request*>& requests) {
  std::vector<Request> copies;
  for (const Request* request : requests) copies.push_back(*request);
  return copies;
}

}  // namespace

void BindEngine(nb::module_& module) {
  nb::class_<Run>(module, "Run")
      .def("step", &Run::Step)
      .def("events", &Run::Events,
           nb::sig("def events(self) -> list[TokenEvent | HalvingEvent | Completion]"))
      .def("cancel", &Run::Cancel)
      .def("forget", &Run::Forget)
      .def("completions", &Run::Completions);

  nb::class_<EngineStats>(module, "EngineStats")
      .def_ro("num_running", &EngineStats::num_running)
      .def_ro("num_waiting", &EngineStats::num_waiting)
      .def_ro("num_steps", &EngineStats::num_steps)
      .def_ro("prompt_tokens", &EngineStats::prompt_tokens)
      .def_ro("decoded_tokens", &EngineStats::decoded_tokens)
      .def_ro("step_seconds", &EngineStats::step_seconds);

  nb::class_<EngineDriver>(module, "Engine")
      .def_static("open", &Open, nb::arg("model"), nb::arg("tokenizer").none(), nb::kw_only(),
                  nb::arg("kv"), nb::arg("plan").none(), nb::arg("kv_budget"),
                  nb::arg("max_sequences"), nb::arg("max_len"), nb::arg("chunk"),
                  nb::arg("threads"), nb::arg("kv_dtype"))
      .def(
          "submit",
          [](const std::shared_ptr<EngineDriver>& self, const std::vector<const Request*>& requests,
             bool keeps_events) {
            std::vector<Request> copies = CopiesOf(requests);
            const nb::gil_scoped_release release;
            return std::make_shared<Run>(self, self->Submit(std::move(copies), keeps_events));
          },
          nb::arg("requests"), nb::arg("keeps_events"))
      .def(
          "submit_samples",
          [](const std::shared_ptr<EngineDriver>& self,
             const std::vector<const Request*>& requests) {
            std::vector<Request> copies = CopiesOf(requests);
            const nb::gil_scoped_release release;
            return std::make_shared<Run>(self, self->SubmitSamples(std::move(copies)));
          },
          nb::arg("requests"))
      .def_prop_ro("budget_bytes", &EngineDriver::budget_bytes)
      .def("holds", &EngineDriver::Holds, nb::arg("num_tokens"))
      .def("stats",
           [](EngineDriver& self) {
             const nb::gil_scoped_release release;
             return self.stats();
           })
      .def("arena_bytes", [](EngineDriver& self) {
        const nb::gil_scoped_release release;
        return self.store_stats().arena_bytes;
      });
}

}  // namespace pmkvq::python
