// The parts of the extension module _pmkvq, and what they share.
#pragma once

#include <nanobind/nanobind.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "pmkvq/kv/plan.h"
#include "pmkvq/kv/spec/kv_options.h"
#include "pmkvq/model/model.h"
#include "pmkvq/text/chat_template.h"
#include "pmkvq/text/tokenizer.h"

namespace pmkvq::python {

// A model that is loaded, and where it is from. Engines share it.
struct LoadedModel {
  std::string path;
  std::shared_ptr<const Model> model;
};

// Turns text into ids and back. `tokenizer` is never null.
struct TextCodec {
  std::shared_ptr<const Tokenizer> tokenizer;
  ChatTemplate chat_template;
  std::optional<int32_t> bos_id;  // As the model's files name them.
  std::optional<int32_t> eos_id;
};

// A plan and the file that holds it; "": none yet.
struct PlanFile {
  std::shared_ptr<const Plan> plan;
  std::string path;
};
// `file` may be null.
inline void SetPlan(const PlanFile* file, KvOptions& kv) {
  if (file == nullptr) return;
  kv.plan = file->plan;
  kv.plan_path = file->path.empty() ? "plan" : file->path;
}

void BindModel(nanobind::module_& module);     // Model, Tokenizer
void BindRequests(nanobind::module_& module);  // Request, Completion, events
void BindEngine(nanobind::module_& module);    // Engine, Run
void BindPlan(nanobind::module_& module);      // Plan, calibrate
void BindEvaluate(nanobind::module_& module);  // evaluate, judge
void BindCompare(nanobind::module_& module);   // compare; after BindEvaluate
void BindOps(nanobind::module_& module);       // The packed format
void BindMethods(nanobind::module_& module);   // Cache methods in Python
void BindTensors(nanobind::module_& module);   // Weights and logits
void BindHf(nanobind::module_& module);        // The cache of pmkvq.hf

// As Python reads bytes that may be no UTF-8: U+FFFD for what is none.
inline nanobind::str TextOf(const std::string& bytes) {
  return nanobind::steal<nanobind::str>(
      PyUnicode_DecodeUTF8(bytes.data(), static_cast<Py_ssize_t>(bytes.size()), "replace"));
}

}  // namespace pmkvq::python
