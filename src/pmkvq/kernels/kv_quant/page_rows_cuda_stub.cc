#include "pmkvq/kernels/kv_quant/page_rows.h"

namespace pmkvq {
namespace {
constexpr char kWhat[] = "rows of pages";
}  // namespace

void StoreRows(int64_t, int64_t, DType, std::span<const RowPiece>, const StoreRowsOperands&,
               Stream& stream) {
  internal::ThrowNoBackend(stream.device(), kWhat);
}
void GatherPages(int64_t, int64_t, DType, const GatherPagesOperands&, Stream& stream) {
  internal::ThrowNoBackend(stream.device(), kWhat);
}
void PatchPageTables(const PagePatch*, int64_t, PageEntry*, PageBits*, Stream& stream) {
  internal::ThrowNoBackend(stream.device(), kWhat);
}

}  // namespace pmkvq
