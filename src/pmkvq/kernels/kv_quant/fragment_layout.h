// Fragment order: how the CUDA backend arranges the bytes of a page. Code of host and device alike;
// docs/formats.md has the table and a worked example.
//
// A block is the part of a page that one KV head has: rows x columns. Of keys a row is a token and
// a column a dim; of values a row is a dim and a column a token. A tile is 16 rows, a step 16
// columns. Each of the 32 lanes of a warp owns adjacent rows and columns, and reads 16 bytes of a
// tile at a time that are the operand of a matrix product as they lie: nothing is moved between
// lanes.
//
//   row    = R / 8 * g + 2 * tile + half        g of 8, half of 2
//   column = C / 4 * t + C / 8 * x + 2 * step + y     t of 4, x and y of 2
//   lane   = 4 * g + t
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define PMKVQ_HOST_DEVICE __host__ __device__
#else
#define PMKVQ_HOST_DEVICE
#endif

namespace pmkvq::fragment {

inline constexpr int kLanes = 32;
inline constexpr int kTokens = 128;     // Of a page.
inline constexpr int kRowBytes = 512;   // 16 bytes of every lane.
inline constexpr int kArenaUnit = 256;  // Bytes that offsets in page tables count.

// Dims of a head that there is code for.
constexpr bool IsHeadDim(int64_t dim) { return dim == 64 || dim == 128 || dim == 256; }
// The same of pages whose rows are tokens: those of latents may be narrower.
constexpr bool IsRowWidth(int64_t width) { return width == 32 || IsHeadDim(width); }

PMKVQ_HOST_DEVICE constexpr int BlockBytes(int bits, int head_dim) {
  return kTokens * head_dim * bits / 8;
}
// Minima, then ranges, of the groups of one head, 16 bits each: of its tokens, or of its channels.
PMKVQ_HOST_DEVICE constexpr int MetadataBytes(int groups = kTokens) { return 2 * groups * 2; }
// Groups of a token and head have at most 128 values.
PMKVQ_HOST_DEVICE constexpr int GroupsOfToken(int head_dim) {
  return head_dim > 128 ? head_dim / 128 : 1;
}
// Of one head of a page.
PMKVQ_HOST_DEVICE constexpr int GroupsOfHead(int head_dim, bool by_channel) {
  return by_channel ? head_dim : kTokens * GroupsOfToken(head_dim);
}

struct BlockShape {
  int rows = 0;
  int cols = 0;
};

PMKVQ_HOST_DEVICE constexpr BlockShape ShapeOf(bool is_values, int head_dim) {
  return is_values ? BlockShape{head_dim, kTokens} : BlockShape{kTokens, head_dim};
}

// 32-bit words of a tile that one lane has.
PMKVQ_HOST_DEVICE constexpr int TileWords(int bits, int cols) { return cols * bits / 64; }

// Byte of a lane's word; words are counted through the tiles of the block.
PMKVQ_HOST_DEVICE constexpr int WordByte(int word, int lane) {
  return (word >> 2) * kRowBytes + lane * 16 + (word & 3) * 4;
}

// A value's place: it is (word rotated right by `rotation`) >> shift.
struct Place {
  int byte = 0;  // Of the word, in the block.
  int shift = 0;
  int rotation = 0;
};

PMKVQ_HOST_DEVICE constexpr Place PlaceOf(int bits, const BlockShape& shape, int row, int col) {
  const int half = row & 1;
  const int tile = (row >> 1) % (shape.rows / 16);
  const int t = col / (shape.cols / 4);
  const int x = col / (shape.cols / 8) & 1;
  const int step = (col >> 1) % (shape.cols / 16);
  const int y = col & 1;
  const int lane = 4 * (row / (shape.rows / 8)) + t;
  const int first = tile * TileWords(bits, shape.cols);
  switch (bits) {
    case 16:
      return {WordByte(first + 4 * step + half + 2 * y, lane), 16 * x, 0};
    case 8:
      return {WordByte(first + 2 * step + half, lane), 8 * (y + 2 * x), 0};
    // Rotated left by 2, so that one AND makes two codes the mantissas of two floats of 16 bits.
    case 4:
      return {WordByte(first + step, lane), 4 * (half + 2 * y + 4 * x), 2};
    default:
      return {WordByte(first + (step >> 1), lane), 2 * (half + 2 * y + 4 * (step & 1) + 8 * x), 2};
  }
}

PMKVQ_HOST_DEVICE constexpr uint32_t RotateRight(uint32_t word, int bits) {
  return bits == 0 ? word : (word >> bits) | (word << (32 - bits));
}
PMKVQ_HOST_DEVICE constexpr uint32_t RotateLeft(uint32_t word, int bits) {
  return RotateRight(word, (32 - bits) % 32);
}

// Words to words of half the width: `low` and `high` are a lane's words 2 w and 2 w + 1, the result
// is its word w. Codes are halved by the equivalent right shift (kv_quant.h), several in one
// multiplication: no sum of theirs reaches the field of the next one.
namespace internal {
// Four codes of 8 bits to 4 bits, in the low half of each byte. 255 * 241 + 1928 < 2^16.
PMKVQ_HOST_DEVICE constexpr uint32_t HalveBytes(uint32_t codes) {
  const uint32_t even = codes & 0x00ff00ffu;
  const uint32_t odd = (codes >> 8) & 0x00ff00ffu;
  return (((even * 241u + 0x07880788u) >> 12) & 0x000f000fu) |
         (((odd * 241u + 0x07880788u) >> 4) & 0x0f000f00u);
}
// Eight codes of 4 bits, rotated, to 2 bits, in bits 0 to 7 and 16 to 23. 15 * 13 + 26 < 2^8.
PMKVQ_HOST_DEVICE constexpr uint32_t HalveNibbles(uint32_t rotated) {
  const uint32_t codes = RotateRight(rotated, 2);
  const uint32_t even = codes & 0x0f0f0f0fu;
  const uint32_t odd = (codes >> 4) & 0x0f0f0f0fu;
  const uint32_t pairs = (((even * 13u + 0x1a1a1a1au) >> 6) & 0x03030303u) |
                         (((odd * 13u + 0x1a1a1a1au) >> 4) & 0x0c0c0c0cu);
  return (pairs | (pairs >> 4)) & 0x00ff00ffu;
}
}  // namespace internal

PMKVQ_HOST_DEVICE constexpr uint32_t Halve8(uint32_t low, uint32_t high) {
  return RotateLeft(internal::HalveBytes(low) | (internal::HalveBytes(high) << 4), 2);
}
PMKVQ_HOST_DEVICE constexpr uint32_t Halve4(uint32_t low, uint32_t high) {
  return RotateLeft(internal::HalveNibbles(low) | (internal::HalveNibbles(high) << 8), 2);
}

// Codes of 4 (2) bits that stand in words as those of 8 bits do, packed: the words of a lane for
// the two halves of one step (of two steps) to one word.
PMKVQ_HOST_DEVICE constexpr uint32_t Pack4(uint32_t half0, uint32_t half1) {
  return RotateLeft(half0 | (half1 << 4), 2);
}
PMKVQ_HOST_DEVICE constexpr uint32_t Pack2(uint32_t step0_half0, uint32_t step0_half1,
                                           uint32_t step1_half0, uint32_t step1_half1) {
  const uint32_t even = step0_half0 | (step0_half1 << 2);
  const uint32_t odd = step1_half0 | (step1_half1 << 2);
  return RotateLeft(
      ((even | (even >> 4)) & 0x00ff00ffu) | (((odd | (odd >> 4)) & 0x00ff00ffu) << 8), 2);
}

}  // namespace pmkvq::fragment
