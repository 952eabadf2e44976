// The part of a packed cache that lies on a device beside its pages: page tables, where the tokens
// of a Forward go, and the launches that store and attend to them. PackedKvCache decides; nothing
// here changes a page's width or slot.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "pmkvq/kernels/attention/chunk_attention.h"
#include "pmkvq/kernels/attention/decode_attention.h"
#include "pmkvq/kernels/gemm/device_gemm.h"
#include "pmkvq/kernels/kv_quant/append_heads.h"
#include "pmkvq/kernels/kv_quant/page_moves.h"
#include "pmkvq/kernels/kv_quant/page_rows.h"
#include "pmkvq/kv/cache_config.h"
#include "pmkvq/kv/device_kv_store.h"
#include "pmkvq/kv/kv_failure.h"
#include "pmkvq/kv/packed/page_store.h"

namespace pmkvq {

// Throws Unsupported for what there is no code for on config.device, naming it: a float type other
// than F16 and BF16, head sizes.
void CheckDeviceCache(const CacheConfig& config);

// Where the tokens of one block of a sequence are written, on the device.
struct DeviceTokens {
  // Those in pages, the sink's whole pieces first: [Hkv, 128 P, D] of their P pages, F16 of a cache
  // of F16, float of one of BF16; rotated where the cache rotates. What lies behind the last token
  // is 0, what a window has freed has no meaning.
  std::byte* k_pages = nullptr;
  std::byte* v_pages = nullptr;
  // The sink's rest, [Hkv, sink_tokens % 128, D] of the cache's type.
  std::byte* k_rest = nullptr;
  std::byte* v_rest = nullptr;
};

// Some rows of a Forward that are one token of a sequence each, as another library computed them.
struct DeviceGivenRows {
  GivenHeads heads;       // q [num_rows, H, D], k and v [num_rows, Hkv, D]
  int64_t first_row = 0;  // Of the Forward's rows.
  int64_t num_rows = 0;
  ProductRows out;  // [num_rows, H * D]
};

class DeviceSide : public DeviceKvStore {
 public:
  // Both must outlive this object. The configuration has passed CheckDeviceCache. Throws
  // DeviceError.
  DeviceSide(const CacheConfig& config, PageStore& store);

  struct Chunk {
    SequencePages* seq = nullptr;
    int64_t table_row = 0;  // The sequence's number.
    int64_t num_tokens = 0;
    int64_t num_before = 0;    // Tokens stored before.
    bool is_decoding = false;  // One token, or one_by_one.
  };

  // A Forward of these chunks, decoding ones first; room is reserved. Brings the tables up to date.
  void Begin(std::span<const Chunk> chunks);
  // Waits for the device. Of each chunk why its sequence cannot go on, if so.
  std::vector<std::optional<KvFailure>> End();

  Stream& stream() override { return *store_.stream(); }
  int64_t max_sequences() const override { return config_.max_sequences; }
  const float* query_factors(int64_t layer) const override { return Factors(layer, 0); }
  const float* key_factors(int64_t layer) const override { return Factors(layer, 1); }
  void PrepareRows(int64_t decode_rows) override;
  std::optional<AppendOperands> FusedAppend(int64_t layer, int64_t decode_rows) override;
  void LaunchBlock(int64_t layer, const DeviceBlockRows& rows) override {
    Launch(static_cast<size_t>(layer), rows, true);
  }
  void LaunchStore(int64_t layer, const DeviceBlockRows& rows) override {
    Launch(static_cast<size_t>(layer), rows, false);
  }
  // As LaunchBlock for some rows of the first kind. A Forward may have as many such calls as there
  // are parts of its rows; what is not called for stays without meaning. Not of latent blocks, nor
  // where something is rotated.
  void LaunchGiven(int64_t layer, const DeviceGivenRows& rows);
  void LaunchLookAtUnfit() override;
  uint64_t id() const override { return id_; }

  // Between Forwards: launches what reads `num_before` tokens of the sequence as they are stored.
  void LaunchRead(const Chunk& chunk, size_t layer, const DeviceTokens& tokens);

  // Memory of the device beside the arena, and of the host for its tables.
  size_t num_bytes() const;

 private:
  // A page that closes at less than 16 bits within a long chunk: put together in a staged page,
  // then quantised.
  struct ClosingPage {
    Side side = kKeys;
    int bits = 8;
    PageMove move;                // From the staged page.
    bool has_moved_rows = false;  // Its first rows lie in the slot of the block's last page.
    RowPiece piece;
  };

  void PrepareRows(int64_t decode_rows, int64_t num_chunks);
  // Of all chunks, after checks.
  int64_t CheckedRows(const DeviceBlockRows& rows) const;
  void Launch(size_t layer, const DeviceBlockRows& rows, bool attends);
  void LaunchLatents(size_t layer, int64_t num_rows, const DeviceBlockRows& rows, bool attends);
  void LaunchChunks(size_t layer, const DeviceBlockRows& rows, bool attends);
  DecodeOperands DecodingOf(size_t layer, const DeviceBlockRows& rows) const;
  AppendOperands AppendTo(size_t layer, int64_t decode_rows) const;
  void LaunchDecoding(size_t layer, const DecodeShape& shape, const DeviceBlockRows& rows,
                      bool attends);
  std::unique_ptr<Buffer> NewBuffer(size_t num_bytes) const;
  const float* Factors(int64_t layer, int kind) const;
  void UploadKeyScales();
  void UpdateTables(const Chunk& chunk);
  void UpdateTable(const Chunk& chunk, size_t layer);
  void SetEntry(size_t index, const PageEntry& entry, const PageBits& bits);
  void FlushPatches();
  size_t TableIndex(size_t layer, int64_t row) const;
  uint32_t UnitsOf(size_t offset) const;
  uint32_t SinkUnits(const BlockPages& block, size_t layer, int64_t piece, Side side) const;
  AppendTarget TargetOf(const Chunk& chunk, size_t layer, int64_t position) const;
  void FillRows();
  void FillRow(const Chunk& chunk, int64_t token, int64_t row);
  std::byte* UnfitWord(int64_t index) const;
  void AttendChunk(size_t layer, const Chunk& chunk, size_t index, int64_t first_row,
                   const DeviceBlockRows& rows);
  void LookAtChunk(size_t layer, const Chunk& chunk, size_t index, int64_t first_row,
                   const DeviceBlockRows& rows) const;
  void StoreChunk(size_t layer, const Chunk& chunk, size_t index, int64_t first_row,
                  const DeviceBlockRows& rows);
  void StorePieces(size_t layer, std::span<const RowPiece> pieces, const StoreRowsOperands& rows);
  void StoreClosing(size_t layer, const Chunk& chunk, std::span<ClosingPage> pages,
                    const StoreRowsOperands& rows, uint32_t* unfit);
  std::byte* Scratch(size_t num_bytes);

  const CacheConfig& config_;
  PageStore& store_;
  uint64_t id_ = 0;
  SinkLayout sink_;
  int64_t max_pages_ = 0;  // Of a sequence's table.
  DeviceGemm gemm_;

  // Tables [L][sequences][max_pages], and what the host believes to be there.
  std::unique_ptr<Buffer> entries_, bits_;
  std::vector<PageEntry> known_entries_;
  std::vector<PageBits> known_bits_;
  std::vector<PagePatch> patches_;
  std::unique_ptr<Buffer> patch_memory_;
  std::unique_ptr<PinnedBuffer> patch_staging_;
  std::unique_ptr<Buffer> sink_rests_;  // [L][sequences][2]
  std::unique_ptr<PinnedBuffer> known_rests_;
  bool rests_changed_ = false;

  std::unique_ptr<Buffer> factors_;  // Of key scales: all blocks' query factors, then key factors.
  std::vector<std::array<size_t, 2>> factor_offsets_;

  // Of a Forward, [rows]: num_tokens, table rows; [L][rows] targets; and the words of what did not
  // fit: of rows, then of chunks.
  int64_t most_rows_ = 0;
  int64_t most_chunks_ = 0;  // Long ones, in one Forward.
  std::unique_ptr<Buffer> row_memory_;
  std::unique_ptr<PinnedBuffer> row_staging_;
  std::unique_ptr<Buffer> unfit_;
  std::unique_ptr<PinnedBuffer> unfit_staging_;
  std::unique_ptr<Buffer> decode_scratch_;
  std::unique_ptr<Buffer> rounded_q_;
  std::unique_ptr<Buffer> scratch_;  // Of long chunks; grows.

  bool is_open_ = false;
  bool has_looked_ = false;  // LaunchLookAtUnfit was called in this Forward.
  std::vector<Chunk> chunks_;
  int64_t num_decode_rows_ = 0;
  // Of LaunchBlock.
  std::vector<RowPiece> pieces_;
  std::vector<ClosingPage> closing_;
};

}  // namespace pmkvq
