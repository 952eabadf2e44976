#include "prompt_cache.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "common_options.h"
#include "file_options.h"
#include "pmkvq/base/error.h"
#include "pmkvq/kv/spec/packed_spec.h"
#include "pmkvq/kv/spec/spec.h"
#include "terminal.h"

namespace pmkvq::cli {

void PromptCache::Register(CLI::App& command) {
  auto* file = NamesFile(
      command.add_option("--prompt-cache", path,
                         "file that keeps the cache of prompt and answer, or of the chat: read "
                         "where it is there, and written at the end"),
      FileKind::kOutput);
  command.add_flag("--prompt-cache-ro", read_only, "--prompt-cache is read only")->needs(file);
}

void PromptCache::CheckMethod(const std::string& spec) const {
  if (!IsUsed() || FindPackedMethod(ParseMethodSpec(spec).name) != nullptr) return;
  throw Unsupported("--prompt-cache",
                    fmt::format("found --kv {}, expected a packed cache: fp16, static-8, static-4, "
                                "static-2 or pm-kvq",
                                spec));
}

std::optional<SavedSession> PromptCache::Load(Engine& engine,
                                              const std::vector<int32_t>& prompt) const {
  std::error_code ignored;
  if (!IsUsed() || !std::filesystem::exists(path, ignored)) return std::nullopt;
  SavedSession saved = engine.LoadSession(kSession, path);
  if (prompt.empty()) return saved;
  const auto end =
      std::mismatch(saved.tokens.begin(), saved.tokens.end(), prompt.begin(), prompt.end() - 1);
  PrintError(fmt::format("{} of {} prompt tokens are taken from {}",
                         end.first - saved.tokens.begin(), prompt.size(), path));
  return saved;
}

void PromptCache::Save(const Engine& engine, const std::string& note) const {
  if (IsUsed() && !read_only) engine.SaveSession(kSession, path, note);
}

}  // namespace pmkvq::cli
