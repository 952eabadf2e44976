// For tests and benchmarks: a sequence of random latents stored in pages of chosen widths.
#pragma once

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "pmkvq/kernels/attention/latent_attention.h"
#include "pmkvq/kernels/attention/random_page_data.h"

namespace pmkvq {

struct LatentPageSpec {
  int latent_bits = 16;
  int rope_bits = 16;
  int32_t num_tokens = 128;
  int32_t capacity = 128;
};

// Owns pages and one chunk of new rows. `shift` moves page data by that many elements, so that
// nothing is aligned to more than its element.
class RandomLatents {
 public:
  RandomLatents(const LatentShape& shape, const std::vector<LatentPageSpec>& specs,
                int64_t num_rows, uint32_t seed = 1, int64_t shift = 0)
      : shape_(shape),
        num_rows_(num_rows),
        data_(shape.float_type, shape.metadata_type, shift),
        random_(seed) {
    for (const LatentPageSpec& spec : specs) {
      tokens_.push_back({spec.num_tokens, spec.capacity});
      pages_.push_back(
          {MakeTensor(spec.latent_bits, spec.capacity, shape.latent / shape.group, shape.group),
           MakeTensor(spec.rope_bits, spec.capacity, 1, shape.rope)});
    }
    const auto scale = 1.0f / std::sqrt(static_cast<float>(shape.key_values()));
    q_ = Normal(num_rows * shape.num_heads * shape.key_values());
    for (float& q : q_) q *= scale;
    c_new_ = Normal(num_rows * shape.latent);
    kr_new_ = Normal(num_rows * shape.rope);
    out_.assign(static_cast<size_t>(num_rows * shape.num_heads * shape.latent), -1.0f);
  }

  // Its part of a batch, with rows from `first_row` on.
  AttentionSequence sequence(int64_t first_row = 0) const {
    return {tokens_, num_rows_, first_row};
  }
  const KvPageView* pages() const { return pages_.data(); }
  // Of a batch of this sequence alone; valid while it lives.
  LatentOperands operands() {
    first_page_ = pages_.data();
    return {.pages = {&first_page_, 1},
            .q = q_.data(),
            .c_new = c_new_.data(),
            .kr_new = kr_new_.data(),
            .out = out_.data()};
  }
  // By the oracle, into out().
  void AttendByOracle() {
    const AttentionSequence only = sequence();
    ref::AttendLatents(shape_, {&only, 1}, operands());
  }

  std::vector<float>& q() { return q_; }
  std::vector<float>& c_new() { return c_new_; }
  std::vector<float>& kr_new() { return kr_new_; }
  std::vector<float>& out() { return out_; }
  float max_value() const { return max_value_; }  // The largest magnitude behind c and k_r.

 private:
  // Normal values with a few large channels.
  std::vector<float> Normal(int64_t count) {
    std::normal_distribution<float> normal;
    std::vector<float> x(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i) {
      x[static_cast<size_t>(i)] = normal(random_) + (i % 29 == 5 ? 3.0f : 0.0f);
      max_value_ = std::max(max_value_, std::abs(x[static_cast<size_t>(i)]));
    }
    return x;
  }

  KvTensorView MakeTensor(int bits, int64_t capacity, int64_t heads, int64_t group) {
    return data_.Store(Normal(heads * capacity * group), bits, heads, group);
  }

  LatentShape shape_;
  int64_t num_rows_;
  RandomPageData data_;
  std::mt19937 random_;
  std::vector<PageTokens> tokens_;
  std::vector<KvPageView> pages_;
  const KvPageView* first_page_ = nullptr;
  std::vector<float> q_;
  std::vector<float> c_new_;
  std::vector<float> kr_new_;
  std::vector<float> out_;
  float max_value_ = 0.0f;
};

}  // namespace pmkvq
