// How a command shares its units of work with other processes: --shard I/N.
#pragma once

#include <CLI/CLI.hpp>

#include <functional>
#include <string>

#include "pmkvq/base/shard.h"
#include "pmkvq/comm/communicator.h"

namespace pmkvq::cli {

struct FanOutCommandOptions {
  Shard shard;

  // `units` of the help: "responses", "samples". `files_option` names the files through which the
  // parts meet: "--out".
  void Register(CLI::App& command, const std::string& units, const std::string& files_option);
  // The ranks that share the command's units; null without several. Throws CLI::ValidationError for
  // a part without such files, or beside ranks; and as Leaders. Before anything else is done.
  Communicator* Open(bool has_files) const;

  bool is_part() const { return !shard.is_whole(); }
  // " 2/4" behind titles of a part, else "".
  std::string Suffix() const { return is_part() ? " " + TextOf(shard) : ""; }

 private:
  std::string files_option_;
};

// Runs a command that may end as a part of a job array, before all samples are there: it then says
// so, and has not failed.
void RunAsPart(const std::function<void()>& command);

}  // namespace pmkvq::cli
