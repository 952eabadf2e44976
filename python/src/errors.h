// The library's errors as Python exceptions.
#pragma once

namespace pmkvq::python {

// From now on each class of base/error.h leaves the extension as the class of pmkvq/_errors.py that
// has its name, with the same text.
void RegisterErrors();

}  // namespace pmkvq::python
