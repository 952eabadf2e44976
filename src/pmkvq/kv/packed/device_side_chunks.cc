// Prompts' chunks of a packed cache on a device: attending and storing.
#include <algorithm>

#include "pmkvq/base/check.h"
#include "pmkvq/kernels/kv_quant/unfit_rows.h"
#include "pmkvq/kv/packed/device_side.h"
#include "pmkvq/kv/packed/device_side_detail.h"

namespace pmkvq {

using device_detail::As;
using device_detail::LatentShapeOnDevice;
using device_detail::ShapeOf;

void DeviceSide::LaunchChunks(size_t layer, const DeviceBlockRows& rows, bool attends) {
  int64_t first_row = rows.decode_rows;
  size_t index = 0;
  for (const Chunk& chunk : chunks_) {
    if (chunk.is_decoding) continue;
    if (attends) {
      AttendChunk(layer, chunk, index, first_row, rows);
    } else {
      LookAtChunk(layer, chunk, index, first_row, rows);
    }
    StoreChunk(layer, chunk, index, first_row, rows);
    first_row += chunk.num_tokens;
    ++index;
  }
}

void DeviceSide::AttendChunk(size_t layer, const Chunk& chunk, size_t index, int64_t first_row,
                             const DeviceBlockRows& rows) {
  const KvBlockGeometry& geometry = config_.geometry.blocks[layer];
  ChunkOperands operands;
  operands.q = rows.q + first_row * geometry.q_values();
  operands.k = rows.k + first_row * geometry.k().values();
  operands.v = rows.v + first_row * geometry.v().values();
  operands.out = rows.out + first_row * geometry.out_values();
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
  if (geometry.is_latent()) {
    const LatentDecodeShape shape = LatentShapeOnDevice(config_, layer);
    const size_t bytes = LatentChunkScratchBytes(shape, chunk.num_tokens);
    RunLatentChunk(shape, operands, {config_.device, Scratch(bytes), bytes}, gemm_, stream());
    return;
  }
  const DecodeShape shape = ShapeOf(config_, layer);
  const size_t bytes = ChunkScratchBytes(shape, chunk.num_tokens);
  RunChunkAttention(shape, operands, {config_.device, Scratch(bytes), bytes}, gemm_, stream());
}

// What attention looks at on its way.
void DeviceSide::LookAtChunk(size_t layer, const Chunk& chunk, size_t index, int64_t first_row,
                             const DeviceBlockRows& rows) const {
  auto* const unfit =
      reinterpret_cast<uint32_t*>(UnfitWord(most_rows_ + static_cast<int64_t>(index)));
  for (const Side side : kSides) {
    const int64_t width = config_.geometry.blocks[layer].streams[side].values();
    const UnfitRow kind = side == kKeys ? UnfitRow::kKey : UnfitRow::kValue;
    LookForUnfit((side == kKeys ? rows.k : rows.v) + first_row * width, chunk.num_tokens * width,
                 config_.float_type,
                 kUnfitKinds * static_cast<uint32_t>(layer) + static_cast<uint32_t>(kind), unfit,
                 *store_.stream());
  }
}

void DeviceSide::StoreChunk(size_t layer, const Chunk& chunk, size_t index, int64_t first_row,
                            const DeviceBlockRows& rows) {
  const BlockPages& block = chunk.seq->blocks[layer];
  const KvBlockGeometry& geometry = config_.geometry.blocks[layer];
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
  const StoreRowsOperands operands{rows.k + first_row * geometry.k().values(),
                                   rows.v + first_row * geometry.v().values(), store_.arena()};
  // Moved rows lie where the last page is stored, so pages that close come first.
  for (size_t first = 0; first < closing_.size(); first += PageStore::kStagedPages) {
    const size_t count = std::min<size_t>(PageStore::kStagedPages, closing_.size() - first);
    StoreClosing(layer, chunk, std::span(closing_).subspan(first, count), operands,
                 reinterpret_cast<uint32_t*>(
                     UnfitWord(most_rows_ + most_chunks_ + static_cast<int64_t>(index))));
  }
  StorePieces(layer, pieces_, operands);
}

void DeviceSide::StorePieces(size_t layer, std::span<const RowPiece> pieces,
                             const StoreRowsOperands& rows) {
  const KvBlockGeometry& geometry = config_.geometry.blocks[layer];
  if (!geometry.is_latent()) {
    StoreRows(geometry.k().heads, geometry.k().width, config_.float_type, pieces, rows, stream());
    return;
  }
  // Each stream by itself, as keys: both have tokens as rows.
  for (const Side side : kSides) {
    std::vector<RowPiece> of_side;
    for (RowPiece piece : pieces) {
      piece.k = side == kKeys ? piece.k : piece.v;
      piece.v = RowPiece::kNone;
      if (piece.k != RowPiece::kNone) of_side.push_back(piece);
    }
    const KvStream& shape = geometry.streams[side];
    StoreRows(shape.heads, shape.width, config_.float_type, of_side,
              {side == kKeys ? rows.k : rows.v, nullptr, rows.arena}, stream());
  }
}

void DeviceSide::StoreClosing(size_t layer, const Chunk& chunk, std::span<ClosingPage> pages,
                              const StoreRowsOperands& rows, uint32_t* unfit) {
  const BlockPages& block = chunk.seq->blocks[layer];
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
  StorePieces(layer, pieces, rows);
  for (const Side side : kSides) {
    for (const int bits : {8, 4, 2}) {
      std::vector<PageMove> moves;
      for (const ClosingPage& page : pages) {
        if (page.side == side && page.bits == bits) moves.push_back(page.move);
      }
      if (moves.empty()) continue;
      QuantizePages(device_detail::PageShapeOf(config_, layer, side), config_.float_type, bits,
                    moves, store_.arena(), unfit,
                    static_cast<uint32_t>(layer) * static_cast<uint32_t>(PageStore::kStagedPages),
                    stream());
    }
  }
}

}  // namespace pmkvq
