// Operations on pages on CUDA against the CPU's, bit by bit.
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "pmkvq/base/float16.h"
#include "pmkvq/kernels/kv_quant/fragment_layout.h"
#include "pmkvq/kernels/kv_quant/kv_quant.h"
#include "pmkvq/kernels/kv_quant/kv_quant_common.h"
#include "pmkvq/kernels/kv_quant/page_moves.h"
#include "pmkvq/tensor/device/buffer.h"
#include "support/gpu_test.h"

namespace pmkvq {
namespace {

using Bytes = std::vector<std::byte>;

// A stream of pages: side, heads, dims, float type.
struct Kind {
  bool is_values;
  int64_t heads;
  int64_t dim;
  DType type;
  bool by_channel = false;  // Groups of keys.
};
void PrintTo(const Kind& kind, std::ostream* out) {
  *out << (kind.is_values    ? "values "
           : kind.by_channel ? "channels "
                             : "keys ")
       << kind.heads << " x " << kind.dim << ' ' << NameOf(kind.type);
}

class PageMovesSmallTest : public GpuTest, public testing::WithParamInterface<Kind> {
 protected:
  FragmentPageShape shape() const {
    return {GetParam().heads, GetParam().dim, GetParam().is_values, GetParam().by_channel};
  }
  int64_t group_size() const {
    return GetParam().by_channel ? int64_t{fragment::kTokens}
                                 : std::min<int64_t>(GetParam().dim, 128);
  }
  int64_t groups_of_head() const {
    return fragment::GroupsOfHead(static_cast<int>(GetParam().dim), GetParam().by_channel);
  }
  int64_t num_groups() const { return GetParam().heads * groups_of_head(); }
  size_t PageBytes(int bits) const {
    return static_cast<size_t>(GetParam().heads *
                               fragment::BlockBytes(bits, static_cast<int>(GetParam().dim)));
  }
  size_t metadata_bytes() const { return static_cast<size_t>(num_groups() * 4); }

  // Pages [Hkv, 128, D] of the float type, with groups of every kind that has gone wrong somewhere.
  Bytes RandomPage(uint32_t seed) const {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    Bytes page(PageBytes(16));
    internal::VisitFloatType(GetParam().type, [&]<class T>(T) {
      if constexpr (sizeof(T) == 2) {
        auto* out = reinterpret_cast<T*>(page.data());
        for (int64_t r = 0; r < num_groups(); ++r) {
          for (int64_t i = 0; i < group_size(); ++i) {
            out[PlaceOf(r, i)] = FromFloat<T>(Sample(r % 11, i, normal(random)));
          }
        }
      }
    });
    return page;
  }
  // Value i of group r in a page of 16 bits.
  int64_t PlaceOf(int64_t r, int64_t i) const {
    const int64_t dim = GetParam().dim;
    if (!GetParam().by_channel) return r * group_size() + i;
    return (r / dim * fragment::kTokens + i) * dim + r % dim;
  }
  static float Sample(int64_t kind, int64_t i, float z) {
    switch (kind) {
      case 0:
        return i % 7 == 3 ? 300.0f * z : 0.01f * z;
      case 1:
        return -1.2345f;
      case 2:
        return i % 2 == 0 ? 0.0f : -0.0f;
      case 3:
        return 1e-7f * z;
      case 4:
        return 1000.0f + 0.5f * z;
      case 5:  // Beyond what a range can hold.
        return i % 2 == 0 ? kMaxF16 : -kMaxF16 + std::abs(z);
      case 6:  // Ties where the range is 4.
        return static_cast<float>(i % 17) * 0.25f;
      case 7:
        return 1e-39f * z;
      case 8:  // Codes of 8 bits half way between two.
        return static_cast<float>(i % 128) + (i % 2 == 0 ? 0.5f : 0.0f) + (i == 5 ? 127.0f : 0.0f);
      default:
        return z;
    }
  }

  // What the CPU makes of a page in planes: codes in planes, metadata.
  void QuantizeOnCpu(const Bytes& page, int bits, Bytes& codes, Bytes& metadata) const {
    codes.assign(PageBytes(bits), std::byte{0});
    metadata.assign(metadata_bytes(), std::byte{0});
    const GroupFormat format{group_size(), bits, GetParam().type};
    Bytes groups(page.size());
    for (int64_t r = 0; r < num_groups(); ++r) {
      for (int64_t i = 0; i < group_size(); ++i) {
        std::memcpy(groups.data() + 2 * (r * group_size() + i), page.data() + 2 * PlaceOf(r, i), 2);
      }
    }
    for (int64_t head = 0; head < GetParam().heads; ++head) {
      const auto h = static_cast<size_t>(head);
      std::byte* mins = metadata.data() + head * groups_of_head() * 4;
      QuantizeStoredGroups(
          format, groups.data() + h * PageBytes(16) / static_cast<size_t>(GetParam().heads),
          groups_of_head(),
          reinterpret_cast<uint8_t*>(codes.data()) +
              h * PageBytes(bits) / static_cast<size_t>(GetParam().heads),
          mins, mins + groups_of_head() * 2);
    }
  }
  Bytes HalveOnCpu(const Bytes& codes, int from_bits) const {
    Bytes out(codes.size() / 2);
    HalvePackedCodes(group_size(), from_bits, reinterpret_cast<const uint8_t*>(codes.data()),
                     num_groups(), reinterpret_cast<uint8_t*>(out.data()));
    return out;
  }
  Bytes ToFragments(const Bytes& planes, int bits) const {
    Bytes out(planes.size());
    PlanesToFragments(shape(), bits, planes.data(), out.data());
    return out;
  }

  // A device arena with `bytes`, in which `run` works; gives the bytes back.
  template <class Run>
  Bytes OnDevice(const Bytes& bytes, const Run& run) {
    const Buffer arena(kDevice, bytes.size());
    CopyToDevice(stream(), arena.data(), bytes.data(), bytes.size());
    run(arena.data());
    Bytes back(bytes.size());
    CopyToHost(stream(), back.data(), arena.data(), back.size());
    stream().Synchronize();
    return back;
  }
  static void Put(const Bytes& piece, size_t at, Bytes& into) {
    std::copy(piece.begin(), piece.end(), into.begin() + static_cast<ptrdiff_t>(at));
  }
  static Bytes Part(const Bytes& bytes, size_t at, size_t size) {
    return {bytes.begin() + static_cast<ptrdiff_t>(at),
            bytes.begin() + static_cast<ptrdiff_t>(at + size)};
  }
};

INSTANTIATE_TEST_SUITE_P(
    Kinds, PageMovesSmallTest,
    testing::Values(Kind{false, 8, 128, DType::kF16}, Kind{true, 8, 128, DType::kF16},
                    Kind{false, 3, 64, DType::kF16}, Kind{true, 3, 64, DType::kF16},
                    Kind{false, 1, 128, DType::kBF16}, Kind{true, 1, 128, DType::kBF16},
                    Kind{false, 5, 64, DType::kBF16}, Kind{true, 5, 64, DType::kBF16},
                    Kind{false, 8, 128, DType::kF16, true}, Kind{false, 3, 64, DType::kF16, true},
                    Kind{false, 1, 128, DType::kBF16, true}, Kind{false, 5, 64, DType::kBF16, true},
                    Kind{false, 2, 256, DType::kF16}, Kind{true, 2, 256, DType::kF16},
                    Kind{false, 3, 256, DType::kBF16}, Kind{true, 3, 256, DType::kBF16},
                    Kind{false, 2, 256, DType::kF16, true}));

TEST_P(PageMovesSmallTest, QuantizingEqualsTheCpuBitForBit) {
  constexpr size_t kPages = 3;
  for (const int bits : {8, 4, 2}) {
    SCOPED_TRACE(bits);
    const size_t codes_at = kPages * PageBytes(16);
    const size_t metadata_at = codes_at + kPages * PageBytes(bits);
    const size_t unfit_at = metadata_at + kPages * metadata_bytes();
    Bytes bytes(unfit_at + 256, std::byte{0xff});
    std::vector<Bytes> pages;
    std::vector<PageMove> moves;
    for (size_t i = 0; i < kPages; ++i) {
      pages.push_back(RandomPage(static_cast<uint32_t>(i + 1)));
      Put(ToFragments(pages[i], 16), i * PageBytes(16), bytes);
      moves.push_back({i * PageBytes(16), codes_at + (kPages - 1 - i) * PageBytes(bits),
                       metadata_at + i * metadata_bytes()});
    }
    const Bytes back = OnDevice(bytes, [&](std::byte* arena) {
      QuantizePages(shape(), GetParam().type, bits, moves, arena,
                    reinterpret_cast<uint32_t*>(arena + unfit_at), 40, stream());
    });
    for (size_t i = 0; i < kPages; ++i) {
      Bytes codes;
      Bytes metadata;
      QuantizeOnCpu(pages[i], bits, codes, metadata);
      EXPECT_EQ(Part(back, moves[i].metadata, metadata.size()), metadata) << "metadata " << i;
      EXPECT_EQ(Part(back, moves[i].target, codes.size()), ToFragments(codes, bits)) << i;
    }
    uint32_t unfit = 0;
    std::memcpy(&unfit, back.data() + unfit_at, sizeof(unfit));
    EXPECT_EQ(unfit, GetParam().type == DType::kF16 ? 40u : 0xffffffffu);
  }
}

TEST_P(PageMovesSmallTest, HalvingEqualsTheCpuBitForBit) {
  for (const auto& [from, to] : std::vector<std::pair<int, int>>{{8, 4}, {4, 2}, {8, 2}}) {
    SCOPED_TRACE(testing::Message() << from << " to " << to);
    Bytes codes(PageBytes(from));
    std::mt19937 random(5);
    for (std::byte& byte : codes) byte = static_cast<std::byte>(random());
    Bytes halved = HalveOnCpu(codes, from);
    if (from == 4 * to) halved = HalveOnCpu(halved, from / 2);
    const Bytes expected = ToFragments(halved, to);
    Bytes bytes = ToFragments(codes, from);
    const size_t target = bytes.size();
    bytes.resize(target + expected.size(), std::byte{0xff});
    const Bytes apart = OnDevice(bytes, [&](std::byte* arena) {
      HalvePages(shape(), from, to, std::vector<PageMove>{{0, target, 0}}, arena, stream());
    });
    EXPECT_EQ(Part(apart, target, expected.size()), expected);
    EXPECT_EQ(Part(apart, 0, target), Part(bytes, 0, target));
    const Bytes in_place = OnDevice(bytes, [&](std::byte* arena) {
      HalvePagesInPlace(shape(), from, to, std::vector<PageMove>{{0, 0, 0}}, arena, stream());
    });
    EXPECT_EQ(Part(in_place, 0, expected.size()), expected);
  }
}

TEST_P(PageMovesSmallTest, ExpandingEqualsTheCpuBitForBit) {
  for (const int bits : {8, 4, 2}) {
    SCOPED_TRACE(bits);
    Bytes codes;
    Bytes metadata;
    QuantizeOnCpu(RandomPage(3), bits, codes, metadata);
    Bytes expected(PageBytes(16));
    internal::VisitFloatType(GetParam().type, [&]<class T>(T) {
      if constexpr (sizeof(T) == 2) {
        std::vector<float> values(static_cast<size_t>(num_groups() * group_size()));
        const int64_t per_head = fragment::kTokens * GetParam().dim;
        for (int64_t head = 0; head < GetParam().heads; ++head) {
          const std::byte* mins = metadata.data() + head * groups_of_head() * 4;
          ref::DequantizeGroups(
              {group_size(), bits, GetParam().type},
              reinterpret_cast<const uint8_t*>(codes.data()) + head * per_head * bits / 8, mins,
              mins + groups_of_head() * 2, groups_of_head(), values.data() + head * per_head);
        }
        auto* out = reinterpret_cast<T*>(expected.data());
        for (int64_t r = 0; r < num_groups(); ++r) {
          for (int64_t i = 0; i < group_size(); ++i) {
            float value = values[static_cast<size_t>(r * group_size() + i)];
            if (GetParam().type == DType::kF16) value = std::clamp(value, -kMaxF16, kMaxF16);
            out[PlaceOf(r, i)] = FromFloat<T>(value);
          }
        }
      }
    });
    Bytes bytes = ToFragments(codes, bits);
    const size_t metadata_at = bytes.size();
    bytes.insert(bytes.end(), metadata.begin(), metadata.end());
    const size_t target = bytes.size();
    bytes.resize(target + PageBytes(16), std::byte{0xff});
    const Bytes back = OnDevice(bytes, [&](std::byte* arena) {
      ExpandPages(shape(), GetParam().type, bits, std::vector<PageMove>{{0, target, metadata_at}},
                  arena, stream());
    });
    EXPECT_EQ(Part(back, target, PageBytes(16)), ToFragments(expected, 16));
  }
}

TEST_P(PageMovesSmallTest, MoreMovesThanALaunchTakes) {
  constexpr size_t kPages = 1100;
  const size_t from = PageBytes(4);
  const size_t to = PageBytes(2);
  Bytes bytes(kPages * (from + to), std::byte{0xff});
  std::vector<PageMove> moves;
  for (size_t i = 0; i < kPages; ++i) {
    std::memset(bytes.data() + i * from, static_cast<int>(i % 251), from);
    moves.push_back({i * from, kPages * from + i * to, 0});
  }
  const Bytes back =
      OnDevice(bytes, [&](std::byte* arena) { HalvePages(shape(), 4, 2, moves, arena, stream()); });
  for (size_t i = 0; i < kPages; i += 37) {
    const auto byte = static_cast<uint32_t>(i % 251) * 0x01010101u;
    const uint32_t expected = fragment::Halve4(byte, byte);
    uint32_t got = 0;
    std::memcpy(&got, back.data() + moves[i].target + to - 4, 4);
    ASSERT_EQ(got, expected) << i;
  }
}

// More pages than blocks are launched, of several pieces each: whatever is written too early would
// be halved again.
TEST_P(PageMovesSmallTest, ManyPagesInPlace) {
  for (const auto& [from, to] : std::vector<std::pair<int, int>>{{8, 4}, {4, 2}, {8, 2}}) {
    SCOPED_TRACE(testing::Message() << from << " to " << to);
    FragmentPageShape large = shape();
    large.heads = 3;
    const size_t page = static_cast<size_t>(
        large.heads * fragment::BlockBytes(from, static_cast<int>(large.head_dim)));
    constexpr size_t kPages = 600;
    Bytes bytes(kPages * page);
    std::vector<PageMove> moves;
    std::vector<PageMove> apart;
    for (size_t i = 0; i < kPages; ++i) {
      moves.push_back({i * page, i * page, 0});
      apart.push_back({i * page, kPages * page + i * page, 0});
    }
    std::mt19937 random(7);
    for (size_t i = 0; i + 4 <= bytes.size(); i += 4) {
      const auto word = static_cast<uint32_t>(random());
      std::memcpy(bytes.data() + i, &word, sizeof(word));
    }
    const Bytes in_place = OnDevice(bytes, [&](std::byte* arena) {
      HalvePagesInPlace(large, from, to, moves, arena, stream());
    });
    bytes.resize(2 * bytes.size());
    const Bytes expected = OnDevice(
        bytes, [&](std::byte* arena) { HalvePages(large, from, to, apart, arena, stream()); });
    const size_t kept = page * static_cast<size_t>(to) / static_cast<size_t>(from);
    for (size_t i = 0; i < kPages; ++i) {
      ASSERT_EQ(Part(in_place, i * page, kept), Part(expected, (kPages + i) * page, kept)) << i;
    }
  }
}

// Tokens one after the other into pages and a sink's rest.
TEST_P(PageMovesSmallTest, AppendedTokensLieWhereTheLayoutSays) {
  if (GetParam().is_values || GetParam().by_channel)
    GTEST_SKIP() << "both sides are stored at once";
  const int64_t heads = GetParam().heads;
  const int64_t dim = GetParam().dim;
  const int64_t query_heads = 2 * heads;
  constexpr int32_t kRest = 3;
  std::mt19937 random(6);
  std::normal_distribution<float> normal;
  const size_t page = PageBytes(16);
  const size_t rest_bytes = static_cast<size_t>(heads * dim * kRest * 2 + 255) / 256 * 256;
  const Buffer arena(kDevice, 4 * page + 2 * rest_bytes);
  FillOnDevice(stream(), arena.data(), 0xff, arena.num_bytes());
  const size_t kv_floats = static_cast<size_t>(3 * heads * dim);
  const size_t q_floats = static_cast<size_t>(3 * query_heads * dim);
  const Buffer rows(kDevice, (2 * kv_floats + q_floats) * sizeof(float));
  const Buffer targets(kDevice, 3 * sizeof(AppendTarget));
  const Buffer q_out(kDevice, q_floats * 2);
  const Buffer unfit(kDevice, 3 * sizeof(uint32_t));
  FillOnDevice(stream(), unfit.data(), 0xff, unfit.num_bytes());
  const auto units = [](size_t bytes) { return static_cast<uint32_t>(bytes / 256); };
  std::vector<float> values;
  std::vector<Bytes> expected(2, Bytes(page, std::byte{0}));  // Of sequence 0, in planes.
  for (int32_t token = 0; token < 128; ++token) {
    values.clear();
    for (size_t i = 0; i < 2 * kv_floats + q_floats; ++i) values.push_back(normal(random));
    if (token == 127) values[kv_floats + static_cast<size_t>(2 * heads * dim)] = INFINITY;
    // A page; a rest; nothing to store until the last token.
    const std::vector<AppendTarget> places = {
        {0, units(page), token, 0},
        {units(4 * page), units(4 * page + rest_bytes), token % kRest, kRest},
        {units(2 * page), units(3 * page), 5, token == 127 ? 0 : -1}};
    CopyToDevice(stream(), rows.data(), values.data(), values.size() * sizeof(float));
    CopyToDevice(stream(), targets.data(), places.data(), places.size() * sizeof(AppendTarget));
    const auto* device_rows = reinterpret_cast<const float*>(rows.data());
    AppendTokens(heads, dim, GetParam().type,
                 {.q = device_rows + 2 * kv_floats,
                  .k = device_rows,
                  .v = device_rows + kv_floats,
                  .targets = reinterpret_cast<const AppendTarget*>(targets.data()),
                  .q_rounded = q_out.data(),
                  .arena = arena.data(),
                  .unfit = reinterpret_cast<uint32_t*>(unfit.data()),
                  .block = 7,
                  .num_sequences = 3,
                  .num_heads = query_heads},
                 stream());
    stream().Synchronize();
    internal::VisitFloatType(GetParam().type, [&]<class T>(T) {
      if constexpr (sizeof(T) == 2) {
        for (int64_t head = 0; head < heads; ++head) {
          for (int64_t d = 0; d < dim; ++d) {
            for (size_t side = 0; side < 2; ++side) {
              const T value =
                  FromFloat<T>(values[side * kv_floats + static_cast<size_t>(head * dim + d)]);
              std::memcpy(expected[side].data() + ((head * 128 + token) * dim + d) * 2, &value, 2);
            }
          }
        }
      }
    });
    if (token != 50 && token != 127) continue;
    Bytes back(arena.num_bytes());
    CopyToHost(stream(), back.data(), arena.data(), back.size());
    std::vector<uint32_t> unfits(3);
    CopyToHost(stream(), unfits.data(), unfit.data(), unfit.num_bytes());
    std::vector<F16> q(q_floats);
    CopyToHost(stream(), q.data(), q_out.data(), q_floats * 2);
    stream().Synchronize();
    Bytes fragments(page, std::byte{0});
    PlanesToFragments({heads, dim, true}, 16, expected[1].data(), fragments.data());
    EXPECT_EQ(Part(back, page, page), fragments) << token;  // Zero behind the last token.
    for (int64_t head = 0; head < heads; ++head) {
      for (int32_t t = 0; t <= token; ++t) {
        for (int64_t d = 0; d < dim; ++d) {
          uint16_t want = 0;
          std::memcpy(&want, expected[0].data() + ((head * 128 + t) * dim + d) * 2, 2);
          ASSERT_EQ(FragmentValue({heads, dim, false}, 16, back.data(), head, t, d), want);
        }
      }
    }
    EXPECT_EQ(ToFloat(q[5]), ToFloat(ToF16(values[2 * kv_floats + 5])));
    // The rest of sequence 1, head 0, row-major.
    const int32_t row = token % kRest;
    uint16_t got = 0;
    std::memcpy(&got, back.data() + 4 * page + rest_bytes + (row * dim + 7) * 2, 2);
    uint16_t want = 0;
    internal::VisitFloatType(GetParam().type, [&]<class T>(T) {
      if constexpr (sizeof(T) == 2) {
        const T value = FromFloat<T>(values[kv_floats + static_cast<size_t>(heads * dim + 7)]);
        std::memcpy(&want, &value, 2);
      }
    });
    EXPECT_EQ(got, want);
    const uint32_t unfit_value = 7 * kUnfitKinds + static_cast<uint32_t>(UnfitRow::kValue);
    EXPECT_EQ(unfits,
              (std::vector<uint32_t>{kAllFit, kAllFit, token == 127 ? unfit_value : kAllFit}));
  }
}

}  // namespace
}  // namespace pmkvq
