// libpmkvq_mpi.so: the only file that sees MPI (any MPI 3.1). See comm/plugin_abi.h.
#include <mpi.h>
#include <time.h>

#include <algorithm>
#include <climits>
#include <string>
#include <vector>

#include "pmkvq/comm/plugin_abi.h"

namespace {

std::string last_error;
char library_version[MPI_MAX_LIBRARY_VERSION_STRING];
bool started_here = false;

MPI_Comm Comm(void* comm) { return *static_cast<MPI_Comm*>(comm); }

// 0, or remembers what MPI says.
int Result(int code, const char* what) {
  if (code == MPI_SUCCESS) return 0;
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  MPI_Error_string(code, text, &length);
  last_error = std::string(what) + ": " + std::string(text, static_cast<size_t>(length));
  return 1;
}

int Fail(const char* text) {
  last_error = text;
  return 1;
}

// MPI counts elements with int: longer messages go in words of 1 MiB and a rest.
constexpr size_t kMostBytes = INT_MAX;

int Start(void** world) {
  int initialized = 0;
  MPI_Initialized(&initialized);
  if (initialized == 0) {
    int provided = 0;
    if (Result(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &provided), "MPI_Init") !=
        0) {
      return 1;
    }
    started_here = true;
    if (provided < MPI_THREAD_SERIALIZED) return Fail("MPI_Init: this MPI allows no threads");
  }
  int length = 0;
  MPI_Get_library_version(library_version, &length);
  // One line: the first of the version text, without a comma at its end.
  std::string line(library_version, static_cast<size_t>(length));
  line = line.substr(0, line.find_first_of("\n,"));
  *std::copy(line.begin(), line.end(), library_version) = '\0';
  auto comm = new MPI_Comm(MPI_COMM_NULL);
  if (Result(MPI_Comm_dup(MPI_COMM_WORLD, comm), "MPI_Comm_dup") != 0) return 1;
  MPI_Comm_set_errhandler(*comm, MPI_ERRORS_RETURN);
  *world = comm;
  return 0;
}

int Stop() {
  int finalized = 0;
  MPI_Finalized(&finalized);
  if (finalized != 0 || !started_here) return 0;
  return Result(MPI_Finalize(), "MPI_Finalize");
}

void Abort(int exit_code) { MPI_Abort(MPI_COMM_WORLD, exit_code); }

int Rank(void* comm) {
  int rank = 0;
  MPI_Comm_rank(Comm(comm), &rank);
  return rank;
}

int Size(void* comm) {
  int size = 1;
  MPI_Comm_size(Comm(comm), &size);
  return size;
}

int LocalRanks(void* comm, int* local_rank, int* local_size) {
  MPI_Comm host = MPI_COMM_NULL;
  if (Result(MPI_Comm_split_type(Comm(comm), MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &host),
             "MPI_Comm_split_type") != 0) {
    return 1;
  }
  MPI_Comm_rank(host, local_rank);
  MPI_Comm_size(host, local_size);
  MPI_Comm_free(&host);
  return 0;
}

int Split(void* comm, int color, int key, void** part) {
  auto made = new MPI_Comm(MPI_COMM_NULL);
  if (Result(MPI_Comm_split(Comm(comm), color, key, made), "MPI_Comm_split") != 0) {
    delete made;
    return 1;
  }
  MPI_Comm_set_errhandler(*made, MPI_ERRORS_RETURN);
  *part = made;
  return 0;
}

int Release(void* comm) {
  int finalized = 0;
  MPI_Finalized(&finalized);
  const int code = finalized != 0 ? MPI_SUCCESS : MPI_Comm_free(static_cast<MPI_Comm*>(comm));
  delete static_cast<MPI_Comm*>(comm);
  return Result(code, "MPI_Comm_free");
}

int AllGather(void* comm, const void* part, size_t bytes, void* all) {
  if (bytes > kMostBytes) return Fail("all-gather: a part is larger than 2 GiB");
  const auto rank = static_cast<size_t>(Rank(comm));
  // MPI forbids a sent buffer inside the received one, but has a name for that case.
  const void* sent = static_cast<char*>(all) + rank * bytes == part ? MPI_IN_PLACE : part;
  const int count = static_cast<int>(bytes);
  return Result(MPI_Allgather(sent, count, MPI_BYTE, all, count, MPI_BYTE, Comm(comm)),
                "MPI_Allgather");
}

int AllToAll(void* comm, const void* parts, size_t bytes, void* all) {
  if (bytes > kMostBytes) return Fail("all-to-all: a part is larger than 2 GiB");
  const int count = static_cast<int>(bytes);
  return Result(MPI_Alltoall(parts, count, MPI_BYTE, all, count, MPI_BYTE, Comm(comm)),
                "MPI_Alltoall");
}

int Gather(void* comm, const void* part, const size_t* sizes, void* all, int root) {
  const int rank = Rank(comm);
  const auto ranks = static_cast<size_t>(Size(comm));
  std::vector<int> counts(ranks), begins(ranks);
  size_t begin = 0;
  for (size_t r = 0; r < ranks; ++r) {
    if (begin > kMostBytes || sizes[r] > kMostBytes) return Fail("gather: more than 2 GiB");
    counts[r] = static_cast<int>(sizes[r]);
    begins[r] = static_cast<int>(begin);
    begin += sizes[r];
  }
  const auto mine = static_cast<size_t>(rank);
  const bool in_place = rank == root && static_cast<char*>(all) + begins[mine] == part;
  return Result(MPI_Gatherv(in_place ? MPI_IN_PLACE : part, counts[mine], MPI_BYTE, all,
                            counts.data(), begins.data(), MPI_BYTE, root, Comm(comm)),
                "MPI_Gatherv");
}

int Broadcast(void* comm, void* data, size_t bytes, int root, int patient) {
  for (size_t begin = 0; begin < bytes; begin += kMostBytes) {
    const int count = static_cast<int>(std::min(bytes - begin, kMostBytes));
    char* place = static_cast<char*>(data) + begin;
    // Every rank makes the same call, whether patient or not: a nonblocking broadcast matches no
    // blocking one.
    MPI_Request request = MPI_REQUEST_NULL;
    if (Result(MPI_Ibcast(place, count, MPI_BYTE, root, Comm(comm), &request), "MPI_Ibcast") != 0) {
      return 1;
    }
    if (patient == 0) {
      if (Result(MPI_Wait(&request, MPI_STATUS_IGNORE), "MPI_Wait") != 0) return 1;
      continue;
    }
    // Looks without a pause for some 2 ms, longer than the pause between two steps, then every
    // 200 us: a rank that waits for hours costs no processor.
    int done = 0;
    timespec begun{};
    clock_gettime(CLOCK_MONOTONIC, &begun);
    while (true) {
      if (Result(MPI_Test(&request, &done, MPI_STATUS_IGNORE), "MPI_Test") != 0) return 1;
      if (done != 0) break;
      timespec now{};
      clock_gettime(CLOCK_MONOTONIC, &now);
      const double waited = static_cast<double>(now.tv_sec - begun.tv_sec) +
                            1e-9 * static_cast<double>(now.tv_nsec - begun.tv_nsec);
      if (waited > 2e-3) {
        const timespec pause{0, 200'000};
        nanosleep(&pause, nullptr);
      }
    }
  }
  return 0;
}

int Barrier(void* comm) { return Result(MPI_Barrier(Comm(comm)), "MPI_Barrier"); }

const char* LastError() { return last_error.c_str(); }

const PmkvqCommPlugin plugin = {
    PMKVQ_COMM_PLUGIN_VERSION,
    library_version,
    LastError,
    Start,
    Stop,
    Abort,
    Rank,
    Size,
    LocalRanks,
    Split,
    Release,
    AllGather,
    AllToAll,
    Gather,
    Broadcast,
    Barrier,
};

}  // namespace

extern "C" __attribute__((visibility("default"))) const PmkvqCommPlugin* pmkvq_comm_plugin() {
  return &plugin;
}
