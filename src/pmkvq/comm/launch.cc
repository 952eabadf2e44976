#include "pmkvq/comm/launch.h"

#include <dlfcn.h>
#include <fmt/format.h>
#include <unistd.h>

#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string_view>

#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"
#include "pmkvq/comm/plugin_abi.h"

namespace pmkvq {
namespace {

std::string HostName() {
  char name[256] = "";
  gethostname(name, sizeof(name) - 1);
  return name;
}

class MpiCommunicator final : public Communicator {
 public:
  // `world`: the communicator of all ranks, whose end is the end of MPI.
  MpiCommunicator(const PmkvqCommPlugin* plugin, void* comm, bool world)
      : Communicator(plugin->rank(comm), plugin->size(comm)),
        plugin_(plugin),
        comm_(comm),
        world_(world) {}
  ~MpiCommunicator() override {
    // Errors of a destructor have nobody to tell: the ranks are done.
    (void)plugin_->release(comm_);
    if (world_) (void)plugin_->stop();
  }

  std::unique_ptr<Communicator> Split(int color, int key) override {
    void* part = nullptr;
    Check(plugin_->split(comm_, color, key, &part));
    return std::make_unique<MpiCommunicator>(plugin_, part, false);
  }
  [[noreturn]] void Abort(const std::string& message) override {
    std::fprintf(stderr, "error: rank %d of %d (%s): %s\n", rank(), size(), HostName().c_str(),
                 message.c_str());
    std::fflush(stderr);
    plugin_->abort(1);
    _exit(1);
  }
  const char* transport() const override { return "mpi"; }

  RankPlace Place() {
    RankPlace place{HostName(), 0, 1};
    Check(plugin_->local_ranks(comm_, &place.local_rank, &place.local_size));
    return place;
  }

 protected:
  void DoAllGather(const void* part, size_t bytes, void* all) override {
    Check(plugin_->all_gather(comm_, part, bytes, all));
  }
  void DoAllToAll(const void* parts, size_t bytes, void* all) override {
    Check(plugin_->all_to_all(comm_, parts, bytes, all));
  }
  void DoGather(const void* part, std::span<const size_t> sizes, void* all, int root) override {
    Check(plugin_->gather(comm_, part, sizes.data(), all, root));
  }
  void DoBroadcast(void* data, size_t bytes, int root, bool patient) override {
    Check(plugin_->broadcast(comm_, data, bytes, root, patient ? 1 : 0));
  }
  void DoBarrier() override { Check(plugin_->barrier(comm_)); }

 private:
  void Check(int result) const {
    if (result != 0) throw IoError("mpi", plugin_->error());
  }

  const PmkvqCommPlugin* plugin_;
  void* comm_;
  bool world_;
};

// Where the plugin may lie, the likeliest first.
std::vector<std::string> PluginPlaces() {
  const char* named = std::getenv("PMKVQ_MPI_PLUGIN");
  if (named != nullptr && *named != '\0') return {named};
  std::vector<std::string> places;
  std::error_code error;
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", error);
  if (!error) {
    const std::filesystem::path folder = program.parent_path();
    const std::filesystem::path lib = folder.parent_path() / "lib";
    places.push_back(folder / PMKVQ_COMM_PLUGIN_FILE);
    places.push_back(lib / "pmkvq" / PMKVQ_COMM_PLUGIN_FILE);
    // Debian's folders by architecture.
    for (const auto& entry : std::filesystem::directory_iterator(lib, error)) {
      places.push_back(entry.path() / "pmkvq" / PMKVQ_COMM_PLUGIN_FILE);
    }
    places.push_back(lib / PMKVQ_COMM_PLUGIN_FILE);
  }
  places.push_back(PMKVQ_COMM_PLUGIN_FILE);
  return places;
}

const PmkvqCommPlugin* LoadPlugin(const Launch& launch) {
  const std::vector<std::string> places = PluginPlaces();
  std::string why;
  for (const std::string& place : places) {
    // The last place is a name that the loader looks for.
    if (&place != &places.back() && !std::filesystem::exists(place)) continue;
    // Never closed: MPI leaves threads and handlers behind. Global: Open MPI's own plugins look for
    // its symbols.
    void* library = dlopen(place.c_str(), RTLD_NOW | RTLD_GLOBAL);
    if (library == nullptr) {
      const char* text = dlerror();
      why = text != nullptr ? text : place;
      continue;
    }
    const auto function =
        reinterpret_cast<PmkvqCommPluginFunction>(dlsym(library, PMKVQ_COMM_PLUGIN_FUNCTION));
    const PmkvqCommPlugin* plugin = function != nullptr ? function() : nullptr;
    if (plugin == nullptr || plugin->version != PMKVQ_COMM_PLUGIN_VERSION) {
      throw Unsupported(
          "mpi", fmt::format("{} is of another version of pmkvq: version {}, expected {}", place,
                             plugin != nullptr ? plugin->version : 0, PMKVQ_COMM_PLUGIN_VERSION));
    }
    return plugin;
  }
  throw Unsupported(
      "mpi",
      fmt::format("{} says that a launcher started this program as one of {} ranks, but its MPI "
                  "plugin cannot be loaded ({}): install pmkvq-mpi, or start without mpirun",
                  launch.variable, launch.size > 0 ? std::to_string(launch.size) : "several", why));
}

int Number(const char* name, const char* text) {
  int value = 0;
  const std::string_view view(text);
  const auto [end, error] = std::from_chars(view.data(), view.data() + view.size(), value);
  if (error != std::errc() || end != view.data() + view.size() || value < 1) {
    throw InvalidInput("mpi",
                       fmt::format("{}: found '{}', expected a number of ranks", name, text));
  }
  return value;
}

}  // namespace

Launch FindLaunch(const std::function<const char*(const char*)>& getenv) {
  const auto is_set = [&](const char* name) {
    const char* value = getenv(name);
    return value != nullptr && *value != '\0';
  };
  Launch launch;
  if (is_set("OMPI_COMM_WORLD_SIZE")) {
    launch = {true, Number("OMPI_COMM_WORLD_SIZE", getenv("OMPI_COMM_WORLD_SIZE")),
              "OMPI_COMM_WORLD_SIZE"};
  } else if (is_set("PMI_RANK") && is_set("PMI_SIZE")) {
    launch = {true, Number("PMI_SIZE", getenv("PMI_SIZE")), "PMI_SIZE"};
  } else if (is_set("PMIX_RANK")) {
    launch = {true, 0, "PMIX_RANK"};
  }
  return launch;
}

std::unique_ptr<Communicator> OpenCommunicator() {
  const Launch launch = FindLaunch([](const char* name) { return std::getenv(name); });
  if (!launch.launched || launch.size == 1) return std::make_unique<SingleCommunicator>();
  const PmkvqCommPlugin* plugin = LoadPlugin(launch);
  void* world = nullptr;
  if (plugin->start(&world) != 0) throw IoError("mpi", plugin->error());
  auto comm = std::make_unique<MpiCommunicator>(plugin, world, true);
  if (launch.size > 0 && comm->size() != launch.size) {
    throw Unsupported(
        "mpi",
        fmt::format("{} is {}, but MPI ({}) connects {} ranks: is the program started by the "
                    "mpirun of another MPI than the plugin's?",
                    launch.variable, launch.size, plugin->library, comm->size()));
  }
  return comm;
}

RankPlace PlaceOf(Communicator& comm) {
  auto* mpi = dynamic_cast<MpiCommunicator*>(&comm);
  return mpi != nullptr ? mpi->Place() : RankPlace{HostName(), comm.rank(), comm.size()};
}

std::optional<std::string> BindingTrap(int rank, int allowed, int online, int local_size) {
  if (local_size < 1 || allowed >= online / local_size) return std::nullopt;
  return fmt::format(
      "rank {}: {} of {} processors (mpirun --map-by socket:PE=n, or --bind-to none)", rank,
      allowed, online);
}

}  // namespace pmkvq
