// OSCAR against a scalar reading in double precision, and its rotations against the covariances
// that they must diagonalise.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>

#include "pmkvq/base/error.h"
#include "pmkvq/base/random.h"
#include "pmkvq/model/profile.h"
#include "support/calibration_support.h"
#include "support/expect_error.h"
#include "support/method_rule.h"

namespace pmkvq {
namespace {

using testing_support::BytesAfter;
using testing_support::ExpectError;
using testing_support::ExpectRefused;
using testing_support::ExpectRule;
using testing_support::KeysAndValues;
using testing_support::MakeRows;
using testing_support::MethodDriver;
using testing_support::NormalDraw;
using testing_support::RandomSamples;
using testing_support::TempFolder;
using testing_support::TinyFolder;
using testing_support::TinyModel;

using Vector = std::vector<double>;
using Matrix = std::vector<Vector>;

double SignOf(size_t i, size_t j) { return std::popcount(i & j) % 2 == 0 ? 1.0 : -1.0; }

Matrix HadamardMatrix(size_t n) {
  Matrix h(n, Vector(n));
  for (size_t i = 0; i < n; ++i) {
    for (size_t j = 0; j < n; ++j) h[i][j] = SignOf(i, j) / std::sqrt(static_cast<double>(n));
  }
  return h;
}

// Rows made orthonormal one after the other.
Matrix RandomRotation(size_t n, uint64_t seed) {
  Random random(seed);
  Matrix rows(n, Vector(n));
  for (size_t i = 0; i < n; ++i) {
    for (double& x : rows[i]) x = NormalDraw(random);
    for (size_t before = 0; before <= i; ++before) {
      double dot = 0;
      for (size_t c = 0; c < n; ++c) dot += rows[i][c] * rows[before][c];
      for (size_t c = 0; c < n; ++c) {
        rows[i][c] = before == i ? rows[i][c] / std::sqrt(dot) : rows[i][c] - dot * rows[before][c];
      }
    }
  }
  return rows;
}

// x R, clipped to the `clip`-quantile of its magnitudes, quantised as one group, times R^T.
Vector Damaged(const Vector& x, const Matrix& rotation, int bits, double clip) {
  const size_t n = x.size();
  Vector y(n);
  for (size_t i = 0; i < n; ++i) {
    for (size_t j = 0; j < n; ++j) y[j] += x[i] * rotation[i][j];
  }
  Vector magnitudes(n);
  std::transform(y.begin(), y.end(), magnitudes.begin(), [](double v) { return std::abs(v); });
  std::sort(magnitudes.begin(), magnitudes.end());
  const double bound =
      magnitudes[std::min(n - 1, static_cast<size_t>(clip * static_cast<double>(n)))];
  for (double& v : y) v = std::clamp(v, -bound, bound);
  const auto [low, high] = std::minmax_element(y.begin(), y.end());
  const double min = *low;
  const double step = (*high - min) / ((1 << bits) - 1);
  for (double& v : y) v = std::nearbyint((v - min) / step) * step + min;
  Vector back(n);
  for (size_t i = 0; i < n; ++i) {
    for (size_t j = 0; j < n; ++j) back[i] += y[j] * rotation[i][j];
  }
  return back;
}

struct Rule {
  int bits = 2;
  double key_clip = 0.96;
  double value_clip = 0.92;
  int64_t sink = 64;
  int64_t recent = 256;
  Matrix key_rotation[2];  // Per KV head.
  Matrix value_rotation[2];
};

constexpr int64_t kDim = 64;

void DamageRows(std::vector<float>& rows, int64_t n, const Rule& rule, const Matrix* rotations,
                double clip) {
  for (int64_t t = rule.sink; t < n - rule.recent; ++t) {
    for (int64_t head = 0; head < 2; ++head) {
      float* row = rows.data() + (t * 2 + head) * kDim;
      const Vector damaged = Damaged(Vector(row, row + kDim), rotations[head], rule.bits, clip);
      std::transform(damaged.begin(), damaged.end(), row,
                     [](double x) { return static_cast<float>(x); });
    }
  }
}

// With metadata in float32: where a bound lies between two f16 numbers, float and double part ways.
void ExpectRule(const std::string& spec, const Rule& rule) {
  MethodDriver driver(spec, {1, 4, 2, kDim}, DType::kF32);
  for (const int64_t chunk : {1, 63, 1, 255, 1, 1, 90, 1}) {
    driver.Append(chunk);
    const int64_t n = driver.store().NumTokens(driver.seq());
    testing_support::Rows expected = MakeRows(driver.geometry(), 3, 0, 0, n);
    DamageRows(expected.k, n, rule, rule.key_rotation, rule.key_clip);
    DamageRows(expected.v, n, rule, rule.value_rotation, rule.value_clip);
    const KeysAndValues stored = driver.Stored();
    for (size_t i = 0; i < stored.first.size(); ++i) {
      ASSERT_NEAR(stored.first[i], expected.k[i], 1e-5f) << spec << " " << n << " " << i;
      ASSERT_NEAR(stored.second[i], expected.v[i], 1e-5f) << spec << " " << n << " " << i;
    }
  }
}

TEST(Oscar, PlainHadamardFollowsTheRule) {
  Rule rule;
  for (Matrix& rotation : rule.key_rotation) rotation = HadamardMatrix(kDim);
  for (Matrix& rotation : rule.value_rotation) rotation = HadamardMatrix(kDim);
  ExpectRule("oscar:hadamard", rule);
  rule.bits = 4;
  rule.key_clip = rule.value_clip = 1.0;
  rule.sink = 3;
  rule.recent = 10;
  ExpectRule("oscar:hadamard+bits=4+sink=3+recent=10", rule);
  rule.key_clip = rule.value_clip = 0.75;
  rule.recent = 0;
  ExpectRule("oscar:hadamard+bits=4+clip=0.75+sink=3+recent=0", rule);
}

// Rotations of the driver's one block, [2, 64, 64].
Tensor TensorOf(const Matrix* rotations) {
  Tensor tensor(DType::kF32, {2, kDim, kDim});
  float* out = tensor.As<float>();
  for (int head = 0; head < 2; ++head) {
    for (const Vector& row : rotations[head]) {
      for (const double x : row) *out++ = static_cast<float>(x);
    }
  }
  return tensor;
}

MethodData FileOf(const Rule& rule) {
  MethodData data;
  data.method = "oscar";
  data.geometry = {1, 4, 2, kDim};
  data.tensors.emplace("k_rotation.0", TensorOf(rule.key_rotation));
  data.tensors.emplace("v_rotation.0", TensorOf(rule.value_rotation));
  return data;
}

TEST(Oscar, RotatesByTheFile) {
  Rule rule;
  for (uint64_t head = 0; head < 2; ++head) {
    rule.key_rotation[head] = RandomRotation(kDim, 10 + head);
    rule.value_rotation[head] = RandomRotation(kDim, 20 + head);
  }
  const TempFolder folder;
  SaveMethodData(FileOf(rule), folder.File("rotations"));
  ExpectRule("oscar:from=" + folder.File("rotations"), rule);
  rule.bits = 3;
  rule.key_clip = rule.value_clip = 1.0;
  ExpectRule("oscar:bits=3+from=" + folder.File("rotations"), rule);
}

TEST(Oscar, BytesByHand) {
  // A token at full precision: 2 heads * 64 * 2 = 256 bytes of K and as many of V. At 2 bits 32
  // bytes of codes and two pairs of 4 bytes, of each.
  EXPECT_EQ(BytesAfter("oscar:hadamard", 1), 512);
  EXPECT_EQ(BytesAfter("oscar:hadamard", 320), 320 * 512);
  EXPECT_EQ(BytesAfter("oscar:hadamard", 321), 320 * 512 + 80);
  EXPECT_EQ(BytesAfter("oscar:hadamard", 500), 320 * 512 + 180 * 80);
  EXPECT_EQ(BytesAfter("oscar:hadamard+bits=8+sink=0+recent=0", 500), 500 * 2 * (128 + 8));
}

// C = sum over rows x of weight(x) x x^T of one block's KV head, by the definition.
void AddOuter(const double* x, double weight, Matrix& c) {
  for (size_t i = 0; i < c.size(); ++i) {
    for (size_t j = 0; j < c.size(); ++j) c[i][j] += weight * x[i] * x[j];
  }
}

// rotation [D, D] must be U H P with U^T C U diagonal and ascending.
void ExpectDiagonalises(const float* rotation, const Matrix& c) {
  const size_t n = c.size();
  Matrix u(n, Vector(n));
  for (size_t i = 0; i < n; ++i) {
    Vector unordered(n);  // Row i of U H.
    for (size_t rank = 0; rank < n; ++rank) {
      size_t reversed = 0;
      for (size_t bit = 1; bit < n; bit *= 2) {
        if ((rank & bit) != 0) reversed += n / (2 * bit);
      }
      unordered[n - 1 - rank] = double{rotation[i * n + reversed]};
    }
    for (size_t j = 0; j < n; ++j) {
      for (size_t m = 0; m < n; ++m) {
        u[i][j] += unordered[m] * SignOf(m, j) / std::sqrt(static_cast<double>(n));
      }
    }
  }
  double trace = 0;
  for (size_t i = 0; i < n; ++i) trace += c[i][i];
  double before = 0;
  for (size_t a = 0; a < n; ++a) {
    for (size_t b = 0; b < n; ++b) {
      double product = 0;
      double unit = 0;
      for (size_t i = 0; i < n; ++i) {
        unit += u[i][a] * u[i][b];
        for (size_t j = 0; j < n; ++j) product += u[i][a] * c[i][j] * u[j][b];
      }
      EXPECT_NEAR(unit, a == b ? 1.0 : 0.0, 1e-6);
      if (a != b) {
        EXPECT_NEAR(product, 0.0, 1e-6 * trace) << a << " " << b;
      } else {
        EXPECT_GE(product, before - 1e-6 * trace) << a;
        before = product;
      }
    }
  }
}

TEST(Oscar, CalibrationDiagonalisesWhatAttentionSees) {
  const TinyModel tiny;  // Four query heads for two KV heads of 16.
  const TinyFolder folder(tiny);
  const std::shared_ptr<const Model> model = folder.Load();
  const Samples samples = RandomSamples(tiny.vocab, {40, 40, 25}, 4);
  CalibrationContext calibration;
  calibration.model = model.get();
  calibration.samples = &samples;
  calibration.effective_len = 80;
  const MethodData data = CalibrateMethod("oscar", DType::kF16, calibration, {});
  ASSERT_EQ(data.tensors.size(), 6u);

  Profile<double> profile(*model, 1);
  const auto for_each = [&](const auto& visit) {
    for (size_t i = 0; i < samples.tokens.size(); ++i) {
      profile.Forward(samples.tokens[i], samples.Positions(i, 80), visit);
    }
  };
  const Matrix zero(16, Vector(16));
  std::vector<Matrix> of_queries(6, zero);  // [block][KV head]
  std::vector<Matrix> of_values(6, zero);
  for_each([&](const BlockStates<double>& states) {
    for (int64_t t = 0; t < states.num_tokens; ++t) {
      for (int64_t head = 0; head < 4; ++head) {
        AddOuter(states.q + (t * 4 + head) * 16, 1.0,
                 of_queries[static_cast<size_t>(states.layer * 2 + head / 2)]);
      }
    }
  });
  for_each([&](const BlockStates<double>& states) {
    for (int64_t t = 0; t < states.num_tokens; ++t) {
      for (int64_t head = 0; head < 2; ++head) {
        const auto index = static_cast<size_t>(states.layer * 2 + head);
        const double* k = states.k + (t * 2 + head) * 16;
        double weight = 0;
        for (size_t i = 0; i < 16; ++i) {
          for (size_t j = 0; j < 16; ++j) weight += k[i] * of_queries[index][i][j] * k[j];
        }
        AddOuter(states.v + (t * 2 + head) * 16, weight, of_values[index]);
      }
    }
  });
  for (int64_t layer = 0; layer < 3; ++layer) {
    for (int64_t head = 0; head < 2; ++head) {
      SCOPED_TRACE(testing::Message() << "block " << layer << " head " << head);
      const auto index = static_cast<size_t>(layer * 2 + head);
      const auto rotation = [&](const char* name) {
        return data.Get(BlockTensorName(name, layer), {2, 16, 16}).As<float>() + head * 256;
      };
      ExpectDiagonalises(rotation("k_rotation"), of_queries[index]);
      ExpectDiagonalises(rotation("v_rotation"), of_values[index]);
    }
  }
}

TEST(Oscar, ZerosStayFinite) {
  MethodDriver driver("oscar:hadamard+sink=0+recent=0");
  const std::vector<float> zeros(10 * 4 * kDim, 0.0f);
  std::vector<float> out(zeros.size());
  ASSERT_EQ(driver.store().Reserve(driver.seq(), 10), ReserveResult::kReserved);
  driver.store().BeginForward({{driver.seq(), 10}});
  driver.store().AppendAndAttend(0, zeros.data(), zeros.data(), zeros.data(), out.data());
  driver.store().EndForward();
  EXPECT_EQ(driver.Stored().first, std::vector<float>(10 * 2 * kDim, 0.0f));
}

TEST(Oscar, NamesWhatIsWrong) {
  ExpectRefused(
      "oscar",
      "no rotations, expected from=FILE (made by pmkvq calibrate --kv oscar --model MODEL "
      "--dataset TEXTS --out FILE), or the word hadamard");
  ExpectRefused("oscar:hadamard+bits=5", "bits=5, expected one of 8, 4, 3, 2");
  ExpectRefused("oscar:hadamard+clip=0.2", "clip=0.2, expected a number in [0.5, 1]");
  ExpectRefused("oscar:hadamrd", "unknown word 'hadamrd' for oscar");
  ExpectError<InvalidInput>(
      [] {
        MethodDriver driver("oscar:hadamard", {1, 2, 2, 96});
      },
      {"--kv", "head_dim 96, expected a power of two"});

  Rule rule;
  for (int head = 0; head < 2; ++head) {
    rule.key_rotation[head] = RandomRotation(kDim, 1);
    rule.value_rotation[head] = RandomRotation(kDim, 2);
  }
  const TempFolder folder;
  const std::string path = folder.File("rotations");
  SaveMethodData(FileOf(rule), path);
  ExpectRefused("oscar:hadamard+from=" + path, "hadamard takes no rotations");
  rule.value_rotation[1][5][7] += 0.01;
  SaveMethodData(FileOf(rule), path);
  ExpectError<InvalidInput>([&] { MethodDriver driver("oscar:from=" + path); },
                            {path, "v_rotation.0: expected rotations", "not orthogonal"});
  rule.value_rotation[1][5][7] = 3e38;
  SaveMethodData(FileOf(rule), path);
  ExpectError<InvalidInput>([&] { MethodDriver driver("oscar:from=" + path); },
                            {path, "v_rotation.0", "not orthogonal"});
  MethodData data = FileOf(rule);
  data.tensors.erase("v_rotation.0");
  SaveMethodData(data, path);
  ExpectError<InvalidInput>([&] { MethodDriver driver("oscar:from=" + path); },
                            {path, "no tensor 'v_rotation.0'"});
}

}  // namespace
}  // namespace pmkvq
