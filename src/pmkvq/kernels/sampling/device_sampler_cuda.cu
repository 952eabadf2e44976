// Drawing tokens on CUDA in three launches. Scan looks at all logits for the largest and for NaN;
// greedy rows are done then. Weigh sums the weights, by parts of the vocabulary and, for rows whose
// filters sort, by levels of the logit. Choose, with one block of threads a row, finds the level at
// which the filters end, or the drawn token lies, and sorts the tokens of that level only.
#include <algorithm>

#include "pmkvq/base/check.h"
#include "pmkvq/kernels/cuda/copy.cuh"
#include "pmkvq/kernels/cuda/launch.cuh"
#include "pmkvq/kernels/sampling/batch_sampler.h"
#include "pmkvq/kernels/sampling/device_sampler.h"
#include "pmkvq/kernels/sampling/sampler_sums.cuh"
#include "pmkvq/tensor/device/cuda_runtime.h"

namespace pmkvq {
namespace cuda {
namespace {

constexpr int kPart = 8192;  // Tokens that a block of threads scans or weighs.
constexpr int kScanThreads = 256;
constexpr int kWeighThreads = 512;
constexpr int kChooseThreads = 512;
// Tokens that are sorted; levels with more are cut into finer ones.
constexpr int kMostSorted = 2048;
constexpr int kItems = kLevels / kChooseThreads;
static_assert(kMostSorted == kLevels);

struct Arguments {
  const float* logits;
  const DeviceDraw* draws;
  DeviceDrawn* out;
  int vocab_size;
  int num_parts;
  // Scratch. The largest key of a part, and the lowest id that has it: key << 32 | ~id.
  Word* best;              // [row, part]
  Word* part_masses;       // [row, part, 2]: of the tokens that min-p keeps.
  Word* level_masses;      // [row, 2, kLevels]: high, low
  uint32_t* level_counts;  // [row, kLevels]

  __device__ const float* LogitsOf(int row) const {
    return logits + static_cast<size_t>(row) * vocab_size;
  }
  __device__ Bins LevelsOf(int row) const {
    Word* high = level_masses + static_cast<size_t>(row) * 2 * kLevels;
    return {high, high + kLevels, level_counts + static_cast<size_t>(row) * kLevels};
  }
  __device__ Word* PartMass(int row, int part) const {
    return part_masses + (static_cast<size_t>(row) * num_parts + part) * 2;
  }
};

__device__ bool IsGreedy(const DeviceDraw& draw) { return !(draw.temperature > 0.0); }
__device__ bool IsSorted(const DeviceDraw& draw) { return draw.top_k > 0 || draw.top_p < 1.0; }
__device__ bool IsFinite(uint32_t key) { return key >= kLowestKey && key <= kHighestKey; }

__global__ void __launch_bounds__(kScanThreads) ScanKernel(const Arguments a) {
  LetNextKernelStart();
  WaitForEarlierKernel();
  __shared__ Word warps[kScanThreads / 32];
  const int row = static_cast<int>(blockIdx.y);
  const int part = static_cast<int>(blockIdx.x);
  if (a.draws[row].active == 0) return;
  const Bins levels = a.LevelsOf(row);
  for (int level = part * kScanThreads + static_cast<int>(threadIdx.x); level < kLevels;
       level += a.num_parts * kScanThreads) {
    levels.Clear(level);
  }
  Word best = 0;
  ForTokens<8>(a.LogitsOf(row), part * kPart, min((part + 1) * kPart, a.vocab_size),
               [&](int id, float logit) {
                 const Word key = KeyOf(logit);
                 best = max(best, key << 32 | static_cast<uint32_t>(~id));
               });
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    best = max(best, __shfl_xor_sync(kAllLanes, best, lanes));
  }
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = best;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (const Word other : warps) best = max(best, other);
  a.best[static_cast<size_t>(row) * a.num_parts + part] = best;
}

// Of all parts; the same in all threads.
__device__ Word BestOf(const Arguments& a, int row) {
  Word best = 0;
  for (int part = static_cast<int>(threadIdx.x % 32); part < a.num_parts; part += 32) {
    best = max(best, a.best[static_cast<size_t>(row) * a.num_parts + part]);
  }
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    best = max(best, __shfl_xor_sync(kAllLanes, best, lanes));
  }
  return best;
}

__global__ void __launch_bounds__(kWeighThreads) WeighKernel(const Arguments a) {
  LetNextKernelStart();
  WaitForEarlierKernel();
  __shared__ Word high[kLevels];
  __shared__ Word low[kLevels];
  __shared__ uint32_t count[kLevels];
  __shared__ Sum kept_by_warp[kWeighThreads / 32];
  __shared__ Sum lowest_by_warp[kWeighThreads / 32];
  const int row = static_cast<int>(blockIdx.y);
  const int part = static_cast<int>(blockIdx.x);
  const DeviceDraw draw = a.draws[row];
  if (draw.active == 0 || IsGreedy(draw)) return;
  const auto best = static_cast<uint32_t>(BestOf(a, row) >> 32);
  if (!IsFinite(best)) return;
  const RowScale scale{LogitOf(best), draw.temperature};
  const bool is_sorted = IsSorted(draw);
  const Bins bins{high, low, count};
  if (is_sorted) {
    for (int level = static_cast<int>(threadIdx.x); level < kLevels; level += kWeighThreads) {
      bins.Clear(level);
    }
  }
  __syncthreads();
  Sum kept{};
  Sum lowest{};  // Of the last level, which may have most of the tokens.
  ForTokens<8>(a.LogitsOf(row), part * kPart, min((part + 1) * kPart, a.vocab_size),
               [&](int /*id*/, float logit) {
                 const bool is_token = KeyOf(logit) >= kLowestKey;
                 const double exponent = scale.Exponent(logit);
                 const double weight = is_token ? WeightOf(exponent) : 0.0;
                 const Mass mass = MassOf(weight);
                 if (weight >= draw.min_p) kept.mass += mass;
                 if (!is_sorted) return;
                 const int level = is_token ? LevelOf(exponent) : -1;
                 if (level == kLevels - 1) {
                   lowest.mass += mass;
                   ++lowest.count;
                 }
                 AddToken(bins, level == kLevels - 1 ? -1 : level, mass);
               });
  kept = WarpSum(kept);
  lowest = WarpSum(lowest);
  if (threadIdx.x % 32 == 0) {
    kept_by_warp[threadIdx.x / 32] = kept;
    lowest_by_warp[threadIdx.x / 32] = lowest;
  }
  __syncthreads();
  const Bins levels = a.LevelsOf(row);
  if (is_sorted) {
    for (int level = static_cast<int>(threadIdx.x); level < kLevels - 1; level += kWeighThreads) {
      if (count[level] != 0) levels.Add(level, bins.At(level));
    }
  }
  if (threadIdx.x != 0) return;
  for (int warp = 1; warp < kWeighThreads / 32; ++warp) {
    kept += kept_by_warp[warp];
    lowest += lowest_by_warp[warp];
  }
  a.PartMass(row, part)[0] = kept.mass.high;
  a.PartMass(row, part)[1] = kept.mass.low;
  if (lowest.count != 0) levels.Add(kLevels - 1, lowest);
}

// Memory of a block of Choose: of the bins that cut a level, or of the tokens to be sorted.
struct ChooseMemory {
  SearchMemory search;
  Word high[kLevels];  // Or ~key << 32 | id of tokens, ascending.
  Word low[kLevels];
  uint32_t count[kLevels];
  uint32_t num_listed;
  uint32_t keys[2];

  __device__ Bins bins() { return {high, low, count}; }
};

struct Row {
  const float* logits;
  int vocab_size;
  uint32_t best;  // Key of the largest logit.
  RowScale scale;

  __device__ Mass MassAt(uint32_t key) const {
    return MassOf(WeightOf(scale.Exponent(LogitOf(key))));
  }
  // The lowest key in [first, last] whose level is at most `level`, as that of `last` is. By all
  // lanes of a warp.
  __device__ uint32_t FirstKeyOf(int level, uint32_t first, uint32_t last) const {
    while (first < last) {
      const uint32_t step = (last - first) / 32 + 1;
      const uint32_t offset = step * (threadIdx.x % 32);
      const uint32_t key = last - first <= offset ? last : first + offset;
      const unsigned reached =
          __ballot_sync(kAllLanes, LevelOf(scale.Exponent(LogitOf(key))) <= level);
      const int lane = __ffs(static_cast<int>(reached)) - 1;
      if (lane == 0) return first;
      if (lane > 0) last = __shfl_sync(kAllLanes, key, lane);
      first = __shfl_sync(kAllLanes, key, lane > 0 ? lane - 1 : 31) + 1;
    }
    return first;
  }
};

// The token at which the sums in sorted order reach a target, and the mass up to it and with it.
struct Selected {
  Wide units;
  int id;
};

// Ids of tokens with one key, in ascending order: the one at place `rank`, from 1.
__device__ int IdOfRank(const Row& row, uint32_t key, uint32_t rank, ChooseMemory& memory) {
  uint32_t before = 0;
  for (int base = 0; base < row.vocab_size; base += kChooseThreads) {
    const int id = base + static_cast<int>(threadIdx.x);
    const bool is_equal = id < row.vocab_size && KeyOf(row.logits[id]) == key;
    const auto count = static_cast<uint32_t>(__syncthreads_count(is_equal ? 1 : 0));
    if (before + count >= rank) {
      const Crossing found = FindCrossing<1>(
          [&](int) {
            return Sum{{0, 0}, is_equal ? 1u : 0u};
          },
          Sum{{0, 0}, before}, Target{true, rank, 0}, memory.search);
      return base + found.index;
    }
    before += count;
  }
  return 0;
}

// Of tokens that all have one key.
__device__ Selected SelectEqual(const Row& row, uint32_t key, const Sum& before,
                                const Target& target, bool with_id, ChooseMemory& memory) {
  const Wide each = row.MassAt(key).Units();
  uint32_t rank = target.count - before.count;
  if (!target.by_count) {
    const Wide wanted = target.units - before.mass.Units();
    rank = static_cast<uint32_t>(AsDouble(wanted) / AsDouble(each));
    while (rank * each < wanted) ++rank;
    while (rank > 1 && (rank - 1) * each >= wanted) --rank;
  }
  return {before.mass.Units() + rank * each, with_id ? IdOfRank(row, key, rank, memory) : 0};
}

// Sorts memory.high ascending.
__device__ void SortListed(ChooseMemory& memory) {
  int size = 2;
  while (size < static_cast<int>(memory.num_listed)) size *= 2;
  for (int i = static_cast<int>(threadIdx.x); i < kMostSorted; i += kChooseThreads) {
    if (i >= static_cast<int>(memory.num_listed)) memory.high[i] = ~Word{0};
  }
  __syncthreads();
  for (int run = 2; run <= size; run *= 2) {
    for (int distance = run / 2; distance > 0; distance /= 2) {
      for (int pair = static_cast<int>(threadIdx.x); pair < size / 2; pair += kChooseThreads) {
        const int i = pair / distance * distance * 2 + pair % distance;
        const int j = i + distance;
        const Word x = memory.high[i];
        const Word y = memory.high[j];
        const bool ascends = (i & run) == 0;
        if ((x > y) == ascends) {
          memory.high[i] = y;
          memory.high[j] = x;
        }
      }
      __syncthreads();
    }
  }
}

// Of at most kMostSorted tokens with keys in [low, high].
__device__ Selected SelectSorted(const Row& row, uint32_t low, uint32_t high, const Sum& before,
                                 const Target& target, ChooseMemory& memory) {
  __syncthreads();
  if (threadIdx.x == 0) memory.num_listed = 0;
  __syncthreads();
  ForTokens<16>(row.logits, 0, row.vocab_size, [&](int id, float logit) {
    const uint32_t key = KeyOf(logit);
    if (key < low || key > high) return;
    const uint32_t place = atomicAdd(&memory.num_listed, 1u);
    memory.high[place] = static_cast<Word>(~key) << 32 | static_cast<uint32_t>(id);
  });
  __syncthreads();
  SortListed(memory);
  const Crossing found = FindCrossing<kItems>(
      [&](int i) {
        if (i >= static_cast<int>(memory.num_listed)) return Sum{};
        return Sum{row.MassAt(~static_cast<uint32_t>(memory.high[i] >> 32)), 1};
      },
      before, target, memory.search);
  Sum upto = found.before;
  upto += found.own;
  return {upto.mass.Units(), static_cast<int>(static_cast<uint32_t>(memory.high[found.index]))};
}

__device__ Selected Select(const Row& row, const Bins& levels, const Target& target, bool with_id,
                           ChooseMemory& memory) {
  Crossing found = FindCrossing<kItems>([&](int level) { return levels.At(level); }, Sum{}, target,
                                        memory.search);
  if (threadIdx.x < 32) {
    const uint32_t first =
        found.index == kLevels - 1 ? kLowestKey : row.FirstKeyOf(found.index, kLowestKey, row.best);
    const uint32_t end =
        found.index == 0 ? row.best + 1 : row.FirstKeyOf(found.index - 1, kLowestKey, row.best);
    if (threadIdx.x == 0) {
      memory.keys[0] = first;
      memory.keys[1] = end - 1;
    }
  }
  __syncthreads();
  uint32_t low = memory.keys[0];
  uint32_t high = memory.keys[1];
  while (found.own.count > kMostSorted && low < high) {
    const int shift = max(0, 32 - __clz(static_cast<int>(high - low)) - 11);
    const Bins bins = memory.bins();
    __syncthreads();
    for (int bin = static_cast<int>(threadIdx.x); bin < kLevels; bin += kChooseThreads) {
      bins.Clear(bin);
    }
    __syncthreads();
    ForTokens<16>(row.logits, 0, row.vocab_size, [&](int /*id*/, float logit) {
      const uint32_t key = KeyOf(logit);
      const bool is_inside = key >= low && key <= high;
      AddToken(bins, is_inside ? static_cast<int>((high - key) >> shift) : -1,
               is_inside ? row.MassAt(key) : Mass{});
    });
    __syncthreads();
    const Sum before = found.before;
    found =
        FindCrossing<kItems>([&](int bin) { return bins.At(bin); }, before, target, memory.search);
    high -= static_cast<uint32_t>(found.index) << shift;
    const uint32_t width = (1u << shift) - 1;
    low = high - low >= width ? high - width : low;
  }
  if (found.own.count > kMostSorted) {
    return SelectEqual(row, low, found.before, target, with_id, memory);
  }
  return SelectSorted(row, low, high, found.before, target, memory);
}

// The first token with a sum above `share` of the mass, rounded as ref::DrawToken rounds it; all of
// the mass where rounding leaves none.
__device__ Target Above(double share, Wide units) {
  const Rounded wanted = RoundedUnits(share * AsDouble(units));
  const Wide target = wanted.units + wanted.half_step + 1;
  return {false, 0, target < units ? target : units};
}
// With at least `share` of it.
__device__ Target AtLeast(double share, Wide units) {
  const Rounded wanted = RoundedUnits(share * AsDouble(units));
  Wide target = wanted.units - wanted.half_step;
  if (wanted.half_step != 0 || target == 0) ++target;
  return {false, 0, target < units ? target : units};
}

__device__ Mass PartMassOf(const Arguments& a, int row, int part) {
  if (part >= a.num_parts) return {};
  return {a.PartMass(row, part)[0], a.PartMass(row, part)[1]};
}

// Of the tokens that min-p keeps.
__device__ Wide MassOfParts(const Arguments& a, int row) {
  Sum sum{};
  for (int part = static_cast<int>(threadIdx.x % 32); part < a.num_parts; part += 32) {
    sum.mass += PartMassOf(a, row, part);
  }
  return WarpSum(sum).mass.Units();
}

__device__ int DrawSorted(const Arguments& a, const Row& row, const DeviceDraw& draw, int index,
                          ChooseMemory& memory) {
  const Bins levels = a.LevelsOf(index);
  Sum mine{};
  for (int level = static_cast<int>(threadIdx.x % 32); level < kLevels; level += 32) {
    mine += levels.At(level);
  }
  const Sum all = WarpSum(mine);
  // Filters keep the first tokens of the sorted order: all that is to be known is their mass. One
  // search for each, and the last one for the token; in a loop, since a search is much code.
  Wide units = all.mass.Units();
  Selected selected{};
  for (int step = 0; step < 3; ++step) {
    Target target;
    if (step == 0) {
      if (draw.top_k <= 0 || draw.top_k >= static_cast<int64_t>(all.count)) continue;
      target = {true, static_cast<uint32_t>(draw.top_k), 0};
    } else if (step == 1) {
      if (!(draw.top_p < 1.0)) continue;
      target = AtLeast(draw.top_p, units);
    } else {
      if (draw.min_p > 0.0) {
        const Wide kept = MassOfParts(a, index);
        units = kept < units ? kept : units;
      }
      target = Above(draw.uniform, units);
    }
    selected = Select(row, levels, target, step == 2, memory);
    units = selected.units;
  }
  return selected.id;
}

// In the order of ids: without filters, or with min-p only.
__device__ int DrawInOrder(const Arguments& a, const Row& row, const DeviceDraw& draw, int index,
                           ChooseMemory& memory) {
  const Target target = Above(draw.uniform, MassOfParts(a, index));
  const Crossing part = FindCrossing<1>(
      [&](int i) {
        return Sum{PartMassOf(a, index, i), 0};
      },
      Sum{}, target, memory.search);
  const Crossing token = FindCrossing<kPart / kChooseThreads>(
      [&](int i) {
        const int id = part.index * kPart + i;
        if (id >= row.vocab_size) return Sum{};
        const uint32_t key = KeyOf(row.logits[id]);
        if (key < kLowestKey) return Sum{};
        const double weight = WeightOf(row.scale.Exponent(LogitOf(key)));
        return weight >= draw.min_p ? Sum{MassOf(weight), 0} : Sum{};
      },
      part.before, target, memory.search);
  return part.index * kPart + token.index;
}

__global__ void __launch_bounds__(kChooseThreads) ChooseKernel(const Arguments a) {
  LetNextKernelStart();
  WaitForEarlierKernel();
  __shared__ ChooseMemory memory;
  const int index = static_cast<int>(blockIdx.x);
  const DeviceDraw draw = a.draws[index];
  if (draw.active == 0) return;
  const Word best = BestOf(a, index);
  const auto key = static_cast<uint32_t>(best >> 32);
  DeviceDrawn drawn{0, static_cast<int32_t>(SamplingOutcome::kDrawn)};
  if (!IsFinite(key)) {
    drawn.outcome = static_cast<int32_t>(SamplingOutcome::kNotFinite);
  } else if (IsGreedy(draw)) {
    drawn.token = static_cast<int32_t>(~static_cast<uint32_t>(best));
  } else {
    const Row row{a.LogitsOf(index), a.vocab_size, key, {LogitOf(key), draw.temperature}};
    drawn.token = IsSorted(draw) ? DrawSorted(a, row, draw, index, memory)
                                 : DrawInOrder(a, row, draw, index, memory);
  }
  if (threadIdx.x == 0) a.out[index] = drawn;
}

int NumParts(int64_t vocab_size) { return static_cast<int>((vocab_size + kPart - 1) / kPart); }

}  // namespace
}  // namespace cuda

namespace internal {

// The arrays of cuda::Arguments one behind the other.
size_t DeviceSamplerScratchBytes(DeviceId /*device*/, int64_t vocab_size, int64_t max_rows) {
  const auto parts = static_cast<size_t>(cuda::NumParts(vocab_size));
  return static_cast<size_t>(max_rows) *
         (parts * 3 * sizeof(cuda::Word) +
          cuda::kLevels * (2 * sizeof(cuda::Word) + sizeof(uint32_t)));
}

void RunDeviceSampler(const float* logits, int64_t vocab_size, int64_t rows,
                      const DeviceDraw* draws, DeviceDrawn* out, const DeviceBytes& scratch,
                      Stream& stream) {
  PMKVQ_CHECK(scratch.num_bytes >= DeviceSamplerScratchBytes(stream.device(), vocab_size, rows));
  const CudaDeviceScope scope(stream.device());
  const int parts = cuda::NumParts(vocab_size);
  const size_t row_parts = static_cast<size_t>(rows) * static_cast<size_t>(parts);
  auto* best = reinterpret_cast<cuda::Word*>(scratch.data);
  cuda::Word* part_masses = best + row_parts;
  cuda::Word* level_masses = part_masses + 2 * row_parts;
  const cuda::Arguments arguments{
      .logits = logits,
      .draws = draws,
      .out = out,
      .vocab_size = static_cast<int>(vocab_size),
      .num_parts = parts,
      .best = best,
      .part_masses = part_masses,
      .level_masses = level_masses,
      .level_counts = reinterpret_cast<uint32_t*>(level_masses +
                                                  static_cast<size_t>(rows) * 2 * cuda::kLevels)};
  const auto num_rows = static_cast<unsigned>(rows);
  const dim3 grid(static_cast<unsigned>(parts), num_rows);
  cuda::LaunchEarly(cuda::ScanKernel, grid, cuda::kScanThreads, stream, "looking at logits",
                    arguments);
  cuda::LaunchEarly(cuda::WeighKernel, grid, cuda::kWeighThreads, stream, "weighing tokens",
                    arguments);
  cuda::LaunchEarly(cuda::ChooseKernel, num_rows, cuda::kChooseThreads, stream, "drawing tokens",
                    arguments);
}

}  // namespace internal
}  // namespace pmkvq
