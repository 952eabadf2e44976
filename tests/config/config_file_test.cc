// --config: what the options of a file become, and that no file makes the program crash.
#include "config_file.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "file_options.h"
#include "option_values.h"
#include "pmkvq/base/error.h"
#include "support/temp_folder.h"

namespace pmkvq::cli {
namespace {

using testing_support::TempFolder;

using Args = std::vector<std::string>;

// A command with options of every kind.
class ConfigFile : public testing::Test {
 protected:
  ConfigFile() {
    app_.require_subcommand(1);
    CLI::App* command = app_.add_subcommand("serve", "a server");
    NamesFile(command->add_option("--model", model_, "a model")->required(), FileKind::kInput);
    AddConfig(*command, config_);
    command->add_option("--host", host_, "a name");
    command->add_option("--port", port_, "a number")->transform(WholeNumber(0, 65535));
    command->add_option("--share", share_, "a part")->transform(DecimalNumber(0, 1));
    command->add_option("--pool", pool_, "a size")->type_name("SIZE")->transform(KvBudgetSize());
    command->add_option("--mode", mode_, "a choice")->transform(OneOf({"one", "two"}));
    command->add_option("--max-len", max_len_, "a number")->transform(WholeNumber(0));
    command->add_flag("--strict", strict_, "a flag");
    command->add_flag("--open", open_, "a flag");
    ApplyValueRules(app_);
  }

  std::string Write(const std::string& text) { return folder_.Write("config.json", text); }

  void Parse(const Args& arguments) {
    const Args all = WithOptionsOfConfig(app_, arguments);
    app_.parse(Args(all.rbegin(), all.rend()));
  }

  // The one line of the error for this file, without the file's name in front; "": none.
  std::string ErrorOf(const std::string& text) {
    const std::string path = Write(text);
    try {
      WithOptionsOfConfig(app_, {"serve", "--config", path});
    } catch (const CLI::ValidationError& error) {
      const std::string line = error.what();
      const std::string front = "[" + path + "] ";
      EXPECT_TRUE(line.starts_with(front)) << line;
      return line.starts_with(front) ? line.substr(front.size()) : line;
    }
    return "";
  }

  TempFolder folder_;
  CLI::App app_;
  std::string model_, config_, host_ = "here", pool_, mode_;
  int64_t port_ = 1, max_len_ = 2;
  double share_ = 0.5;
  bool strict_ = false, open_ = false;
};

TEST_F(ConfigFile, OptionsAreThoseOfTheCommandLine) {
  const std::string path = Write(
      R"({"model": "some/model", "host": "a b [c]", "port": 8080, "share": 2.5e-1, "pool": "2GiB",
          "mode": "two", "strict": true, "open": false, "max-len": 0})");
  Parse({"serve", "--config", path});
  EXPECT_EQ(model_, "some/model");
  EXPECT_EQ(host_, "a b [c]");
  EXPECT_EQ(port_, 8080);
  EXPECT_EQ(share_, 0.25);
  EXPECT_EQ(pool_, "2GiB");
  EXPECT_EQ(mode_, "two");
  EXPECT_EQ(max_len_, 0);
  EXPECT_TRUE(strict_);
  EXPECT_FALSE(open_);
}

TEST_F(ConfigFile, TheCommandLineWins) {
  const std::string path =
      Write(R"({"model": "m", "port": 1000, "host": "file", "mode": "one", "open": true})");
  Parse({"serve", "--port=7", "--host", "line", "--config=" + path, "--strict", "--open=false"});
  EXPECT_EQ(port_, 7);
  EXPECT_EQ(host_, "line");
  EXPECT_EQ(mode_, "one");
  EXPECT_EQ(model_, "m");
  EXPECT_TRUE(strict_);
  EXPECT_FALSE(open_);
}

// A value that is spelled like an option is none.
TEST_F(ConfigFile, ValuesOfOptionsAreNoOptions) {
  const std::string path = Write(R"({"model": "-m", "port": 9})");
  const Args all = WithOptionsOfConfig(app_, {"serve", "--host", "--port", "--config", path});
  EXPECT_EQ(all, (Args{"serve", "--model=-m", "--port=9", "--host", "--port", "--config", path}));
}

TEST_F(ConfigFile, WithoutAFileNothingChanges) {
  for (const Args& arguments :
       {Args{"serve", "--port", "3"}, Args{"serve", "--config"},
        Args{"serve", "--", "--config", "x"}, Args{"serve", "--config", "/no/file", "--help"},
        Args{"serve", "--config", ""}, Args{"serve", "--config", "/no/a", "--config", "/no/b"},
        Args{"--config", "x"}, Args{}}) {
    EXPECT_EQ(WithOptionsOfConfig(app_, arguments), arguments);
  }
}

TEST_F(ConfigFile, ErrorsNameFileNameValueAndWhatIsExpected) {
  const std::pair<const char*, const char*> cases[] = {
      {R"({"port": "80"})", "port: found \"80\", expected a number"},
      {R"({"port": 70000})", "port: found '70000', expected a whole number from 0 to 65535"},
      {R"({"port": 1.5})", "port: found '1.5', expected a whole number from 0 to 65535"},
      {R"({"port": null})", "port: found null, expected a number"},
      {R"({"port": [1]})", "port: found [1], expected a number"},
      {R"({"port": {"a": 1}})", "port: found {\"a\":1}, expected a number"},
      {R"({"host": 5})", "host: found 5, expected a string"},
      {R"({"pool": false})", "pool: found false, expected a string or number"},
      {R"({"pool": 5})", "pool: found '5', which is 5 bytes: did you mean 5MiB? (5B for bytes)"},
      {R"({"mode": "tow"})", "mode: found 'tow', expected one of one, two: did you mean two?"},
      {R"({"strict": "true"})", "strict: found \"true\", expected true or false"},
      {R"({"strict": 1})", "strict: found 1, expected true or false"},
      {R"({"strict": null})", "strict: found null, expected true or false"},
      {R"({"host": ""})",
       "host: found \"\", expected a string with characters, but no control characters"},
      {R"({"host": "a\nb"})",
       "host: found \"a\\nb\", expected a string with characters, but no control characters"},
      {R"({"port": 1, "port": 1})", "port: found twice, expected every key once"},
      {R"({"config": "x"})",
       "config: found \"x\", expected no configuration file in a configuration file"},
      {R"({"prot": 1})",
       "found the name \"prot\", expected options of serve without dashes: did you mean port?"},
      {R"({"--port": 1})",
       "found the name \"--port\", expected options of serve without dashes: did you mean port?"},
      {R"({"ctx-size": 1})",
       "found the name \"ctx-size\", expected options of serve without dashes (here it is "
       "max-len)"},
      {R"({"help": true})", "found the name \"help\", expected options of serve without dashes"},
      {R"({"a\nb": true})", "found the name \"a\\nb\", expected options of serve without dashes"},
      {"[]", "top level: found [], expected an object with options"},
      {"null", "top level: found null, expected an object with options"},
  };
  for (const auto& [text, error] : cases) EXPECT_EQ(ErrorOf(text), error) << text;
  EXPECT_TRUE(ErrorOf("{\"port\": 1").starts_with("not valid JSON at byte "));
  EXPECT_NE(ErrorOf("{\"host\": \"" + std::string(kMostConfigBytes, 'x') + "\"}"), "");
  // The command line's value does not make up for a wrong one.
  const std::string path = Write(R"({"port": -1})");
  EXPECT_THROW(WithOptionsOfConfig(app_, {"serve", "--port", "5", "--config", path}),
               CLI::ValidationError);
  EXPECT_THROW(WithOptionsOfConfig(app_, {"serve", "--config", "/no/file"}), IoError);
  EXPECT_THROW(WithOptionsOfConfig(app_, {"serve", "--config", folder_.path()}), IoError);
}

// A right file with bytes changed, taken out, doubled, and pieces of JSON put in.
std::string Mutated(const std::string& text, std::mt19937& random) {
  static const std::vector<std::string> pieces = {"{",         "}",
                                                  "[",         "]",
                                                  ",",         ":",
                                                  "\"",        "null",
                                                  "true",      "1e999",
                                                  "-0",        "\\u0000",
                                                  "\\ud800",   std::string("\0", 1),
                                                  "\xff",      "\"config\":\"config.json\",",
                                                  "\"port\":", "--",
                                                  "\n"};
  std::string changed = text;
  const auto below = [&](size_t end) {
    return std::uniform_int_distribution<size_t>(0, end - 1)(random);
  };
  for (size_t i = below(3) + 1; i > 0 && !changed.empty(); --i) {
    const size_t at = below(changed.size());
    switch (below(5)) {
      case 0:
        changed[at] = static_cast<char>(below(256));
        break;
      case 1:
        changed.erase(at, below(8) + 1);
        break;
      case 2:
        changed.insert(at, changed.substr(at, below(16) + 1));
        break;
      case 3:
        changed.insert(at, pieces[below(pieces.size())]);
        break;
      default:
        changed.resize(at);
    }
  }
  return changed;
}

TEST_F(ConfigFile, AThousandMutatedFilesAreReadOrRefusedInOneLine) {
  const std::string text =
      R"({"model": "some/model", "host": "0.0.0.0", "port": 8080, "share": 0.25, "pool": "2GiB",
          "mode": "two", "strict": true, "open": false, "max-len": 4096})";
  std::mt19937 random(7);
  int num_read = 0;
  for (int i = 0; i < 1000; ++i) {
    const std::string path = Write(Mutated(text, random));
    std::string line;
    try {
      Parse({"serve", "--config", path});
      ++num_read;
    } catch (const CLI::ParseError& error) {
      line = error.what();
      EXPECT_NE(line, "");
      const bool is_control = std::any_of(line.begin(), line.end(),
                                          [](unsigned char c) { return c < ' ' || c == 0x7f; });
      EXPECT_FALSE(is_control) << i << ": " << line;
      EXPECT_LT(line.size(), 500u) << i;
    }
  }
  // Both kinds were tried: some changes leave a right file.
  EXPECT_GT(num_read, 10);
  EXPECT_LT(num_read, 800);
}

}  // namespace
}  // namespace pmkvq::cli
