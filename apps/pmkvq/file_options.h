// Options that name files. All files are checked before the work begins, so that hours of work are
// not lost at the end.
#pragma once

#include <CLI/CLI.hpp>

#include <optional>
#include <string>

namespace pmkvq::cli {

enum class FileKind : uint8_t {
  kInput,           // A file to read.
  kInputOrStdin,    // The same, or "-".
  kInputs,          // A file or a folder to read.
  kModel,           // A model: a folder, or a GGUF file.
  kOutput,          // A file to write; it may be there. A device or pipe is written in place.
  kOutputOrStdout,  // The same, or "-".
  kOutputFolder,    // A folder, made where it is not there.
};

// Declares the kind of file that `option` names; --help shows it, CheckFiles checks it. Returns
// `option`.
CLI::Option* NamesFile(CLI::Option* option, FileKind kind);

// The kind that NamesFile declared; nothing for other options. Does not change `option`.
std::optional<FileKind> FindFileKind(const CLI::Option& option);

// Looks at every file that the given options of `command` name, without changing any. Throws
// CLI::ValidationError (wrong usage) for "-" where a name is needed; IoError naming the path where
// an input is missing or of the wrong kind, or an output cannot be written.
void CheckFiles(const CLI::App& command);

// --json FILE of a result, "-" for stdout: declares the option.
CLI::Option* AddJson(CLI::App& command, std::string& path, const std::string& text);

// Throws IoError when `path` cannot become a file. Creates and removes its temporary file.
void CheckWritable(const std::string& path);

}  // namespace pmkvq::cli
