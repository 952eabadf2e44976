#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <set>

#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"
#include "pmkvq/eval/evaluation.h"
#include "pmkvq/io/file.h"
#include "pmkvq/io/json_lines.h"

namespace pmkvq {
namespace {

IoError SystemError(const std::string& path, const char* action) {
  return IoError(path, fmt::format("cannot {}: {}", action, std::strerror(errno)));
}

// A descriptor that closes itself; -1: none.
class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int value) : value_(value) {}
  Descriptor(Descriptor&& other) noexcept : value_(std::exchange(other.value_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(value_, other.value_);
    return *this;
  }
  ~Descriptor() {
    if (value_ >= 0) close(value_);
  }
  int get() const { return value_; }

 private:
  int value_ = -1;
};

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

std::string Quote(const std::string* value) {
  return value == nullptr || value->empty() ? "none" : "'" + *value + "'";
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
    throw InvalidInput(path, fmt::format("{}: found {}{}, this run has {}; expected the settings "
                                         "the folder was made with, or another --out",
                                         name, Quote(before), KindOf(name), Quote(now)));
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

  void WriteLine(const std::string& line) {
    // As a rule one call writes it all, so that other readers see whole lines.
    for (size_t done = 0; done < line.size();) {
      const ssize_t written = write(file.get(), line.data() + done, line.size() - done);
      if (written >= 0) {
        done += static_cast<size_t>(written);
      } else if (errno != EINTR) {
        const IoError error = SystemError(path, "write");
        // Where even this fails, the part of a line is dropped when the folder is opened again.
        [[maybe_unused]] const int ignored = ftruncate(file.get(), size);
        throw error;
      }
    }
    size += static_cast<off_t>(line.size());
  }

  // Reads responses.jsonl and drops a last line without its end.
  void Read() {
    const std::string content = ReadFile(path);
    const size_t whole = content.rfind('\n') + 1;  // 0 for none.
    if (whole < content.size() && ftruncate(file.get(), static_cast<off_t>(whole)) != 0) {
      throw SystemError(path, "shorten");
    }
    size = static_cast<off_t>(whole);
    ForEachLineOf(std::string_view(content).substr(0, whole), path,
                  [&](std::string_view line, const std::string& source, int64_t) {
                    Add(ParseResponse(line, source), source);
                  });
  }

  std::vector<Response> responses;
  std::set<std::pair<std::string, int64_t>> keys;
  std::string path;  // Of responses.jsonl, "" without a folder.
  Descriptor lock;
  Descriptor file;
  off_t size = 0;
};

ResponseLog::ResponseLog() : impl_(std::make_unique<Impl>()) {}

ResponseLog::ResponseLog(const std::string& folder, const RunSettings& settings)
    : impl_(std::make_unique<Impl>()) {
  MakeFolder(folder);
  impl_->lock = Lock(folder);
  impl_->path = JoinPath(folder, "responses.jsonl");
  const std::string run = JoinPath(folder, "run.json");
  if (FileExists(run)) {
    CheckSame(run, ParseRunSettings(ReadFile(run), run), settings);
  } else if (FileExists(impl_->path)) {
    throw InvalidInput(folder,
                       "found responses.jsonl but no run.json with its settings, expected "
                       "a folder that eval made, or a new one");
  } else {
    WriteFileAtomically(run, RunSettingsJson(settings) + "\n");
  }
  impl_->file =
      Descriptor(open(impl_->path.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0666));
  if (impl_->file.get() < 0) throw SystemError(impl_->path, "open");
  impl_->Read();
}

ResponseLog::~ResponseLog() {
  if (impl_->file.get() >= 0) fsync(impl_->file.get());
}

bool ResponseLog::Has(const std::string& id, int64_t response) const {
  return impl_->keys.contains({id, response});
}

void ResponseLog::Append(const Response& response) {
  PMKVQ_CHECK(!Has(response.id, response.response));
  if (!impl_->path.empty()) impl_->WriteLine(ResponseLine(response) + "\n");
  impl_->Add(response, impl_->path);
}

const std::vector<Response>& ResponseLog::responses() const { return impl_->responses; }

}  // namespace pmkvq
