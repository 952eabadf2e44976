// Plans, and calibration, which makes them.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <initializer_list>
#include <optional>
#include <tuple>

#include "bindings.h"
#include "interruptible.h"
#include "pmkvq/base/byte_size.h"
#include "pmkvq/base/error.h"
#include "pmkvq/base/threads.h"
#include "pmkvq/io/file.h"
#include "pmkvq/io/model_config.h"
#include "pmkvq/model/model_size.h"
#include "pmkvq/research/calib/calibrate.h"
#include "pmkvq/research/calib/sensitivity_file.h"

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

using View = nb::ndarray<nb::numpy, const float, nb::ndim<2>>;

// Of each block [Hkv, D/2]: the plan's own memory, which lives as long as a view.
std::vector<View> KeyScalesOf(const PlanFile& file) {
  std::vector<View> scales;
  for (const Tensor& tensor : file.plan->key_scales) {
    const size_t rows = tensor.shape().empty() ? 0 : static_cast<size_t>(tensor.shape()[0]);
    const size_t cols = tensor.shape().size() < 2 ? 0 : static_cast<size_t>(tensor.shape()[1]);
    auto* const kept = new std::shared_ptr<const Plan>(file.plan);
    const nb::capsule owner(
        kept, [](void* data) noexcept { delete static_cast<std::shared_ptr<const Plan>*>(data); });
    scales.emplace_back(rows * cols == 0 ? nullptr : tensor.As<float>(),
                        std::initializer_list<size_t>{rows, cols}, owner);
  }
  return scales;
}

// Data set, packing, samples, tokens of each, effective length, seed, form of the weights.
using Record =
    std::tuple<std::string, std::string, int64_t, int64_t, int64_t, uint64_t, std::string>;

Record RecordTuple(const CalibrationRecord& record) {
  return {record.dataset,       record.pack, record.num_samples, record.seq_len,
          record.effective_len, record.seed, record.weights};
}

using Table = std::vector<std::vector<double>>;  // By width (kWidths), then block.

// Sensitivities of K and of V, the record, warnings.
std::tuple<Table, Table, Record, std::vector<std::string>> MeasureModel(
    const LoadedModel& model, const TextCodec* codec, const std::string& dataset,
    const std::string& pack, int64_t n_samples, int64_t seq_len, int64_t effective_len,
    uint64_t seed, int threads, const std::string& checkpoint, const nb::object& progress) {
  CallbackProgress sink(progress);
  WarningList log;
  const SampleOptions options{dataset, ParsePacking(pack), n_samples, seq_len, effective_len, seed};
  Sensitivity found;
  CalibrationRecord record;
  RunInterruptibly("sensitivity", [&](const CancelFlag* cancel) {
    const Tokenizer* const tokenizer = codec == nullptr ? nullptr : codec->tokenizer.get();
    const Samples samples = DrawSamples(options, model.model->config(), tokenizer, &log);
    CalibrationContext context;
    context.model = model.model.get();
    context.samples = &samples;
    context.effective_len = effective_len;
    context.num_threads = threads > 0 ? threads : DefaultThreads();
    context.progress = progress.is_none() ? nullptr : &sink;
    context.log = &log;
    context.cancel = cancel;
    context.checkpoint_path = checkpoint;
    found = MeasureSensitivity(context);
    record = RecordOf(options, samples, *model.model);
  });
  return {std::move(found.k), std::move(found.v), RecordTuple(record), std::move(log.warnings)};
}

void SaveSensitivity(const std::string& path, const Table& k, const Table& v,
                     const std::string& identity, const Record& record) {
  SensitivityFile file;
  file.sensitivity = {k, v};
  file.num_blocks = k.empty() ? 0 : std::ssize(k.front());
  file.model_identity = identity;
  std::tie(file.record.dataset, file.record.pack, file.record.num_samples, file.record.seq_len,
           file.record.effective_len, file.record.seed, file.record.weights) = record;
  WriteFileAtomically(path, SensitivityJson(file));
}

std::tuple<Table, Table, std::string, Record> ReadSensitivity(const std::string& path) {
  const SensitivityFile file = LoadSensitivity(path);
  return {file.sensitivity.k, file.sensitivity.v, file.model_identity, RecordTuple(file.record)};
}

// Widths of K and V, bytes per block, objective, bytes.
std::tuple<std::vector<int>, std::vector<int>, std::vector<int64_t>, double, int64_t> AllocateBits(
    const LoadedModel* model, const std::string& path, const Table& k, const Table& v,
    int64_t memory_budget, int64_t max_len, const std::vector<int>& fbit_choices, bool separate_kv,
    int64_t sink_tokens, int64_t window_tokens, const std::string& kv_dtype,
    bool reference_accounting) {
  AllocationOptions options;
  options.cache.geometry =
      model != nullptr ? model->model->kv_geometry() : KvGeometryOf(LoadModelConfig(path));
  options.cache.float_type = ParseKvDtype(kv_dtype);
  options.cache.sink_tokens = sink_tokens;
  options.cache.window_tokens = window_tokens;
  options.memory_budget_bytes = memory_budget;
  options.max_len = max_len;
  options.fbit_choices = fbit_choices;
  options.separate_kv = separate_kv;
  options.reference_accounting = reference_accounting;
  Allocation found;
  RunInterruptibly("allocate", [&](const CancelFlag* /*cancel*/) {
    found = Allocate({k, v}, options);
  });
  return {std::move(found.k_bits), std::move(found.v_bits), std::move(found.budget_bytes),
          found.objective, found.total_bytes};
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
      .def_prop_ro("key_scales", &KeyScalesOf, nb::rv_policy::automatic);
  module.def("measure_sensitivity", &MeasureModel, nb::arg("model"), nb::arg("tokenizer").none(),
             nb::arg("dataset"), nb::kw_only(), nb::arg("pack"), nb::arg("n_samples"),
             nb::arg("seq_len"), nb::arg("effective_len"), nb::arg("seed"), nb::arg("threads"),
             nb::arg("checkpoint"), nb::arg("progress").none());
  module.def("save_sensitivity", &SaveSensitivity, nb::arg("path"), nb::arg("k"), nb::arg("v"),
             nb::arg("identity"), nb::arg("record"));
  module.def("load_sensitivity", &ReadSensitivity, nb::arg("path"));
  module.def("allocate", &AllocateBits, nb::arg("model").none(), nb::arg("path"), nb::kw_only(),
             nb::arg("k"), nb::arg("v"), nb::arg("memory_budget"), nb::arg("max_len"),
             nb::arg("fbit_choices"), nb::arg("separate_kv"), nb::arg("sink_tokens"),
             nb::arg("window_tokens"), nb::arg("kv_dtype"), nb::arg("reference_accounting"));
  module.def("calibrate", &CalibrateModel, nb::arg("model"), nb::arg("tokenizer").none(),
             nb::arg("dataset"), nb::kw_only(), nb::arg("pack"), nb::arg("n_samples"),
             nb::arg("seq_len"), nb::arg("effective_len"), nb::arg("seed"),
             nb::arg("memory_budget"), nb::arg("max_len"), nb::arg("fbit_choices"),
             nb::arg("separate_kv"), nb::arg("key_scales"), nb::arg("threads"),
             nb::arg("plan_path").none(), nb::arg("progress").none());
}

}  // namespace pmkvq::python
