#include "fan_out_options.h"

#include <fmt/format.h>

#include "leaders.h"
#include "pmkvq/base/error.h"
#include "pmkvq/research/calib/shared_samples.h"
#include "terminal.h"

namespace pmkvq::cli {
namespace {

// Hands the text on; its part is parsed where the option is set.
CLI::Validator ShardText() {
  return {[](std::string& text) {
            try {
              ParseShard(text, "");
              return std::string();
            } catch (const InvalidInput& error) {
              constexpr std::string_view kPlace = "[] ";
              return std::string(error.what()).substr(kPlace.size());
            }
          },
          ""};
}

}  // namespace

void FanOutCommandOptions::Register(CLI::App& command, const std::string& units,
                                    const std::string& files_option) {
  files_option_ = files_option;
  command
      .add_option_function<std::string>(
          "--shard", [this](const std::string& text) { shard = ParseShard(text, "--shard"); },
          fmt::format(
              "do the I-th of N parts of the {} only, as one task of a job array; all parts "
              "have the same {} (docs/distributed.md)",
              units, files_option))
      ->type_name("I/N")
      ->transform(ShardText());
}

Communicator* FanOutCommandOptions::Open(bool has_files) const {
  if (is_part() && !has_files) {
    throw CLI::ValidationError(
        "--shard", fmt::format("found part {} without {}, expected it, the same for all parts: "
                               "they meet there",
                               TextOf(shard), files_option_));
  }
  Communicator* const ranks = Leaders();
  if (is_part() && ranks != nullptr) {
    throw CLI::ValidationError(
        "--shard", fmt::format("found part {} in a job of {} ranks, which are parts already; "
                               "expected one of both",
                               TextOf(shard), ranks->size()));
  }
  return ranks;
}

void RunAsPart(const std::function<void()>& command) {
  try {
    command();
  } catch (const PartDone& done) {
    PrintError(done.what());
  }
}

}  // namespace pmkvq::cli
