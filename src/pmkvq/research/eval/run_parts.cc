#include "pmkvq/research/eval/run_parts.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <tuple>
#include <utility>

#include "pmkvq/base/error.h"
#include "pmkvq/io/file.h"
#include "pmkvq/io/json_lines.h"
#include "pmkvq/research/eval/unfinished.h"

namespace pmkvq {
namespace {

constexpr const char* kFolder = "parts";
constexpr const char* kExtension = ".jsonl";

struct StoredResponse {
  Response response;
  std::string line;  // As it stands in the file.
};

// As ReadResponses.
std::vector<StoredResponse> ReadStored(const std::string& folder) {
  const std::string whole = JoinPath(folder, "responses.jsonl");
  // Parts are read first and responses.jsonl last: what a merge takes out of the ones meanwhile is
  // in the other.
  std::vector<std::pair<std::string, std::string>> files;  // Path, content.
  for (const std::string& path : ResponseParts(folder).List()) {
    files.emplace_back(path, ReadWholeLines(path));
  }
  files.insert(files.begin(), {whole, ReadWholeLines(whole)});

  std::vector<StoredResponse> stored;
  std::map<std::pair<std::string, int64_t>, std::pair<size_t, std::string>> seen;  // Index, source.
  for (const auto& [path, content] : files) {
    ForEachLineOf(content, path, [&](std::string_view line, const std::string& source, int64_t) {
      Response response = ParseResponse(line, source);
      const auto [known, is_new] =
          seen.emplace(std::pair{response.id, response.response}, std::pair{stored.size(), source});
      if (is_new) {
        stored.push_back({std::move(response), std::string(line)});
        return;
      }
      const auto& [index, first_source] = known->second;
      if (stored[index].response.text == response.text) return;
      throw InvalidInput(source,
                         fmt::format("text: found another one for response {} of problem '{}' than "
                                     "in {}, expected the same; the machines of the two runs "
                                     "compute differently (remove one of the lines)",
                                     response.response, response.id, first_source));
    });
  }
  return stored;
}

}  // namespace

PartFiles ResponseParts(const std::string& folder) {
  return {JoinPath(folder, kFolder), "responses-", kExtension};
}

PartFiles UnfinishedParts(const std::string& folder) {
  return {JoinPath(folder, kFolder), "unfinished-", kExtension};
}

std::vector<Response> ReadResponses(const std::string& folder) {
  std::vector<Response> responses;
  for (StoredResponse& stored : ReadStored(folder)) responses.push_back(std::move(stored.response));
  return responses;
}

void MergeParts(const std::string& folder) {
  const PartFiles responses = ResponseParts(folder);
  const PartFiles unfinished = UnfinishedParts(folder);
  const std::vector<std::string> parts_of_unfinished = unfinished.List();
  const bool has_responses = !responses.List().empty();
  if (!has_responses && parts_of_unfinished.empty()) return;

  std::vector<StoredResponse> stored = ReadStored(folder);
  std::sort(stored.begin(), stored.end(), [](const StoredResponse& a, const StoredResponse& b) {
    return std::tie(a.response.id, a.response.response) <
           std::tie(b.response.id, b.response.response);
  });
  if (has_responses) {
    AtomicFileWriter file(JoinPath(folder, "responses.jsonl"));
    for (const StoredResponse& one : stored) {
      const std::string line = one.line + "\n";
      file.Append(line.data(), line.size());
    }
    file.Commit();
  }
  const auto is_done = [&](const UnfinishedResponses::Key& key) {
    const auto found = std::lower_bound(
        stored.begin(), stored.end(), key, [](const StoredResponse& a, const auto& b) {
          return std::tie(a.response.id, a.response.response) < std::tie(b.first, b.second);
        });
    return found != stored.end() && found->response.id == key.first &&
           found->response.response == key.second;
  };
  UnfinishedResponses begun(JoinPath(folder, "unfinished.jsonl"), parts_of_unfinished, is_done);
  begun.CompactAll();
  responses.Remove();
  unfinished.Remove();
  std::error_code not_empty;  // Files of somebody else stay.
  std::filesystem::remove(JoinPath(folder, kFolder), not_empty);
}

}  // namespace pmkvq
