// Our cache under --reference-accounting against the Python reference's progressive cache: the same
// structure after every token, values within the step of the page's width.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "pmkvq/base/float16.h"
#include "pmkvq/io/file.h"
#include "pmkvq/io/json.h"
#include "pmkvq/io/safetensors.h"
#include "pmkvq/research/methods/reference_cache.h"

namespace pmkvq {
namespace {

constexpr int64_t kHeadDim = 128;
// Beyond the step: the reference keeps scale and zero in bfloat16 and rounds the scale again at
// each of three halvings, and all dumps are bfloat16. Five roundings of 2^-9, relative to the
// range.
constexpr float kBf16Slack = 5 * 0x1p-9f;

std::string GoldenPath(const std::string& name) {
  return JoinPath(PMKVQ_SOURCE_DIR "/tests/golden", name);
}

// [1, tokens, 128], stored as bfloat16.
std::vector<float> ReadBf16(const SafetensorsFile& file, const std::string& name) {
  const TensorView* view = file.Find(name);
  if (view == nullptr || view->dtype != DType::kBF16) {
    ADD_FAILURE() << name;
    return {};
  }
  const auto* values = reinterpret_cast<const BF16*>(view->data);
  std::vector<float> out;
  for (int64_t i = 0; i < view->num_elements(); ++i) out.push_back(ToFloat(values[i]));
  return out;
}

struct Variant {
  const char* name;
  DType float_type;
};

class CacheGoldenTest : public testing::TestWithParam<Variant> {
 protected:
  CacheGoldenTest()
      : json_(JsonValue::ParseFile(GoldenPath("cache.json"))),
        golden_(json_.At("variants").At(GetParam().name)),
        file_(SafetensorsFile::Open(GoldenPath("cache.safetensors"))),
        k_(ReadBf16(file_, "k")),
        v_(ReadBf16(file_, "v")),
        cache_(Config()),
        seq_(*cache_.Open()) {}

  CacheConfig Config() const {
    CacheConfig config;
    config.geometry =
        UniformKvGeometry{1, 1, json_.At("kv_heads").AsInt(), json_.At("head_dim").AsInt()};
    config.float_type = GetParam().float_type;
    config.sink_tokens = json_.At("n_sink_token").AsInt();
    config.window_tokens = json_.At("n_window_token").AsInt();
    config.budget_bytes = {
        static_cast<int64_t>(json_.At("kv_budget_mb").AsDouble() * 1024.0 * 1024.0)};
    return config;
  }

  void Append(int64_t num_tokens) {
    const int64_t offset = cache_.NumTokens(seq_) * kHeadDim;
    ASSERT_EQ(cache_.Reserve(seq_, num_tokens), ReserveResult::kReserved);
    cache_.BeginForward({{seq_, num_tokens}});
    const std::vector<float> q(static_cast<size_t>(num_tokens * kHeadDim), 0.01f);
    std::vector<float> out(q.size());
    cache_.AppendAndAttend(0, q.data(), k_.data() + offset, v_.data() + offset, out.data());
    cache_.EndForward();
  }

  // [n_sink, n_window, n_main, n_kv_bits], from the page table.
  std::vector<int64_t> Structure() const {
    const PagesPerWidth pages = cache_.LayerStats(seq_, 0).k_pages;
    EXPECT_EQ(pages, cache_.LayerStats(seq_, 0).v_pages);
    const int64_t n = cache_.NumTokens(seq_);
    int64_t num_pages = 0;
    int64_t bits = 16;
    for (const int width : kWidths) {
      num_pages += pages[WidthIndex(width)];
      if (pages[WidthIndex(width)] > 0) bits = width;
    }
    const int64_t window = (n - 1) % kPageTokens;  // One sink token.
    const int64_t main = kPageTokens * (num_pages - (window > 0 ? 1 : 0));
    return {n - window - main, window, main, bits};
  }

  // Values of a dump against ours. Main tokens are in codes at `bits` on both sides.
  void CompareDump(int64_t step, int64_t bits) const {
    const std::string prefix = std::string(GetParam().name) + ".step" + std::to_string(step);
    const auto n = static_cast<size_t>(cache_.NumTokens(seq_));
    std::vector<float> k(n * kHeadDim);
    std::vector<float> v(n * kHeadDim);
    cache_.ReadTokens(seq_, 0, k.data(), v.data());
    for (const auto& [ours, golden, input] :
         {std::tuple{&k, ReadBf16(file_, prefix + ".k"), &k_},
          std::tuple{&v, ReadBf16(file_, prefix + ".v"), &v_}}) {
      ASSERT_EQ(golden.size(), ours->size());
      for (size_t t = 0; t < n; ++t) {
        const float* group = input->data() + t * kHeadDim;
        const auto [low, high] = std::minmax_element(group, group + kHeadDim);
        const float step_size = (*high - *low) / static_cast<float>((1 << bits) - 1);
        const float slack = kBf16Slack * std::max({*high - *low, *high, -*low});
        for (size_t d = 0; d < kHeadDim; ++d) {
          const size_t i = t * kHeadDim + d;
          ASSERT_NEAR((*ours)[i], golden[i], step_size + slack) << prefix << " token " << t;
        }
      }
    }
  }

  // Sums over all values at some steps: the mean error per value stays within half a step.
  void CompareSums(int64_t step, int64_t bits) const {
    const JsonValue sums = golden_.At("dequantized").Find(std::to_string(step));
    if (sums.IsNull()) return;
    ASSERT_EQ(cache_.NumTokens(seq_), sums.At("tokens").AsInt());
    const auto count = static_cast<size_t>(cache_.NumTokens(seq_) * kHeadDim);
    std::vector<float> k(count);
    std::vector<float> v(count);
    cache_.ReadTokens(seq_, 0, k.data(), v.data());
    for (const auto& [values, input, name] :
         {std::tuple{&k, &k_, "k_abs_sum"}, std::tuple{&v, &v_, "v_abs_sum"}}) {
      double abs_sum = 0;
      double tolerance = 0.002 * static_cast<double>(count);  // The reference's bf16 rounding.
      for (const float x : *values) abs_sum += std::abs(x);
      for (size_t group = 0; group < count; group += kHeadDim) {
        const auto begin = input->begin() + static_cast<ptrdiff_t>(group);
        const auto [low, high] = std::minmax_element(begin, begin + kHeadDim);
        tolerance += kHeadDim * (*high - *low) / static_cast<double>((1 << bits) - 1) / 4;
      }
      EXPECT_NEAR(abs_sum, sums.At(name).AsDouble(), tolerance) << "step " << step << " " << name;
    }
  }

  JsonValue json_;
  JsonValue golden_;
  SafetensorsFile file_;
  std::vector<float> k_;
  std::vector<float> v_;
  ReferenceKvCache cache_;
  SequenceId seq_;
};

TEST_P(CacheGoldenTest, HasTheReferencesStructureAndValues) {
  const JsonValue trace = golden_.At("trace");
  const int64_t steps = json_.At("steps").AsInt();
  ASSERT_EQ(trace.size(), static_cast<size_t>(steps + 1));
  int64_t num_dumps = 0;
  for (int64_t step = 0; step <= steps; ++step) {
    Append(step == 0 ? json_.At("prefill").AsInt() : 1);
    const std::vector<int64_t> expected = trace.At(static_cast<size_t>(step)).AsIntArray();
    ASSERT_EQ(Structure(), expected) << "step " << step;
    CompareSums(step, expected[3]);
    if (file_.Find(std::string(GetParam().name) + ".step" + std::to_string(step) + ".k") !=
        nullptr) {
      CompareDump(step, expected[3]);
      ++num_dumps;
    }
  }
  EXPECT_EQ(num_dumps, 3);
  // One halving of the block for each width on the way, counted in pages.
  std::vector<std::pair<int, int64_t>> halvings;
  for (const HalvingEvent& event : cache_.TakeHalvingEvents()) {
    EXPECT_EQ(event.num_k_pages, event.num_v_pages);
    halvings.push_back({event.from_bits, event.num_k_pages});
  }
  EXPECT_EQ(halvings, (std::vector<std::pair<int, int64_t>>{{16, 1}, {8, 2}, {4, 3}}));
}

INSTANTIATE_TEST_SUITE_P(Variants, CacheGoldenTest,
                         testing::Values(Variant{"float32", DType::kF32},
                                         Variant{"bfloat16", DType::kBF16}),
                         [](const auto& test_info) { return std::string(test_info.param.name); });

}  // namespace
}  // namespace pmkvq
