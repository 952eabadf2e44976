#include "pmkvq/base/descriptor.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <string>
#include <thread>

namespace pmkvq {
namespace {

bool IsOpen(int descriptor) { return fcntl(descriptor, F_GETFD) >= 0; }

TEST(Descriptor, ClosesWhatItOwns) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  const Descriptor write_end(ends[1]);
  {
    Descriptor first(ends[0]);
    const Descriptor second = std::move(first);
    EXPECT_EQ(first.get(), -1);  // NOLINT(bugprone-use-after-move): -1 is what a move leaves.
    EXPECT_EQ(second.get(), ends[0]);
    EXPECT_TRUE(IsOpen(ends[0]));
  }
  EXPECT_FALSE(IsOpen(ends[0]));
}

TEST(Descriptor, ReleaseLeavesItOpen) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  const Descriptor read_end(ends[0]);
  int released = -1;
  {
    Descriptor owner(ends[1]);
    released = owner.Release();
  }
  EXPECT_TRUE(IsOpen(released));
  Descriptor again(released);
  again.Close();
  EXPECT_FALSE(IsOpen(released));
  EXPECT_EQ(again.get(), -1);
}

TEST(WriteAll, WritesMoreThanAPipeTakesAtOnce) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  const Descriptor read_end(ends[0]);
  Descriptor write_end(ends[1]);
  const std::string sent(1 << 20, 'x');
  std::string got;
  std::thread reader([&] {
    char block[65536];
    for (ssize_t n = 0; (n = read(read_end.get(), block, sizeof(block))) > 0;) {
      got.append(block, static_cast<size_t>(n));
    }
  });
  EXPECT_TRUE(WriteAll(write_end.get(), sent));
  write_end.Close();
  reader.join();
  EXPECT_EQ(got, sent);
}

TEST(WriteAll, LeavesTheReasonInErrno) {
  const Descriptor full(open("/dev/full", O_WRONLY | O_CLOEXEC));
  ASSERT_GE(full.get(), 0);
  EXPECT_FALSE(WriteAll(full.get(), "x"));
  EXPECT_EQ(errno, ENOSPC);
  EXPECT_STREQ(SystemError("f.txt", "write").what(),
               "[f.txt] cannot write: No space left on device");
}

}  // namespace
}  // namespace pmkvq
