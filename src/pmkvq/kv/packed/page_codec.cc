#include "pmkvq/kv/packed/page_codec.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <vector>

#include "pmkvq/base/check.h"
#include "pmkvq/base/float16.h"
#include "pmkvq/kernels/kv_quant/kv_quant.h"
#include "pmkvq/kernels/kv_quant/kv_quant_common.h"

namespace pmkvq {
namespace {

// Calls function(T{}) with the C++ type of `dtype`.
template <class Function>
decltype(auto) Visit(DType dtype, Function&& function) {
  switch (dtype) {
    case DType::kF16:
      return function(F16{});
    case DType::kBF16:
      return function(BF16{});
    default:
      PMKVQ_CHECK(dtype == DType::kF32);
      return function(float{});
  }
}

// Calls function(source, destination) with offsets of each (row, head) run of D values.
template <class Function>
void ForEachRun(const KvStream& stream, int64_t num_rows, int64_t first, int64_t capacity,
                Function&& function) {
  for (int64_t row = 0; row < num_rows; ++row) {
    for (int64_t head = 0; head < stream.heads; ++head) {
      function((row * stream.heads + head) * stream.width,
               (head * capacity + first + row) * stream.width);
    }
  }
}

// Divides every width that is valid.
constexpr int64_t kChannelBatch = 8;

// Smallest magnitude, as float bits, that rounds to infinity in the type (or is not finite).
uint32_t OverflowBits(DType dtype) {
  switch (dtype) {
    case DType::kF16:
      return 0x477ff000u;  // 65520, half way from 65504 to 65536.
    case DType::kBF16:
      return 0x7f7f8000u;
    default:
      return 0x7f800000u;
  }
}

}  // namespace

AttentionShape AttentionShapeOf(const KvBlockGeometry& block, DType float_type) {
  AttentionShape shape;
  shape.num_heads = block.num_heads;
  shape.num_kv_heads = block.k().heads;
  shape.head_dim = block.k().width;
  shape.group = block.k().group;
  shape.float_type = float_type;
  shape.metadata_type = float_type;
  shape.layout = PageCodec::kLayout;
  shape.sliding_window = block.sliding_window;
  shape.scale = 1.0f / std::sqrt(static_cast<float>(block.k().width));
  return shape;
}

LatentShape LatentShapeOf(const KvBlockGeometry& block, DType float_type) {
  return {.num_heads = block.num_heads,
          .latent = block.latent_width(),
          .rope = block.rope_width(),
          .group = block.k().group,
          .float_type = float_type,
          .metadata_type = float_type};
}

PageCodec::PageCodec(const KvStream& stream, DType float_type)
    : stream_(stream), float_type_(float_type) {}

void PageCodec::WriteValues(const float* values, int64_t count, std::byte* out) const {
  Visit(float_type_, [&]<class T>(T) {
    std::transform(values, values + count, reinterpret_cast<T*>(out),
                   [](float x) { return FromFloat<T>(x); });
  });
}

void PageCodec::WriteRows(const float* rows, int64_t num_rows, int64_t first, int64_t capacity,
                          std::byte* page) const {
  Visit(float_type_, [&]<class T>(T) {
    T* out = reinterpret_cast<T*>(page);
    ForEachRun(stream_, num_rows, first, capacity, [&](int64_t source, int64_t destination) {
      for (int64_t d = 0; d < stream_.width; ++d) {
        out[destination + d] = FromFloat<T>(rows[source + d]);
      }
    });
  });
}

void PageCodec::GatherRows(const float* rows, int64_t num_rows, int64_t first, int64_t capacity,
                           float* values) const {
  Visit(float_type_, [&]<class T>(T) {
    ForEachRun(stream_, num_rows, first, capacity, [&](int64_t source, int64_t destination) {
      for (int64_t d = 0; d < stream_.width; ++d) {
        values[destination + d] = ToFloat(FromFloat<T>(rows[source + d]));
      }
    });
  });
}

// Channels are taken kChannelBatch at a time through a transposed copy on the stack.
template <class T>
void PageCodec::EncodeChannels(const T* values, int bits, uint8_t* codes,
                               std::byte* metadata) const {
  const GroupFormat format{kPageTokens, bits, float_type_};
  const int64_t dim = stream_.width;
  const auto size = static_cast<int64_t>(SizeOf(float_type_));
  float batch[kChannelBatch * kPageTokens];
  for (int64_t head = 0; head < stream_.heads; ++head) {
    for (int64_t d = 0; d < dim; d += kChannelBatch) {
      for (int64_t t = 0; t < kPageTokens; ++t) {
        for (int64_t i = 0; i < kChannelBatch; ++i) {
          batch[i * kPageTokens + t] = ToFloat(values[t * dim + d + i]);
        }
      }
      QuantizeGroups(format, batch, kChannelBatch, codes, metadata + d * size,
                     metadata + (dim + d) * size);
      codes += kChannelBatch * PackedGroupBytes(kPageTokens, bits);
    }
    values += kPageTokens * dim;
    metadata += 2 * dim * size;
  }
}

void PageCodec::DecodeChannels(const KvTensorView& page, float* values) const {
  const GroupFormat format{kPageTokens, page.bits, float_type_};
  const int64_t dim = stream_.width;
  const auto size = static_cast<int64_t>(SizeOf(float_type_));
  const auto* codes = reinterpret_cast<const uint8_t*>(page.data);
  const std::byte* metadata = page.metadata;
  float batch[kChannelBatch * kPageTokens];
  for (int64_t head = 0; head < stream_.heads; ++head) {
    for (int64_t d = 0; d < dim; d += kChannelBatch) {
      DequantizeGroups(format, codes, metadata + d * size, metadata + (dim + d) * size,
                       kChannelBatch, batch);
      codes += kChannelBatch * PackedGroupBytes(kPageTokens, page.bits);
      for (int64_t t = 0; t < kPageTokens; ++t) {
        for (int64_t i = 0; i < kChannelBatch; ++i) {
          values[t * dim + d + i] = batch[i * kPageTokens + t];
        }
      }
    }
    values += kPageTokens * dim;
    metadata += 2 * dim * size;
  }
}

// Ranges that do not fit the type saturate (kv_quant.h): only pages with the largest one are looked
// at again. Metadata is a small part of a page and in the cache of the first level now.
bool PageCodec::MayHaveSaturated(const std::byte* metadata, QuantAxis axis) const {
  const int64_t dim = stream_.width;
  const int64_t groups =
      axis == QuantAxis::kChannel ? dim : kPageTokens * dim / stream_.group;  // Of one head.
  return Visit(float_type_, [&]<class T>(T) {
    const T largest = FromFloat<T>(internal::MaxFinite<T>());
    bool found = false;
    for (int64_t head = 0; head < stream_.heads; ++head) {
      const T* ranges = reinterpret_cast<const T*>(metadata) + (2 * head + 1) * groups;
      for (int64_t i = 0; i < groups; ++i) found |= ToFloat(ranges[i]) == ToFloat(largest);
    }
    return found;
  });
}

bool PageCodec::Encode(const float* values, int bits, QuantAxis axis, std::byte* data,
                       std::byte* metadata) const {
  if (bits == 16) {
    WriteValues(values, num_values(), data);
    return true;
  }
  auto* codes = reinterpret_cast<uint8_t*>(data);
  if (axis == QuantAxis::kChannel) {
    EncodeChannels(values, bits, codes, metadata);
  } else {
    const GroupFormat format{stream_.group, bits, float_type_};
    const int64_t groups = kPageTokens * stream_.width / stream_.group;  // Of one head.
    const auto bounds_bytes = static_cast<size_t>(groups) * SizeOf(float_type_);
    const float* head_values = values;
    std::byte* bounds = metadata;
    for (int64_t head = 0; head < stream_.heads; ++head) {
      QuantizeGroups(format, head_values, groups, codes, bounds, bounds + bounds_bytes);
      head_values += groups * stream_.group;
      codes += groups * PackedGroupBytes(stream_.group, bits);
      bounds += 2 * bounds_bytes;
    }
  }
  return !MayHaveSaturated(metadata, axis) || !FindUnfitGroup(values, axis);
}

bool PageCodec::Narrow(const std::byte* page, int bits, QuantAxis axis, std::byte* data,
                       std::byte* metadata) const {
  auto* codes = reinterpret_cast<uint8_t*>(data);
  if (axis == QuantAxis::kChannel) {
    Visit(float_type_, [&]<class T>(T) {
      EncodeChannels(reinterpret_cast<const T*>(page), bits, codes, metadata);
    });
  } else {
    const GroupFormat format{stream_.group, bits, float_type_};
    const int64_t groups = kPageTokens * stream_.width / stream_.group;  // Of one head.
    const auto bounds_bytes = static_cast<size_t>(groups) * SizeOf(float_type_);
    const std::byte* head_values = page;
    std::byte* bounds = metadata;
    for (int64_t head = 0; head < stream_.heads; ++head) {
      QuantizeStoredGroups(format, head_values, groups, codes, bounds, bounds + bounds_bytes);
      head_values += static_cast<size_t>(groups * stream_.group) * SizeOf(float_type_);
      codes += groups * PackedGroupBytes(stream_.group, bits);
      bounds += 2 * bounds_bytes;
    }
  }
  return !MayHaveSaturated(metadata, axis) || !FindUnfitGroup(page, axis);
}

void PageCodec::Halve(const std::byte* codes, int from_bits, int to_bits, QuantAxis axis,
                      std::byte* to) const {
  const int64_t group = axis == QuantAxis::kChannel ? kPageTokens : stream_.group;
  const int64_t num_groups = num_values() / group;
  const auto* in = reinterpret_cast<const uint8_t*>(codes);
  auto* out = reinterpret_cast<uint8_t*>(to);
  if (from_bits == 2 * to_bits) return HalvePackedCodes(group, from_bits, in, num_groups, out);
  PMKVQ_CHECK(from_bits == 8 && to_bits == 2);
  // By way of 4 bits on the stack: a slot is never written but once.
  constexpr int64_t kBatch = 128;  // Groups: 8 KiB of first-level cache at most.
  std::array<uint8_t, kBatch * PackedGroupBytes(kMaxGroup, 4)> half;
  for (int64_t first = 0; first < num_groups; first += kBatch) {
    const int64_t count = std::min(kBatch, num_groups - first);
    HalvePackedCodes(group, 8, in + first * PackedGroupBytes(group, 8), count, half.data());
    HalvePackedCodes(group, 4, half.data(), count, out + first * PackedGroupBytes(group, 2));
  }
}

void PageCodec::Expand(const KvTensorView& page, std::byte* to) const {
  std::vector<float> values(static_cast<size_t>(num_values()));
  Decode(page, kPageTokens, values.data());
  if (float_type_ == DType::kF16) {
    // A range rounded up may end just beyond the largest value.
    for (float& value : values) value = std::clamp(value, -kMaxF16, kMaxF16);
  }
  WriteValues(values.data(), num_values(), to);
}

void PageCodec::Decode(const KvTensorView& page, int64_t capacity, float* values) const {
  if (page.bits == 16) {
    Visit(float_type_, [&]<class T>(T) {
      const T* in = reinterpret_cast<const T*>(page.data);
      std::transform(in, in + capacity * stream_.values(), values, [](T x) { return ToFloat(x); });
    });
    return;
  }
  if (page.axis == QuantAxis::kChannel) {
    PMKVQ_CHECK(capacity == kPageTokens);
    return DecodeChannels(page, values);
  }
  const GroupFormat format{stream_.group, page.bits, float_type_};
  const int64_t groups = capacity * stream_.width / stream_.group;
  const auto bounds_bytes = static_cast<size_t>(groups) * SizeOf(float_type_);
  const auto* codes = reinterpret_cast<const uint8_t*>(page.data);
  const std::byte* metadata = page.metadata;
  for (int64_t head = 0; head < stream_.heads; ++head) {
    DequantizeGroups(format, codes, metadata, metadata + bounds_bytes, groups, values);
    values += groups * stream_.group;
    codes += groups * PackedGroupBytes(stream_.group, page.bits);
    metadata += 2 * bounds_bytes;
  }
}

bool PageCodec::AllFit(const float* values, int64_t count) const {
  uint32_t largest = 0;  // Magnitudes of floats order like their bits, NaN above all.
  for (int64_t i = 0; i < count; ++i) {
    largest = std::max(largest, std::bit_cast<uint32_t>(values[i]) & 0x7fffffffu);
  }
  return largest < OverflowBits(float_type_);
}

std::optional<UnfitGroup> PageCodec::FindUnfitGroup(const std::byte* page, QuantAxis axis) const {
  std::vector<float> values(static_cast<size_t>(num_values()));
  Decode({page, nullptr, 16, QuantAxis::kToken}, kPageTokens, values.data());
  return FindUnfitGroup(values.data(), axis);
}

std::optional<UnfitGroup> PageCodec::FindUnfitGroup(const float* values, QuantAxis axis) const {
  const int64_t dim = stream_.width;
  const bool by_channel = axis == QuantAxis::kChannel;
  const int64_t size = by_channel ? kPageTokens : stream_.group;
  const int64_t stride = by_channel ? dim : 1;
  const int64_t groups = kPageTokens * dim / size;  // Of one head.
  const float largest = Visit(float_type_, []<class T>(T) { return internal::MaxFinite<T>(); });
  std::optional<UnfitGroup> found;
  for (int64_t i = 0; i < stream_.heads * groups; ++i) {
    const int64_t group = i % groups;
    const float* first =
        values + i / groups * kPageTokens * dim + (by_channel ? group : group * size);
    float lowest = first[0];
    float highest = first[0];
    for (int64_t j = 1; j < size; ++j) {
      lowest = std::min(lowest, first[j * stride]);
      highest = std::max(highest, first[j * stride]);
    }
    const int64_t token = by_channel ? 0 : group * size / dim;
    if (highest - lowest <= largest || (found && found->first_token <= token)) continue;
    found = UnfitGroup{token, by_channel ? kPageTokens : 1, lowest, highest};
  }
  return found;
}

}  // namespace pmkvq
