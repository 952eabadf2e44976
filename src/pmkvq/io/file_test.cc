#include "pmkvq/io/file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "pmkvq/base/error.h"
#include "pmkvq/io/hash.h"
#include "pmkvq/io/json_lines.h"
#include "support/expect_error.h"
#include "support/temp_folder.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;
using testing_support::TempFolder;

TEST(MappedFile, MapsAndMoves) {
  const TempFolder folder;
  MappedFile first = MappedFile::Open(folder.Write("a", "hello"));
  ASSERT_EQ(first.size(), 5u);
  EXPECT_EQ(static_cast<char>(first.data()[4]), 'o');
  MappedFile second = std::move(first);
  EXPECT_EQ(second.size(), 5u);
  MappedFile third = MappedFile::Open(folder.Write("b", ""));
  EXPECT_EQ(third.size(), 0u);
  third = std::move(second);
  EXPECT_EQ(static_cast<char>(third.data()[0]), 'h');
}

TEST(MappedFile, NamesWhatCannotBeMapped) {
  const TempFolder folder;
  ExpectError<IoError>([&] { MappedFile::Open(folder.File("none")); },
                       {folder.File("none") + "] cannot open: No such file"});
  ExpectError<IoError>([&] { MappedFile::Open(folder.path()); }, {"not a regular file"});
}

TEST(ReadFile, ReadsRegularFilesAndFilesWithoutASize) {
  const TempFolder folder;
  const std::string large(3'000'001, 'x');
  EXPECT_EQ(ReadFile(folder.Write("large", large)), large);
  EXPECT_EQ(ReadFile(folder.Write("empty", "")), "");
  EXPECT_NE(ReadFile("/proc/self/status").find("Name:"), std::string::npos);
  ExpectError<IoError>([&] { ReadFile(folder.path()); }, {"cannot read"});
  ExpectError<IoError>([&] { ReadFile(folder.File("none")); }, {"cannot open"});
}

TEST(ReadFile, GitLfsPointersAreNamed) {
  const TempFolder folder;
  const std::string pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n";
  const std::string path = folder.Write("model.safetensors", pointer);
  const std::string expected = path + "] found a Git LFS pointer";
  ExpectError<InvalidInput>([&] { ReadFile(path); }, {expected, "git lfs pull"});
  ExpectError<InvalidInput>([&] { MappedFile::Open(path); }, {expected});
  ExpectError<InvalidInput>(
      [&] {
        LineReader reader(path);
        std::string line;
        reader.Next(&line);
      },
      {expected});
  EXPECT_EQ(ReadFile(folder.Write("long", pointer + std::string(2000, 'x'))).size(),
            2000 + pointer.size());
}

TEST(ReadFile, LargeFilesAreRefused) {
  const TempFolder folder;
  const std::string path = folder.Write("a", "12345");
  EXPECT_EQ(ReadFile(path, 5), "12345");
  ExpectError<InvalidInput>([&] { ReadFile(path, 4); }, {"more than 4 bytes"});
}

TEST(PlainText, OnePromptInEveryKindOfFile) {
  for (const std::string text : {"one\ntwo", "one\ntwo\n", "one\ntwo\r\n", "one\ntwo\r",
                                 "\xef\xbb\xbfone\ntwo", "\xef\xbb\xbfone\ntwo\r\n"}) {
    EXPECT_EQ(PlainText(text, "f"), "one\ntwo") << text;
  }
  EXPECT_EQ(PlainText("a\n\n", "f"), "a\n");
  EXPECT_EQ(PlainText("a\r\n\r\n", "f"), "a\r\n");
  EXPECT_EQ(PlainText("\n", "f"), "");
  EXPECT_EQ(PlainText("\xef\xbb\xbf", "f"), "");
  EXPECT_EQ(PlainText("", "f"), "");
  for (const std::string& utf16 :
       {std::string("\xff\xfe"
                    "a\0",
                    4),
        std::string("\xfe\xff\0a", 4), std::string("a\0b\0", 4), std::string("\0a\0b", 4)}) {
    ExpectError<InvalidInput>([&] { PlainText(utf16, "f"); }, {"[f] text: found", "UTF-16"});
  }
  ExpectError<InvalidInput>([] { PlainText("ab\xff", "f"); }, {"[f] byte 2: found 0xff"});
}

TEST(ReadLine, IsGetlineWithALimit) {
  for (const std::string content : {"", "\n", "a", "a\n", "a\n\nbb\nc", "\r\nx\r\n"}) {
    std::istringstream ours(content);
    std::istringstream theirs(content);
    std::string found;
    std::string expected;
    for (int i = 0; i < 6; ++i) {
      const bool has_line = static_cast<bool>(std::getline(theirs, expected));
      EXPECT_EQ(ReadLine(ours, "here", &found, 4), has_line) << content << i;
      EXPECT_EQ(found, has_line ? expected : "") << content << i;
      EXPECT_EQ(ours.eof(), theirs.eof()) << content << i;
    }
  }
  std::istringstream exact("1234\n12345\n");
  std::string line;
  EXPECT_TRUE(ReadLine(exact, "here", &line, 4));
  ExpectError<InvalidInput>([&] { ReadLine(exact, "here", &line, 4); },
                            {"[here] found a line of more than 4 bytes"});
}

TEST(LineReader, ReadsLines) {
  const TempFolder folder;
  const auto lines = [&](const std::string& content) {
    LineReader reader(folder.Write("a", content));
    std::vector<std::string> result;
    for (std::string line; reader.Next(&line);) result.push_back(line);
    return result;
  };
  using Lines = std::vector<std::string>;
  EXPECT_EQ(lines(""), Lines{});
  EXPECT_EQ(lines("a"), Lines{"a"});
  EXPECT_EQ(lines("a\n\nb\n"), (Lines{"a", "", "b"}));
  EXPECT_EQ(lines("\xef\xbb\xbf"
                  "a\nb"),
            (Lines{"a", "b"}));
  const std::string half(200'000, 'x');  // Longer than half a block.
  EXPECT_EQ(lines(half + "\n" + half + "\n" + half), (Lines{half, half, half}));
  EXPECT_EQ(CountLines(folder.Write("b", "a\nb\nc"), 1), 3u);
  LineReader reader(folder.Write("c", "12345\n"), 4);
  std::string line;
  ExpectError<InvalidInput>([&] { reader.Next(&line); }, {"line: found more than 4 bytes"});
}

TEST(WriteFileAtomically, ReplacesAndLeavesNothingElse) {
  const TempFolder folder;
  const std::string path = folder.File("out.json");
  WriteFileAtomically(path, "one");
  WriteFileAtomically(path, "two");
  EXPECT_EQ(ReadFile(path), "two");
  EXPECT_EQ(folder.NumEntries(), 1u);
}

TEST(WriteFileAtomically, FailsWithoutATrace) {
  const TempFolder folder;
  ExpectError<IoError>([&] { WriteFileAtomically(folder.File("no/such/a"), "x"); },
                       {folder.File("no/such/a"), "cannot write", "No such file"});
  ExpectError<IoError>([&] { WriteFileAtomically(folder.path(), "x"); }, {"is a folder"});
  ExpectError<IoError>([] { WriteFileAtomically("/dev/full", "x"); },
                       {"[/dev/full] cannot write: No space left"});
  EXPECT_EQ(folder.NumEntries(), 0u);
}

TEST(WriteFileAtomically, KeepsDevicesAndLinks) {
  WriteFileAtomically("/dev/null", "x");
  EXPECT_TRUE(std::filesystem::is_character_file("/dev/null"));

  const TempFolder folder;
  const std::string target = folder.Write("target", "old");
  std::filesystem::create_symlink(target, folder.File("link"));
  WriteFileAtomically(folder.File("link"), "new");
  EXPECT_TRUE(std::filesystem::is_symlink(folder.File("link")));
  EXPECT_EQ(ReadFile(target), "new");
  EXPECT_EQ(folder.NumEntries(), 2u);
}

TEST(WriteFileAtomically, DashIsStandardOutput) {
  testing::internal::CaptureStdout();
  WriteFileAtomically("-", "{\"a\":1}\n");
  EXPECT_EQ(testing::internal::GetCapturedStdout(), "{\"a\":1}\n");
}

TEST(AtomicFileWriter, WithoutCommitTheOldContentStays) {
  const TempFolder folder;
  const std::string path = folder.Write("a", "old");
  {
    AtomicFileWriter writer(path);
    writer.Append("new", 3);
    EXPECT_EQ(folder.NumEntries(), 2u);
    EXPECT_TRUE(FileExists(TemporaryPath(path)));
  }
  EXPECT_EQ(ReadFile(path), "old");
  EXPECT_EQ(folder.NumEntries(), 1u);
}

TEST(CommitFile, RemovesTheTemporaryFileOnError) {
  const TempFolder folder;
  const std::string target = folder.File("folder");
  std::filesystem::create_directory(target);
  const std::string temporary = folder.Write("temporary", "x");
  ExpectError<IoError>([&] { CommitFile(temporary, target); }, {target + "] cannot rename"});
  EXPECT_FALSE(FileExists(temporary));
  ExpectError<IoError>([&] { CommitFile(temporary, folder.File("a")); },
                       {"cannot open its temporary file"});
  ExpectError<IoError>([&] { CommitFile(folder.Write("t", "x"), "/dev/null"); },
                       {"[/dev/null] cannot replace a device"});
  EXPECT_FALSE(FileExists(folder.File("t")));
}

TEST(CommitFile, WorksInTheCurrentFolder) {
  const TempFolder folder;
  const std::filesystem::path before = std::filesystem::current_path();
  std::filesystem::current_path(folder.path());
  WriteFileAtomically("plain", "x");
  std::filesystem::current_path(before);
  EXPECT_EQ(ReadFile(folder.File("plain")), "x");
}

// Pages of this process that hold file content.
size_t SharedPages() {
  const std::string statm = ReadFile("/proc/self/statm");  // "size resident shared ..."
  const size_t shared = statm.find(' ', statm.find(' ') + 1);
  return std::stoul(statm.substr(shared));
}

TEST(MappedFile, DropsPagesWithoutLosingTheirContent) {
  constexpr size_t kBytes = size_t{16} << 20;
  std::string content(kBytes, 'x');
  for (size_t i = 0; i < kBytes; i += 1000) content[i] = static_cast<char>('a' + i / 1000 % 26);
  const TempFolder folder;
  const MappedFile file = MappedFile::Open(folder.Write("big", content));
  EXPECT_EQ(std::memcmp(file.data(), content.data(), kBytes), 0);
  const size_t before = SharedPages();
  file.DropPages(file.data() + 100, kBytes - 200);
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  EXPECT_LT(SharedPages() + kBytes / page / 2, before);
  EXPECT_EQ(std::memcmp(file.data(), content.data(), kBytes), 0);
  // Nothing of this mapping.
  file.DropPages(reinterpret_cast<const std::byte*>(content.data()), content.size());
  EXPECT_EQ(content[1000], 'b');
}

TEST(JoinPath, JoinsWithOneSlash) {
  EXPECT_EQ(JoinPath("a", "b"), "a/b");
  EXPECT_EQ(JoinPath("a/", "b"), "a/b");
  EXPECT_EQ(JoinPath("", "b"), "b");
}

TEST(Hash128, IsXxh3) {
  // Test vectors of the xxHash specification: XXH3-128 with seed 0.
  EXPECT_EQ(Hash128().HexDigest(), "99aa06d3014798d86001c324468d497f");
  Hash128 whole;
  whole.Update("The quick brown fox jumps over the lazy dog");
  Hash128 pieces;
  pieces.Update("The quick brown fox ");
  pieces.Update("jumps over the lazy dog");
  EXPECT_EQ(whole.HexDigest(), "ddd650205ca3e7fa24a1cc2e3a8a7651");
  EXPECT_EQ(pieces.HexDigest(), whole.HexDigest());
}

}  // namespace
}  // namespace pmkvq
