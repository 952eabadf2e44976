// For tests and benchmarks: a sequence of random keys and values stored in pages of chosen widths.
#pragma once

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "pmkvq/kernels/attention/attention.h"
#include "pmkvq/kernels/attention/random_page_data.h"

namespace pmkvq {

struct PageSpec {
  int k_bits = 16;
  int v_bits = 16;
  int32_t num_tokens = 128;
  int32_t capacity = 128;
  QuantAxis k_axis = QuantAxis::kToken;
};

// Owns pages and one chunk of new rows. `shift` moves page data by that many elements, so that
// nothing is aligned to more than its element.
class RandomSequence {
 public:
  RandomSequence(const AttentionShape& shape, const std::vector<PageSpec>& specs, int64_t num_rows,
                 uint32_t seed = 1, int64_t shift = 0)
      : shape_(shape),
        num_rows_(num_rows),
        data_(shape.float_type, shape.metadata_type, shift),
        random_(seed) {
    for (const PageSpec& spec : specs) {
      tokens_.push_back({spec.num_tokens, spec.capacity});
      KvPageView page;
      page.k = MakeTensor(spec.k_bits, spec.capacity, spec.k_axis, /*outliers=*/true);
      page.v = MakeTensor(spec.v_bits, spec.capacity, QuantAxis::kToken, /*outliers=*/false);
      pages_.push_back(page);
    }
    const int64_t kv_size = num_rows * shape.num_kv_heads * shape.head_dim;
    q_ = Normal(num_rows * shape.num_heads * shape.head_dim, false);
    k_new_ = Normal(kv_size, true);
    v_new_ = Normal(kv_size, false);
    out_.assign(q_.size(), -1.0f);
  }

  // Its part of a batch, with rows from `first_row` on.
  AttentionSequence sequence(int64_t first_row = 0) const {
    return {tokens_, num_rows_, first_row};
  }
  const KvPageView* pages() const { return pages_.data(); }
  // Of a batch of this sequence alone; valid while it lives.
  AttentionOperands operands() {
    first_page_ = pages_.data();
    return {.pages = {&first_page_, 1},
            .q = q_.data(),
            .k_new = k_new_.data(),
            .v_new = v_new_.data(),
            .out = out_.data()};
  }
  // By the oracle, into out().
  void AttendByOracle() {
    const AttentionSequence only = sequence();
    ref::Attend(shape_, {&only, 1}, operands());
  }

  std::vector<float>& q() { return q_; }
  std::vector<float>& k_new() { return k_new_; }
  std::vector<float>& v_new() { return v_new_; }
  std::vector<float>& out() { return out_; }
  // Largest magnitudes of the values behind K and V.
  float max_k() const { return max_k_; }
  float max_v() const { return max_v_; }

 private:
  // Normal values; keys have a few large channels, as real ones do.
  std::vector<float> Normal(int64_t count, bool outliers) {
    std::normal_distribution<float> normal;
    std::vector<float> x(static_cast<size_t>(count));
    float& max = outliers ? max_k_ : max_v_;
    for (int64_t i = 0; i < count; ++i) {
      const float large = outliers && i % shape_.head_dim % 29 == 5 ? 4.0f : 0.0f;
      x[static_cast<size_t>(i)] = normal(random_) + large;
      max = std::max(max, std::abs(x[static_cast<size_t>(i)]));
    }
    return x;
  }

  // [heads, capacity, D] to [heads, D, capacity].
  std::vector<float> Transposed(const std::vector<float>& x, int64_t capacity) const {
    std::vector<float> out;
    out.reserve(x.size());
    for (int64_t head = 0; head < shape_.num_kv_heads; ++head) {
      for (int64_t d = 0; d < shape_.head_dim; ++d) {
        for (int64_t t = 0; t < capacity; ++t) {
          out.push_back(x[static_cast<size_t>((head * capacity + t) * shape_.head_dim + d)]);
        }
      }
    }
    return out;
  }

  KvTensorView MakeTensor(int bits, int64_t capacity, QuantAxis axis, bool outliers) {
    const int64_t heads = shape_.num_kv_heads;
    const bool by_channel = axis == QuantAxis::kChannel;
    const int64_t group = by_channel ? capacity : shape_.group;
    std::vector<float> x = Normal(heads * capacity * shape_.head_dim, outliers);
    if (by_channel) x = Transposed(x, capacity);
    KvTensorView view = data_.Store(x, bits, heads, group);
    view.axis = axis;
    return view;
  }

  AttentionShape shape_;
  int64_t num_rows_;
  RandomPageData data_;
  std::mt19937 random_;
  std::vector<PageTokens> tokens_;
  std::vector<KvPageView> pages_;
  const KvPageView* first_page_ = nullptr;
  std::vector<float> q_;
  std::vector<float> k_new_;
  std::vector<float> v_new_;
  std::vector<float> out_;
  float max_k_ = 0.0f;
  float max_v_ = 0.0f;
};

}  // namespace pmkvq
