// Shapes, views of tensors, and tensors that own their memory.
//
// Row-major and contiguous only: the last dimension is adjacent in memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "pmkvq/base/aligned.h"
#include "pmkvq/base/check.h"
#include "pmkvq/base/float16.h"
#include "pmkvq/tensor/dtype.h"

namespace pmkvq {

using Shape = std::vector<int64_t>;

inline int64_t NumElements(const Shape& shape) {
  int64_t count = 1;
  for (const int64_t dim : shape) count *= dim;
  return count;
}

// "[2, 128, 64]".
std::string ToString(const Shape& shape);

template <class T>
struct DTypeOf;
template <>
struct DTypeOf<float> {
  static constexpr DType value = DType::kF32;
};
template <>
struct DTypeOf<double> {
  static constexpr DType value = DType::kF64;
};
template <>
struct DTypeOf<F16> {
  static constexpr DType value = DType::kF16;
};
template <>
struct DTypeOf<BF16> {
  static constexpr DType value = DType::kBF16;
};
template <>
struct DTypeOf<int64_t> {
  static constexpr DType value = DType::kI64;
};
template <>
struct DTypeOf<int32_t> {
  static constexpr DType value = DType::kI32;
};
template <>
struct DTypeOf<uint8_t> {
  static constexpr DType value = DType::kU8;
};

// A read-only look at a tensor owned by somebody else (often a mapped file).
// `data` is aligned to the element size.
struct TensorView {
  const std::byte* data = nullptr;
  DType dtype = DType::kF32;
  Shape shape;

  int64_t num_elements() const { return NumElements(shape); }
  size_t num_bytes() const { return static_cast<size_t>(num_elements()) * SizeOf(dtype); }

  template <class T>
  const T* As() const {
    PMKVQ_CHECK(DTypeOf<T>::value == dtype);
    return reinterpret_cast<const T*>(data);
  }
};

// Owns zero-initialised, 64-byte aligned memory.
class Tensor {
 public:
  Tensor() = default;
  Tensor(DType dtype, Shape shape)
      : dtype_(dtype),
        shape_(std::move(shape)),
        data_(static_cast<size_t>(NumElements(shape_)) * SizeOf(dtype)) {}

  DType dtype() const { return dtype_; }
  const Shape& shape() const { return shape_; }
  int64_t num_elements() const { return NumElements(shape_); }
  TensorView view() const { return {data_.data(), dtype_, shape_}; }
  std::byte* data() { return data_.data(); }

  template <class T>
  T* As() {
    PMKVQ_CHECK(DTypeOf<T>::value == dtype_);
    return reinterpret_cast<T*>(data_.data());
  }
  template <class T>
  const T* As() const {
    PMKVQ_CHECK(DTypeOf<T>::value == dtype_);
    return reinterpret_cast<const T*>(data_.data());
  }

 private:
  DType dtype_ = DType::kF32;
  Shape shape_;
  AlignedVector<std::byte> data_;
};

}  // namespace pmkvq
