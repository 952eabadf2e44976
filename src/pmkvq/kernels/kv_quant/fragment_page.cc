#include "pmkvq/kernels/kv_quant/fragment_page.h"

#include <cstring>

#include "pmkvq/base/check.h"
#include "pmkvq/kernels/kv_quant/fragment_layout.h"
#include "pmkvq/kernels/kv_quant/kv_quant_common.h"

namespace pmkvq {
namespace {

fragment::Place PlaceIn(const FragmentPageShape& shape, int bits, int64_t head, int64_t token,
                        int64_t dim) {
  const auto head_dim = static_cast<int>(shape.head_dim);
  const int row = static_cast<int>(shape.is_values ? dim : token);
  const int col = static_cast<int>(shape.is_values ? token : dim);
  fragment::Place place =
      fragment::PlaceOf(bits, fragment::ShapeOf(shape.is_values, head_dim), row, col);
  place.byte += static_cast<int>(head) * fragment::BlockBytes(bits, head_dim);
  return place;
}

uint32_t MaskOf(int bits) { return (1u << bits) - 1u; }

uint32_t Read(const std::byte* page, const fragment::Place& place, int bits) {
  uint32_t word = 0;
  std::memcpy(&word, page + place.byte, sizeof(word));
  return (fragment::RotateRight(word, place.rotation) >> place.shift) & MaskOf(bits);
}

void Write(std::byte* page, const fragment::Place& place, int bits, uint32_t value) {
  uint32_t word = 0;
  std::memcpy(&word, page + place.byte, sizeof(word));
  word = fragment::RotateRight(word, place.rotation);
  word = (word & ~(MaskOf(bits) << place.shift)) | (value << place.shift);
  word = fragment::RotateLeft(word, place.rotation);
  std::memcpy(page + place.byte, &word, sizeof(word));
}

// Where the planes have a code.
struct PlanePlace {
  int64_t group = 0;  // Of the page.
  int64_t index = 0;  // In the group.
  int64_t size = 0;   // Of a group.
};
PlanePlace PlaneOf(const FragmentPageShape& shape, int64_t head, int64_t token, int64_t dim) {
  if (shape.by_channel) return {head * shape.head_dim + dim, token, fragment::kTokens};
  const int64_t groups = fragment::GroupsOfToken(static_cast<int>(shape.head_dim));
  const int64_t size = shape.head_dim / groups;
  return {(head * fragment::kTokens + token) * groups + dim / size, dim % size, size};
}

// Calls function(head, token, dim, place in fragments) for every value.
template <class Function>
void ForEachValue(const FragmentPageShape& shape, int bits, const Function& function) {
  PMKVQ_CHECK(fragment::IsRowWidth(shape.head_dim));
  PMKVQ_CHECK(bits == 16 || bits == 8 || bits == 4 || bits == 2);
  for (int64_t head = 0; head < shape.heads; ++head) {
    for (int64_t token = 0; token < fragment::kTokens; ++token) {
      for (int64_t dim = 0; dim < shape.head_dim; ++dim) {
        function(head, token, dim, PlaceIn(shape, bits, head, token, dim));
      }
    }
  }
}

}  // namespace

void PlanesToFragments(const FragmentPageShape& shape, int bits, const std::byte* planes,
                       std::byte* fragments) {
  ForEachValue(shape, bits,
               [&](int64_t head, int64_t token, int64_t dim, const fragment::Place& place) {
                 uint32_t value = 0;
                 if (bits == 16) {
                   const int64_t row = head * fragment::kTokens + token;
                   std::memcpy(&value, planes + (row * shape.head_dim + dim) * 2, 2);
                 } else {
                   const PlanePlace from = PlaneOf(shape, head, token, dim);
                   const auto* packed = reinterpret_cast<const uint8_t*>(planes) +
                                        from.group * PackedGroupBytes(from.size, bits);
                   value = internal::PackedCode(packed, from.size, bits, from.index);
                 }
                 Write(fragments, place, bits, value);
               });
}

void FragmentsToPlanes(const FragmentPageShape& shape, int bits, const std::byte* fragments,
                       std::byte* planes) {
  const int64_t dims = shape.head_dim;
  std::memset(planes, 0,
              static_cast<size_t>(shape.heads) *
                  static_cast<size_t>(fragment::BlockBytes(bits, static_cast<int>(dims))));
  ForEachValue(
      shape, bits, [&](int64_t head, int64_t token, int64_t dim, const fragment::Place& place) {
        const uint32_t value = Read(fragments, place, bits);
        if (bits == 16) {
          const int64_t row = head * fragment::kTokens + token;
          std::memcpy(planes + (row * dims + dim) * 2, &value, 2);
          return;
        }
        const PlanePlace to = PlaneOf(shape, head, token, dim);
        const int64_t plane_bytes = PackedGroupBytes(to.size, bits);
        uint8_t& byte =
            reinterpret_cast<uint8_t*>(planes)[to.group * plane_bytes + to.index % plane_bytes];
        const auto shift = static_cast<uint32_t>(to.index / plane_bytes * bits);
        byte = static_cast<uint8_t>(byte | (value << shift));
      });
}

uint32_t FragmentValue(const FragmentPageShape& shape, int bits, const std::byte* page,
                       int64_t head, int64_t token, int64_t dim) {
  return Read(page, PlaceIn(shape, bits, head, token, dim), bits);
}

}  // namespace pmkvq
