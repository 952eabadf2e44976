// Golden inputs and outputs of published methods (tests/golden/methods): tensors, and a cache of
// one sequence that is given them.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "pmkvq/io/safetensors.h"
#include "pmkvq/research/methods/registry.h"

namespace pmkvq::testing_support {

class MethodGolden {
 public:
  explicit MethodGolden(const std::string& name)
      : file_(SafetensorsFile::Open(PMKVQ_SOURCE_DIR "/tests/golden/methods/" + name +
                                    ".safetensors")) {}

  const Shape& ShapeOf(const std::string& name) const { return Find(name).shape; }
  std::vector<float> Floats(const std::string& name) const { return Copy<float>(name); }
  std::vector<int32_t> Integers(const std::string& name) const { return Copy<int32_t>(name); }
  std::vector<uint8_t> Bytes(const std::string& name) const { return Copy<uint8_t>(name); }

 private:
  const TensorView& Find(const std::string& name) const {
    const TensorView* view = file_.Find(name);
    if (view == nullptr) throw std::runtime_error("no tensor " + name);
    return *view;
  }
  template <class T>
  std::vector<T> Copy(const std::string& name) const {
    const TensorView& view = Find(name);
    std::vector<T> out(static_cast<size_t>(view.num_elements()));
    EXPECT_EQ(view.num_bytes(), out.size() * sizeof(T)) << name;
    std::copy_n(reinterpret_cast<const T*>(view.data), out.size(), out.begin());
    return out;
  }

  SafetensorsFile file_;
};

// Floats of a golden: 1e-4 of the largest magnitude. Up to `near_ties` values may be off by more:
// their codes lie at a rounding tie.
inline void ExpectGolden(const std::vector<float>& found, const std::vector<float>& expected,
                         int64_t near_ties = 0) {
  ASSERT_EQ(found.size(), expected.size());
  float largest = 0;
  for (const float x : expected) largest = std::max(largest, std::abs(x));
  int64_t odd = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    if (std::abs(found[i] - expected[i]) <= 1e-4f * largest) continue;
    ++odd;
    EXPECT_LE(odd, near_ties) << "index " << i << ": " << found[i] << ", expected " << expected[i];
    if (odd > near_ties + 3) return;
  }
}

// One sequence in a cache of a SPEC. Rows are given as [L, Hkv, T, D], as goldens have them; keys
// are handed to the method as they are, before RoPE where it works there. Queries are 0.
class GoldenCache {
 public:
  GoldenCache(const std::string& spec, const UniformKvGeometry& geometry, std::vector<float> k,
              std::vector<float> v, DType kv_dtype = DType::kF32)
      : geometry_(geometry), rope_(RopeOf(geometry)), k_(std::move(k)), v_(std::move(v)) {
    KvOptions options;
    options.spec = spec;
    options.kv_dtype = kv_dtype;
    store_ = MakeKvStore(options, {geometry, 1, 4096, 1, &rope_});
    seq_ = *store_->Open();
  }

  // The next `count` tokens.
  void Append(int64_t count, bool ends_prompt = false) {
    ASSERT_EQ(store_->Reserve(seq_, count), ReserveResult::kReserved);
    store_->BeginForward({{.seq = seq_, .num_tokens = count, .ends_prompt = ends_prompt}});
    const std::vector<float> q(static_cast<size_t>(count * geometry_.num_heads * dim()));
    std::vector<float> out(q.size());
    for (int64_t layer = 0; layer < geometry_.num_layers; ++layer) {
      const std::vector<float> k = RowsOf(k_, layer, count);
      const std::vector<float> v = RowsOf(v_, layer, count);
      store_->OfferExtras(layer, {k.data(), q.data(), geometry_.num_heads * dim()});
      store_->AppendAndAttend(layer, q.data(), k.data(), v.data(), out.data());
    }
    store_->EndForward();
    ASSERT_EQ(store_->FailureOf(seq_), nullptr);
    stored_ += count;
  }

  // What is stored of all tokens given, [L, Hkv, T, D].
  std::vector<float> Keys() const { return Read(true); }
  std::vector<float> Values() const { return Read(false); }
  KvStore& store() { return *store_; }
  SequenceId seq() const { return seq_; }

 private:
  static RopeTable RopeOf(const UniformKvGeometry& geometry) {
    RopeParams params;
    params.head_dim = geometry.head_dim;
    return RopeTable(params);
  }
  int64_t dim() const { return geometry_.head_dim; }
  int64_t num_tokens() const {
    return std::ssize(k_) / (geometry_.num_layers * geometry_.kv_dim());
  }
  size_t At(int64_t layer, int64_t head, int64_t token) const {
    return static_cast<size_t>(((layer * geometry_.num_kv_heads + head) * num_tokens() + token) *
                               dim());
  }
  // Tokens stored_ .. stored_ + count - 1 of a block, as [count, Hkv, D].
  std::vector<float> RowsOf(const std::vector<float>& all, int64_t layer, int64_t count) const {
    std::vector<float> rows;
    for (int64_t t = stored_; t < stored_ + count; ++t) {
      for (int64_t head = 0; head < geometry_.num_kv_heads; ++head) {
        const auto begin = all.begin() + static_cast<std::ptrdiff_t>(At(layer, head, t));
        rows.insert(rows.end(), begin, begin + dim());
      }
    }
    return rows;
  }
  std::vector<float> Read(bool keys) const {
    std::vector<float> rows;
    for (int64_t layer = 0; layer < geometry_.num_layers; ++layer) {
      const SimulatedBlock& block =
          dynamic_cast<const SimulatedKvCache&>(*store_).Block(seq_, layer);
      for (int64_t head = 0; head < geometry_.num_kv_heads; ++head) {
        for (int64_t t = 0; t < block.num_tokens(); ++t) {
          const float* row = keys ? block.Key(t, head) : block.Value(t, head);
          rows.insert(rows.end(), row, row + dim());
        }
      }
    }
    return rows;
  }

  UniformKvGeometry geometry_;
  RopeTable rope_;
  std::vector<float> k_;
  std::vector<float> v_;
  std::unique_ptr<KvStore> store_;
  SequenceId seq_ = 0;
  int64_t stored_ = 0;
};

}  // namespace pmkvq::testing_support
