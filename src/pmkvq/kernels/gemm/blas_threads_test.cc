#include "pmkvq/kernels/gemm/blas_threads.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "pmkvq/kernels/gemm/gemm.h"

extern "C" int openblas_get_num_threads(void);
extern "C" void openblas_set_num_threads(int);

namespace pmkvq {
namespace {

// The host process's setting, put back at the end of a test.
class HostSetting {
 public:
  explicit HostSetting(int threads) { openblas_set_num_threads(threads); }
  ~HostSetting() { openblas_set_num_threads(before_); }

 private:
  int before_ = openblas_get_num_threads();
};

constexpr int64_t kRows = 2 * kDecodeRows;
constexpr int64_t kSize = 64;

// Each way into BLAS once.
void Multiply() {
  const std::vector<float> weights(kSize * kSize, 0.5f);
  const WeightView weight{reinterpret_cast<const std::byte*>(weights.data()), WeightFormat::kF32,
                          kSize, kSize};
  const std::vector<float> x(kRows * kSize, 1.0f);
  std::vector<float> y(x.size());
  MatMul(x.data(), kRows, weight, nullptr, y.data(), 2);
  EXPECT_EQ(y.back(), 32.0f);
  MatMulGradInput(x.data(), kRows, weight, y.data(), /*accumulate=*/false, 2);
  EXPECT_EQ(y.back(), 32.0f);
  BlasGemm<float>(false, false, kSize, kSize, kSize, 1.0f, weights.data(), kSize, weights.data(),
                  kSize, 0.0f, y.data(), kSize);
  EXPECT_EQ(y.front(), 16.0f);
}

TEST(BlasThreads, TheHostsSettingStays) {
  const HostSetting host(2);
  Multiply();
  EXPECT_EQ(openblas_get_num_threads(), 2);
}

TEST(BlasThreads, OneWhileAnyLives) {
  const HostSetting host(2);
  {
    const internal::OneBlasThread first;
    EXPECT_EQ(openblas_get_num_threads(), 1);
    {
      const internal::OneBlasThread second;
      EXPECT_EQ(openblas_get_num_threads(), 1);
    }
    EXPECT_EQ(openblas_get_num_threads(), 1);
  }
  EXPECT_EQ(openblas_get_num_threads(), 2);
}

TEST(BlasThreads, ManyCallersAtOnceLeaveTheSetting) {
  const HostSetting host(2);
  std::vector<std::thread> callers;
  std::atomic<int> wrong{0};
  for (int i = 0; i < 4; ++i) {
    callers.emplace_back([&] {
      for (int round = 0; round < 50; ++round) {
        const internal::OneBlasThread mine;
        Multiply();
        wrong += openblas_get_num_threads() == 1 ? 0 : 1;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(openblas_get_num_threads(), 2);
}

}  // namespace
}  // namespace pmkvq
