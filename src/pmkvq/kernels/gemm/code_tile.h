// Sizes and places in a tile of device_codes_layout.h, for the host and for kernels.
#pragma once

#include <cstdint>

#include "pmkvq/base/check.h"
#include "pmkvq/tensor/weight_format.h"

namespace pmkvq::code_tile {

inline constexpr int kRows = 16;
inline constexpr int kCols = 128;
inline constexpr int kGroup = 32;
inline constexpr int kGroups = kCols / kGroup;

// Tiles side by side, and strips of 16 rows, of a matrix.
constexpr int64_t TilesAcross(int64_t cols) { return (cols + kCols - 1) / kCols; }
constexpr int64_t StripsOf(int64_t rows) { return (rows + kRows - 1) / kRows; }

enum class Scales {
  kBF16,       // Of each group.
  kF16,        // The same.
  kF16Min,     // Of each group, with minima.
  kFactor,     // F16 of the row times a signed byte of each group.
  kFactorMin,  // Two F16 of the row times unsigned bytes of each group, scales and minima.
  kFactor16,   // F16 of the row times a signed byte of each 16 columns.
};

struct Format {
  int bits = 0;  // Of a code; 0: there are none on a device.
  int offset = 0;
  Scales scales = Scales::kF16;
  bool is_table = false;  // Codes are places in the table of IQ4.
};

constexpr Format FormatOf(WeightFormat format) {
  switch (format) {
    case WeightFormat::kQ8:
      return {8, 128, Scales::kBF16};
    case WeightFormat::kQ8_0:
      return {8, 128, Scales::kF16};
    case WeightFormat::kQ4_0:
      return {4, 8, Scales::kF16};
    case WeightFormat::kQ4_1:
      return {4, 0, Scales::kF16Min};
    case WeightFormat::kQ5_0:
      return {5, 16, Scales::kF16};
    case WeightFormat::kQ5_1:
      return {5, 0, Scales::kF16Min};
    case WeightFormat::kQ4_K:
      return {4, 0, Scales::kFactorMin};
    case WeightFormat::kQ5_K:
      return {5, 0, Scales::kFactorMin};
    case WeightFormat::kQ6_K:
      return {6, 32, Scales::kFactor16};
    case WeightFormat::kIQ4_NL:
      return {4, 0, Scales::kF16, true};
    case WeightFormat::kIQ4_XS:
      return {4, 0, Scales::kFactor, true};
    default:
      return {};
  }
}

constexpr bool HasMinima(Scales scales) {
  return scales == Scales::kF16Min || scales == Scales::kFactorMin;
}

// Bytes of the lower bits of all codes, of the higher ones, and of scales for each g.
constexpr int LowBytes(const Format& f) { return kRows * kCols * (f.bits == 8 ? 8 : 4) / 8; }
constexpr int HighBytes(const Format& f) {
  return f.bits == 8 ? 0 : kRows * kCols * (f.bits - 4) / 8;
}
constexpr int ScaleBytes(Scales scales) {
  switch (scales) {
    case Scales::kBF16:
    case Scales::kF16:
      return 16;
    case Scales::kF16Min:
      return 32;
    case Scales::kFactor:
      return 12;
    case Scales::kFactorMin:
      return 24;
    case Scales::kFactor16:
      return 20;
  }
  return 0;
}
constexpr int ScalesAt(const Format& f) { return LowBytes(f) + HighBytes(f); }
constexpr int TileBytes(const Format& f) { return ScalesAt(f) + kRows / 2 * ScaleBytes(f.scales); }

// Values of IQ4.
inline constexpr int kTable[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                   1,    13,   25,  38,  53,  69,  89,  113};

// A code's place in a tile.
struct Place {
  int side, lane, pair, odd, group;
  constexpr Place(int row, int col)
      : side(row / 8),
        lane(row % 8 * 4 + col % 16 / 4),
        pair(col % 4 / 2 + col % kGroup / 16 * 2),
        odd(col % 2),
        group(col / kGroup) {}

  constexpr int Byte() const { return 512 * group + 16 * lane + 8 * side + 2 * pair + odd; }
  // A word of the lower bits, and the bit in it.
  constexpr int LowWord() const { return group / 2 * 128 + 4 * lane + group % 2 * 2 + pair / 2; }
  constexpr int LowBit(bool is_table) const {
    return is_table ? 4 * odd + 8 * side + 16 * (pair % 2) : 4 * side + 8 * (pair % 2) + 16 * odd;
  }
  // The same of the fifth bit, and of two bits.
  constexpr int FifthWord() const { return 2 * lane + group / 2; }
  constexpr int FifthBit() const { return pair + group % 2 * 8 + 4 * side + 16 * odd; }
  constexpr int SixthWord() const { return 4 * lane + group; }
  constexpr int SixthBit() const { return pair % 2 * 2 + pair / 2 * 8 + 4 * side + 16 * odd; }
};

}  // namespace pmkvq::code_tile
