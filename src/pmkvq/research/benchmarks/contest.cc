#include "pmkvq/research/benchmarks/contest.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <set>

#include "pmkvq/base/error.h"
#include "pmkvq/base/strings.h"
#include "pmkvq/io/file.h"
#include "pmkvq/io/utf8.h"

namespace pmkvq {
namespace {

namespace fs = std::filesystem;

std::string ReadText(const std::string& path) {
  std::string text = ReadFile(path);
  CheckUtf8(text, path);
  if (text.starts_with("\xef\xbb\xbf")) text.erase(0, 3);
  return text;
}

// ---- CSV

// Splits a CSV text into records; `line` is where the next one starts.
class CsvReader {
 public:
  CsvReader(std::string_view text, const std::string& source) : rest_(text), source_(source) {}

  bool done() const { return rest_.empty(); }
  int64_t line() const { return line_; }

  std::vector<std::string> Next() {
    std::vector<std::string> fields;
    do {
      fields.push_back(NextField());
    } while (Take(','));
    Take('\r');
    if (Take('\n')) ++line_;
    return fields;
  }

  [[noreturn]] void Fail(const std::string& message) const {
    throw InvalidInput(fmt::format("{}:{}", source_, line_), message);
  }

 private:
  bool Take(char c) {
    if (!rest_.starts_with(c)) return false;
    rest_.remove_prefix(1);
    return true;
  }

  std::string NextField() {
    if (!rest_.starts_with('"')) {
      const size_t end = std::min(rest_.find_first_of(",\r\n"), rest_.size());
      const std::string field(rest_.substr(0, end));
      rest_.remove_prefix(end);
      return field;
    }
    rest_.remove_prefix(1);
    std::string field;
    int64_t lines = 0;
    for (;;) {
      if (rest_.empty()) Fail("found a quoted field without an end, expected a closing \"");
      const char c = rest_.front();
      rest_.remove_prefix(1);
      if (c == '"' && !Take('"')) break;
      if (c == '\n') ++lines;
      field += c;
    }
    if (!rest_.empty() && rest_.find_first_of(",\r\n") != 0) {
      Fail("found text behind a quoted field, expected a comma or the end of the line");
    }
    line_ += lines;
    return field;
  }

  std::string_view rest_;
  const std::string& source_;
  int64_t line_ = 1;
};

// ---- YAML

// The value of a double-quoted scalar; `text` begins behind the opening quote.
std::string UnescapeDoubleQuoted(std::string_view text, const std::string& where,
                                 std::string_view* behind) {
  std::string value;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '"') {
      *behind = text.substr(i + 1);
      return value;
    }
    if (text[i] != '\\') {
      value += text[i];
      continue;
    }
    constexpr std::string_view kEscapes = "\\\"/ntr ";
    constexpr std::string_view kMeanings = "\\\"/\n\t\r ";
    const size_t known = i + 1 < text.size() ? kEscapes.find(text[i + 1]) : std::string_view::npos;
    if (known == std::string_view::npos) {
      throw InvalidInput(where, fmt::format("found the escape '{}', expected one of \\\\ \\\" \\/ "
                                            "\\n \\t \\r",
                                            text.substr(i, 2)));
    }
    value += kMeanings[known];
    ++i;
  }
  throw InvalidInput(where, "found a \"...\" without an end, expected it to end in its line");
}

std::string UnescapeSingleQuoted(std::string_view text, const std::string& where,
                                 std::string_view* behind) {
  std::string value;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\'') {
      if (!text.substr(i + 1).starts_with('\'')) {
        *behind = text.substr(i + 1);
        return value;
      }
      ++i;
    }
    value += text[i];
  }
  throw InvalidInput(where, "found a '...' without an end, expected it to end in its line");
}

// A value in one line.
std::string ParseScalar(std::string_view text, const std::string& where) {
  std::string_view behind;
  std::string value;
  if (text.starts_with('"')) {
    value = UnescapeDoubleQuoted(text.substr(1), where, &behind);
  } else if (text.starts_with('\'')) {
    value = UnescapeSingleQuoted(text.substr(1), where, &behind);
  } else {
    constexpr std::string_view kSpecial = "[]{}&*!|>%@`,?";
    text = Trim(text.substr(0, text.find(" #")));
    if (text.empty() || kSpecial.find(text.front()) != std::string_view::npos ||
        text.starts_with("- ") || text.find(": ") != std::string_view::npos) {
      throw InvalidInput(where,
                         fmt::format("found '{}', expected a plain value, '...' or \"...\"", text));
    }
    return std::string(text);
  }
  behind = Trim(behind);
  if (!behind.empty() && !behind.starts_with('#')) {
    throw InvalidInput(where,
                       fmt::format("found '{}' behind the quoted value, expected nothing", behind));
  }
  return value;
}

// "{{" and "}}" to single ones.
std::string FormatBraces(std::string_view text, const std::string& where) {
  std::string result;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '{' || text[i] == '}') {
      if (i + 1 == text.size() || text[i + 1] != text[i]) {
        throw InvalidInput(where, fmt::format("instruction: found a single '{}', expected '{}{}' "
                                              "for one brace",
                                              text[i], text[i], text[i]));
      }
      ++i;
    }
    result += text[i];
  }
  return result;
}

// ---- Folders

bool IsContest(const fs::path& folder) { return FileExists((folder / "answers.csv").string()); }

std::vector<fs::path> ContestFolders(const std::string& data) {
  std::error_code error;
  if (!fs::is_directory(data, error)) {
    throw InvalidInput(data,
                       "found no folder, expected a contest's (answers.csv and problems/) or "
                       "the folder of several");
  }
  // With the name of the folder itself where the path ends in a slash.
  const fs::path folder =
      fs::path(data).has_filename() ? fs::path(data) : fs::path(data).parent_path();
  if (IsContest(folder)) return {fs::weakly_canonical(folder)};
  std::vector<fs::path> contests;
  fs::directory_iterator entries(folder, error);
  if (error) throw IoError(data, "cannot list the folder: " + error.message());
  for (const fs::directory_entry& entry : entries) {
    if (IsContest(entry.path())) contests.push_back(entry.path());
  }
  if (contests.empty()) {
    throw InvalidInput(data,
                       "found no answers.csv in it nor in its folders, expected a contest's "
                       "folder or the folder of several");
  }
  std::sort(contests.begin(), contests.end());
  return contests;
}

void AddContest(const fs::path& folder, std::vector<ProblemRow>* problems) {
  const std::string contest = folder.filename().string();
  const std::string config = (folder / "config.yaml").string();
  const std::string instruction =
      FileExists(config) ? ParseInstruction(ReadText(config), config) : std::string(kInstruction);
  const std::string answers = (folder / "answers.csv").string();
  for (auto& [id, answer] : ParseAnswersCsv(ReadText(answers), answers)) {
    const std::string path = (folder / "problems" / (id + ".tex")).string();
    const std::string text = ReadText(path);
    const std::string_view problem = TrimEnd(text);
    if (problem.empty()) throw InvalidInput(path, "found an empty file, expected a problem");
    ProblemRow row;
    row.id = contest + "." + id;
    row.task = contest;
    row.problem = fmt::format("{}\n{}", problem, instruction);
    row.answer = std::move(answer);
    problems->push_back(std::move(row));
  }
}

}  // namespace

std::vector<std::pair<std::string, std::string>> ParseAnswersCsv(std::string_view text,
                                                                 const std::string& source) {
  CsvReader reader(text, source);
  const std::vector<std::string> header = reader.Next();
  const auto column = [&](const char* name) {
    const auto found = std::find(header.begin(), header.end(), name);
    if (found == header.end()) {
      throw InvalidInput(source + ":1", fmt::format("found no column '{}', expected the header "
                                                    "id,answer",
                                                    name));
    }
    return static_cast<size_t>(found - header.begin());
  };
  const size_t id_column = column("id");
  const size_t answer_column = column("answer");
  std::vector<std::pair<std::string, std::string>> rows;
  std::set<std::string> ids;
  while (!reader.done()) {
    const int64_t line = reader.line();
    const std::vector<std::string> fields = reader.Next();
    if (fields.size() == 1 && Trim(fields[0]).empty()) continue;
    const std::string where = fmt::format("{}:{}", source, line);
    if (fields.size() != header.size()) {
      throw InvalidInput(where, fmt::format("found {} fields, expected {} as in the header (a "
                                            "comma in a field needs quotes around it)",
                                            fields.size(), header.size()));
    }
    const std::string id(Trim(fields[id_column]));
    const std::string answer(Trim(fields[answer_column]));
    // It becomes a file name.
    if (id.empty() || id.find('/') != std::string::npos || id.find('\0') != std::string::npos) {
      throw InvalidInput(where, fmt::format("id: found '{}', expected the name of a problem", id));
    }
    if (answer.empty()) throw InvalidInput(where, "answer: found none, expected the gold answer");
    if (!ids.insert(id).second) {
      throw InvalidInput(where, fmt::format("id: found '{}' again, expected every id once", id));
    }
    rows.emplace_back(id, answer);
  }
  if (rows.empty()) throw InvalidInput(source, "rows: found none, expected at least one answer");
  return rows;
}

std::string ParseInstruction(std::string_view yaml, const std::string& source) {
  std::string instruction;
  std::set<std::string, std::less<>> keys;
  std::string_view rest = yaml;
  for (int64_t number = 1; !rest.empty(); ++number) {
    const size_t end = std::min(rest.find('\n'), rest.size());
    const std::string_view line = TrimEnd(rest.substr(0, end));
    rest.remove_prefix(std::min(end + 1, rest.size()));
    if (line.empty() || Trim(line).starts_with('#') || line == "---") continue;
    const std::string where = fmt::format("{}:{}", source, number);
    const size_t colon = line.find(':');
    const std::string_view key = line.substr(0, colon);
    if (colon == std::string_view::npos || key.empty() ||
        key.find_first_of(" \t\"'{[-#") != std::string_view::npos ||
        (colon + 1 < line.size() && line[colon + 1] != ' ')) {
      throw InvalidInput(where, fmt::format("found '{}', expected key: value", line));
    }
    if (!keys.emplace(key).second) {
      throw InvalidInput(where, fmt::format("found '{}' again, expected every key once", key));
    }
    const std::string value = ParseScalar(Trim(line.substr(colon + 1)), where);
    if (key == "instruction") instruction = FormatBraces(value, where);
  }
  if (instruction.empty()) {
    throw InvalidInput(source, "instruction: found none, expected the words behind each problem");
  }
  return instruction;
}

std::vector<ProblemRow> LoadContests(const std::string& folder) {
  std::vector<ProblemRow> problems;
  for (const fs::path& contest : ContestFolders(folder)) AddContest(contest, &problems);
  return problems;
}

}  // namespace pmkvq
