#include "pmkvq/kv/packed/page_store.h"

#include <algorithm>
#include <cstring>

#include "pmkvq/base/check.h"
#include "pmkvq/kernels/linalg/hadamard.h"

namespace pmkvq {
namespace {

size_t LargestPage(const CacheConfig& config) {
  int64_t most = 0;
  for (const KvBlockGeometry& block : config.geometry.blocks) {
    for (const KvStream& stream : block.streams) {
      most = std::max(most, PageCodeBytes(stream, config.float_type, 16));
    }
  }
  return static_cast<size_t>(most);
}

}  // namespace

PageStore::PageStore(const CacheConfig& config)
    : config_(config),
      layout_(MakeSlotLayout(config)),
      slots_(layout_.extent_bytes, layout_.num_extents, layout_.slot_bytes),
      stream_(config.device.device == Device::kCpu ? nullptr
                                                   : std::make_unique<Stream>(config.device)),
      staged_page_bytes_(stream_ == nullptr ? 0 : LargestPage(config)),
      arena_(config.device,
             slots_.arena_bytes() + static_cast<size_t>(kStagedPages) * staged_page_bytes_) {
  size_t most_values = 0;
  for (size_t layer = 0; layer < layout_.blocks.size(); ++layer) {
    const KvBlockGeometry& block = config.geometry.blocks[layer];
    const auto codec_of = [&](Side side) {
      return PageCodec(block.has_cache() ? block.streams[side] : KvStream{}, config.float_type);
    };
    codecs_.push_back({codec_of(kKeys), codec_of(kValues)});
    for (const PageCodec& codec : codecs_.back()) {
      most_values = std::max(most_values, static_cast<size_t>(codec.num_values()));
    }
  }
  values_.resize(most_values);
  if (stream_ == nullptr) return;
  // Reserving for all sequences takes a word of each block, and a few more where pages are halved
  // ahead: so none is read before the Forward ends that the tokens were reserved for.
  constexpr size_t kWordsPerBlock = 8;
  const size_t words =
      kWordsPerBlock * layout_.blocks.size() * static_cast<size_t>(config.max_sequences);
  unfit_words_ = std::make_unique<UnfitWords<UnfitOwner>>(words, *stream_);
}

size_t PageStore::WavePages() const {
  constexpr size_t kMostWavePages = 32;
  return std::clamp<size_t>(8 * static_cast<size_t>(config_.num_threads), 8, kMostWavePages);
}

SlotHandle PageStore::AllocateSlot(int slot_class) {
  const SlotHandle slot = slots_.Allocate(slot_class);
  PMKVQ_CHECK_MSG(slot != kNoSlot, "the arena is smaller than its budgets");
  return slot;
}

void PageStore::Account(SequencePages& seq, size_t layer, int64_t bytes) {
  seq.blocks[layer].bytes += bytes;
  seq.bytes += bytes;
  seq.peak_bytes = std::max(seq.peak_bytes, seq.bytes);
  ++seq.layout;
}

void PageStore::CountUsed(int64_t bytes) {
  used_bytes_ += bytes;
  peak_used_bytes_ = std::max(peak_used_bytes_, used_bytes_);
  PMKVQ_DCHECK(config_.pool.bytes == 0 || used_bytes_ <= config_.pool.bytes);
}

void PageStore::Allocate(SequencePages& seq, size_t layer, size_t page, Side side, int bits) {
  BlockPages& block = seq.blocks[layer];
  StoredPage& stored = block.pages[page][side];
  PMKVQ_DCHECK(stored.data == kNoSlot);
  const StreamSlots& slots = SlotsOf(layer, side);
  stored.bits = bits;
  stored.data = AllocateSlot(slots.code_class[WidthIndex(bits)]);
  if (bits < 16) {
    stored.axis = slots.axis;
    stored.metadata = AllocateSlot(slots.metadata_class);
  }
  ++block.page_counts[side][WidthIndex(bits)];
  Account(seq, layer, slots.page_bytes[WidthIndex(bits)]);
  CountUsed(slots.page_bytes[WidthIndex(bits)]);
}

// Adds the moves of releases to plan_ and executes it. `layer` is that of the pages whose widths
// change.
std::optional<UnfitPage> PageStore::MoveBytes(size_t layer, uint32_t* unfit_word) {
  PlanMoves(slots_, plan_);
  const ExecContext exec = stream_ == nullptr ? ExecContext(config_.num_threads)
                                              : ExecContext(config_.num_threads, *stream_);
  const BlockCodecs codecs(codec(layer, kKeys), codec(layer, kValues),
                           config_.geometry.blocks[layer].is_latent());
  const std::optional<UnfitPage> unfit =
      ExecuteMoves(plan_, codecs, arena_.view(), exec, unfit_word);
  plan_.Clear();
  return unfit;
}

// Leaves moves behind, as all that begin with Drop.
void PageStore::DropPage(SequencePages& seq, size_t layer, size_t page, Side side) {
  BlockPages& block = seq.blocks[layer];
  StoredPage& stored = block.pages[page][side];
  if (stored.data == kNoSlot) return;
  const int64_t bytes = PageBytesOf(layer, side, stored.bits);
  DropPageOwner(stored, bytes);
  --block.page_counts[side][WidthIndex(stored.bits)];
  Account(seq, layer, -bytes);
  stored = StoredPage{};
}

void PageStore::DropPagesFrom(SequencePages& seq, size_t layer, size_t first) {
  std::vector<PagePair>& pages = seq.blocks[layer].pages;
  for (size_t page = first; page < pages.size(); ++page) {
    for (const Side side : kSides) DropPage(seq, layer, page, side);
  }
  pages.resize(std::min(first, pages.size()));
  seq.blocks[layer].num_freed = std::min(seq.blocks[layer].num_freed, pages.size());
}

void PageStore::FreeBefore(SequencePages& seq, size_t layer, size_t end) {
  BlockPages& block = seq.blocks[layer];
  if (end <= block.num_freed) return;
  for (; block.num_freed < end; ++block.num_freed) {
    for (const Side side : kSides) DropPage(seq, layer, block.num_freed, side);
  }
  MoveBytes(layer);
}

void PageStore::Release(SequencePages& seq, size_t layer, size_t page, Side side) {
  DropPage(seq, layer, page, side);
  MoveBytes(layer);
}

void PageStore::ReleaseFrom(SequencePages& seq, size_t layer, size_t first) {
  DropPagesFrom(seq, layer, first);
  MoveBytes(layer);
}

void PageStore::AllocateSink(SequencePages& seq, size_t layer) {
  if (config_.sink_tokens == 0) return;
  std::vector<SlotHandle>& sink = seq.blocks[layer].sink;
  const SinkSlots& slots = layout_.blocks[layer].sink;
  for (int64_t i = 0; i < config_.sink_tokens / kPageTokens; ++i) {
    for (const Side side : kSides) {
      sink.push_back(AllocateSlot(SlotsOf(layer, side).code_class[WidthIndex(16)]));
    }
  }
  for (int i = 0; i < slots.num_rest_slots; ++i) sink.push_back(AllocateSlot(slots.rest_class));
  Account(seq, layer, slots.bytes);
  CountUsed(slots.bytes);
}

void PageStore::DropSink(SequencePages& seq, size_t layer) {
  std::vector<SlotHandle>& sink = seq.blocks[layer].sink;
  if (sink.empty()) return;
  // The first slot stands for all of them.
  DropOwner(sink.front(), layout_.blocks[layer].sink.bytes);
  for (const SlotHandle slot : std::span(sink).subspan(1)) slots_.Release(slot);
  sink.clear();
  Account(seq, layer, -layout_.blocks[layer].sink.bytes);
}

void PageStore::ReleaseSink(SequencePages& seq, size_t layer) {
  DropSink(seq, layer);
  MoveBytes(layer);
}

// In order of addresses: extents then become free one after the other, and few slots have to move.
void PageStore::Narrow(std::span<SequencePages* const> readers, size_t layer,
                       std::span<NarrowStep> steps) {
  const auto owned = [&](SequencePages& reader, const NarrowStep& step) -> StoredPage* {
    StoredPage& stored = reader.blocks[layer].pages[step.page][step.side];
    return stored.data == kNoSlot ? nullptr : &stored;
  };
  // Of the entries that own the page, the first one, and the others.
  const auto first_of = [&](const NarrowStep& step) {
    StoredPage* first = nullptr;
    for (SequencePages* const reader : readers) {
      if (first == nullptr) first = owned(*reader, step);
    }
    PMKVQ_DCHECK(first != nullptr);
    return first;
  };
  for (NarrowStep& step : steps) step.offset = slots_.Offset(first_of(step)->data);
  std::sort(steps.begin(), steps.end(),
            [](const NarrowStep& a, const NarrowStep& b) { return a.offset < b.offset; });
  uint32_t* unfit_word = nullptr;
  changes_.clear();
  sharers_.clear();
  sharers_.reserve(steps.size() * readers.size());  // Spans of it are handed out.
  std::vector<SlotHandle> kept_slots;
  for (const NarrowStep& step : steps) {
    StoredPage* const first = first_of(step);
    if (unfit_word == nullptr && first->bits == 16) {
      unfit_word = TakeUnfitWord(*readers.front(), layer, step.page);
    }
    const size_t begin = sharers_.size();
    for (SequencePages* const reader : readers) {
      StoredPage* const stored = owned(*reader, step);
      if (stored == nullptr || stored == first) continue;
      PMKVQ_DCHECK(stored->data == first->data);
      sharers_.push_back(stored);
    }
    if (step.kept != nullptr) {
      StoredPage& kept =
          step.kept->blocks[layer].pages[step.page - step.kept->first_page][step.side];
      PMKVQ_DCHECK(kept.data == first->data);
      sharers_.push_back(&kept);
      kept_slots.push_back(kept.data);
    }
    changes_.push_back(
        {first, step.bits, &SlotsOf(layer, step.side), std::span(sharers_).subspan(begin)});
  }
  PlanNarrowing(changes_, WavePages(), slots_, plan_);
  for (const SlotHandle slot : kept_slots) --KeptReferences(slot);
  for (size_t i = 0; i < plan_.num_waves(); ++i) {
    for (const PageOp& op : plan_.wave(i)) {
      if (op.kind == PageOpKind::kCopy) continue;
      const NarrowStep& step = steps[op.page];
      const int64_t bytes =
          PageBytesOf(layer, step.side, op.to_bits) - PageBytesOf(layer, step.side, op.from_bits);
      for (SequencePages* const reader : readers) {
        if (owned(*reader, step) == nullptr) continue;
        AccountNarrowed(*reader, layer, step.side, op.from_bits, op.to_bits);
      }
      if (step.kept != nullptr) {
        ++KeptReferences(changes_[op.page].page->data);
        step.kept->bytes += bytes;
        step.kept->bits = std::min<int>(step.kept->bits, op.to_bits);
        kept_bytes_ += bytes;
      }
      narrowed_bytes_ += static_cast<int64_t>(CodeBytes(layer, step.side, op.from_bits));
      CountUsed(bytes);
    }
  }
  if (const std::optional<UnfitPage> unfit = MoveBytes(layer, unfit_word)) {
    const NarrowStep& step = steps[unfit->page];
    for (SequencePages* const reader : readers) {
      SetRangeFailure(*reader, layer, step.page, step.side, unfit->group);
    }
    if (step.kept != nullptr) step.kept->bits = 0;
  }
}

uint32_t* PageStore::TakeUnfitWord(SequencePages& seq, size_t layer, size_t first_page) {
  if (unfit_words_ == nullptr) return nullptr;
  if (unfit_words_->is_full()) SettleUnfit();
  return unfit_words_->Take({&seq, layer, first_page});
}

void PageStore::LaunchUnfitCopy() {
  if (!unfit_words_->is_empty()) unfit_words_->LaunchCopy();
}

void PageStore::TakeUnfit() {
  if (unfit_words_->is_empty()) return;
  for (const UnfitOwner& owner : unfit_words_->Read()) {
    if (owner.seq->failure) continue;
    const int64_t first = config_.sink_tokens + static_cast<int64_t>(owner.page) * kPageTokens;
    owner.seq->failure =
        KvFailure{KvWhere(static_cast<int64_t>(owner.layer), first, first + kPageTokens - 1),
                  UnfitOnDeviceMessage("range of a group of values")};
  }
}

void PageStore::SettleUnfit() {
  if (unfit_words_ == nullptr || unfit_words_->is_empty()) return;
  LaunchUnfitCopy();
  stream_->Synchronize();
  TakeUnfit();
}

const char* PageStore::NameOf(size_t layer, Side side) const {
  if (config_.geometry.blocks[layer].is_latent()) return side == kKeys ? "latent" : "rope key";
  return side == kKeys ? "key" : "value";
}

std::optional<KvFailure> PageStore::FindUnfitValue(size_t layer, Side side, const float* rows,
                                                   int64_t num_rows, int64_t first) const {
  const int64_t kv_dim = config_.geometry.blocks[layer].streams[side].values();
  if (codec(layer, side).AllFit(rows, num_rows * kv_dim)) return std::nullopt;
  int64_t i = 0;
  while (codec(layer, side).AllFit(rows + i, 1)) ++i;
  const int64_t position = first + i / kv_dim;
  return KvFailure{KvWhere(static_cast<int64_t>(layer), position, position),
                   UnfitValueMessage(NameOf(layer, side), rows[i], config_.float_type)};
}

void PageStore::SetRangeFailure(SequencePages& seq, size_t layer, size_t page, Side side,
                                const UnfitGroup& group) const {
  if (seq.failure) return;
  const int64_t first =
      config_.sink_tokens + static_cast<int64_t>(page) * kPageTokens + group.first_token;
  seq.failure = KvFailure{
      KvWhere(static_cast<int64_t>(layer), first, first + group.num_tokens - 1),
      UnfitRangeMessage(NameOf(layer, side), group.lowest, group.highest, config_.float_type)};
}

void PageStore::AccountNarrowed(SequencePages& seq, size_t layer, Side side, int from_bits,
                                int to_bits) {
  PagesPerWidth& counts = seq.blocks[layer].page_counts[side];
  --counts[WidthIndex(from_bits)];
  ++counts[WidthIndex(to_bits)];
  const StreamSlots& slots = SlotsOf(layer, side);
  const auto read = static_cast<int64_t>(CodeBytes(layer, side, from_bits));
  seq.narrowed_bytes += read;
  Account(seq, layer,
          slots.page_bytes[WidthIndex(to_bits)] - slots.page_bytes[WidthIndex(from_bits)]);
}

void PageStore::Reopen(SequencePages& seq, size_t layer, size_t page, Side side) {
  BlockPages& block = seq.blocks[layer];
  StoredPage& stored = block.pages[page][side];
  const StreamSlots& slots = SlotsOf(layer, side);
  const int old_bits = stored.bits;
  PlanExpanding(stored, slots, slots_, plan_);
  --block.page_counts[side][WidthIndex(old_bits)];
  ++block.page_counts[side][WidthIndex(16)];
  const int64_t bytes = slots.page_bytes[WidthIndex(16)] - slots.page_bytes[WidthIndex(old_bits)];
  Account(seq, layer, bytes);
  CountUsed(bytes);
  MoveBytes(layer);
}

void PageStore::ReleaseAll(SequencePages& seq) {
  SettleUnfit();  // Its words must not speak of the sequence that comes after it.
  for (size_t layer = 0; layer < seq.blocks.size(); ++layer) {
    DropPagesFrom(seq, layer, 0);
    seq.blocks[layer].open_rows_moved = {};
    DropSink(seq, layer);
  }
  seq.columns.clear();
  MoveBytes(0);
}

KvTensorView PageStore::View(const StoredPage& page) const {
  return {Data(page), Metadata(page), page.bits, page.axis};
}

std::byte* PageStore::SinkData(const BlockPages& block, size_t layer, int64_t piece,
                               Side side) const {
  const auto first_slot = static_cast<size_t>(2 * piece);
  if (first_slot + 1 < block.sink.size()) return At(block.sink[first_slot + side]);
  return At(block.sink[first_slot]) +
         (side == kValues ? layout_.blocks[layer].sink.rest_stride : 0);
}

KvTensorView PageStore::SinkView(const BlockPages& block, size_t layer, int64_t piece,
                                 Side side) const {
  return {SinkData(block, layer, piece, side), nullptr, 16, QuantAxis::kToken};
}

FragmentPageShape PageStore::FragmentShape(size_t layer, Side side) const {
  const KvBlockGeometry& block = config_.geometry.blocks[layer];
  const KvStream& stream = block.streams[side];
  return {stream.heads, stream.width, side == kValues && !block.is_latent(),
          side == kKeys && config_.k_axis == QuantAxis::kChannel};
}

void PageStore::ReadBytes(size_t layer, Side side, int bits, const std::byte* from, size_t count,
                          std::byte* out, PageReads* reads) const {
  if (stream_ == nullptr) {
    std::memcpy(out, from, count);
    return;
  }
  if (reads != nullptr) return reads->Add(FragmentShape(layer, side), bits, from, count, out);
  std::vector<std::byte> fragments(bits == 0 ? 0 : count);
  CopyToHost(*stream_, bits == 0 ? out : fragments.data(), from, count);
  stream_->Synchronize();
  if (bits == 0) return;
  FragmentsToPlanes(FragmentShape(layer, side), bits, fragments.data(), out);
}

void PageStore::WriteBytes(size_t layer, Side side, int bits, const std::byte* in, size_t count,
                           std::byte* to) {
  if (stream_ == nullptr) {
    std::memcpy(to, in, count);
    return;
  }
  std::vector<std::byte> fragments(bits == 0 ? 0 : count);
  if (bits != 0) {
    PlanesToFragments(FragmentShape(layer, side), bits, in, fragments.data());
  }
  CopyToDevice(*stream_, to, bits == 0 ? in : fragments.data(), count);
  stream_->Synchronize();
}

void PageStore::ReadPage(size_t layer, Side side, const StoredPage& page, std::byte* out,
                         PageReads* reads) const {
  ReadBytes(layer, side, page.bits, Data(page), CodeBytes(layer, side, page.bits), out, reads);
}
void PageStore::WritePage(size_t layer, Side side, const StoredPage& page, const std::byte* in) {
  WriteBytes(layer, side, page.bits, in, CodeBytes(layer, side, page.bits), Data(page));
}

void PageStore::ReadMetadata(size_t layer, Side side, const StoredPage& page, std::byte* out,
                             PageReads* reads) const {
  ReadBytes(layer, side, 0, Metadata(page), MetadataBytes(layer, side), out, reads);
}
void PageStore::WriteMetadata(size_t layer, Side side, const StoredPage& page,
                              const std::byte* in) {
  WriteBytes(layer, side, 0, in, MetadataBytes(layer, side), Metadata(page));
}

size_t PageStore::SinkPieceBytes(size_t layer, int64_t piece, Side side) const {
  const int64_t values = config_.geometry.blocks[layer].streams[side].values();
  return static_cast<size_t>(SinkPieceTokens(piece) * values) * SizeOf(config_.float_type);
}

// Whole pieces are pages.
void PageStore::ReadSink(const BlockPages& block, size_t layer, int64_t piece, Side side,
                         std::byte* out, PageReads* reads) const {
  ReadBytes(layer, side, SinkPieceTokens(piece) == kPageTokens ? 16 : 0,
            SinkData(block, layer, piece, side), SinkPieceBytes(layer, piece, side), out, reads);
}
void PageStore::WriteSink(const BlockPages& block, size_t layer, int64_t piece, Side side,
                          const std::byte* in) {
  WriteBytes(layer, side, SinkPieceTokens(piece) == kPageTokens ? 16 : 0, in,
             SinkPieceBytes(layer, piece, side), SinkData(block, layer, piece, side));
}

void PageStore::AddViews(const BlockPages& block, size_t layer,
                         std::vector<KvPageView>& views) const {
  for (int64_t piece = 0; !block.sink.empty() && piece < num_sink_pieces(); ++piece) {
    views.push_back({SinkView(block, layer, piece, kKeys), SinkView(block, layer, piece, kValues)});
  }
  views.resize(views.size() + block.num_freed);
  for (size_t page = block.num_freed; page < block.pages.size(); ++page) {
    views.push_back({View(block.pages[page][kKeys]), View(block.pages[page][kValues])});
  }
}

void PageStore::AddPageTokens(int64_t num_tokens, std::vector<PageTokens>& pages) const {
  int64_t rest = num_tokens;
  const auto add = [&](int64_t capacity) {
    const int64_t count = std::min(rest, capacity);
    pages.push_back({static_cast<int32_t>(count), static_cast<int32_t>(capacity)});
    rest -= count;
  };
  for (int64_t piece = 0; rest > 0 && piece < num_sink_pieces(); ++piece) {
    add(SinkPieceTokens(piece));
  }
  while (rest > 0) add(kPageTokens);
}

// A page's, or a piece's, bytes in the CPU's layout become its values.
void PageStore::ReadTokens(const SequencePages& seq, size_t layer, int64_t num_tokens, float* k_out,
                           float* v_out) const {
  const KvBlockGeometry& geometry = config_.geometry.blocks[layer];
  PMKVQ_CHECK_MSG(geometry.has_cache(), "a block without cache");
  const BlockPages& block = seq.blocks[layer];
  std::vector<PageTokens> pages;
  AddPageTokens(num_tokens, pages);
  const int64_t num_pieces =
      std::min<int64_t>(block.sink.empty() ? 0 : num_sink_pieces(), std::ssize(pages));
  for (const Side side : kSides) {
    const KvStream& stream = geometry.streams[side];
    std::vector<float> values(static_cast<size_t>(codec(layer, side).num_values()));
    std::vector<std::byte> bytes(CodeBytes(layer, side, 16));
    std::vector<std::byte> metadata;
    float* const begin = side == kKeys ? k_out : v_out;
    float* out = begin;
    for (int64_t i = 0; i < std::ssize(pages); ++i) {
      const PageTokens& page = pages[static_cast<size_t>(i)];
      const int64_t in_table = i - num_pieces;
      KvTensorView view{bytes.data(), nullptr, 16, QuantAxis::kToken};
      if (in_table < 0) {
        ReadSink(block, layer, i, side, bytes.data());
      } else if (in_table < static_cast<int64_t>(block.num_freed)) {
        view.data = nullptr;
      } else {
        const StoredPage& stored = block.pages[static_cast<size_t>(in_table)][side];
        ReadPage(layer, side, stored, bytes.data());
        view.bits = stored.bits;
        view.axis = stored.axis;
        if (stored.bits < 16) {
          metadata.resize(MetadataBytes(layer, side));
          ReadMetadata(layer, side, stored, metadata.data());
          view.metadata = metadata.data();
        }
      }
      if (view.data == nullptr) {
        std::fill(values.begin(), values.end(), 0.0f);
      } else {
        codec(layer, side).Decode(view, page.capacity, values.data());
      }
      for (int64_t token = 0; token < page.num_tokens; ++token) {
        for (int64_t head = 0; head < stream.heads; ++head) {
          const float* run = values.data() + (head * page.capacity + token) * stream.width;
          out = std::copy(run, run + stream.width, out);
        }
      }
    }
    if (side == kKeys ? config_.rotate_keys : config_.rotate_values) {
      HadamardHeads(begin, out - begin, geometry.is_latent() ? stream.values() : stream.width);
    }
  }
}

KvSequenceStats StatsOf(const SequencePages& seq, int64_t num_tokens,
                        std::span<const int64_t> budget_bytes) {
  KvSequenceStats stats;
  stats.num_tokens = num_tokens;
  stats.bytes = seq.bytes;
  stats.peak_bytes = seq.peak_bytes;
  stats.narrowed_bytes = seq.narrowed_bytes;
  for (size_t layer = 0; layer < seq.blocks.size(); ++layer) {
    stats.budget_bytes += budget_bytes[layer];
    for (const Side side : kSides) {
      for (size_t i = 0; i < kWidths.size(); ++i) {
        stats.pages[i] += seq.blocks[layer].page_counts[side][i];
      }
    }
  }
  return stats;
}

KvLayerStats StatsOf(const BlockPages& block, int64_t budget_bytes) {
  return {block.page_counts[kKeys], block.page_counts[kValues], block.bytes, budget_bytes};
}

}  // namespace pmkvq
