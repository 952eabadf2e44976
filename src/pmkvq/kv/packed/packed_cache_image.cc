// Sequences of a packed cache as plain data, and back.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "pmkvq/base/error.h"
#include "pmkvq/io/hash.h"
#include "pmkvq/kv/packed/packed_cache.h"

namespace pmkvq {
namespace {

constexpr int64_t kMostTokens = int64_t{1} << 40;

bool IsBetween(const PageWidths& lowest, const PageWidths& widths, const PageWidths& highest) {
  return lowest.k <= widths.k && widths.k <= highest.k && lowest.v <= widths.v &&
         widths.v <= highest.v;
}

bool IsWidth(int64_t bits) {
  return std::find(kWidths.begin(), kWidths.end(), bits) != kWidths.end();
}

std::string TextOf(const PageWidths& widths) {
  return fmt::format("{}/{} bits", widths.k, widths.v);
}

std::string HashOf(const KeyScales* scales, const KvGeometry& geometry) {
  if (scales == nullptr) return "none";
  Hash128 hash;
  for (int64_t layer = 0; layer < geometry.num_layers(); ++layer) {
    const KvBlockGeometry& block = geometry.block(layer);
    if (!block.has_cache()) continue;
    size_t count = 1;
    for (const int64_t size : KeyScales::ShapeOf(block)) count *= static_cast<size_t>(size);
    hash.Update(scales->key_factors(layer), count * sizeof(float));
  }
  return hash.HexDigest();
}

// Everything that what is stored, and what becomes of it, depends on.
std::vector<ImageSetting> SettingsOf(const CacheConfig& config) {
  std::vector<ImageSetting> settings;
  const auto add = [&](const std::string& name, const auto& value) {
    settings.push_back({name, fmt::format("{}", value)});
  };
  add("model shape", Describe(config.geometry));
  add("float type", NameOf(config.float_type));
  add("sink tokens", config.sink_tokens);
  add("window tokens", config.window_tokens);
  add("policy", NameOf(config.policy));
  add("bytes halved per token", config.most_bytes_per_token);
  add("groups of keys", config.k_axis == QuantAxis::kToken ? "token" : "channel");
  add("rotated keys", config.rotate_keys);
  add("rotated values", config.rotate_values);
  add("key scales", HashOf(config.key_scales.get(), config.geometry));
  for (size_t layer = 0; layer < config.geometry.blocks.size(); ++layer) {
    if (!config.geometry.blocks[layer].has_cache()) continue;
    add(fmt::format("width at which pages of block {} close", layer),
        TextOf(CloseWidths(config, layer)));
    add(fmt::format("floor of block {}", layer), TextOf(FloorWidths(config, layer)));
    add(fmt::format("planned width of block {}", layer), TextOf(PlannedWidths(config, layer)));
    add(fmt::format("budget bytes of block {}", layer), config.budget_bytes[layer]);
  }
  return settings;
}

void CheckSettings(const CacheConfig& config, const SequenceImage& image,
                   const std::string& where) {
  const std::vector<ImageSetting> ours = SettingsOf(config);
  for (size_t i = 0; i < std::max(ours.size(), image.settings.size()); ++i) {
    if (i >= ours.size() || i >= image.settings.size() || ours[i].name != image.settings[i].name) {
      throw InvalidInput(where,
                         fmt::format("setting {}: found {}, expected {}", i,
                                     i < image.settings.size() ? image.settings[i].name : "none",
                                     i < ours.size() ? ours[i].name : "none"));
    }
    if (ours[i].value != image.settings[i].value) {
      throw InvalidInput(where,
                         fmt::format("{}: found {}, expected {}, as this cache has it; open it "
                                     "with the settings that it was saved with",
                                     ours[i].name, image.settings[i].value, ours[i].value));
    }
  }
}

// Zeroes the rows of floats [heads, capacity, row_bytes] from `num_tokens` on.
void ZeroRowsBehind(std::byte* data, const KvStream& stream, int64_t capacity, int64_t num_tokens,
                    size_t float_bytes) {
  const auto row = static_cast<size_t>(stream.width) * float_bytes;
  const auto first = static_cast<size_t>(std::clamp<int64_t>(num_tokens, 0, capacity));
  for (int64_t head = 0; head < stream.heads; ++head) {
    std::byte* begin = data + static_cast<size_t>(head * capacity) * row;
    std::memset(begin + first * row, 0, (static_cast<size_t>(capacity) - first) * row);
  }
}

}  // namespace

std::optional<SequenceImage> PackedKvCache::ImageOf(SequenceId id) const {
  const Sequence& seq = At(id);
  PMKVQ_CHECK_MSG(!IsInForward(seq) && seq.reserved_tokens == 0, "a Forward is missing");
  if (seq.failure || config_.pool.bytes > 0) return std::nullopt;
  const size_t float_bytes = SizeOf(config_.float_type);
  SequenceImage image;
  image.settings = SettingsOf(config_);
  image.num_tokens = seq.num_tokens;
  image.peak_bytes = seq.peak_bytes;
  image.narrowed_bytes = seq.narrowed_bytes;
  image.blocks.resize(seq.blocks.size());
  std::optional<PageReads> device_reads;
  if (store_.stream() != nullptr) {
    device_reads.emplace(*store_.stream(), static_cast<size_t>(seq.bytes));
  }
  PageReads* const reads = device_reads ? &*device_reads : nullptr;
  for (const size_t layer : cached_layers_) {
    const BlockPages& block = seq.blocks[layer];
    SequenceImage::Block& out = image.blocks[layer];
    out.num_freed = static_cast<int64_t>(block.num_freed);
    for (const PagePair& pair : block.pages) out.pages.push_back(WidthsOf(pair));
    for (const Side side : kSides) {
      const KvStream& stream = config_.geometry.blocks[layer].streams[side];
      std::vector<std::byte>& bytes = out.bytes[side];
      bytes.reserve(static_cast<size_t>(block.bytes));
      struct Floats {
        size_t first_byte;
        int64_t capacity;
        int64_t num_tokens;
      };
      std::vector<Floats> cut;  // Rows behind the tokens are zeroed when all is read.
      const auto more = [&](size_t count) {
        PMKVQ_CHECK(bytes.size() + count <= bytes.capacity());  // Reads go on meanwhile.
        bytes.resize(bytes.size() + count);
        return &*(bytes.end() - static_cast<std::ptrdiff_t>(count));
      };
      const auto more_floats = [&](int64_t capacity) {
        return more(static_cast<size_t>(capacity * stream.values()) * float_bytes);
      };
      for (int64_t piece = 0; !block.sink.empty() && piece < store_.num_sink_pieces(); ++piece) {
        const int64_t capacity = store_.SinkPieceTokens(piece);
        cut.push_back({bytes.size(), capacity, seq.num_tokens - piece * kPageTokens});
        store_.ReadSink(block, layer, piece, side, more_floats(capacity), reads);
      }
      for (size_t i = block.num_freed; i < block.pages.size(); ++i) {
        const StoredPage& page = block.pages[i][side];
        if (page.bits == 16) {
          cut.push_back(
              {bytes.size(), kPageTokens,
               seq.num_tokens - config_.sink_tokens - static_cast<int64_t>(i) * kPageTokens});
          store_.ReadPage(layer, side, page, more_floats(kPageTokens), reads);
          continue;
        }
        store_.ReadPage(layer, side, page, more(store_.CodeBytes(layer, side, page.bits)), reads);
        store_.ReadMetadata(layer, side, page, more(store_.MetadataBytes(layer, side)), reads);
      }
      if (reads != nullptr) reads->Finish();
      for (const Floats& floats : cut) {
        ZeroRowsBehind(bytes.data() + floats.first_byte, stream, floats.capacity, floats.num_tokens,
                       float_bytes);
      }
    }
    // What was planned for the page that is open now is of no use any more.
    if (seq.next.is_planned && !seq.next.widths.empty()) out.next_pages = seq.next.widths[layer];
  }
  image.next_is_planned = seq.next.is_planned;
  if (!seq.next.is_planned) return image;
  image.next_opened_at = seq.next.opened_at;
  for (size_t i = seq.next.num_done; i < seq.next.steps.size(); ++i) {
    const AheadStep& step = seq.next.steps[i];
    image.next_steps.push_back(
        {static_cast<int64_t>(step.layer), static_cast<int64_t>(step.narrow.page),
         static_cast<int64_t>(step.narrow.side), step.narrow.bits, step.tokens_before});
  }
  return image;
}

// What other functions rely on: page counts by length, widths in their limits, bytes in their
// budgets.
void PackedKvCache::CheckImage(const SequenceImage& image, const std::string& where) const {
  CheckSettings(config_, image, where);
  const auto check = [&](bool holds, const char* field, int64_t found,
                         const std::string& expected) {
    if (!holds) {
      throw InvalidInput(where, fmt::format("{}: found {}, expected {}", field, found, expected));
    }
  };
  check(image.blocks.size() == shapes_.size(), "blocks", std::ssize(image.blocks),
        fmt::format("{}", shapes_.size()));
  check(image.num_tokens >= 0 && image.num_tokens <= kMostTokens, "num_tokens", image.num_tokens,
        fmt::format("0 to {}", kMostTokens));
  check(image.next_opened_at >= 0 && image.next_opened_at <= kMostTokens, "next_opened_at",
        image.next_opened_at, fmt::format("0 to {}", kMostTokens));
  check(image.narrowed_bytes >= 0, "narrowed_bytes", image.narrowed_bytes, "0 or more");
  for (const size_t layer : cached_layers_) CheckImageBlock(image, layer, where);
  CheckImageSteps(image, where);
}

void PackedKvCache::CheckImageBlock(const SequenceImage& image, size_t layer,
                                    const std::string& where) const {
  const SequenceImage::Block& block = image.blocks[layer];
  const auto fail = [&](const std::string& message) {
    throw InvalidInput(where, fmt::format("block {}: {}", layer, message));
  };
  const auto num_pages = static_cast<size_t>(NumPages(config_, image.num_tokens));
  if (block.pages.size() != num_pages) {
    fail(fmt::format("found {} pages, expected {} for {} tokens", block.pages.size(), num_pages,
                     image.num_tokens));
  }
  const int64_t most_freed = FirstSeenPage(config_, layer, image.num_tokens);
  if (block.num_freed < 0 || block.num_freed > most_freed) {
    fail(fmt::format("found {} freed pages, expected at most {}", block.num_freed, most_freed));
  }
  const auto first = static_cast<size_t>(block.num_freed);
  const PageWidths floor = FloorWidths(config_, layer);
  const PageWidths close = CloseWidths(config_, layer);
  const PageWidths open = {16, 16};
  int64_t bytes = image.num_tokens > 0 ? SinkBytes(config_, layer) : 0;
  std::array<int64_t, 2> side_bytes{};
  for (const Side side : kSides) {
    const KvStream& stream = config_.geometry.blocks[layer].streams[side];
    side_bytes[side] = image.num_tokens > 0 ? config_.sink_tokens * stream.values() *
                                                  static_cast<int64_t>(SizeOf(config_.float_type))
                                            : 0;
  }
  for (size_t i = first; i < num_pages; ++i) {
    const PageWidths& widths = block.pages[i];
    const bool fits = i + 1 == num_pages ? widths == open
                                         : IsWidth(widths.k) && IsWidth(widths.v) &&
                                               IsBetween(floor, Narrower(widths, close), close);
    if (!fits) fail(fmt::format("page {}: found {}", i, TextOf(widths)));
    for (const Side side : kSides) {
      const int64_t page =
          store_.SlotsOf(layer, side).page_bytes[WidthIndex(WidthOf(widths, side))];
      bytes += page;
      side_bytes[side] += page;
    }
  }
  if (bytes > config_.budget_bytes[layer]) {
    fail(fmt::format("found {} bytes, expected at most {}", bytes, config_.budget_bytes[layer]));
  }
  for (const Side side : kSides) {
    const int64_t found = std::ssize(block.bytes[side]);
    if (found == side_bytes[side]) continue;
    fail(fmt::format("{}: found {} bytes, expected {}", side == kKeys ? "keys" : "values", found,
                     side_bytes[side]));
  }
  if (block.next_pages.empty()) return;

  // Widths decided for one page more: the present ones or less, and within the budget.
  BlockLimits limits = LimitsOf(layer);
  limits.fixed_bytes = SinkBytes(config_, layer);
  // Pages that are freed when the page is opened mean nothing.
  const auto first_seen = static_cast<size_t>(FirstSeenPage(config_, layer, image.next_opened_at));
  bool fits = block.next_pages.size() == num_pages + 1 && block.next_pages.back() == open &&
              first <= first_seen && first_seen <= num_pages;
  std::vector<PageWidths> decided;
  for (size_t i = first_seen; fits && i <= num_pages; ++i) decided.push_back(block.next_pages[i]);
  for (size_t i = first_seen; fits && i < num_pages; ++i) {
    const PageWidths& widths = block.next_pages[i];
    fits = IsWidth(widths.k) && IsWidth(widths.v) &&
           IsBetween(floor, Narrower(widths, close), close) &&
           Narrower(widths, block.pages[i]) == widths;
  }
  if (!fits || BytesOf(limits, decided) > limits.budget_bytes) {
    fail("the widths decided for its next page are none that a cache decides on");
  }
}

void PackedKvCache::CheckImageSteps(const SequenceImage& image, const std::string& where) const {
  const auto fail = [&](const std::string& message) {
    throw InvalidInput(where, "halvings ahead: " + message);
  };
  bool has_next = false;
  for (const size_t layer : cached_layers_) has_next |= !image.blocks[layer].next_pages.empty();
  for (const size_t layer : cached_layers_) {
    if (has_next == image.blocks[layer].next_pages.empty()) fail("found for some blocks only");
  }
  if (!image.next_is_planned && (has_next || !image.next_steps.empty()))
    fail("found, expected none");
  if (image.next_is_planned && config_.policy != PolicyKind::kOldestFirst) {
    fail("found, expected none with this policy");
  }
  int64_t tokens_before = kPageTokens;
  std::vector<std::vector<std::array<bool, 2>>> seen(image.blocks.size());
  for (size_t layer = 0; layer < seen.size(); ++layer)
    seen[layer].resize(image.blocks[layer].pages.size());
  for (size_t i = 0; i < image.next_steps.size(); ++i) {
    const ImageAheadStep& step = image.next_steps[i];
    const bool has_page =
        step.layer >= 0 && step.layer < std::ssize(image.blocks) && step.page >= 0 &&
        (step.side == 0 || step.side == 1) &&
        step.page < std::ssize(image.blocks[static_cast<size_t>(step.layer)].next_pages) - 1 -
                        config_.window_tokens / kPageTokens;
    if (!has_page) fail(fmt::format("step {}: no such page", i));
    const SequenceImage::Block& block = image.blocks[static_cast<size_t>(step.layer)];
    const auto page = static_cast<size_t>(step.page);
    const auto side = static_cast<Side>(step.side);
    bool& is_seen = seen[static_cast<size_t>(step.layer)][page][side];
    const bool fits = step.page >= block.num_freed &&
                      step.bits == WidthOf(block.next_pages[page], side) &&
                      step.bits < WidthOf(block.pages[page], side) && !is_seen &&
                      step.tokens_before >= 0 && step.tokens_before <= tokens_before;
    if (!fits)
      fail(fmt::format("step {}: found {} bits, {} tokens before", i, step.bits,
                       step.tokens_before));
    tokens_before = step.tokens_before;
    is_seen = true;
  }
}

std::optional<SequenceId> PackedKvCache::OpenImage(const SequenceImage& image,
                                                   const std::string& where) {
  if (config_.pool.bytes > 0) {
    throw Unsupported(where, "a cache whose sequences share a pool takes up no saved sequence");
  }
  CheckImage(image, where);
  const std::optional<SequenceId> id = Open();
  if (!id) return std::nullopt;
  Sequence& seq = At(*id);
  for (const size_t layer : cached_layers_) {
    const SequenceImage::Block& from = image.blocks[layer];
    BlockPages& block = seq.blocks[layer];
    if (image.num_tokens > 0) store_.AllocateSink(seq, layer);
    block.pages.resize(from.pages.size());
    block.num_freed = static_cast<size_t>(from.num_freed);
    for (const Side side : kSides) {
      const KvStream& stream = config_.geometry.blocks[layer].streams[side];
      const std::byte* source = from.bytes[side].data();
      for (int64_t piece = 0; !block.sink.empty() && piece < store_.num_sink_pieces(); ++piece) {
        store_.WriteSink(block, layer, piece, side, source);
        source += static_cast<size_t>(store_.SinkPieceTokens(piece) * stream.values()) *
                  SizeOf(config_.float_type);
      }
      for (size_t i = block.num_freed; i < from.pages.size(); ++i) {
        const int bits = WidthOf(from.pages[i], side);
        store_.Allocate(seq, layer, i, side, bits);
        const StoredPage& page = block.pages[i][side];
        store_.WritePage(layer, side, page, source);
        source += store_.CodeBytes(layer, side, bits);
        if (bits == 16) continue;
        store_.WriteMetadata(layer, side, page, source);
        source += store_.MetadataBytes(layer, side);
      }
    }
    UpdatePresentWidths(block, layer);
  }
  seq.num_tokens = image.num_tokens;
  seq.peak_bytes = std::max(seq.bytes, image.peak_bytes);
  seq.narrowed_bytes = image.narrowed_bytes;
  seq.next.is_planned = image.next_is_planned;
  seq.next.opened_at = image.next_opened_at;
  if (!cached_layers_.empty() && !image.blocks[cached_layers_[0]].next_pages.empty()) {
    for (const SequenceImage::Block& block : image.blocks)
      seq.next.widths.push_back(block.next_pages);
  }
  for (const ImageAheadStep& step : image.next_steps) {
    seq.next.steps.push_back({static_cast<size_t>(step.layer),
                              {static_cast<size_t>(step.page), static_cast<Side>(step.side),
                               static_cast<int>(step.bits), 0},
                              step.tokens_before});
  }
  return id;
}

}  // namespace pmkvq
