#include "pmkvq/kernels/gemm/gemm.h"

#include <cblas.h>

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "pmkvq/base/aligned.h"
#include "pmkvq/base/check.h"
#include "pmkvq/base/interrupt.h"
#include "pmkvq/base/parallel.h"
#include "pmkvq/kernels/gemm/blas_threads.h"
#include "pmkvq/kernels/gemm/gemm_decode.h"
#include "pmkvq/kernels/gemm/observed_products.h"
#include "pmkvq/kernels/gemm/unrounded_products.h"

namespace pmkvq {
namespace {

constexpr int64_t kSliceRows = internal::kMaxPackedRows;
// Tiles of the BLAS path. 256 outputs by 1024 inputs make 1 MiB of floats: still near the L2 cache
// between expansion and product, while BLAS, which copies x for every tile, does so half as often
// as with 128; a 3584-wide layer still gives 14 tiles to share out.
constexpr int64_t kTileOuts = 256;
constexpr int64_t kTileCols = 1024;
// MatMulGradInput: a thread owns columns of dx and walks down the rows of W.
constexpr int64_t kGradTileCols = 256;
constexpr int64_t kGradTileRows = 1024;
// Values that a row of doubles is expanded through at once.
constexpr int64_t kExpandPiece = 256;
// Tiles and pieces begin at the beginning of a block of weights.
constexpr bool TilesAreWholeBlocks() {
  for (const WeightLayout& layout : kWeightLayouts) {
    for (const int64_t tile : {kTileCols, kGradTileCols, kExpandPiece}) {
      if (tile % layout.block_values != 0) return false;
    }
  }
  return true;
}
static_assert(TilesAreWholeBlocks());
// Of one thread: 2^19 multiplications take 30 us, with weights from memory or in the vector
// kernels.
constexpr double kNsPerMultiplication = 30e3 / (1 << 19);
// Threads get whole grains of outputs, with about this many multiplications (15 us).
using internal::kDecodeGrain;
constexpr int64_t kDecodeItemWork = int64_t{1} << 18;
// Of block formats, whose kernel for many rows has panels of as many outputs.
constexpr int64_t kBlockGrain = 64;
// Rows whose packed x is made at once: with 4,864 columns it takes 5 MB. 2 ns a value.
constexpr int64_t kBlockRows = 512;
constexpr double kNsPerPackedValue = 2;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

int ThreadsForProducts(const ExecContext& exec, int64_t multiplications) {
  return UsefulThreads(exec.num_threads,
                       static_cast<double>(multiplications) * kNsPerMultiplication);
}

void CheckWeight(const WeightView& weight) {
  LayoutOf(weight.format);
  PMKVQ_CHECK(weight.rows >= 0 && weight.cols >= 0);
  if (weight.device.device != Device::kCpu) {
    internal::ThrowNoBackend(weight.device, "products with weights");
  }
  PMKVQ_CHECK(weight.pair_rows == 0 ||
              (weight.pair_rows % 2 == 0 && weight.rows % weight.pair_rows == 0));
}

const std::byte* ElementAt(const WeightView& weight, int64_t row, int64_t col) {
  return weight.data + weight.StoredRow(row) * RowBytes(weight.format, weight.cols) +
         BytesBefore(weight.format, col);
}

void ExpandElements(const std::byte* data, WeightFormat format, int64_t count, float* out) {
  internal::ExpandToFloat(data, format, count, out);
}

void ExpandElements(const std::byte* data, WeightFormat format, int64_t count, double* out) {
  float piece[kExpandPiece];
  for (int64_t begin = 0; begin < count; begin += kExpandPiece) {
    const int64_t size = std::min(kExpandPiece, count - begin);
    internal::ExpandToFloat(data + BytesBefore(format, begin), format, size, piece);
    for (int64_t i = 0; i < size; ++i) out[begin + i] = static_cast<double>(piece[i]);
  }
}

// A tile of W as Reals, in memory or (F32 weights in order) where it lies.
template <class Real>
struct Tile {
  const Real* data;
  int64_t stride;
};

template <class Real>
Tile<Real> ExpandTile(const WeightView& weight, int64_t row, int64_t num_rows, int64_t col,
                      int64_t num_cols, AlignedVector<Real>& scratch) {
  if constexpr (std::is_same_v<Real, float>) {
    if (weight.format == WeightFormat::kF32 && weight.pair_rows == 0) {
      return {reinterpret_cast<const float*>(ElementAt(weight, row, col)), weight.cols};
    }
  }
  const size_t needed = static_cast<size_t>(num_rows * num_cols);
  if (scratch.size() < needed) scratch.resize(needed);
  for (int64_t r = 0; r < num_rows; ++r) {
    ExpandElements(ElementAt(weight, row + r, col), weight.format, num_cols,
                   scratch.data() + r * num_cols);
  }
  return {scratch.data(), num_cols};
}

template <class Real>
AlignedVector<Real>& ThreadScratch() {
  thread_local AlignedVector<Real> scratch;
  return scratch;
}

// Outputs [begin, end) of all rows. A grain of weights is used for every slice of rows while it is
// in the cache.
void DecodeSlices(const float* packed, int64_t num_rows, const WeightView& weight,
                  const float* bias, int64_t begin, int64_t end, float* y) {
  // Block formats decode their weights once for all rows.
  if (num_rows <= kSliceRows || IsBlockFormat(weight.format)) {
    internal::DecodeMatMul(packed, num_rows, weight, bias, begin, end, y);
    return;
  }
  const size_t slice_floats = internal::PackedDecodeFloats(kSliceRows, weight.cols, weight.format);
  for (int64_t out = begin; out < end; out += kDecodeGrain) {
    const float* slice = packed;
    for (int64_t row = 0; row < num_rows; row += kSliceRows, slice += slice_floats) {
      internal::DecodeMatMul(slice, std::min(kSliceRows, num_rows - row), weight, bias, out,
                             std::min(end, out + kDecodeGrain), y + row * weight.rows);
    }
  }
}

const float* PackSlices(const float* x, int64_t num_rows, const WeightView& weight,
                        const ExecContext& exec) {
  AlignedVector<float>& packed = ThreadScratch<float>();
  const size_t slice_floats = internal::PackedDecodeFloats(kSliceRows, weight.cols, weight.format);
  const size_t needed = static_cast<size_t>(CeilDiv(num_rows, kSliceRows)) * slice_floats;
  if (packed.size() < needed) packed.resize(needed);
  float* const slices = packed.data();
  const int threads =
      IsBlockFormat(weight.format)
          ? UsefulThreads(exec.num_threads,
                          static_cast<double>(num_rows * weight.cols) * kNsPerPackedValue)
          : 1;
  ParallelFor(threads, CeilDiv(num_rows, kSliceRows), [&](int64_t slice, int /*worker*/) {
    const int64_t row = slice * kSliceRows;
    internal::PackDecodeRows(x + row * weight.cols, std::min(kSliceRows, num_rows - row),
                             weight.cols, weight.format,
                             slices + static_cast<size_t>(slice) * slice_floats);
  });
  return slices;
}

// Pieces of `grain` outputs of all projections in one loop over threads: body(projection, begin,
// end).
template <class Real, class Body>
void ForOutputs(int num_threads, std::span<const Projection<Real>> projections, int64_t grain,
                const Body& body) {
  int64_t num_pieces = 0;
  for (const auto& projection : projections) num_pieces += CeilDiv(projection.weight->rows, grain);
  ParallelFor(num_threads, num_pieces, [&](int64_t piece, int /*worker*/) {
    size_t which = 0;
    for (; piece >= CeilDiv(projections[which].weight->rows, grain); ++which) {
      piece -= CeilDiv(projections[which].weight->rows, grain);
    }
    const int64_t begin = piece * grain;
    body(projections[which], begin, std::min(projections[which].weight->rows, begin + grain));
  });
}

template <class Real>
int64_t Multiplications(int64_t num_rows, std::span<const Projection<Real>> projections) {
  int64_t count = 0;
  for (const auto& projection : projections) {
    count += num_rows * projection.weight->rows * projection.weight->cols;
  }
  return count;
}

// y [num_rows, weight.rows] of stored rows becomes that of the weight's rows, plus bias.
void PutPairedOutputsInOrder(const WeightView& weight, const float* bias, int64_t num_rows,
                             float* y) {
  AlignedVector<float>& scratch = ThreadScratch<float>();
  if (std::ssize(scratch) < weight.rows) scratch.resize(static_cast<size_t>(weight.rows));
  for (int64_t t = 0; t < num_rows; ++t, y += weight.rows) {
    std::copy_n(y, weight.rows, scratch.data());
    for (int64_t n = 0; n < weight.rows; ++n) {
      y[n] = scratch[static_cast<size_t>(weight.StoredRow(n))];
      if (bias != nullptr) y[n] += bias[n];
    }
  }
}

// Block formats share their packed x.
bool IsPackedAlike(WeightFormat a, WeightFormat b) {
  return a == b || (IsBlockFormat(a) && IsBlockFormat(b));
}

// Rows from `row` on; one packed x serves all weights.
void DecodeRowsPackedAlike(const float* x, int64_t row, int64_t num_rows,
                           std::span<const Projection<float>> projections,
                           const ExecContext& exec) {
  const WeightView& first = *projections.front().weight;
  const float* packed = PackSlices(x + row * first.cols, num_rows, first, exec);
  const int threads = ThreadsForProducts(exec, Multiplications(num_rows, projections));
  const int64_t grain = IsBlockFormat(first.format) ? kBlockGrain : kDecodeGrain;
  const int64_t grain_work = num_rows * std::max<int64_t>(1, first.cols) * grain;
  const int64_t item_outs = CeilDiv(kDecodeItemWork, grain_work) * grain;
  ForOutputs(threads, projections, item_outs,
             [&](const Projection<float>& projection, int64_t begin, int64_t end) {
               // The kernels take rows as they are stored.
               const bool in_order = projection.weight->pair_rows == 0;
               DecodeSlices(packed, num_rows, *projection.weight,
                            in_order ? projection.bias : nullptr, begin, end,
                            projection.y + row * projection.weight->rows);
             });
  for (const auto& projection : projections) {
    if (projection.weight->pair_rows == 0) continue;
    PutPairedOutputsInOrder(*projection.weight, projection.bias, num_rows,
                            projection.y + row * projection.weight->rows);
  }
}

void DecodeRows(const float* x, int64_t num_rows, std::span<const Projection<float>> projections,
                const ExecContext& exec) {
  while (!projections.empty()) {
    size_t count = 1;
    const WeightFormat format = projections.front().weight->format;
    while (count < projections.size() && IsPackedAlike(projections[count].weight->format, format)) {
      ++count;
    }
    // Other formats have few rows.
    for (int64_t row = 0; row < num_rows; row += kBlockRows) {
      DecodeRowsPackedAlike(x, row, std::min(kBlockRows, num_rows - row), projections.first(count),
                            exec);
    }
    projections = projections.subspan(count);
  }
}

void DecodeRows(const double* x, int64_t num_rows, std::span<const Projection<double>> projections,
                const ExecContext& /*exec*/) {
  for (const auto& projection : projections) {
    ref::MatMul(x, num_rows, *projection.weight, projection.bias, projection.y);
  }
}

// Outputs [begin, end) of many rows.
template <class Real>
void MatMulTile(const Real* x, int64_t num_rows, const WeightView& weight, const float* bias,
                int64_t begin, int64_t end, Real* y) {
  AlignedVector<Real>& scratch = ThreadScratch<Real>();
  const int64_t outs = end - begin;
  for (int64_t col = 0; col < weight.cols; col += kTileCols) {
    CancelPoint();  // With 100,000 rows a tile takes a second.
    const int64_t cols = std::min(kTileCols, weight.cols - col);
    const Tile<Real> tile = ExpandTile(weight, begin, outs, col, cols, scratch);
    BlasGemm<Real>(false, true, num_rows, outs, cols, Real{1}, x + col, weight.cols, tile.data,
                   tile.stride, col == 0 ? Real{0} : Real{1}, y + begin, weight.rows);
  }
  if (bias == nullptr) return;
  for (int64_t t = 0; t < num_rows; ++t) {
    for (int64_t n = begin; n < end; ++n) y[t * weight.rows + n] += static_cast<Real>(bias[n]);
  }
}

// Columns [begin, end) of dx.
template <class Real>
void GradInputTile(const Real* dy, int64_t num_rows, const WeightView& weight, bool accumulate,
                   int64_t begin, int64_t end, Real* dx) {
  AlignedVector<Real>& scratch = ThreadScratch<Real>();
  const int64_t cols = end - begin;
  for (int64_t row = 0; row < weight.rows; row += kGradTileRows) {
    CancelPoint();
    const int64_t rows = std::min(kGradTileRows, weight.rows - row);
    const Tile<Real> tile = ExpandTile(weight, row, rows, begin, cols, scratch);
    const Real beta = row == 0 && !accumulate ? Real{0} : Real{1};
    BlasGemm<Real>(false, false, num_rows, cols, rows, Real{1}, dy + row, weight.rows, tile.data,
                   tile.stride, beta, dx + begin, weight.cols);
  }
}

thread_local int unrounded_products = 0;
thread_local ProductObserver* product_observer = nullptr;

// Whether products go to the kernels that take codes as they are, or read weights once for a few
// rows: those of block formats, whatever the number of rows, where x may be rounded.
template <class Real>
bool GoesToDecode(int64_t num_rows, const WeightView& weight) {
  if (!std::is_same_v<Real, float>) return num_rows <= kSliceRows;
  if (IsBlockFormat(weight.format)) return unrounded_products == 0;
  return num_rows <= kDecodeRows;
}

template <class Real>
void ManyRows(const Real* x, int64_t num_rows, std::span<const Projection<Real>> projections,
              const ExecContext& exec) {
  const internal::OneBlasThread one_thread;
  const int threads = ThreadsForProducts(exec, Multiplications(num_rows, projections));
  ForOutputs(threads, projections, kTileOuts,
             [&](const Projection<Real>& projection, int64_t begin, int64_t end) {
               MatMulTile(x, num_rows, *projection.weight, projection.bias, begin, end,
                          projection.y);
             });
}

CBLAS_TRANSPOSE BlasTranspose(bool transpose) { return transpose ? CblasTrans : CblasNoTrans; }

}  // namespace

UnroundedProducts::UnroundedProducts() { ++unrounded_products; }
UnroundedProducts::~UnroundedProducts() { --unrounded_products; }
bool UnroundedProducts::AreAskedFor() { return unrounded_products > 0; }

ObservedProducts::ObservedProducts(ProductObserver& observer) : before_(product_observer) {
  product_observer = &observer;
}
ObservedProducts::~ObservedProducts() { product_observer = before_; }

template <class Real>
void MatMulShared(const Real* x, int64_t num_rows, std::span<const Projection<Real>> projections,
                  const ExecContext& exec) {
  if (projections.empty()) return;
  const int64_t cols = projections.front().weight->cols;
  for (const auto& projection : projections) {
    CheckWeight(*projection.weight);
    PMKVQ_CHECK_MSG(projection.weight->cols == cols, "shared products have the same inputs");
  }
  if (num_rows == 0) return;
  if constexpr (std::is_same_v<Real, float>) {
    if (product_observer != nullptr && cols > 0) product_observer->See(x, num_rows, projections);
  }
  while (!projections.empty()) {
    const auto is_few = [&](const Projection<Real>& projection) {
      return cols == 0 || GoesToDecode<Real>(num_rows, *projection.weight);
    };
    const bool few = is_few(projections.front());
    size_t count = 1;
    while (count < projections.size() && is_few(projections[count]) == few) ++count;
    if (few) {
      DecodeRows(x, num_rows, projections.first(count), exec);
    } else {
      ManyRows(x, num_rows, projections.first(count), exec);
    }
    projections = projections.subspan(count);
  }
}

template <class Real>
void MatMul(const Real* x, int64_t num_rows, const WeightView& weight, const float* bias, Real* y,
            const ExecContext& exec) {
  const Projection<Real> projection{&weight, bias, y};
  MatMulShared<Real>(x, num_rows, {&projection, 1}, exec);
}

template <class Real>
void MatMulGradInput(const Real* dy, int64_t num_rows, const WeightView& weight, Real* dx,
                     bool accumulate, const ExecContext& exec) {
  CheckWeight(weight);
  if (num_rows == 0 || weight.cols == 0) return;
  if (weight.rows == 0) {
    if (!accumulate) std::fill(dx, dx + num_rows * weight.cols, Real{0});
    return;
  }
  const internal::OneBlasThread one_thread;
  const int threads = ThreadsForProducts(exec, num_rows * weight.rows * weight.cols);
  ParallelForRanges(threads, weight.cols, kGradTileCols, [&](int64_t begin, int64_t end) {
    GradInputTile(dy, num_rows, weight, accumulate, begin, end, dx);
  });
}

template <class Real>
void ExpandRow(const WeightView& weight, int64_t row, Real* out) {
  CheckWeight(weight);
  PMKVQ_CHECK(row >= 0 && row < weight.rows);
  ExpandElements(ElementAt(weight, row, 0), weight.format, weight.cols, out);
}

template <class Real>
void BlasGemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, Real alpha,
              const Real* a, int64_t lda, const Real* b, int64_t ldb, Real beta, Real* c,
              int64_t ldc) {
  const internal::OneBlasThread one_thread;
  const auto size = [](int64_t value) { return static_cast<blasint>(value); };
  if constexpr (std::is_same_v<Real, float>) {
    cblas_sgemm(CblasRowMajor, BlasTranspose(transpose_a), BlasTranspose(transpose_b), size(m),
                size(n), size(k), alpha, a, size(lda), b, size(ldb), beta, c, size(ldc));
  } else {
    cblas_dgemm(CblasRowMajor, BlasTranspose(transpose_a), BlasTranspose(transpose_b), size(m),
                size(n), size(k), alpha, a, size(lda), b, size(ldb), beta, c, size(ldc));
  }
}

#define PMKVQ_INSTANTIATE(Real)                                                                   \
  template void MatMul<Real>(const Real*, int64_t, const WeightView&, const float*, Real*,        \
                             const ExecContext&);                                                 \
  template void MatMulShared<Real>(const Real*, int64_t, std::span<const Projection<Real>>,       \
                                   const ExecContext&);                                           \
  template void MatMulGradInput<Real>(const Real*, int64_t, const WeightView&, Real*, bool,       \
                                      const ExecContext&);                                        \
  template void ExpandRow<Real>(const WeightView&, int64_t, Real*);                               \
  template void BlasGemm<Real>(bool, bool, int64_t, int64_t, int64_t, Real, const Real*, int64_t, \
                               const Real*, int64_t, Real, Real*, int64_t);
PMKVQ_INSTANTIATE(float)
PMKVQ_INSTANTIATE(double)
#undef PMKVQ_INSTANTIATE

}  // namespace pmkvq
