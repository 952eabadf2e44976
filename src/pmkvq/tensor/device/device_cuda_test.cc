// Buffers, streams, events and copies on a CUDA device.
#include <cstring>
#include <vector>

#include "pmkvq/base/error.h"
#include "pmkvq/tensor/device/buffer.h"
#include "pmkvq/tensor/device/captured_work.h"
#include "pmkvq/tensor/device/foreign_stream.h"
#include "support/expect_error.h"
#include "support/gpu_test.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;

class DeviceCudaTest : public GpuTest {};

TEST_F(DeviceCudaTest, QueryDescribesTheDevice) {
  const DeviceInfo info = Query(kDevice);
  EXPECT_FALSE(info.name.empty());
  EXPECT_GT(info.num_multiprocessors, 0);
  EXPECT_GT(info.total_bytes, size_t{1} << 30);
  EXPECT_LE(info.free_bytes, info.total_bytes);
}

TEST_F(DeviceCudaTest, BytesComeBackAsTheyWentThere) {
  constexpr size_t kBytes = 100'003;
  const Buffer first(kDevice, kBytes);
  const Buffer second(kDevice, kBytes);
  const PinnedBuffer pinned(kDevice, kBytes);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(first.data()) % 64, 0u);
  for (size_t i = 0; i < kBytes; ++i) pinned.data()[i] = static_cast<std::byte>(i * 7 % 251);
  CopyToDevice(stream(), first.data(), pinned.data(), kBytes);
  CopyOnDevice(stream(), second.data(), first.data(), kBytes);
  FillOnDevice(stream(), second.data() + 10, 0xab, 5);
  std::vector<std::byte> back(kBytes);
  CopyToHost(stream(), back.data(), second.data(), kBytes);
  stream().Synchronize();
  for (size_t i = 0; i < kBytes; ++i) {
    const auto expected = i >= 10 && i < 15 ? std::byte{0xab} : pinned.data()[i];
    ASSERT_EQ(back[i], expected) << i;
  }
}

TEST_F(DeviceCudaTest, EventsMeasureAndOrderStreams) {
  Stream other(kDevice);
  const Buffer memory(kDevice, size_t{64} << 20);
  StreamEvent begin(kDevice);
  StreamEvent end(kDevice);
  begin.Record(stream());
  FillOnDevice(stream(), memory.data(), 1, memory.num_bytes());
  end.Record(stream());
  other.Wait(end);
  FillOnDevice(other, memory.data(), 2, 1);
  other.Synchronize();
  end.Synchronize();
  EXPECT_GT(MicrosecondsBetween(begin, end), 0.0);
  uint8_t first[2] = {};
  CopyToHost(other, first, memory.data(), 2);
  other.Synchronize();
  EXPECT_EQ(first[0], 2);
  EXPECT_EQ(first[1], 1);
}

// Another library's stream is a handle; here that of a stream of ours.
TEST_F(DeviceCudaTest, ForeignStreamsAndOursWaitForEachOther) {
  Stream other(kDevice);
  const Buffer memory(kDevice, size_t{256} << 20);
  StreamEvent given(kDevice);
  StreamEvent done(kDevice);
  FillOnDevice(other, memory.data(), 1, memory.num_bytes());
  RecordForeign(kDevice, given, other.handle());
  stream().Wait(given);
  FillOnDevice(stream(), memory.data(), 2, memory.num_bytes() - 1);
  done.Record(stream());
  MakeForeignWait(kDevice, other.handle(), done);
  uint8_t last[2] = {};
  CopyToHost(other, last, memory.data() + memory.num_bytes() - 2, 2);
  other.Synchronize();
  EXPECT_EQ(last[0], 2);
  EXPECT_EQ(last[1], 1);
  // The default stream has no handle.
  RecordForeign(kDevice, given, nullptr);
  MakeForeignWait(kDevice, nullptr, done);
  given.Synchronize();
}

TEST_F(DeviceCudaTest, CapturedWorkRunsWhenItIsLaunched) {
  const Buffer memory(kDevice, 64);
  const auto first_byte = [&] {
    uint8_t value = 0;
    CopyToHost(stream(), &value, memory.data(), 1);
    stream().Synchronize();
    return int{value};
  };
  FillOnDevice(stream(), memory.data(), 1, 64);
  CapturedWork work(stream(), [&] { FillOnDevice(stream(), memory.data(), 2, 64); });
  EXPECT_EQ(first_byte(), 1);
  work.Launch(stream());
  EXPECT_EQ(first_byte(), 2);
  FillOnDevice(stream(), memory.data(), 3, 64);
  work.Launch(stream());
  EXPECT_EQ(first_byte(), 2);
  // What throws while it is recorded leaves a stream that still works.
  EXPECT_THROW(CapturedWork(stream(), [] { throw InvalidInput("test", "thrown"); }), InvalidInput);
  EXPECT_EQ(first_byte(), 2);
}

TEST_F(DeviceCudaTest, TooMuchMemoryIsRefusedWithFiguresAndTheDeviceGoesOn) {
  const size_t too_much = Query(kDevice).total_bytes + (size_t{1} << 30);
  ExpectError<DeviceError>([&] { const Buffer buffer(kDevice, too_much); },
                           {"[cuda:0] memory: asked for " + std::to_string(too_much) + " bytes",
                            "free of", "--kv-budget"});
  const Buffer small(kDevice, 64);
  FillOnDevice(stream(), small.data(), 0, 64);
  stream().Synchronize();
}

}  // namespace
}  // namespace pmkvq
