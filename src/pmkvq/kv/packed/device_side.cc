#include "pmkvq/kv/packed/device_side.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cstring>

#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"
#include "pmkvq/kernels/device_rows/device_rows.h"

namespace pmkvq {
namespace {

// Launches of decode attention take so many sequences, and captured ones are made for as many.
constexpr int64_t kRowsUnit = 64;
// What is uploaded for each step of few sequences is for so many of them.
constexpr int64_t kFewRowsUnit = 8;

uint64_t NextId() {
  static std::atomic<uint64_t> next{1};
  return next.fetch_add(1);
}

template <class T>
T* As(const std::unique_ptr<Buffer>& buffer, size_t offset = 0) {
  return reinterpret_cast<T*>(buffer->data() + offset);
}

SinkLayout SinkOf(const CacheConfig& config) {
  return {static_cast<int32_t>(config.sink_tokens / kPageTokens * kPageTokens),
          static_cast<int32_t>(config.sink_tokens % kPageTokens)};
}

DecodeShape DeviceShapeOf(const CacheConfig& config, size_t layer) {
  const AttentionShape attention =
      AttentionShapeOf(config.geometry.blocks[layer], config.float_type);
  DecodeShape shape;
  shape.num_heads = attention.num_heads;
  shape.num_kv_heads = attention.num_kv_heads;
  shape.head_dim = attention.head_dim;
  shape.scale = attention.scale;
  shape.float_type = config.float_type;
  shape.sink = SinkOf(config);
  shape.sliding_window = config.geometry.blocks[layer].sliding_window;
  shape.keys_by_channel = config.k_axis == QuantAxis::kChannel;
  return shape;
}

}  // namespace

void CheckDeviceCache(const CacheConfig& config) {
  if (HasLatents(config.geometry)) {
    throw Unsupported(NameOf(config.device), "found latent attention, expected it on the CPU");
  }
  for (size_t layer = 0; layer < config.geometry.blocks.size(); ++layer) {
    const KvBlockGeometry& block = config.geometry.blocks[layer];
    if (!block.has_cache()) continue;
    internal::CheckDecodeShape(DeviceShapeOf(config, layer), config.device);
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
    add(config_.key_scales->query_factors(layer), block.q_values() / 2, offsets[0]);
    add(config_.key_scales->key_factors(layer), block.k().values() / 2, offsets[1]);
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
    if (!config_.geometry.blocks[layer].has_cache()) continue;
    scratch =
        std::max(scratch, DecodeScratchBytes(DeviceShapeOf(config_, layer), most_rows, max_pages_));
    most_q = std::max(most_q, config_.geometry.blocks[layer].q_values());
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

void DeviceSide::Launch(size_t layer, const DeviceBlockRows& rows, bool attends) {
  PMKVQ_CHECK(is_open_ && rows.decode_rows >= num_decode_rows_ && rows.decode_rows <= most_rows_);
  const DecodeShape shape = DeviceShapeOf(config_, layer);
  int64_t num_rows = rows.decode_rows;
  for (const Chunk& chunk : chunks_) {
    if (chunk.is_decoding) continue;
    PMKVQ_CHECK(rows.decode_rows == num_decode_rows_);
    num_rows += chunk.num_tokens;
  }
  const int64_t kv_rows = num_rows * shape.num_kv_heads;
  if (config_.rotate_keys) {
    if (attends) HadamardRows(rows.q, num_rows * shape.num_heads, shape.head_dim, stream());
    HadamardRows(rows.k, kv_rows, shape.head_dim, stream());
  }
  if (config_.rotate_values) HadamardRows(rows.v, kv_rows, shape.head_dim, stream());

  if (rows.decode_rows > 0) LaunchDecoding(layer, shape, rows, attends);
  int64_t first_row = rows.decode_rows;
  size_t index = 0;
  for (const Chunk& chunk : chunks_) {
    if (chunk.is_decoding) continue;
    if (attends) AttendChunk(layer, chunk, index, first_row, rows);
    StoreChunk(layer, chunk, index, first_row, rows);
    first_row += chunk.num_tokens;
    ++index;
  }
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
  append.num_heads = DeviceShapeOf(config_, layer).num_heads;
  append.is_bf16 = config_.float_type == DType::kBF16;
  return append;
}

std::optional<AppendOperands> DeviceSide::FusedAppend(int64_t layer, int64_t decode_rows) {
  if (config_.rotate_keys || config_.rotate_values) return std::nullopt;
  return AppendTo(static_cast<size_t>(layer), decode_rows);
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
  DecodeOperands decode;
  decode.q = rounded_q_->data();
  decode.out = rows.out;
  if (!config_.rotate_values) decode.operand = rows.operand;
  decode.arena = store_.arena();
  decode.entries = As<const PageEntry>(entries_) + TableIndex(layer, 0);
  decode.bits = As<const PageBits>(bits_) + TableIndex(layer, 0);
  decode.num_tokens = As<const int32_t>(row_memory_);
  decode.table_rows = decode.num_tokens + most_rows_;
  decode.sink_rests =
      As<const uint32_t>(sink_rests_) + 2 * layer * static_cast<size_t>(config_.max_sequences);
  decode.num_sequences = rows.decode_rows;
  decode.max_pages = max_pages_;
  RunDecodeAttention(shape, decode, decode_scratch_->view(), stream());
}

void DeviceSide::AttendChunk(size_t layer, const Chunk& chunk, size_t index, int64_t first_row,
                             const DeviceBlockRows& rows) {
  const DecodeShape shape = DeviceShapeOf(config_, layer);
  const int64_t q_dim = shape.num_heads * shape.head_dim;
  const int64_t kv_dim = shape.num_kv_heads * shape.head_dim;
  ChunkOperands operands;
  operands.q = rows.q + first_row * q_dim;
  operands.k = rows.k + first_row * kv_dim;
  operands.v = rows.v + first_row * kv_dim;
  operands.out = rows.out + first_row * q_dim;
  operands.num_rows = chunk.num_tokens;
  operands.arena = store_.arena();
  operands.entries = As<const PageEntry>(entries_) + TableIndex(layer, chunk.table_row);
  operands.bits = As<const PageBits>(bits_) + TableIndex(layer, chunk.table_row);
  operands.num_tokens = static_cast<int32_t>(chunk.num_before);
  const BlockPages& block = chunk.seq->blocks[layer];
  if (sink_.rest_tokens > 0 && !block.sink.empty()) {
    operands.rest_k = SinkUnits(block, layer, store_.num_sink_pieces() - 1, kKeys);
    operands.rest_v = SinkUnits(block, layer, store_.num_sink_pieces() - 1, kValues);
  }
  operands.unfit = reinterpret_cast<uint32_t*>(UnfitWord(most_rows_ + static_cast<int64_t>(index)));
  operands.block = static_cast<uint32_t>(layer);
  const size_t bytes = ChunkScratchBytes(shape, chunk.num_tokens);
  RunChunkAttention(shape, operands, {config_.device, Scratch(bytes), bytes}, gemm_, stream());
}

void DeviceSide::StoreChunk(size_t layer, const Chunk& chunk, size_t index, int64_t first_row,
                            const DeviceBlockRows& rows) {
  const BlockPages& block = chunk.seq->blocks[layer];
  const int64_t kv_dim = config_.geometry.blocks[layer].k().values();
  pieces_.clear();
  closing_.clear();
  const int64_t end = chunk.num_before + chunk.num_tokens;
  for (int64_t position = chunk.num_before; position < end;) {
    RowPiece piece;
    piece.first_row = static_cast<int32_t>(position - chunk.num_before);
    const auto set_rows = [&](int64_t first, int64_t capacity) {
      piece.index = static_cast<int32_t>(first);
      piece.num_rows = static_cast<int32_t>(std::min(end - position, capacity - first));
    };
    if (position < config_.sink_tokens) {
      const int64_t sink_piece = position / kPageTokens;
      const int64_t capacity = store_.SinkPieceTokens(sink_piece);
      set_rows(position % kPageTokens, capacity);
      piece.k = SinkUnits(block, layer, sink_piece, kKeys);
      piece.v = SinkUnits(block, layer, sink_piece, kValues);
      piece.capacity = capacity == kPageTokens ? 0 : static_cast<int32_t>(capacity);
      pieces_.push_back(piece);
      position += piece.num_rows;
      continue;
    }
    const int64_t paged = position - config_.sink_tokens;
    const PagePair& page = block.pages[static_cast<size_t>(paged / kPageTokens)];
    set_rows(paged % kPageTokens, kPageTokens);
    for (const Side side : kSides) {
      const StoredPage& stored = page[side];
      uint32_t& place = side == kKeys ? piece.k : piece.v;
      if (stored.bits == 16) {
        place = UnitsOf(store_.slots().Offset(stored.data));
        continue;
      }
      ClosingPage& closing = closing_.emplace_back();
      closing.side = side;
      closing.bits = stored.bits;
      closing.move.target = store_.slots().Offset(stored.data);
      closing.move.metadata = store_.slots().Offset(stored.metadata);
      closing.has_moved_rows = piece.index > 0;
      PMKVQ_DCHECK(!closing.has_moved_rows || block.open_rows_moved[side]);
      closing.piece = piece;
      closing.piece.k = closing.piece.v = RowPiece::kNone;
    }
    if (piece.k != RowPiece::kNone || piece.v != RowPiece::kNone) pieces_.push_back(piece);
    position += piece.num_rows;
  }
  const StoreRowsOperands operands{rows.k + first_row * kv_dim, rows.v + first_row * kv_dim,
                                   store_.arena()};
  // Moved rows lie where the last page is stored, so pages that close come first.
  for (size_t first = 0; first < closing_.size(); first += PageStore::kStagedPages) {
    const size_t count = std::min<size_t>(PageStore::kStagedPages, closing_.size() - first);
    StoreClosing(layer, chunk, std::span(closing_).subspan(first, count), operands,
                 reinterpret_cast<uint32_t*>(
                     UnfitWord(most_rows_ + most_chunks_ + static_cast<int64_t>(index))));
  }
  const KvStream& stream_of_block = config_.geometry.blocks[layer].k();
  StoreRows(stream_of_block.heads, stream_of_block.width, config_.float_type, pieces_, operands,
            stream());
}

void DeviceSide::StoreClosing(size_t layer, const Chunk& chunk, std::span<ClosingPage> pages,
                              const StoreRowsOperands& rows, uint32_t* unfit) {
  const BlockPages& block = chunk.seq->blocks[layer];
  const KvStream& shape = config_.geometry.blocks[layer].k();
  std::vector<RowPiece> pieces;
  for (size_t i = 0; i < pages.size(); ++i) {
    ClosingPage& page = pages[i];
    page.move.source = store_.StagedPage(static_cast<int64_t>(i));
    if (page.has_moved_rows) {
      CopyOnDevice(stream(), store_.arena() + page.move.source,
                   store_.Data(block.pages.back()[page.side]),
                   store_.CodeBytes(layer, page.side, 16));
    }
    (page.side == kKeys ? page.piece.k : page.piece.v) = UnitsOf(page.move.source);
    pieces.push_back(page.piece);
  }
  StoreRows(shape.heads, shape.width, config_.float_type, pieces, rows, stream());
  for (const Side side : kSides) {
    for (const int bits : {8, 4, 2}) {
      std::vector<PageMove> moves;
      for (const ClosingPage& page : pages) {
        if (page.side == side && page.bits == bits) moves.push_back(page.move);
      }
      if (moves.empty()) continue;
      QuantizePages({shape.heads, shape.width, side == kValues,
                     side == kKeys && config_.k_axis == QuantAxis::kChannel},
                    config_.float_type, bits, moves, store_.arena(), unfit,
                    static_cast<uint32_t>(layer) * static_cast<uint32_t>(PageStore::kStagedPages),
                    stream());
    }
  }
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
      constexpr const char* kNames[kUnfitKinds] = {"key", "value", "query", "value"};
      failure = KvFailure{KvWhere(word / kUnfitKinds, first, last),
                          UnfitOnDeviceMessage(kNames[word % kUnfitKinds])};
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
