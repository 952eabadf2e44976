#include "pmkvq/kv/packed/slot_layout.h"

#include <algorithm>
#include <map>
#include <numeric>

#include "pmkvq/base/aligned.h"
#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"
#include "pmkvq/kernels/kv_quant/fragment_layout.h"

namespace pmkvq {
namespace {

// Of the largest page, in an extent.
constexpr int64_t kMostPages = 16;
// SlotAllocator's limit.
constexpr size_t kMostSlotsPerExtent = 0x7ffe;

// Extents are multiples of whole cache lines.
size_t RoundUp(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

// K, or V, of the sink's rest beyond its whole pieces, in one block.
size_t SinkRestBytes(const CacheConfig& config, const KvStream& stream) {
  return static_cast<size_t>(config.sink_tokens % kPageTokens * stream.values()) *
         SizeOf(config.float_type);
}

// The least common multiple of the blocks' 16-bit pages: every page and its metadata are even parts
// of it (codes by powers of two, metadata by G / 2), so full extents have no rest. Where that is
// more than kMostPages of the largest page, so many of these; a rest is then less than one part in
// kMostPages.
int64_t ExtentBytes(const CacheConfig& config) {
  std::vector<int64_t> pages;
  for (const KvBlockGeometry& block : config.geometry.blocks) {
    for (const KvStream& stream : block.streams) {
      pages.push_back(PageCodeBytes(stream, config.float_type, 16));
    }
  }
  const int64_t most = kMostPages * *std::max_element(pages.begin(), pages.end());
  int64_t multiple = 1;
  for (const int64_t page : pages) {
    const int64_t factor = page / std::gcd(multiple, page);
    if (factor > most / multiple) return most;
    multiple *= factor;
  }
  return multiple;
}

class LayoutMaker {
 public:
  explicit LayoutMaker(const CacheConfig& config) : config_(config) {
    layout_.extent_bytes = static_cast<size_t>(ExtentBytes(config));
  }

  SlotLayout Make() {
    for (const KvBlockGeometry& block : config_.geometry.blocks) {
      layout_.blocks.emplace_back();
      if (block.has_cache()) AddPages(block, layout_.blocks.back());
    }
    const size_t num_page_classes = layout_.slot_bytes.size();
    std::map<size_t, int> sink_classes;
    for (size_t layer = 0; layer < layout_.blocks.size(); ++layer) {
      if (config_.geometry.blocks[layer].has_cache()) AddSink(layer, sink_classes);
    }
    layout_.num_extents = PageExtents(num_page_classes) + SinkExtents();
    return std::move(layout_);
  }

 private:
  int NewClass(size_t bytes) {
    if (layout_.extent_bytes / bytes > kMostSlotsPerExtent) {
      throw Unsupported("kv cache", "found blocks whose pages differ too much in size");
    }
    layout_.slot_bytes.push_back(bytes);
    return static_cast<int>(layout_.slot_bytes.size()) - 1;
  }

  int ClassOf(int64_t bytes, std::map<size_t, int>& classes) {
    const auto [found, is_new] = classes.try_emplace(static_cast<size_t>(bytes), 0);
    if (is_new) found->second = NewClass(static_cast<size_t>(bytes));
    return found->second;
  }

  void AddPages(const KvBlockGeometry& block, BlockSlots& slots) {
    for (const Side side : kSides) {
      const KvStream& stream = block.streams[side];
      StreamSlots& pages = slots.sides[side];
      pages.axis = side == kKeys ? config_.k_axis : QuantAxis::kToken;
      pages.side = side;
      for (const int bits : kWidths) {
        const size_t width = WidthIndex(bits);
        pages.page_bytes[width] = PageBytes(stream, config_.float_type, bits, pages.axis);
        pages.code_class[width] =
            ClassOf(PageCodeBytes(stream, config_.float_type, bits), code_classes_);
      }
      pages.metadata_class =
          ClassOf(PageMetadataBytes(stream, config_.float_type, 8, pages.axis), metadata_classes_);
    }
  }

  void AddSink(size_t layer, std::map<size_t, int>& classes) {
    SinkSlots& sink = layout_.blocks[layer].sink;
    sink.bytes = SinkBytes(config_, layer);
    std::array<size_t, 2> room{};
    for (const Side side : kSides) {
      room[side] = SinkRestBytes(config_, config_.geometry.blocks[layer].streams[side]);
      sink.rest_bytes += room[side];
      if (config_.device.device == Device::kCuda) {
        room[side] = RoundUp(room[side], fragment::kArenaUnit);
      }
    }
    if (sink.rest_bytes == 0) return;
    sink.rest_stride = room[kKeys];
    const size_t both = room[kKeys] + room[kValues];
    sink.num_rest_slots = both > layout_.extent_bytes ? 2 : 1;
    const size_t bytes =
        RoundUp(sink.num_rest_slots == 1 ? both : std::max(room[kKeys], room[kValues]), kAlignment);
    const auto [found, is_new] = classes.try_emplace(bytes, 0);
    if (is_new) found->second = NewClass(bytes);
    sink.rest_class = found->second;
  }

  int64_t SlotsPerExtent(size_t slot_class) const {
    return static_cast<int64_t>(layout_.extent_bytes / layout_.slot_bytes[slot_class]);
  }

  // Most bytes that pages take, of all sequences.
  int64_t MostPageBytes() const {
    if (config_.pool.bytes > 0) return config_.pool.bytes;
    int64_t bytes = 0;
    for (size_t layer = 0; layer < layout_.blocks.size(); ++layer) {
      const auto sink_rests = static_cast<int64_t>(layout_.blocks[layer].sink.rest_bytes);
      bytes += (config_.budget_bytes[layer] - sink_rests) * config_.max_sequences;
    }
    return bytes;
  }

  // For pages and metadata, by the guarantee of slot_allocator.h.
  int64_t PageExtents(size_t num_page_classes) const {
    const int64_t bytes = MostPageBytes();
    int64_t partial = 0;
    auto full_extent = static_cast<int64_t>(layout_.extent_bytes);
    for (size_t i = 0; i < num_page_classes; ++i) {
      const int64_t slots = SlotsPerExtent(i);
      if (slots > 1) ++partial;
      full_extent = std::min(full_extent, slots * static_cast<int64_t>(layout_.slot_bytes[i]));
    }
    return bytes / full_extent + partial;
  }

  // Rests of sinks leave much of an extent empty: they get extents of their own and are taken out
  // of the budgets' part.
  int64_t SinkExtents() const {
    std::map<int, int64_t> slots;  // By class.
    for (const BlockSlots& block : layout_.blocks) {
      if (block.sink.num_rest_slots == 0) continue;
      slots[block.sink.rest_class] += block.sink.num_rest_slots * config_.max_sequences;
    }
    int64_t extents = 0;
    for (const auto& [slot_class, count] : slots) {
      const int64_t per_extent = SlotsPerExtent(static_cast<size_t>(slot_class));
      extents += (count + per_extent - 1) / per_extent;
    }
    return extents;
  }

  const CacheConfig& config_;
  SlotLayout layout_;
  // By bytes. Apart, so that a page that is quantised finds room for both (slot_allocator.h).
  std::map<size_t, int> code_classes_;
  std::map<size_t, int> metadata_classes_;
};

}  // namespace

SlotLayout MakeSlotLayout(const CacheConfig& config) { return LayoutMaker(config).Make(); }

int64_t ArenaBytes(const CacheConfig& config) {
  const SlotLayout layout = MakeSlotLayout(config);
  return static_cast<int64_t>(layout.extent_bytes) * layout.num_extents;
}

}  // namespace pmkvq
