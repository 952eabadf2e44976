// The packed format of groups (kernels/kv_quant/kv_quant.h) on arrays.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <string>

#include "bindings.h"
#include "pmkvq/base/check.h"
#include "pmkvq/kernels/kv_quant/kv_quant.h"

namespace nb = nanobind;

namespace pmkvq::python {
namespace {

template <class Value>
using Rows = nb::ndarray<Value, nb::shape<-1, -1>, nb::c_contig, nb::device::cpu>;
// Of type `metadata`, as bytes.
template <class Value>
using Bounds = nb::ndarray<Value, nb::shape<-1>, nb::c_contig, nb::device::cpu>;

GroupFormat FormatOf(int64_t group, int bits, const std::string& metadata) {
  return {group, bits, metadata == "float16" ? DType::kF16 : DType::kF32};
}

// The package makes the arrays, so a wrong shape is its bug.
void CheckBounds(const GroupFormat& format, size_t num_groups, size_t bytes) {
  PMKVQ_CHECK(bytes == num_groups * SizeOf(format.metadata));
}

}  // namespace

void BindOps(nb::module_& module) {
  module.def(
      "quantize_groups",
      [](const Rows<const float>& x, int bits, const std::string& metadata,
         const Rows<uint8_t>& codes, const Bounds<uint8_t>& mins, const Bounds<uint8_t>& ranges) {
        const GroupFormat format = FormatOf(static_cast<int64_t>(x.shape(1)), bits, metadata);
        PMKVQ_CHECK(codes.shape(0) == x.shape(0) &&
                    static_cast<int64_t>(codes.shape(1)) == PackedGroupBytes(format.group, bits));
        CheckBounds(format, x.shape(0), mins.shape(0));
        CheckBounds(format, x.shape(0), ranges.shape(0));
        const nb::gil_scoped_release release;
        QuantizeGroups(format, x.data(), static_cast<int64_t>(x.shape(0)), codes.data(),
                       mins.data(), ranges.data());
      },
      nb::arg("x").noconvert(), nb::arg("bits"), nb::arg("metadata"), nb::arg("codes").noconvert(),
      nb::arg("mins").noconvert(), nb::arg("ranges").noconvert());
  module.def(
      "dequantize_groups",
      [](const Rows<const uint8_t>& codes, int bits, const std::string& metadata,
         const Bounds<const uint8_t>& mins, const Bounds<const uint8_t>& ranges,
         const Rows<float>& out) {
        const GroupFormat format = FormatOf(static_cast<int64_t>(out.shape(1)), bits, metadata);
        PMKVQ_CHECK(codes.shape(0) == out.shape(0) &&
                    static_cast<int64_t>(codes.shape(1)) == PackedGroupBytes(format.group, bits));
        CheckBounds(format, out.shape(0), mins.shape(0));
        CheckBounds(format, out.shape(0), ranges.shape(0));
        const nb::gil_scoped_release release;
        DequantizeGroups(format, codes.data(), mins.data(), ranges.data(),
                         static_cast<int64_t>(out.shape(0)), out.data());
      },
      nb::arg("codes").noconvert(), nb::arg("bits"), nb::arg("metadata"),
      nb::arg("mins").noconvert(), nb::arg("ranges").noconvert(), nb::arg("out").noconvert());
  module.def(
      "halve_groups",
      [](const Rows<const uint8_t>& codes, int64_t group, int from_bits, const Rows<uint8_t>& out) {
        PMKVQ_CHECK(codes.shape(0) == out.shape(0) &&
                    static_cast<int64_t>(codes.shape(1)) == PackedGroupBytes(group, from_bits) &&
                    codes.shape(1) == 2 * out.shape(1));
        const nb::gil_scoped_release release;
        HalvePackedCodes(group, from_bits, codes.data(), static_cast<int64_t>(codes.shape(0)),
                         out.data());
      },
      nb::arg("codes").noconvert(), nb::arg("group"), nb::arg("from_bits"),
      nb::arg("out").noconvert());
}

}  // namespace pmkvq::python
