// pmkvq analyze as its user runs it, and its pages in headless Chromium.
#include <gtest/gtest.h>

#include "pmkvq/io/json.h"
#include "support/open_page.h"
#include "support/run_program.h"

namespace pmkvq {
namespace {

using testing_support::ExpectDrawn;
using testing_support::Open;
using testing_support::OpenedPage;
using testing_support::ProgramResult;
using testing_support::RootTag;
using testing_support::RunProgram;
using testing_support::Slurp;
using testing_support::TempFolder;

const std::string kModel = PMKVQ_SOURCE_DIR "/models/longcot-10m";

// Runs one analysis in its small size, opens its page and returns its JSON.
JsonValue RunAnalysis(const std::string& name, const std::vector<std::string>& more = {}) {
  const TempFolder folder;
  std::vector<std::string> args = {"analyze",
                                   name,
                                   "--model",
                                   kModel,
                                   "--quick",
                                   "--html",
                                   folder.File("page.html"),
                                   "--json",
                                   folder.File("out.json")};
  args.insert(args.end(), more.begin(), more.end());
  const ProgramResult result = RunProgram(args);
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_NE(result.out.find("page: " + folder.File("page.html")), std::string::npos) << result.out;
  ExpectDrawn(folder.File("page.html"));
  const std::string page = Slurp(folder.File("page.html"));
  EXPECT_NE(page.find("analyze</span> <span>" + name + "</span> <span>--model"), std::string::npos);
  // The result, what it is worth, and where it comes from.
  EXPECT_NE(page.find("<p class=\"verdict\">"), std::string::npos);
  EXPECT_NE(page.find("Made with --quick"), std::string::npos);
  EXPECT_NE(page.find("<dt>model</dt><dd>" + kModel), std::string::npos);
  EXPECT_NE(page.find("<dt>made</dt><dd>20"), std::string::npos);
  EXPECT_NE(page.find("<dt>pmkvq</dt><dd>"), std::string::npos);
  return JsonValue::Parse(Slurp(folder.File("out.json")), "out.json");
}

TEST(Analyze, ErrorGrowth) {
  const JsonValue json = RunAnalysis("error-growth", {"--max-tokens", "260"});
  EXPECT_EQ(json.At("chain_tokens").AsInt(), 260);
  ASSERT_EQ(json.At("caches").size(), 2u);
  // Both inside the same bytes, which pm-kvq may not have needed for so short a chain.
  const JsonValue progressive = json.At("caches").At(size_t{1});
  EXPECT_EQ(progressive.At("kv").AsString(), "pm-kvq");
  EXPECT_EQ(progressive.At("budget_bytes").AsInt(),
            json.At("caches").At(size_t{0}).At("budget_bytes").AsInt());
  EXPECT_LE(progressive.At("peak_bytes").AsInt(), progressive.At("budget_bytes").AsInt());
  const JsonValue cache = json.At("caches").At(size_t{0});
  EXPECT_EQ(cache.At("kv").AsString(), "static-2");
  EXPECT_EQ(cache.At("kl").size(), 260u);
  EXPECT_GT(cache.At("mean_kl").AsDouble(), 0);
  EXPECT_GT(cache.At("mean_attention_kl").AsDouble(), 0);
}

TEST(Analyze, Transfer) {
  const JsonValue json = RunAnalysis("transfer", {"--max-level", "4"});
  EXPECT_EQ(json.At("tasks").size(), 5u);
  ASSERT_EQ(json.At("rows").size(), 8u);
  for (size_t row = 0; row < 8; ++row) {
    EXPECT_EQ(json.At("rows").At(row).At("on").size(), 5u);
    EXPECT_GT(json.At("rows").At(row).At("on").At("sort").At("kl").AsDouble(), 0);
  }
}

TEST(Analyze, Interpolation) {
  const JsonValue json = RunAnalysis("interpolation");
  ASSERT_EQ(json.At("points").size(), 4u);
  EXPECT_EQ(json.At("points").At(size_t{1}).At("effective_len").AsInt(), 4 * 128);
  // This model does not understand stretched text.
  EXPECT_GT(json.At("points").At(size_t{1}).At("calibration_loss").AsDouble(),
            json.At("points").At(size_t{0}).At("calibration_loss").AsDouble());
}

// The checks above would not see anything if these passed.
TEST(Analyze, ABrokenPageIsSeen) {
  const TempFolder folder;
  const ProgramResult result =
      RunProgram({"analyze", "error-growth", "--model", kModel, "--quick", "--max-tokens", "8",
                  "--kv", "static-2", "--html", folder.File("page.html")});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const std::string page = Slurp(folder.File("page.html"));
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string changed = page;
    changed.replace(changed.rfind(from), from.size(), to);
    return folder.Write("changed.html", changed);
  };
  const OpenedPage wrong_script = Open(with("new window.Chart(", "new window.Missing("));
  EXPECT_EQ(RootTag(wrong_script).find("data-rendered=\"true\""), std::string::npos);
  EXPECT_NE(RootTag(wrong_script).find("data-error=\""), std::string::npos);
  EXPECT_NE(wrong_script.log.find("CONSOLE"), std::string::npos) << wrong_script.log;
  const OpenedPage foreign_file =
      Open(with("</body>", "<script src=\"other.js\"></script></body>"));
  EXPECT_NE(RootTag(foreign_file).find("data-error=\""), std::string::npos);
  EXPECT_NE(foreign_file.log.find("CONSOLE"), std::string::npos) << foreign_file.log;
}

TEST(Analyze, WrongUsageIsSaidAtOnce) {
  const auto fails = [](std::vector<std::string> args, int code, const std::string& part) {
    args.insert(args.begin(), "analyze");
    const ProgramResult result = RunProgram(args);
    EXPECT_EQ(result.exit_code, code) << result.err;
    EXPECT_NE(result.err.find(part), std::string::npos) << result.err;
    EXPECT_EQ(result.out, "");
  };
  fails({"error-growth", "--model", kModel}, 2, "--json or --html");
  fails({"error-growth", "--model", kModel, "--json", "-", "--kv", "nothing"}, 2, "nothing");
  fails({"error-growth", "--model", kModel, "--json", "-", "--problem", "x-1"}, 1, "--problem");
  fails({"transfer", "--model", kModel, "--json", "-", "--task", "x"}, 2, "NAME=FILE");
  fails({"interpolation", "--model", kModel, "--json", "-", "--factors", "0"}, 2, "--factors");
  fails({"interpolation", "--model", kModel, "--json", "-", "--seq-len", "9000"}, 1, "8192");
}

}  // namespace
}  // namespace pmkvq
