// pmkvq analyze as its user runs it, and its pages in headless Chromium.
#include <gtest/gtest.h>

#include <cstdlib>

#include "pmkvq/io/json.h"
#include "support/run_program.h"

namespace pmkvq {
namespace {

using testing_support::ProgramResult;
using testing_support::RunProgram;
using testing_support::Slurp;
using testing_support::TempFolder;

const std::string kModel = PMKVQ_SOURCE_DIR "/models/longcot-10m";

// A page as the browser has it after its scripts ran, and what it said meanwhile.
struct OpenedPage {
  std::string dom;
  std::string log;
};

OpenedPage Open(const std::string& path) {
  const TempFolder folder;
  const std::string command =
      "timeout 90 chromium --headless --no-sandbox --disable-gpu --no-first-run "
      "--disable-background-networking --disable-component-update --enable-logging=stderr --v=0 "
      "--user-data-dir=" +
      folder.File("profile") + " --dump-dom file://" + path + " >" + folder.File("dom") + " 2>" +
      folder.File("log") + " </dev/null";
  const int status = std::system(command.c_str());
  EXPECT_EQ(status, 0) << "chromium (scripts/install-deps.sh test) failed: "
                       << Slurp(folder.File("log"));
  return {Slurp(folder.File("dom")), Slurp(folder.File("log"))};
}

// The opening <html ...> tag, where the page's scripts leave their marks.
std::string RootTag(const OpenedPage& page) {
  const size_t begin = page.dom.find("<html");
  return page.dom.substr(begin, page.dom.find('>', begin) - begin);
}

void ExpectDrawn(const std::string& path) {
  const OpenedPage page = Open(path);
  EXPECT_NE(RootTag(page).find("data-rendered=\"true\""), std::string::npos) << RootTag(page);
  EXPECT_EQ(RootTag(page).find("data-error"), std::string::npos) << RootTag(page);
  // Scripts that fail and loads that are refused show up here.
  EXPECT_EQ(page.log.find("CONSOLE"), std::string::npos) << page.log;
}

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
  EXPECT_NE(page.find("analyze " + name + " --model"), std::string::npos);
  return JsonValue::Parse(Slurp(folder.File("out.json")), "out.json");
}

TEST(Analyze, ErrorGrowth) {
  const JsonValue json = RunAnalysis("error-growth", {"--max-tokens", "260"});
  EXPECT_EQ(json.At("chain_tokens").AsInt(), 260);
  ASSERT_EQ(json.At("caches").size(), 2u);
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
  fails({}, 2, "subcommand");
  fails({"error-growth", "--model", kModel}, 2, "--json or --html");
  fails({"error-growth", "--model", kModel, "--json", "-", "--kv", "nothing"}, 1, "nothing");
  fails({"error-growth", "--model", kModel, "--json", "-", "--problem", "x-1"}, 1, "--problem");
  fails({"transfer", "--model", kModel, "--json", "-", "--task", "x"}, 1, "NAME=FILE");
  fails({"interpolation", "--model", kModel, "--json", "-", "--factors", "0"}, 1, "--factors");
  fails({"interpolation", "--model", kModel, "--json", "-", "--seq-len", "9000"}, 1, "8192");
}

}  // namespace
}  // namespace pmkvq
