#include "pmkvq/io/gguf/gguf_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <optional>
#include <span>
#include <utility>

#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"
#include "pmkvq/io/file.h"
#include "pmkvq/io/limits.h"

namespace pmkvq {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kExtension = ".gguf";

struct OneFile {
  std::string path;
  std::optional<MappedFile> mapped;  // Nothing: `owned` are the bytes.
  std::vector<std::byte> owned;
  GgufHeader header;

  std::span<const std::byte> bytes() const {
    return mapped.has_value() ? std::span(mapped->data(), mapped->size()) : std::span(owned);
  }
};

std::unique_ptr<OneFile> OpenOne(const std::string& path) {
  auto file = std::make_unique<OneFile>();
  file->path = path;
  file->mapped = MappedFile::Open(path);
  file->header = ParseGgufHeader(file->path, file->bytes());
  return file;
}

GgufValue FindIn(const OneFile& file, std::string_view key) {
  const std::vector<GgufPair>& pairs = file.header.pairs;
  const auto found =
      std::lower_bound(pairs.begin(), pairs.end(), key,
                       [](const GgufPair& pair, std::string_view name) { return pair.key < name; });
  if (found == pairs.end() || found->key != key) return {file.path, std::string(key)};
  return {file.path, std::string(key), found->type, found->element_type, found->size, found->data};
}

// "NAME-00002-of-00003.gguf" in its pieces.
struct PartName {
  std::string prefix;  // "FOLDER/NAME".
  int64_t number = 0;  // From 1.
  int64_t count = 0;

  std::string Path(int64_t part) const {
    return fmt::format("{}-{:05}-of-{:05}{}", prefix, part, count, kExtension);
  }
};

std::optional<PartName> ParsePartName(std::string_view path) {
  constexpr std::string_view kForm = "-00000-of-00000.gguf";
  if (path.size() <= kForm.size()) return std::nullopt;
  const std::string_view end = path.substr(path.size() - kForm.size());
  PartName name;
  name.prefix = path.substr(0, path.size() - kForm.size());
  int64_t* number = &name.number;
  for (size_t i = 0; i < kForm.size(); ++i) {
    const bool is_digit = end[i] >= '0' && end[i] <= '9';
    if (kForm[i] == '0') {
      if (!is_digit) return std::nullopt;
      *number = *number * 10 + (end[i] - '0');
    } else if (end[i] != kForm[i]) {
      return std::nullopt;
    }
    if (kForm.substr(i).starts_with("-of-")) number = &name.count;
  }
  return name;
}

constexpr char kSplitNumber[] = "split.no";
constexpr char kSplitCount[] = "split.count";
constexpr char kSplitTensors[] = "split.tensors.count";
constexpr int64_t kMostTensors = int64_t{1} << 40;

// 1 for a whole file; merging tools leave a count of 0 in it.
int64_t NumParts(const OneFile& first) {
  const GgufValue count = FindIn(first, kSplitCount);
  if (count.IsMissing()) return 1;
  return std::max<int64_t>(1, count.AsInt(0, limits::kShards));
}

// Throws unless `file` is part `part` (from 0) of `count`, as its metadata says.
void CheckPart(const OneFile& file, int64_t part, int64_t count) {
  const GgufValue found_count = FindIn(file, kSplitCount);
  const GgufValue found_part = FindIn(file, kSplitNumber);
  if (found_count.AsInt(0, limits::kShards) != count) {
    found_count.Fail(fmt::format("{}, as in the first part", count));
  }
  if (found_part.AsInt(0, limits::kShards) != part) {
    found_part.Fail(fmt::format("{}, since the file is named so", part));
  }
}

std::vector<std::unique_ptr<OneFile>> OpenParts(std::unique_ptr<OneFile> first) {
  const int64_t count = NumParts(*first);
  std::vector<std::unique_ptr<OneFile>> files;
  files.push_back(std::move(first));
  if (count == 1) return files;
  const GgufValue count_value = FindIn(*files[0], kSplitCount);
  const std::string path = files[0]->path;
  const std::optional<PartName> name = ParsePartName(path);
  if (!name || name->count != count) {
    throw InvalidInput(path, fmt::format("{}: found {}, expected a file named "
                                         "NAME-00001-of-{:05}.gguf",
                                         kSplitCount, count, count));
  }
  const int64_t number = FindIn(*files[0], kSplitNumber).AsInt(0, count - 1);
  if (number != 0 || name->number != 1) {
    throw InvalidInput(path, fmt::format("{}: found {}, a later part of a split file, expected the "
                                         "first: {}",
                                         kSplitNumber, number, name->Path(1)));
  }
  for (int64_t part = 1; part < count; ++part) {
    const std::string next = name->Path(part + 1);
    if (!FileExists(next)) {
      throw InvalidInput(path, fmt::format("{}: found {}, but {} is not there; expected all parts "
                                           "in one folder",
                                           kSplitCount, count, next));
    }
    files.push_back(OpenOne(next));
    CheckPart(*files.back(), part, count);
  }
  int64_t num_tensors = 0;
  for (const auto& file : files) num_tensors += std::ssize(file->header.tensors);
  for (const auto& file : files) {
    const GgufValue total = FindIn(*file, kSplitTensors);
    if (total.AsInt(0, kMostTensors) != num_tensors) {
      total.Fail(fmt::format("{}, which all parts hold together", num_tensors));
    }
  }
  return files;
}

bool BeginsLikeGguf(const std::string& path) {
  char magic[4] = {};
  std::ifstream file(path, std::ios::binary);
  file.read(magic, sizeof(magic));
  return file.gcount() == sizeof(magic) && std::string_view(magic, sizeof(magic)) == "GGUF";
}

// First parts of split files, and whole files.
std::vector<std::string> FirstFilesOf(const std::string& folder) {
  std::vector<std::string> files;
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, error)) {
    const std::string path = entry.path().string();
    if (!path.ends_with(kExtension) || !entry.is_regular_file(error)) continue;
    // The image part of a model that also takes images.
    if (entry.path().filename().string().starts_with("mmproj")) continue;
    const std::optional<PartName> name = ParsePartName(path);
    if (!name || name->number == 1) files.push_back(path);
  }
  std::sort(files.begin(), files.end());
  return files;
}

}  // namespace

struct GgufSet::Impl {
  std::vector<std::unique_ptr<OneFile>> files;
  std::vector<GgufTensor> tensors;
};

GgufSet::GgufSet(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
GgufSet::GgufSet(GgufSet&&) noexcept = default;
GgufSet& GgufSet::operator=(GgufSet&&) noexcept = default;
GgufSet::~GgufSet() = default;

GgufSet GgufSet::Open(const std::string& path) {
  if (path.find(".gguf-split-") != std::string::npos) {
    throw Unsupported(path,
                      "found a piece of a file that was cut by bytes, expected a whole file: join "
                      "the pieces with cat");
  }
  auto impl = std::make_unique<Impl>();
  impl->files = OpenParts(OpenOne(path));
  std::vector<GgufTensor>& tensors = impl->tensors;
  for (const auto& file : impl->files) {
    tensors.insert(tensors.end(), file->header.tensors.begin(), file->header.tensors.end());
  }
  std::sort(tensors.begin(), tensors.end(),
            [](const GgufTensor& a, const GgufTensor& b) { return a.name < b.name; });
  GgufSet set(std::move(impl));
  for (size_t i = 1; i < tensors.size(); ++i) {
    if (tensors[i].name != tensors[i - 1].name) continue;
    throw InvalidInput(set.FileOf(tensors[i]),
                       fmt::format("tensor '{}': found here and in {}, expected it once",
                                   tensors[i].name, set.FileOf(tensors[i - 1])));
  }
  return set;
}

GgufSet GgufSet::FromMemory(const std::string& name, std::vector<std::byte> bytes) {
  auto file = std::make_unique<OneFile>();
  file->path = name;
  file->owned = std::move(bytes);
  file->header = ParseGgufHeader(file->path, file->bytes());
  auto impl = std::make_unique<Impl>();
  impl->tensors = file->header.tensors;
  impl->files.push_back(std::move(file));
  return GgufSet(std::move(impl));
}

const std::string& GgufSet::path() const { return impl_->files.front()->path; }
int64_t GgufSet::num_files() const { return std::ssize(impl_->files); }

GgufValue GgufSet::Find(std::string_view key) const { return FindIn(*impl_->files.front(), key); }

const std::vector<GgufTensor>& GgufSet::tensors() const { return impl_->tensors; }

const GgufTensor* GgufSet::FindTensor(std::string_view name) const {
  const auto found = std::lower_bound(
      impl_->tensors.begin(), impl_->tensors.end(), name,
      [](const GgufTensor& tensor, std::string_view text) { return tensor.name < text; });
  return found == impl_->tensors.end() || found->name != name ? nullptr : &*found;
}

const std::string& GgufSet::FileOf(const GgufTensor& tensor) const {
  const auto holds = [&](const std::unique_ptr<OneFile>& file) {
    const std::span<const std::byte> bytes = file->bytes();
    return tensor.data >= bytes.data() && tensor.data < bytes.data() + bytes.size();
  };
  const auto found = std::find_if(impl_->files.begin(), impl_->files.end(), holds);
  PMKVQ_CHECK_MSG(found != impl_->files.end(), "a tensor of another set");
  return (*found)->path;
}

void GgufSet::DropPages(const std::byte* data, size_t num_bytes) const {
  for (const auto& file : impl_->files) {
    if (!file->mapped.has_value()) continue;
    file->mapped->DropPages(data, num_bytes);
  }
}

std::string FindGgufFile(const std::string& path) {
  std::error_code error;
  if (fs::is_regular_file(path, error)) {
    return path.ends_with(kExtension) || BeginsLikeGguf(path) ? path : "";
  }
  if (!fs::is_directory(path, error)) return "";
  for (const char* name : {"model.safetensors", "model.safetensors.index.json"}) {
    if (FileExists(JoinPath(path, name))) return "";
  }
  const std::vector<std::string> files = FirstFilesOf(path);
  if (files.empty()) return "";
  if (files.size() == 1) return files[0];
  std::string names;
  constexpr size_t kMostNames = 8;
  for (size_t i = 0; i < std::min(files.size(), kMostNames); ++i) {
    names += (i == 0 ? "" : ", ") + fs::path(files[i]).filename().string();
  }
  if (files.size() > kMostNames) names += ", ...";
  throw InvalidInput(path, fmt::format("found {} GGUF models ({}), expected one: name the file",
                                       files.size(), names));
}

}  // namespace pmkvq
