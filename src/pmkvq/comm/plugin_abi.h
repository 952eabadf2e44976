// The contract between the program and libpmkvq_mpi.so: plain C, so that either may be built alone.
//
// The plugin exports one function, pmkvq_comm_plugin, that returns its table. Functions return 0,
// or another value after which `error` gives one line. One thread calls them.
#pragma once

#include <stddef.h>

// Raised with every change of the table. The program refuses a plugin with another number.
#define PMKVQ_COMM_PLUGIN_VERSION 1
#define PMKVQ_COMM_PLUGIN_FILE "libpmkvq_mpi.so"
#define PMKVQ_COMM_PLUGIN_FUNCTION "pmkvq_comm_plugin"

extern "C" {

struct PmkvqCommPlugin {
  int version;          // PMKVQ_COMM_PLUGIN_VERSION.
  const char* library;  // Which MPI, one line.
  const char* (*error)();

  // Connects the ranks that the launcher has started, and gives the communicator of all of them.
  int (*start)(void** world);
  // Disconnects. All ranks call it.
  int (*stop)();
  // Ends the processes of all ranks.
  void (*abort)(int exit_code);

  int (*rank)(void* comm);
  int (*size)(void* comm);
  // The ranks of this host that come before this one, and how many there are on this host.
  int (*local_ranks)(void* comm, int* local_rank, int* local_size);
  int (*split)(void* comm, int color, int key, void** part);
  int (*release)(void* comm);

  int (*all_gather)(void* comm, const void* part, size_t bytes, void* all);
  int (*all_to_all)(void* comm, const void* parts, size_t bytes, void* all);
  // Parts of sizes[r] bytes, behind each other in `all`, on `root`.
  int (*gather)(void* comm, const void* part, const size_t* sizes, void* all, int root);
  // `patient`: sleeps while nothing comes.
  int (*broadcast)(void* comm, void* data, size_t bytes, int root, int patient);
  int (*barrier)(void* comm);
};

// Returns the plugin's table, which lives as long as the library is loaded.
typedef const struct PmkvqCommPlugin* (*PmkvqCommPluginFunction)();

}  // extern "C"
