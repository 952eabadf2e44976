// Shapes of a model's cache: for each block the streams of values that it keeps of every token.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace pmkvq {

// Of every token, `heads` rows of `width` values.
struct KvStream {
  int64_t heads = 0;
  int64_t width = 0;  // D
  int64_t group = 0;  // G: values of a row that share a (min, range) at 8, 4 and 2 bits.

  int64_t values() const { return heads * width; }  // Of one token.
  bool operator==(const KvStream&) const = default;
};

// G = min(D, 128).
KvStream StreamOf(int64_t heads, int64_t width);

// What the two streams of a block are.
enum class KvBlockKind : uint8_t {
  kHeads,  // Attention with grouped queries: keys and values.
  // Latent attention: the latent c of r values and the rope part k_r of dr values, both shared by
  // all query heads. A key is (c, k_r) and a value is c, so there is one copy, and keys and values
  // have no widths of their own. Where code says K it means c, where it says V it means k_r.
  kLatent,
};

// One block. A block without streams stores nothing: it takes no bytes, and AppendAndAttend is not
// called for it.
struct KvBlockGeometry {
  int64_t num_heads = 0;  // Query heads; of kHeads a multiple of the heads of the streams.
  // Keys and values, or c and k_r. c is stored as r / G heads of its groups' width.
  std::vector<KvStream> streams;
  // W: a token attends to the newest W tokens only, itself among them. 0: to all before it.
  int64_t sliding_window = 0;
  KvBlockKind kind = KvBlockKind::kHeads;

  bool has_cache() const { return !streams.empty(); }
  bool is_latent() const { return kind == KvBlockKind::kLatent; }
  // Of a block that has them.
  const KvStream& k() const { return streams[0]; }
  const KvStream& v() const { return streams[1]; }
  // Of a latent block: r and dr.
  int64_t latent_width() const { return streams[0].values(); }
  int64_t rope_width() const { return streams[1].values(); }
  // Of one token: queries and outputs of attention. kLatent: H (r + dr) and H r.
  int64_t q_values() const {
    return num_heads * (is_latent() ? latent_width() + rope_width() : k().width);
  }
  int64_t out_values() const { return num_heads * (is_latent() ? latent_width() : k().width); }
  int64_t values() const {  // Of one token, all streams.
    int64_t sum = 0;
    for (const KvStream& stream : streams) sum += stream.values();
    return sum;
  }
  bool operator==(const KvBlockGeometry&) const = default;
};

struct UniformKvGeometry;

struct KvGeometry {
  std::vector<KvBlockGeometry> blocks;

  KvGeometry() = default;
  KvGeometry(const UniformKvGeometry& uniform);  // NOLINT: a uniform geometry is a geometry.

  int64_t num_layers() const { return static_cast<int64_t>(blocks.size()); }
  const KvBlockGeometry& block(int64_t layer) const { return blocks[static_cast<size_t>(layer)]; }
  int64_t values() const {  // Of one token, all blocks.
    int64_t sum = 0;
    for (const KvBlockGeometry& block : blocks) sum += block.values();
    return sum;
  }
  bool operator==(const KvGeometry&) const = default;
};

// Blocks that all have keys and values of one shape: L blocks, H query heads, Hkv key/value heads,
// head_dim D. For code that works with such models only.
struct UniformKvGeometry {
  int64_t num_layers = 0;
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;

  int64_t group() const { return head_dim < 128 ? head_dim : 128; }  // G
  int64_t kv_dim() const { return num_kv_heads * head_dim; }         // Of K, or of V, in a block.
  bool operator==(const UniformKvGeometry&) const = default;
};

KvBlockGeometry BlockOf(const UniformKvGeometry& uniform);

// A block of latent attention: H query heads, r values of c, dr values of k_r.
// Throws Unsupported naming the width: r is a multiple of 8 up to 128, or a multiple of 128; dr is
// a multiple of 8 up to 128.
KvBlockGeometry LatentBlockOf(int64_t num_heads, int64_t latent_width, int64_t rope_width);

// Values of a stream over the mean of the block's streams, by which its sensitivity, a mean over
// values, is weighed (Eq. 6): 1 for keys and values; 2 r / (r + dr) and 2 dr / (r + dr).
double ShareOfValues(const KvBlockGeometry& block, size_t stream);

bool HasLatents(const KvGeometry& geometry);
// For code that has keys and values only. Throws Unsupported naming `where` and the first latent
// block.
void RefuseLatents(const KvGeometry& geometry, const std::string& where);

// Throws Unsupported naming `where` and the first block that differs from block 0, or that has
// other streams than keys and values of one shape. Sliding windows may differ; they are left out.
UniformKvGeometry UniformOf(const KvGeometry& geometry, const std::string& where = "model");

// For code that has all tokens attend to all before them. Throws Unsupported naming `where` and the
// first block with a sliding window.
void RefuseSlidingWindows(const KvGeometry& geometry, const std::string& where);

// "12 heads, 2 KV heads, head_dim 128", then "sliding window 4096" where there is one; "16 heads,
// latents of 512 + 64 values"; "no cache"; other streams one by one.
std::string Describe(const KvBlockGeometry& block);
// "28 blocks, 12 heads, 2 KV heads, head_dim 128"; where blocks differ, runs of equal ones:
// "blocks 0-3: ...; block 4: no cache".
std::string Describe(const KvGeometry& geometry);

}  // namespace pmkvq
