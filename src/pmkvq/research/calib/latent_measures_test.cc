// Damage of quantising latents and their rope parts, by the scalar definition.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "pmkvq/base/random.h"
#include "pmkvq/research/calib/block_measures.h"

namespace pmkvq {
namespace {

// Mean of |(Q_b(x) - x) g| over groups of `group` values.
double ScalarDamage(const std::vector<float>& x, const std::vector<float>& gradient, size_t group,
                    int bits) {
  double sum = 0;
  for (size_t first = 0; first < x.size(); first += group) {
    const auto [low, high] = std::minmax_element(x.begin() + static_cast<ptrdiff_t>(first),
                                                 x.begin() + static_cast<ptrdiff_t>(first + group));
    const float step = (*high - *low) / static_cast<float>((1 << bits) - 1);
    for (size_t i = first; i < first + group; ++i) {
      const float quantised = std::nearbyint((x[i] - *low) / step) * step + *low;
      sum += std::abs((static_cast<double>(quantised) - x[i]) * gradient[i]);
    }
  }
  return sum / static_cast<double>(x.size());
}

TEST(LatentMeasures, DamagesAreThoseOfTheScalarDefinition) {
  constexpr int64_t kTokens = 17;
  KvGeometry geometry;
  geometry.blocks = {LatentBlockOf(3, 256, 24), LatentBlockOf(3, 256, 24)};
  Random random(3);
  const auto values = [&](int64_t width) {
    std::vector<float> x(static_cast<size_t>(kTokens * width));
    for (float& value : x) value = static_cast<float>(random.Uniform() * 4 - 1);
    return x;
  };
  const std::vector<float> c = values(256);
  const std::vector<float> dc = values(256);
  const std::vector<float> rope = values(24);
  const std::vector<float> drope = values(24);
  BlockStates<float> states;
  states.layer = 1;
  states.num_tokens = kTokens;
  states.k = c.data();
  states.v = rope.data();
  states.dk = dc.data();
  states.dv = drope.data();
  std::vector<double> sums(NumDamages(2));
  MeasureDamages(geometry, states, /*num_threads=*/2, sums);
  const Sensitivity sensitivity = SensitivityFrom(2, sums, /*num_samples=*/1);
  for (const int bits : {8, 4, 2}) {
    const size_t width = WidthIndex(bits);
    const double expected_c = ScalarDamage(c, dc, 128, bits);
    const double expected_rope = ScalarDamage(rope, drope, 24, bits);
    EXPECT_NEAR(sensitivity.k[width][1], expected_c, 1e-4 * expected_c) << bits;
    EXPECT_NEAR(sensitivity.v[width][1], expected_rope, 1e-4 * expected_rope) << bits;
    EXPECT_EQ(sensitivity.k[width][0], 0.0);
  }
}

}  // namespace
}  // namespace pmkvq
