// The options of a cache that all requests share: --kv-mode pool and what belongs to it.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <functional>
#include <string>

#include "pmkvq/research/methods/spec_engine.h"

namespace pmkvq::cli {

class PoolCommandOptions {
 public:
  void Register(CLI::App& command);
  // --kv-mode, or where it is not given: a pool, unless `is_isolated_by_default`.
  bool is_pool(bool is_isolated_by_default) const;
  bool priorities() const { return priorities_; }
  bool allow_replay() const { return allow_replay_; }
  bool prefix_shared() const { return prefix_shared_; }
  // Sets what the options say; the pool takes `default_bytes` where --kv-pool is not given. Throws
  // InvalidInput: options of a pool without one.
  void Apply(bool is_pool, const std::function<int64_t()>& default_bytes,
             SpecEngineOptions& options) const;
  // What is said at the start of an option that has less effect than it seems to. "": nothing.
  std::string Note() const;

 private:
  CLI::App* command_ = nullptr;
  std::string mode_;
  std::string pool_;
  double target_ = 8;
  std::string floor_ = "4";
  std::string admission_ = "expected";
  std::string step_bytes_ = "8MiB";
  std::string read_limit_;
  std::string prefix_cache_ = "on";
  std::string prefix_min_bits_ = "8";
  bool prefix_shared_ = false;
  bool allow_replay_ = false;
  bool priorities_ = false;
};

}  // namespace pmkvq::cli
