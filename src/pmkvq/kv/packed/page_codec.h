// Floats to and from the memory of one page, in the CPU's layout (PageLayout::kPlanes): of the
// cache's files this one alone knows it. No ownership.
//
// Whatever is stored is first rounded to the cache's float type, also where it goes straight to
// codes, so that a page's content does not depend on how its tokens were cut into chunks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "pmkvq/kernels/attention/attention.h"
#include "pmkvq/kernels/attention/latent_attention.h"
#include "pmkvq/kv/kv_geometry.h"

namespace pmkvq {

// What attention has to know of pages of this block, which has keys and values of one shape, with
// metadata in the float type.
AttentionShape AttentionShapeOf(const KvBlockGeometry& block, DType float_type);
// The same of a latent block.
LatentShape LatentShapeOf(const KvBlockGeometry& block, DType float_type);

// A group of values whose range the float type cannot hold.
struct UnfitGroup {
  int64_t first_token = 0;
  int64_t num_tokens = 1;
  float lowest = 0;
  float highest = 0;
};

// Of pages of one stream: Hkv heads of D values.
class PageCodec {
 public:
  static constexpr PageLayout kLayout = PageLayout::kPlanes;

  PageCodec(const KvStream& stream, DType float_type);

  // Stores `count` values in the float type.
  void WriteValues(const float* values, int64_t count, std::byte* out) const;
  // Stores token rows [T, Hkv, D] in a 16-bit page [Hkv, capacity, D], at tokens first .. first+T.
  void WriteRows(const float* rows, int64_t num_rows, int64_t first, int64_t capacity,
                 std::byte* page) const;
  // The same, rounded, into floats [Hkv, capacity, D].
  void GatherRows(const float* rows, int64_t num_rows, int64_t first, int64_t capacity,
                  float* values) const;

  // Stores values [Hkv, 128, D] as a page of 16 bits (metadata unused), 8, 4 or 2. The axis is of
  // quantised pages. False when the range of a group does not fit the float type: FindUnfitGroup.
  [[nodiscard]] bool Encode(const float* values, int bits, QuantAxis axis, std::byte* data,
                            std::byte* metadata) const;
  // A whole 16-bit page straight to codes of 8, 4 or 2 bits. False as Encode.
  [[nodiscard]] bool Narrow(const std::byte* page, int bits, QuantAxis axis, std::byte* data,
                            std::byte* metadata) const;
  // Codes of a page brought from 8 or 4 bits to fewer; metadata stays as it is. `to` must not
  // overlap `codes`.
  void Halve(const std::byte* codes, int from_bits, int to_bits, QuantAxis axis,
             std::byte* to) const;
  // A quantised page back to a 16-bit one, with its values as they read now.
  void Expand(const KvTensorView& page, std::byte* to) const;
  // The values of a page of any width, out [Hkv, capacity, D].
  void Decode(const KvTensorView& page, int64_t capacity, float* values) const;

  // False when some value, rounded, would not be finite in the float type.
  bool AllFit(const float* values, int64_t count) const;
  // Of values [Hkv, 128, D], rounded to the float type: among groups whose range does not fit it,
  // the one that begins first; nothing where all fit. For error messages: slow.
  std::optional<UnfitGroup> FindUnfitGroup(const float* values, QuantAxis axis) const;
  // The same of a whole 16-bit page.
  std::optional<UnfitGroup> FindUnfitGroup(const std::byte* page, QuantAxis axis) const;

  const KvStream& stream() const { return stream_; }
  DType float_type() const { return float_type_; }
  // Values of a page [Hkv, 128, D].
  int64_t num_values() const { return stream_.values() * kPageTokens; }

 private:
  template <class T>  // F16, BF16 or float.
  void EncodeChannels(const T* values, int bits, uint8_t* codes, std::byte* metadata) const;
  bool MayHaveSaturated(const std::byte* metadata, QuantAxis axis) const;
  void DecodeChannels(const KvTensorView& page, float* values) const;

  KvStream stream_;
  DType float_type_;
};

}  // namespace pmkvq
