// --prompt-cache FILE: the cache of a prompt, or of a chat, from one run to the next.
#pragma once

#include <CLI/CLI.hpp>

#include <optional>
#include <string>
#include <vector>

#include "pmkvq/engine/engine.h"

namespace pmkvq::cli {

class PromptCache {
 public:
  static constexpr int64_t kSession = 0;  // Requests that use it have this session.

  std::string path;  // "": none.
  bool read_only = false;

  bool IsUsed() const { return !path.empty(); }

  // Declares --prompt-cache and --prompt-cache-ro.
  void Register(CLI::App& command);
  // Throws Unsupported when caches of this SPEC cannot be saved.
  void CheckMethod(const std::string& spec) const;
  // Loads the file where it is there, and says how many of `prompt` it holds (empty: not known
  // yet). Nothing where there is none. Throws what Engine::LoadSession throws.
  std::optional<SavedSession> Load(Engine& engine, const std::vector<int32_t>& prompt) const;
  // Saves the session, unless read_only. The session must be idle.
  void Save(const Engine& engine, const std::string& note) const;
};

}  // namespace pmkvq::cli
