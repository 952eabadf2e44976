#include "pmkvq/research/eval/run_parts.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "pmkvq/base/error.h"
#include "pmkvq/io/file.h"
#include "pmkvq/research/eval/evaluation.h"
#include "pmkvq/research/eval/scored_responses.h"
#include "support/expect_error.h"
#include "support/temp_folder.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;
using testing_support::TempFolder;

Response MakeResponse(const std::string& id, int64_t index, const std::string& text = "4") {
  Response response;
  response.id = id;
  response.response = index;
  response.answer = "4";
  response.finish_reason = "stop";
  response.text = text;
  return response;
}

RunSettings MakeSettings(const std::string& seed = "42") {
  return {"gsm8k", "model-a", "fp16", "", {{"--seed", seed}}};
}

std::string Line(const std::string& id, int64_t index) {
  return ResponseLine(MakeResponse(id, index)) + "\n";
}

class RunPartsTest : public ::testing::Test {
 protected:
  std::string Path(const std::string& name) const { return folder_.File(name); }
  bool HasParts() const { return FileExists(Path("parts")); }

  const TempFolder folder_;
};

TEST_F(RunPartsTest, TheLastShardOutMerges) {
  {
    ResponseLog first(folder_.path(), MakeSettings(), {0, 2});
    ResponseLog second(folder_.path(), MakeSettings(), {1, 2});
    first.Append(MakeResponse("b", 1));
    second.Append(MakeResponse("b", 0));
    second.Append(MakeResponse("a", 0));
    EXPECT_EQ(ReadFile(Path("parts/responses-1of2.jsonl")), Line("b", 1));
    EXPECT_FALSE(first.Has("a", 0));
    EXPECT_FALSE(first.Close());
    EXPECT_TRUE(HasParts());
    EXPECT_TRUE(first.Has("a", 0));
    EXPECT_TRUE(second.Close());
    EXPECT_EQ(second.responses().size(), 3u);
  }
  EXPECT_FALSE(HasParts());
  EXPECT_EQ(ReadFile(Path("responses.jsonl")), Line("a", 0) + Line("b", 0) + Line("b", 1));
  // A run of one process goes on with it.
  ResponseLog whole(folder_.path(), MakeSettings());
  EXPECT_EQ(whole.responses().size(), 3u);
  whole.Append(MakeResponse("a", 1));
  EXPECT_TRUE(whole.Close());
}

TEST_F(RunPartsTest, TheNextCommandMergesWhatKilledShardsLeft) {
  folder_.Write("run.json", RunSettingsJson(MakeSettings()));
  folder_.Write("responses.jsonl", Line("c", 0));
  std::filesystem::create_directory(Path("parts"));
  folder_.Write("parts/responses-2of3.jsonl", Line("b", 0) + Line("c", 0).substr(0, 20));
  folder_.Write("parts/responses-1of2.jsonl", Line("a", 0) + Line("b", 0));
  // Readers without a lock see all of it, once.
  EXPECT_EQ(ReadResponses(folder_.path()).size(), 3u);
  EXPECT_EQ(LoadResponses(folder_.path()).size(), 3u);
  {
    const ResponseLog shard(folder_.path(), MakeSettings(), {4, 5});
    EXPECT_EQ(shard.responses().size(), 3u);
  }
  EXPECT_TRUE(HasParts());
  const ResponseLog whole(folder_.path(), MakeSettings());
  EXPECT_FALSE(HasParts());
  EXPECT_EQ(ReadFile(Path("responses.jsonl")), Line("a", 0) + Line("b", 0) + Line("c", 0));
}

TEST_F(RunPartsTest, TokensOfUnfinishedResponsesGoOnInAnotherShard) {
  const UnfinishedResponses::Key key = {"a", 0};
  {
    ResponseLog log(folder_.path(), MakeSettings(), {0, 3});
    log.unfinished().Append(key, {1, 2, 3}, 1);
    log.unfinished().Append({"b", 0}, {9}, 1);
  }
  {
    ResponseLog log(folder_.path(), MakeSettings(), {1, 2});
    EXPECT_EQ(log.unfinished().begun().at(key).tokens, (std::vector<int32_t>{1, 2, 3}));
    log.unfinished().Append(key, {4}, 2);
    log.unfinished().Append(key, {5}, 3);
    log.unfinished().Compact();
    // Not the one of another file that it did not go on with.
    EXPECT_EQ(ReadFile(Path("parts/unfinished-2of2.jsonl")).find("\"b\""), std::string::npos);
  }
  {
    ResponseLog log(folder_.path(), MakeSettings(), {1, 2});
    EXPECT_EQ(log.unfinished().begun().at(key).tokens, (std::vector<int32_t>{1, 2, 3, 4, 5}));
    log.Append(MakeResponse("b", 0));
    EXPECT_TRUE(log.Close());
  }
  ResponseLog whole(folder_.path(), MakeSettings());
  ASSERT_EQ(whole.unfinished().begun().size(), 1u);
  EXPECT_EQ(whole.unfinished().begun().at(key).tokens, (std::vector<int32_t>{1, 2, 3, 4, 5}));
  EXPECT_EQ(whole.unfinished().begun().at(key).seconds, 3);
}

TEST_F(RunPartsTest, WhatShardsMayNotDo) {
  ResponseLog first(folder_.path(), MakeSettings(), {0, 2});
  const auto expect = [&](const RunSettings& settings, const Shard& shard,
                          std::initializer_list<std::string> parts) {
    try {
      ResponseLog(folder_.path(), settings, shard);
      FAIL();
    } catch (const Error& error) {
      for (const std::string& part : parts) {
        EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
      }
    }
  };
  expect(MakeSettings(), {0, 2}, {folder_.path(), "--shard 1/2", "another process"});
  expect(MakeSettings(), {}, {"another process"});
  expect(MakeSettings("7"), {1, 2}, {"run.json", "--seed", "'42'", "'7'"});
  // Another job with another N does the same response.
  ResponseLog other(folder_.path(), MakeSettings(), {2, 3});
  first.Append(MakeResponse("a", 0));
  other.Append(MakeResponse("a", 0, "5"));
  EXPECT_THROW(other.Close(), InvalidInput);
}

// A merge that is killed between its two steps leaves every line in both places.
TEST_F(RunPartsTest, AMergeThatWasKilledIsDoneAgain) {
  folder_.Write("run.json", RunSettingsJson(MakeSettings()));
  folder_.Write("responses.jsonl", Line("a", 0) + Line("b", 0));
  std::filesystem::create_directory(Path("parts"));
  folder_.Write("parts/responses-1of2.jsonl", Line("b", 0));
  folder_.Write("parts/responses-2of2.jsonl", Line("a", 0));
  MergeParts(folder_.path());
  EXPECT_EQ(ReadFile(Path("responses.jsonl")), Line("a", 0) + Line("b", 0));
  EXPECT_FALSE(HasParts());
  MergeParts(folder_.path());  // Nothing to do.
  EXPECT_EQ(ReadFile(Path("responses.jsonl")), Line("a", 0) + Line("b", 0));
}

}  // namespace
}  // namespace pmkvq
