// Finding the Python interpreter that runs sandboxed programs.
#pragma once

#include <string>
#include <vector>

namespace pmkvq {

struct PythonInterpreter {
  std::string program;                // Absolute path.
  std::vector<std::string> readable;  // Files and folders that it needs; some may not be there.
};

// The python3 on PATH; a shim there leads to the interpreter behind it. Throws Unsupported when
// there is none, or one before 3.8.
PythonInterpreter FindPython();

}  // namespace pmkvq
