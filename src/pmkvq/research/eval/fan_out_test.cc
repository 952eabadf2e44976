#include "pmkvq/research/eval/fan_out.h"

#include <gtest/gtest.h>

#include <map>
#include <mutex>
#include <set>

#include "pmkvq/base/error.h"
#include "pmkvq/comm/thread_communicator.h"
#include "pmkvq/io/file.h"
#include "support/engine_fixture.h"
#include "support/temp_folder.h"

namespace pmkvq {
namespace {

using testing_support::ByteTokenizer;
using testing_support::LoadTinyLlama;
using testing_support::TempFolder;

std::vector<ProblemRow> MakeProblems(int64_t count) {
  std::vector<ProblemRow> problems;
  for (int64_t i = 0; i < count; ++i) {
    ProblemRow row;
    row.id = "p " + std::to_string(i) + "\n";  // No character of an id is special.
    row.problem = "problem number " + std::to_string(i * 7919);
    row.answer = "1";
    problems.push_back(row);
  }
  return problems;
}

class FanOutTest : public ::testing::Test {
 protected:
  EvaluationOptions Options() const {
    EvaluationOptions options;
    options.engine.max_sequences = 4;
    options.engine.max_len = 128;
    options.engine.num_threads = 1;
    options.sampling.temperature = 0.6;
    options.num_responses = 2;
    options.max_tokens = 12;
    return options;
  }
  RunSettings Settings() const {
    return MakeRunSettings({"jsonl", Grading::kAnswer, problems_}, *model_, Options(), "");
  }
  std::map<std::pair<std::string, int64_t>, std::string> Expected() const {
    ResponseLog log;
    Evaluate(model_, tokenizer_, Grading::kAnswer, problems_, Options(), log, nullptr, {}, nullptr);
    return Texts(log);
  }
  static std::map<std::pair<std::string, int64_t>, std::string> Texts(const ResponseLog& log) {
    std::map<std::pair<std::string, int64_t>, std::string> texts;
    for (const Response& response : log.responses()) {
      EXPECT_TRUE(texts.emplace(std::pair{response.id, response.response}, response.text).second);
    }
    return texts;
  }
  // Runs the ranks with rank r's folder folders[r], and returns what rank 0 has at the end.
  std::map<std::pair<std::string, int64_t>, std::string> Run(
      const std::vector<std::string>& folders) const {
    std::map<std::pair<std::string, int64_t>, std::string> texts;
    RunRanks(static_cast<int>(folders.size()), [&](Communicator& ranks) {
      SharedRun run(folders[static_cast<size_t>(ranks.rank())], Settings(), {}, &ranks);
      const auto before = std::ssize(run.log().responses());
      const double seconds = Evaluate(model_, tokenizer_, Grading::kAnswer, problems_,
                                      run.PartOf(Options()), run.log(), nullptr, {}, nullptr);
      const auto made = std::ssize(run.log().responses()) - before;
      EXPECT_LE(made, (10 + std::ssize(folders) - 1) / std::ssize(folders));
      const FanOutFigures figures = run.Finish(12 * made, seconds);
      if (ranks.rank() != 0) return;
      EXPECT_EQ(figures.num_ranks, std::ssize(folders));
      EXPECT_EQ(figures.num_tokens, 12 * figures.num_responses);
      EXPECT_GT(figures.busy_share, 0);
      EXPECT_LE(figures.busy_share, 1);
      texts = Texts(run.log());
    });
    return texts;
  }

  std::shared_ptr<const Model> model_ = LoadTinyLlama();
  std::shared_ptr<const Tokenizer> tokenizer_ = ByteTokenizer();
  std::vector<ProblemRow> problems_ = MakeProblems(5);
};

TEST_F(FanOutTest, RankZeroHasTheResponsesOfOneProcess) {
  const auto expected = Expected();
  ASSERT_EQ(expected.size(), 10u);
  for (const size_t num_ranks : {1, 2, 3}) {
    EXPECT_EQ(Run(std::vector<std::string>(num_ranks)), expected) << "in memory";
    const TempFolder folder;
    EXPECT_EQ(Run(std::vector<std::string>(num_ranks, folder.path())), expected);
    EXPECT_FALSE(FileExists(folder.File("parts")));
    EXPECT_EQ(Texts(ResponseLog(folder.path(), Settings())), expected);
  }
}

TEST_F(FanOutTest, HostsMayHaveFoldersOfTheirOwn) {
  const auto expected = Expected();
  const TempFolder first, second;
  EXPECT_EQ(Run({first.path(), second.path()}), expected);
  EXPECT_EQ(Texts(ResponseLog(first.path(), Settings())), expected);
}

TEST_F(FanOutTest, AJobGoesOnEvenlyWithWhatAShardLeft) {
  const auto expected = Expected();
  const TempFolder folder;
  {
    ResponseLog log(folder.path(), Settings(), {0, 2});
    EvaluationOptions options = Options();
    options.shard = {0, 2};
    Evaluate(model_, tokenizer_, Grading::kAnswer, problems_, options, log, nullptr, {}, nullptr);
  }
  RunRanks(2, [&](Communicator& ranks) {
    const SharedRun run(folder.path(), Settings(), {}, &ranks);
    EXPECT_EQ(run.responses_before().size(), 5u);
    const EvaluationOptions mine = run.PartOf(Options());
    EXPECT_EQ(NumPending(*tokenizer_, problems_, mine, ResponseLog()), ranks.rank() == 0 ? 3 : 2);
    ranks.Barrier();
  });
  EXPECT_EQ(Run({folder.path(), folder.path()}), expected);
}

TEST_F(FanOutTest, AFolderOfOtherSettingsStopsAllRanks) {
  const TempFolder folder;
  { const ResponseLog made(folder.path(), Settings()); }
  RunSettings other = Settings();
  other.kv = "static-2";
  RunRanks(3, [&](Communicator& ranks) {
    try {
      const SharedRun run(folder.path(), other, {}, &ranks);
      ADD_FAILURE();
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("--kv"), std::string::npos) << error.what();
    }
    ranks.Barrier();
  });
}

}  // namespace
}  // namespace pmkvq
