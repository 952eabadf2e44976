#include "pmkvq/kernels/gemm/device_codes_layout.h"

#include <algorithm>
#include <cstring>

#include "pmkvq/base/check.h"
#include "pmkvq/base/float16.h"
#include "pmkvq/base/parallel.h"
#include "pmkvq/kernels/gemm/code_tile.h"

namespace pmkvq {
namespace {

using code_tile::FormatOf;
using code_tile::kCols;
using code_tile::kGroup;
using code_tile::kGroups;
using code_tile::kRows;
using code_tile::Place;
using code_tile::Scales;
using code_tile::StripsOf;
using code_tile::TileBytes;
using code_tile::TilesAcross;

uint16_t HalfAt(const uint8_t* p) { return static_cast<uint16_t>(p[0] | p[1] << 8); }
uint16_t Negated(uint16_t half) { return half ^ 0x8000u; }

// 32 weights of a row as they lie in the file: group `j` of a block.
struct FileGroup {
  const uint8_t* block;
  int j;

  // Low nibbles of 16 bytes are the first 16 codes, high ones the last.
  int Nibble(int at, int i) const { return block[at + i % 16] >> (i < 16 ? 0 : 4) & 15; }
  int Bit32(int at, int i) const { return block[at + i / 8] >> (i % 8) & 1; }
  // Of Q4_K and Q5_K: 32 bytes have the nibbles of two groups.
  int SharedNibble(int at, int i) const { return block[at + j / 2 * 32 + i] >> (j % 2 * 4) & 15; }
  int Scale6() const {
    const uint8_t* s = block + 4;
    return j < 4 ? s[j] & 63 : (s[j + 4] & 15) + 16 * (s[j - 4] >> 6);
  }
  int Min6() const {
    const uint8_t* s = block + 4;
    return j < 4 ? s[j + 4] & 63 : (s[j + 4] >> 4) + 16 * (s[j] >> 6);
  }

  int Code(WeightFormat format, int i) const {
    switch (format) {
      case WeightFormat::kQ8:
        return static_cast<int8_t>(block[i]) + 128;
      case WeightFormat::kQ8_0:
        return static_cast<int8_t>(block[2 + i]) + 128;
      case WeightFormat::kQ4_1:
        return Nibble(4, i);
      case WeightFormat::kQ5_0:
        return Nibble(6, i) + 16 * Bit32(2, i);
      case WeightFormat::kQ5_1:
        return Nibble(8, i) + 16 * Bit32(4, i);
      case WeightFormat::kQ4_K:
        return SharedNibble(16, i);
      case WeightFormat::kQ5_K:
        return SharedNibble(48, i) + 16 * (block[16 + i] >> j & 1);
      case WeightFormat::kQ6_K: {
        const int r = j % 4 * 32 + i;  // Of the half of a block.
        const int low = block[j / 4 * 64 + r % 64] >> (r / 64 * 4) & 15;
        return low + 16 * (block[128 + j / 4 * 32 + i] >> (r / 32 * 2) & 3);
      }
      case WeightFormat::kIQ4_XS:
        return Nibble(8 + 16 * j, i);
      default:  // Q4_0, IQ4_NL
        return Nibble(2, i);
    }
  }
};

// Where a row's scales lie, in bytes of the tile.
class ScalePlace {
 public:
  ScalePlace(const code_tile::Format& f, int row)
      : side_(row / 8),
        scales_(f.scales),
        at_(code_tile::ScalesAt(f) + row % 8 * code_tile::ScaleBytes(f.scales)) {}

  // A group's F16 or BF16; its minimum.
  int Scale(int group) const {
    return at_ + (scales_ == Scales::kF16Min ? 16 : 8) * (group / 2) + 4 * side_ + 2 * (group % 2);
  }
  int Minimum(int group) const { return Scale(group) + 8; }
  // The row's.
  int RowScale() const { return at_ + (scales_ == Scales::kFactorMin ? 4 : 2) * side_; }
  int RowMinimum() const { return at_ + 4 * side_ + 2; }
  int Factor(int group) const {
    const int of_half = scales_ == Scales::kFactorMin ? 8 + 8 * (group / 2) : 4 + 4 * (group / 2);
    return at_ + of_half + 2 * side_ + group % 2;
  }
  int MinimumFactor(int group) const { return Factor(group) + 4; }
  int Factor16(int sixteenth) const {
    return at_ + 4 + 8 * (sixteenth / 4) + 4 * side_ + sixteenth % 4;
  }

 private:
  int side_;
  Scales scales_;
  int at_;
};

void LayOutScales(const FileGroup& from, WeightFormat format, int group, int row, uint8_t* tile) {
  const uint8_t* const b = from.block;
  const ScalePlace to(FormatOf(format), row);
  const auto store = [&](int place, uint16_t half) {
    std::memcpy(tile + place, &half, sizeof(half));
  };
  switch (format) {
    case WeightFormat::kQ8:
      return store(to.Scale(group), HalfAt(b + 32));
    case WeightFormat::kQ4_1:
    case WeightFormat::kQ5_1:
      store(to.Scale(group), HalfAt(b));
      return store(to.Minimum(group), HalfAt(b + 2));
    case WeightFormat::kQ4_K:
    case WeightFormat::kQ5_K:
      store(to.RowScale(), HalfAt(b));
      store(to.RowMinimum(), Negated(HalfAt(b + 2)));
      tile[to.Factor(group)] = static_cast<uint8_t>(from.Scale6());
      tile[to.MinimumFactor(group)] = static_cast<uint8_t>(from.Min6());
      return;
    case WeightFormat::kQ6_K:
      store(to.RowScale(), HalfAt(b + 208));
      for (int half = 0; half < 2; ++half) {
        tile[to.Factor16(2 * group + half)] =
            static_cast<uint8_t>(static_cast<int8_t>(b[192 + 2 * from.j + half]) + 128);
      }
      return;
    case WeightFormat::kIQ4_XS: {
      const int low = b[4 + from.j / 2] >> (from.j % 2 * 4) & 15;
      const int high = HalfAt(b + 2) >> (2 * from.j) & 3;
      store(to.RowScale(), HalfAt(b));
      tile[to.Factor(group)] = static_cast<uint8_t>(low + 16 * high - 32 + 128);
      return;
    }
    default:  // Q8_0, Q4_0, Q5_0, IQ4_NL
      return store(to.Scale(group), HalfAt(b));
  }
}

void OrWord(uint8_t* words, int word, uint32_t bits) {
  uint32_t value;
  std::memcpy(&value, words + 4 * word, sizeof(value));
  value |= bits;
  std::memcpy(words + 4 * word, &value, sizeof(value));
}
uint32_t WordAt(const uint8_t* words, int word) {
  uint32_t value;
  std::memcpy(&value, words + 4 * word, sizeof(value));
  return value;
}

void StoreCode(const code_tile::Format& f, int code, const Place& place, uint8_t* tile) {
  if (f.bits == 8) {
    tile[place.Byte()] = static_cast<uint8_t>(code);
    return;
  }
  OrWord(tile, place.LowWord(), static_cast<uint32_t>(code & 15) << place.LowBit(f.is_table));
  uint8_t* const high = tile + code_tile::LowBytes(f);
  const auto above = static_cast<uint32_t>(code >> 4);
  if (f.bits == 5) OrWord(high, place.FifthWord(), above << place.FifthBit());
  if (f.bits == 6) OrWord(high, place.SixthWord(), above << place.SixthBit());
}

int CodeAt(const code_tile::Format& f, const Place& place, const uint8_t* tile) {
  if (f.bits == 8) return tile[place.Byte()];
  uint32_t code = WordAt(tile, place.LowWord()) >> place.LowBit(f.is_table) & 15u;
  const uint8_t* const high = tile + code_tile::LowBytes(f);
  if (f.bits == 5) code += (WordAt(high, place.FifthWord()) >> place.FifthBit() & 1u) << 4;
  if (f.bits == 6) code += (WordAt(high, place.SixthWord()) >> place.SixthBit() & 3u) << 4;
  return static_cast<int>(code);
}

}  // namespace

bool HasDeviceCodes(WeightFormat format) { return FormatOf(format).bits != 0; }

size_t DeviceCodesBytes(WeightFormat format, int64_t rows, int64_t cols) {
  PMKVQ_CHECK(HasDeviceCodes(format));
  const int64_t tiles = StripsOf(rows) * TilesAcross(cols);
  return static_cast<size_t>(tiles * TileBytes(FormatOf(format)));
}

void LayOutCodes(const WeightView& weight, std::byte* out, const ExecContext& exec) {
  const WeightFormat format = weight.format;
  PMKVQ_CHECK(HasDeviceCodes(format));
  const code_tile::Format f = FormatOf(format);
  const WeightLayout& layout = LayoutOf(format);
  const int64_t row_bytes = RowBytes(format, weight.cols);
  const int64_t num_groups = (weight.cols + kGroup - 1) / kGroup;
  const int64_t strip_bytes = TilesAcross(weight.cols) * TileBytes(f);
  ParallelForRanges(exec.num_threads, StripsOf(weight.rows), 4, [&](int64_t begin, int64_t end) {
    std::memset(out + begin * strip_bytes, 0, static_cast<size_t>((end - begin) * strip_bytes));
    for (int64_t row = begin * kRows; row < std::min(end * kRows, weight.rows); ++row) {
      const auto* const from =
          reinterpret_cast<const uint8_t*>(weight.data + weight.StoredRow(row) * row_bytes);
      const int in_tile = static_cast<int>(row % kRows);
      for (int64_t g = 0; g < num_groups; ++g) {
        auto* const tile = reinterpret_cast<uint8_t*>(out) + row / kRows * strip_bytes +
                           g / kGroups * TileBytes(f);
        const int group = static_cast<int>(g % kGroups);
        const FileGroup in_file{from + BytesBefore(format, g * kGroup),
                                static_cast<int>(g * kGroup % layout.block_values / kGroup)};
        for (int i = 0; i < kGroup; ++i) {
          StoreCode(f, in_file.Code(format, i), Place(in_tile, group * kGroup + i), tile);
        }
        LayOutScales(in_file, format, group, in_tile, tile);
      }
    }
  });
}

namespace internal {

float DeviceCodesAt(const DeviceCodes& w, int64_t row, int64_t col) {
  const code_tile::Format f = FormatOf(w.format);
  const auto* const tile = reinterpret_cast<const uint8_t*>(w.data) +
                           (row / kRows * TilesAcross(w.k) + col / kCols) * TileBytes(f);
  const Place place(static_cast<int>(row % kRows), static_cast<int>(col % kCols));
  const ScalePlace at(f, static_cast<int>(row % kRows));
  const auto half = [&](int byte) { return ToFloat(F16{HalfAt(tile + byte)}); };
  const auto factor = [&](int byte) { return static_cast<float>(tile[byte]); };
  const int code = CodeAt(f, place, tile);
  const auto value = static_cast<float>(f.is_table ? code_tile::kTable[code] : code - f.offset);
  const int group = place.group;
  switch (f.scales) {
    case Scales::kBF16:
      return value * ToFloat(BF16{HalfAt(tile + at.Scale(group))});
    case Scales::kF16:
      return value * half(at.Scale(group));
    case Scales::kF16Min:
      return value * half(at.Scale(group)) + half(at.Minimum(group));
    case Scales::kFactor:
      return value * (half(at.RowScale()) * (factor(at.Factor(group)) - 128.0f));
    case Scales::kFactorMin:
      return value * (half(at.RowScale()) * factor(at.Factor(group))) +
             half(at.RowMinimum()) * factor(at.MinimumFactor(group));
    case Scales::kFactor16: {
      const auto sixteenth = static_cast<int>(col % kCols / 16);
      return value * (half(at.RowScale()) * (factor(at.Factor16(sixteenth)) - 128.0f));
    }
  }
  return 0.0f;
}

}  // namespace internal
}  // namespace pmkvq
