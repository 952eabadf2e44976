// Bounds on the work and memory of a chat template. Templates and messages are foreign input.
#pragma once

#include <cstdint>

namespace pmkvq::jinja {

// The published templates and prompts of 1 MB stay below a tenth of each bound. What exceeds one is
// an error that names the bound and the line.
struct Limits {
  // Bytes of the template.
  int64_t max_source_bytes = int64_t{1} << 20;
  // Statements and expressions that are evaluated, and one per 64 bytes or 8 items that are copied
  // or searched: about half a second.
  int64_t max_steps = 10'000'000;
  // Bytes of the prompt.
  int64_t max_output_bytes = int64_t{8} << 20;
  // Bytes of all values that exist at a time, without the variables that the caller gave.
  int64_t max_memory_bytes = int64_t{64} << 20;
  // Statements and expressions inside of each other: in the text, ...
  int max_nesting = 200;
  // ... and at run time, where macros call macros. Each takes about 1 KiB of the stack.
  int max_depth = 1000;
  // Lists inside of lists.
  int max_value_depth = 200;
  // Numbers of one range(); Jinja's sandbox has the same.
  int64_t max_range = 100'000;
};

}  // namespace pmkvq::jinja
