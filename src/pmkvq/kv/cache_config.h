// How a packed cache is laid out and how many bytes that takes: the one place that counts bytes.
//
// Sequence layout per block: sink (first n tokens, 16 bit, never halved) | closed pages of 128
// tokens, K and V apart, each with its own width | open page (newest tokens, 16 bit). The open page
// takes a whole 16-bit page from its first token and closes at the append after its last one.
//
// "16 bit" means the float type: 2 bytes a value for f16 and bf16, 4 for f32 (tests).
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "pmkvq/kernels/attention/attention.h"
#include "pmkvq/kv/key_scales.h"
#include "pmkvq/kv/kv_geometry.h"
#include "pmkvq/kv/kv_types.h"
#include "pmkvq/kv/packed/policy/block_pages.h"
#include "pmkvq/tensor/device/device.h"

namespace pmkvq {

enum class PolicyKind : uint8_t {
  kLayerBudget,  // The paper: all closed pages of a block step down together.
  kOldestFirst,  // Only as many pages as needed, the oldest of the widest first.
};
// "layer-budget", "oldest-first"; throws InvalidInput for another name.
PolicyKind ParsePolicyKind(std::string_view name);
std::string_view NameOf(PolicyKind kind);
// "f16", "bf16", "f32"; throws InvalidInput for another name.
DType ParseKvDtype(std::string_view name);
// "fast", "accurate"; throws InvalidInput for another name.
AttentionMode ParseAttentionMode(std::string_view name);
std::string_view NameOf(AttentionMode mode);

// Longest sink. A sink is never narrowed, so no one wants more than a small part of a sequence.
inline constexpr int64_t kMaxSinkTokens = 65536;

// One pool for the pages of all sequences, in place of a budget for each: where it is full, pages
// are halved in order of their prices, whoever owns them (packed/policy/pool_pressure.h).
struct PoolConfig {
  int64_t bytes = 0;  // 0: no pool.
  // Codes and floats that one reservation may read to keep room for tokens to come. What its own
  // tokens need is halved in any case.
  int64_t step_bytes = int64_t{8} << 20;
  // What the sequences take together and decoding reads for a token of each: more than that is
  // halved from 16 to 8 bits, step_bytes at most in a reservation. 0: no limit.
  int64_t read_limit_bytes = 0;
  // The most that prompts may take that are kept for later ones (KvStore::KeepPrefix), out of
  // `bytes`; 0: none is kept. See ObstacleToPrefixes.
  int64_t prefix_bytes = 0;
  // Pages of kept prompts that are narrower are not taken over. Not below the floor: 16, 8, 4, 2.
  int prefix_min_bits = 8;
  // Kept prompts that were not used for so long may be halved down to prefix_min_bits.
  double prefix_idle_seconds = 10;
  // Loss by quantising K, or V, of each block to the widths of kWidths (size L; of no effect in a
  // block without cache), or empty: all blocks alike, K twice V.
  std::vector<std::array<double, 4>> k_sensitivity;
  std::vector<std::array<double, 4>> v_sensitivity;
};

struct CacheConfig {
  KvGeometry geometry;
  DeviceId device;                 // Whose memory holds the pages, and that attends to them.
  DType float_type = DType::kF16;  // Of sink, open page and 16-bit pages; also of min and range.
  int64_t sink_tokens = 1;         // --n-sink-token, 0 to kMaxSinkTokens
  // --n-window-token, a multiple of 128, >= 128: newest tokens kept at 16 bit. 128 is the
  // reference's flush buffer (the open page alone); 128 * w keeps the newest w - 1 closed pages
  // too.
  int64_t window_tokens = kPageTokens;
  int64_t max_sequences = 1;
  // Longest sequence that budgets are split for, and most tokens of a sequence in one Forward that
  // they allow for: they matter where a block has a sliding window. max_len 0: unknown; on a device
  // it is the most tokens of a sequence, since page tables have a fixed size.
  int64_t max_len = 0;
  int64_t chunk_tokens = 512;

  int close_bits = 16;  // Width at which a page closes at first: 16 (pm-kvq, fp16) or b (static-b).
  int floor_bits = 2;   // Never halved below: 2 (pm-kvq), 16 (fp16), b (static-b).
  // Of latent blocks: k_r neither closes nor is halved below this width, whatever the two above
  // say. Widths of static_widths count as they are.
  int rope_floor_bits = 8;
  PolicyKind policy = PolicyKind::kLayerBudget;
  // kOldestFirst: bytes of pages that one token may halve, over all blocks, to make room for a
  // page. Earlier tokens halve the rest, as far as they can (policy/oldest_first.h). Read plus
  // written is 1.5 times that: at 10 GB/s 8 MiB take 1.3 ms.
  int64_t most_bytes_per_token = int64_t{8} << 20;

  std::vector<int64_t> budget_bytes;  // Per block, for one sequence. Size L.
  // With a pool the budgets sum to its bytes at most and have no other effect, and the policy is
  // kOldestFirst. On the CPU only.
  PoolConfig pool;
  // Widths per block that the plan chose (size L; of no effect in a block without cache), or empty.
  // Where K and V have different widths they share one budget: the wider is halved first, V first
  // on a tie; a side at its planned width is not halved before the other has reached its planned
  // width.
  std::vector<int> k_bits;
  std::vector<int> v_bits;
  // Pages close at once at the widths of k_bits and v_bits, which are their floor as well: the
  // static counterpart of a progressive cache. close_bits and floor_bits are not used then.
  bool static_widths = false;

  // What a quantised page of keys has one (min, range) for: each token and head, or each channel
  // and head over its 128 tokens. Below D = 128 the latter takes fewer bytes.
  QuantAxis k_axis = QuantAxis::kToken;
  // Keys (with queries), or values (with outputs), are multiplied by the Walsh-Hadamard matrix of
  // their head, D a power of two, and stored so: attention is unchanged but for rounding, and a
  // large channel is spread over its group before it is quantised. Of latent blocks rotate_keys
  // rotates c, all r values at once, and k_r stays as it is.
  bool rotate_keys = false;
  bool rotate_values = false;

  std::shared_ptr<const KeyScales> key_scales;  // Null: none.

  AttentionMode attention = AttentionMode::kAccurate;  // Of decode over packed pages.
  int64_t whole_heads = 0;                             // AttentionShape::whole_heads
  int num_threads = 1;
};

// The functions below that return bytes throw InvalidInput for counts beyond int64_t.

// Those of a block whose cache is to have `bits`: of a latent block k_r has rope_floor_bits at
// least.
PageWidths WidthsAt(const CacheConfig& config, size_t layer, int bits);
// Widths at which pages of a block close at first, and below which they never go.
PageWidths CloseWidths(const CacheConfig& config, size_t layer);
PageWidths FloorWidths(const CacheConfig& config, size_t layer);
// Widths that the plan chose, the floor where they are lower or there is no plan.
PageWidths PlannedWidths(const CacheConfig& config, size_t layer);

// Bytes of one page (128 tokens of one stream of one block) at a width: codes or floats.
int64_t PageCodeBytes(const KvStream& stream, DType float_type, int bits);
// Bytes of its metadata (0 at 16 bits): one (min, range) pair per token, head and group, or per
// channel and head.
int64_t PageMetadataBytes(const KvStream& stream, DType float_type, int bits,
                          QuantAxis axis = QuantAxis::kToken);
// The sum of both.
int64_t PageBytes(const KvStream& stream, DType float_type, int bits,
                  QuantAxis axis = QuantAxis::kToken);
// Pages (open one included) that hold `num_tokens` tokens of a sequence, its sink left out.
int64_t NumPages(const CacheConfig& config, int64_t num_tokens);
// The first page of a block that a token behind `num_tokens` stored ones may still attend to; the
// pages before it lie outside of the block's sliding window, and the cache has freed them.
int64_t FirstSeenPage(const CacheConfig& config, size_t layer, int64_t num_tokens);
// The most pages that a block has of a sequence of up to `num_tokens` tokens, when a Forward stores
// up to chunk_tokens: NumPages, or with a sliding window those of the window and of a chunk.
int64_t MostPages(const CacheConfig& config, size_t layer, int64_t num_tokens);
// Bytes of the sink of one block, all streams, whole from the first token on.
int64_t SinkBytes(const CacheConfig& config, size_t layer);

// Bytes that one block takes at `num_tokens` tokens with every closed page at (k_bits, v_bits)
// (window pages at 16). Non-decreasing in num_tokens, so this is also the most it takes at any
// n <= num_tokens: the budget that `allocate` gives a block. Pages: MostPages.
// 0 for a block without streams.
int64_t BlockBytes(const CacheConfig& config, size_t layer, int64_t num_tokens, int k_bits,
                   int v_bits);

// Bits per stored value: bytes * 8 / (tokens * values). `values_per_token`: of the block, or of all
// blocks (KvGeometry::values), that take these bytes.
double EffectiveBits(int64_t values_per_token, int64_t bytes, int64_t num_tokens);

// What `num_tokens` tokens take in one block with every closed page at its floor.
int64_t FloorBytes(const CacheConfig& config, size_t layer, int64_t num_tokens);
// The same in all blocks.
int64_t FloorBytes(const CacheConfig& config, int64_t num_tokens);
// A function like FloorBytes. Stores that count bytes in another way have one of their own.
using BytesAtFloor = int64_t (*)(const CacheConfig& config, size_t layer, int64_t num_tokens);

// Smallest budget (all blocks, one sequence, split by EvenWeights) that holds `num_tokens` at the
// floor. A budget split by other weights may need more.
int64_t SmallestBudget(const CacheConfig& config, int64_t num_tokens,
                       BytesAtFloor floor_bytes = FloorBytes);

// Weights by which each value of the model gets the same share: KvBlockGeometry::values; where
// blocks have sliding windows, times the most pages of a block at max_len.
std::vector<int64_t> EvenWeights(const CacheConfig& config);

// Splits a budget for one sequence over the blocks: in proportion to `weights` (size L, not all 0),
// whole bytes, summing to at most `total_bytes`.
std::vector<int64_t> SplitBudget(int64_t total_bytes, const std::vector<int64_t>& weights);

// Why a pool with this configuration cannot keep prompts for later ones: a block has a sliding
// window, pages close below 16 bits, or a chunk is shorter than the sink. "": it can.
std::string ObstacleToPrefixes(const CacheConfig& config);

// Throws InvalidInput naming the option for values a user may have got wrong (sink, window, widths,
// budgets that do not hold even the first page at the floor: the smallest that works is named).
void ValidateCacheConfig(const CacheConfig& config, BytesAtFloor floor_bytes = FloorBytes);

}  // namespace pmkvq
