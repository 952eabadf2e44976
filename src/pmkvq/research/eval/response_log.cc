#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <set>
#include <thread>
#include <utility>

#include "pmkvq/base/byte_size.h"
#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"
#include "pmkvq/base/interrupt.h"
#include "pmkvq/io/file.h"
#include "pmkvq/io/file_lock.h"
#include "pmkvq/io/line_file.h"
#include "pmkvq/research/eval/evaluation.h"
#include "pmkvq/research/eval/run_parts.h"

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

IoError InUse(const std::string& folder, const std::string& what) {
  return IoError(folder, what +
                             " is writing to this folder; expected one at a time (wait for it, or "
                             "take another --out)");
}

FileLock LockAlone(const std::string& folder) {
  auto lock = FileLock::Try(JoinPath(folder, "lock"), FileLock::Kind::kExclusive);
  if (!lock) throw InUse(folder, "another process");
  return std::move(*lock);
}

// For a shard: others hold the lock alone for moments, to merge or to write settings.
FileLock WaitForLock(const std::string& folder, FileLock::Kind kind) {
  constexpr std::chrono::seconds kPatience(10);
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  while (true) {
    if (auto lock = FileLock::Try(JoinPath(folder, "lock"), kind)) return std::move(*lock);
    if (std::chrono::steady_clock::now() > deadline) {
      throw InUse(folder, "a process without --shard");
    }
    CancelPoint();
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
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
  void Add(Response response) {
    keys.insert({response.id, response.response});
    responses.push_back(std::move(response));
  }
  void Read() {
    responses.clear();
    keys.clear();
    for (Response& response : ReadResponses(folder)) Add(std::move(response));
  }

  std::string folder;  // "": in memory.
  Shard shard;
  std::vector<Response> responses;
  ResponseKeys keys;
  FileLock lock;
  FileLock part_lock;  // Of a shard.
  LineFile file;       // What is appended to; none without a folder.
  UnfinishedResponses unfinished;
};

ResponseLog::ResponseLog() : impl_(std::make_unique<Impl>()) {}

ResponseLog::ResponseLog(const std::string& folder, const RunSettings& settings, const Shard& shard)
    : impl_(std::make_unique<Impl>()) {
  MakeFolder(folder);
  impl_->folder = folder;
  impl_->shard = shard;
  const std::string path = JoinPath(folder, "responses.jsonl");
  const std::string run = JoinPath(folder, "run.json");
  if (shard.is_whole()) {
    impl_->lock = LockAlone(folder);
  } else if (!FileExists(run)) {
    impl_->lock = WaitForLock(folder, FileLock::Kind::kExclusive);
  }
  if (FileExists(run)) {
    CheckSame(run, ParseRunSettings(ReadFile(run), run), settings);
  } else if (FileExists(path)) {
    throw InvalidInput(folder,
                       "found responses.jsonl but no run.json with its settings, expected "
                       "a folder that eval made, or a new one");
  } else {
    WriteFileAtomically(run, RunSettingsJson(settings) + "\n");
  }
  std::string unfinished = JoinPath(folder, "unfinished.jsonl");
  std::vector<std::string> other_unfinished;
  if (shard.is_whole()) {
    MergeParts(folder);
    impl_->file = LineFile(path);
  } else {
    impl_->lock.Release();
    impl_->lock = WaitForLock(folder, FileLock::Kind::kShared);
    const std::string part = ResponseParts(folder).PathOf(shard);
    MakeFolder(std::filesystem::path(part).parent_path().string());
    auto part_lock = FileLock::Try(part, FileLock::Kind::kExclusive);
    if (!part_lock) throw InUse(folder, "another process with --shard " + TextOf(shard));
    impl_->part_lock = std::move(*part_lock);
    impl_->file = LineFile(part);
    other_unfinished = UnfinishedParts(folder).List();
    other_unfinished.push_back(std::exchange(unfinished, UnfinishedParts(folder).PathOf(shard)));
  }
  impl_->Read();
  impl_->unfinished = UnfinishedResponses(
      unfinished, other_unfinished, [&](const auto& key) { return Has(key.first, key.second); });
}

ResponseLog::~ResponseLog() {
  if (impl_->file.is_open()) impl_->file.Flush();
}

bool ResponseLog::Has(const std::string& id, int64_t response) const {
  return impl_->keys.contains({id, response});
}

void ResponseLog::Append(const Response& response) {
  PMKVQ_CHECK(!Has(response.id, response.response));
  PMKVQ_CHECK(impl_->folder.empty() || impl_->file.is_open());
  if (impl_->file.is_open()) impl_->file.Append(ResponseLine(response) + "\n");
  impl_->Add(response);
  impl_->unfinished.Finish({response.id, response.response});
}

const std::vector<Response>& ResponseLog::responses() const { return impl_->responses; }

UnfinishedResponses& ResponseLog::unfinished() { return impl_->unfinished; }

bool ResponseLog::Close() {
  const std::string& folder = impl_->folder;
  if (folder.empty() || impl_->shard.is_whole()) return true;
  const UncancelledScope whole;  // After Ctrl-C, too.
  impl_->file.Flush();
  impl_->file = LineFile();
  impl_->part_lock.Release();
  // Released first: of shards that end at once, the last one then finds nobody else.
  impl_->lock.Release();
  auto alone = FileLock::Try(JoinPath(folder, "lock"), FileLock::Kind::kExclusive);
  if (alone) MergeParts(folder);
  impl_->Read();
  return alone.has_value();
}

void ResponseLog::AppendOfOthers(const std::vector<Response>& responses) {
  std::vector<const Response*> missing;
  for (const Response& response : responses) {
    if (!Has(response.id, response.response)) missing.push_back(&response);
  }
  if (missing.empty()) return;
  FileLock lock;
  if (!impl_->folder.empty() && !impl_->lock.is_held()) {
    lock = WaitForLock(impl_->folder, FileLock::Kind::kExclusive);
  }
  LineFile file;
  if (!impl_->folder.empty()) file = LineFile(JoinPath(impl_->folder, "responses.jsonl"));
  for (const Response* response : missing) {
    if (file.is_open()) file.Append(ResponseLine(*response) + "\n");
    impl_->Add(*response);
  }
  if (file.is_open()) file.Flush();
}

}  // namespace pmkvq
