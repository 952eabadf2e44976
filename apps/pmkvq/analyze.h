// What the three analyses share on the command line.
#pragma once

#include <CLI/CLI.hpp>

#include <cstdint>
#include <string>
#include <vector>

#include "chat_template_options.h"
#include "common_options.h"
#include "pmkvq/io/dataset.h"
#include "pmkvq/research/report/html_page.h"
#include "weight_options.h"

namespace pmkvq::cli {

void AddErrorGrowth(CLI::App& analyze, const std::string& command_line);
void AddTransfer(CLI::App& analyze, const std::string& command_line);
void AddInterpolation(CLI::App& analyze, const std::string& command_line);

// --model, --weights, --device, --data, --chat-template, --tokenizer, --quick, --json, --html.
struct AnalysisOptions {
  std::string model;
  WeightCommandOptions weights;
  std::string data;
  ChatTemplateCommandOptions chat_template;
  TokenizerCommandOptions tokenizer;
  std::string json;
  std::string html;
  bool quick = false;
  std::string command_line;  // Shown on the page.

  void Register(CLI::App& command, const std::string& data_text);
  // Refuses outputs that cannot be written, and wrong usage when there is neither.
  void CheckOutputs() const;
  // For the head of the page. `plan`: its file, or "".
  PageOrigin Origin(const std::string& plan) const;
  // Writes JSON and page, prints the name of the page. --quick is said on page and terminal.
  void Write(const std::string& json_text, HtmlPage page) const;
  // `path`, or MODEL/name where that is empty. Throws InvalidInput naming `option` when there is no
  // such file either.
  std::string DataPath(const std::string& path, const char* name, const char* option) const;
};

// Where bits go and how caches with them are measured: --memory-budget and its group, --chunk,
// --threads. What transfer and interpolation share.
struct PlacementOptions {
  AllocationCommandOptions allocation;
  int64_t chunk = 16;
  int threads = 0;

  void Register(CLI::App& command, const std::string& max_len_text);
  // For `model`; --max-len as asked or `default_max_len`, and without --memory-budget
  // ChoosingBudget. Throws InvalidInput.
  AllocationOptions Resolve(const Model& model, int64_t default_max_len) const;
};

// A value that was not given takes the default of a full run, or that of --quick.
template <class T>
T Chosen(const T& given, const T& none, bool quick, const T& full_default, const T& quick_default) {
  if (given != none) return given;
  return quick ? quick_default : full_default;
}

// The ids of a text as calibration takes them: special tokens parsed, prefix in front.
std::vector<int32_t> TextIds(const Tokenizer& tokenizer, const std::string& text);

}  // namespace pmkvq::cli
