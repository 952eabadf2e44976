#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <random>

#include "pmkvq/base/error.h"
#include "pmkvq/kernels/kv_quant/fragment_layout.h"
#include "pmkvq/kernels/kv_quant/page_moves.h"
#include "pmkvq/research/bench/bench_cuda.h"
#include "pmkvq/research/bench/cuda_memory.h"
#include "pmkvq/research/bench/rounds.h"
#include "pmkvq/tensor/device/device_info.h"

namespace pmkvq {
namespace {

// Codes at the wider width: far more than the second-level cache, so that nothing stays there.
constexpr size_t kSourceBytes = size_t{1} << 29;
constexpr size_t kPatternBytes = size_t{16} << 20;
constexpr int kLaunches = 4;
// What a token may halve at most (kv/packed/policy/spread.h).
constexpr size_t kStepBytes = size_t{8} << 20;

enum class Way { kNewSlots, kInPlace };

struct Case {
  std::string name;
  bool is_values = false;
  int from_bits = 8;
  int to_bits = 4;
  Way way = Way::kNewSlots;
  size_t source_bytes = kSourceBytes;
  int64_t num_pages = 0;
  double moved_bytes = 0;  // Read plus written.
  Measurements microseconds = {};
};

class CudaHalving {
 public:
  CudaHalving(const BenchOptions& options, DeviceId device, const ModelConfig& config)
      : options_(options),
        shape_{config.num_kv_heads, config.head_dim, false},
        stream_(device),
        ceiling_(device),
        // Source, target at half of it, metadata.
        arena_(device, 2 * kSourceBytes),
        unfit_(device, sizeof(uint32_t)) {
    FillOnDevice(stream_, unfit_.data(), 0xff, sizeof(uint32_t));
  }

  void Run() {
    for (const auto& [from, to] : {std::pair{8, 4}, {4, 2}, {8, 2}}) {
      for (const Way way : {Way::kNewSlots, Way::kInPlace}) {
        cases_.push_back(
            {.name = fmt::format("{} -> {}{}", from, to, way == Way::kInPlace ? ", in place" : ""),
             .from_bits = from,
             .to_bits = to,
             .way = way});
      }
    }
    for (const int to : {8, 4, 2}) {
      for (const bool is_values : {false, true}) {
        cases_.push_back({.name = fmt::format("16 -> {}, {}", to, is_values ? "values" : "keys"),
                          .is_values = is_values,
                          .from_bits = 16,
                          .to_bits = to});
      }
    }
    cases_.push_back({.name = "8 -> 4, the 8 MiB of one step", .source_bytes = kStepBytes});
    for (Case& item : cases_) {
      ThrowIfCancelled(options_.cancel, "bench");
      Measure(item);
    }
  }

  const std::vector<Case>& cases() const { return cases_; }
  const internal::CopyCeiling& ceiling() const { return ceiling_; }

 private:
  size_t PageBytes(int bits) const {
    return static_cast<size_t>(shape_.heads) *
           static_cast<size_t>(fragment::BlockBytes(bits, static_cast<int>(shape_.head_dim)));
  }

  // Slots in no order, as halving leaves them.
  std::vector<PageMove> MakeMoves(const Case& item) const {
    const size_t metadata =
        static_cast<size_t>(shape_.heads) * static_cast<size_t>(fragment::MetadataBytes());
    std::vector<size_t> order(static_cast<size_t>(item.num_pages));
    std::iota(order.begin(), order.end(), size_t{0});
    std::mt19937 random(1);
    std::vector<PageMove> moves(order.size());
    std::shuffle(order.begin(), order.end(), random);
    for (size_t i = 0; i < order.size(); ++i)
      moves[i].source = order[i] * PageBytes(item.from_bits);
    std::shuffle(order.begin(), order.end(), random);
    for (size_t i = 0; i < order.size(); ++i) {
      moves[i].target = item.way == Way::kInPlace
                            ? moves[i].source
                            : kSourceBytes + order[i] * PageBytes(item.to_bits);
      moves[i].metadata = kSourceBytes + kSourceBytes / 2 + order[i] * metadata;
    }
    return moves;
  }

  void Launch(const Case& item, const std::vector<PageMove>& moves) {
    FragmentPageShape shape = shape_;
    shape.is_values = item.is_values;
    if (item.from_bits == 16) {
      QuantizePages(shape, DType::kF16, item.to_bits, moves, arena_.data(),
                    reinterpret_cast<uint32_t*>(unfit_.data()), 0, stream_);
    } else if (item.way == Way::kInPlace) {
      HalvePagesInPlace(shape, item.from_bits, item.to_bits, moves, arena_.data(), stream_);
    } else {
      HalvePages(shape, item.from_bits, item.to_bits, moves, arena_.data(), stream_);
    }
  }

  void Measure(Case& item) {
    item.num_pages = static_cast<int64_t>(item.source_bytes / PageBytes(item.from_bits));
    const auto pages = static_cast<double>(item.num_pages);
    item.moved_bytes =
        pages * static_cast<double>(PageBytes(item.from_bits) + PageBytes(item.to_bits));
    if (item.from_bits == 16) {
      item.moved_bytes += pages * static_cast<double>(shape_.heads * fragment::MetadataBytes());
    }
    const std::vector<PageMove> moves = MakeMoves(item);
    // Codes or floats; halving in place leaves codes, too.
    internal::FillWithPattern(stream_, arena_.data(), kSourceBytes,
                              item.from_bits == 16 ? internal::NormalHalves(kPatternBytes, 1.0f)
                                                   : internal::RandomCodes(kPatternBytes));
    // Many pages several times over, so that the start of the work costs little; a step's once.
    const int launches = item.source_bytes == kStepBytes ? 1 : kLaunches;
    CapturedWork work(stream_, [&] {
      for (int i = 0; i < launches; ++i) Launch(item, moves);
    });
    for (int round = -2; round < options_.repeat; ++round) {
      // Other memory through the second-level cache; it measures the ceiling meanwhile.
      ceiling_.Measure(stream_);
      const double us = internal::TimeOnStream(stream_, [&] { work.Launch(stream_); });
      if (round >= 0) item.microseconds.Add(us / launches);
    }
  }

  const BenchOptions& options_;
  FragmentPageShape shape_;
  Stream stream_;
  internal::CopyCeiling ceiling_;
  Buffer arena_;
  Buffer unfit_;
  std::vector<Case> cases_;
};

}  // namespace

BenchReport BenchCudaHalving(const BenchOptions& options, DeviceId device) {
  internal::CheckOptions(options);
  const DeviceInfo info = Query(device);
  const ModelConfig config = internal::ShapeOf(options, 1);
  CudaHalving bench(options, device, config);
  bench.Run();
  const Spread copy = bench.ceiling().gb_per_s().ToSpread();

  BenchReport report = internal::NewReport(options, "halve", config);
  report.facts.Add("device", info.name, "device");
  report.facts.AddSpread("copy_gb_per_s", copy, "copies GB/s (r+w)", 0);
  BenchTable table{"rows", "pages to fewer bits", {}};
  for (const Case& item : bench.cases()) {
    const Spread us = item.microseconds.ToSpread();
    const double gb_per_s = item.moved_bytes / us.median * 1e-3;
    BenchFields row;
    row.Add("step", item.name, "step").Add("pages", item.num_pages, "pages");
    row.AddSpread("us", us, "us", 1);
    row.Add("gb_per_s", gb_per_s, "GB/s (r+w)", 0);
    row.Add("of_copy", gb_per_s / copy.median, "of copy");
    table.rows.push_back(std::move(row));
  }
  report.tables.push_back(std::move(table));
  report.notes.push_back("bytes: codes or floats read and written, metadata written");
  return report;
}

}  // namespace pmkvq
