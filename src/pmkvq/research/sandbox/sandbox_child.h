// The child between fork and exec: it gives up its rights, then becomes the sandboxed program.
#pragma once

#include <linux/filter.h>
#include <sys/types.h>

#include "pmkvq/research/sandbox/code_sandbox.h"

namespace pmkvq {

// All of it is made before the fork: between fork and exec of a process with threads, memory must
// not be allocated.
struct SandboxChild {
  const char* program;  // Absolute; the pointer that the filter lets pass.
  char* const* arguments;
  char* const* environment;
  const char* folder;  // Working folder.
  // Descriptors, all at least kFirstOwnDescriptor.
  int streams[4];   // Become 0, 1, 2 and 3.
  int status;       // A pipe: ChildFailure, or closed by exec.
  int landlock;     // Rule set, or -1.
  bool namespaces;  // Enter own name spaces where the system allows.
  sock_fprog filter;
  const SandboxLimits* limits;
  pid_t parent;
};
// So that none is overwritten while 0 to 5 are put in place.
constexpr int kFirstOwnDescriptor = 10;

enum class ChildStep : int { kStreams, kFolder, kLimits, kRights, kLandlock, kFilter, kExec };
// For "cannot ...".
const char* ChildStepName(ChildStep step);

struct ChildFailure {
  ChildStep step;
  int error;  // errno
};

// Called in the child; never returns. Ends in exec, or writes a ChildFailure and exits.
[[noreturn]] void BecomeSandboxed(const SandboxChild& child);

}  // namespace pmkvq
