// Products of a block's weights with few rows on a CUDA device, as decoding does them there: q, k
// and v are one matrix, gate and up too.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "pmkvq/base/error.h"
#include "pmkvq/base/float16.h"
#include "pmkvq/kernels/gemm/code_tile.h"
#include "pmkvq/kernels/gemm/device_codes.h"
#include "pmkvq/kernels/gemm/device_gemm.h"
#include "pmkvq/kernels/gemm/device_gemm_few.h"
#include "pmkvq/research/bench/bench_cuda.h"
#include "pmkvq/research/bench/cuda_memory.h"
#include "pmkvq/research/bench/rounds.h"
#include "pmkvq/research/bench/shapes.h"
#include "pmkvq/tensor/device/device_info.h"

namespace pmkvq {
namespace {

// Weights that are read before the same bytes come again: more than any second-level cache.
constexpr size_t kColdBytes = size_t{500} << 20;
constexpr size_t kPatternBytes = size_t{16} << 20;
// Enough to be measured well.
constexpr double kLeastMicroseconds = 400.0;
constexpr double kUsualBytesPerMicrosecond = 4e6;

struct Matrix {
  std::string name;
  int64_t n = 0;
  int64_t k = 0;
};

constexpr char kGateAndUp[] = "gate_proj+up_proj";

// The matrices of a block, those with one x stacked.
std::vector<Matrix> StackedMatrices(const ModelConfig& shape) {
  std::vector<Matrix> stacked;
  for (const BlockMatrix& matrix : BlockMatrices(shape)) {
    const std::string& name = matrix.name;
    const bool follows = name == "k_proj" || name == "v_proj" || name == "up_proj";
    if (follows && !stacked.empty() && stacked.back().k == matrix.cols) {
      stacked.back().n += matrix.rows;
      stacked.back().name += "+" + name;
    } else {
      stacked.push_back({name, matrix.rows, matrix.cols});
    }
  }
  return stacked;
}

// kFewRows: the kernel for engines of few sequences, with operands of two parts, and the activation
// behind gate and up, as decoding calls it. kFastest: for each product the fastest of the first 16
// algorithms that cuBLASLt has for it; kBf16 takes what decoding takes. Decoding of many sequences
// multiplies 128 rows: both parts of 64. kCodes: quantised weights of a format, from their codes.
enum class Product { kBf16, kFastest, kFewRows, kCodes };
struct Kind {
  Product product = Product::kBf16;
  WeightFormat format = WeightFormat::kBF16;
};
std::string NameOf(Kind kind) {
  switch (kind.product) {
    case Product::kBf16:
      return "bf16";
    case Product::kFastest:
      return "bf16, fastest";
    case Product::kFewRows:
      return "bf16, few rows";
    case Product::kCodes:
      return kind.format == WeightFormat::kQ8 ? "q8" : std::string(NameOf(kind.format));
  }
  return "";
}
constexpr Kind kKinds[] = {{Product::kBf16},
                           {Product::kFastest},
                           {Product::kFewRows},
                           {Product::kCodes, WeightFormat::kQ8},
                           {Product::kCodes, WeightFormat::kQ6_K},
                           {Product::kCodes, WeightFormat::kQ5_K},
                           {Product::kCodes, WeightFormat::kQ4_K},
                           {Product::kCodes, WeightFormat::kQ4_0},
                           {Product::kCodes, WeightFormat::kIQ4_XS}};
bool HasKind(Kind kind, int64_t rows) {
  if (kind.product == Product::kFewRows) return rows <= kMostFewRows;
  return kind.product != Product::kCodes || rows <= kDecodeRows;
}

size_t BytesOf(Kind kind, const Matrix& matrix) {
  if (kind.product == Product::kCodes) return DeviceCodesBytes(kind.format, matrix.n, matrix.k);
  return static_cast<size_t>(matrix.n * matrix.k) * 2;
}
size_t UnitBytes(Kind kind) {
  return kind.product == Product::kCodes
             ? static_cast<size_t>(code_tile::TileBytes(code_tile::FormatOf(kind.format)))
             : 16;
}

std::vector<std::byte> NormalBf16(size_t num_bytes, float deviation) {
  std::mt19937 random(4);
  std::normal_distribution<float> normal(0.0f, deviation);
  std::vector<std::byte> bytes(num_bytes);
  for (size_t at = 0; at + 2 <= num_bytes; at += 2) {
    const BF16 value = ToBF16(normal(random));
    std::memcpy(bytes.data() + at, &value, sizeof(value));
  }
  return bytes;
}

// Whole tiles of random codes, with scales that are small numbers in every format.
std::vector<std::byte> RandomTiles(WeightFormat format, size_t num_bytes) {
  std::vector<std::byte> bytes = internal::RandomCodes(num_bytes);
  const code_tile::Format f = code_tile::FormatOf(format);
  const auto tile_bytes = static_cast<size_t>(code_tile::TileBytes(f));
  const auto scales_at = static_cast<size_t>(code_tile::ScalesAt(f));
  for (size_t tile = 0; tile + tile_bytes <= num_bytes; tile += tile_bytes) {
    std::memset(bytes.data() + tile + scales_at, 0x14, tile_bytes - scales_at);
  }
  return bytes;
}

// Weights of one kind: matrices of any size are cut from it one behind the other, and from its
// front again at its end.
class WeightPool {
 public:
  WeightPool(Stream& stream, Kind kind, size_t num_bytes)
      // Tiles, and what products want the beginning to be a multiple of.
      : unit_(UnitBytes(kind) * 16), memory_(stream.device(), num_bytes) {
    const size_t pattern = kPatternBytes / unit_ * unit_;
    internal::FillWithPattern(stream, memory_.data(), num_bytes,
                              kind.product == Product::kCodes ? RandomTiles(kind.format, pattern)
                                                              : NormalBf16(pattern, 0.02f));
  }

  const std::byte* Take(size_t num_bytes) {
    if (at_ + num_bytes > memory_.num_bytes()) at_ = 0;
    const std::byte* taken = memory_.data() + at_;
    at_ += (num_bytes + unit_ - 1) / unit_ * unit_;
    return taken;
  }
  size_t num_bytes() const { return memory_.num_bytes(); }

 private:
  size_t unit_;
  Buffer memory_;
  size_t at_ = 0;
};

struct Case {
  std::string matrix;
  Kind kind = {};
  int64_t rows = 1;
  double read_bytes = 0;
  Measurements microseconds = {};
};

class CudaProducts {
 public:
  CudaProducts(const BenchOptions& options, DeviceId device, const ModelConfig& shape)
      : options_(options),
        stream_(device),
        matrices_(StackedMatrices(shape)),
        ruled_(device),
        ceiling_(device) {
    for (int choice = 0; choice < DeviceGemm::kMostChoices; ++choice) {
      gemms_.push_back(std::make_unique<DeviceGemm>(device, choice));
    }
    size_t largest = 0;
    size_t block = 0;
    for (const Matrix& matrix : matrices_) {
      largest = std::max(largest, BytesOf(Kind{}, matrix));
      block += BytesOf(Kind{}, matrix);
      widest_k_ = std::max(widest_k_, matrix.k);
      widest_n_ = std::max(widest_n_, matrix.n);
    }
    pool_bytes_ = std::max({kColdBytes, block, 2 * largest});
    const size_t free_bytes = Query(device).free_bytes;
    if (2 * pool_bytes_ > free_bytes) {
      throw InvalidInput(NameOf(device), fmt::format("the weights take {} bytes, found {} free",
                                                     2 * pool_bytes_, free_bytes));
    }
    const auto x_bytes = static_cast<size_t>(2 * kDecodeRows * widest_k_) * 2;
    x_ = std::make_unique<Buffer>(device, x_bytes);
    internal::FillWithPattern(stream_, x_->data(), x_bytes, NormalBf16(x_bytes, 1.0f));
    y_ = std::make_unique<Buffer>(device,
                                  static_cast<size_t>(2 * kDecodeRows * widest_n_) * sizeof(float));
  }

  void Run(bool per_matrix) {
    const auto rows_per_case = static_cast<int64_t>(per_matrix ? matrices_.size() + 1 : 1);
    if (options_.progress != nullptr) {
      int64_t cases = 0;
      for (const Kind kind : kKinds) {
        for (const int64_t rows : options_.batches) cases += HasKind(kind, rows) ? 1 : 0;
      }
      options_.progress->Begin("gemv", cases * rows_per_case, 0);
    }
    for (const Kind kind : kKinds) {
      WeightPool pool(stream_, kind, pool_bytes_);
      for (const int64_t rows : options_.batches) {
        if (!HasKind(kind, rows)) continue;
        if (kind.product == Product::kFastest) ChooseFastest(rows, pool);
        Measure("block", kind, rows, matrices_, pool);
        if (!per_matrix) continue;
        for (const Matrix& matrix : matrices_) Measure(matrix.name, kind, rows, {matrix}, pool);
      }
    }
    if (options_.progress != nullptr) options_.progress->End();
  }

  const std::vector<Case>& cases() const { return cases_; }
  const internal::CopyCeiling& ceiling() const { return ceiling_; }

 private:
  void Multiply(Kind kind, const Matrix& matrix, int64_t rows, const std::byte* weight) {
    auto* y = reinterpret_cast<float*>(y_->data());
    if (kind.product == Product::kCodes) {
      MultiplyCodes({.x = {x_->data(), DType::kF16, 2, kDecodeRows},
                     .w = {weight, kind.format, matrix.n, matrix.k},
                     .y = y,
                     .y_stride = matrix.n,
                     .rows = rows},
                    stream_);
      return;
    }
    if (kind.product == Product::kFewRows) {
      FewRowsProduct product{.x = {x_->data(), DType::kBF16, 2, kDecodeRows},
                             .rows = rows,
                             .w = weight,
                             .n = matrix.n,
                             .k = matrix.k,
                             .y = y};
      if (matrix.name == kGateAndUp) {
        product.n = matrix.n / 2;
        product.gated = {y_->data(), DType::kBF16, 2, kDecodeRows};
      }
      MultiplyFewRows(product, stream_);
      return;
    }
    GemmFor(kind, matrix)
        .Multiply({.type = DType::kBF16,
                   .x = x_->data(),
                   .w = weight,
                   .y = y,
                   .rows = rows,
                   .n = matrix.n,
                   .k = matrix.k},
                  stream_);
  }

  DeviceGemm& GemmFor(Kind kind, const Matrix& matrix) {
    return kind.product == Product::kFastest ? *gemms_[fastest_.at(matrix.name)] : ruled_;
  }

  // Sets fastest_ for that number of rows.
  void ChooseFastest(int64_t rows, WeightPool& pool) {
    for (const Matrix& matrix : matrices_) {
      std::vector<double> microseconds;
      for (size_t choice = 0; choice < gemms_.size(); ++choice) {
        fastest_[matrix.name] = choice;
        microseconds.push_back(
            TimeProducts({Product::kFastest}, rows, {matrix}, pool).ToSpread().median);
      }
      fastest_[matrix.name] = static_cast<size_t>(
          std::min_element(microseconds.begin(), microseconds.end()) - microseconds.begin());
    }
  }

  // Microseconds of all `matrices` once, from memory.
  Measurements TimeProducts(Kind kind, int64_t rows, const std::vector<Matrix>& matrices,
                            WeightPool& pool) {
    ThrowIfCancelled(options_.cancel, "bench");
    double bytes = 0;
    for (const Matrix& matrix : matrices) {
      bytes += static_cast<double>(BytesOf(kind, matrix));
      if (kind.product == Product::kBf16 || kind.product == Product::kFastest) {
        GemmFor(kind, matrix).Prepare(DType::kBF16, matrix.n, matrix.k, rows, false, stream_);
      }
    }
    const double at_ceiling_us = bytes / kUsualBytesPerMicrosecond + 2.0;
    const auto passes = static_cast<int64_t>(std::ceil(std::max(
        static_cast<double>(pool.num_bytes()) / bytes, kLeastMicroseconds / at_ceiling_us)));
    CapturedWork work(stream_, [&] {
      for (int64_t pass = 0; pass < passes; ++pass) {
        for (const Matrix& matrix : matrices) {
          Multiply(kind, matrix, rows, pool.Take(BytesOf(kind, matrix)));
        }
      }
    });
    Measurements microseconds;
    for (int round = -2; round < options_.repeat; ++round) {
      const double us = internal::TimeOnStream(stream_, [&] { work.Launch(stream_); });
      if (round >= 0) microseconds.Add(us / static_cast<double>(passes));
    }
    return microseconds;
  }

  void Measure(const std::string& name, Kind kind, int64_t rows,
               const std::vector<Matrix>& matrices, WeightPool& pool) {
    double bytes = 0;
    for (const Matrix& matrix : matrices) bytes += static_cast<double>(BytesOf(kind, matrix));
    Case item{.matrix = name, .kind = kind, .rows = rows, .read_bytes = bytes};
    item.microseconds = TimeProducts(kind, rows, matrices, pool);
    ceiling_.Measure(stream_);
    cases_.push_back(std::move(item));
    if (options_.progress != nullptr) options_.progress->Advance(1);
  }

  const BenchOptions& options_;
  Stream stream_;
  std::vector<Matrix> matrices_;
  DeviceGemm ruled_;                                // As decoding multiplies.
  std::vector<std::unique_ptr<DeviceGemm>> gemms_;  // By place in the library's list.
  std::map<std::string, size_t> fastest_;           // Of a matrix, at the rows at hand.
  internal::CopyCeiling ceiling_;
  int64_t widest_n_ = 0;
  int64_t widest_k_ = 0;
  size_t pool_bytes_ = 0;
  std::unique_ptr<Buffer> x_, y_;
  std::vector<Case> cases_;
};

}  // namespace

BenchReport BenchCudaGemv(const BenchOptions& options, DeviceId device, bool per_matrix) {
  internal::CheckOptions(options);
  for (const int64_t rows : options.batches) {
    if (rows <= 2 * kDecodeRows) continue;
    throw InvalidInput("bench gemv", fmt::format("--batch: found {}, expected at most {} on a "
                                                 "device",
                                                 rows, 2 * kDecodeRows));
  }
  const DeviceInfo info = Query(device);
  const ModelConfig shape = internal::ShapeOf(options, 1);
  CudaProducts bench(options, device, shape);
  bench.Run(per_matrix);
  const Spread copy = bench.ceiling().gb_per_s().ToSpread();

  BenchReport report = internal::NewReport(options, "gemv", shape);
  report.facts.Add("device", info.name, "device");
  report.facts.AddSpread("copy_gb_per_s", copy, "copies GB/s (r+w)", 0);
  BenchTable table{"rows", "weights of one block, from memory", {}};
  for (const Case& item : bench.cases()) {
    const Spread us = item.microseconds.ToSpread();
    const double gb_per_s = item.read_bytes / us.median * 1e-3;
    BenchFields row;
    row.Add("matrix", item.matrix, "matrix");
    row.Add("weights", NameOf(item.kind), "weights");
    row.Add("batch", item.rows, "batch");
    row.AddSpread("us", us, "us", 1);
    row.Add("read_gb_per_s", gb_per_s, "GB/s", 0);
    row.Add("of_copy", gb_per_s / copy.median, "of copy");
    table.rows.push_back(std::move(row));
  }
  report.tables.push_back(std::move(table));
  report.notes.push_back("bytes: those of the weights, each read once");
  return report;
}

}  // namespace pmkvq
