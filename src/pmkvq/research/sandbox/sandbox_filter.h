// The system calls that a sandboxed program may make: a seccomp filter.
//
// The list names refused calls, since the calls that Python and the C library need differ between
// versions.
// Refused with EPERM: sockets of every kind, new processes (threads are allowed), signals to
// anybody, another execve than the one named, tracing and memory of other processes, limits and
// priorities of others, mounts, namespaces, kernel administration, IPC objects that outlive the
// process, changes of modes, owners, times and attributes of files, asynchronous I/O rings, and
// all ioctls but those of plain streams. Calls newer than this list get ENOSYS, so that programs
// fall back to older ones. A call made by another architecture's convention ends the process.
#pragma once

#include <linux/filter.h>

#include <vector>

namespace pmkvq {

// What the program may do with files; the filter sees flags of open(), but not paths.
enum class FilterWrites : bool {
  kNone,         // No file may be opened for writing, made, renamed or removed.
  kByOtherMeans  // Landlock checks paths; the filter refuses the calls that Landlock does not
                 // cover.
};

// `program` is the only path for which execve passes: that very pointer, which the next program
// does not know. Throws Unsupported on a processor that the filter was not written for.
std::vector<sock_filter> MakeSandboxFilter(const char* program, FilterWrites writes);

}  // namespace pmkvq
