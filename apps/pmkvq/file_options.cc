#include "file_options.h"

#include <fmt/format.h>
#include <unistd.h>

#include <filesystem>

#include "pmkvq/base/descriptor.h"
#include "pmkvq/base/error.h"
#include "pmkvq/io/file.h"
#include "pmkvq/io/gguf/gguf_file.h"

namespace pmkvq::cli {
namespace {

namespace fs = std::filesystem;

struct KindText {
  FileKind kind;
  const char* rule;   // Names the validator that marks an option.
  const char* value;  // In --help.
};

constexpr KindText kKinds[] = {
    {FileKind::kInput, "input file", "FILE"},
    {FileKind::kInputOrStdin, "input file or -", "FILE"},
    {FileKind::kInputs, "input file or folder", "PATH"},
    {FileKind::kModel, "model", "PATH"},
    {FileKind::kOutput, "output file", "FILE"},
    {FileKind::kOutputOrStdout, "output file or -", "FILE"},
    {FileKind::kOutputFolder, "output folder", "DIR"},
};

// A name that the options of llama.cpp take, and those of the Hugging Face hub.
std::string MissingModelText(const std::string& path) {
  const bool is_hub_name = path.front() != '/' && path.front() != '.' &&
                           path.find('/') != std::string::npos && path.back() != '/';
  return std::string("no such folder or file") +
         (is_hub_name ? "; models are folders and files on this machine, nothing is downloaded"
                      : "");
}

void CheckModel(const std::string& path) {
  std::error_code error;
  if (fs::is_directory(path, error)) {
    if (fs::exists(fs::path(path) / "config.json", error) || !FindGgufFile(path).empty()) return;
    throw IoError(path,
                  "found no config.json and no .gguf file in this folder, expected a model folder");
  }
  if (!fs::exists(path, error)) throw IoError(path, MissingModelText(path));
  if (FindGgufFile(path).empty()) {
    throw IoError(
        path,
        "is a file of another kind, expected the model folder with config.json, or a GGUF "
        "file");
  }
}

void CheckInput(const std::string& path, bool may_be_folder) {
  std::error_code error;
  if (!fs::exists(path, error)) {
    throw IoError(path, may_be_folder ? "no such file or folder" : "no such file");
  }
  if (!may_be_folder && fs::is_directory(path, error)) {
    throw IoError(path, "is a folder, expected a file");
  }
  if (access(path.c_str(), R_OK) != 0) {
    throw SystemError(path, "read");
  }
}

// The folder itself, or the nearest one above that is there.
void CheckOutputFolder(const std::string& path) {
  std::error_code error;
  fs::path existing = fs::absolute(path, error).lexically_normal();
  while (!fs::exists(existing, error) && existing.has_relative_path()) {
    existing = existing.parent_path();
  }
  if (!fs::is_directory(existing, error)) {
    throw IoError(path,
                  existing == fs::absolute(path, error).lexically_normal()
                      ? "is a file, expected a folder to write to"
                      : fmt::format("cannot make the folder: {} is a file", existing.string()));
  }
  try {
    CheckWritable(existing / "pmkvq-probe");
  } catch (const IoError&) {
    throw IoError(path, fmt::format("cannot write to the folder {}", existing.string()));
  }
}

void CheckFile(const std::string& path, FileKind kind) {
  switch (kind) {
    case FileKind::kInput:
    case FileKind::kInputOrStdin:
      return CheckInput(path, false);
    case FileKind::kInputs:
      return CheckInput(path, true);
    case FileKind::kModel:
      return CheckModel(path);
    case FileKind::kOutput:
    case FileKind::kOutputOrStdout:
      return CheckWritable(path);
    case FileKind::kOutputFolder:
      return CheckOutputFolder(path);
  }
}

bool TakesStream(FileKind kind) {
  return kind == FileKind::kInputOrStdin || kind == FileKind::kOutputOrStdout;
}

const KindText* FindKind(const CLI::Option& given) {
  // Asking for a validator by its name needs an option that may be changed.
  auto& option = const_cast<CLI::Option&>(given);
  for (const KindText& kind : kKinds) {
    try {
      option.get_validator(kind.rule);
      return &kind;
    } catch (const CLI::OptionNotFound&) {
      continue;
    }
  }
  return nullptr;
}

}  // namespace

CLI::Option* NamesFile(CLI::Option* option, FileKind kind) {
  for (const KindText& text : kKinds) {
    if (text.kind != kind) continue;
    option->type_name(text.value);
    option->check(CLI::Validator([](std::string&) { return std::string(); }, "", text.rule));
  }
  return option;
}

std::optional<FileKind> FindFileKind(const CLI::Option& option) {
  const KindText* const kind = FindKind(option);
  if (kind == nullptr) return std::nullopt;
  return kind->kind;
}

void CheckFiles(const CLI::App& command) {
  for (const CLI::Option* given : command.get_options()) {
    if (given->count() == 0) continue;
    const KindText* const kind = FindKind(*given);
    if (kind == nullptr) continue;
    for (const std::string& path : given->results()) {
      if (path.empty()) continue;  // --json of inspect without a name.
      if (path != "-") {
        CheckFile(path, kind->kind);
      } else if (!TakesStream(kind->kind)) {
        throw CLI::ValidationError(
            given->get_name(), fmt::format("found '-', expected the name of a {}",
                                           kind->value == std::string("DIR") ? "folder" : "file"));
      }
    }
  }
}

CLI::Option* AddJson(CLI::App& command, std::string& path, const std::string& text) {
  return NamesFile(command.add_option("--json", path, text + " (- for stdout)"),
                   FileKind::kOutputOrStdout);
}

void CheckWritable(const std::string& path) {
  std::error_code error;
  if (fs::is_directory(path, error)) throw IoError(path, "is a folder, expected a file to write");
  if (fs::exists(path, error) && !fs::is_regular_file(path, error)) {
    // A device or a pipe: opening a pipe would be seen by its reader.
    if (access(path.c_str(), W_OK) == 0) return;
    throw SystemError(path, "write");
  }
  AtomicFileWriter probe(path);  // Never committed: `path` stays as it is.
}

}  // namespace pmkvq::cli
