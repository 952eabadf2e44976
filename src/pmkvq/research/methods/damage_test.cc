// What `pmkvq damage` computes is what the cache of a model would hold.
#include "pmkvq/research/methods/damage.h"

#include <gtest/gtest.h>

#include <functional>
#include <initializer_list>
#include <limits>
#include <numeric>

#include "pmkvq/base/error.h"
#include "support/damage_rows.h"
#include "support/expect_error.h"
#include "support/method_driver.h"

namespace pmkvq {
namespace {

using testing_support::ByHead;
using testing_support::ByToken;
using testing_support::Damaged;
using testing_support::ExpectError;
using testing_support::MethodDriver;
using testing_support::NamedTensors;
using testing_support::Rows;
using testing_support::TensorsOf;

constexpr UniformKvGeometry kGeometry{1, 4, 2, 64};
constexpr int64_t kTokens = 150;
constexpr int64_t kPrompt = 70;

// What every method may ask for. Those before RoPE get the rows that the driver takes for them.
NamedTensors AllTensors() {
  NamedTensors tensors = TensorsOf(kGeometry, kTokens);
  tensors.emplace("keys_before_rope", tensors.at("k"));
  const Rows rows = testing_support::MakeRows(kGeometry, 3, 0, 0, kTokens);
  Tensor input(DType::kF32, {1, kTokens, kGeometry.num_heads * kGeometry.head_dim});
  std::copy(rows.q.begin(), rows.q.end(), input.As<float>());
  tensors.emplace("block_input", std::move(input));
  return tensors;
}

class DamageOfMethods : public testing::TestWithParam<const char*> {};

TEST_P(DamageOfMethods, IsThatOfAModelsCache) {
  const DamageResult result = Damaged(AllTensors(), GetParam(), kPrompt, DType::kF16);
  MethodDriver driver(GetParam());
  driver.Append(kPrompt);
  ASSERT_EQ(result.bytes.size(), static_cast<size_t>(kTokens));
  for (int64_t n = kPrompt; n <= kTokens; ++n) {
    if (n > kPrompt) driver.Append(1);
    ASSERT_EQ(result.bytes[static_cast<size_t>(n - 1)], driver.BlockBytes()) << n;
  }
  EXPECT_EQ(ByToken(result.k_read), driver.Stored().first);
  EXPECT_EQ(ByToken(result.v_read), driver.Stored().second);
  EXPECT_EQ(result.peak_bytes, driver.store().SequenceStats(driver.seq()).peak_bytes);
  EXPECT_EQ(result.kept_share, 1.0);
  const auto* const kept = result.kept.As<uint8_t>();
  EXPECT_EQ(std::accumulate(kept, kept + result.kept.num_elements(), int64_t{0}), 2 * kTokens);
}

// Windows, attention, queries, keys before RoPE and block inputs.
INSTANTIATE_TEST_SUITE_P(Specs, DamageOfMethods,
                         testing::Values("kivi:residual=32", "rtn", "mikv", "mixkvq:residual=32",
                                         "rotatekv", "kitty:sink=4"));

TEST(Damage, BytesWithinAPromptAreThoseOfItsLengths) {
  const DamageResult whole = Damaged(AllTensors(), "kivi:residual=32", kPrompt);
  const DamageResult single = Damaged(AllTensors(), "kivi:residual=32");
  EXPECT_EQ(whole.bytes, single.bytes);
  EXPECT_EQ(ByToken(whole.k_read), ByToken(single.k_read));
}

TEST(Damage, PagesAreReadAsTheyAre) {
  NamedTensors tensors = TensorsOf(kGeometry, kTokens);
  tensors.erase("q");
  const DamageResult exact = Damaged(tensors, "fp16", kPrompt);
  EXPECT_EQ(ByToken(exact.k_read), ByToken(tensors.at("k")));
  EXPECT_EQ(ByToken(exact.v_read), ByToken(tensors.at("v")));
  const DamageResult closed = Damaged(tensors, "static-4", kPrompt);
  const std::vector<float> found = ByToken(closed.k_read);
  const std::vector<float> given = ByToken(tensors.at("k"));
  const auto row = static_cast<std::ptrdiff_t>(kGeometry.kv_dim());
  EXPECT_TRUE(std::equal(found.begin() + 129 * row, found.end(), given.begin() + 129 * row));
  EXPECT_NE(found, given);
  EXPECT_LT(closed.bytes.back(), exact.bytes.back());
}

TEST(Damage, TakesOtherTypes) {
  NamedTensors tensors = TensorsOf(kGeometry, 3);
  Tensor halves(DType::kF16, tensors.at("k").shape());
  for (int64_t i = 0; i < halves.num_elements(); ++i) {
    halves.As<F16>()[i] = ToF16(tensors.at("k").As<float>()[i]);
    tensors.at("k").As<float>()[i] = ToFloat(halves.As<F16>()[i]);
  }
  const std::vector<float> expected = ByToken(tensors.at("k"));
  tensors.at("k") = halves;
  EXPECT_EQ(ByToken(Damaged(tensors, "kivi").k_read), expected);
}

TEST(Damage, NamesWhatIsWrong) {
  const auto expect = [](const std::string& spec, std::initializer_list<std::string> parts,
                         const std::function<void(NamedTensors&)>& change, int64_t prompt_len = 0) {
    NamedTensors tensors = AllTensors();
    change(tensors);
    ExpectError<InvalidInput>([&] { Damaged(tensors, spec, prompt_len); }, parts);
  };
  const auto erase = [](const char* name) {
    return [name](NamedTensors& tensors) { tensors.erase(name); };
  };
  const auto shape = [](const char* name, const Shape& of) {
    return [name, of](NamedTensors& tensors) { tensors[name] = Tensor(DType::kF32, of); };
  };
  const std::string file = "in.safetensors";
  expect("kivi", {file, "'k'", "found none"}, [](NamedTensors& tensors) { tensors.clear(); });
  expect("kivi", {file, "'k'", "--kv kivi needs keys after RoPE"}, erase("k"));
  expect("kivi", {file, "'v'", "found none"}, erase("v"));
  expect("mikv", {file, "'q'", "--kv mikv needs queries"}, erase("q"));
  expect("mixkvq", {file, "'q'", "--kv mixkvq needs queries"}, erase("q"));
  expect("rotatekv", {file, "'keys_before_rope'", "needs keys before RoPE"},
         erase("keys_before_rope"));
  expect("rotatekv", {file, "'block_input'", "needs the input of blocks"}, erase("block_input"));
  expect("kivi", {file, "'k'", "[2, 150, 64]", "[L, Hkv, T, D]"}, shape("k", {2, 150, 64}));
  expect("kivi", {file, "'k'", "multiple of 8"}, shape("k", {1, 2, 150, 63}));
  expect("kivi", {file, "'v'", "[1, 2, 149, 64]", "[1, 2, 150, 64]"}, shape("v", {1, 2, 149, 64}));
  expect("mikv", {file, "'q'", "3 heads", "a multiple of the 2 of 'k'"},
         shape("q", {1, 3, 150, 64}));
  expect("rotatekv", {file, "'block_input'", "[1, 149, 8]", "[1, 150, E]"},
         shape("block_input", {1, 149, 8}));
  expect("kivi", {file, "'k'", "I32", "F32, F16, BF16 or F64"}, [](NamedTensors& tensors) {
    tensors["k"] = Tensor(DType::kI32, {1, 2, 150, 64});
  });
  expect("kivi", {"non-finite key", "position 0"}, [](NamedTensors& tensors) {
    tensors["k"].As<float>()[5] = std::numeric_limits<float>::infinity();
  });
  expect(
      "kivi", {"--prompt-len", "found 151", "150 tokens"}, [](NamedTensors&) {}, 151);
  expect("kivy", {"--kv", "unknown method 'kivy'"}, [](NamedTensors&) {});
  expect("kivi:residual=40", {"--kv", "residual=40"}, [](NamedTensors&) {});
}

// The command has neither a budget nor a plan to take widths from.
TEST(Damage, AsksTheSpecAloneForWidths) {
  const NamedTensors tensors = AllTensors();
  for (const std::string spec : {"pm-kvq", "pm-kvq:static", "pm-kvq:policy=oldest-first"}) {
    try {
      Damaged(tensors, spec);
      ADD_FAILURE() << spec << ": no error";
    } catch (const InvalidInput& error) {
      const std::string message = error.what();
      EXPECT_NE(message.find("[--kv] '" + spec + "': found no widths"), std::string::npos)
          << message;
      EXPECT_NE(message.find("pm-kvq:bits=B or pm-kvq:k=B+v=B"), std::string::npos) << message;
      EXPECT_EQ(message.find("--kv-budget"), std::string::npos) << message;
      EXPECT_EQ(message.find("--plan"), std::string::npos) << message;
    }
  }
  for (const std::string spec : {"pm-kvq:bits=4", "pm-kvq:k=4+v=2", "pm-kvq:bits=4+static"}) {
    EXPECT_NO_THROW(Damaged(tensors, spec)) << spec;
  }
}

}  // namespace
}  // namespace pmkvq
