// pmkvq devices: the processor and the CUDA devices of this machine, as this build sees them.
#include <fmt/format.h>

#include "commands.h"
#include "common_options.h"
#include "file_options.h"
#include "help_format.h"
#include "pmkvq/base/threads.h"
#include "pmkvq/io/json.h"
#include "pmkvq/kernels/process_target.h"
#include "pmkvq/tensor/device/device_info.h"
#include "terminal.h"

namespace pmkvq::cli {
namespace {

constexpr double kGiB = 1 << 30;
constexpr double kMiB = 1 << 20;

std::string DescribeUse(const DeviceInfo& info) {
  return info.capability_major >= kLeastCapabilityMajor
             ? ""
             : fmt::format(", too old: {}.0 or later is needed", kLeastCapabilityMajor);
}

std::string Describe(const DeviceList& list) {
  std::string text =
      fmt::format("cpu     {} threads, {}\n", DefaultThreads(), ListProcessTargets().chosen);
  for (const DeviceInfo& info : list.devices) {
    text += fmt::format(
        "{:<7} {}, {:.1f} of {:.1f} GiB free, {} multiprocessors, {:.0f} MiB of L2, capability "
        "{}.{}{}\n",
        NameOf(info.id), info.name, static_cast<double>(info.free_bytes) / kGiB,
        static_cast<double>(info.total_bytes) / kGiB, info.num_multiprocessors,
        static_cast<double>(info.l2_bytes) / kMiB, info.capability_major, info.capability_minor,
        DescribeUse(info));
  }
  if (!list.problem.empty()) text += fmt::format("no CUDA device: {}\n", list.problem);
  if (!list.versions.empty()) text += list.versions + "\n";
  return text;
}

std::string ToJson(const DeviceList& list) {
  JsonWriter json;
  json.BeginObject();
  json.Key("problem").String(list.problem);
  json.Key("versions").String(list.versions);
  json.Key("devices").BeginArray();
  for (const DeviceInfo& info : list.devices) {
    json.BeginObject();
    json.Key("device").String(NameOf(info.id));
    json.Key("name").String(info.name);
    json.Key("capability")
        .String(fmt::format("{}.{}", info.capability_major, info.capability_minor));
    json.Key("multiprocessors").Int(info.num_multiprocessors);
    json.Key("l2_bytes").Int(static_cast<int64_t>(info.l2_bytes));
    json.Key("total_bytes").Int(static_cast<int64_t>(info.total_bytes));
    json.Key("free_bytes").Int(static_cast<int64_t>(info.free_bytes));
    json.EndObject();
  }
  json.EndArray();
  json.EndObject();
  return json.text();
}

}  // namespace

void AddDevices(CLI::App& app) {
  CLI::App* command = app.add_subcommand(
      "devices", "the processor and the CUDA devices that this build can use, or why it has none");
  auto json = std::make_shared<std::string>();
  AddJson(*command, *json, "write the CUDA devices as JSON");
  AddExamples(*command, {"pmkvq devices", "pmkvq devices --json -"});
  command->callback([json] {
    const DeviceList list = ListDevices();
    WriteJson(*json, ToJson(list));
    if (*json != "-") Print(Describe(list));
  });
}

}  // namespace pmkvq::cli
