// The budget rule of simulated methods: a few lengths tell the most bytes on the way to any length.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "pmkvq/base/random.h"
#include "pmkvq/kv/simulated/simulated_cache.h"
#include "pmkvq/research/methods/simulated_method.h"
#include "support/cpu_time.h"

namespace pmkvq {

SimulatedMethod RtnMethod();
SimulatedMethod KiviMethod();
SimulatedMethod MikvMethod();
SimulatedMethod RotateKvMethod();
SimulatedMethod MixKvqMethod();
SimulatedMethod KittyMethod();
SimulatedMethod KvTunerMethod();
SimulatedMethod OscarMethod();
SimulatedMethod KvMixMethod();
SimulatedMethod TadaMethod();
SimulatedMethod DecoQuantMethod();
SimulatedMethod KvarNMethod();
SimulatedMethod TurboQuantMethod();
SimulatedMethod QaqMethod();
SimulatedMethod XQuantMethod();
SimulatedMethod SvdqMethod();
SimulatedMethod SubGenMethod();
SimulatedMethod CocktailMethod();

namespace {

struct Case {
  SimulatedMethod (*method)();
  const char* spec;
};

// Each method with its defaults, and with windows, ratios and widths at their ends.
constexpr Case kCases[] = {
    {RtnMethod, "rtn"},
    {RtnMethod, "rtn:bits=3"},
    {KiviMethod, "kivi"},
    {KiviMethod, "kivi:group=64+residual=64"},
    {KiviMethod, "kivi:residual=4096"},
    {KiviMethod, "kivi:bits=4+reference"},
    {MikvMethod, "mikv"},
    {MikvMethod, "mikv:ratio=0"},
    {MikvMethod, "mikv:ratio=1"},
    {MikvMethod, "mikv:bits=4+high=8+ratio=0.37"},
    {MikvMethod, "mikv:reference+ratio=0.999"},
    {RotateKvMethod, "rotatekv"},
    {RotateKvMethod, "rotatekv:pivots=0"},
    {MixKvqMethod, "mixkvq"},
    {MixKvqMethod, "mixkvq:sink=100+residual=1024"},
    {MixKvqMethod, "mixkvq:high=0+mid=1+group=64"},
    {KittyMethod, "kitty"},
    {KittyMethod, "kitty:boost=1+sink=0"},
    {KittyMethod, "kitty:boost=0+sink=4096"},
    {KvTunerMethod, "kvtuner"},
    {KvTunerMethod, "kvtuner:axis=channel"},
    {KvTunerMethod, "kvtuner:axis=channel+k=8+v=2"},
    {OscarMethod, "oscar:hadamard"},
    {OscarMethod, "oscar:hadamard+sink=0+recent=0"},
    {OscarMethod, "oscar:hadamard+sink=4096+recent=4096"},
    {KvMixMethod, "kvmix:k=3+v=4"},
    {KvMixMethod, "kvmix:k=2+v=2"},
    {KvMixMethod, "kvmix:k=3+v=2+recent-high=0.9+recent-low=0.9"},
    {TadaMethod, "tada"},
    {TadaMethod, "tada:bits=2+residual=1000+mean=f32"},
    {DecoQuantMethod, "decoquant"},
    {DecoQuantMethod, "decoquant:bits=2+columns=64+residual=1"},
    {KvarNMethod, "kvarn"},
    {KvarNMethod, "kvarn:k=8+sink=4096+tile=64"},
    {TurboQuantMethod, "turboquant:qjl"},
    {TurboQuantMethod, "turboquant:k=3+v=1+recent=700"},
    {QaqMethod, "qaq"},
    {QaqMethod, "qaq:bits=1+unit=layer+outliers=0.4+rows=64"},
    {XQuantMethod, "xquant:kq=0+vq=0+km=0+vm=0"},
    {XQuantMethod, "xquant:group=64+residual=4096+km=0"},
    {SvdqMethod, "svdq"},
    {SubGenMethod, "subgen"},
    {SubGenMethod, "subgen:clusters=4096+recent=0+values=1"},
    {CocktailMethod, "cocktail-own"},
};

class ByteGrowthTest : public testing::TestWithParam<Case> {
 protected:
  static std::shared_ptr<const CacheMethod> Make(DType float_type, int64_t head_dim) {
    const MethodContext context{{2, 4, 2, head_dim}, float_type, nullptr};
    return GetParam().method().make(ParseMethodSpec(GetParam().spec), context);
  }
};

TEST_P(ByteGrowthTest, EqualsAWalkOverAllLengths) {
  constexpr int64_t kMaxTokens = 20000;  // Beyond all windows.
  for (const DType float_type : {DType::kF16, DType::kF32}) {
    for (const int64_t head_dim : {64, 128}) {
      const auto method = Make(float_type, head_dim);
      int64_t most = 0;
      for (int64_t n = 1; n <= kMaxTokens; ++n) {
        most = std::max(most, method->BlockBytes(1, n));
        // Every length where something may change, and a sample of the long ones.
        if (n > 600 && n % 61 != 0 && n % 128 > 1) continue;
        ASSERT_EQ(MostBlockBytes(*method, 1, n), most) << n << " tokens";
      }
    }
  }
}

// What the rule rests on, at lengths that no walk reaches.
TEST_P(ByteGrowthTest, HoldsAtHugeLengths) {
  const auto method = Make(DType::kF16, 128);
  const ByteGrowth growth = method->Growth(0);
  Random random(7);
  for (int i = 0; i < 2000; ++i) {
    const auto n = growth.from + static_cast<int64_t>(random.Below(uint64_t{1} << (i % 41)));
    ASSERT_GE(method->BlockBytes(0, n + growth.period), method->BlockBytes(0, n)) << n;
  }
}

TEST_P(ByteGrowthTest, IsFastAtHugeLengths) {
  const double start = testing_support::CpuSeconds();
  const int64_t bytes = MostBlockBytes(*Make(DType::kF16, 128), 0, int64_t{1} << 40);
  EXPECT_GE(bytes, Make(DType::kF16, 128)->BlockBytes(0, int64_t{1} << 40));
  EXPECT_LT(testing_support::CpuSeconds() - start, 1);
}

INSTANTIATE_TEST_SUITE_P(Methods, ByteGrowthTest, testing::ValuesIn(kCases),
                         [](const testing::TestParamInfo<Case>& row) {
                           std::string name = row.param.spec;
                           for (char& c : name) c = std::isalnum(c) != 0 ? c : '_';
                           return name;
                         });

}  // namespace
}  // namespace pmkvq
