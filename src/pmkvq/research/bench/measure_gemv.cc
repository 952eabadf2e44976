// Products of a block's weight matrices with few rows, as decoding does them.
#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "pmkvq/base/error.h"
#include "pmkvq/kernels/gemm/gemm.h"
#include "pmkvq/research/bench/rounds.h"
#include "pmkvq/research/bench/shapes.h"
#include "pmkvq/research/bench/synthetic.h"

namespace pmkvq {
namespace {

// Weights of all blocks together, so that no pass finds them in a cache.
constexpr int64_t kLeastWeightBytes = int64_t{256} << 20;

struct BatchCase {
  int64_t rows = 1;
  Measurements block;                   // Seconds for all matrices of one block.
  std::vector<Measurements> of_matrix;  // Seconds for each of them.
};

class Products {
 public:
  Products(const ModelConfig& shape, int64_t max_rows, int num_threads)
      : matrices_(BlockMatrices(shape)), num_threads_(num_threads) {
    for (int64_t layer = 0; layer < shape.num_layers; ++layer) {
      for (const BlockMatrix& matrix : matrices_) {
        weights_.push_back(SyntheticMatrix(matrix.rows, matrix.cols,
                                           static_cast<uint64_t>(weights_.size()), num_threads));
      }
    }
    const int64_t widest = std::max(shape.intermediate_size, shape.hidden_size);
    x_.resize(static_cast<size_t>(max_rows * widest));
    y_.resize(x_.size());
    SyntheticRows(2).Fill(std::ssize(x_), x_.data());
  }

  // One pass over all blocks.
  void Run(BatchCase& item, bool measured) {
    const size_t num_blocks = weights_.size() / matrices_.size();
    std::vector<double> seconds(matrices_.size());
    for (size_t i = 0; i < weights_.size(); ++i) {
      const size_t which = i % matrices_.size();
      const Tensor& tensor = weights_[i];
      const WeightView view{tensor.view().data, WeightFormat::kBF16, matrices_[which].rows,
                            matrices_[which].cols};
      seconds[which] += TimeSeconds(
          [&] { MatMul(x_.data(), item.rows, view, nullptr, y_.data(), num_threads_); });
    }
    if (!measured) return;
    item.of_matrix.resize(seconds.size());
    double sum = 0;
    for (size_t which = 0; which < seconds.size(); ++which) {
      item.of_matrix[which].Add(seconds[which] / static_cast<double>(num_blocks));
      sum += seconds[which];
    }
    item.block.Add(sum / static_cast<double>(num_blocks));
  }

 private:
  std::vector<BlockMatrix> matrices_;
  int num_threads_;
  std::vector<Tensor> weights_;
  AlignedVector<float> x_, y_;
};

BenchFields Describe(const std::string& name, int64_t rows, int64_t parameters,
                     const Measurements& seconds, double batch_1_seconds,
                     const Ceilings& ceilings) {
  const Spread time = seconds.ToSpread();
  const double bytes = 2.0 * static_cast<double>(parameters);
  const double flops = 2.0 * static_cast<double>(parameters) * static_cast<double>(rows);
  const double read_ms = bytes / ceilings.read_gb_per_s() / 1e6;
  const double float_ms = flops / ceilings.float_gflop_per_s() / 1e6;
  const double gb_per_s = bytes / time.median / 1e9;
  BenchFields row;
  row.Add("matrix", name, "matrix");
  row.Add("batch", rows, "batch");
  row.AddSpread("ms", InMilliseconds(time), "ms", 3);
  row.Add("gb_per_s", gb_per_s, "GB/s");
  row.Add("percent_of_read", 100.0 * gb_per_s / ceilings.read_gb_per_s(), "% of read", 1);
  row.Add("gflop_per_s", flops / time.median / 1e9, "GFLOP/s", 1);
  row.Add("percent_of_float_peak", 100.0 * flops / time.median / 1e9 / ceilings.float_gflop_per_s(),
          "% of float", 1);
  // The time that reading the weights, or the arithmetic, takes at least.
  row.Add("read_ms", read_ms);
  row.Add("float_ms", float_ms);
  row.Add("times_bound", time.median * 1e3 / std::max(read_ms, float_ms), "x bound");
  if (batch_1_seconds > 0) {
    row.Add("times_batch_1", time.median / batch_1_seconds, "x batch 1");
  }
  return row;
}

}  // namespace

BenchReport BenchGemv(const BenchOptions& options, bool per_matrix) {
  internal::CheckOptions(options);
  ModelConfig shape = internal::ShapeOf(options, 1);
  const int64_t block_bytes = 2 * BlockParameters(shape);
  if (options.layers == 0) {
    shape.num_layers = (kLeastWeightBytes + block_bytes - 1) / block_bytes;
  }
  CheckMemory(shape.num_layers * block_bytes, "give fewer --layers");
  const int64_t max_rows = *std::max_element(options.batches.begin(), options.batches.end());

  Products products(shape, max_rows, options.num_threads);
  std::vector<BatchCase> cases(options.batches.size());
  for (size_t i = 0; i < cases.size(); ++i) cases[i].rows = options.batches[i];
  Ceilings ceilings(options.num_threads);
  internal::RunRounds(options, "gemv", ceilings, [&](bool measured) {
    for (BatchCase& item : cases) {
      ThrowIfCancelled(options.cancel, "bench");
      products.Run(item, measured);
    }
  });

  BenchReport report = internal::NewReport(options, "gemv", shape);
  ceilings.AddTo(report.facts);
  report.facts.Add("weights", std::string("bf16"), "weights");
  BenchTable table{"rows", "all weights of one block, from memory", {}};
  const auto one = std::find_if(cases.begin(), cases.end(),
                                [](const BatchCase& item) { return item.rows == 1; });
  for (const BatchCase& item : cases) {
    const auto batch_1 = [&](const auto& samples_of) {
      return one == cases.end() ? 0.0 : samples_of(*one).Median();
    };
    table.rows.push_back(Describe(
        "block", item.rows, BlockParameters(shape), item.block,
        batch_1([](const BatchCase& c) -> const Measurements& { return c.block; }), ceilings));
    if (!per_matrix) continue;
    const std::vector<BlockMatrix> matrices = BlockMatrices(shape);
    for (size_t i = 0; i < matrices.size(); ++i) {
      table.rows.push_back(Describe(
          matrices[i].name, item.rows, matrices[i].rows * matrices[i].cols, item.of_matrix[i],
          batch_1([i](const BatchCase& c) -> const Measurements& { return c.of_matrix[i]; }),
          ceilings));
    }
  }
  report.tables.push_back(std::move(table));
  report.notes.push_back(
      "x bound: time over the larger of reading the weights and the arithmetic, at the ceilings");
  return report;
}

}  // namespace pmkvq
