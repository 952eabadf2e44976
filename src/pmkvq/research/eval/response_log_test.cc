// Lines of responses.jsonl, run.json, and the folder that holds them.
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "pmkvq/base/error.h"
#include "pmkvq/io/file.h"
#include "pmkvq/research/eval/evaluation.h"
#include "support/expect_error.h"
#include "support/temp_folder.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;
using testing_support::TempFolder;

Response MakeResponse(const std::string& id, int64_t index) {
  Response response;
  response.id = id;
  response.task = "sum";
  response.level = 2;
  response.response = index;
  response.answer = "4";
  response.extracted = "2+2";
  response.correct = true;
  response.finish_reason = "stop";
  response.prompt_tokens = 11;
  response.output_tokens = 7;
  response.peak_bytes = 1000;
  response.budget_bytes = 2000;
  response.final_pages = {4, 3, 2, 1};
  response.longest_pause_us = 12.5;
  response.decode_seconds = 0.1;
  response.text = "line\nbreak, é, \"quotes\" \\boxed{2+2}";
  return response;
}

RunSettings MakeSettings() {
  return {"gsm8k", "model-a", "fp16", "", {{"--seed", "42"}, {"--temperature", "0.6"}}};
}

std::vector<std::string> Lines(const std::string& path) {
  std::vector<std::string> lines;
  std::istringstream text(ReadFile(path));
  for (std::string line; std::getline(text, line);) lines.push_back(line);
  return lines;
}

TEST(ResponseLine, ReadsBackAsItWas) {
  const Response response = MakeResponse("a", 3);
  const std::string line = ResponseLine(response);
  EXPECT_EQ(line.find('\n'), std::string::npos);
  const Response back = ParseResponse(line, "f:1");
  EXPECT_EQ(ResponseLine(back), line);
  EXPECT_EQ(back.id, "a");
  EXPECT_EQ(back.response, 3);
  EXPECT_EQ(back.text, response.text);
  EXPECT_EQ(back.final_pages, response.final_pages);
  EXPECT_EQ(back.decode_seconds, 0.1);
  EXPECT_EQ(back.grading, Grading::kAnswer);
  EXPECT_TRUE(back.correct);
}

TEST(ResponseLine, TheKeptShareIsThereWhereTokensWereEvicted) {
  Response response = MakeResponse("a", 0);
  EXPECT_EQ(ResponseLine(response).find("kept_share"), std::string::npos);
  EXPECT_EQ(ParseResponse(ResponseLine(response), "f:1").kept_share, 1.0);
  response.kept_share = 0.25;
  std::string line = ResponseLine(response);
  EXPECT_EQ(ParseResponse(line, "f:1").kept_share, 0.25);
  line.replace(line.find("0.25"), 4, "1.25");
  ExpectError<InvalidInput>([&] { ParseResponse(line, "f:1"); }, {"f:1", "kept_share", "1.25"});
}

TEST(ResponseLine, CodeSaysSo) {
  Response response = MakeResponse("a", 0);
  response.grading = Grading::kCode;
  EXPECT_EQ(ParseResponse(ResponseLine(response), "f:1").grading, Grading::kCode);
}

TEST(ResponseLine, ErrorsNameTheField) {
  const std::string line = ResponseLine(MakeResponse("a", 0));
  const auto expect = [&](const std::string& from, const std::string& to,
                          std::initializer_list<std::string> parts) {
    std::string changed = line;
    changed.replace(changed.find(from), from.size(), to);
    ExpectError<InvalidInput>([&] { ParseResponse(changed, "f:9"); }, parts);
  };
  expect(R"("id":"a",)", "", {"f:9", "id"});
  expect(R"("response":0)", R"("response":-1)", {"f:9", "response", "-1"});
  expect(R"("finish_reason":"stop")", R"("finish_reason":"cancelled")", {"finish_reason", "stop"});
  expect("[4,3,2,1]", "[4,3,2]", {"final_pages"});
  expect(R"("decode_seconds":0.1)", R"("decode_seconds":-1)", {"decode_seconds"});
  expect(R"("correct":true)", R"("correct":1)", {"correct"});
  ExpectError<InvalidInput>([] { ParseResponse("[]", "f:9"); }, {"f:9", "object"});
}

TEST(RunSettings, ReadBackAsTheyWere) {
  const std::string text = RunSettingsJson(MakeSettings());
  EXPECT_EQ(RunSettingsJson(ParseRunSettings(text, "run.json")), text);
  ExpectError<InvalidInput>([] { ParseRunSettings("{}", "run.json"); }, {"run.json", "format"});
  ExpectError<InvalidInput>(
      [] { ParseRunSettings(R"({"format":"pmkvq-eval","version":2})", "run.json"); },
      {"run.json", "version", "2"});
}

TEST(ResponseLog, KeepsLinesAcrossRuns) {
  const TempFolder folder;
  const std::string run = folder.File("a/b");  // Made with its parent.
  {
    ResponseLog log(run, MakeSettings());
    EXPECT_FALSE(log.Has("x", 0));
    log.Append(MakeResponse("x", 0));
    // There at once, not at the end.
    EXPECT_EQ(Lines(run + "/responses.jsonl").size(), 1u);
    log.Append(MakeResponse("x", 1));
    EXPECT_TRUE(log.Has("x", 1));
  }
  ResponseLog log(run, MakeSettings());
  ASSERT_EQ(log.responses().size(), 2u);
  EXPECT_EQ(ResponseLine(log.responses()[1]), ResponseLine(MakeResponse("x", 1)));
  EXPECT_TRUE(log.Has("x", 0));
  EXPECT_FALSE(log.Has("x", 2));
  EXPECT_FALSE(log.Has("y", 0));
  log.Append(MakeResponse("y", 0));
  EXPECT_EQ(Lines(run + "/responses.jsonl").size(), 3u);
}

TEST(ResponseLog, DropsALineThatAKillCutShort) {
  const TempFolder folder;
  { ResponseLog(folder.path(), MakeSettings()).Append(MakeResponse("x", 0)); }
  const std::string path = folder.File("responses.jsonl");
  const std::string whole = ReadFile(path);
  const std::string next = ResponseLine(MakeResponse("x", 1));
  // Nothing but the end of the line may be missing, too.
  for (const size_t kept : {size_t{1}, next.size() / 2, next.size()}) {
    folder.Write("responses.jsonl", whole + next.substr(0, kept));
    ResponseLog log(folder.path(), MakeSettings());
    EXPECT_EQ(log.responses().size(), 1u);
    EXPECT_FALSE(log.Has("x", 1));
    log.Append(MakeResponse("x", 1));
    EXPECT_EQ(ReadFile(path), whole + next + "\n");
  }
  folder.Write("responses.jsonl", next);  // No whole line at all.
  ResponseLog log(folder.path(), MakeSettings());
  EXPECT_TRUE(log.responses().empty());
  EXPECT_EQ(ReadFile(path), "");
}

TEST(ResponseLog, RefusesAFileThatIsDamagedElsewhere) {
  const TempFolder folder;
  { ResponseLog(folder.path(), MakeSettings()).Append(MakeResponse("x", 0)); }
  const std::string line = ResponseLine(MakeResponse("x", 0)) + "\n";
  folder.Write("responses.jsonl", line + "{\"id\":\n" + line);
  ExpectError<InvalidInput>([&] { ResponseLog(folder.path(), MakeSettings()); },
                            {"responses.jsonl:2"});
  // A response that is there twice counts once, but must be the same.
  folder.Write("responses.jsonl", line + line);
  EXPECT_EQ(ResponseLog(folder.path(), MakeSettings()).responses().size(), 1u);
  Response other = MakeResponse("x", 0);
  other.text = "5";
  folder.Write("responses.jsonl", line + ResponseLine(other) + "\n");
  ExpectError<InvalidInput>([&] { ResponseLog(folder.path(), MakeSettings()); },
                            {"responses.jsonl:2", "'x'", "responses.jsonl:1", "expected the same"});
}

TEST(ResponseLog, RefusesOtherSettingsAndNamesTheFirst) {
  const TempFolder folder;
  { ResponseLog(folder.path(), MakeSettings()); }
  const auto expect = [&](const RunSettings& settings, std::initializer_list<std::string> parts) {
    ExpectError<InvalidInput>([&] { ResponseLog(folder.path(), settings); }, parts);
  };
  RunSettings other = MakeSettings();
  other.options[1].second = "0.7";
  expect(other, {"run.json", "--temperature", "'0.6'", "'0.7'", "--out"});
  other.kv = "static-2";
  expect(other, {"--kv", "'fp16'", "'static-2'"});
  other = MakeSettings();
  other.plan_hash = "abc";
  expect(other, {"--plan", "found none", "'abc'"});
  other = MakeSettings();
  other.options.emplace_back("--top-k", "5");
  expect(other, {"--top-k", "found none", "'5'"});
  other.options = {{"--seed", "42"}};
  expect(other, {"--temperature", "'0.6'", "this run has none"});
  ResponseLog same(folder.path(), MakeSettings());
}

TEST(ResponseLog, OneProcessAtATime) {
  const TempFolder folder;
  {
    const ResponseLog first(folder.path(), MakeSettings());
    ExpectError<IoError>([&] { ResponseLog(folder.path(), MakeSettings()); },
                         {folder.path(), "another process"});
  }
  const ResponseLog after(folder.path(), MakeSettings());
}

TEST(ResponseLog, RefusesWhatIsNoFolderOfARun) {
  const TempFolder folder;
  const std::string file = folder.Write("file", "x");
  ExpectError<IoError>([&] { ResponseLog(file, MakeSettings()); }, {"is a file"});
  folder.Write("responses.jsonl", "{}\n");
  ExpectError<InvalidInput>([&] { ResponseLog(folder.path(), MakeSettings()); },
                            {folder.path(), "run.json"});
  EXPECT_FALSE(std::filesystem::exists(folder.File("run.json")));
}

// A file size limit behaves as a full disk does: a part of the line is written, then an error.
TEST(ResponseLog, AFullDiskLeavesWholeLinesAndNamesTheFile) {
  const TempFolder folder;
  ResponseLog log(folder.path(), MakeSettings());
  log.Append(MakeResponse("x", 0));
  const std::string before = ReadFile(folder.File("responses.jsonl"));
  rlimit old_limit = {};
  getrlimit(RLIMIT_FSIZE, &old_limit);
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit tight = {before.size() + 10, old_limit.rlim_max};
  setrlimit(RLIMIT_FSIZE, &tight);
  ExpectError<IoError>([&] { log.Append(MakeResponse("x", 1)); }, {"responses.jsonl", "write"});
  setrlimit(RLIMIT_FSIZE, &old_limit);
  std::signal(SIGXFSZ, old_handler);
  EXPECT_EQ(ReadFile(folder.File("responses.jsonl")), before);
  EXPECT_FALSE(log.Has("x", 1));
  log.Append(MakeResponse("x", 1));
  EXPECT_EQ(Lines(folder.File("responses.jsonl")).size(), 2u);
}

}  // namespace
}  // namespace pmkvq
