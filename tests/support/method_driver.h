// Drives a simulated method through the registry with rows that are a function of the position.
// The rows of q serve as the block's input, too.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "pmkvq/base/float16.h"
#include "pmkvq/research/methods/registry.h"
#include "support/cache_driver.h"

namespace pmkvq::testing_support {

class MethodDriver {
 public:
  // One block of 2 KV heads by default.
  explicit MethodDriver(const std::string& spec, const UniformKvGeometry& geometry = {1, 4, 2, 64},
                        DType kv_dtype = DType::kF16, uint64_t seed = 3)
      : geometry_(geometry), seed_(seed), rope_(RopeOf(geometry)) {
    KvOptions options;
    options.spec = spec;
    options.kv_dtype = kv_dtype;
    store_ = MakeKvStore(options, {geometry, 1, 4096, 1, &rope_});
    seq_ = *store_->Open();
  }

  void Append(int64_t num_tokens, bool ends_prompt = false) {
    ASSERT_EQ(store_->Reserve(seq_, num_tokens), ReserveResult::kReserved);
    const int64_t first = store_->NumTokens(seq_);
    store_->BeginForward({{seq_, num_tokens, false, ends_prompt}});
    for (int64_t layer = 0; layer < geometry_.num_layers; ++layer) {
      Rows rows = MakeRows(geometry_, seed_, layer, first, num_tokens);
      std::vector<float> out(rows.q.size());
      const std::vector<float> before_rope = rows.k;
      if (store_->ExtraNeeds().keys_before_rope) {
        std::vector<int64_t> positions(static_cast<size_t>(num_tokens));
        std::iota(positions.begin(), positions.end(), first);
        ApplyRope(rope_, positions.data(), num_tokens, geometry_.num_kv_heads, nullptr,
                  rows.k.data(), 1);
      }
      store_->OfferExtras(
          layer, {before_rope.data(), rows.q.data(), geometry_.num_heads * geometry_.head_dim});
      store_->AppendAndAttend(layer, rows.q.data(), rows.k.data(), rows.v.data(), out.data());
    }
    store_->EndForward();
  }

  // What was handed over for tokens [0, num_tokens) of block 0, k and v rounded to f16, k before
  // RoPE where the method works there.
  Rows Given(int64_t num_tokens) const {
    Rows rows = MakeRows(geometry_, seed_, 0, 0, num_tokens);
    for (float& x : rows.k) x = ToFloat(ToF16(x));
    for (float& x : rows.v) x = ToFloat(ToF16(x));
    return rows;
  }

  const SimulatedBlock& block(int64_t layer = 0) const {
    return dynamic_cast<const SimulatedKvCache&>(*store_).Block(seq_, layer);
  }
  const CacheMethod& method() const {
    return dynamic_cast<const SimulatedKvCache&>(*store_).method();
  }
  KvSequenceStats stats() const { return store_->SequenceStats(seq_); }
  // What is stored, as rows [T, Hkv, D].
  KeysAndValues Stored() const {
    KeysAndValues rows;
    for (int64_t t = 0; t < block().num_tokens(); ++t) {
      for (int64_t head = 0; head < geometry_.num_kv_heads; ++head) {
        const float* k = block().Key(t, head);
        const float* v = block().Value(t, head);
        rows.first.insert(rows.first.end(), k, k + geometry_.head_dim);
        rows.second.insert(rows.second.end(), v, v + geometry_.head_dim);
      }
    }
    return rows;
  }
  int64_t BlockBytes() const { return store_->LayerStats(seq_, 0).bytes; }
  KvStore& store() { return *store_; }
  SequenceId seq() const { return seq_; }
  const UniformKvGeometry& geometry() const { return geometry_; }

 private:
  static RopeTable RopeOf(const UniformKvGeometry& geometry) {
    RopeParams params;
    params.head_dim = geometry.head_dim;
    return RopeTable(params);
  }

  UniformKvGeometry geometry_;
  uint64_t seed_;
  RopeTable rope_;
  std::unique_ptr<KvStore> store_;
  SequenceId seq_ = 0;
};

// Appends chunks of these sizes; after each one, what is stored is what `expected` makes of the n
// rows that were given: KeysAndValues expected(const Rows& given, int64_t n).
template <class Expected>
void ExpectAfterEachAppend(MethodDriver& driver, const std::vector<int64_t>& chunks,
                           float tolerance, const Expected& expected) {
  for (const int64_t chunk : chunks) {
    driver.Append(chunk);
    const int64_t n = driver.store().NumTokens(driver.seq());
    const KeysAndValues wanted = expected(driver.Given(n), n);
    const KeysAndValues stored = driver.Stored();
    for (size_t i = 0; i < wanted.first.size(); ++i) {
      ASSERT_NEAR(stored.first[i], wanted.first[i], tolerance) << n << " " << i;
      ASSERT_NEAR(stored.second[i], wanted.second[i], tolerance) << n << " " << i;
    }
  }
}

}  // namespace pmkvq::testing_support
