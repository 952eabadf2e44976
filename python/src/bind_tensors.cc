// Weights without copies, and logits.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings.h"
#include "interruptible.h"
#include "pmkvq/base/error.h"
#include "pmkvq/research/methods/prompt_logits.h"

namespace nb = nanobind;

namespace pmkvq::python {
namespace {

// Canonical name, type as the file spells it, shape.
using WeightRow = std::tuple<std::string, std::string, std::vector<int64_t>>;

std::vector<WeightRow> WeightsOf(const LoadedModel& model) {
  std::vector<WeightRow> rows;
  for (const StoredWeight& weight : model.model->checkpoint().weights().tensors()) {
    if (!weight.name.empty()) rows.emplace_back(weight.name, weight.type, weight.shape);
  }
  return rows;
}

using View = nb::ndarray<nb::array_api, nb::ro, nb::device::cpu>;

// The stored bytes: a float type as it is; another format as uint8 [rows, bytes of a row].
View WeightView(const LoadedModel& loaded, const std::string& name, bool as_bits) {
  const StoredWeight* const weight = loaded.model->checkpoint().weights().Find(name);
  if (weight == nullptr || weight->data == nullptr) {
    throw InvalidInput(loaded.path,
                       "has no weight '" + name + "'; expected one of model.weight_names");
  }
  std::vector<size_t> shape(weight->shape.begin(), weight->shape.end());
  nb::dlpack::dtype type = nb::dtype<uint8_t>();
  const bool is_plain = weight->fp8 == nullptr;
  if (is_plain && weight->format == WeightFormat::kF32) {
    type = nb::dtype<float>();
  } else if (is_plain && weight->format == WeightFormat::kF16) {
    type = {static_cast<uint8_t>(nb::dlpack::dtype_code::Float), 16, 1};
  } else if (is_plain && weight->format == WeightFormat::kBF16) {
    type = as_bits ? nb::dtype<uint16_t>()
                   : nb::dlpack::dtype{static_cast<uint8_t>(nb::dlpack::dtype_code::Bfloat), 16, 1};
  } else {
    const size_t rows = shape.size() > 1 ? shape.front() : 1;
    shape = {rows, static_cast<size_t>(weight->num_bytes) / std::max<size_t>(rows, 1)};
  }
  // The mapping lives as long as the view.
  auto* const kept = new std::shared_ptr<const Model>(loaded.model);
  const nb::capsule owner(
      kept, [](void* data) noexcept { delete static_cast<std::shared_ptr<const Model>*>(data); });
  return View(weight->data, shape.size(), shape.data(), owner, nullptr, type);
}

// [T, V], memory of the array.
nb::ndarray<nb::numpy, float, nb::ndim<2>> LogitsOf(const LoadedModel& model,
                                                    const std::vector<int32_t>& ids,
                                                    const std::string& kv, const PlanFile* plan,
                                                    int64_t kv_budget, int64_t max_len,
                                                    int64_t chunk, int threads,
                                                    const std::string& kv_dtype) {
  Tensor logits;
  RunInterruptibly("logits", [&](const CancelFlag* cancel) {
    SpecEngineOptions options;
    options.kv.spec = kv;
    options.kv.budget_bytes = kv_budget;
    options.kv.kv_dtype = ParseKvDtype(kv_dtype);
    SetPlan(plan, options.kv);
    options.max_len = max_len;
    options.chunk = chunk;
    options.num_threads = threads;
    logits = PromptLogits(*model.model, ids, options, cancel);
  });
  auto* const kept = new Tensor(std::move(logits));
  const nb::capsule owner(kept, [](void* data) noexcept { delete static_cast<Tensor*>(data); });
  return {kept->As<float>(),
          {static_cast<size_t>(kept->shape()[0]), static_cast<size_t>(kept->shape()[1])},
          owner};
}

}  // namespace

void BindTensors(nb::module_& module) {
  module.def("weights_of", &WeightsOf, nb::arg("model"));
  module.def("weight_view", &WeightView, nb::arg("model"), nb::arg("name"), nb::arg("as_bits"));
  module.def("prompt_logits", &LogitsOf, nb::arg("model"), nb::arg("ids"), nb::kw_only(),
             nb::arg("kv"), nb::arg("plan").none(), nb::arg("kv_budget"), nb::arg("max_len"),
             nb::arg("chunk"), nb::arg("threads"), nb::arg("kv_dtype"));
}

}  // namespace pmkvq::python
