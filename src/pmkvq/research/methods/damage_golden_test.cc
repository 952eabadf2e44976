// Golden data of quantising methods through DamageTensors, as `pmkvq damage` runs them: tensors in,
// tensors out, token by token behind a prompt.
#include <gtest/gtest.h>

#include <algorithm>

#include "support/damage_rows.h"
#include "support/method_golden.h"

namespace pmkvq {
namespace {

using testing_support::Damaged;
using testing_support::ExpectGolden;
using testing_support::MethodGolden;
using testing_support::NamedTensors;

Tensor AsTensor(const std::vector<float>& values, const Shape& shape) {
  Tensor tensor(DType::kF32, shape);
  std::copy(values.begin(), values.end(), tensor.As<float>());
  return tensor;
}

NamedTensors Inputs(const std::vector<float>& k, const std::vector<float>& v, const Shape& shape) {
  NamedTensors tensors;
  tensors.emplace("k", AsTensor(k, shape));
  tensors.emplace("v", AsTensor(v, shape));
  return tensors;
}

std::vector<float> Values(const Tensor& tensor) {
  return {tensor.As<float>(), tensor.As<float>() + tensor.num_elements()};
}

TEST(DamageGolden, XQuant) {
  const MethodGolden golden("xquant");
  const NamedTensors inputs = Inputs(golden.Floats("k"), golden.Floats("v"), {4, 2, 150, 32});
  const std::string form = "+residual=32+eta1=0.16666666666666666+eta2=0.045";
  const std::pair<std::string, std::string> cases[] = {{"a", "xquant:kq=2+vq=0+km=0+vm=2"},
                                                       {"b", "xquant:kq=4+vq=4+km=2+vm=0"}};
  for (const auto& [name, spec] : cases) {
    for (const int64_t prompt : {0, 100}) {
      const DamageResult result = Damaged(inputs, spec + form, prompt);
      ExpectGolden(Values(result.k_read), golden.Floats(name + ".k_read"));
      ExpectGolden(Values(result.v_read), golden.Floats(name + ".v_read"));
    }
  }
}

TEST(DamageGolden, Tada) {
  const MethodGolden golden("tada");
  const NamedTensors inputs = Inputs(golden.Floats("k"), golden.Floats("v"), {1, 4, 24, 64});
  for (const std::string mean : {"f16", "f32"}) {
    for (const std::string bits : {"8", "4", "2"}) {
      const DamageResult result =
          Damaged(inputs, "tada:residual=24+bits=" + bits + "+mean=" + mean, 10);
      const std::string end = "." + mean + ".b" + bits + ".read";
      ExpectGolden(Values(result.k_read), golden.Floats("k" + end), 3);
      ExpectGolden(Values(result.v_read), golden.Floats("v" + end), 2);
    }
  }
}

TEST(DamageGolden, DecoQuant) {
  const MethodGolden golden("decoquant");
  const NamedTensors inputs = Inputs(golden.Floats("x"), golden.Floats("x"), {1, 1, 48, 128});
  for (const std::string bits : {"8", "4", "2"}) {
    const DamageResult result = Damaged(inputs, "decoquant:residual=48+bits=" + bits, 20);
    ExpectGolden(Values(result.k_read), golden.Floats("b" + bits + ".read"));
    ExpectGolden(Values(result.v_read), golden.Floats("b" + bits + ".read"));
  }
}

TEST(DamageGolden, Svdq) {
  const MethodGolden golden("svdq");
  const auto both = [&](const std::string& first, const std::string& second) {
    std::vector<float> rows = golden.Floats(first);
    const std::vector<float> more = golden.Floats(second);
    rows.insert(rows.end(), more.begin(), more.end());
    return rows;
  };
  const std::vector<float> keys = both("prompt_keys", "more_keys");
  const DamageResult result = Damaged(Inputs(keys, keys, {1, 1, 160, 64}), "svdq:eta1=0", 96);
  ExpectGolden(Values(result.k_read), both("prompt_read", "more_read"));
  EXPECT_EQ(Values(result.v_read), keys);
}

}  // namespace
}  // namespace pmkvq
