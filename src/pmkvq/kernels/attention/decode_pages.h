// For tests: sequences with random pages of chosen widths in one arena, in fragment order.
#pragma once

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "pmkvq/kernels/attention/random_batch_memory.h"

namespace pmkvq {

struct DecodeSequenceSpec {
  int32_t num_tokens = 0;
  std::vector<PageBits> bits =
      {};             // Of its pages in turn, again and again; the last page is 16 bits.
  uint32_t seed = 1;  // Of its pages and queries: the same in any batch.
};

// What is not in use is poisoned: metadata of 16-bit pages, keys behind the last token, pages that
// a window hides, everything between slots. Values behind the last token are 0, as AppendTokens
// leaves them.
class RandomDecodeBatch : public RandomBatchMemory {
 public:
  // Scores have a standard deviation of about `deviation`; `v_scale` multiplies values.
  RandomDecodeBatch(const DecodeShape& shape, const std::vector<DecodeSequenceSpec>& specs,
                    float deviation = 2.0f, float v_scale = 1.0f)
      : RandomBatchMemory(shape.float_type), shape_(shape) {
    for (const DecodeSequenceSpec& spec : specs) {
      max_pages_ = std::max(max_pages_, NumPages(spec));
    }
    for (const DecodeSequenceSpec& spec : specs) Add(spec, deviation, v_scale);
  }

 private:
  int64_t NumPages(const DecodeSequenceSpec& spec) const {
    return (shape_.sink.InPages(spec.num_tokens) + 127) / 128;
  }

  // Codes or floats of one side of a page; gives its metadata.
  uint32_t MakeSide(bool is_values, int bits, int tokens, float scale, uint32_t& data) {
    const auto dim = static_cast<int>(shape_.head_dim);
    const int block = fragment::BlockBytes(bits, dim);
    data = Allocate(static_cast<size_t>(shape_.num_kv_heads * block));
    if (bits != 16) {
      for (int64_t i = 0; i < shape_.num_kv_heads * block; ++i) {
        At(data)[i] = static_cast<std::byte>(random_() & 0xff);
      }
      const int64_t groups = fragment::GroupsOfHead(dim, shape_.keys_by_channel && !is_values);
      const uint32_t metadata = Allocate(static_cast<size_t>(shape_.num_kv_heads * 4 * groups));
      std::uniform_real_distribution<float> uniform;
      for (int64_t i = 0; i < shape_.num_kv_heads * 2 * groups; ++i) {
        const bool is_range = i / groups % 2 == 1;
        const float u = uniform(random_);
        PutHalf(At(metadata) + 2 * i, scale * (is_range ? 4.0f + 2.5f * u : -3.2f + u));
      }
      return metadata;
    }
    const fragment::BlockShape shape = fragment::ShapeOf(is_values, dim);
    for (int64_t head = 0; head < shape_.num_kv_heads; ++head) {
      for (int row = 0; row < shape.rows; ++row) {
        for (int col = 0; col < shape.cols; ++col) {
          const int token = is_values ? col : row;
          const fragment::Place place = fragment::PlaceOf(16, shape, row, col);
          std::byte* at = At(data) + head * block + place.byte + place.shift / 8;
          if (token < tokens) {
            PutHalf(at, 1.5f * scale * Normal());
          } else if (is_values) {
            PutHalf(at, 0.0f);
          }
        }
      }
    }
    return 0xffffffffu;
  }

  uint32_t MakeRest(int32_t tokens, float scale) {
    const uint32_t slot = Allocate(
        static_cast<size_t>(shape_.num_kv_heads * shape_.head_dim * shape_.sink.rest_tokens * 2));
    for (int64_t head = 0; head < shape_.num_kv_heads; ++head) {
      for (int64_t i = 0; i < tokens * shape_.head_dim; ++i) {
        PutHalf(At(slot) + 2 * (head * shape_.sink.rest_tokens * shape_.head_dim + i),
                1.5f * scale * Normal());
      }
    }
    return slot;
  }

  void Add(const DecodeSequenceSpec& spec, float deviation, float v_scale) {
    Seed(spec.seed);
    const int64_t pages = NumPages(spec);
    const int32_t in_pages = shape_.sink.InPages(spec.num_tokens);
    const int32_t first_seen = shape_.sink.InPages(shape_.Hidden(spec.num_tokens)) / 128;
    for (int64_t p = 0; p < max_pages_; ++p) {
      PageEntry entry{0xffffffffu, 0xffffffffu, 0xffffffffu, 0xffffffffu};
      PageBits bits;
      if (p >= first_seen && p < pages) {
        const bool is_open = p + 1 == pages || spec.bits.empty();
        if (!is_open) bits = spec.bits[static_cast<size_t>(p) % spec.bits.size()];
        const auto tokens = static_cast<int>(std::min<int64_t>(128, in_pages - p * 128));
        entry.k_metadata = MakeSide(false, bits.k, tokens, 1.0f, entry.k);
        entry.v_metadata = MakeSide(true, bits.v, tokens, v_scale, entry.v);
      }
      entries_.push_back(entry);
      bits_.push_back(bits);
    }
    sink_rests_.push_back(MakeRest(shape_.sink.InRest(spec.num_tokens), 1.0f));
    sink_rests_.push_back(MakeRest(shape_.sink.InRest(spec.num_tokens), v_scale));
    num_tokens_.push_back(spec.num_tokens);
    // Keys have a standard deviation of 1.5.
    const float q_scale =
        deviation / (1.5f * shape_.scale * std::sqrt(static_cast<float>(shape_.head_dim)));
    for (int64_t i = 0; i < shape_.num_heads * shape_.head_dim; ++i) {
      q_.push_back(ToF16(q_scale * Normal()));
    }
  }

  DecodeShape shape_;
};

}  // namespace pmkvq
