// Values whose metadata a simulated method cannot hold end their sequence: of every method, keys
// and values, single rows and whole windows.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "pmkvq/research/methods/registry.h"
#include "support/cache_driver.h"

namespace pmkvq {
namespace {

using testing_support::MakeRows;
using testing_support::Rows;

constexpr UniformKvGeometry kGeometry = {1, 4, 2, 64};
constexpr int64_t kTokens = 400;  // Beyond every window and first block.

RopeTable MakeRope() {
  RopeParams params;
  params.head_dim = kGeometry.head_dim;
  return RopeTable(params);
}

// Appends kTokens tokens, `odd` having been applied to the rows of each chunk, and returns the
// failure, "" for none.
template <class Odd>
std::string Append(const std::string& spec, DType type, int64_t chunk, const Odd& odd) {
  static const RopeTable rope = MakeRope();
  KvOptions options;
  options.spec = spec;
  options.kv_dtype = type;
  const std::unique_ptr<KvStore> store = MakeKvStore(options, {kGeometry, 1, 4096, 1, &rope});
  const SequenceId seq = store->Open().value();
  for (int64_t first = 0; first < kTokens; first += chunk) {
    EXPECT_EQ(store->Reserve(seq, chunk), ReserveResult::kReserved);
    Rows rows = MakeRows(kGeometry, 5, 0, first, chunk);
    odd(rows);
    std::vector<float> out(rows.q.size());
    store->BeginForward({{seq, chunk}});
    store->OfferExtras(0, {rows.k.data(), rows.q.data(), kGeometry.num_heads * 64});
    store->AppendAndAttend(0, rows.q.data(), rows.k.data(), rows.v.data(), out.data());
    store->EndForward();
    if (const KvFailure* failure = store->FailureOf(seq)) {
      const std::string text = failure->where + ": " + failure->what;
      EXPECT_EQ(store->Reserve(seq, 1), ReserveResult::kFailed);
      store->Close(seq);
      EXPECT_TRUE(store->Open().has_value());
      return text;
    }
    for (const float x : out) EXPECT_TRUE(std::isfinite(x)) << spec;
  }
  return "";
}

// All rows are multiplied by 30000, so that a group spans 120000, or each value is at an end of
// f16.
std::vector<std::string> Specs() {
  return {"rtn:bits=8",
          "rtn:bits=2",
          "kivi:bits=4",
          "kivi:reference",
          "mikv",
          "mixkvq",
          "rotatekv:bits=4",
          "kitty",
          "oscar:hadamard",
          "kvmix:k=3+v=2",
          "mikv:high=8",
          "kvtuner:k=8+v=8",
          "kvtuner:axis=token",
          "tada:bits=8",
          "decoquant:bits=8",
          "kvarn",
          "turboquant",
          "qaq",
          "xquant:km=0+vq=0"};
}

bool IsOneOf(const std::string& spec, std::initializer_list<const char*> methods) {
  return std::any_of(methods.begin(), methods.end(),
                     [&](const char* method) { return spec.starts_with(method); });
}

TEST(UnfitValues, ARangeBeyondF16EndsTheSequence) {
  for (const std::string& spec : Specs()) {
    // These store a step or scales, which fit.
    if (IsOneOf(spec, {"rotatekv", "decoquant", "kvarn"})) continue;
    for (const bool keys : {true, false}) {
      if (spec.starts_with("mikv") && keys) continue;  // Divides them by a balancer.
      for (const int64_t chunk : {20, 100}) {
        SCOPED_TRACE(testing::Message() << spec << (keys ? " keys" : " values") << chunk);
        const auto widen = [&](Rows& rows) {
          for (float& x : keys ? rows.k : rows.v) x = x < 0.5f ? -60000.0f : 60000.0f;
        };
        const std::string failure = Append(spec, DType::kF16, chunk, widen);
        EXPECT_EQ(failure.find("kv cache, block 0, position"), 0u) << failure;
        EXPECT_NE(failure.find("f16"), std::string::npos) << failure;
        EXPECT_NE(failure.find("--kv-dtype bf16 holds it"), std::string::npos) << failure;
        EXPECT_EQ(Append(spec, DType::kBF16, chunk, widen), "");
      }
    }
  }
}

// A group just below the largest f16: what it reads back as must stay finite in attention.
TEST(UnfitValues, TheEndsOfF16AreHeld) {
  for (const std::string& spec : Specs()) {
    // Sums and norms are beyond.
    if (IsOneOf(spec, {"rotatekv", "oscar", "turboquant", "kvarn"})) continue;
    SCOPED_TRACE(spec);
    EXPECT_EQ(Append(spec, DType::kF16, 100,
                     [](Rows& rows) {
                       for (float& x : rows.v) x = x < 0.5f ? 20.0f : 65504.0f;
                     }),
              "");
  }
}

TEST(UnfitValues, ValuesThatAreNotFiniteEndTheSequence) {
  for (const std::string& spec : Specs()) {
    for (const float odd : {std::nanf(""), INFINITY, -INFINITY}) {
      for (const bool keys : {true, false}) {
        const std::string failure = Append(spec, DType::kF32, 100, [&](Rows& rows) {
          (keys ? rows.k : rows.v)[3 * 128 + 7] = odd;
        });
        EXPECT_EQ(failure.find("kv cache, block 0, position 3: "), 0u) << spec << failure;
      }
    }
  }
}

}  // namespace
}  // namespace pmkvq
