#include "pmkvq/kernels/kv_quant/append_heads.h"
#include "pmkvq/kernels/kv_quant/page_moves.h"
#include "pmkvq/kernels/kv_quant/unfit_rows.h"

namespace pmkvq {
namespace {
constexpr char kWhat[] = "operations on pages";
}  // namespace

void QuantizePages(const FragmentPageShape&, DType, int, std::span<const PageMove>, std::byte*,
                   uint32_t*, uint32_t, Stream& stream) {
  internal::ThrowNoBackend(stream.device(), kWhat);
}
void HalvePages(const FragmentPageShape&, int, int, std::span<const PageMove>, std::byte*,
                Stream& stream) {
  internal::ThrowNoBackend(stream.device(), kWhat);
}
void HalvePagesInPlace(const FragmentPageShape&, int, int, std::span<const PageMove>, std::byte*,
                       Stream& stream) {
  internal::ThrowNoBackend(stream.device(), kWhat);
}
void ExpandPages(const FragmentPageShape&, DType, int, std::span<const PageMove>, std::byte*,
                 Stream& stream) {
  internal::ThrowNoBackend(stream.device(), kWhat);
}
void AppendTokens(int64_t, int64_t, DType, const AppendOperands&, Stream& stream) {
  internal::ThrowNoBackend(stream.device(), kWhat);
}
void LookForUnfit(const float*, int64_t, DType, uint32_t, uint32_t*, Stream& stream) {
  internal::ThrowNoBackend(stream.device(), kWhat);
}
void AppendGivenHeads(int64_t, int64_t, DType, const GivenHeads&, const AppendOperands&,
                      Stream& stream) {
  internal::ThrowNoBackend(stream.device(), kWhat);
}

}  // namespace pmkvq
