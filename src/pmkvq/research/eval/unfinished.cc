#include "pmkvq/research/eval/unfinished.h"

#include <fmt/format.h>

#include <filesystem>
#include <limits>

#include "pmkvq/base/error.h"
#include "pmkvq/io/file.h"
#include "pmkvq/io/json.h"
#include "pmkvq/io/json_lines.h"
#include "pmkvq/io/part_files.h"

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

// The responses of a file; empty where there is none.
std::map<UnfinishedResponses::Key, UnfinishedResponses::Begun> ReadBegun(const std::string& path) {
  std::map<UnfinishedResponses::Key, UnfinishedResponses::Begun> begun;
  ForEachLineOf(ReadWholeLines(path), path,
                [&](std::string_view line, const std::string& source, int64_t) {
                  AddLine(line, source, begun);
                });
  return begun;
}

}  // namespace

UnfinishedResponses::UnfinishedResponses(const std::string& path,
                                         const std::vector<std::string>& others,
                                         const std::function<bool(const Key&)>& is_done)
    : path_(path), begun_(ReadBegun(path)) {
  std::erase_if(begun_, [&](const auto& entry) { return is_done(entry.first); });
  for (const std::string& other : others) {
    if (other == path) continue;
    for (auto& [key, begun] : ReadBegun(other)) {
      if (is_done(key)) continue;
      Begun& known = begun_[key];
      if (known.tokens.size() >= begun.tokens.size()) continue;
      known = std::move(begun);
      elsewhere_.insert(key);
    }
  }
  Compact();
}

void UnfinishedResponses::Append(const Key& key, const std::vector<int32_t>& tokens,
                                 double seconds) {
  if (path_.empty()) return;
  if (!file_.is_open()) file_ = LineFile(path_);
  Begun& begun = begun_[key];
  const int64_t first = std::ssize(begun.tokens);
  begun.tokens.insert(begun.tokens.end(), tokens.begin(), tokens.end());
  // This file's first line of a response has the tokens that only another file had so far, too.
  const bool is_elsewhere = elsewhere_.erase(key) > 0;
  file_.Append(is_elsewhere ? Line(key, 0, begun.tokens, seconds)
                            : Line(key, first, tokens, seconds));
  begun.seconds = seconds;
}

void UnfinishedResponses::Finish(const Key& key) {
  begun_.erase(key);
  elsewhere_.erase(key);
}

void UnfinishedResponses::Compact() {
  if (path_.empty()) return;
  file_ = LineFile();
  std::string lines;
  for (const auto& [key, begun] : begun_) {
    if (!elsewhere_.contains(key)) lines += Line(key, 0, begun.tokens, begun.seconds);
  }
  if (!lines.empty()) {
    WriteFileAtomically(path_, lines);
  } else {
    std::error_code error;
    std::filesystem::remove(path_, error);
    if (error) throw IoError(path_, "cannot remove the file: " + error.message());
  }
}

void UnfinishedResponses::CompactAll() {
  elsewhere_.clear();
  Compact();
}

}  // namespace pmkvq
