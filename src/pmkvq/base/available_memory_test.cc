#include "pmkvq/base/available_memory.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "support/temp_folder.h"

namespace pmkvq {
namespace {

// A root folder with the files that the kernel would show: 8 GiB are available.
class AvailableMemoryTest : public testing::Test {
 protected:
  void SetUp() override {
    Write(
        "proc/meminfo",
        "MemTotal:       24000000 kB\nMemFree:         1000000 kB\nMemAvailable:    8388608 kB\n");
  }
  void Write(const std::string& path, const std::string& content) {
    std::filesystem::create_directories(std::filesystem::path(folder_.File(path)).parent_path());
    folder_.Write(path, content);
  }
  int64_t Available() const { return AvailableMemory(folder_.path()); }

 private:
  testing_support::TempFolder folder_;
};

constexpr int64_t kGiB = int64_t{1} << 30;

TEST_F(AvailableMemoryTest, OfTheSystem) { EXPECT_EQ(Available(), 8 * kGiB); }

TEST_F(AvailableMemoryTest, UnknownWithoutTheFile) {
  Write("proc/meminfo", "nonsense\n");
  EXPECT_EQ(Available(), 0);
}

TEST_F(AvailableMemoryTest, Version2) {
  Write("proc/self/mountinfo", "30 23 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
  Write("proc/self/cgroup", "0::/outer/inner\n");
  Write("sys/fs/cgroup/outer/inner/memory.max", "max\n");
  Write("sys/fs/cgroup/outer/inner/memory.current", "1073741824\n");
  EXPECT_EQ(Available(), 8 * kGiB);
  // The group around it: 4 GiB, of which 3 are used, of which 1 is dropped first.
  Write("sys/fs/cgroup/outer/memory.max", "4294967296\n");
  Write("sys/fs/cgroup/outer/memory.current", "3221225472\n");
  EXPECT_EQ(Available(), kGiB);
  Write("sys/fs/cgroup/outer/memory.stat", "anon 2147483648\ninactive_file 1073741824\n");
  EXPECT_EQ(Available(), 2 * kGiB);
  // Less than is used: the limit was lowered.
  Write("sys/fs/cgroup/outer/memory.max", "1073741824\n");
  EXPECT_EQ(Available(), 0);
}

TEST_F(AvailableMemoryTest, Version1) {
  Write("proc/self/mountinfo", "33 31 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n");
  Write("proc/self/cgroup", "4:memory:/job\n");
  Write("sys/fs/cgroup/memory/job/memory.limit_in_bytes", "9223372036854771712\n");  // None.
  Write("sys/fs/cgroup/memory/job/memory.usage_in_bytes", "1073741824\n");
  EXPECT_EQ(Available(), 8 * kGiB);
  Write("sys/fs/cgroup/memory/job/memory.limit_in_bytes", "2147483648\n");
  Write("sys/fs/cgroup/memory/job/memory.stat", "cache 5\ntotal_inactive_file 536870912\n");
  EXPECT_EQ(Available(), 3 * kGiB / 2);
}

TEST(AvailableMemory, OfThisSystem) { EXPECT_GT(AvailableMemory(), 0); }

}  // namespace
}  // namespace pmkvq
