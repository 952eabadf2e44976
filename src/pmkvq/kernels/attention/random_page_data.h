// For tests and benchmarks: memory of pages that hold given values.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "pmkvq/base/aligned.h"
#include "pmkvq/base/float16.h"
#include "pmkvq/kernels/attention/attention.h"
#include "pmkvq/kernels/kv_quant/kv_quant.h"
#include "pmkvq/kernels/kv_quant/kv_quant_common.h"

namespace pmkvq {

// Owns what its views point at. `shift` moves data by that many elements, so that nothing is
// aligned to more than its element.
class RandomPageData {
 public:
  RandomPageData(DType float_type, DType metadata_type, int64_t shift)
      : float_type_(float_type), metadata_type_(metadata_type), shift_(shift) {}

  // One tensor of a page: x [heads, num_groups, group] as floats at 16 bits, or rounded by groups.
  KvTensorView Store(const std::vector<float>& x, int bits, int64_t heads, int64_t group) {
    KvTensorView view;
    view.bits = bits;
    if (bits == 16) {
      internal::VisitFloatType(float_type_, [&]<class T>(T) {
        auto* out = reinterpret_cast<T*>(Allocate(std::ssize(x), sizeof(T)));
        std::transform(x.begin(), x.end(), out, [](float value) { return FromFloat<T>(value); });
        view.data = reinterpret_cast<const std::byte*>(out);
      });
      return view;
    }
    const int64_t num_groups = std::ssize(x) / (heads * group);
    const int64_t head_bytes = num_groups * PackedGroupBytes(group, bits);
    const auto size = static_cast<int64_t>(SizeOf(metadata_type_));
    auto* codes = reinterpret_cast<uint8_t*>(Allocate(heads * head_bytes, 1));
    std::byte* metadata = Allocate(2 * heads * num_groups, size);
    for (int64_t head = 0; head < heads; ++head) {
      std::byte* mins = metadata + 2 * head * num_groups * size;
      ref::QuantizeGroups({group, bits, metadata_type_}, x.data() + head * num_groups * group,
                          num_groups, codes + head * head_bytes, mins, mins + num_groups * size);
    }
    view.data = reinterpret_cast<const std::byte*>(codes);
    view.metadata = metadata;
    return view;
  }

 private:
  // Memory of `count` elements of `size` bytes, after `shift_` more of them.
  std::byte* Allocate(int64_t count, int64_t size) {
    memory_.push_back(
        std::make_unique<AlignedVector<std::byte>>(static_cast<size_t>((count + shift_) * size)));
    return memory_.back()->data() + shift_ * size;
  }

  DType float_type_;
  DType metadata_type_;
  int64_t shift_;
  std::vector<std::unique_ptr<AlignedVector<std::byte>>> memory_;
};

}  // namespace pmkvq
