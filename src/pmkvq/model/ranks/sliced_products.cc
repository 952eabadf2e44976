// Products of a shard whose bits do not depend on the number of ranks.
#include <algorithm>
#include <bit>
#include <cstring>
#include <functional>

#include "pmkvq/base/aligned.h"
#include "pmkvq/base/check.h"
#include "pmkvq/base/parallel.h"
#include "pmkvq/model/ranks/shard.h"

namespace pmkvq {
namespace {

using Floats = AlignedVector<float>;

float* Grown(Floats& values, int64_t count) {
  if (std::ssize(values) < count) values.resize(static_cast<size_t>(count));
  return values.data();
}

// Memory of the thread that computes, kept between calls: a step allocates nothing.
struct ScratchOfThread {
  Floats columns;              // x of one slice.
  std::vector<Floats> levels;  // Right subtrees, by depth.
  std::vector<Floats> outputs;
  std::vector<WeightView> views;
  std::vector<Projection<float>> products;
  Floats parts;  // Of GatherLogits.
  Floats all;
};
ScratchOfThread& Scratch() {
  thread_local ScratchOfThread scratch;
  return scratch;
}

// Adding takes a float read twice and written once, some 0.3 ns.
constexpr double kNsPerSum = 0.3;
constexpr int64_t kSumGrain = 1 << 15;

// The leaves [begin, end) of a tree over a rank's slices.
struct TreeSum {
  int64_t n;
  const std::function<void(size_t, float*)>& leaf;
  int num_threads;

  void Compute(size_t begin, size_t end, size_t depth, float* y) const {
    const size_t count = end - begin;
    if (count == 1) return leaf(begin, y);
    const size_t left = std::bit_ceil(count) / 2;
    Compute(begin, begin + left, depth + 1, y);
    std::vector<Floats>& levels = Scratch().levels;
    if (levels.size() <= depth) levels.resize(depth + 8);
    float* right = Grown(levels[depth], n);
    Compute(begin + left, end, depth + 1, right);
    const int threads = UsefulThreads(num_threads, static_cast<double>(n) * kNsPerSum);
    ParallelForRanges(threads, n, kSumGrain, [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to; ++i) y[i] += right[i];
    });
  }
};

}  // namespace

void SumOfLeaves(int64_t n, size_t num_leaves,
                 const std::function<void(size_t index, float* values)>& leaf, float* y,
                 const ModelShard& shard, int num_threads) {
  TreeSum{n, leaf, num_threads}.Compute(0, num_leaves, 0, y);
  if (shard.comm != nullptr) shard.comm->SumInOrder(y, n);
}

void SumOfSlices(const float* x, int64_t num_rows, const SliceRange& range,
                 const std::vector<WeightView>& slices, const float* bias, float* y,
                 const ModelShard& shard, int num_threads) {
  PMKVQ_CHECK(slices.size() == range.num_slices());
  const int64_t outputs = slices[0].rows;
  const auto product = [&](size_t index, float* values) {
    const WeightView& weight = slices[index];
    if (weight.cols == 0) {  // Fewer blocks of columns than slices.
      std::fill_n(values, num_rows * weight.rows, 0.0f);
      return;
    }
    const float* columns = x + range.offset(index);
    const int64_t width = range.size();
    if (num_rows > 1 && weight.cols != width) {
      float* copy = Grown(Scratch().columns, num_rows * weight.cols);
      for (int64_t row = 0; row < num_rows; ++row) {
        std::copy_n(columns + row * width, weight.cols, copy + row * weight.cols);
      }
      columns = copy;
    }
    MatMul<float>(columns, num_rows, weight, nullptr, values, num_threads);
  };
  SumOfLeaves(num_rows * outputs, slices.size(), std::cref(product), y, shard, num_threads);
  if (bias == nullptr) return;
  for (int64_t row = 0; row < num_rows; ++row) {
    for (int64_t i = 0; i < outputs; ++i) y[row * outputs + i] += bias[i];
  }
}

void SlicedProducts(const float* x, int64_t num_rows,
                    std::span<const Projection<float>> projections,
                    std::span<const SliceRange* const> ranges, int num_threads) {
  if (num_rows <= kDecodeRows) {  // The bits of an output do not depend on the others.
    return MatMulShared<float>(x, num_rows, projections, num_threads);
  }
  // A product for each slice, into separate memory, so that BLAS sees the same shapes for any P.
  std::vector<Projection<float>>& products = Scratch().products;
  std::vector<WeightView>& views = Scratch().views;
  std::vector<Floats>& outputs = Scratch().outputs;
  products.clear();
  views.clear();
  size_t count = 0;
  for (const SliceRange* range : ranges) count += range->num_slices();
  views.reserve(count);  // Products point to them.
  if (outputs.size() < count) outputs.resize(count);
  for (size_t i = 0; i < projections.size(); ++i) {
    const WeightView& whole = *projections[i].weight;
    for (size_t slice = 0; slice < ranges[i]->num_slices(); ++slice) {
      const int64_t first = ranges[i]->offset(slice);
      WeightView& view = views.emplace_back(whole);
      view.data = whole.data + first * RowBytes(whole.format, whole.cols);
      view.rows = ranges[i]->size(slice);
      const float* bias = projections[i].bias == nullptr ? nullptr : projections[i].bias + first;
      float* out = Grown(outputs[views.size() - 1], num_rows * view.rows);
      products.push_back({&view, bias, out});
    }
  }
  MatMulShared<float>(x, num_rows, products, num_threads);
  size_t place = 0;
  for (size_t i = 0; i < projections.size(); ++i) {
    const int64_t width = projections[i].weight->rows;
    for (size_t slice = 0; slice < ranges[i]->num_slices(); ++slice, ++place) {
      const int64_t rows = ranges[i]->size(slice);
      float* to = projections[i].y + ranges[i]->offset(slice);
      for (int64_t row = 0; row < num_rows; ++row) {
        std::copy_n(products[place].y + row * rows, rows, to + row * width);
      }
    }
  }
}

void GatherLogits(const float* local, int64_t num_rows, const ModelShard& shard, float* logits) {
  const std::vector<int64_t>& begins = shard.vocab.begins;
  if (shard.comm == nullptr) {
    if (local != logits) std::copy_n(local, num_rows * begins.back(), logits);
    return;
  }
  // Parts of one size, since shares of the vocabulary may differ.
  const size_t per_rank = shard.vocab.num_slices();
  const auto begin_of = [&](int rank) { return begins[static_cast<size_t>(rank) * per_rank]; };
  int64_t widest = 0;
  for (int rank = 0; rank < shard.size; ++rank) {
    widest = std::max(widest, begin_of(rank + 1) - begin_of(rank));
  }
  float* part = Grown(Scratch().parts, num_rows * widest);
  std::copy_n(local, num_rows * shard.vocab.size(), part);
  std::fill(part + num_rows * shard.vocab.size(), part + num_rows * widest, 0.0f);
  float* all = shard.rank == 0 ? Grown(Scratch().all, num_rows * widest * shard.size) : nullptr;
  shard.comm->Gather(part, static_cast<size_t>(num_rows * widest) * sizeof(float), all);
  if (shard.rank != 0) return;
  const int64_t vocab_size = begins.back();
  for (int rank = 0; rank < shard.size; ++rank) {
    const int64_t begin = begin_of(rank);
    const int64_t width = begin_of(rank + 1) - begin;
    const float* from = all + rank * num_rows * widest;
    for (int64_t row = 0; row < num_rows; ++row) {
      std::copy_n(from + row * width, width, logits + row * vocab_size + begin);
    }
  }
}

}  // namespace pmkvq
