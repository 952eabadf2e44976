// For tests: sequences with random latents of chosen widths in one arena, in fragment order.
#pragma once

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "pmkvq/kernels/attention/latent_decode.h"
#include "pmkvq/kernels/attention/random_batch_memory.h"

namespace pmkvq {

struct LatentSequenceSpec {
  int32_t num_tokens = 0;
  std::vector<PageBits> bits = {};  // Of c and k_r of its pages in turn; the last page is 16 bits.
  uint32_t seed = 1;                // Of its pages and queries: the same in any batch.
};

// What is not in use is poisoned: metadata of 16-bit pages, rows behind the last token, everything
// between slots.
class RandomLatentBatch : public RandomBatchMemory {
 public:
  // Scores have a standard deviation of about `deviation`; `scale` multiplies latents.
  RandomLatentBatch(const LatentDecodeShape& shape, const std::vector<LatentSequenceSpec>& specs,
                    float deviation = 2.0f, float scale = 1.0f)
      : RandomBatchMemory(DType::kF16), shape_(shape) {
    for (const LatentSequenceSpec& spec : specs) {
      max_pages_ = std::max(max_pages_, NumPages(spec));
    }
    for (const LatentSequenceSpec& spec : specs) Add(spec, deviation, scale);
  }

 private:
  int64_t NumPages(const LatentSequenceSpec& spec) const {
    return (shape_.sink.InPages(spec.num_tokens) + 127) / 128;
  }

  // Codes or floats of one stream of a page, `heads` x `dim`; gives its metadata.
  uint32_t MakeStream(int64_t heads, int dim, int bits, int tokens, float scale, uint32_t& data) {
    const int block = fragment::BlockBytes(bits, dim);
    data = Allocate(static_cast<size_t>(heads * block));
    if (bits != 16) {
      for (int64_t i = 0; i < heads * block; ++i) {
        At(data)[i] = static_cast<std::byte>(random_() & 0xff);
      }
      const uint32_t metadata =
          Allocate(static_cast<size_t>(heads) * static_cast<size_t>(fragment::MetadataBytes()));
      std::uniform_real_distribution<float> uniform;
      for (int64_t i = 0; i < heads * 2 * fragment::kTokens; ++i) {
        const bool is_range = i / fragment::kTokens % 2 == 1;
        const float u = uniform(random_);
        PutHalf(At(metadata) + 2 * i, scale * (is_range ? 4.0f + 2.5f * u : -3.2f + u));
      }
      return metadata;
    }
    const fragment::BlockShape shape = fragment::ShapeOf(/*is_values=*/false, dim);
    for (int64_t head = 0; head < heads; ++head) {
      for (int token = 0; token < tokens; ++token) {
        for (int d = 0; d < dim; ++d) {
          const fragment::Place place = fragment::PlaceOf(16, shape, token, d);
          PutHalf(At(data) + head * block + place.byte + place.shift / 8, 1.5f * scale * Normal());
        }
      }
    }
    return 0xffffffffu;
  }

  uint32_t MakeRest(int64_t heads, int64_t dim, int32_t tokens, float scale) {
    const uint32_t slot =
        Allocate(static_cast<size_t>(heads * dim * std::max(1, shape_.sink.rest_tokens) * 2));
    for (int64_t head = 0; head < heads; ++head) {
      for (int64_t i = 0; i < tokens * dim; ++i) {
        PutHalf(At(slot) + 2 * (head * shape_.sink.rest_tokens * dim + i), 1.5f * scale * Normal());
      }
    }
    return slot;
  }

  void Add(const LatentSequenceSpec& spec, float deviation, float scale) {
    Seed(spec.seed);
    const int64_t pages = NumPages(spec);
    const int32_t in_pages = shape_.sink.InPages(spec.num_tokens);
    const auto rope = static_cast<int>(shape_.rope);
    for (int64_t p = 0; p < max_pages_; ++p) {
      PageEntry entry{0xffffffffu, 0xffffffffu, 0xffffffffu, 0xffffffffu};
      PageBits bits;
      if (p < pages) {
        const bool is_open = p + 1 == pages || spec.bits.empty();
        if (!is_open) bits = spec.bits[static_cast<size_t>(p) % spec.bits.size()];
        const auto tokens = static_cast<int>(std::min<int64_t>(128, in_pages - p * 128));
        entry.k_metadata = MakeStream(shape_.groups(), static_cast<int>(kLatentGroup), bits.k,
                                      tokens, scale, entry.k);
        entry.v_metadata = MakeStream(1, rope, bits.v, tokens, 1.0f, entry.v);
      }
      entries_.push_back(entry);
      bits_.push_back(bits);
    }
    const int32_t rest = shape_.sink.InRest(spec.num_tokens);
    sink_rests_.push_back(MakeRest(shape_.groups(), kLatentGroup, rest, scale));
    sink_rests_.push_back(MakeRest(1, shape_.rope, rest, 1.0f));
    num_tokens_.push_back(spec.num_tokens);
    // Latents have a standard deviation of 1.5 scale.
    const float q_scale = deviation / (1.5f * std::sqrt(static_cast<float>(shape_.key_values())));
    for (int64_t i = 0; i < shape_.num_heads * shape_.key_values(); ++i) {
      const bool is_latent = i % shape_.key_values() < shape_.latent;
      q_.push_back(ToF16(q_scale * Normal() / (is_latent ? scale : 1.0f)));
    }
  }

  LatentDecodeShape shape_;
};

}  // namespace pmkvq
