#include "pmkvq/research/eval/unfinished.h"

#include <fmt/format.h>

#include <filesystem>
#include <limits>

#include "pmkvq/base/error.h"
#include "pmkvq/io/file.h"
#include "pmkvq/io/json.h"
#include "pmkvq/io/json_lines.h"

namespace pmkvq {
namespace {

std::string Line(const UnfinishedResponses::Key& key, int64_t first,
                 const std::vector<int32_t>& tokens, double seconds) {
  JsonWriter json;
  json.BeginObject();
  json.Key("id").String(key.first);
  json.Key("response").Int(key.second);
  json.Key("first").Int(first);
  json.Key("tokens").Array(tokens);
  json.Key("seconds").Number(seconds);
  json.EndObject();
  return json.text() + "\n";
}

void AddLine(std::string_view line, const std::string& source,
             std::map<UnfinishedResponses::Key, UnfinishedResponses::Begun>& begun) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  const JsonValue json = JsonValue::Parse(line, source);
  if (!json.IsObject()) json.Fail("an object, tokens of one response");
  auto& [tokens, seconds] =
      begun[{json.Find("id").AsString(), json.Find("response").AsInt(0, kMost)}];
  const JsonValue first = json.Find("first");
  if (first.AsInt() != std::ssize(tokens)) {
    first.Fail(fmt::format("{}, the number of tokens in the lines before", tokens.size()));
  }
  const JsonValue drawn = json.Find("tokens");
  if (!drawn.IsArray()) drawn.Fail("an array of token ids");
  for (size_t i = 0; i < drawn.size(); ++i) {
    tokens.push_back(static_cast<int32_t>(drawn.At(i).AsInt(0, kMost)));
  }
  const JsonValue time = json.Find("seconds");
  seconds = time.AsDouble();
  if (seconds < 0) time.Fail("a number that is not negative");
}

}  // namespace

UnfinishedResponses::UnfinishedResponses(const std::string& path,
                                         const std::function<bool(const Key&)>& is_done)
    : path_(path) {
  if (!FileExists(path)) return;
  const std::string content = ReadFile(path);
  const size_t whole = content.rfind('\n') + 1;  // 0 for none.
  ForEachLineOf(std::string_view(content).substr(0, whole), path,
                [&](std::string_view line, const std::string& source, int64_t) {
                  AddLine(line, source, begun_);
                });
  std::erase_if(begun_, [&](const auto& entry) { return is_done(entry.first); });
  Compact();
}

void UnfinishedResponses::Append(const Key& key, const std::vector<int32_t>& tokens,
                                 double seconds) {
  if (path_.empty()) return;
  if (!file_.is_open()) file_ = LineFile(path_);
  Begun& begun = begun_[key];
  file_.Append(Line(key, std::ssize(begun.tokens), tokens, seconds));
  begun.tokens.insert(begun.tokens.end(), tokens.begin(), tokens.end());
  begun.seconds = seconds;
}

void UnfinishedResponses::Finish(const Key& key) { begun_.erase(key); }

void UnfinishedResponses::Compact() {
  if (path_.empty()) return;
  file_ = LineFile();
  std::string lines;
  for (const auto& [key, begun] : begun_) lines += Line(key, 0, begun.tokens, begun.seconds);
  if (!lines.empty()) {
    WriteFileAtomically(path_, lines);
  } else {
    std::error_code error;
    std::filesystem::remove(path_, error);
    if (error) throw IoError(path_, "cannot remove the file: " + error.message());
  }
}

}  // namespace pmkvq
