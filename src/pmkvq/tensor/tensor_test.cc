#include "pmkvq/tensor/tensor.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "pmkvq/base/error.h"
#include "pmkvq/tensor/device/buffer.h"
#include "pmkvq/tensor/device/device_info.h"
#include "support/expect_error.h"

namespace pmkvq {
namespace {

TEST(DType, SizesAndNames) {
  const std::vector<std::tuple<DType, size_t, std::string_view>> cases = {
      {DType::kF32, 4, "F32"},  {DType::kF16, 2, "F16"}, {DType::kBF16, 2, "BF16"},
      {DType::kF64, 8, "F64"},  {DType::kI8, 1, "I8"},   {DType::kU8, 1, "U8"},
      {DType::kI16, 2, "I16"},  {DType::kU16, 2, "U16"}, {DType::kI32, 4, "I32"},
      {DType::kU32, 4, "U32"},  {DType::kI64, 8, "I64"}, {DType::kU64, 8, "U64"},
      {DType::kBool, 1, "BOOL"}};
  for (const auto& [dtype, size, name] : cases) {
    EXPECT_EQ(SizeOf(dtype), size) << name;
    EXPECT_EQ(NameOf(dtype), name);
    EXPECT_EQ(IsFloat16Or32(dtype), name == "F32" || name == "F16" || name == "BF16") << name;
  }
}

TEST(Shape, CountsAndPrints) {
  EXPECT_EQ(NumElements({}), 1);
  EXPECT_EQ(NumElements({2, 128, 64}), 2 * 128 * 64);
  EXPECT_EQ(NumElements({3, 0}), 0);
  EXPECT_EQ(ToString(Shape{}), "[]");
  EXPECT_EQ(ToString(Shape{2, 128, 64}), "[2, 128, 64]");
}

TEST(Tensor, IsZeroedAlignedAndKeepsItsDataWhenMoved) {
  Tensor tensor(DType::kF32, {3, 5});
  EXPECT_EQ(reinterpret_cast<uintptr_t>(tensor.data()) % kAlignment, 0u);
  for (int i = 0; i < 15; ++i) ASSERT_EQ(tensor.As<float>()[i], 0.0f);
  tensor.As<float>()[14] = 2.5f;
  const std::byte* data = tensor.data();
  const Tensor moved = std::move(tensor);
  EXPECT_EQ(moved.view().data, data);
  EXPECT_EQ(moved.view().As<float>()[14], 2.5f);
  EXPECT_EQ(moved.view().num_bytes(), 60u);
  EXPECT_EQ(moved.num_elements(), 15);
}

TEST(TensorDeathTest, WrongTypeIsACallerBug) {
  Tensor tensor(DType::kBF16, {2});
  EXPECT_EQ(tensor.As<BF16>()[1].bits, 0);
  EXPECT_DEATH(tensor.As<float>(), "check failed");
  EXPECT_DEATH(tensor.view().As<F16>(), "check failed");
}

TEST(Buffer, IsWritableToItsLastByte) {
  Buffer buffer(DeviceId(), 100001);
  EXPECT_EQ(buffer.num_bytes(), 100001u);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % kAlignment, 0u);
  buffer.data()[0] = std::byte{1};
  buffer.data()[100000] = std::byte{2};
  EXPECT_EQ(buffer.data()[100000], std::byte{2});
}

TEST(Buffer, MayBeEmpty) {
  const Buffer buffer(DeviceId(), 0);
  EXPECT_EQ(buffer.data(), nullptr);
}

TEST(Buffer, SaysHowMuchWasRefused) {
  constexpr size_t kTooMuch = std::numeric_limits<size_t>::max() / 2;
  testing_support::ExpectError<IoError>([] { Buffer(DeviceId(), kTooMuch); },
                                        {"[memory]", std::to_string(kTooMuch)});
}

TEST(Buffer, OfADeviceWithoutCodeIsRefused) {
  if (CudaVersionText() != "none") GTEST_SKIP() << "this build has CUDA";
  testing_support::ExpectError<Unsupported>(
      [] {
        Buffer(DeviceId{Device::kCuda, 0}, 4096);
      },
      {"[cuda:0] memory of 4096 bytes: found a program built without code for this device",
       "device cpu"});
}

TEST(Buffer, ItsViewHasItsDevice) {
  const Buffer buffer(DeviceId(), 100);
  EXPECT_EQ(buffer.view().device, DeviceId());
  EXPECT_EQ(buffer.view().data, buffer.data());
  EXPECT_EQ(buffer.view().num_bytes, 100u);
  EXPECT_EQ(NameOf(buffer.device()), "cpu");
}

}  // namespace
}  // namespace pmkvq
