#include "pmkvq/io/part_files.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "pmkvq/io/file.h"
#include "pmkvq/io/file_lock.h"
#include "support/temp_folder.h"

namespace pmkvq {
namespace {

using testing_support::TempFolder;
using Kind = FileLock::Kind;

TEST(PartFiles, ListsItsOwnByNumbers) {
  const TempFolder folder;
  const PartFiles parts(folder.path(), "r-", ".jsonl");
  EXPECT_EQ(parts.PathOf({1, 4}), folder.File("r-2of4.jsonl"));
  EXPECT_TRUE(parts.List().empty());
  for (const char* name : {"r-2of10.jsonl", "r-10of10.jsonl", "r-2of2.jsonl", "r-3of2.jsonl",
                           "r-.jsonl", "x-1of2.jsonl", "r-1of2.json", "r-1of2.jsonl.123.tmp"}) {
    folder.Write(name, "x\n");
  }
  const std::vector<std::string> expected = {
      folder.File("r-2of2.jsonl"), folder.File("r-2of10.jsonl"), folder.File("r-10of10.jsonl")};
  EXPECT_EQ(parts.List(), expected);
  parts.Remove();
  EXPECT_TRUE(parts.List().empty());
  EXPECT_TRUE(FileExists(folder.File("r-3of2.jsonl")));
  EXPECT_TRUE(PartFiles(folder.File("none"), "", "").List().empty());
}

TEST(PartFiles, WholeLinesOnly) {
  const TempFolder folder;
  EXPECT_EQ(ReadWholeLines(folder.File("none")), "");
  EXPECT_EQ(ReadWholeLines(folder.Write("a", "one\ntwo\nthr")), "one\ntwo\n");
  EXPECT_EQ(ReadWholeLines(folder.Write("b", "one")), "");
}

TEST(FileLock, SharedOnesGoTogetherExclusiveOnesAlone) {
  const TempFolder folder;
  const std::string path = folder.File("lock");
  auto first = FileLock::Try(path, Kind::kShared);
  auto second = FileLock::Try(path, Kind::kShared);
  ASSERT_TRUE(first && second);
  EXPECT_FALSE(FileLock::Try(path, Kind::kExclusive));
  first->Release();
  EXPECT_FALSE(first->is_held());
  EXPECT_FALSE(FileLock::Try(path, Kind::kExclusive));
  second->Release();
  auto alone = FileLock::Try(path, Kind::kExclusive);
  ASSERT_TRUE(alone);
  EXPECT_FALSE(FileLock::Try(path, Kind::kShared));
  alone->RemoveFile();
  EXPECT_FALSE(FileExists(path));
  EXPECT_TRUE(FileLock::Try(path, Kind::kExclusive));
}

}  // namespace
}  // namespace pmkvq
