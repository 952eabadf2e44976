// Decode attention over latents on CUDA: units of work, and the warp that copies what the others
// read.
//
// A unit is some tiles of a page. It is copied ahead of its use and across work items, by 16 bytes
// a lane, so that rows are swizzled on their way (latent_unit.cuh).
#pragma once

#include <cuda_fp16.h>

#include "pmkvq/kernels/attention/decode_arguments.cuh"
#include "pmkvq/kernels/attention/latent_unit.cuh"
#include "pmkvq/kernels/cuda/copy.cuh"
#include "pmkvq/kernels/cuda/lane_copy.cuh"

namespace pmkvq::cuda {

constexpr int kGroupDims = 128;
constexpr int kLatentStages = 2;

// A stage of one warp. Of metadata only what belongs to its tiles is copied.
template <int kGroups, int kRopeDims>
struct LatentStage {
  static constexpr int kRopeTiles = (kCodeTiles + kGroups - 1) / kGroups;  // That a warp scores.
  static constexpr int kRopeTileBytes = 16 * kRopeDims * 2;                // At 16 bits.
  static constexpr int kLatents = LatentTiles(8) * LatentRows(8) * fragment::kRowBytes;
  static constexpr int kRopeAt = kLatents;
  static constexpr int kMetadataAt = kRopeAt + kRopeTiles * kRopeTileBytes;
  // [minima, ranges][8 x 16 tokens of the page][tile][half]
  static constexpr int kMetadata = 2 * 8 * kCodeTiles * 4;
  // [tile][minima, ranges][8][half]
  static constexpr int kRopeMetadataAt = kMetadataAt + kMetadata;
  static constexpr int kBytes = kRopeMetadataAt + kRopeTiles * 64;
};

// What a warp is told of the unit in a stage.
struct LatentUnit {
  int item;  // -1: there is none.
  int sequence;
  int first_head;
  int num_heads;
  int bits;       // Of c.
  int rope_bits;  // Of k_r.
  int tile;
  int tokens;  // Of the page.
  bool begins_item;
  bool ends_item;
};

// Goes through the units of a block's items and copies what its warps read of them. By a warp that
// does nothing else.
template <int kGroups, int kRopeDims>
class LatentLoader {
 public:
  using Stage = LatentStage<kGroups, kRopeDims>;

  __device__ __forceinline__ LatentLoader(const DecodeArguments& a, const BatchTable& batch,
                                          uint8_t* stages, LatentUnit* units)
      : a_(a),
        batch_(batch),
        stages_(SharedAddress(stages)),
        units_(units),
        lane_(threadIdx.x % 32),
        num_items_(batch.item_ends[kMostSequences - 1]),
        item_(static_cast<int>(blockIdx.x)) {
    BeginItem();
  }

  // The next unit into a stage, which nobody reads any more. Says whether there is one.
  __device__ __forceinline__ bool Push(int stage) {
    LatentUnit* const unit = units_ + stage;
    if (item_ >= num_items_) {
      if (lane_ == 0) unit->item = -1;
      return false;
    }
    const uint32_t widths = Word(4);
    const int bits = static_cast<int>(widths & 0xff);
    const int rope_bits = static_cast<int>(widths >> 8 & 0xff);
    const int tiles = LatentTiles(bits);
    const bool ends_page = tile_ + tiles >= 8;
    if (lane_ == 0) {
      unit->item = item_;
      unit->sequence = pages_.sequence;
      unit->first_head = pages_.heads.first;
      unit->num_heads = pages_.heads.count;
      unit->bits = bits;
      unit->rope_bits = rope_bits;
      unit->tile = tile_;
      unit->tokens = pages_.in_pages - page_ * fragment::kTokens;
      unit->begins_item = page_ == pages_.begin && tile_ == 0;
      unit->ends_item = ends_page && page_ + 1 == pages_.end;
    }
    const uint32_t to = stages_ + stage * kGroups * Stage::kBytes;
    if (bits == 8) {
      CopyCodes<8>(to);
    } else if (bits == 16) {
      CopyCodes<16>(to);
    } else if (bits == 4) {
      CopyCodes<4>(to);
    } else {
      CopyCodes<2>(to);
    }
    CopyRopes(to, rope_bits, tiles);
    if (bits < 16) CopyMetadata(to);
    tile_ = ends_page ? 0 : tile_ + tiles;
    if (!ends_page) return true;
    if (++page_ < pages_.end) {
      words_ = next_words_;
      ReadNext();
      return true;
    }
    item_ += static_cast<int>(gridDim.x);
    BeginItem();
    return true;
  }

 private:
  __device__ __forceinline__ void BeginItem() {
    if (item_ >= num_items_) return;
    pages_ = PagesOf<DecodeKind::kPlain>(a_, batch_, item_);
    page_ = pages_.begin;
    tile_ = 0;
    table_ = static_cast<size_t>(TableRow(a_, pages_.sequence)) * a_.max_pages;
    words_ = Words(page_);
    ReadNext();
  }
  // An entry of the page table, a word in each of four lanes, and widths in the fifth.
  __device__ __forceinline__ uint32_t Words(int page) const {
    if (lane_ < 4) return reinterpret_cast<const uint32_t*>(a_.entries + table_ + page)[lane_];
    return lane_ == 4 ? *reinterpret_cast<const uint16_t*>(a_.bits + table_ + page) : 0u;
  }
  __device__ __forceinline__ uint32_t Word(int lane) const {
    return __shfl_sync(~0u, words_, lane);
  }
  // Ahead of its use, which would wait for it.
  __device__ __forceinline__ void ReadNext() {
    if (page_ + 1 < pages_.end) next_words_ = Words(page_ + 1);
  }
  __device__ __forceinline__ const uint8_t* At(uint32_t units) const {
    return a_.arena + static_cast<size_t>(units) * fragment::kArenaUnit;
  }

  template <int kBits>
  __device__ __forceinline__ void CopyCodes(uint32_t to) const {
    const uint8_t* from = At(Word(0)) + tile_ * 2 * kGroupDims * kBits + 16 * lane_;
    const int at = 16 * SwizzledLane(lane_);
#pragma unroll 1
    for (int group = 0; group < kGroups; ++group) {
      const uint32_t first = to + group * Stage::kBytes + at;
      const uint32_t second = to + group * Stage::kBytes + (at ^ kSwizzledHalf);
#pragma unroll
      for (int row = 0; row < LatentTiles(kBits) * LatentRows(kBits); ++row) {
        CopyLane<16>((IsSecondHalf(kBits, row) ? second : first) + row * fragment::kRowBytes,
                     from + row * fragment::kRowBytes);
      }
      from += fragment::BlockBytes(kBits, kGroupDims);
    }
  }
  // Of tile i of the unit, in the stage of the warp that scores it.
  static __device__ __forceinline__ int RopeAt(int i) { return i % kGroups * Stage::kBytes; }
  __device__ __forceinline__ void CopyRopes(uint32_t to, int bits, int tiles) const {
    const uint8_t* const codes = At(Word(1)) + 16 * lane_;
    const uint8_t* const metadata = At(Word(3));
    // A row of 512 bytes at least, which tiles of fewer bytes share.
    const int rows = max(1, 2 * kRopeDims * bits / fragment::kRowBytes);
#pragma unroll 1
    for (int i = 0; i < tiles; ++i) {
      const int row = (tile_ + i) * fragment::TileWords(bits, kRopeDims) / 4;
      const uint32_t rope =
          to + RopeAt(i) + Stage::kRopeAt + i / kGroups * Stage::kRopeTileBytes + 16 * lane_;
      for (int r = 0; r < rows; ++r) {
        CopyLane<16>(rope + r * fragment::kRowBytes, codes + (row + r) * fragment::kRowBytes);
      }
      if (bits < 16 && lane_ < 16) {
        CopyLane<4>(to + RopeAt(i) + Stage::kRopeMetadataAt + 64 * (i / kGroups) + 4 * lane_,
                    metadata + OfToken() + 4 * i);
      }
    }
  }
  __device__ __forceinline__ void CopyMetadata(uint32_t to) const {
    const uint8_t* const metadata = At(Word(2)) + OfToken();
#pragma unroll
    for (int first = 0; first < kGroups; first += 2) {
      const int group = first + (lane_ >> 4);
      if (group >= kGroups) break;
      CopyLane<4 * kCodeTiles>(
          to + group * Stage::kBytes + Stage::kMetadataAt + (lane_ & 15) * 4 * kCodeTiles,
          metadata + group * fragment::MetadataBytes());
    }
  }
  // Minima and ranges: 8 places each.
  __device__ __forceinline__ int OfToken() const {
    return fragment::kTokens * 2 * (lane_ >> 3 & 1) + 32 * (lane_ & 7) + 4 * tile_;
  }

  const DecodeArguments& a_;
  const BatchTable& batch_;
  const uint32_t stages_;
  LatentUnit* const units_;
  const int lane_;
  const int num_items_;
  int item_;
  ItemPages pages_;
  int page_;
  int tile_;
  size_t table_;
  uint32_t words_;
  uint32_t next_words_ = 0;
};

}  // namespace pmkvq::cuda
