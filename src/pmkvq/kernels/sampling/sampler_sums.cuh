// What the sampler's kernels compute with: keys that order logits, weights as exact integers, and
// sums over a block of threads. device_sampler.h has the definition.
#pragma once

#include <cuda_runtime.h>

#include <cfloat>
#include <cstdint>

namespace pmkvq::cuda {

using Word = unsigned long long;
using Wide = unsigned __int128;

constexpr unsigned kAllLanes = 0xffffffffu;

// Unsigned integers in the order of the floats; both zeros are one. A NaN is above all.
constexpr uint32_t kNanKey = 0xffffffffu;
__device__ __forceinline__ uint32_t KeyOf(float logit) {
  uint32_t bits = __float_as_uint(logit);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return kNanKey;
  if (bits == 0x80000000u) bits = 0;
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float LogitOf(uint32_t key) {
  return __uint_as_float((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key);
}
// Of -FLT_MAX and FLT_MAX.
constexpr uint32_t kLowestKey = 0x00800000u;
constexpr uint32_t kHighestKey = 0xff7fffffu;

// A sum of weights, (high + low 2^-42) 2^-42, each part below 2^42 times the number of weights.
struct Mass {
  Word high;
  Word low;

  __device__ Mass& operator+=(const Mass& other) {
    high += other.high;
    low += other.low;
    return *this;
  }
  // In units of 2^-84.
  __device__ Wide Units() const { return (static_cast<Wide>(high) << 42) + low; }
};
constexpr double kHighUnits = 0x1p42;

__device__ __forceinline__ Mass MassOf(double weight) {
  const double scaled = weight * kHighUnits;
  const Word high = static_cast<Word>(scaled);
  return {high, static_cast<Word>((scaled - static_cast<double>(high)) * kHighUnits)};
}

// Masses and the number of tokens.
struct Sum {
  Mass mass;
  uint32_t count;

  __device__ Sum& operator+=(const Sum& other) {
    mass += other.mass;
    count += other.count;
    return *this;
  }
};

__device__ __forceinline__ double AsDouble(Wide units) {
  return static_cast<double>(static_cast<Word>(units >> 64)) * 0x1p64 +
         static_cast<double>(static_cast<Word>(units));
}

// A whole number of units, and half of the distance to the next double above.
struct Rounded {
  Wide units;
  Wide half_step;
};
__device__ __forceinline__ Rounded RoundedUnits(double value) {
  const Word bits = static_cast<Word>(__double_as_longlong(value));
  const int exponent = static_cast<int>(bits >> 52) - 1075;  // `value` is not negative.
  const Wide digits = (bits & 0xfffffffffffffull) | 0x10000000000000ull;
  if (exponent < -52) return {0, 0};
  if (exponent <= 0) return {digits >> -exponent, 0};
  return {digits << exponent, static_cast<Wide>(1) << (exponent - 1)};
}

// Of a row. The weight of a token is exp(x), x = (logit - max) / temperature.
struct RowScale {
  float max;
  double temperature;

  __device__ double Exponent(float logit) const {
    return (static_cast<double>(logit) - static_cast<double>(max)) / temperature;
  }
};
// exp(-60) is less than half a unit.
__device__ __forceinline__ double WeightOf(double exponent) {
  return exponent < -60.0 ? 0.0 : exp(exponent);
}

// Tokens are told apart by levels of their exponents at first: the 64th part of 1 each, and all
// from -32 on in the last one. A level never increases with the logit.
constexpr int kLevels = 2048;
__device__ __forceinline__ int LevelOf(double exponent) {
  const double level = -64.0 * exponent;
  return level < static_cast<double>(kLevels - 1) ? static_cast<int>(level) : kLevels - 1;
}

// Sums by bins, in shared or global memory.
struct Bins {
  Word* high;
  Word* low;
  uint32_t* count;

  __device__ Sum At(int bin) const { return {{high[bin], low[bin]}, count[bin]}; }
  __device__ void Clear(int bin) const {
    high[bin] = 0;
    low[bin] = 0;
    count[bin] = 0;
  }
  __device__ void Add(int bin, const Sum& sum) const {
    if (sum.mass.high != 0) atomicAdd(high + bin, sum.mass.high);
    if (sum.mass.low != 0) atomicAdd(low + bin, sum.mass.low);
    atomicAdd(count + bin, sum.count);
  }
};

__device__ __forceinline__ Sum ShuffleXor(const Sum& sum, int lanes) {
  return {{__shfl_xor_sync(kAllLanes, sum.mass.high, lanes),
           __shfl_xor_sync(kAllLanes, sum.mass.low, lanes)},
          __shfl_xor_sync(kAllLanes, sum.count, lanes)};
}
__device__ __forceinline__ Sum ShuffleUp(const Sum& sum, unsigned lanes) {
  return {{__shfl_up_sync(kAllLanes, sum.mass.high, lanes),
           __shfl_up_sync(kAllLanes, sum.mass.low, lanes)},
          __shfl_up_sync(kAllLanes, sum.count, lanes)};
}
__device__ __forceinline__ Sum WarpSum(Sum sum) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) sum += ShuffleXor(sum, lanes);
  return sum;
}

// Adds a token to a bin; -1: to none. All lanes of a warp call it together: many equal logits,
// which all go to one bin, are one addition a warp.
__device__ __forceinline__ void AddToken(const Bins& bins, int bin, const Mass& mass) {
  int all_equal = 0;
  __match_all_sync(kAllLanes, bin, &all_equal);
  if (all_equal != 0) {
    if (bin < 0) return;
    const Sum sum = WarpSum({mass, 1});
    if (threadIdx.x % 32 == 0) bins.Add(bin, sum);
  } else if (bin >= 0) {
    bins.Add(bin, {mass, 1});
  }
}

// Calls visit(id, logit) for ids [begin, end) of a row, by all threads of the block; each thread is
// called as often, with -inf in place of what is behind the end.
// kLoads are in flight at a time.
template <int kLoads, class Visit>
__device__ __forceinline__ void ForTokens(const float* logits, int begin, int end,
                                          const Visit& visit) {
  const int threads = static_cast<int>(blockDim.x);
  for (int base = begin + static_cast<int>(threadIdx.x); base - static_cast<int>(threadIdx.x) < end;
       base += kLoads * threads) {
    float values[kLoads];
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      const int id = base + j * threads;
      values[j] = id < end ? logits[id] : __uint_as_float(0xff800000u);
    }
#pragma unroll
    for (int j = 0; j < kLoads; ++j) visit(base + j * threads, values[j]);
  }
}

// What a search looks for: the first item at which the sums reach a number of tokens, or a mass.
struct Target {
  bool by_count;
  uint32_t count;
  Wide units;

  __device__ bool ReachedBy(const Sum& sum) const {
    return by_count ? sum.count >= count : sum.mass.Units() >= units;
  }
};

// An item, the sum of all before it, and its own.
struct Crossing {
  int index;
  Sum before;
  Sum own;
};

constexpr int kMostWarps = 32;
struct SearchMemory {
  Sum warps[kMostWarps];
  Crossing found;
};

// Finds the item of `load`(0 .. blockDim * kItems - 1) at which the sums, which begin with
// `before`, reach the target; they do. By all threads of the block.
template <int kItems, class Load>
__device__ Crossing FindCrossing(const Load& load, const Sum& before, const Target& target,
                                 SearchMemory& memory) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int warp = static_cast<int>(threadIdx.x / 32);
  const int first = static_cast<int>(threadIdx.x) * kItems;
  Sum mine{};
  for (int i = 0; i < kItems; ++i) mine += load(first + i);
  Sum upto = mine;
#pragma unroll
  for (int lanes = 1; lanes < 32; lanes *= 2) {
    const Sum other = ShuffleUp(upto, static_cast<unsigned>(lanes));
    if (lane >= lanes) upto += other;
  }
  __syncthreads();  // An earlier search may still be read.
  if (lane == 31) memory.warps[warp] = upto;
  __syncthreads();
  Sum running = before;
  for (int w = 0; w < warp; ++w) running += memory.warps[w];
  Sum end = running;
  end += upto;
  // The sum before this thread's items.
  running = end;
  running.mass.high -= mine.mass.high;
  running.mass.low -= mine.mass.low;
  running.count -= mine.count;
  if (!target.ReachedBy(running) && target.ReachedBy(end)) {
    for (int i = 0; i < kItems; ++i) {
      const Sum own = load(first + i);
      Sum after = running;
      after += own;
      if (target.ReachedBy(after)) {
        memory.found = {first + i, running, own};
        break;
      }
      running = after;
    }
  }
  __syncthreads();
  return memory.found;
}

}  // namespace pmkvq::cuda
