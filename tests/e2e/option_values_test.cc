// Values of options: every option of every command is asked for numbers, sizes, choices and empty
// values that are wrong, and says what it found and what it expected.
#include <gtest/gtest.h>

#include "pmkvq/io/json.h"
#include "support/command_help.h"

namespace pmkvq {
namespace {

using testing_support::AllCommands;
using testing_support::Args;
using testing_support::ExpectOneLineError;
using testing_support::HelpOption;
using testing_support::OptionsOf;
using testing_support::Plus;
using testing_support::ProgramResult;
using testing_support::RunProgram;
using testing_support::TempFolder;

const std::string kTiny = PMKVQ_SOURCE_DIR "/tests/golden/tiny-llama";
const Args kRun = {"run", "--model", kTiny, "--prompt-ids", "1,2", "--ignore-eos", "--json", "-"};

bool IsWholeNumber(const HelpOption& option) {
  return option.value == "INT" || option.value == "UINT";
}

// Calls `visit` for every option of every command that `wanted` takes, and counts them.
template <class Wanted, class Visit>
int ForEachOption(const Wanted& wanted, const Visit& visit) {
  int count = 0;
  for (const Args& command : AllCommands()) {
    for (const HelpOption& option : OptionsOf(command)) {
      if (!wanted(option)) continue;
      ++count;
      visit(command, option);
    }
  }
  return count;
}

TEST(OptionValues, WholeNumbersAreDecimalEverywhere) {
  const Args wrong = {"four", "1e3",      "0x10", "1.5", "99999999999999999999999",
                      "+1",   " 5",       "5 ",   "1,,", "--1",
                      "5k",   "\xc2\xb2", "NaN"};
  size_t next = 0;
  const int count =
      ForEachOption(IsWholeNumber, [&](const Args& command, const HelpOption& option) {
        for (int i = 0; i < 2; ++i) {
          const std::string& value = wrong[next++ % wrong.size()];
          ExpectOneLineError(RunProgram(Plus(command, {option.name, value})), 2,
                             {option.name, "found '" + value + "'", "expected a whole number"});
        }
      });
  EXPECT_GT(count, 80);
}

TEST(OptionValues, SignsOfUnsignedNumbersAreRefused) {
  const auto is_unsigned = [](const HelpOption& option) {
    return option.value == "UINT" || option.name == "--max-tokens" || option.name == "--threads" ||
           option.name == "--chunk" || option.name == "--n-samples" || option.name == "--top-k";
  };
  const int count = ForEachOption(is_unsigned, [&](const Args& command, const HelpOption& option) {
    ExpectOneLineError(RunProgram(Plus(command, {option.name, "-5"})), 2,
                       {option.name, "found '-5'", "a whole number from "});
  });
  EXPECT_GT(count, 20);
}

TEST(OptionValues, DecimalsAreFiniteEverywhere) {
  const Args wrong = {"nan", "inf", "-inf", "1e999", "warm", "0x1p3", "1,5", "+1", " 1", "1e"};
  size_t next = 0;
  const auto is_float = [](const HelpOption& option) { return option.value == "FLOAT"; };
  const int count = ForEachOption(is_float, [&](const Args& command, const HelpOption& option) {
    for (int i = 0; i < 4; ++i) {
      const std::string& value = wrong[next++ % wrong.size()];
      ExpectOneLineError(RunProgram(Plus(command, {option.name, value})), 2,
                         {option.name, "found '" + value + "'", "expected a number"});
    }
  });
  EXPECT_GT(count, 7);
}

TEST(OptionValues, ListsOfNumbers) {
  for (const auto& [command, option] : std::vector<std::pair<Args, std::string>>{
           {{"run", "--model", kTiny}, "--prompt-ids"},
           {{"logits", "--model", kTiny, "--out", "/dev/null"}, "--prompt-ids"},
           {{"bench", "attention"}, "--depth"},
           {{"bench", "decode"}, "--batch"},
           {{"bench", "decode"}, "--bits"}}) {
    for (const char* value :
         {"1,x", "1,,2", ",1", "1,", "1,-2", "1,99999999999999999999", "1.5", "0x1", "1;2"}) {
      ExpectOneLineError(RunProgram(Plus(command, {option, value})), 2, {option, "expected"});
    }
  }
  const TempFolder folder;
  const std::string sensitivity = folder.Write(
      "s.json", R"({"bits":[4,2],"k":{"4":[1,1],"2":[2,2]},"v":{"4":[1,1],"2":[2,2]}})");
  for (const char* value : {"4,3", "4,x", "4,,2", "-4", "4,", "32"}) {
    ExpectOneLineError(
        RunProgram({"allocate", "--kv-dim", "128", "--reference-accounting", "--sensitivity",
                    sensitivity, "--memory-budget", "1", "--fbit-choices", value}),
        2, {"--fbit-choices", "expected"});
  }
}

TEST(OptionValues, LeadingZerosMeanNothing) {
  const ProgramResult result = RunProgram(Plus(kRun, {"--max-tokens", "010"}));
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const JsonValue json = JsonValue::Parse(result.out, "stdout");
  EXPECT_EQ(json.At("sequences").At(size_t{0}).At("output_ids").size(), 10u);
}

TEST(OptionValues, SeedsAreTakenWhole) {
  const auto ids = [](const std::string& seed) {
    const ProgramResult result = RunProgram(Plus(kRun, {"--max-tokens", "30", "--seed", seed}));
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return JsonValue::Parse(result.out, "stdout")
        .At("sequences")
        .At(size_t{0})
        .At("output_ids")
        .AsIntArray();
  };
  EXPECT_EQ(ids("18446744073709551615"), ids("018446744073709551615"));
  EXPECT_NE(ids("18446744073709551615"), ids("18446744073709551614"));
  ExpectOneLineError(RunProgram(Plus(kRun, {"--seed", "18446744073709551616"})), 2,
                     {"--seed", "from 0 to 18446744073709551615"});
}

TEST(OptionValues, ALowerBoundIsSaidWithoutAnUpperOne) {
  ExpectOneLineError(RunProgram({"run", "--top-k", "-1"}), 2,
                     {"--top-k: found '-1', expected a whole number from 0;"});
  ExpectOneLineError(RunProgram({"run", "--threads", "1000000"}), 2,
                     {"--threads", "from 0 to 1024"});
  ExpectOneLineError(RunProgram({"run", "--max-tokens", "-5"}), 2,
                     {"--max-tokens: found '-5', expected a whole number from 0;"});
  ExpectOneLineError(RunProgram({"run", "--max-tokens", "2199023255552"}), 2,
                     {"--max-tokens: found '2199023255552'", "at most 1099511627776"});
}

TEST(Sizes, AFractionOfABytePointsAtMiB) {
  ExpectOneLineError(RunProgram({"run", "--model", kTiny, "--kv-budget", "4.75", "-p", "hi"}), 2,
                     {"--kv-budget", "found '4.75'", "did you mean 4.75MiB?"});
}

TEST(Sizes, AUnitThatStandsApartIsSaid) {
  ExpectOneLineError(RunProgram({"run", "--model", kTiny, "--kv-budget", "6", "MiB", "-p", "hi"}),
                     2, {"--kv-budget: found '6' and 'MiB' apart: did you mean 6MiB?"});
  ExpectOneLineError(RunProgram({"allocate", "--memory-budget", "1.5", "G"}), 2,
                     {"--memory-budget", "did you mean 1.5G?"});
  ExpectOneLineError(RunProgram({"run", "--model", kTiny, "--kv-budget", "1e1", "-p", "hi"}), 2,
                     {"--kv-budget", "found '1e1', which is 10 bytes: did you mean 1e1MiB?"});
}

TEST(OptionValues, NamesThatAreEquallyNearAreAllSaid) {
  ExpectOneLineError(RunProgram({"run", "--model", kTiny, "--kv", "static-3", "-p", "hi"}), 2,
                     {"did you mean static-8, static-4 or static-2?"});
  ExpectOneLineError(RunProgram({"methods", "kiwi"}), 2,
                     {"unknown method 'kiwi': did you mean kivi?", "pm-kvq"});
  ExpectOneLineError(RunProgram({"help", "foo"}), 2, {"pmkvq: there is no command 'foo'"});
}

TEST(OptionValues, EmptyValuesAreRefusedEverywhere) {
  const auto has_value = [](const HelpOption& option) {
    return !option.value.empty() && option.name != "--json";
  };
  bool assigned = false;
  const int count = ForEachOption(has_value, [&](const Args& command, const HelpOption& option) {
    assigned = !assigned;
    const Args more = assigned ? Args{option.name + "="} : Args{option.name, ""};
    ExpectOneLineError(RunProgram(Plus(command, more)), 2, {option.name, ", expected "});
  });
  EXPECT_GT(count, 150);
  ExpectOneLineError(RunProgram({"run", "--model", kTiny, ""}), 2, {"empty value"});
}

TEST(OptionValues, AnOptionIsNoValue) {
  ExpectOneLineError(RunProgram({"run", "--model", kTiny, "--kv-budget", "--temperature", "0"}), 2,
                     {"--kv-budget", "'--temperature'", "is an option"});
  ExpectOneLineError(RunProgram({"run", "--model"}), 2, {"--model", "expected a value"});
}

TEST(OptionValues, ChoicesNameTheNearest) {
  const auto is_choice = [](const HelpOption& option) { return option.value.starts_with('{'); };
  const int count = ForEachOption(is_choice, [](const Args& command, const HelpOption& option) {
    std::string first = option.value.substr(1, option.value.find_first_of(",}") - 1);
    const ProgramResult wrong = RunProgram(Plus(command, {option.name, "zzzzzz"}));
    ExpectOneLineError(wrong, 2, {option.name, "found 'zzzzzz'", "expected one of", first});
    if (first.size() < 5) return;
    std::string misspelt = first;
    std::swap(misspelt[2], misspelt[3]);
    ExpectOneLineError(RunProgram(Plus(command, {option.name, misspelt})), 2,
                       {option.name, "did you mean " + first + "?"});
  });
  EXPECT_GT(count, 20);
}

TEST(OptionValues, MethodsNameTheNearest) {
  for (const auto& [found, expected] :
       std::vector<std::pair<std::string, std::string>>{{"pmkvq", "pm-kvq"},
                                                        {"pm_kvq:bits=4", "pm-kvq"},
                                                        {"PM-KVQ", "pm-kvq"},
                                                        {"static4", "static-4"},
                                                        {"kiwi", "kivi"},
                                                        {"kvtunner", "kvtuner"}}) {
    for (const Args& command : {Args{"run"}, Args{"eval"}, Args{"compare"}, Args{"perplexity"},
                                Args{"logits"}, Args{"inspect"}, Args{"calibrate"}}) {
      ExpectOneLineError(RunProgram(Plus(command, {"--kv", found})), 2,
                         {"--kv", "did you mean " + expected + "?"});
    }
  }
  ExpectOneLineError(RunProgram({"eval", "--benchmark", "gsm8"}), 2, {"did you mean gsm8k?"});
}

TEST(OptionValues, AWrongSpecIsWrongUsage) {
  for (const char* spec :
       {"pm-kvq:polcy=oldest-first", "kivi:bit=2", "kivi:bits=9", "pm-kvq:bits=3",
        "static-4:rotate=keys", "rtn:bits=x", "pm-kvq:", "kivi:bits="}) {
    ExpectOneLineError(RunProgram(Plus(kRun, {"--kv", spec})), 2, {"--kv", spec});
  }
}

// Sizes: one grammar; a number without unit is bytes for --kv-budget, MiB for --memory-budget.
TEST(Sizes, OneGrammarForBothBudgets) {
  const TempFolder folder;
  const std::string sensitivity = folder.Write(
      "s.json", R"({"bits":[4,2],"k":{"4":[1,1],"2":[2,2]},"v":{"4":[1,1],"2":[2,2]}})");
  const Args allocate = {"allocate",  "--kv-dim", "128", "--reference-accounting", "--sensitivity",
                         sensitivity, "--json",   "-",   "--memory-budget"};
  for (const auto& [text, bytes] :
       std::vector<std::pair<std::string, int64_t>>{{"10", 10 << 20},
                                                    {"1e1", 10 << 20},
                                                    {"10 ", 10 << 20},
                                                    {"10.0", 10 << 20},
                                                    {"10MiB", 10 << 20},
                                                    {"10 MiB", 10 << 20},
                                                    {"1e1MiB", 10 << 20},
                                                    {"010", 10 << 20},
                                                    {"10240KiB", 10 << 20},
                                                    {"10485760B", 10 << 20},
                                                    {"1TiB", 1ll << 40}}) {
    const ProgramResult result = RunProgram(Plus(allocate, {text}));
    ASSERT_EQ(result.exit_code, 0) << text << ": " << result.err;
    EXPECT_EQ(JsonValue::Parse(result.out, "stdout").At("memory_budget_bytes").AsInt(), bytes)
        << text;
  }
  const Args run = Plus(kRun, {"--max-tokens", "1", "--kv", "pm-kvq", "--kv-budget"});
  for (const auto& [text, bytes] :
       std::vector<std::pair<std::string, int64_t>>{{"1MiB", 1 << 20},
                                                    {"1 mib ", 1 << 20},
                                                    {"1024K", 1 << 20},
                                                    {"1048576", 1 << 20},
                                                    {"1e0MiB", 1 << 20},
                                                    {"1048576B", 1 << 20},
                                                    {"1e6", 1000000}}) {
    const ProgramResult result = RunProgram(Plus(run, {text}));
    ASSERT_EQ(result.exit_code, 0) << text << ": " << result.err;
    const int64_t found = JsonValue::Parse(result.out, "stdout")
                              .At("sequences")
                              .At(size_t{0})
                              .At("kv")
                              .At("budget_bytes")
                              .AsInt();
    EXPECT_LE(found, bytes) << text;
    EXPECT_GT(found, bytes - 64) << text;  // Shared out among blocks.
  }
  for (const char* text : {"lots", "6PiB", "-6MiB", "0", "0MiB", "nan", "1e999", "6MiB,", "MiB",
                           "9000000000G", "2000TiB"}) {
    ExpectOneLineError(RunProgram(Plus(run, {text})), 2, {"--kv-budget", text});
    ExpectOneLineError(RunProgram(Plus(allocate, {text})), 2, {"--memory-budget", text});
  }
}

TEST(Sizes, ANumberThatCannotBeMeantIsAskedAbout) {
  const Args run = Plus(kRun, {"--kv", "pm-kvq", "--kv-budget"});
  ExpectOneLineError(RunProgram(Plus(run, {"6"})), 2,
                     {"--kv-budget", "6 bytes: did you mean 6MiB?"});
  ExpectOneLineError(RunProgram(Plus(run, {"4.75"})), 2, {"--kv-budget", "'4.75'"});
  ExpectOneLineError(RunProgram({"compare", "--kv", "kivi", "--kv-budget", "6MiB,8"}), 2,
                     {"--kv-budget", "did you mean 8MiB?"});
  ExpectOneLineError(RunProgram({"allocate", "--memory-budget", "10485760"}), 2,
                     {"--memory-budget", "10485760 MiB: did you mean 10485760B?"});
  ExpectOneLineError(RunProgram(Plus(run, {"9000000000G"})), 2, {"too large"});
}

}  // namespace
}  // namespace pmkvq
