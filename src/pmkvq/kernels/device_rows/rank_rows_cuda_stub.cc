#include "pmkvq/kernels/device_rows/rank_rows.h"

namespace pmkvq {
namespace {
constexpr char kWhat[] = "ranks on a device";
}  // namespace

void RoundColumns(const float*, int64_t, int64_t, int64_t, int64_t, const ProductRows&,
                  Stream& stream) {
  internal::ThrowNoBackend(stream.device(), kWhat);
}
void AddSumsInTree(std::span<const ProductSums>, int64_t, int64_t, float*, Stream& stream) {
  internal::ThrowNoBackend(stream.device(), kWhat);
}
void JoinColumns(std::span<const JoinedColumns>, int64_t, float*, int64_t, Stream& stream) {
  internal::ThrowNoBackend(stream.device(), kWhat);
}

}  // namespace pmkvq
