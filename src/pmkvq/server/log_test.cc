#include "pmkvq/server/log.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <random>
#include <sstream>
#include <thread>

#include "pmkvq/base/error.h"
#include "support/temp_folder.h"

namespace pmkvq::server {
namespace {

using testing_support::TempFolder;

std::string Slurp(const std::string& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

std::vector<std::string> LinesOf(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

// What a log writes for one event.
std::string LineOf(LogFormat format, const std::function<void(JsonWriter&)>& add_fields) {
  const TempFolder folder;
  {
    Log log(folder.File("log"), format);
    log.Write("info", "test", add_fields);
  }
  const std::string text = Slurp(folder.File("log"));
  EXPECT_TRUE(text.ends_with("\n"));
  return text.substr(0, text.size() - 1);
}

// The line behind the time, which is as long in every line.
std::string WithoutTime(LogFormat format, const std::function<void(JsonWriter&)>& add_fields) {
  const std::string line = LineOf(format, add_fields);
  const std::string front = format == LogFormat::kJson ? "{\"ts\":\"" : "ts=";
  EXPECT_TRUE(line.starts_with(front)) << line;
  return line.substr(front.size() + std::string("2026-01-31T12:00:00.000Z").size());
}

TEST(Log, OneEventALine) {
  const auto add = [](JsonWriter& json) {
    json.Key("status").Int(200).Key("part").Number(0.5).Key("is").Bool(true).Key("none").Null();
    json.Key("plain").String("req-1_2:/v1").Key("empty").String("").Key("space").String("a b");
    json.Key("quote").String("a\"b").Key("back").String("a\\b").Key("equals").String("a=b");
    json.Key("umlaut").String("\xc3\xa4").Key("ids").Array(std::vector<int64_t>{1, 2});
  };
  EXPECT_EQ(WithoutTime(LogFormat::kJson, add),
            "\",\"level\":\"info\",\"event\":\"test\",\"status\":200,\"part\":0.5,\"is\":true,"
            "\"none\":null,\"plain\":\"req-1_2:/v1\",\"empty\":\"\",\"space\":\"a b\","
            "\"quote\":\"a\\\"b\",\"back\":\"a\\\\b\",\"equals\":\"a=b\",\"umlaut\":\"\xc3\xa4\","
            "\"ids\":[1,2]}");
  EXPECT_EQ(WithoutTime(LogFormat::kText, add),
            " level=info event=test status=200 part=0.5 is=true none=null plain=req-1_2:/v1 "
            "empty=\"\" space=\"a b\" quote=\"a\\\"b\" back=\"a\\\\b\" equals=\"a=b\" "
            "umlaut=\"\xc3\xa4\" ids=[1,2]");
}

// Text of a client cannot begin a new line in the log, or move a terminal's cursor.
TEST(Log, ControlCharactersAreEscapedInBothFormats) {
  const std::string hostile =
      "a\n{\"ts\":1}\r\t\x1b[2J\x7f\xc2\x85\xc2\x9b"
      "1m\xe2\x80\xa8\xe2\x80\xa9\xff" +
      std::string("\0", 1);
  const std::string escaped =
      "\"a\\n{\\\"ts\\\":1}\\r\\t\\u001b["
      "2J\\u007f\\u0085\\u009b1m\\u2028\\u2029\xef\xbf\xbd\\u0000\"";
  const auto add = [&](JsonWriter& json) { json.Key("text").String(hostile); };
  EXPECT_EQ(WithoutTime(LogFormat::kJson, add),
            "\",\"level\":\"info\",\"event\":\"test\",\"text\":" + escaped + "}");
  EXPECT_EQ(WithoutTime(LogFormat::kText, add), " level=info event=test text=" + escaped);
  // Neighbours of those characters stay.
  const std::string others = "\xc2\xa0\xc2\xbf\xe2\x80\xa7\xe2\x80\xaa\xe2\x82\xac";
  EXPECT_NE(LineOf(LogFormat::kText, [&](JsonWriter& json) { json.Key("text").String(others); })
                .find("\"" + others + "\""),
            std::string::npos);
}

TEST(Log, LinesAreBounded) {
  const auto add = [](JsonWriter& json) {
    json.Key("text").String(std::string(kMostLogLineBytes, 'x'));
  };
  const std::string line = LineOf(LogFormat::kJson, add);
  EXPECT_LT(line.size(), 200u);
  const JsonValue event = JsonValue::Parse(line, "line");
  EXPECT_EQ(event.At("event").AsString(), "test");
  EXPECT_GT(event.At("line_bytes").AsInt(), static_cast<int64_t>(kMostLogLineBytes));
}

// The front's form in a line, which is counted and not written, never exceeds its bound, and one
// character more would.
TEST(Log, FrontsTakeWhatTheyMay) {
  const std::string pieces[] = {"a",
                                "\n",
                                "\"",
                                "\\",
                                "\x01",
                                "\x7f",
                                "\xc3\xa4",
                                "\xc2\x85",
                                "\xe2\x80\xa8",
                                "\xe2\x82\xac",
                                "\xf0\x9f\x98\x80",
                                "\xff"};
  std::mt19937 random(3);
  const auto below = [&](size_t end) {
    return std::uniform_int_distribution<size_t>(0, end - 1)(random);
  };
  const auto bytes_of = [](std::string_view text, LogFormat format) {
    return LineOf(format, [&](JsonWriter& json) { json.Key("text").String(text); }).size();
  };
  const size_t empty = bytes_of("", LogFormat::kJson);
  for (int round = 0; round < 300; ++round) {
    std::string text;
    for (size_t i = below(40); i > 0; --i) text += pieces[below(std::size(pieces))];
    const size_t most = below(80);
    const std::string_view front = FrontForLog(text, most);
    ASSERT_TRUE(text.starts_with(front));
    EXPECT_LE(bytes_of(front, LogFormat::kJson), empty + most);
    if (front.size() == text.size()) continue;
    // With its next character or stray byte it is too long.
    size_t next = front.size() + 1;
    while (next < text.size() && (static_cast<unsigned char>(text[next]) & 0xc0) == 0x80) ++next;
    EXPECT_GT(bytes_of(std::string_view(text).substr(0, next), LogFormat::kJson), empty + most);
  }
}

TEST(Log, LinesOfManyThreadsAreWholeAndInOrder) {
  const TempFolder folder;
  constexpr int kThreads = 4;
  constexpr int kLines = 500;
  {
    Log log(folder.File("log"));
    std::vector<std::thread> threads;
    for (int thread = 0; thread < kThreads; ++thread) {
      threads.emplace_back([&, thread] {
        for (int i = 0; i < kLines; ++i) {
          log.Write("info", "test",
                    [&](JsonWriter& json) { json.Key("thread").Int(thread).Key("i").Int(i); });
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_TRUE(log.Flush(60));
    EXPECT_EQ(log.num_dropped(), 0);
  }
  int64_t next[kThreads] = {};
  const std::vector<std::string> lines = LinesOf(Slurp(folder.File("log")));
  for (const std::string& line : lines) {
    const JsonValue event = JsonValue::Parse(line, "line");
    EXPECT_EQ(event.At("i").AsInt(), next[event.At("thread").AsInt()]++);
  }
  EXPECT_EQ(lines.size(), static_cast<size_t>(kThreads * kLines));
}

TEST(Log, ReopenGoesOnInANewFile) {
  const TempFolder folder;
  Log log(folder.File("log"));
  log.Write("info", "before");
  ASSERT_TRUE(log.Flush(60));
  std::filesystem::rename(folder.File("log"), folder.File("old"));
  log.Write("info", "moved");
  log.Reopen();
  log.Write("info", "after");
  ASSERT_TRUE(log.Flush(60));
  EXPECT_EQ(LinesOf(Slurp(folder.File("old"))).size(), 2u);
  const std::vector<std::string> lines = LinesOf(Slurp(folder.File("log")));
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_NE(lines[0].find("after"), std::string::npos);
  EXPECT_THROW(Log(folder.path()), IoError);
}

TEST(Log, AFullDiskLosesLinesAndCountsThem) {
  Log log("/dev/full");
  for (int i = 0; i < 5; ++i) log.Write("info", "test");
  EXPECT_TRUE(log.Flush(60));
  EXPECT_EQ(log.num_dropped(), 5);
}

// Nobody reads the pipe: lines wait, then they are lost, and neither Write nor the end waits for
// ever. What comes behind a line that was cut is whole again.
TEST(Log, AReaderThatStopsDelaysNobody) {
  const TempFolder folder;
  const std::string path = folder.File("pipe");
  ASSERT_EQ(mkfifo(path.c_str(), 0600), 0);
  const int reader = open(path.c_str(), O_RDONLY | O_NONBLOCK);
  ASSERT_GE(reader, 0);
  const std::string text(100'000, 'x');
  const auto add = [&](JsonWriter& json) { json.Key("text").String(text); };
  std::string read_text;
  {
    Log log(path);
    for (int i = 0; i < 200; ++i) log.Write("info", "test", add);  // 20 MB, of which 8 may wait.
    EXPECT_GE(log.num_dropped(), 100);
    EXPECT_FALSE(log.Flush(0.01));
  }  // The end: what waits is lost after a second.
  char buffer[65536];
  for (ssize_t count = 0; (count = read(reader, buffer, sizeof buffer)) > 0;) {
    read_text.append(buffer, static_cast<size_t>(count));
  }
  close(reader);
  EXPECT_GT(read_text.size(), 0u);
  EXPECT_LT(read_text.size(), size_t{1} << 21);
}

}  // namespace
}  // namespace pmkvq::server
