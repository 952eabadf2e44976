#include "pmkvq/kv/packed/device_side.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cstring>

#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"
#include "pmkvq/kernels/device_rows/device_rows.h"
#include "pmkvq/kv/packed/device_side_detail.h"

namespace pmkvq {

using device_detail::As;
using device_detail::LatentShapeOnDevice;
using device_detail::ShapeOf;
using device_detail::SinkOf;

namespace {

// Launches of decode attention take so many sequences, and captured ones are made for as many.
constexpr int64_t kRowsUnit = 64;
// What is uploaded for each step of few sequences is for so many of them.
constexpr int64_t kFewRowsUnit = 8;

uint64_t NextId() {
  static std::atomic<uint64_t> next{1};
  return next.fetch_add(1);
}

}  // namespace

void CheckDeviceCache(const CacheConfig& config) {
  for (size_t layer = 0; layer < config.geometry.blocks.size(); ++layer) {
    const KvBlockGeometry& block = config.geometry.blocks[layer];
    if (!block.has_cache()) continue;
    if (block.is_latent()) {
      CheckLatentDecodeShape(LatentShapeOnDevice(config, layer), config.device);
    } else {
      internal::CheckDecodeShape(ShapeOf(config, layer), config.device);
    }
  }
  PMKVQ_CHECK_MSG(config.max_len > 0, "a cache on a device needs the longest sequence");
}

DeviceSide::DeviceSide(const CacheConfig& config, PageStore& store)
    : config_(config), store_(store), gemm_(config.device) {
  sink_ = SinkOf(config);
  max_pages_ = config.max_len / kPageTokens + 2;
  const int64_t num_rows = config.geometry.num_layers() * config.max_sequences;
  const auto num_entries = static_cast<size_t>(num_rows * max_pages_);
  entries_ = NewBuffer(num_entries * sizeof(PageEntry));
  bits_ = NewBuffer(num_entries * sizeof(PageBits));
  known_entries_.resize(num_entries);
  known_bits_.resize(num_entries);
  for (const std::unique_ptr<Buffer>* buffer : {&entries_, &bits_}) {
    FillOnDevice(stream(), (*buffer)->data(), 0, (*buffer)->num_bytes());
  }
  std::fill(known_bits_.begin(), known_bits_.end(), PageBits{0, 0});
  sink_rests_ = NewBuffer(static_cast<size_t>(num_rows) * 2 * sizeof(uint32_t));
  known_rests_ = std::make_unique<PinnedBuffer>(config.device, sink_rests_->num_bytes());
  std::memset(known_rests_->data(), 0, known_rests_->num_bytes());
  UploadKeyScales();
  PrepareRows(config.max_sequences, 1);
}

std::unique_ptr<Buffer> DeviceSide::NewBuffer(size_t num_bytes) const {
  return std::make_unique<Buffer>(config_.device, std::max<size_t>(num_bytes, 1));
}

const float* DeviceSide::Factors(int64_t layer, int kind) const {
  if (factors_ == nullptr) return nullptr;
  return As<const float>(
      factors_,
      factor_offsets_[static_cast<size_t>(layer)][static_cast<size_t>(kind)] * sizeof(float));
}

void DeviceSide::UploadKeyScales() {
  if (config_.key_scales == nullptr) return;
  std::vector<float> values;
  for (int64_t layer = 0; layer < config_.geometry.num_layers(); ++layer) {
    const KvBlockGeometry& block = config_.geometry.block(layer);
    std::array<size_t, 2>& offsets = factor_offsets_.emplace_back();
    if (!block.has_cache()) continue;
    const auto add = [&](const float* factors, int64_t count, size_t& offset) {
      offset = values.size();
      values.insert(values.end(), factors, factors + count);
    };
    // Of latents a factor for each channel, which all heads share.
    const bool is_latent = block.is_latent();
    add(config_.key_scales->query_factors(layer), is_latent ? block.values() : block.q_values() / 2,
        offsets[0]);
    add(config_.key_scales->key_factors(layer), is_latent ? block.values() : block.k().values() / 2,
        offsets[1]);
  }
  factors_ = NewBuffer(values.size() * sizeof(float));
  CopyToDevice(stream(), factors_->data(), values.data(), values.size() * sizeof(float));
  stream().Synchronize();
}

void DeviceSide::PrepareRows(int64_t decode_rows) { PrepareRows(decode_rows, most_chunks_); }

// Whatever throws leaves the memory that there was.
void DeviceSide::PrepareRows(int64_t decode_rows, int64_t num_chunks) {
  if (decode_rows <= most_rows_ && num_chunks <= most_chunks_) return;
  const auto round_up = [](int64_t count) {
    return count <= kFewRowsUnit ? kFewRowsUnit : (count + kRowsUnit - 1) / kRowsUnit * kRowsUnit;
  };
  const int64_t most_rows = std::max(most_rows_, round_up(decode_rows));
  const int64_t most_chunks = std::max(most_chunks_, round_up(num_chunks));
  stream().Synchronize();  // Launches read what is given back here.
  const auto rows = static_cast<size_t>(most_rows);
  const size_t row_bytes =
      2 * sizeof(int32_t) + config_.geometry.blocks.size() * sizeof(AppendTarget);
  auto row_memory = NewBuffer(rows * row_bytes);
  auto row_staging = std::make_unique<PinnedBuffer>(config_.device, rows * row_bytes);
  auto unfit = NewBuffer((rows + 2 * static_cast<size_t>(most_chunks)) * sizeof(uint32_t));
  auto unfit_staging = std::make_unique<PinnedBuffer>(config_.device, unfit->num_bytes());
  size_t scratch = 0;
  int64_t most_q = 0;
  for (size_t layer = 0; layer < config_.geometry.blocks.size(); ++layer) {
    const KvBlockGeometry& block = config_.geometry.blocks[layer];
    if (!block.has_cache()) continue;
    const size_t needed =
        block.is_latent()
            ? LatentDecodeScratchBytes(LatentShapeOnDevice(config_, layer), most_rows, max_pages_)
            : DecodeScratchBytes(ShapeOf(config_, layer), most_rows, max_pages_);
    scratch = std::max(scratch, needed);
    most_q = std::max(most_q, block.q_values());
  }
  auto decode_scratch = NewBuffer(scratch);
  auto rounded_q = NewBuffer(rows * static_cast<size_t>(most_q) * 2);
  FillOnDevice(stream(), rounded_q->data(), 0, rounded_q->num_bytes());
  most_rows_ = most_rows;
  most_chunks_ = most_chunks;
  row_memory_ = std::move(row_memory);
  row_staging_ = std::move(row_staging);
  unfit_ = std::move(unfit);
  unfit_staging_ = std::move(unfit_staging);
  decode_scratch_ = std::move(decode_scratch);
  rounded_q_ = std::move(rounded_q);
  id_ = NextId();
}

size_t DeviceSide::TableIndex(size_t layer, int64_t row) const {
  return (layer * static_cast<size_t>(config_.max_sequences) + static_cast<size_t>(row)) *
         static_cast<size_t>(max_pages_);
}

uint32_t DeviceSide::UnitsOf(size_t offset) const {
  PMKVQ_DCHECK(offset % fragment::kArenaUnit == 0);
  return static_cast<uint32_t>(offset / fragment::kArenaUnit);
}

uint32_t DeviceSide::SinkUnits(const BlockPages& block, size_t layer, int64_t piece,
                               Side side) const {
  return UnitsOf(static_cast<size_t>(store_.SinkData(block, layer, piece, side) - store_.arena()));
}

void DeviceSide::Begin(std::span<const Chunk> chunks) {
  if (is_open_) stream().Synchronize();  // A Forward that was broken off still reads the staging.
  is_open_ = true;
  has_looked_ = false;
  chunks_.assign(chunks.begin(), chunks.end());
  num_decode_rows_ = 0;
  int64_t num_long = 0;
  for (const Chunk& chunk : chunks_) {
    if (chunk.is_decoding) {
      PMKVQ_CHECK(num_long == 0);
      num_decode_rows_ += chunk.num_tokens;
    } else {
      ++num_long;
    }
  }
  PrepareRows(num_decode_rows_, num_long);
  if (!patches_.empty()) {  // Of a Forward that ran out of memory.
    FlushPatches();
    stream().Synchronize();
  }
  for (const Chunk& chunk : chunks_) UpdateTables(chunk);
  FlushPatches();
  FillRows();
  FillOnDevice(stream(), unfit_->data(), 0xff, unfit_->num_bytes());
}

void DeviceSide::UpdateTables(const Chunk& chunk) {
  for (size_t layer = 0; layer < chunk.seq->blocks.size(); ++layer) {
    if (!config_.geometry.blocks[layer].has_cache()) continue;
    BlockPages& block = chunk.seq->blocks[layer];
    const uint64_t generation = store_.slots().generation();
    if (block.views_layout == chunk.seq->layout && block.views_generation == generation) continue;
    UpdateTable(chunk, layer);
    block.views_layout = chunk.seq->layout;
    block.views_generation = generation;
  }
}

// As attention reads the sequence before the Forward: whole pieces of the sink, then pages.
void DeviceSide::UpdateTable(const Chunk& chunk, size_t layer) {
  const BlockPages& block = chunk.seq->blocks[layer];
  const int64_t num_pieces = block.sink.empty() ? 0 : sink_.piece_tokens / kPageTokens;
  PMKVQ_CHECK_MSG(num_pieces + std::ssize(block.pages) <= max_pages_,
                  "a sequence is longer than the cache was made for");
  size_t index = TableIndex(layer, chunk.table_row);
  for (int64_t piece = 0; piece < num_pieces; ++piece) {
    SetEntry(index++,
             {SinkUnits(block, layer, piece, kKeys), SinkUnits(block, layer, piece, kValues), 0, 0},
             {16, 16});
  }
  const int64_t open_page = NumPages(config_, chunk.num_before) - 1;
  for (int64_t i = 0; i < std::ssize(block.pages); ++i) {
    std::array<const StoredPage*, 2> sides{};
    for (const Side side : kSides) {
      const bool is_moved = i == open_page && block.open_rows_moved[side];
      sides[side] =
          is_moved ? &block.pages.back()[side] : &block.pages[static_cast<size_t>(i)][side];
    }
    const auto units = [&](SlotHandle slot) {
      return slot == kNoSlot ? 0 : UnitsOf(store_.slots().Offset(slot));
    };
    const StoredPage& k = *sides[kKeys];
    const StoredPage& v = *sides[kValues];
    SetEntry(index++, {units(k.data), units(v.data), units(k.metadata), units(v.metadata)},
             {static_cast<uint8_t>(k.bits), static_cast<uint8_t>(v.bits)});
  }
  if (sink_.rest_tokens == 0 || block.sink.empty()) return;
  auto* const rests = reinterpret_cast<uint32_t*>(known_rests_->data()) +
                      2 * (layer * static_cast<size_t>(config_.max_sequences) +
                           static_cast<size_t>(chunk.table_row));
  for (const Side side : kSides) {
    const uint32_t units = SinkUnits(block, layer, store_.num_sink_pieces() - 1, side);
    rests_changed_ |= rests[side] != units;
    rests[side] = units;
  }
}

void DeviceSide::SetEntry(size_t index, const PageEntry& entry, const PageBits& bits) {
  if (known_entries_[index] == entry && known_bits_[index] == bits) return;
  known_entries_[index] = entry;
  known_bits_[index] = bits;
  patches_.push_back({entry, static_cast<uint32_t>(index), bits});
}

void DeviceSide::FlushPatches() {
  if (rests_changed_) {
    CopyToDevice(stream(), sink_rests_->data(), known_rests_->data(), known_rests_->num_bytes());
    rests_changed_ = false;
  }
  if (patches_.empty()) return;
  const size_t bytes = patches_.size() * sizeof(PagePatch);
  if (patch_staging_ == nullptr || patch_staging_->num_bytes() < bytes) {
    stream().Synchronize();
    auto staging = std::make_unique<PinnedBuffer>(config_.device, 2 * bytes);
    patch_memory_ = NewBuffer(2 * bytes);
    patch_staging_ = std::move(staging);
  }
  std::memcpy(patch_staging_->data(), patches_.data(), bytes);
  CopyToDevice(stream(), patch_memory_->data(), patch_staging_->data(), bytes);
  PatchPageTables(As<const PagePatch>(patch_memory_), std::ssize(patches_), As<PageEntry>(entries_),
                  As<PageBits>(bits_), stream());
  patches_.clear();
}

// Where the token at `position` of the sequence goes.
AppendTarget DeviceSide::TargetOf(const Chunk& chunk, size_t layer, int64_t position) const {
  const BlockPages& block = chunk.seq->blocks[layer];
  AppendTarget target;
  if (position < config_.sink_tokens) {
    const int64_t piece = position / kPageTokens;
    target.k = SinkUnits(block, layer, piece, kKeys);
    target.v = SinkUnits(block, layer, piece, kValues);
    target.index = static_cast<int32_t>(position % kPageTokens);
    const int64_t tokens = store_.SinkPieceTokens(piece);
    target.capacity = tokens == kPageTokens ? AppendTarget::kPage : static_cast<int32_t>(tokens);
    return target;
  }
  const int64_t paged = position - config_.sink_tokens;
  const PagePair& page = block.pages[static_cast<size_t>(paged / kPageTokens)];
  PMKVQ_DCHECK(page[kKeys].bits == 16 && page[kValues].bits == 16);
  target.k = UnitsOf(store_.slots().Offset(page[kKeys].data));
  target.v = UnitsOf(store_.slots().Offset(page[kValues].data));
  target.index = static_cast<int32_t>(paged % kPageTokens);
  return target;
}

void DeviceSide::FillRows() {
  const auto rows = static_cast<size_t>(most_rows_);
  auto* const num_tokens = reinterpret_cast<int32_t*>(row_staging_->data());
  int32_t* const table_rows = num_tokens + rows;
  auto* const targets = reinterpret_cast<AppendTarget*>(table_rows + rows);
  std::fill_n(num_tokens, 2 * rows, 0);
  std::fill_n(targets, rows * config_.geometry.blocks.size(),
              AppendTarget{0, 0, 0, AppendTarget::kNothing});
  int64_t row = 0;
  for (const Chunk& chunk : chunks_) {
    if (!chunk.is_decoding) break;
    for (int64_t token = 0; token < chunk.num_tokens; ++token) FillRow(chunk, token, row++);
  }
  CopyToDevice(stream(), row_memory_->data(), row_staging_->data(), row_staging_->num_bytes());
}

void DeviceSide::FillRow(const Chunk& chunk, int64_t token, int64_t row) {
  const auto rows = static_cast<size_t>(most_rows_);
  auto* const num_tokens = reinterpret_cast<int32_t*>(row_staging_->data());
  auto* const targets = reinterpret_cast<AppendTarget*>(num_tokens + 2 * rows);
  num_tokens[row] = static_cast<int32_t>(chunk.num_before + token + 1);
  num_tokens[static_cast<int64_t>(rows) + row] = static_cast<int32_t>(chunk.table_row);
  for (size_t layer = 0; layer < chunk.seq->blocks.size(); ++layer) {
    if (!config_.geometry.blocks[layer].has_cache()) continue;
    AppendTarget& target = targets[layer * rows + static_cast<size_t>(row)];
    target = TargetOf(chunk, layer, chunk.num_before + token);
    // Rows of one sequence are stored at once: none may zero what another one stores.
    if (chunk.num_tokens > 1 && target.capacity == AppendTarget::kPage && target.index == 0) {
      target.capacity = AppendTarget::kZeroedPage;
      FillOnDevice(stream(), store_.arena() + size_t{target.v} * fragment::kArenaUnit, 0,
                   store_.CodeBytes(layer, kValues, 16));
    }
  }
}

std::byte* DeviceSide::UnfitWord(int64_t index) const {
  return unfit_->data() + static_cast<size_t>(index) * sizeof(uint32_t);
}

std::byte* DeviceSide::Scratch(size_t num_bytes) {
  if (scratch_ == nullptr || scratch_->num_bytes() < num_bytes) {
    scratch_.reset();  // Waits for what still reads it.
    scratch_ = NewBuffer(num_bytes);
  }
  return scratch_->data();
}

int64_t DeviceSide::CheckedRows(const DeviceBlockRows& rows) const {
  PMKVQ_CHECK(is_open_ && rows.decode_rows >= num_decode_rows_ && rows.decode_rows <= most_rows_);
  int64_t num_rows = rows.decode_rows;
  for (const Chunk& chunk : chunks_) {
    if (chunk.is_decoding) continue;
    PMKVQ_CHECK(rows.decode_rows == num_decode_rows_);
    num_rows += chunk.num_tokens;
  }
  return num_rows;
}

void DeviceSide::Launch(size_t layer, const DeviceBlockRows& rows, bool attends) {
  const int64_t num_rows = CheckedRows(rows);
  if (config_.geometry.blocks[layer].is_latent()) {
    return LaunchLatents(layer, num_rows, rows, attends);
  }
  const DecodeShape shape = ShapeOf(config_, layer);
  const int64_t kv_rows = num_rows * shape.num_kv_heads;
  if (config_.rotate_keys) {
    if (attends) HadamardRows(rows.q, num_rows * shape.num_heads, shape.head_dim, stream());
    HadamardRows(rows.k, kv_rows, shape.head_dim, stream());
  }
  if (config_.rotate_values) HadamardRows(rows.v, kv_rows, shape.head_dim, stream());

  if (rows.decode_rows > 0) LaunchDecoding(layer, shape, rows, attends);
  LaunchChunks(layer, rows, attends);
  if (config_.rotate_values && attends) {
    HadamardRows(rows.out, num_rows * shape.num_heads, shape.head_dim, stream());
    if (rows.operand.data != nullptr) {
      RoundRows(rows.out, rows.decode_rows, shape.num_heads * shape.head_dim, rows.operand,
                stream());
    }
  }
}

AppendOperands DeviceSide::AppendTo(size_t layer, int64_t decode_rows) const {
  AppendOperands append;
  append.targets =
      reinterpret_cast<const AppendTarget*>(As<const int32_t>(row_memory_) + 2 * most_rows_) +
      static_cast<int64_t>(layer) * most_rows_;
  append.q_rounded = rounded_q_->data();
  append.arena = store_.arena();
  append.unfit = As<uint32_t>(unfit_);
  append.block = static_cast<uint32_t>(layer);
  append.num_sequences = decode_rows;
  append.num_heads = config_.geometry.blocks[layer].num_heads;
  append.is_bf16 = config_.float_type == DType::kBF16;
  return append;
}

std::optional<AppendOperands> DeviceSide::FusedAppend(int64_t layer, int64_t decode_rows) {
  const bool is_latent = config_.geometry.block(layer).is_latent();
  if (config_.rotate_keys || config_.rotate_values || is_latent) return std::nullopt;
  return AppendTo(static_cast<size_t>(layer), decode_rows);
}

DecodeOperands DeviceSide::DecodingOf(size_t layer, const DeviceBlockRows& rows) const {
  DecodeOperands decode;
  decode.q = rounded_q_->data();
  decode.out = rows.out;
  decode.operand = rows.operand;
  decode.arena = store_.arena();
  decode.entries = As<const PageEntry>(entries_) + TableIndex(layer, 0);
  decode.bits = As<const PageBits>(bits_) + TableIndex(layer, 0);
  decode.num_tokens = As<const int32_t>(row_memory_);
  decode.table_rows = decode.num_tokens + most_rows_;
  decode.sink_rests =
      As<const uint32_t>(sink_rests_) + 2 * layer * static_cast<size_t>(config_.max_sequences);
  decode.num_sequences = rows.decode_rows;
  decode.max_pages = max_pages_;
  return decode;
}

void DeviceSide::LaunchDecoding(size_t layer, const DecodeShape& shape, const DeviceBlockRows& rows,
                                bool attends) {
  if (!rows.is_stored) {
    AppendOperands append = AppendTo(layer, rows.decode_rows);
    append.q = attends ? rows.q : nullptr;
    append.k = rows.k;
    append.v = rows.v;
    AppendTokens(shape.num_kv_heads, shape.head_dim, shape.float_type, append, stream());
  }
  if (!attends) return;
  DecodeOperands decode = DecodingOf(layer, rows);
  if (config_.rotate_values) decode.operand = {};
  RunDecodeAttention(shape, decode, decode_scratch_->view(), stream());
}

void DeviceSide::LaunchLookAtUnfit() {
  PMKVQ_CHECK(is_open_ && !has_looked_);
  CopyToHost(stream(), unfit_staging_->data(), unfit_->data(), unfit_->num_bytes());
  store_.LaunchUnfitCopy();
  has_looked_ = true;
}

std::vector<std::optional<KvFailure>> DeviceSide::End() {
  PMKVQ_CHECK(is_open_);
  if (!has_looked_) LaunchLookAtUnfit();
  stream().Synchronize();
  store_.TakeUnfit();
  is_open_ = false;
  const auto* const words = reinterpret_cast<const uint32_t*>(unfit_staging_->data());
  std::vector<std::optional<KvFailure>> failures;
  int64_t row = 0;
  int64_t index = 0;
  for (const Chunk& chunk : chunks_) {
    std::optional<KvFailure>& failure = failures.emplace_back();
    const auto look = [&](uint32_t word, int64_t first, int64_t last) {
      if (word == kAllFit || failure) return;
      const auto layer = static_cast<size_t>(word / kUnfitKinds);
      const auto kind = static_cast<UnfitRow>(word % kUnfitKinds);
      failure =
          KvFailure{KvWhere(static_cast<int64_t>(layer), first, last),
                    UnfitOnDeviceMessage(
                        kind == UnfitRow::kQuery
                            ? "query"
                            : store_.NameOf(layer, kind == UnfitRow::kKey ? kKeys : kValues))};
    };
    if (chunk.is_decoding) {
      for (int64_t token = 0; token < chunk.num_tokens; ++token) {
        look(words[row++], chunk.num_before + token, chunk.num_before + token);
      }
      continue;
    }
    const int64_t last = chunk.num_before + chunk.num_tokens - 1;
    look(words[most_rows_ + index], chunk.num_before, last);
    const uint32_t range = words[most_rows_ + most_chunks_ + index];
    if (range != kAllFit && !failure) {
      failure = KvFailure{
          KvWhere(range / static_cast<uint32_t>(PageStore::kStagedPages), chunk.num_before, last),
          UnfitOnDeviceMessage("range of a group of values")};
    }
    ++index;
  }
  return failures;
}

size_t DeviceSide::num_bytes() const {
  size_t sum = known_entries_.size() * (sizeof(PageEntry) + sizeof(PageBits));
  for (const std::unique_ptr<Buffer>* buffer :
       {&entries_, &bits_, &patch_memory_, &sink_rests_, &factors_, &row_memory_, &unfit_,
        &decode_scratch_, &rounded_q_, &scratch_}) {
    if (*buffer != nullptr) sum += (*buffer)->num_bytes();
  }
  return sum;
}

}  // namespace pmkvq
