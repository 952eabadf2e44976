#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <utility>

#include "pmkvq/base/error.h"
#include "pmkvq/kernels/attention/decode_attention.h"
#include "pmkvq/kernels/attention/latent_decode.h"
#include "pmkvq/kv/cache_config.h"
#include "pmkvq/research/bench/bench_cuda.h"
#include "pmkvq/research/bench/cuda_memory.h"
#include "pmkvq/research/bench/rounds.h"
#include "pmkvq/tensor/device/device_info.h"

namespace pmkvq {
namespace {

using internal::UploadValues;

constexpr size_t kPatternBytes = size_t{16} << 20;
// Caches in turn have so many bytes together, and there are at least two: none of it is in the
// second-level cache when its turn comes.
constexpr double kColdBytes = 400e6;
constexpr KvBits kMixed = {0, 0};  // In place of widths.

// Of page p of n, oldest first.
int MixedBits(int64_t p, int64_t n) {
  const double age = static_cast<double>(n - 1 - p) / static_cast<double>(n);
  return age < 0.01 ? 16 : age < 0.11 ? 8 : age < 0.50 ? 4 : 2;
}

struct Case {
  int64_t batch;
  int64_t depth;
  KvBits bits;  // Or kMixed.
  double read_bytes = 0;
  Measurements microseconds = {};
};

class CudaAttention {
 public:
  CudaAttention(const BenchOptions& options, DeviceId device, const KvBlockGeometry& block)
      : options_(options), stream_(device), ceiling_(device), block_(block) {
    if (block.is_latent()) {
      latents_.num_heads = block.num_heads;
      latents_.latent = block.latent_width();
      latents_.rope = block.rope_width();
      CheckLatentDecodeShape(latents_, device);
      return;
    }
    shape_.num_heads = block.num_heads;
    shape_.num_kv_heads = block.k().heads;
    shape_.head_dim = block.k().width;
    shape_.scale = 1.0f / std::sqrt(static_cast<float>(block.k().width));
    shape_.keys_by_channel = options.keys_by_channel;
  }

  void Run(std::vector<KvBits> widths, bool mixed) {
    if (mixed) widths.push_back(kMixed);
    MakeArena(widths);
    if (options_.progress != nullptr) {
      options_.progress->Begin(
          "attention",
          std::ssize(options_.batches) * std::ssize(options_.depths) * std::ssize(widths), 0);
    }
    for (const int64_t batch : options_.batches) {
      for (const int64_t depth : options_.depths) {
        for (const KvBits& bits : widths) {
          ThrowIfCancelled(options_.cancel, "bench");
          Measure(batch, depth, bits);
          if (options_.progress != nullptr) options_.progress->Advance(1);
        }
      }
    }
    if (options_.progress != nullptr) options_.progress->End();
  }

  const std::vector<Case>& cases() const { return cases_; }
  const internal::CopyCeiling& ceiling() const { return ceiling_; }

 private:
  int64_t NumPages(int64_t depth) const { return std::max<int64_t>(1, depth / 128); }
  // Of K and V, or of c and k_r, which is never halved below CacheConfig's floor.
  PageBits WidthsOf(const KvBits& bits) const {
    const int second =
        block_.is_latent() ? std::max(bits.v, CacheConfig().rope_floor_bits) : bits.v;
    return {static_cast<uint8_t>(bits.k), static_cast<uint8_t>(second)};
  }
  static size_t CodeBytes(const KvStream& stream, int bits) {
    return static_cast<size_t>(stream.heads) *
           static_cast<size_t>(fragment::BlockBytes(bits, static_cast<int>(stream.width)));
  }
  size_t KeyMetadataBytes() const {
    const KvStream& k = block_.k();
    return static_cast<size_t>(k.heads *
                               int64_t{options_.keys_by_channel
                                           ? fragment::MetadataBytes(static_cast<int>(k.width))
                                           : fragment::MetadataBytes()});
  }
  size_t ValueMetadataBytes() const {
    return static_cast<size_t>(block_.v().heads * int64_t{fragment::MetadataBytes()});
  }
  // Of page p of n.
  KvBits BitsOf(const KvBits& bits, int64_t p, int64_t n) const {
    if (bits != kMixed) return bits;
    return {MixedBits(p, n), MixedBits(p, n)};
  }

  // Bytes of one cache: floats, codes, metadata.
  struct Areas {
    size_t floats = 0;
    size_t codes = 0;
    size_t metadata = 0;
    size_t total() const { return floats + codes + metadata; }
  };
  Areas AreasOf(int64_t batch, int64_t depth, const KvBits& bits) const {
    Areas areas;
    const int64_t n = NumPages(depth);
    for (int64_t p = 0; p < n; ++p) {
      const PageBits widths = WidthsOf(BitsOf(bits, p, n));
      (widths.k == 16 ? areas.floats : areas.codes) += CodeBytes(block_.k(), widths.k);
      (widths.v == 16 ? areas.floats : areas.codes) += CodeBytes(block_.v(), widths.v);
      if (widths.k != 16) areas.metadata += KeyMetadataBytes();
      if (widths.v != 16) areas.metadata += ValueMetadataBytes();
    }
    const auto sequences = static_cast<size_t>(batch);
    return {areas.floats * sequences, areas.codes * sequences, areas.metadata * sequences};
  }
  static int64_t NumCaches(const Areas& areas) {
    return std::max<int64_t>(
        2, static_cast<int64_t>(std::ceil(kColdBytes / static_cast<double>(areas.total()))));
  }

  // One arena for all cases: floats, codes and metadata of the largest.
  void MakeArena(const std::vector<KvBits>& widths) {
    for (const int64_t batch : options_.batches) {
      for (const int64_t depth : options_.depths) {
        for (const KvBits& bits : widths) {
          const Areas areas = AreasOf(batch, depth, bits);
          const auto caches = static_cast<size_t>(NumCaches(areas));
          arena_areas_.floats = std::max(arena_areas_.floats, areas.floats * caches);
          arena_areas_.codes = std::max(arena_areas_.codes, areas.codes * caches);
          arena_areas_.metadata = std::max(arena_areas_.metadata, areas.metadata * caches);
        }
      }
    }
    const size_t free_bytes = Query(stream_.device()).free_bytes;
    if (arena_areas_.total() > free_bytes) {
      throw InvalidInput(NameOf(stream_.device()),
                         fmt::format("the pages take {} bytes, found {} free; give fewer --batch "
                                     "or --depth",
                                     arena_areas_.total(), free_bytes));
    }
    arena_ = std::make_unique<Buffer>(stream_.device(), arena_areas_.total());
    std::byte* at = arena_->data();
    internal::FillWithPattern(stream_, at, arena_areas_.floats,
                              internal::NormalHalves(kPatternBytes, 1.5f));
    at += arena_areas_.floats;
    internal::FillWithPattern(stream_, at, arena_areas_.codes,
                              internal::RandomCodes(kPatternBytes));
    at += arena_areas_.codes;
    internal::FillWithPattern(stream_, at, arena_areas_.metadata,
                              internal::RandomMetadata(kPatternBytes));
  }

  // Device arrays of one cache.
  struct Cache {
    std::unique_ptr<Buffer> entries;
    std::unique_ptr<Buffer> bits;
  };
  Cache MakeCache(int64_t index, int64_t batch, int64_t depth, const KvBits& bits) {
    const Areas areas = AreasOf(batch, depth, bits);
    const auto turn = static_cast<size_t>(index);
    size_t floats = turn * areas.floats;
    size_t codes = arena_areas_.floats + turn * areas.codes;
    size_t metadata = arena_areas_.floats + arena_areas_.codes + turn * areas.metadata;
    const int64_t n = NumPages(depth);
    std::vector<PageEntry> entries;
    std::vector<PageBits> widths;
    const auto take = [](size_t& at, size_t bytes) {
      const auto units = static_cast<uint32_t>(at / fragment::kArenaUnit);
      at += bytes;
      return units;
    };
    for (int64_t s = 0; s < batch; ++s) {
      for (int64_t p = 0; p < n; ++p) {
        const PageBits both = WidthsOf(BitsOf(bits, p, n));
        PageEntry entry;
        entry.k = take(both.k == 16 ? floats : codes, CodeBytes(block_.k(), both.k));
        entry.v = take(both.v == 16 ? floats : codes, CodeBytes(block_.v(), both.v));
        if (both.k != 16) entry.k_metadata = take(metadata, KeyMetadataBytes());
        if (both.v != 16) entry.v_metadata = take(metadata, ValueMetadataBytes());
        entries.push_back(entry);
        widths.push_back(both);
      }
    }
    return {UploadValues(stream_, entries), UploadValues(stream_, widths)};
  }

  void Measure(int64_t batch, int64_t depth, const KvBits& bits) {
    shape_.has_unlike_widths = bits == kMixed;
    const Areas areas = AreasOf(batch, depth, bits);
    const int64_t num_caches = NumCaches(areas);
    const int64_t n = NumPages(depth);
    // Scores with a standard deviation of 2; those of latents are not scaled.
    const float q_scale =
        block_.is_latent() ? 1.0f / std::sqrt(static_cast<float>(latents_.key_values())) : 1.0f;
    const Buffer q(stream_.device(), static_cast<size_t>(batch * block_.q_values()) * 2);
    internal::FillWithPattern(stream_, q.data(), q.num_bytes(),
                              internal::NormalHalves(q.num_bytes(), q_scale * 2.0f / 1.5f));
    const Buffer out(stream_.device(),
                     static_cast<size_t>(batch * block_.out_values()) * sizeof(float));
    const Buffer scratch(stream_.device(), block_.is_latent()
                                               ? LatentDecodeScratchBytes(latents_, batch, n)
                                               : DecodeScratchBytes(shape_, batch, n));
    const auto num_tokens = UploadValues(
        stream_, std::vector<int32_t>(static_cast<size_t>(batch), static_cast<int32_t>(n * 128)));
    std::vector<Cache> caches;
    for (int64_t i = 0; i < num_caches; ++i) caches.push_back(MakeCache(i, batch, depth, bits));
    // Long enough to be measured well: all caches, and 200 us at the speed of memory.
    const double at_ceiling_us = static_cast<double>(areas.total()) / 4e6;
    const int64_t launches = std::max<int64_t>(
        num_caches, static_cast<int64_t>(std::ceil(200.0 / (at_ceiling_us + 10.0))));
    CapturedWork work(stream_, [&] {
      for (int64_t i = 0; i < launches; ++i) {
        const Cache& cache = caches[static_cast<size_t>(i % num_caches)];
        DecodeOperands operands;
        operands.q = q.data();
        operands.out = reinterpret_cast<float*>(out.data());
        operands.arena = arena_->data();
        operands.entries = reinterpret_cast<const PageEntry*>(cache.entries->data());
        operands.bits = reinterpret_cast<const PageBits*>(cache.bits->data());
        operands.num_tokens = reinterpret_cast<const int32_t*>(num_tokens->data());
        operands.num_sequences = batch;
        operands.max_pages = n;
        if (block_.is_latent()) {
          RunLatentDecode(latents_, operands, scratch.view(), stream_);
        } else {
          RunDecodeAttention(shape_, operands, scratch.view(), stream_);
        }
      }
    });
    Case item{.batch = batch, .depth = n * 128, .bits = bits};
    item.read_bytes = static_cast<double>(areas.total());
    for (int round = -2; round < options_.repeat; ++round) {
      const double us = internal::TimeOnStream(stream_, [&] { work.Launch(stream_); });
      if (round >= 0) item.microseconds.Add(us / static_cast<double>(launches));
    }
    ceiling_.Measure(stream_);
    cases_.push_back(std::move(item));
  }

  const BenchOptions& options_;
  Stream stream_;
  internal::CopyCeiling ceiling_;
  const KvBlockGeometry block_;
  DecodeShape shape_;          // Of keys and values,
  LatentDecodeShape latents_;  // or of latents.
  Areas arena_areas_;
  std::unique_ptr<Buffer> arena_;
  std::vector<Case> cases_;
};

}  // namespace

BenchReport BenchCudaAttention(const BenchOptions& options, DeviceId device, bool mixed) {
  internal::CheckOptions(options);
  const DeviceInfo info = Query(device);
  const KvGeometry geometry = internal::AttentionGeometry(options);
  CudaAttention bench(options, device, geometry.blocks.front());
  bench.Run(internal::AttentionWidths(options, geometry), mixed);
  const Spread copy = bench.ceiling().gb_per_s().ToSpread();

  BenchReport report = internal::NewAttentionReport(options, geometry);
  report.facts.Add("device", info.name, "device");
  report.facts.AddSpread("copy_gb_per_s", copy, "copies GB/s (r+w)", 0);
  BenchTable table{"rows", "decode attention of one block, all sequences at once", {}};
  for (const Case& item : bench.cases()) {
    const Spread us = item.microseconds.ToSpread();
    const double gb_per_s = item.read_bytes / us.median * 1e-3;
    BenchFields row;
    row.Add("batch", item.batch, "batch").Add("depth", item.depth, "depth");
    row.Add("bits", item.bits == kMixed ? std::string("mixed") : internal::NameOfWidths(item.bits),
            "bits");
    row.AddSpread("us", us, "us", 1);
    row.Add("read_gb_per_s", gb_per_s, "GB/s", 0);
    row.Add("of_copy", gb_per_s / copy.median, "of copy");
    table.rows.push_back(std::move(row));
  }
  report.tables.push_back(std::move(table));
  report.notes.push_back(
      "bytes: codes, floats and metadata of all pages, each read once; both launches are counted");
  if (HasLatents(geometry)) {
    report.notes.push_back(fmt::format(
        "bits: those of latents; their rope part has {} or more, as a cache keeps it unless told",
        CacheConfig().rope_floor_bits));
  }
  return report;
}

}  // namespace pmkvq
