// One warp of decode attention: what it does of an item, and its copies. Each warp has its own
// place in shared memory for keys, values and metadata, and asks for the next keys when the scores
// are done, for the next values when the output is updated, across items too.
#pragma once

#include "pmkvq/kernels/attention/decode_arguments.cuh"
#include "pmkvq/kernels/attention/decode_unit.cuh"
#include "pmkvq/kernels/cuda/copy.cuh"

namespace pmkvq::cuda {

// Bytes of shared memory of one warp: keys, metadata of keys and of values, values.
template <int kDim>
struct WarpMemory {
  static constexpr int kCodes = 64 * kDim;
  static constexpr int kKeyMetadata =
      fragment::MetadataBytes();  // Room for those of channels, too.
  static constexpr int kMetadata = kKeyMetadata + fragment::MetadataBytes();
  static constexpr int kBytes = 2 * kCodes + kMetadata;
};

// Minima and ranges of 1, in the place of those of tokens where channels have their own.
struct UnitMetadata {
  uint32_t words[fragment::kTokens];
};

constexpr int kPageTiles = 8;

// What a warp does of an item: page `lane` of its pages, by lane.
struct WarpPages {
  uint4 entry;
  int bits;  // Of keys, of values << 8, tokens << 16; kGeneral: the first token that is seen << 24.
  int count;
  // The KV head, query heads << 16, of a dealt page 1 + the warp's first tile << 24, whether it has
  // whole units << 31.
  int heads;
  int first_query;  // Of the batch's rows of queries.

  __device__ int kv_head() const { return heads & 0xffff; }
  __device__ int num_heads() const { return heads >> 16 & 0xff; }
  __device__ bool is_dealt() const { return (heads >> 24 & 0x7f) != 0; }  // One unit of one page.
  __device__ int first_tile() const { return max(0, (heads >> 24 & 0x7f) - 1); }
  __device__ bool has_whole_units() const { return heads < 0; }  // Of pages of 2 bits.
};

template <int kDim, DecodeKind kKind>
class DecodeWarp {
 public:
  __device__ DecodeWarp(const DecodeArguments& arguments, uint8_t* memory, uint64_t* barriers,
                        const BatchTable& batch, const UnitMetadata* ones)
      : a_(arguments),
        memory_(memory),
        batch_(batch),
        ones_(ones),
        lane_(threadIdx.x % 32),
        warp_(threadIdx.x / 32),
        k_barrier_(SharedAddress(barriers)),
        v_barrier_(SharedAddress(barriers + 1)) {
    InitBarrier(k_barrier_, lane_);
    InitBarrier(v_barrier_, lane_);
  }

  // This warp's pages of an item; none behind the last item.
  __device__ __forceinline__ WarpPages Fetch(int item, int num_items) const {
    WarpPages pages{};
    if (item >= num_items) return pages;
    const ItemPages of = PagesOf<kKind>(a_, batch_, item);
    pages.heads = of.heads.kv_head | of.heads.count << 16;
    pages.first_query = of.sequence * a_.num_heads + of.heads.first;
    const int first = of.begin + (of.are_dealt ? 0 : warp_);
    pages.count = max(0, (of.end - first + kWarps - 1) / kWarps);
    if (lane_ < pages.count) {
      const int page = first + lane_ * kWarps;
      const size_t at = static_cast<size_t>(TableRow(a_, of.sequence)) * a_.max_pages + page;
      pages.entry = __ldg(reinterpret_cast<const uint4*>(a_.entries + at));
      const auto widths = __ldg(reinterpret_cast<const unsigned short*>(a_.bits + at));
      pages.bits = widths | (min(fragment::kTokens, of.in_pages - page * fragment::kTokens) << 16);
      if constexpr (kKind == DecodeKind::kGeneral) {
        pages.bits |= max(0, of.hidden - page * fragment::kTokens) << 24;
      }
    }
    const bool has_whole_units = HasWholeUnits(of);
    if (has_whole_units) pages.heads |= static_cast<int>(0x80000000u);
    if (of.are_dealt) {
      const int widths = __shfl_sync(~0u, pages.bits, 0);
      const int tile = warp_ * UnitTilesOf(widths & 0xff, widths >> 8 & 0xff, has_whole_units);
      if (tile >= kPageTiles) pages.count = 0;
      pages.heads |= (1 + tile) << 24;
    }
    return pages;
  }

  __device__ __forceinline__ void CopyFirstKeys(const WarpPages& pages) const {
    if (pages.count > 0) CopyKeys(pages, 0, pages.first_tile());
  }
  __device__ __forceinline__ void CopyFirstValues(const WarpPages& pages) const {
    if (pages.count > 0) CopyValues(pages, 0, pages.first_tile());
  }

  // Asks for the keys of page n that `tile` is among; with the first ones for the page's metadata.
  __device__ __forceinline__ void CopyKeys(const WarpPages& pages, int n, int tile) const {
    const uint32_t keys = __shfl_sync(~0u, pages.entry.x, n);
    const uint32_t k_metadata = __shfl_sync(~0u, pages.entry.z, n);
    const uint32_t v_metadata = __shfl_sync(~0u, pages.entry.w, n);
    const int packed = __shfl_sync(~0u, pages.bits, n);
    const int bits = packed & 0xff;
    const bool is_first = tile == 0 || pages.is_dealt();
    const bool with_k = is_first && bits < 16;
    const bool with_v = is_first && (packed >> 8 & 0xff) < 16;
    constexpr int kValueSide = fragment::MetadataBytes();
    const int key_side = ByChannel() ? fragment::MetadataBytes(kDim) : fragment::MetadataBytes();
    const uint32_t bytes = 2 * kDim * bits * TilesOf(bits);
    const uint32_t target = SharedAddress(memory_);
    BeginCopy(k_barrier_, bytes + (with_k ? key_side : 0) + (with_v ? kValueSide : 0), lane_);
    CopyBytes(target,
              At(keys) + pages.kv_head() * fragment::BlockBytes(bits, kDim) +
                  (tile & -TilesOf(bits)) * 2 * kDim * bits,
              bytes, k_barrier_, lane_);
    const uint32_t metadata = target + WarpMemory<kDim>::kCodes;
    if (with_k) {
      CopyBytes(metadata, At(k_metadata) + pages.kv_head() * key_side, key_side, k_barrier_, lane_);
    }
    if (with_v) {
      CopyBytes(metadata + WarpMemory<kDim>::kKeyMetadata,
                At(v_metadata) + pages.kv_head() * kValueSide, kValueSide, k_barrier_, lane_);
    }
    EndCopy(k_barrier_);
  }

  // Asks for values of the tokens that `tile` is among: of each tile of dims a piece.
  __device__ __forceinline__ void CopyValues(const WarpPages& pages, int n, int tile) const {
    const uint32_t values = __shfl_sync(~0u, pages.entry.y, n);
    const int bits = __shfl_sync(~0u, pages.bits, n) >> 8 & 0xff;
    const uint8_t* source = At(values) + pages.kv_head() * fragment::BlockBytes(bits, kDim);
    const uint32_t target = SharedAddress(Values());
    if (bits <= 4) {
      const uint32_t bytes = fragment::BlockBytes(bits, kDim);
      BeginCopy(v_barrier_, bytes, lane_);
      CopyBytes(target, source, bytes, v_barrier_, lane_);
    } else {
      BeginCopy(v_barrier_, kDim / 16 * 1024, lane_);
      CopyPieces(target, source + tile / TilesOf(bits) * 1024, kDim / 16, 256 * bits, 1024,
                 v_barrier_, lane_);
    }
    EndCopy(v_barrier_);
  }

  // This lane's quarter of a row of queries.
  __device__ __forceinline__ const __half* QueryOf(int row) const {
    return a_.q + static_cast<size_t>(row) * kDim + kDim / 4 * (lane_ & 3);
  }
  __device__ __forceinline__ void LoadQueries(int first, int count,
                                              uint4 (&rows)[kDim / 32]) const {
    const int g = lane_ >> 2;
    const __half* q = QueryOf(first + g);
#pragma unroll
    for (int i = 0; i < kDim / 32; ++i) {
      rows[i] =
          g < count ? __ldg(reinterpret_cast<const uint4*>(q + 8 * i)) : make_uint4(0, 0, 0, 0);
    }
  }

  // A lane has a quarter of one head's query; it needs sums of two heads.
  __device__ __forceinline__ void MakeQueries(const uint4 (&rows)[kDim / 32],
                                              Queries<kDim>& queries) {
    const __half* q = reinterpret_cast<const __half*>(rows);
    float sum = 0.0f;
    float wide = 0.0f;  // With columns y = 1 divided by 16.
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) {
      const __half2 y0 = __halves2half2(q[2 * k], q[kDim / 8 + 2 * k]);
      // Rounded to what dividing by 16 for keys of 2 bits and multiplying again leaves, a multiple
      // of 2^-20: so sums stay those of the very values that are multiplied.
      const __half2 exact = __halves2half2(q[2 * k + 1], q[kDim / 8 + 2 * k + 1]);
      const __half2 narrow = __hmul2(exact, __float2half2_rn(1.0f / 16));
      const __half2 y1 = ByChannel() ? exact : __hmul2(narrow, __float2half2_rn(16.0f));
      const float first = __low2float(y0) + __high2float(y0);
      sum += first + __low2float(y1) + __high2float(y1);
      wide += first + __low2float(narrow) + __high2float(narrow);
      queries.b[k][0] = *reinterpret_cast<const uint32_t*>(&y0);
      queries.b[k][1] = *reinterpret_cast<const uint32_t*>(&y1);
    }
#pragma unroll
    for (int distance = 1; distance < 4; distance *= 2) {
      sum += __shfl_xor_sync(~0u, sum, distance);
      wide += __shfl_xor_sync(~0u, wide, distance);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int owner = 8 * (lane_ & 3) + 4 * i;
      const float own = __shfl_sync(~0u, sum, owner);
      queries.sum[i] = own * a_.scale;
      queries.offset[i] = -1024.0f * own;
      queries.wide_offset[i] = -1024.0f * __shfl_sync(~0u, wide, owner);
      queries.factor[i] = 1.0f;
    }
    wide_queries_ = false;
  }

  // Of a page with keys per channel, whose metadata are in shared memory:
  //   q . K[m] = sum_d q_d min_d + sum_d (q_d range_d) code[m, d] / max code.
  // The products q_d range_d times a power of two, which keeps them within F16, are what codes are
  // multiplied with. Half of what their rounding leaves goes to the sum: as if codes were counted
  // from the middle, so that roundings weigh half as much.
  __device__ __forceinline__ void MakeChannelQueries(const WarpPages& pages, int k_bits,
                                                     Queries<kDim>& queries) const {
    constexpr int kQuarter = kDim / 4;  // Dims of a lane; read eight at a time.
    const auto* const minima = reinterpret_cast<const __half*>(memory_ + WarpMemory<kDim>::kCodes) +
                               kQuarter * (lane_ & 3);
    const __half* const ranges = minima + kDim;
    const int g = lane_ >> 2;
    const __half* const q = QueryOf(pages.first_query + g);
    const auto eight_of = [&](int first) {
      return g < pages.num_heads() ? __ldg(reinterpret_cast<const uint4*>(q + first))
                                   : make_uint4(0, 0, 0, 0);
    };
    float largest = 0.0f;
#pragma unroll
    for (int first = 0; first < kQuarter; first += 8) {
      const uint4 eight = eight_of(first);
      const uint4 range = *reinterpret_cast<const uint4*>(ranges + first);
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const float2 two = HalvesToFloats((&eight.x)[n]);
        const float2 wide = HalvesToFloats((&range.x)[n]);
        largest = fmaxf(largest, fmaxf(fabsf(two.x) * wide.x, fabsf(two.y) * wide.y));
      }
    }
#pragma unroll
    for (int distance = 1; distance < 4; distance *= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, distance));
    }
    // Largest products between 2^12 and 2^13. Exponents lie between -49 and 32.
    const int exponent = largest > 0.0f ? static_cast<int>(__float_as_uint(largest) >> 23) : 139;
    const float raise = __uint_as_float(static_cast<uint32_t>(266 - exponent) << 23);
    const float lower = __uint_as_float(static_cast<uint32_t>(exponent - 12) << 23);
    const float narrow = k_bits == 2 ? 1.0f / 16 : 1.0f;  // Of columns y = 1.
    float sum = 0.0f;
    float multiplied = 0.0f;
#pragma unroll
    for (int first = 0; first < kQuarter; first += 8) {
      const uint4 eight = eight_of(first);
      const uint4 min = *reinterpret_cast<const uint4*>(minima + first);
      const uint4 range = *reinterpret_cast<const uint4*>(ranges + first);
#pragma unroll
      for (int n = 0; n < 4; ++n) {  // Dims 2 k and 2 k + 1 of the quarter's half x.
        const int x = first / (kQuarter / 2);
        const int k = (first % (kQuarter / 2)) / 2 + n;
        const float2 two = HalvesToFloats((&eight.x)[n]);
        const float2 least = HalvesToFloats((&min.x)[n]);
        const float2 wide = HalvesToFloats((&range.x)[n]);
        const float product0 = two.x * wide.x;
        const float product1 = two.y * wide.y;
        const __half b0 = __float2half_rn(product0 * raise);
        const __half b1 = __float2half_rn(product1 * raise * narrow);
        sum = fmaf(two.x, least.x, fmaf(two.y, least.y, sum));
        sum = fmaf(0.5f, fmaf(__half2float(b0), -lower, product0), sum);
        sum = fmaf(0.5f, fmaf(__half2float(b1), -lower / narrow, product1), sum);
        multiplied += __half2float(b0) + __half2float(b1);
        reinterpret_cast<__half*>(&queries.b[k][0])[x] = b0;
        reinterpret_cast<__half*>(&queries.b[k][1])[x] = b1;
      }
    }
#pragma unroll
    for (int distance = 1; distance < 4; distance *= 2) {
      sum += __shfl_xor_sync(~0u, sum, distance);
      multiplied += __shfl_xor_sync(~0u, multiplied, distance);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int owner = 8 * (lane_ & 3) + 4 * i;
      queries.sum[i] = __shfl_sync(~0u, sum, owner) * a_.scale;
      queries.offset[i] = -1024.0f * __shfl_sync(~0u, multiplied, owner);
      queries.wide_offset[i] = queries.offset[i];
      queries.factor[i] = __shfl_sync(~0u, lower, owner);
    }
  }

  // Attends this warp's pages; asks for the keys of the next item's first page towards the end.
  __device__ __forceinline__ void Attend(const WarpPages& pages, const WarpPages& next,
                                         Queries<kDim>& queries, WarpSums<kDim>& sums) {
    even_ = odd_ = 1.0f;
    int n = 0;
    int tile = pages.first_tile();
    while (n < pages.count) {
      const int packed = __shfl_sync(~0u, pages.bits, n);
      const int k_bits = packed & 0xff;
      const int v_bits = packed >> 8 & 0xff;
      FitWidths(k_bits, v_bits, queries, sums);
      ForWidths(k_bits, v_bits, [&]<int kBitsK, int kBitsV>() {
        constexpr int kTiles = UnitTiles<kBitsK, kBitsV>();
        if constexpr (kBitsK == 2 && kBitsV == 2) {
          if (pages.has_whole_units()) {
            tile = AttendTiles<2, 2, kPageTiles>(pages, next, n, tile, packed, queries, sums);
            return;
          }
        }
        tile = AttendTiles<kBitsK, kBitsV, kTiles>(pages, next, n, tile, packed, queries, sums);
      });
      __syncwarp();
      const bool is_last = tile == kPageTiles || pages.is_dealt();
      const bool ends_values = is_last || tile % TilesOf(v_bits) == 0;
      if (is_last) {
        tile = 0;
        ++n;
      }
      if (ends_values && n < pages.count) CopyValues(pages, n, tile);
    }
    if (pages.count == 0) CopyFirstKeys(next);
  }

  // Puts the warp's result, [heads, D] floats, where its values were, and (reference, sum) beside.
  __device__ __forceinline__ void Deposit(WarpSums<kDim>& sums, int num_heads,
                                          float (*references)[2]) {
    const int g = lane_ >> 2;
    const int t = lane_ & 3;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int distance = 4; distance < 32; distance *= 2) {
        sums.weight[i] += __shfl_xor_sync(~0u, sums.weight[i], distance);
        sums.minimum[i] += __shfl_xor_sync(~0u, sums.minimum[i], distance);
      }
    }
    const float even = 1.0f / even_;
    const float odd = 1.0f / odd_;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int head = 2 * t + i;
      if (head >= num_heads) continue;
#pragma unroll
      for (int j = 0; j < kDim / 16; j += 2) {
        const float4 four = {sums.out[j][i] * even + sums.minimum[i],
                             sums.out[j][2 + i] * odd + sums.minimum[i],
                             sums.out[j + 1][i] * even + sums.minimum[i],
                             sums.out[j + 1][2 + i] * odd + sums.minimum[i]};
        *reinterpret_cast<float4*>(Deposited(Values(), head, kDim / 32 * g + j / 2)) = four;
      }
      if (g == 0) {
        references[head][0] = sums.reference[i];
        references[head][1] = sums.weight[i];
      }
    }
  }

  // Of four dims of a head; turned by the head, so that lanes of a warp meet no common bank.
  static __device__ __forceinline__ uint8_t* Deposited(uint8_t* values, int head, int four) {
    return values + head * kDim * 4 + ((four ^ (head >> 1)) * 16);
  }

  __device__ __forceinline__ uint8_t* Values() const {
    return memory_ + WarpMemory<kDim>::kCodes + WarpMemory<kDim>::kMetadata;
  }

 private:
  // Whether most pages that a sequence sees have 2 bits, keys and values: of 32 pages that lie
  // evenly among them, a lane one. So the choice depends on the sequence's own pages alone.
  __device__ __forceinline__ bool HasWholeUnits(const ItemPages& of) const {
    // Halves were 3 % faster where 50 % of the pages have 2 bits, and 12 % slower at 100 %.
    constexpr int kWholeFrom = 20;
    const int page = of.first_seen + lane_ * of.num_seen / 32;
    const auto widths = __ldg(reinterpret_cast<const unsigned short*>(
        a_.bits + static_cast<size_t>(TableRow(a_, of.sequence)) * a_.max_pages + page));
    return __popc(__ballot_sync(~0u, widths == 0x0202)) >= kWholeFrom;
  }

  __device__ __forceinline__ bool ByChannel() const {
    return kKind == DecodeKind::kGeneral && a_.keys_by_channel;
  }

  // The unit of page n that begins with `tile`; gives the tile behind it.
  template <int kBitsK, int kBitsV, int kTiles>
  __device__ __forceinline__ int AttendTiles(const WarpPages& pages, const WarpPages& next, int n,
                                             int first_tile, int packed, Queries<kDim>& queries,
                                             WarpSums<kDim>& sums) {
    constexpr bool kGeneral = kKind == DecodeKind::kGeneral;
    const int tokens = kGeneral ? packed >> 16 & 0xff : packed >> 16;
    constexpr int kTilesK = Width<kBitsK>::kTiles;  // In shared memory at a time.
    constexpr int kTilesV = Width<kBitsV>::kTiles;
    const int tile = kTiles == kPageTiles ? 0 : first_tile;
    const int behind = tile + kTiles;
    const bool is_dealt = pages.is_dealt();
    const bool is_last = kTiles == kPageTiles || behind == kPageTiles || is_dealt;
    if (kTiles == kTilesK || tile % kTilesK == 0 || is_dealt) {
      Wait(k_barrier_, k_turn_);
      k_turn_ ^= 1;
    }
    const uint8_t* const metadata = memory_ + WarpMemory<kDim>::kCodes;
    UnitMemory memory{memory_ + lane_ * 16, Values() + lane_ * 16, metadata,
                      metadata + WarpMemory<kDim>::kKeyMetadata};
    if (ByChannel()) {
      memory.k_metadata = reinterpret_cast<const uint8_t*>(ones_->words);
      if (tile == 0 || is_dealt) {
        if constexpr (kBitsK == 16) {
          uint4 rows[kDim / 32];
          LoadQueries(pages.first_query, pages.num_heads(), rows);
          MakeQueries(rows, queries);
        } else {
          MakeChannelQueries(pages, kBitsK, queries);
        }
      }
    }
    AttendUnit<kBitsK, kBitsV, kTiles, kGeneral>(
        sums, queries, a_.scale, memory, tile, packed >> 24, tokens, lane_,
        [&] {
          if (kTiles != kTilesK && behind % kTilesK != 0 && !is_last) return;
          CopyKeysBehind(pages, next, n, is_last ? kPageTiles : behind);
        },
        [&] {
          if (kTiles != kTilesV && tile % kTilesV != 0 && !is_dealt) return;
          Wait(v_barrier_, v_turn_);
          v_turn_ ^= 1;
        });
    return behind;
  }

  // Asks for the keys that follow page n's tiles before `behind`: of that page, of the next one, or
  // of the next item's first one. One copy for all three, since each is in the code of 16 units.
  __device__ __forceinline__ void CopyKeysBehind(const WarpPages& pages, const WarpPages& next,
                                                 int n, int behind) const {
    const bool is_same = behind < kPageTiles;
    const bool is_first = !is_same && n + 1 >= pages.count;  // Of the next item.
    if (is_first && next.count == 0) return;
    WarpPages of = pages;
    if (is_first) of = next;
    CopyKeys(of,
             is_same    ? n
             : is_first ? 0
                        : n + 1,
             is_same    ? behind
             : is_first ? next.first_tile()
                        : 0);
  }

  __device__ __forceinline__ const uint8_t* At(uint32_t units) const {
    return a_.arena + static_cast<size_t>(units) * fragment::kArenaUnit;
  }

  // Sums hold m of the values' width (decode_unit.cuh), queries what wide columns are divided by.
  __device__ __forceinline__ void FitWidths(int k_bits, int v_bits, Queries<kDim>& queries,
                                            WarpSums<kDim>& sums) {
    const float even = v_bits <= 4 ? 4.0f : 1.0f;
    const float odd = v_bits == 4 ? 64.0f : v_bits == 2 ? 16.0f : 1.0f;
    if (even != even_ || odd != odd_) {
      const float by_even = even / even_;
      const float by_odd = odd / odd_;
#pragma unroll
      for (int j = 0; j < kDim / 16; ++j) {
        sums.out[j][0] *= by_even;
        sums.out[j][1] *= by_even;
        sums.out[j][2] *= by_odd;
        sums.out[j][3] *= by_odd;
      }
      even_ = even;
      odd_ = odd;
    }
    if (!ByChannel() && (k_bits == 2) != wide_queries_) {
      wide_queries_ = k_bits == 2;
#pragma unroll
      for (int k = 0; k < kDim / 16; ++k) {
        queries.b[k][1] = MultiplyHalves(queries.b[k][1], wide_queries_ ? 1.0f / 16 : 16.0f);
      }
    }
  }

  template <int kBitsK, class Function>
  __device__ __forceinline__ void ForValueWidth(int v_bits, const Function& function) {
    if (v_bits == 16) {
      function.template operator()<kBitsK, 16>();
    } else if (v_bits == 8) {
      function.template operator()<kBitsK, 8>();
    } else if (v_bits == 4) {
      function.template operator()<kBitsK, 4>();
    } else {
      function.template operator()<kBitsK, 2>();
    }
  }
  template <class Function>
  __device__ __forceinline__ void ForWidths(int k_bits, int v_bits, const Function& function) {
    if (k_bits == 4) {
      ForValueWidth<4>(v_bits, function);
    } else if (k_bits == 2) {
      ForValueWidth<2>(v_bits, function);
    } else if (k_bits == 8) {
      ForValueWidth<8>(v_bits, function);
    } else {
      ForValueWidth<16>(v_bits, function);
    }
  }

  const DecodeArguments& a_;
  uint8_t* memory_;
  const BatchTable& batch_;
  const UnitMetadata* ones_;
  int lane_;
  int warp_;
  uint32_t k_barrier_;
  uint32_t v_barrier_;
  uint32_t k_turn_ = 0;
  uint32_t v_turn_ = 0;
  float even_ = 1.0f;
  float odd_ = 1.0f;
  bool wide_queries_ = false;
};

}  // namespace pmkvq::cuda
