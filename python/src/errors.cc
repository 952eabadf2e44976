#include "errors.h"

#include <nanobind/nanobind.h>

#include <cstring>
#include <exception>

#include "pmkvq/base/error.h"
#include "pmkvq/kv/kv_failure.h"

namespace nb = nanobind;

namespace pmkvq::python {
namespace {

// A message may quote bytes of a file.
void Raise(const char* name, const char* message) {
  const nb::object text = nb::steal(
      PyUnicode_DecodeUTF8(message, static_cast<Py_ssize_t>(std::strlen(message)), "replace"));
  const nb::object type = nb::module_::import_("pmkvq._errors").attr(name);
  PyErr_SetObject(type.ptr(), text.ptr());
}

void Translate(const std::exception_ptr& error, void* /*payload*/) {
  try {
    std::rethrow_exception(error);
  } catch (const UnfitValues& known) {
    Raise("UnfitValues", known.message().c_str());
  } catch (const InvalidInput& known) {
    Raise("InvalidInput", known.what());
  } catch (const IoError& known) {
    Raise("IoError", known.what());
  } catch (const Unsupported& known) {
    Raise("Unsupported", known.what());
  } catch (const DeviceError& known) {
    Raise("DeviceError", known.what());
  } catch (const Cancelled& known) {
    Raise("Cancelled", known.what());
  }
}

}  // namespace

void RegisterErrors() { nb::register_exception_translator(Translate); }

}  // namespace pmkvq::python
