// Random numbers that are the same on every platform and compiler.
// (std:: distributions are not: each library draws differently.)
#pragma once

#include <cstdint>

namespace pmkvq {

// SplitMix64: one 64-bit state, passes BigCrush, good enough to seed and to sample.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t Next() {
    state_ += 0x9e3779b97f4a7c15ull;
    uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
  }

  // Uniform in [0, 1) with 53 random bits.
  double Uniform() { return static_cast<double>(Next() >> 11) * 0x1p-53; }

  // Uniform in [0, bound), bound > 0. Unbiased (rejection).
  uint64_t Below(uint64_t bound) {
    const uint64_t limit = ~uint64_t{0} - (~uint64_t{0} % bound + 1) % bound;
    uint64_t value = Next();
    while (value > limit) value = Next();
    return value % bound;
  }

 private:
  uint64_t state_;
};

// A seed for stream `index` of a run seeded with `seed`, independent of other indices.
inline uint64_t StreamSeed(uint64_t seed, uint64_t index) {
  Random mix(seed ^ (index * 0xd1342543de82ef95ull + 0x632be59bd9b4e019ull));
  return mix.Next();
}

}  // namespace pmkvq
