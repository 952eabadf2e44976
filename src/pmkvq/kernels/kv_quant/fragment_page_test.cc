#include "pmkvq/kernels/kv_quant/fragment_page.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "pmkvq/kernels/kv_quant/fragment_layout.h"
#include "pmkvq/kernels/kv_quant/kv_quant.h"
#include "pmkvq/kernels/kv_quant/kv_quant_common.h"

namespace pmkvq {
namespace {

using fragment::BlockBytes;
using fragment::BlockShape;
using fragment::Place;

constexpr int kAllWidths[] = {16, 8, 4, 2};
constexpr int kHeadDims[] = {64, 128, 256};

std::vector<std::byte> RandomBytes(size_t size, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<std::byte> bytes(size);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

// The bits of the block that a place has.
std::vector<int> BitsOf(const Place& place, int bits) {
  std::vector<int> result;
  for (int bit = 0; bit < bits; ++bit) {
    result.push_back(8 * place.byte + (place.shift + bit + place.rotation) % 32);
  }
  return result;
}

TEST(FragmentLayoutTest, EveryBitOfABlockBelongsToOneValue) {
  for (const int dim : kHeadDims) {
    for (const bool is_values : {false, true}) {
      const BlockShape shape = fragment::ShapeOf(is_values, dim);
      for (const int bits : kAllWidths) {
        std::vector<bool> taken(static_cast<size_t>(8 * BlockBytes(bits, dim)));
        for (int row = 0; row < shape.rows; ++row) {
          for (int col = 0; col < shape.cols; ++col) {
            for (const int bit : BitsOf(fragment::PlaceOf(bits, shape, row, col), bits)) {
              ASSERT_LT(static_cast<size_t>(bit), taken.size());
              ASSERT_FALSE(taken[static_cast<size_t>(bit)]) << row << ", " << col;
              taken[static_cast<size_t>(bit)] = true;
            }
          }
        }
        EXPECT_EQ(std::count(taken.begin(), taken.end(), false), 0) << dim << ", " << bits;
      }
    }
  }
}

TEST(FragmentLayoutTest, APlaceIsThatOfTheMatrixOperand) {
  // mma.m16n8k16, operand A: register half + 2 y, half-word x of a lane is row g + 8 half, column
  // 2 t + 8 y + x of its tile in the instruction's own order.
  const BlockShape keys = fragment::ShapeOf(false, 128);
  const Place place = fragment::PlaceOf(4, keys, 77, 45);  // docs/formats.md
  EXPECT_EQ(place.byte, 6936);
  EXPECT_EQ(place.shift, 4 * 3);
  EXPECT_EQ(place.rotation, 2);
  // Values are the transposed matrix: dim 77 of token 45 lies there.
  const Place value = fragment::PlaceOf(4, fragment::ShapeOf(true, 128), 77, 45);
  EXPECT_EQ(value.byte, place.byte);
}

std::string Hex(const std::byte* bytes, int count) {
  std::string text;
  for (int i = 0; i < count; ++i) {
    char two[4];
    std::snprintf(two, sizeof(two), "%02x", static_cast<unsigned>(bytes[i]));
    text += (i == 0 ? "" : " ") + std::string(two);
  }
  return text;
}

TEST(FragmentPageTest, TheWorkedExampleOfFormatsMd) {
  // Keys of one head, code(token, dim) at 8 bits = (61 token + 37 dim + 9) mod 256.
  const FragmentPageShape shape{.heads = 1, .head_dim = 128, .is_values = false};
  std::vector<uint8_t> codes(128 * 128);
  for (int token = 0; token < 128; ++token) {
    for (int dim = 0; dim < 128; ++dim) {
      codes[static_cast<size_t>(token * 128 + dim)] =
          static_cast<uint8_t>(61 * token + 37 * dim + 9);
    }
  }
  const char* const expected[] = {"09 2e 59 7e 46 6b 96 bb 53 78 a3 c8 90 b5 e0 05",
                                  "06 8d 55 de 14 de 6a 33", "50 65 66 ba"};
  int bits = 8;
  for (const char* const text : expected) {
    std::vector<std::byte> planes(static_cast<size_t>(BlockBytes(bits, 128)));
    PackCodes(128, bits, codes.data(), 128, reinterpret_cast<uint8_t*>(planes.data()));
    std::vector<std::byte> fragments(planes.size());
    PlanesToFragments(shape, bits, planes.data(), fragments.data());
    EXPECT_EQ(Hex(fragments.data(), static_cast<int>(std::strlen(text) + 1) / 3), text);
    bits /= 2;
    for (uint8_t& code : codes) code = static_cast<uint8_t>(internal::HalveCode(code, bits));
  }
}

TEST(FragmentPageTest, ExportUndoesImport) {
  for (const int dim : kHeadDims) {
    for (const bool is_values : {false, true}) {
      for (const int bits : kAllWidths) {
        const FragmentPageShape shape{.heads = 3, .head_dim = dim, .is_values = is_values};
        const size_t size = 3 * static_cast<size_t>(BlockBytes(bits, dim));
        const auto planes = RandomBytes(size, static_cast<uint32_t>(bits + dim));
        std::vector<std::byte> fragments(size, std::byte{0xee});
        std::vector<std::byte> back(size, std::byte{0xee});
        PlanesToFragments(shape, bits, planes.data(), fragments.data());
        FragmentsToPlanes(shape, bits, fragments.data(), back.data());
        EXPECT_EQ(back, planes) << dim << ", " << bits;
        EXPECT_NE(fragments, planes);
      }
    }
  }
}

// By channel the planes' groups are other ones, the codes' places in fragment order are not.
TEST(FragmentPageTest, ChannelsAreGroupsOfThePlanesOnly) {
  for (const int dim : kHeadDims) {
    for (const int bits : {8, 4, 2}) {
      const FragmentPageShape shape{
          .heads = 3, .head_dim = dim, .is_values = false, .by_channel = true};
      const size_t size = 3 * static_cast<size_t>(BlockBytes(bits, dim));
      const auto planes = RandomBytes(size, static_cast<uint32_t>(bits + dim));
      std::vector<std::byte> fragments(size, std::byte{0xee});
      std::vector<std::byte> back(size, std::byte{0xee});
      PlanesToFragments(shape, bits, planes.data(), fragments.data());
      FragmentsToPlanes(shape, bits, fragments.data(), back.data());
      EXPECT_EQ(back, planes) << dim << ", " << bits;
      std::vector<uint8_t> codes(static_cast<size_t>(fragment::kTokens));
      for (int64_t head = 0; head < 3; ++head) {
        for (int64_t d = 0; d < dim; ++d) {
          const int64_t group = head * dim + d;
          UnpackCodes(fragment::kTokens, bits,
                      reinterpret_cast<const uint8_t*>(planes.data()) +
                          group * PackedGroupBytes(fragment::kTokens, bits),
                      1, codes.data());
          for (int64_t token = 0; token < fragment::kTokens; ++token) {
            ASSERT_EQ(FragmentValue(shape, bits, fragments.data(), head, token, d),
                      codes[static_cast<size_t>(token)]);
          }
        }
      }
    }
  }
}

// The words of a lane are halved pair by pair, whatever the block: exhaustive over codes, since
// each of the four (eight) codes of a word takes every value beside every neighbour's extreme.
TEST(FragmentLayoutTest, HalvingAWordHalvesItsCodes) {
  for (uint32_t code = 0; code < 256; ++code) {
    for (const uint32_t other : {0u, 0x80u, 0xffu}) {
      for (int byte = 0; byte < 4; ++byte) {
        const uint32_t others = 0x01010101u * other;
        const uint32_t word = (others & ~(0xffu << (8 * byte))) | (code << (8 * byte));
        const uint32_t low = fragment::RotateRight(fragment::Halve8(word, others), 2);
        const uint32_t high = fragment::RotateRight(fragment::Halve8(others, word), 2);
        for (int b = 0; b < 4; ++b) {
          const uint32_t expected = internal::HalveCode(b == byte ? code : other, 4);
          ASSERT_EQ((low >> (8 * b)) & 15u, expected);
          ASSERT_EQ((high >> (8 * b + 4)) & 15u, expected);
        }
      }
    }
  }
}

// Halves whole blocks word by word and compares every code with the scalar definition.
TEST(FragmentLayoutTest, HalvingABlockHalvesEveryCode) {
  for (const int dim : kHeadDims) {
    for (const bool is_values : {false, true}) {
      for (const int from : {8, 4}) {
        const FragmentPageShape shape{.heads = 1, .head_dim = dim, .is_values = is_values};
        const auto in = RandomBytes(static_cast<size_t>(BlockBytes(from, dim)),
                                    static_cast<uint32_t>(from * dim));
        std::vector<std::byte> out(in.size() / 2);
        const int words = static_cast<int>(out.size()) / 4 / fragment::kLanes;
        for (int lane = 0; lane < fragment::kLanes; ++lane) {
          for (int word = 0; word < words; ++word) {
            uint32_t low = 0;
            uint32_t high = 0;
            std::memcpy(&low, in.data() + fragment::WordByte(2 * word, lane), 4);
            std::memcpy(&high, in.data() + fragment::WordByte(2 * word + 1, lane), 4);
            const uint32_t halved =
                from == 8 ? fragment::Halve8(low, high) : fragment::Halve4(low, high);
            std::memcpy(out.data() + fragment::WordByte(word, lane), &halved, 4);
          }
        }
        std::set<uint32_t> seen;
        for (int64_t token = 0; token < 128; ++token) {
          for (int64_t d = 0; d < dim; ++d) {
            const uint32_t code = FragmentValue(shape, from, in.data(), 0, token, d);
            seen.insert(code);
            ASSERT_EQ(FragmentValue(shape, from / 2, out.data(), 0, token, d),
                      internal::HalveCode(code, from / 2));
          }
        }
        EXPECT_EQ(seen.size(), size_t{1} << from);  // All codes occurred.
      }
    }
  }
}

TEST(FragmentLayoutTest, PackedWordsAreThoseOfTheLayout) {
  std::mt19937 random(3);
  for (int round = 0; round < 100; ++round) {
    uint32_t words[4];
    for (uint32_t& word : words) word = random() & 0x0f0f0f0fu;
    // Through 8-bit words with the codes times 17, which halve to the codes.
    const auto wide = [](uint32_t word) { return word | (word << 4); };
    EXPECT_EQ(fragment::Pack4(words[0], words[1]),
              fragment::Halve8(wide(words[0]), wide(words[1])));
    for (uint32_t& word : words) word &= 0x03030303u;
    const auto five = [](uint32_t word) { return word | (word << 2); };
    EXPECT_EQ(fragment::Pack2(words[0], words[1], words[2], words[3]),
              fragment::Halve4(fragment::Pack4(five(words[0]), five(words[1])),
                               fragment::Pack4(five(words[2]), five(words[3]))));
  }
}

}  // namespace
}  // namespace pmkvq
