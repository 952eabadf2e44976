// The judge against tests/golden/judge: known wrong acceptances and wrong refusals.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "pmkvq/io/json.h"
#include "pmkvq/research/judge/judged_text.h"
#include "pmkvq/research/judge/math_equivalence.h"

namespace pmkvq {
namespace {

const std::string kFolder = PMKVQ_SOURCE_DIR "/tests/golden/judge/";

std::vector<std::string> Columns(const std::string& line) {
  std::vector<std::string> columns;
  for (size_t begin = 0;;) {
    const size_t tab = line.find('\t', begin);
    columns.push_back(line.substr(begin, tab - begin));
    if (tab == std::string::npos) return columns;
    begin = tab + 1;
  }
}

// The file writes line breaks as this sign.
std::string WithLineBreaks(std::string text) {
  const std::string sign = "\u23ce";
  for (size_t at = text.find(sign); at != std::string::npos; at = text.find(sign)) {
    text.replace(at, sign.size(), "\n");
  }
  return text;
}

TEST(KnownCases, EveryRowOfTheTable) {
  std::ifstream file(kFolder + "known_cases.tsv");
  ASSERT_TRUE(file.is_open());
  int rows = 0;
  for (std::string line; std::getline(file, line);) {
    if (line.empty() || line[0] == '#') continue;
    const std::vector<std::string> row = Columns(line);
    ASSERT_EQ(row.size(), 6u) << line;
    ASSERT_TRUE(row[1] == "same" || row[1] == "different") << line;
    ASSERT_TRUE(row[2] == "answer" || row[2] == "response") << line;
    const bool same = row[1] == "same";
    const std::string given = WithLineBreaks(row[3]);
    ++rows;
    if (row[2] == "answer") {
      EXPECT_EQ(EquivalentAnswers(given, row[4]), same) << line;
      EXPECT_EQ(EquivalentAnswers(row[4], given), same) << "the other way round: " << line;
      const JudgedText judged = JudgeText("Hence \\boxed{" + given + "}.", row[4]);
      EXPECT_EQ(judged.correct, same) << "in a box: " << line;
    } else {
      const JudgedText judged = JudgeText(given, row[4]);
      EXPECT_EQ(judged.correct, same) << line << "\nextracted: " << judged.extracted;
    }
  }
  EXPECT_GE(rows, 600);
}

// Faults as they were reported: cases of `pmkvq judge --cases` and what is right.
TEST(KnownCases, ReportedFaults) {
  int folders = 0;
  for (const auto& entry : std::filesystem::directory_iterator(kFolder + "reported")) {
    const std::string folder = entry.path().string();
    std::ifstream lines(folder + "/cases.jsonl");
    const JsonValue expected = JsonValue::ParseFile(folder + "/expected.json").At("correct");
    size_t i = 0;
    for (std::string line; std::getline(lines, line); ++i) {
      ASSERT_LT(i, expected.size()) << folder;
      const JsonValue row = JsonValue::Parse(line, folder);
      const JudgedText judged =
          JudgeText(row.At("response").AsString(), row.At("gold").AsTextOrNumber());
      EXPECT_EQ(judged.correct, expected.At(i).AsBool())
          << folder << ": " << line << "\nextracted: " << judged.extracted;
    }
    EXPECT_EQ(i, expected.size()) << folder;
    ++folders;
  }
  EXPECT_EQ(folders, 9);
}

}  // namespace
}  // namespace pmkvq
