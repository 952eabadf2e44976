// Ranks that a launcher (mpirun, mpiexec, srun --mpi=...) has started.
//
// MPI is a plugin, libpmkvq_mpi.so, that is loaded only when a launcher's variables are there. So
// the program does not depend on MPI. Without the plugin a launched program fails: copies that
// each do everything are the classic accident.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "pmkvq/comm/communicator.h"

namespace pmkvq {

// What the environment says about how this process was started.
struct Launch {
  bool launched = false;  // By something that starts ranks.
  int size = 0;           // Number of ranks; 0 where the variables do not say.
  std::string variable;   // That gave it away, for messages.
};

// Looks for OMPI_COMM_WORLD_SIZE (Open MPI), PMI_RANK with PMI_SIZE (MPICH, Intel MPI, srun
// --mpi=pmi2), PMIX_RANK (srun --mpi=pmix). `getenv` is a parameter for tests.
// Errors: InvalidInput for a size that is no number.
Launch FindLaunch(const std::function<const char*(const char*)>& getenv);

// The ranks of this process: one when nothing or one rank was launched, else MPI's, by the plugin.
// The plugin is the file $PMKVQ_MPI_PLUGIN, or libpmkvq_mpi.so beside the program, in
// ../lib/pmkvq, ../lib/*/pmkvq or ../lib from there, or where the loader finds it.
//
// Call once, from the thread that will exchange. The destructor disconnects, which all ranks have
// to do; the process may not open ranks again. Errors: Unsupported without a plugin that can be
// loaded, IoError when MPI does not start.
std::unique_ptr<Communicator> OpenCommunicator();

// The host of this rank, and the ranks on it.
struct RankPlace {
  std::string host;
  int local_rank = 0;
  int local_size = 1;
};
// `comm` came from OpenCommunicator, or is a part of it. Collective.
RankPlace PlaceOf(Communicator& comm);

// The line that explains a binding of ranks to processors that leaves most of the host unused, or
// nothing: Open MPI binds each of two ranks to one core, which its threads then share.
//   "rank 0: 1 of 64 processors (mpirun --map-by socket:PE=n, or --bind-to none)"
// `allowed` are the processors of the rank's affinity mask, `online` those of the host.
std::optional<std::string> BindingTrap(int rank, int allowed, int online, int local_size);

}  // namespace pmkvq
