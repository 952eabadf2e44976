// The extension module: plain data and handles. What users see of it is in pmkvq/*.py.
#include <nanobind/nanobind.h>

#include "bindings.h"
#include "errors.h"

NB_MODULE(_pmkvq, module) {
  // Objects that live when the interpreter ends are usual in scripts.
  nanobind::set_leak_warnings(false);
  module.doc() = "Native part of pmkvq; see the package's functions and classes.";
  module.attr("version") = PMKVQ_VERSION;
  pmkvq::python::RegisterErrors();
  pmkvq::python::BindModel(module);
  pmkvq::python::BindRequests(module);
  pmkvq::python::BindPlan(module);
  pmkvq::python::BindEngine(module);
  pmkvq::python::BindEvaluate(module);
  pmkvq::python::BindCompare(module);
  pmkvq::python::BindOps(module);
  pmkvq::python::BindMethods(module);
  pmkvq::python::BindTensors(module);
  pmkvq::python::BindHf(module);
}
