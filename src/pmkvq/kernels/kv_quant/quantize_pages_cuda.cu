// Pages of 16 bits to codes. A block of threads has one head's block of values in registers: a warp
// a tile, a lane the words that the layout gives it, which are those that its codes go to.
//
// Codes are those of true division. Where the product with 1 / step is farther than 1e-4 from the
// middle between two codes, it rounds to the quotient's code: both are within 2^-15 of the exact
// quotient, which is at most 255. Values nearer to a middle are divided.
#include <type_traits>

#include "pmkvq/kernels/cuda/float16.cuh"
#include "pmkvq/kernels/kv_quant/page_moves.cuh"

namespace pmkvq {
namespace cuda {
namespace {

// Adding it rounds a float below 2^22 to a whole number, half to even, in the lowest bits.
constexpr float kRounder = 0x1.8p23f;
constexpr float kNearMiddle = 0.4999f;
// Above it 1 / step may be infinite: such groups are divided.
constexpr float kMostReciprocal = 0x1p126f;

struct alignas(16) Bounds {
  float min;
  float range;
  float step;
  float reciprocal;
};

// The stored (min, range) of a group, and what makes codes of it. Sets `unfit` where the range is
// beyond the type's.
template <class T>
__device__ __forceinline__ Bounds MakeBounds(T lowest, T highest, float max_code, T& min, T& range,
                                             bool& unfit) {
  Bounds bounds;
  bounds.min = __fadd_rn(ToFloat(lowest), 0.0f);  // -0 becomes +0, as on the CPU.
  min = Round<T>(bounds.min);
  const float wide = __fadd_rn(ToFloat(highest), -bounds.min);
  unfit |= wide > MaxFinite<T>();
  range = RoundUp<T>(__fadd_rn(fminf(fmaxf(wide, 0.0f), MaxFinite<T>()), 0.0f));
  bounds.range = ToFloat(range);
  bounds.step = __fdiv_rn(bounds.range, max_code);
  bounds.reciprocal = bounds.step > 0.0f ? __frcp_rn(bounds.step) : 0.0f;
  return bounds;
}

// Ranges of F16 are 0 or at least 2^-24, so their steps have reciprocals.
template <class T>
__device__ __forceinline__ bool MustDivide(const Bounds& bounds) {
  if constexpr (std::is_same_v<T, __half>) return false;
  return bounds.reciprocal > kMostReciprocal;
}

// x / step, correctly rounded; for F16 without a division's call, which takes registers: one step
// from a quotient within 2^-22, with the rest of it and the correctly rounded reciprocal, gives the
// rounded quotient (Markstein). No part of it leaves the normal floats.
template <class T>
__device__ __forceinline__ float Divide(float x, const Bounds& group) {
  if constexpr (std::is_same_v<T, __half>) {
    const float near = __fmul_rn(x, group.reciprocal);
    return __fmaf_rn(__fmaf_rn(-near, group.step, x), group.reciprocal, near);
  } else {
    return __fdiv_rn(x, group.step);
  }
}

// Four codes as the bytes of a word, in the order of `x`.
template <class T>
__device__ __forceinline__ uint32_t Codes(const float (&x)[4], const Bounds* const (&bounds)[4],
                                          bool must_divide, float max_code) {
  uint32_t code[4];
  float worst = must_divide ? 1.0f : 0.0f;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const Bounds& group = *bounds[i];
    const float above = fminf(__fadd_rn(x[i], -group.min), group.range);
    const float rounded = __fmaf_rn(above, group.reciprocal, kRounder);
    code[i] = __float_as_uint(rounded);
    const float off = __fmaf_rn(above, group.reciprocal, -__fadd_rn(rounded, -kRounder));
    worst = fmaxf(worst, fabsf(off));
  }
  if (worst > kNearMiddle) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const Bounds& group = *bounds[i];
      const float quotient = Divide<T>(__fadd_rn(x[i], -group.min), group);
      code[i] = group.step > 0.0f
                    ? static_cast<uint32_t>(rintf(fminf(fmaxf(quotient, 0.0f), max_code)))
                    : 0u;
    }
  }
  return __byte_perm(__byte_perm(code[0], code[1], 0x0040), __byte_perm(code[2], code[3], 0x0040),
                     0x5410);
}

// Writes what a lane has of a tile: words of 8-bit codes, 2 step + half, as they lie at 8 bits.
template <int kSteps>
__device__ __forceinline__ void StoreTile(const uint32_t (&words)[2 * kSteps], int bits, int tile,
                                          int lane, uint8_t* codes) {
  constexpr int kCols = 16 * kSteps;
  if (bits == 8) {
#pragma unroll
    for (int v = 0; v < kSteps / 2; ++v) {
      StoreOnce(codes + fragment::WordByte(tile * fragment::TileWords(8, kCols) + 4 * v, lane),
                {words[4 * v], words[4 * v + 1], words[4 * v + 2], words[4 * v + 3]});
    }
  } else if constexpr (kSteps == 2) {  // Less than 16 bytes of a lane.
    const uint32_t* w = words;
    if (bits == 4) {
      *reinterpret_cast<uint2*>(codes + fragment::WordByte(2 * tile, lane)) = {
          fragment::Pack4(w[0], w[1]), fragment::Pack4(w[2], w[3])};
    } else {
      *reinterpret_cast<uint32_t*>(codes + fragment::WordByte(tile, lane)) =
          fragment::Pack2(w[0], w[1], w[2], w[3]);
    }
  } else if (bits == 4) {
#pragma unroll
    for (int v = 0; v < kSteps / 4; ++v) {
      const uint32_t* w = words + 8 * v;
      StoreOnce(codes + fragment::WordByte(tile * fragment::TileWords(4, kCols) + 4 * v, lane),
                {fragment::Pack4(w[0], w[1]), fragment::Pack4(w[2], w[3]),
                 fragment::Pack4(w[4], w[5]), fragment::Pack4(w[6], w[7])});
    }
  } else {
#pragma unroll
    for (int n = 0; n < kSteps / 2; n += 2) {
      const uint32_t* w = words + 4 * n;
      const uint2 two = {fragment::Pack2(w[0], w[1], w[2], w[3]),
                         fragment::Pack2(w[4], w[5], w[6], w[7])};
      *reinterpret_cast<uint2*>(
          codes + fragment::WordByte(tile * fragment::TileWords(2, kCols) + n, lane)) = two;
    }
  }
}

// The words of a 16-bit tile: of step k register half + 2 y is component half + 2 y of values[k].
template <int kSteps>
__device__ __forceinline__ void LoadTile(const uint8_t* in, int tile, int lane,
                                         uint4 (&values)[kSteps]) {
#pragma unroll
  for (int k = 0; k < kSteps; ++k) {
    values[k] = LoadOnce(in + (tile * kSteps + k) * fragment::kRowBytes + lane * 16);
  }
}

// x of half `half` of one step, in the order of the bytes of a word: y + 2 x.
template <class T>
__device__ __forceinline__ void Unpack(const uint4& value, int half, float (&x)[4]) {
  const float2 y0 = ToFloats(AsPair<T>(half != 0 ? value.y : value.x));
  const float2 y1 = ToFloats(AsPair<T>(half != 0 ? value.w : value.z));
  x[0] = y0.x;
  x[1] = y1.x;
  x[2] = y0.y;
  x[3] = y1.y;
}

struct QuantizeTarget {
  int bits;
  float max_code;
  int heads;
  uint32_t* unfit;
  uint32_t first_index;
};

// Keys: the values of a token are a row, which four lanes share; of 256 dims two each a group.
template <class T, int kDim>
__global__ void __launch_bounds__(256)
    QuantizeKeys(const __grid_constant__ MoveList list, uint8_t* arena, QuantizeTarget to) {
  constexpr int kSteps = kDim / 16;
  constexpr int kGroups = fragment::GroupsOfToken(kDim);
  constexpr int kLanes = 4 / kGroups;  // Of a group.
  LetNextKernelStart();
  const int head = blockIdx.x % to.heads;
  const Move move = list.moves[blockIdx.x / to.heads];
  const uint8_t* in = arena + static_cast<size_t>(move.source) * fragment::kArenaUnit +
                      static_cast<size_t>(head) * fragment::BlockBytes(16, kDim);
  uint8_t* codes = arena + static_cast<size_t>(move.target) * fragment::kArenaUnit +
                   static_cast<size_t>(head) * fragment::BlockBytes(to.bits, kDim);
  T* metadata = reinterpret_cast<T*>(
      arena + static_cast<size_t>(move.metadata) * fragment::kArenaUnit +
      static_cast<size_t>(head) * fragment::MetadataBytes(kGroups * fragment::kTokens));
  const int tile = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  uint4 values[kSteps];
  LoadTile(in, tile, lane, values);

  uint32_t low[2] = {values[0].x, values[0].y};
  uint32_t high[2] = {values[0].x, values[0].y};
#pragma unroll
  for (int k = 0; k < kSteps; ++k) {
    low[0] = MinOfPairs<T>(low[0], MinOfPairs<T>(values[k].x, values[k].z));
    low[1] = MinOfPairs<T>(low[1], MinOfPairs<T>(values[k].y, values[k].w));
    high[0] = MaxOfPairs<T>(high[0], MaxOfPairs<T>(values[k].x, values[k].z));
    high[1] = MaxOfPairs<T>(high[1], MaxOfPairs<T>(values[k].y, values[k].w));
  }
  Bounds bounds[2];
  T mins[2];
  T ranges[2];
  bool unfit = false;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int distance = 1; distance < kLanes; distance *= 2) {
      low[half] = MinOfPairs<T>(low[half], __shfl_xor_sync(~0u, low[half], distance));
      high[half] = MaxOfPairs<T>(high[half], __shfl_xor_sync(~0u, high[half], distance));
    }
    const auto lows = AsPair<T>(low[half]);
    const auto highs = AsPair<T>(high[half]);
    bounds[half] = MakeBounds<T>(__hmin(lows.x, lows.y), __hmax(highs.x, highs.y), to.max_code,
                                 mins[half], ranges[half], unfit);
  }
  if (lane % kLanes == 0) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int token = 16 * (lane / 4) + 2 * tile + half;
      const int group = token * kGroups + lane % 4 / kLanes;
      metadata[group] = mins[half];
      metadata[kGroups * fragment::kTokens + group] = ranges[half];
    }
    if (unfit) atomicMin(to.unfit, to.first_index + blockIdx.x / to.heads);
  }
  uint32_t words[2 * kSteps];
#pragma unroll
  for (int k = 0; k < kSteps; ++k) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float x[4];
      Unpack<T>(values[k], half, x);
      const Bounds* const same[4] = {&bounds[half], &bounds[half], &bounds[half], &bounds[half]};
      words[2 * k + half] = Codes<T>(x, same, MustDivide<T>(bounds[half]), to.max_code);
    }
  }
  StoreTile<kSteps>(words, to.bits, tile, lane, codes);
  WaitForEarlierKernel();
}

// More warps a multiprocessor keep memory busier than more registers a thread, but for 256 columns,
// whose values fill more of them, and BF16, which has a division's call.
template <class T, int kCols>
constexpr int kResidentThreads = std::is_same_v<T, __half>&& kCols <= 128 ? 1024 : 512;

// Groups that are columns: of values a token, of keys a channel. All warps and eight lanes of each
// share a column; of 256 dims the lower and the upper four lanes have a group each.
template <class T, int kRows, int kCols>
__global__ void __launch_bounds__(2 * kRows,
                                  (kResidentThreads<T, kCols> + 2 * kRows - 1) / (2 * kRows))
    QuantizeColumns(const __grid_constant__ MoveList list, uint8_t* arena, QuantizeTarget to) {
  constexpr int kSteps = kCols / 16;
  constexpr int kWarps = kRows / 16;
  constexpr int kOfLane = kCols / 4;  // Columns of a lane's t.
  constexpr int kGroups = fragment::GroupsOfToken(kRows);
  // Of the four t one entry more apart, so that four lanes meet no common bank.
  __shared__ Bounds table[kGroups][4 * (kOfLane + 1)];
  __shared__ T lowest[kWarps][kGroups][kCols];
  __shared__ T highest[kWarps][kGroups][kCols];
  LetNextKernelStart();
  const int head = blockIdx.x % to.heads;
  const Move move = list.moves[blockIdx.x / to.heads];
  const uint8_t* in = arena + static_cast<size_t>(move.source) * fragment::kArenaUnit +
                      static_cast<size_t>(head) * kRows * kCols * 2;
  uint8_t* codes = arena + static_cast<size_t>(move.target) * fragment::kArenaUnit +
                   static_cast<size_t>(head) * (kRows * kCols / 8 * to.bits);
  T* metadata =
      reinterpret_cast<T*>(arena + static_cast<size_t>(move.metadata) * fragment::kArenaUnit +
                           static_cast<size_t>(head) * fragment::MetadataBytes(kGroups * kCols));
  const int tile = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int g = lane / 4;
  const int t = lane % 4;
  uint4 values[kSteps];
  LoadTile(in, tile, lane, values);

  // Of columns C / 4 t + 2 k + y, and the same + C / 8 in the upper half: index 2 k + y.
  uint32_t low[2 * kSteps];
  uint32_t high[2 * kSteps];
#pragma unroll
  for (int k = 0; k < kSteps; ++k) {
    low[2 * k] = MinOfPairs<T>(values[k].x, values[k].y);
    low[2 * k + 1] = MinOfPairs<T>(values[k].z, values[k].w);
    high[2 * k] = MaxOfPairs<T>(values[k].x, values[k].y);
    high[2 * k + 1] = MaxOfPairs<T>(values[k].z, values[k].w);
  }
  // Lanes of a group with the same t trade halves of their indices, three times (two of four
  // lanes); then each lane has the bounds over all of these lanes for kOwn indices. Of 128 columns
  // and eight lanes 28 shuffles instead of 96.
  constexpr int kRounds = kGroups == 1 ? 3 : 2;
  constexpr int kOwn = 2 * kSteps >> kRounds;
#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    const int bit = kRounds - 1 - round;
    const int count = 2 * kSteps >> (round + 1);
    const bool upper = (g >> bit & 1) != 0;
#pragma unroll
    for (int j = 0; j < kSteps; ++j) {
      if (j >= count) break;
      const uint32_t given_low = upper ? low[j] : low[j + count];
      const uint32_t kept_low = upper ? low[j + count] : low[j];
      const uint32_t given_high = upper ? high[j] : high[j + count];
      const uint32_t kept_high = upper ? high[j + count] : high[j];
      low[j] = MinOfPairs<T>(kept_low, __shfl_xor_sync(~0u, given_low, 4 << bit));
      high[j] = MaxOfPairs<T>(kept_high, __shfl_xor_sync(~0u, given_high, 4 << bit));
    }
  }
  const int group_of_lane = g * kGroups / 8;
#pragma unroll
  for (int j = 0; j < kOwn; ++j) {
    const int column = kOfLane * t + kOwn * (g % (8 / kGroups)) + j;
    const auto lows = AsPair<T>(low[j]);
    const auto highs = AsPair<T>(high[j]);
    lowest[tile][group_of_lane][column] = lows.x;
    lowest[tile][group_of_lane][column + kCols / 8] = lows.y;
    highest[tile][group_of_lane][column] = highs.x;
    highest[tile][group_of_lane][column + kCols / 8] = highs.y;
  }
  __syncthreads();
  if (threadIdx.x < kGroups * kCols) {
    const int column = threadIdx.x / kGroups;
    const int group = threadIdx.x % kGroups;
    T least = lowest[0][group][column];
    T most = highest[0][group][column];
#pragma unroll
    for (int warp = 1; warp < kWarps; ++warp) {
      least = __hmin(least, lowest[warp][group][column]);
      most = __hmax(most, highest[warp][group][column]);
    }
    T min;
    T range;
    bool unfit = false;
    table[group][column + column / kOfLane] =
        MakeBounds<T>(least, most, to.max_code, min, range, unfit);
    metadata[threadIdx.x] = min;
    metadata[kGroups * kCols + threadIdx.x] = range;
    if (unfit) atomicMin(to.unfit, to.first_index + blockIdx.x / to.heads);
  }
  __syncthreads();
  uint32_t words[2 * kSteps];
#pragma unroll
  for (int k = 0; k < kSteps; ++k) {
    const Bounds* of_lane = table[group_of_lane] + (kOfLane + 1) * t + 2 * k;
    const Bounds own[4] = {of_lane[0], of_lane[1], of_lane[kCols / 8], of_lane[kCols / 8 + 1]};
    const Bounds* const each[4] = {&own[0], &own[1], &own[2], &own[3]};
    const bool must_divide = MustDivide<T>(own[0]) || MustDivide<T>(own[1]) ||
                             MustDivide<T>(own[2]) || MustDivide<T>(own[3]);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float x[4];
      Unpack<T>(values[k], half, x);
      words[2 * k + half] = Codes<T>(x, each, must_divide, to.max_code);
    }
  }
  StoreTile<kSteps>(words, to.bits, tile, lane, codes);
  WaitForEarlierKernel();
}

template <class T, int kDim>
void LaunchRows(QuantizeTarget to, std::span<const PageMove> moves, std::byte* arena,
                Stream& stream) {
  auto* bytes = reinterpret_cast<uint8_t*>(arena);
  const uint32_t first_index = to.first_index;
  const auto prepare = [&](uint32_t first) { to.first_index = first_index + first; };
  LaunchParts(QuantizeKeys<T, kDim>, static_cast<unsigned>(to.heads), 256, moves, stream, prepare,
              bytes, to);
}

template <class T, int kDim>
void Quantize(const FragmentPageShape& shape, QuantizeTarget to, std::span<const PageMove> moves,
              std::byte* arena, Stream& stream) {
  if (!shape.is_values && !shape.by_channel) {
    return LaunchRows<T, kDim>(to, moves, arena, stream);
  }
  auto* bytes = reinterpret_cast<uint8_t*>(arena);
  const uint32_t first_index = to.first_index;
  const auto prepare = [&](uint32_t first) { to.first_index = first_index + first; };
  const auto blocks = static_cast<unsigned>(to.heads);
  if (shape.is_values) {
    LaunchParts(QuantizeColumns<T, kDim, fragment::kTokens>, blocks, 2 * kDim, moves, stream,
                prepare, bytes, to);
  } else {
    LaunchParts(QuantizeColumns<T, fragment::kTokens, kDim>, blocks, 256, moves, stream, prepare,
                bytes, to);
  }
}

template <class T>
void QuantizeDim(const FragmentPageShape& shape, const QuantizeTarget& to,
                 std::span<const PageMove> moves, std::byte* arena, Stream& stream) {
  if (shape.head_dim == 256) return Quantize<T, 256>(shape, to, moves, arena, stream);
  if (shape.head_dim == 128) return Quantize<T, 128>(shape, to, moves, arena, stream);
  if (shape.head_dim == 64) return Quantize<T, 64>(shape, to, moves, arena, stream);
  PMKVQ_CHECK(!shape.is_values && !shape.by_channel);
  LaunchRows<T, 32>(to, moves, arena, stream);
}

}  // namespace
}  // namespace cuda

void QuantizePages(const FragmentPageShape& shape, DType float_type, int bits,
                   std::span<const PageMove> moves, std::byte* arena, uint32_t* unfit,
                   uint32_t first_index, Stream& stream) {
  PMKVQ_CHECK(fragment::IsRowWidth(shape.head_dim));
  PMKVQ_CHECK(bits == 8 || bits == 4 || bits == 2);
  PMKVQ_CHECK(float_type == DType::kF16 || float_type == DType::kBF16);
  const cuda::QuantizeTarget to{bits, static_cast<float>((1 << bits) - 1),
                                static_cast<int>(shape.heads), unfit, first_index};
  if (float_type == DType::kF16) {
    cuda::QuantizeDim<__half>(shape, to, moves, arena, stream);
  } else {
    cuda::QuantizeDim<__nv_bfloat16>(shape, to, moves, arena, stream);
  }
}

}  // namespace pmkvq
