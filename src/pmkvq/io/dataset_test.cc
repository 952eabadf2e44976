#include "pmkvq/io/dataset.h"

#include <gtest/gtest.h>

#include <string>

#include "pmkvq/base/error.h"
#include "support/expect_error.h"
#include "support/temp_folder.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;
using testing_support::TempFolder;

TEST(TextRows, ReadsJsonLines) {
  const TempFolder folder;
  const std::string path =
      folder.Write("a.jsonl",
                   "{\"text\": \"h\\u00e9\", \"other\": [1]}\n"
                   "\n \t\r\n"
                   "{\"input_ids\": [0, 5, 2147483647], \"text\": \"unused\"}\r\n"
                   "{\"text\": \"last\"}");
  const std::vector<TextRow> rows = LoadTextRows(path);
  ASSERT_EQ(rows.size(), 3u);
  EXPECT_EQ(rows[0].text, "h\xc3\xa9");
  EXPECT_TRUE(rows[0].input_ids.empty());
  EXPECT_EQ(rows[1].text, "");
  EXPECT_EQ(rows[1].input_ids, (std::vector<int32_t>{0, 5, 2147483647}));
  EXPECT_EQ(rows[2].text, "last");
}

TEST(TextRows, ATextFileIsOneRow) {
  const TempFolder folder;
  const std::vector<TextRow> rows = LoadTextRows(folder.Write("a.txt", "two\nlines\n"));
  ASSERT_EQ(rows.size(), 1u);
  EXPECT_EQ(rows[0].text, "two\nlines");
  ExpectError<InvalidInput>([&] { LoadTextRows(folder.Write("b.txt", "ab\xff")); },
                            {"b.txt] byte 2: found 0xff, expected UTF-8"});
  ExpectError<InvalidInput>([&] { LoadTextRows(folder.Write("c.txt", "")); }, {"an empty file"});
}

TEST(TextRows, ErrorsNameFileLineAndField) {
  const TempFolder folder;
  const auto load = [&](const std::string& line) {
    return [&folder, line] {
      LoadTextRows(folder.Write("a.jsonl", "{\"text\": \"x\"}\n\n" + line + "\n"));
    };
  };
  ExpectError<InvalidInput>(load("{\"texts\": 1}"), {"a.jsonl:3] text: found nothing, expected"});
  ExpectError<InvalidInput>(load("{\"text\": 1}"), {"a.jsonl:3] text: found 1"});
  ExpectError<InvalidInput>(load("[]"), {"a.jsonl:3] top level: found []"});
  ExpectError<InvalidInput>(load("{\"input_ids\": []}"), {"input_ids: found []"});
  ExpectError<InvalidInput>(load("{\"input_ids\": \"1\"}"), {"input_ids: found \"1\""});
  ExpectError<InvalidInput>(load("{\"input_ids\": [1, -1]}"), {"input_ids[1]: found -1"});
  ExpectError<InvalidInput>(load("{\"input_ids\": [2147483648]}"), {"input_ids[0]: found 2147"});
  ExpectError<InvalidInput>(load("{\"text\": \"\xff\"}"), {"a.jsonl:3] not valid JSON at byte"});
  ExpectError<InvalidInput>(load("{"), {"a.jsonl:3] not valid JSON"});
}

TEST(TextRows, NoRowsOrAnotherKindOfFile) {
  const TempFolder folder;
  ExpectError<InvalidInput>([&] { LoadTextRows(folder.Write("a.jsonl", "\n \n")); },
                            {"a.jsonl] rows: found none"});
  ExpectError<InvalidInput>([&] { LoadTextRows(folder.Write("a.csv", "x")); },
                            {"a.csv]", "expected .jsonl or .txt"});
  ExpectError<IoError>([&] { LoadTextRows(folder.File("none.jsonl")); }, {"cannot open"});
}

TEST(Problems, ReadsTheShippedOnes) {
  const std::vector<ProblemRow> rows =
      LoadProblems(PMKVQ_SOURCE_DIR "/models/longcot-10m/problems.jsonl");
  ASSERT_FALSE(rows.empty());
  EXPECT_EQ(rows[0].id, "chain-1-000");
  EXPECT_EQ(rows[0].task, "chain");
  EXPECT_EQ(rows[0].level, 1);
  EXPECT_EQ(rows[0].answer, "108");
  EXPECT_NE(rows[0].problem.find("What is x"), std::string::npos);
  EXPECT_FALSE(rows[0].reference_chain.empty());
  EXPECT_FALSE(
      LoadTextRows(PMKVQ_SOURCE_DIR "/models/longcot-10m/calibration.jsonl")[0].text.empty());
}

TEST(Problems, OptionalFieldsAndNumbers) {
  const TempFolder folder;
  const std::vector<ProblemRow> rows = LoadProblems(
      folder.Write("p.jsonl",
                   "\n{\"problem\": \"1+1?\", \"answer\": 2}\n"
                   "{\"problem\": \"?\", \"answer\": \"0.5\", \"id\": 17}\n"
                   "{\"problem\": \"?\", \"answer\": 0.5, \"id\": \"x\", \"task\": null}\n"));
  ASSERT_EQ(rows.size(), 3u);
  EXPECT_EQ(rows[0].id, "2");  // The line number.
  EXPECT_EQ(rows[0].answer, "2");
  EXPECT_EQ(rows[0].task, "");
  EXPECT_EQ(rows[1].id, "17");
  EXPECT_EQ(rows[1].answer, "0.5");
  EXPECT_EQ(rows[2].id, "x");
  EXPECT_EQ(rows[2].answer, "0.5");
}

TEST(Problems, ErrorsNameFileLineAndField) {
  const TempFolder folder;
  const auto load = [&](const std::string& line) {
    return [&folder, line] { LoadProblems(folder.Write("p.jsonl", line)); };
  };
  ExpectError<InvalidInput>(load("{\"answer\": 1}"), {"p.jsonl:1] problem: found nothing"});
  ExpectError<InvalidInput>(load("{\"problem\": \"\", \"answer\": 1}"), {"problem: found \"\""});
  ExpectError<InvalidInput>(load("{\"problem\": \"x\"}"), {"answer: found nothing"});
  ExpectError<InvalidInput>(load("{\"problem\": \"x\", \"answer\": true}"), {"answer: found true"});
  ExpectError<InvalidInput>(load("{\"problem\": \"x\", \"answer\": 1, \"level\": \"a\"}"),
                            {"level: found \"a\""});
  ExpectError<InvalidInput>(load("{\"problem\": \"x\", \"answer\": 1, \"task\": 3}"),
                            {"task: found 3"});
  ExpectError<InvalidInput>(load("7"), {"p.jsonl:1] top level: found 7"});
  ExpectError<InvalidInput>(load(""), {"p.jsonl] rows: found none"});
  const std::string same = "{\"problem\": \"x\", \"answer\": 1, \"id\": \"a\"}\n";
  ExpectError<InvalidInput>(load(same + same), {"p.jsonl:2] id: found 'a' again"});
}

}  // namespace
}  // namespace pmkvq
