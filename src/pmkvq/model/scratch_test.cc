#include "pmkvq/model/scratch.h"

#include <gtest/gtest.h>

namespace pmkvq {
namespace {

TEST(Scratch, BuffersAreDistinctAlignedAndOfTheirSize) {
  Scratch<float> scratch;
  float* a = scratch.Take(3);
  float* b = scratch.Take(100);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(a) % kAlignment, 0u);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(b) % kAlignment, 0u);
  std::fill_n(a, 3, 1.0f);
  std::fill_n(b, 100, 2.0f);
  float* c = scratch.Take(1000);
  std::fill_n(c, 1000, 3.0f);
  EXPECT_EQ(a[2], 1.0f) << "buffers that are out stay where they are";
  EXPECT_EQ(b[99], 2.0f);
  EXPECT_EQ(scratch.num_bytes(), 1103 * sizeof(float));
}

TEST(Scratch, AFrameGivesBackWhatWasTakenInIt) {
  Scratch<double> scratch;
  double* outer = scratch.Take(4);
  double* first = nullptr;
  {
    const Scratch<double>::Frame frame(scratch);
    first = scratch.Take(8);
    scratch.Take(8);
  }
  EXPECT_EQ(scratch.Take(5), first) << "a smaller one fits";
  EXPECT_NE(outer, first);
}

TEST(Scratch, IntsAreTakenAndGivenBackAlike) {
  Scratch<double> scratch;
  double* const real = scratch.Take(2);
  int32_t* first = nullptr;
  {
    const Scratch<double>::Frame frame(scratch);
    first = scratch.TakeInts(6);
    std::fill_n(first, 6, 7);
    *real = 1;
    EXPECT_EQ(first[5], 7);
  }
  EXPECT_EQ(scratch.TakeInts(3), first);
  EXPECT_EQ(scratch.num_bytes(), 2 * sizeof(double) + 6 * sizeof(int32_t));
  Scratch<double> counted = Scratch<double>::CountOnly();
  EXPECT_EQ(counted.TakeInts(6), nullptr);
  EXPECT_EQ(counted.num_bytes(), 6 * sizeof(int32_t));
}

TEST(Scratch, MemoryGrowsToTheLargestSizeOnly) {
  Scratch<float> scratch;
  for (const int64_t count : {10, 40, 20, 40}) {
    const Scratch<float>::Frame frame(scratch);
    scratch.Take(count);
  }
  EXPECT_EQ(scratch.num_bytes(), 40 * sizeof(float));
}

}  // namespace
}  // namespace pmkvq
