#include "pmkvq/base/cpu_quota.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <filesystem>
#include <thread>

#include "pmkvq/base/threads.h"
#include "support/temp_folder.h"

namespace pmkvq {
namespace {

using testing_support::TempFolder;

// A root folder with the files that the kernel would show.
class FakeSystem {
 public:
  void Write(const std::string& path, const std::string& content) {
    std::filesystem::create_directories(std::filesystem::path(folder_.File(path)).parent_path());
    folder_.Write(path, content);
  }
  std::optional<double> Quota() const { return CpuQuota(folder_.path()); }

 private:
  TempFolder folder_;
};

constexpr const char* kMountVersion2 =
    "24 1 0:22 / /proc rw,nosuid - proc proc rw\n"
    "30 23 0:27 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
constexpr const char* kMountVersion1 =
    "33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw shared:4 - cgroup cgroup rw,cpu,cpuacct\n"
    "34 31 0:31 / /sys/fs/cgroup/cpuset rw shared:5 - cgroup cgroup rw,cpuset\n";

TEST(CpuQuota, NothingWithoutFiles) { EXPECT_EQ(FakeSystem().Quota(), std::nullopt); }

TEST(CpuQuota, Version2) {
  FakeSystem system;
  system.Write("proc/self/mountinfo", kMountVersion2);
  system.Write("proc/self/cgroup", "0::/job\n");
  EXPECT_EQ(system.Quota(), std::nullopt);
  system.Write("sys/fs/cgroup/job/cpu.max", "max 100000\n");
  EXPECT_EQ(system.Quota(), std::nullopt);
  system.Write("sys/fs/cgroup/job/cpu.max", "250000 100000\n");
  EXPECT_EQ(system.Quota(), 2.5);
  system.Write("sys/fs/cgroup/job/cpu.max", "nonsense\n");
  EXPECT_EQ(system.Quota(), std::nullopt);
}

TEST(CpuQuota, Version2TakesTheTightestGroupAround) {
  FakeSystem system;
  system.Write("proc/self/mountinfo", kMountVersion2);
  system.Write("proc/self/cgroup", "0::/outer/middle/inner\n");
  system.Write("sys/fs/cgroup/outer/cpu.max", "150000 100000\n");
  system.Write("sys/fs/cgroup/outer/middle/cpu.max", "800000 100000\n");
  system.Write("sys/fs/cgroup/outer/middle/inner/cpu.max", "max 100000\n");
  EXPECT_EQ(system.Quota(), 1.5);
  system.Write("sys/fs/cgroup/outer/middle/inner/cpu.max", "20000 50000\n");
  EXPECT_EQ(system.Quota(), 0.4);
}

TEST(CpuQuota, Version2InsideAContainer) {
  FakeSystem system;
  system.Write("proc/self/mountinfo", kMountVersion2);
  system.Write("proc/self/cgroup", "0::/\n");
  system.Write("sys/fs/cgroup/cpu.max", "300000 100000\n");
  EXPECT_EQ(system.Quota(), 3.0);
  // A process that was moved here from a group that the container does not see.
  system.Write("proc/self/cgroup", "0::/../other\n");
  EXPECT_EQ(system.Quota(), 3.0);
}

TEST(CpuQuota, Version1) {
  FakeSystem system;
  system.Write("proc/self/mountinfo", kMountVersion1);
  system.Write("proc/self/cgroup", "5:cpuset:/elsewhere\n4:cpu,cpuacct:/a/b\n0::/unused\n");
  system.Write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n");
  system.Write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(system.Quota(), std::nullopt);
  system.Write("sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us", "120000\n");
  system.Write("sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us", "100000\n");
  system.Write("sys/fs/cgroup/cpu,cpuacct/a/b/cpu.cfs_quota_us", "400000\n");
  system.Write("sys/fs/cgroup/cpu,cpuacct/a/b/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(system.Quota(), 1.2);
}

TEST(CpuQuota, Version1InsideAContainer) {
  FakeSystem system;
  // The group is named as the host sees it, and mounted as the root.
  system.Write("proc/self/mountinfo",
               "40 39 0:30 /docker/abc /sys/fs/cgroup/my\\040cpu ro - cgroup cgroup rw,cpu\n");
  system.Write("proc/self/cgroup", "4:cpu:/docker/abc/part\n");
  system.Write("sys/fs/cgroup/my cpu/cpu.cfs_quota_us", "200000\n");
  system.Write("sys/fs/cgroup/my cpu/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(system.Quota(), 2.0);
  system.Write("sys/fs/cgroup/my cpu/part/cpu.cfs_quota_us", "50000\n");
  system.Write("sys/fs/cgroup/my cpu/part/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(system.Quota(), 0.5);
  // A group of another name: only the mounted one is known.
  system.Write("proc/self/cgroup", "4:cpu:/docker/abcdef\n");
  EXPECT_EQ(system.Quota(), 2.0);
}

TEST(CpuQuota, BothVersionsMounted) {
  FakeSystem system;
  system.Write("proc/self/mountinfo", std::string(kMountVersion1) + kMountVersion2);
  system.Write("proc/self/cgroup", "4:cpu,cpuacct:/\n0::/x\n");
  system.Write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "700000\n");
  system.Write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(system.Quota(), 7.0);
}

TEST(ThreadsFor, QuotasAreRoundedUpAndThereIsAlwaysOne) {
  EXPECT_EQ(ThreadsFor(8, std::nullopt), 8);
  EXPECT_EQ(ThreadsFor(8, 2.0), 2);
  EXPECT_EQ(ThreadsFor(8, 2.01), 3);
  EXPECT_EQ(ThreadsFor(8, 0.1), 1);
  EXPECT_EQ(ThreadsFor(2, 1e9), 2);
  EXPECT_EQ(ThreadsFor(0, std::nullopt), 1);
}

TEST(DefaultThreads, HonoursAffinity) {
  EXPECT_GE(DefaultThreads(), 1);
  std::thread([] {  // Affinity is a thread's.
    cpu_set_t all;
    ASSERT_EQ(sched_getaffinity(0, sizeof all, &all), 0);
    size_t first = 0;
    while (!CPU_ISSET(first, &all)) ++first;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(first, &one);
    ASSERT_EQ(sched_setaffinity(0, sizeof one, &one), 0);
    EXPECT_EQ(DefaultThreads(), 1);
  })
      .join();
}

}  // namespace
}  // namespace pmkvq
