// pmkvq compare --counts: the figures of counts that were made elsewhere.
#pragma once

#include <CLI/CLI.hpp>

#include <string>

namespace pmkvq::cli {

inline constexpr char kCountsOption[] = "--counts";

// Prints a line of figures for each line of `path` ("-": stdin) at once, so that a script can ask
// one process for all its figures. Throws CLI::ValidationError when `command` has other options,
// IoError, and as FormatFiguresOf.
void CompareCounts(const std::string& path, const CLI::App& command);

}  // namespace pmkvq::cli
