// Plans, and calibration, which makes them.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <optional>
#include <tuple>

#include "bindings.h"
#include "interruptible.h"
#include "pmkvq/base/byte_size.h"
#include "pmkvq/base/error.h"
#include "pmkvq/base/threads.h"
#include "pmkvq/research/calib/calibrate.h"

namespace nb = nanobind;

namespace pmkvq::python {
namespace {

// Calls progress(task, done, total), from any thread.
class CallbackProgress : public ProgressSink {
 public:
  explicit CallbackProgress(nb::object callback) : callback_(std::move(callback)) {}
  void Begin(const std::string& task, int64_t total, int64_t done) override {
    task_ = task;
    total_ = total;
    done_ = done;
    Report();
  }
  void Advance(int64_t units) override {
    done_ += units;
    Report();
  }
  void End() override {}

 private:
  void Report() {
    const nb::gil_scoped_acquire acquire;
    callback_(task_, done_, total_);
  }

  nb::object callback_;
  std::string task_;
  int64_t total_ = 0;
  int64_t done_ = 0;
};

class WarningList : public LogSink {
 public:
  void Info(const std::string& /*message*/) override {}
  void Warning(const std::string& message) override { warnings.push_back(message); }

  std::vector<std::string> warnings;
};

using Copy = nb::ndarray<nb::numpy, float, nb::ndim<2>>;

// [Hkv, D/2]
Copy CopyOf(const Tensor& tensor) {
  const size_t rows = tensor.shape().empty() ? 0 : static_cast<size_t>(tensor.shape()[0]);
  const size_t cols = tensor.shape().size() < 2 ? 0 : static_cast<size_t>(tensor.shape()[1]);
  float* const values = new float[rows * cols];
  if (rows * cols > 0) std::memcpy(values, tensor.As<float>(), rows * cols * sizeof(float));
  const nb::capsule owner(values, [](void* data) noexcept { delete[] static_cast<float*>(data); });
  return Copy(values, {rows, cols}, owner);
}

std::vector<Copy> KeyScalesOf(const PlanFile& file) {
  std::vector<Copy> scales;
  for (const Tensor& tensor : file.plan->key_scales) scales.push_back(CopyOf(tensor));
  return scales;
}

// The plan, and warnings.
std::tuple<PlanFile, std::vector<std::string>> CalibrateModel(
    const LoadedModel& model, const TextCodec* codec, const std::string& dataset,
    const std::string& pack, int64_t n_samples, int64_t seq_len, int64_t effective_len,
    uint64_t seed, int64_t memory_budget, int64_t max_len, const std::vector<int>& fbit_choices,
    bool separate_kv, bool key_scales, int threads, const std::optional<std::string>& plan_path,
    const nb::object& progress) {
  CallbackProgress sink(progress);
  WarningList log;
  CalibrateOptions options;
  options.samples = {dataset, ParsePacking(pack), n_samples, seq_len, effective_len, seed};
  options.search_key_scales = key_scales;
  options.allocation.memory_budget_bytes = memory_budget;
  options.allocation.max_len = max_len;
  options.allocation.fbit_choices = fbit_choices;
  options.allocation.separate_kv = separate_kv;
  options.num_threads = threads > 0 ? threads : DefaultThreads();
  options.plan_path = plan_path.value_or("");
  options.progress = progress.is_none() ? nullptr : &sink;
  options.log = &log;
  Plan plan;
  RunInterruptibly("calibrate", [&](const CancelFlag* cancel) {
    options.cancel = cancel;
    plan = Calibrate(options, *model.model, codec == nullptr ? nullptr : codec->tokenizer.get());
    if (plan_path) SavePlan(plan, *plan_path);
  });
  return {{std::make_shared<const Plan>(std::move(plan)), plan_path.value_or("")},
          std::move(log.warnings)};
}

}  // namespace

void BindPlan(nb::module_& module) {
  module.def(
      "parse_size",
      [](const std::string& text, const std::string& what) { return ParseByteSize(text, what); },
      nb::arg("text"), nb::arg("what"));
  nb::class_<PlanFile>(module, "PlanFile")
      .def_static(
          "load",
          [](const std::string& path) {
            return PlanFile{std::make_shared<const Plan>(LoadPlan(path)), path};
          },
          nb::arg("path"))
      .def(
          "save",
          [](PlanFile& self, const std::string& path) {
            SavePlan(*self.plan, path);
            self.path = path;
          },
          nb::arg("path"))
      .def_ro("path", &PlanFile::path)
      .def_prop_ro("model_identity", [](const PlanFile& self) { return self.plan->model_identity; })
      .def_prop_ro("max_len", [](const PlanFile& self) { return self.plan->max_len; })
      .def_prop_ro("memory_budget_bytes",
                   [](const PlanFile& self) { return self.plan->memory_budget_bytes; })
      .def_prop_ro("k_bits", [](const PlanFile& self) { return self.plan->k_bits; })
      .def_prop_ro("v_bits", [](const PlanFile& self) { return self.plan->v_bits; })
      .def_prop_ro("budget_bytes", [](const PlanFile& self) { return self.plan->budget_bytes; })
      .def_prop_ro("k_sensitivity", [](const PlanFile& self) { return self.plan->sensitivity.k; })
      .def_prop_ro("v_sensitivity", [](const PlanFile& self) { return self.plan->sensitivity.v; })
      .def_prop_ro("alpha", [](const PlanFile& self) { return self.plan->alpha; })
      .def_prop_ro("key_scales", &KeyScalesOf, nb::rv_policy::move);
  module.def("calibrate", &CalibrateModel, nb::arg("model"), nb::arg("tokenizer").none(),
             nb::arg("dataset"), nb::kw_only(), nb::arg("pack"), nb::arg("n_samples"),
             nb::arg("seq_len"), nb::arg("effective_len"), nb::arg("seed"),
             nb::arg("memory_budget"), nb::arg("max_len"), nb::arg("fbit_choices"),
             nb::arg("separate_kv"), nb::arg("key_scales"), nb::arg("threads"),
             nb::arg("plan_path").none(), nb::arg("progress").none());
}

}  // namespace pmkvq::python
