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

// Calls function(head, token, dim, place in fragments) for every value.
template <class Function>
void ForEachValue(const FragmentPageShape& shape, int bits, const Function& function) {
  PMKVQ_CHECK(fragment::IsHeadDim(shape.head_dim));
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
  const int64_t dims = shape.head_dim;
  ForEachValue(
      shape, bits, [&](int64_t head, int64_t token, int64_t dim, const fragment::Place& place) {
        const int64_t row = head * fragment::kTokens + token;
        uint32_t value = 0;
        if (bits == 16) {
          std::memcpy(&value, planes + (row * dims + dim) * 2, 2);
        } else {
          const auto* packed =
              reinterpret_cast<const uint8_t*>(planes) + row * PackedGroupBytes(dims, bits);
          value = internal::PackedCode(packed, dims, bits, dim);
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
  ForEachValue(shape, bits,
               [&](int64_t head, int64_t token, int64_t dim, const fragment::Place& place) {
                 const int64_t row = head * fragment::kTokens + token;
                 const uint32_t value = Read(fragments, place, bits);
                 if (bits == 16) {
                   std::memcpy(planes + (row * dims + dim) * 2, &value, 2);
                   return;
                 }
                 const int64_t plane_bytes = PackedGroupBytes(dims, bits);
                 auto* packed = reinterpret_cast<uint8_t*>(planes) + row * plane_bytes;
                 const auto shift = static_cast<uint32_t>(dim / plane_bytes * bits);
                 packed[dim % plane_bytes] =
                     static_cast<uint8_t>(packed[dim % plane_bytes] | (value << shift));
               });
}

uint32_t FragmentValue(const FragmentPageShape& shape, int bits, const std::byte* page,
                       int64_t head, int64_t token, int64_t dim) {
  return Read(page, PlaceIn(shape, bits, head, token, dim), bits);
}

}  // namespace pmkvq
