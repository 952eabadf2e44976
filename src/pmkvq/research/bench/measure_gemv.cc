// Products of a block's weight matrices with few rows, as decoding does them.
#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "pmkvq/base/aligned.h"
#include "pmkvq/base/error.h"
#include "pmkvq/base/parallel.h"
#include "pmkvq/base/random.h"
#include "pmkvq/kernels/gemm/gemm.h"
#include "pmkvq/research/bench/rounds.h"
#include "pmkvq/research/bench/shapes.h"
#include "pmkvq/research/bench/synthetic.h"

namespace pmkvq {
namespace {

// Weights of all blocks together, so that no pass finds them in a cache.
constexpr int64_t kLeastWeightBytes = int64_t{256} << 20;

// Bytes of a matrix in any format. Scales in it are numbers of usual size, whatever the format:
// high bytes of floats from 0x20 to 0x2f.
AlignedVector<std::byte> SyntheticBytes(int64_t count, uint64_t seed, int num_threads) {
  constexpr int64_t kGrain = int64_t{1} << 20;
  AlignedVector<std::byte> bytes(static_cast<size_t>(count));
  ParallelForRanges(num_threads, count, kGrain, [&](int64_t begin, int64_t end) {
    Random random(seed * 1000003 + static_cast<uint64_t>(begin));
    for (int64_t i = begin; i < end; ++i) {
      bytes[static_cast<size_t>(i)] = static_cast<std::byte>(0x20 + random.Below(16));
    }
  });
  return bytes;
}

struct BatchCase {
  int64_t rows = 1;
  Measurements block;                   // Seconds for all matrices of one block.
  std::vector<Measurements> of_matrix;  // Seconds for each of them.
};

class Products {
 public:
  Products(const ModelConfig& shape, WeightFormat format, int64_t max_rows, int num_threads)
      : matrices_(BlockMatrices(shape)), format_(format), num_threads_(num_threads) {
    for (int64_t layer = 0; layer < shape.num_layers; ++layer) {
      for (const BlockMatrix& matrix : matrices_) {
        weights_.push_back(SyntheticBytes(matrix.rows * RowBytes(format, matrix.cols),
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
      const WeightView view{weights_[i].data(), format_, matrices_[which].rows,
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
  WeightFormat format_;
  int num_threads_;
  std::vector<AlignedVector<std::byte>> weights_;
  AlignedVector<float> x_, y_;
};

// Of matrices that hold so many weights in so many bytes.
struct Measured {
  std::string name;
  int64_t parameters = 0;
  int64_t num_bytes = 0;
};

BenchFields Describe(WeightFormat format, const Measured& what, int64_t rows,
                     const Measurements& seconds, double batch_1_seconds,
                     const Ceilings& ceilings) {
  const Spread time = seconds.ToSpread();
  const auto bytes = static_cast<double>(what.num_bytes);
  const auto parameters = static_cast<double>(what.parameters);
  const double flops = 2.0 * parameters * static_cast<double>(rows);
  const double read_ms = bytes / ceilings.read_gb_per_s() / 1e6;
  const double float_ms = flops / ceilings.float_gflop_per_s() / 1e6;
  const double gb_per_s = bytes / time.median / 1e9;
  BenchFields row;
  row.Add("weights", std::string(NameOf(format)), "weights");
  row.Add("matrix", what.name, "matrix");
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

// All batches of one format.
struct FormatCase {
  WeightFormat format = WeightFormat::kBF16;
  std::unique_ptr<Products> products;
  std::vector<BatchCase> batches;
};

int64_t BlockBytes(const ModelConfig& shape, WeightFormat format) {
  int64_t bytes = 0;
  for (const BlockMatrix& matrix : BlockMatrices(shape)) {
    bytes += matrix.rows * RowBytes(format, matrix.cols);
  }
  return bytes;
}

void AddRows(const ModelConfig& shape, const FormatCase& item, bool per_matrix,
             const Ceilings& ceilings, BenchTable& table) {
  const auto one = std::find_if(item.batches.begin(), item.batches.end(),
                                [](const BatchCase& batch) { return batch.rows == 1; });
  const std::vector<BlockMatrix> matrices = BlockMatrices(shape);
  for (const BatchCase& batch : item.batches) {
    const auto add = [&](const Measured& what, const auto& samples_of) {
      const double batch_1 = one == item.batches.end() ? 0.0 : samples_of(*one).Median();
      table.rows.push_back(
          Describe(item.format, what, batch.rows, samples_of(batch), batch_1, ceilings));
    };
    add({"block", BlockParameters(shape), BlockBytes(shape, item.format)},
        [](const BatchCase& c) -> const Measurements& { return c.block; });
    if (!per_matrix) continue;
    for (size_t i = 0; i < matrices.size(); ++i) {
      const BlockMatrix& matrix = matrices[i];
      add({matrix.name, matrix.rows * matrix.cols,
           matrix.rows * RowBytes(item.format, matrix.cols)},
          [i](const BatchCase& c) -> const Measurements& { return c.of_matrix[i]; });
    }
  }
}

}  // namespace

BenchReport BenchGemv(const BenchOptions& options, const std::vector<WeightFormat>& formats,
                      bool per_matrix) {
  internal::CheckOptions(options);
  const ModelConfig one_block = internal::ShapeOf(options, 1);
  const int64_t max_rows = *std::max_element(options.batches.begin(), options.batches.end());
  std::vector<ModelConfig> shapes;
  int64_t total_bytes = 0;
  for (const WeightFormat format : formats) {
    ModelConfig& shape = shapes.emplace_back(one_block);
    const int64_t block_bytes = BlockBytes(shape, format);
    if (options.layers == 0) {
      shape.num_layers = (kLeastWeightBytes + block_bytes - 1) / block_bytes;
    }
    total_bytes += shape.num_layers * block_bytes;
  }
  CheckMemory(total_bytes, "give fewer --layers or --weights");

  std::vector<FormatCase> cases(formats.size());
  for (size_t i = 0; i < formats.size(); ++i) {
    cases[i].format = formats[i];
    cases[i].products =
        std::make_unique<Products>(shapes[i], formats[i], max_rows, options.num_threads);
    for (const int64_t rows : options.batches) cases[i].batches.emplace_back().rows = rows;
  }
  Ceilings ceilings(options.num_threads);
  internal::RunRounds(options, "gemv", ceilings, [&](bool measured) {
    for (FormatCase& item : cases) {
      for (BatchCase& batch : item.batches) {
        ThrowIfCancelled(options.cancel, "bench");
        item.products->Run(batch, measured);
      }
    }
  });

  BenchReport report = internal::NewReport(options, "gemv", one_block);
  ceilings.AddTo(report.facts);
  BenchTable table{"rows", "all weights of one block, from memory", {}};
  for (const FormatCase& item : cases) AddRows(one_block, item, per_matrix, ceilings, table);
  report.tables.push_back(std::move(table));
  report.notes.push_back(
      "x bound: time over the larger of reading the weights and the arithmetic in floats, at the "
      "ceilings");
  return report;
}

}  // namespace pmkvq
