#include "pmkvq/research/compare/compare_files.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <set>

#include "pmkvq/research/compare/compare_fit.h"
#include "pmkvq/research/compare/compare_report.h"
#include "pmkvq/research/methods/registry.h"
#include "support/expect_error.h"
#include "support/temp_folder.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;
using testing_support::TempFolder;

TEST(RunFolder, IsReadableAndNeverTheSame) {
  EXPECT_EQ(RunFolder("fp16", 0), "no-budget/fp16");
  EXPECT_EQ(RunFolder("pm-kvq:policy=oldest-first", 4992 * 1024),
            "4992KiB/pm-kvq~policy=oldest-first");
  EXPECT_EQ(RunFolder("a", 1025), "1025B/a");
  EXPECT_EQ(RunFolder("m:plan=../a b", 1024), "1KiB/m~plan=..%2Fa%20b");
  std::set<std::string> names;
  for (const char* spec : {"m:a", "m~a", "m%a", "m%3Aa", "m/a", "m%2Fa"}) {
    names.insert(RunFolder(spec, 0));
  }
  EXPECT_EQ(names.size(), 6u);
}

Response MakeResponse(const std::string& id, bool correct) {
  Response response;
  response.id = id;
  response.level = 3;
  response.correct = correct;
  response.finish_reason = "stop";
  response.output_tokens = 10;
  response.peak_bytes = 2048;
  response.decode_seconds = 0.5;
  return response;
}

// A folder as eval makes it, with a last line that is not finished.
void WriteRun(const TempFolder& folder, const std::string& name, const std::string& spec,
              const std::string& budget, const std::string& seed) {
  std::filesystem::create_directories(folder.File(name));
  RunSettings settings;
  settings.benchmark = "longcot";
  settings.model_identity = "model-a";
  settings.kv = spec;
  settings.options = {{"--kv-budget", budget}, {"--max-len", "4096"}, {"--seed", seed}};
  folder.Write(name + "/run.json", RunSettingsJson(settings));
  folder.Write(name + "/responses.jsonl", ResponseLine(MakeResponse("p0", true)) + "\n" +
                                              ResponseLine(MakeResponse("p1", spec == "fp16")) +
                                              "\n{\"id\":\"p2");
}

TEST(LoadRuns, FoldersInsideAFolderMakeOneTablePerBudget) {
  const TempFolder folder;
  WriteRun(folder, "no-budget/fp16", "fp16", "0", "42");
  WriteRun(folder, "2KiB/pm-kvq", "pm-kvq", "2048", "42");
  WriteRun(folder, "2KiB/kivi", "kivi", "2048", "42");
  WriteRun(folder, "4KiB/pm-kvq", "pm-kvq", "4096", "42");
  const Comparison comparison = CompareSavedRuns(LoadRuns({folder.path()}), "");
  EXPECT_EQ(comparison.benchmark, "longcot");
  EXPECT_EQ(comparison.baseline, "fp16");
  EXPECT_EQ(comparison.num_problems, 2);
  EXPECT_EQ(comparison.num_responses, 1);
  EXPECT_EQ(comparison.max_len, 4096);
  ASSERT_EQ(comparison.tables.size(), 2u);
  EXPECT_EQ(comparison.tables[0].budget_bytes, 2048);
  ASSERT_EQ(comparison.tables[0].methods.size(), 3u);
  EXPECT_EQ(comparison.tables[0].methods[0].method, "fp16");
  EXPECT_EQ(comparison.tables[0].methods[1].method, "kivi");
  EXPECT_TRUE(comparison.tables[0].methods[1].is_simulated);
  EXPECT_EQ(comparison.tables[0].methods[1].total.baseline->only_other, 1);
  EXPECT_EQ(comparison.tables[1].methods[1].peak_bytes, 2048);
  EXPECT_EQ(comparison.tables[1].methods[1].levels.at(3).num_correct, 1);
}

TEST(LoadRuns, SummariesOfEval) {
  const TempFolder folder;
  const auto write = [&](const std::string& name, const std::string& spec,
                         const std::string& correct, const std::string& more = "") {
    return folder.Write(
        name, R"json({"benchmark":"longcot","kv":")json" + spec +
                  R"json(","columns":{"id":["p0","p0"],"response":[0,1],"correct":)json" + correct +
                  R"json(,"output_tokens":[5,7],"finish_reason":["stop","length"],)json"
                  R"json("peak_bytes":[100,300])json" +
                  more + "}}");
  };
  const std::string fp16 = write("a.json", "fp16", "[true,true]");
  const std::string kivi = write("b.json", "kivi:bits=4", "[true,false]");
  const Comparison comparison = CompareSavedRuns(LoadRuns({kivi, fp16}), "");
  EXPECT_EQ(comparison.num_problems, 1);
  EXPECT_EQ(comparison.num_responses, 2);
  const MethodResult& row = comparison.tables.at(0).methods.at(1);
  EXPECT_EQ(row.method, "kivi:bits=4");
  EXPECT_EQ(row.total.num_correct, 1);
  EXPECT_EQ(row.peak_bytes, 300);
  EXPECT_EQ(row.num_cut_by_length, 1);
  EXPECT_EQ(row.total.baseline->only_other, 1);
  EXPECT_EQ(row.kept_share, 1.0);
  EXPECT_EQ(FormatComparisonText(comparison, false).find("kept"), std::string::npos);

  const std::string evicting =
      write("d.json", "window", "[true,false]", R"json(,"kept_share":[0.5,0.25])json");
  const Comparison with = CompareSavedRuns(LoadRuns({evicting, fp16}), "");
  EXPECT_DOUBLE_EQ(with.tables.at(0).methods.at(1).kept_share, 0.375);
  EXPECT_EQ(with.tables.at(0).methods.at(0).kept_share, 1.0);
  EXPECT_NE(FormatComparisonText(with, false).find("37.5"), std::string::npos);
  EXPECT_NE(FormatComparisonJson(with).find("\"kept_share\":0.375"), std::string::npos);

  const std::string bad = write("c.json", "kivi", "[true]");
  ExpectError<InvalidInput>([&] { LoadRuns({bad}); },
                            {"c.json", "columns.correct", "each of the 2 ids"});
}

TEST(LoadRuns, NamesWhatIsMissingOrDiffers) {
  const TempFolder folder;
  WriteRun(folder, "kivi", "kivi", "2048", "42");
  ExpectError<InvalidInput>([&] { CompareSavedRuns(LoadRuns({folder.path()}), ""); },
                            {"--from", "none of the 1 runs is one of fp16"});
  WriteRun(folder, "fp16", "fp16", "0", "43");
  ExpectError<InvalidInput>([&] { CompareSavedRuns(LoadRuns({folder.path()}), ""); },
                            {"kivi", "--seed: found '42', but '43' in", "fp16"});
  WriteRun(folder, "fp16", "fp16", "0", "42");
  ExpectError<InvalidInput>([&] { CompareSavedRuns(LoadRuns({folder.path()}), "rtn"); },
                            {"--against", "'rtn'"});
  std::filesystem::create_directory(folder.File("empty"));
  ExpectError<InvalidInput>([&] { LoadRuns({folder.File("empty")}); }, {"empty", "no run.json"});
  ExpectError<IoError>([&] { LoadRuns({folder.File("nothing")}); }, {"nothing", "no such file"});
}

TEST(CompareSavedRuns, EqualSpecsAreToldApartByTheirPaths) {
  const TempFolder folder;
  WriteRun(folder, "fp16", "fp16", "0", "42");
  WriteRun(folder, "x", "pm-kvq", "2048", "42");
  WriteRun(folder, "y", "pm-kvq", "2048", "42");
  const Comparison comparison = CompareSavedRuns(LoadRuns({folder.path()}), "");
  EXPECT_EQ(comparison.tables[0].methods[1].method, "pm-kvq @ " + folder.File("x"));
  EXPECT_EQ(comparison.tables[0].methods[2].method, "pm-kvq @ " + folder.File("y"));
}

// --- Budgets ----------------------------------------------------------------------------------

constexpr UniformKvGeometry kGeometry = {2, 2, 1, 16};  // C = 16

KvRequirements Requirements() {
  KvRequirements requirements;
  requirements.geometry = kGeometry;
  requirements.max_sequences = 16;
  requirements.max_len = 512;
  return requirements;
}

BudgetFit Fit(const std::string& spec, int64_t budget_bytes) {
  KvOptions options;
  options.spec = spec;
  options.budget_bytes = budget_bytes;
  return FitBudget(options, Requirements(), 512);
}

// rtn at 4 bits: 2 * n * C * (4 / 8 + 2 * 2 / 16) = 24 bytes a token and block.
TEST(FitBudget, SimulatedMethodByHand) {
  constexpr int64_t kNeeds = 2 * 512 * 24;
  EXPECT_TRUE(Fit("rtn", kNeeds).holds);
  EXPECT_EQ(Fit("rtn", kNeeds).needed_bytes, 0);
  for (const int64_t budget : {kNeeds - 2, int64_t{48}}) {
    EXPECT_FALSE(Fit("rtn", budget).holds);
    EXPECT_TRUE(Fit("rtn", budget).starts);
    EXPECT_EQ(Fit("rtn", budget).needed_bytes, kNeeds);
  }
  EXPECT_FALSE(Fit("rtn", 47).starts);
  EXPECT_EQ(Fit("rtn", 1).needed_bytes, kNeeds);
}

// A block of 512 tokens: sink 2 * 16 * 2 = 64 bytes, open pages 2 * 128 * 16 * 2 = 8,192, and
// (512 - 2) / 128 = 3 closed pairs at 2 bits of 2 * 128 * 16 * (2 / 8 + 2 * 2 / 16) = 2,048 bytes.
TEST(FitBudget, PackedMethodByHand) {
  constexpr int64_t kNeeds = 2 * (64 + 8192 + 3 * 2048);
  EXPECT_TRUE(Fit("pm-kvq", kNeeds).holds);
  EXPECT_FALSE(Fit("pm-kvq", kNeeds - 1).holds);
  EXPECT_EQ(Fit("pm-kvq", kNeeds - 1).needed_bytes, kNeeds);
  // Its first page does not fit: no cache can be made, but what it needs is known.
  EXPECT_FALSE(Fit("pm-kvq", 1000).starts);
  EXPECT_EQ(Fit("pm-kvq", 1000).needed_bytes, kNeeds);
  // fp16 in the same bytes: closed pairs of 8,192.
  EXPECT_EQ(Fit("fp16", kNeeds).needed_bytes, 2 * (64 + 8192 + 3 * 8192));
}

TEST(FitBudget, RefusesWrongSpecs) {
  ExpectError<InvalidInput>([] { Fit("nothing", 1000); }, {"--kv", "unknown method 'nothing'"});
  ExpectError<InvalidInput>([] { Fit("pm-kvq:bits=4", 100000); }, {"--kv-budget", "bits"});
}

}  // namespace
}  // namespace pmkvq
