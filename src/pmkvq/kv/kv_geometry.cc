#include "pmkvq/kv/kv_geometry.h"

#include <fmt/format.h>

#include <algorithm>

#include "pmkvq/base/error.h"

namespace pmkvq {
namespace {

// Keys and values of one shape.
bool IsGqa(const KvBlockGeometry& block) {
  return !block.is_latent() && block.streams.size() == 2 && block.k() == block.v();
}

}  // namespace

KvStream StreamOf(int64_t heads, int64_t width) {
  return {heads, width, std::min<int64_t>(width, 128)};
}

KvBlockGeometry BlockOf(const UniformKvGeometry& uniform) {
  const KvStream stream = StreamOf(uniform.num_kv_heads, uniform.head_dim);
  return {uniform.num_heads, {stream, stream}, 0};
}

KvBlockGeometry LatentBlockOf(int64_t num_heads, int64_t latent_width, int64_t rope_width) {
  const auto refuse = [](const char* name, int64_t found, const char* expected) {
    throw Unsupported("kv cache", fmt::format("{}: found {}, expected {}", name, found, expected));
  };
  if (latent_width < 8 || latent_width % (latent_width > 128 ? 128 : 8) != 0) {
    refuse("width of latents (kv_lora_rank)", latent_width,
           "a multiple of 8 up to 128, or a multiple of 128");
  }
  if (rope_width < 8 || rope_width > 128 || rope_width % 8 != 0) {
    refuse("width of their rope part (qk_rope_head_dim)", rope_width, "a multiple of 8 up to 128");
  }
  const int64_t group = std::min<int64_t>(latent_width, 128);
  KvBlockGeometry block;
  block.num_heads = num_heads;
  block.streams = {StreamOf(latent_width / group, group), StreamOf(1, rope_width)};
  block.kind = KvBlockKind::kLatent;
  return block;
}

double ShareOfValues(const KvBlockGeometry& block, size_t stream) {
  return static_cast<double>(std::ssize(block.streams) * block.streams[stream].values()) /
         static_cast<double>(block.values());
}

bool HasLatents(const KvGeometry& geometry) {
  return std::any_of(geometry.blocks.begin(), geometry.blocks.end(),
                     [](const KvBlockGeometry& block) { return block.is_latent(); });
}

void RefuseLatents(const KvGeometry& geometry, const std::string& where) {
  for (size_t i = 0; i < geometry.blocks.size(); ++i) {
    if (!geometry.blocks[i].is_latent()) continue;
    throw Unsupported(where, fmt::format("block {}: found {}, expected keys and values", i,
                                         Describe(geometry.blocks[i])));
  }
}

KvGeometry::KvGeometry(const UniformKvGeometry& uniform) {
  blocks.assign(static_cast<size_t>(std::max<int64_t>(0, uniform.num_layers)), BlockOf(uniform));
}

UniformKvGeometry UniformOf(const KvGeometry& geometry, const std::string& where) {
  if (geometry.blocks.empty()) throw Unsupported(where, "found a model of no blocks");
  const KvBlockGeometry& first = geometry.blocks.front();
  for (size_t i = 0; i < geometry.blocks.size(); ++i) {
    const KvBlockGeometry& block = geometry.blocks[i];
    if (IsGqa(block) && block.num_heads == first.num_heads && block.streams == first.streams) {
      continue;
    }
    throw Unsupported(
        where, fmt::format("block {}: found {}, expected {}, as all blocks", i, Describe(block),
                           IsGqa(first) ? Describe(first) : "keys and values of one shape"));
  }
  return {geometry.num_layers(), first.num_heads, first.k().heads, first.k().width};
}

void RefuseSlidingWindows(const KvGeometry& geometry, const std::string& where) {
  for (size_t i = 0; i < geometry.blocks.size(); ++i) {
    const int64_t window = geometry.blocks[i].sliding_window;
    if (window == 0) continue;
    throw Unsupported(where, fmt::format("block {}: found a sliding window of {} tokens, expected "
                                         "none; fp16, static-8|4|2 and pm-kvq have them",
                                         i, window));
  }
}

std::string Describe(const KvBlockGeometry& block) {
  if (!block.has_cache()) return "no cache";
  std::string text;
  if (IsGqa(block)) {
    text = fmt::format("{} heads, {} KV heads, head_dim {}", block.num_heads, block.k().heads,
                       block.k().width);
  } else if (block.is_latent()) {
    text = fmt::format("{} heads, latents of {} + {} values", block.num_heads, block.latent_width(),
                       block.rope_width());
  } else {
    text = fmt::format("{} heads", block.num_heads);
    for (const KvStream& stream : block.streams) {
      text += fmt::format(", a stream of {} x {}", stream.heads, stream.width);
    }
  }
  if (block.sliding_window > 0) text += fmt::format(", sliding window {}", block.sliding_window);
  return text;
}

std::string Describe(const KvGeometry& geometry) {
  const std::vector<KvBlockGeometry>& blocks = geometry.blocks;
  if (blocks.empty()) return "0 blocks";
  std::string text;
  for (size_t begin = 0; begin < blocks.size();) {
    size_t end = begin + 1;
    while (end < blocks.size() && blocks[end] == blocks[begin]) ++end;
    if (end - begin == blocks.size()) {
      return fmt::format("{} blocks, {}", blocks.size(), Describe(blocks[begin]));
    }
    if (!text.empty()) text += "; ";
    text += end - begin == 1 ? fmt::format("block {}: ", begin)
                             : fmt::format("blocks {}-{}: ", begin, end - 1);
    text += Describe(blocks[begin]);
    begin = end;
  }
  return text;
}

}  // namespace pmkvq
