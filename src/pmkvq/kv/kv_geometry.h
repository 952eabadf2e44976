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

// One block. Attention with grouped queries has two streams, keys and values. A block without
// streams stores nothing: it takes no bytes, and AppendAndAttend is not called for it.
struct KvBlockGeometry {
  int64_t num_heads = 0;  // Query heads, a multiple of the heads of the streams.
  std::vector<KvStream> streams;
  // W: a token attends to the newest W tokens only, itself among them. 0: to all before it.
  int64_t sliding_window = 0;

  bool has_cache() const { return !streams.empty(); }
  // Of a block that has them.
  const KvStream& k() const { return streams[0]; }
  const KvStream& v() const { return streams[1]; }
  int64_t q_values() const { return num_heads * k().width; }  // Queries of one token.
  int64_t values() const {                                    // Of one token, all streams.
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

// Throws Unsupported naming `where` and the first block that differs from block 0, or that has
// other streams than keys and values of one shape. Sliding windows may differ; they are left out.
UniformKvGeometry UniformOf(const KvGeometry& geometry, const std::string& where = "model");

// For code that has all tokens attend to all before them. Throws Unsupported naming `where` and the
// first block with a sliding window.
void RefuseSlidingWindows(const KvGeometry& geometry, const std::string& where);

// "12 heads, 2 KV heads, head_dim 128", then "sliding window 4096" where there is one; "no cache";
// other streams one by one.
std::string Describe(const KvBlockGeometry& block);
// "28 blocks, 12 heads, 2 KV heads, head_dim 128"; where blocks differ, runs of equal ones:
// "blocks 0-3: ...; block 4: no cache".
std::string Describe(const KvGeometry& geometry);

}  // namespace pmkvq
