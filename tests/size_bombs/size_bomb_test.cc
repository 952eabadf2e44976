// Files made to be expensive, for the parsers above io/ and text/ (which have theirs beside them).
#include "support/size_bomb.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "pmkvq/io/file.h"
#include "pmkvq/kv/plan.h"
#include "pmkvq/research/benchmarks/benchmark.h"
#include "pmkvq/research/calib/sensitivity_file.h"
#include "pmkvq/research/eval/evaluation.h"
#include "pmkvq/research/eval/scored_responses.h"
#include "support/temp_folder.h"

namespace pmkvq {
namespace {

using testing_support::ExpectBounded;
using testing_support::Members;
using testing_support::Repeat;
using testing_support::TempFolder;

constexpr size_t kMiB = size_t{1} << 20;
constexpr size_t kSizes[] = {3 * kMiB, 9 * kMiB, 20 * kMiB};

std::string Lines(const std::string& line, size_t bytes) {
  std::string text;
  while (text.size() < bytes) text += line + "\n";
  return text;
}

// The shipped plan with the list `key` replaced by a long one.
std::string PlanWith(const std::string& key, const std::string& list) {
  std::string text = ReadFile(PMKVQ_SOURCE_DIR "/models/longcot-10m/plan.json");
  const size_t at = text.find('[', text.find("\"" + key + "\""));
  const size_t end = text.find(']', at);
  return text.replace(at, end + 1 - at, "[" + list + "]");
}

TEST(SizeBombs, Plan) {
  const TempFolder folder;
  for (const size_t bytes : kSizes) {
    for (const char* key : {"alpha", "budget_bytes", "k_bits"}) {
      const std::string path = folder.Write("plan.json", PlanWith(key, Repeat("0", bytes)));
      ExpectBounded(std::string("plan: ") + key, std::filesystem::file_size(path), 0,
                    [&] { LoadPlan(path); });
    }
    const std::string path = folder.Write("plan.json", "[" + Repeat("[0]", bytes) + "]");
    ExpectBounded("plan: arrays", bytes, 0, [&] { LoadPlan(path); });
  }
}

TEST(SizeBombs, Sensitivity) {
  const TempFolder folder;
  for (const size_t bytes : kSizes) {
    const std::string list = "[" + Repeat("0", bytes / 2) + "]";
    const std::string path =
        folder.Write("s.json", R"({"bits":[2],"k":{"2":)" + list + R"(},"v":{"2":)" + list + "}}");
    ExpectBounded("sensitivity", std::filesystem::file_size(path), 0,
                  [&] { LoadSensitivity(path); });
  }
}

TEST(SizeBombs, Responses) {
  const TempFolder folder;
  std::string different;
  for (size_t i = 0; different.size() < 3 * kMiB; ++i) {
    // As this program writes them: a response in memory takes about 600 bytes (io/limits.h).
    Response response;
    response.id = fmt::format("{}", i);
    different += ResponseLine(response) + "\n";
  }
  for (const size_t bytes : kSizes) {
    for (const std::string& text :
         {Lines(R"({"id":"a","answer":"","text":""})", bytes), different,
          R"({"id":"a","answer":"","text":")" + std::string(bytes, 'x') + "\"}\n",
          "[" + Repeat("[0]", bytes) + "]\n"}) {
      const std::string path = folder.Write("r.jsonl", text);
      ExpectBounded("responses", text.size(), 0, [&] { LoadResponses(path); });
    }
    const std::string cases = folder.Write("c.jsonl", Lines(R"({"response":"","gold":""})", bytes));
    ExpectBounded("judge cases", std::filesystem::file_size(cases), 0,
                  [&] { LoadJudgeCases(cases); });
  }
}

TEST(SizeBombs, RunSettings) {
  for (const size_t bytes : kSizes) {
    const std::string text =
        R"({"format":"pmkvq-eval","version":1,"benchmark":"","model":"","kv":"","plan":"","options":{)" +
        Members(R"("")", bytes) + "}}";
    ExpectBounded("run.json", text.size(), 0, [&] { ParseRunSettings(text, "run.json"); });
  }
}

TEST(SizeBombs, Benchmarks) {
  const TempFolder folder;
  for (const size_t bytes : kSizes) {
    folder.Write("test.jsonl", Lines(R"({"question":"a","answer":"#### 1"})", bytes));
    ExpectBounded("gsm8k", std::filesystem::file_size(folder.File("test.jsonl")), 0,
                  [&] { LoadBenchmark("gsm8k", folder.path()); });
    const std::string path =
        folder.Write("p.jsonl", Lines(R"({"problem":"a","answer":""})", bytes));
    ExpectBounded("jsonl", std::filesystem::file_size(path), 0,
                  [&] { LoadBenchmark("jsonl", path); });
    folder.Write("test.jsonl", "[" + Repeat("[0]", bytes) + "]");
    ExpectBounded("livecodebench", std::filesystem::file_size(folder.File("test.jsonl")), 0,
                  [&] { LoadBenchmark("livecodebench", folder.path()); });
  }
}

}  // namespace
}  // namespace pmkvq
