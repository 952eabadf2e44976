#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <set>

#include "pmkvq/base/byte_size.h"
#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"
#include "pmkvq/io/file.h"
#include "pmkvq/io/json_lines.h"
#include "pmkvq/io/line_file.h"
#include "pmkvq/research/eval/evaluation.h"

namespace pmkvq {
namespace {

void MakeFolder(const std::string& folder) {
  std::error_code error;
  if (std::filesystem::exists(folder, error) && !std::filesystem::is_directory(folder, error)) {
    throw IoError(folder, "is a file, expected a folder, or a new name for one");
  }
  std::filesystem::create_directories(folder, error);
  if (error) throw IoError(folder, "cannot make the folder: " + error.message());
}

// Held until the descriptor is closed, also by a kill.
Descriptor Lock(const std::string& folder) {
  const std::string path = JoinPath(folder, "lock");
  Descriptor lock(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666));
  if (lock.get() < 0) throw SystemError(path, "open");
  if (flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) throw SystemError(path, "lock");
    throw IoError(folder,
                  "another process is writing to this folder; expected one at a time (wait "
                  "for it, or take another --out)");
  }
  return lock;
}

using Options = std::vector<std::pair<std::string, std::string>>;

// All settings as (name, value), in the order in which they are compared.
Options Flatten(const RunSettings& settings) {
  Options all = {{"--benchmark", settings.benchmark},
                 {"--model", settings.model_identity},
                 {"--kv", settings.kv},
                 {"--plan", settings.plan_hash}};
  all.insert(all.end(), settings.options.begin(), settings.options.end());
  return all;
}

const std::string* Find(const Options& options, const std::string& name) {
  const auto found = std::find_if(options.begin(), options.end(),
                                  [&](const auto& option) { return option.first == name; });
  return found == options.end() ? nullptr : &found->second;
}

std::string Quote(const std::string& name, const std::string* value) {
  if (value == nullptr || value->empty()) return "none";
  if (name != "--kv-budget") return "'" + *value + "'";
  return *value == "0" ? "none" : FormatByteSize(std::strtoll(value->c_str(), nullptr, 10));
}

// What --data, --model and --plan stand for in run.json.
std::string KindOf(const std::string& name) {
  if (name == "--data") return " (hash of the problems)";
  if (name == "--model" || name == "--plan") return " (hash of the file)";
  return "";
}

void CheckSame(const std::string& path, const RunSettings& found, const RunSettings& asked) {
  const Options old_options = Flatten(found);
  const Options new_options = Flatten(asked);
  Options names = new_options;
  for (const auto& option : old_options) {
    if (Find(new_options, option.first) == nullptr) names.push_back(option);
  }
  for (const auto& [name, unused] : names) {
    const std::string* before = Find(old_options, name);
    const std::string* now = Find(new_options, name);
    if (before != nullptr && now != nullptr && *before == *now) continue;
    throw InvalidInput(path,
                       fmt::format("{}: found {}{}, this run has {}; expected the settings "
                                   "the folder was made with, or another --out",
                                   name, Quote(name, before), KindOf(name), Quote(name, now)));
  }
}

}  // namespace

struct ResponseLog::Impl {
  void Add(Response response, const std::string& source) {
    if (!keys.insert({response.id, response.response}).second) {
      throw InvalidInput(source, fmt::format("response: found {} of problem '{}' again, expected "
                                             "every response once",
                                             response.response, response.id));
    }
    responses.push_back(std::move(response));
  }

  std::vector<Response> responses;
  std::set<std::pair<std::string, int64_t>> keys;
  Descriptor lock;
  LineFile file;  // responses.jsonl; none without a folder.
  UnfinishedResponses unfinished;
};

ResponseLog::ResponseLog() : impl_(std::make_unique<Impl>()) {}

ResponseLog::ResponseLog(const std::string& folder, const RunSettings& settings)
    : impl_(std::make_unique<Impl>()) {
  MakeFolder(folder);
  impl_->lock = Lock(folder);
  const std::string path = JoinPath(folder, "responses.jsonl");
  const std::string run = JoinPath(folder, "run.json");
  if (FileExists(run)) {
    CheckSame(run, ParseRunSettings(ReadFile(run), run), settings);
  } else if (FileExists(path)) {
    throw InvalidInput(folder,
                       "found responses.jsonl but no run.json with its settings, expected "
                       "a folder that eval made, or a new one");
  } else {
    WriteFileAtomically(run, RunSettingsJson(settings) + "\n");
  }
  impl_->file = LineFile(path);
  ForEachLineOf(impl_->file.Read(), path,
                [&](std::string_view line, const std::string& source, int64_t) {
                  impl_->Add(ParseResponse(line, source), source);
                });
  impl_->unfinished =
      UnfinishedResponses(JoinPath(folder, "unfinished.jsonl"),
                          [&](const auto& key) { return Has(key.first, key.second); });
}

ResponseLog::~ResponseLog() {
  if (impl_->file.is_open()) impl_->file.Flush();
}

bool ResponseLog::Has(const std::string& id, int64_t response) const {
  return impl_->keys.contains({id, response});
}

void ResponseLog::Append(const Response& response) {
  PMKVQ_CHECK(!Has(response.id, response.response));
  if (impl_->file.is_open()) impl_->file.Append(ResponseLine(response) + "\n");
  impl_->Add(response, impl_->file.path());
  impl_->unfinished.Finish({response.id, response.response});
}

const std::vector<Response>& ResponseLog::responses() const { return impl_->responses; }

UnfinishedResponses& ResponseLog::unfinished() { return impl_->unfinished; }

}  // namespace pmkvq
