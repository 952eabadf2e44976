// Heads of any float type into pages: what AppendTokens stores of the same values, bit by bit.
#include "pmkvq/kernels/kv_quant/append_heads.h"

#include <cmath>
#include <random>
#include <vector>

#include "pmkvq/kernels/kv_quant/fragment_layout.h"
#include "pmkvq/kernels/kv_quant/kv_quant_common.h"
#include "pmkvq/tensor/device/buffer.h"
#include "support/gpu_test.h"

namespace pmkvq {
namespace {

constexpr int64_t kSequences = 3;
constexpr int64_t kHeads = 4;
constexpr int64_t kKvHeads = 2;
constexpr int32_t kRest = 5;

class AppendHeadsSmallTest : public GpuTest {
 protected:
  // Values that `type` has, as floats.
  static std::vector<float> RandomValues(int64_t count, DType type, std::mt19937& random) {
    std::normal_distribution<float> normal;
    std::vector<float> values;
    for (int64_t i = 0; i < count; ++i) values.push_back(3.0f * normal(random));
    internal::VisitFloatType(type, [&]<class T>(T) {
      for (float& value : values) value = ToFloat(FromFloat<T>(value));
    });
    return values;
  }
  std::unique_ptr<Buffer> Upload(const std::vector<float>& values, DType type) {
    std::unique_ptr<Buffer> buffer;
    internal::VisitFloatType(type, [&]<class T>(T) {
      std::vector<T> typed;
      for (const float value : values) typed.push_back(FromFloat<T>(value));
      buffer = std::make_unique<Buffer>(kDevice, typed.size() * sizeof(T));
      CopyToDevice(stream(), buffer->data(), typed.data(), buffer->num_bytes());
      stream().Synchronize();
    });
    return buffer;
  }

  // A page, a page's later token, a sink's rest; and memory for what is stored.
  struct Memory {
    Memory(int64_t dim, Stream& stream)
        : page(static_cast<size_t>(kKvHeads * fragment::BlockBytes(16, static_cast<int>(dim)))),
          rest(static_cast<size_t>(kKvHeads * dim * kRest * 2 + 255) / 256 * 256),
          arena(kDevice, 4 * page + 2 * rest),
          targets(kDevice, kSequences * sizeof(AppendTarget)),
          q_rounded(kDevice, static_cast<size_t>(kSequences * kHeads * dim) * 2),
          unfit(kDevice, kSequences * sizeof(uint32_t)) {
      const auto units = [](size_t bytes) { return static_cast<uint32_t>(bytes / 256); };
      const std::vector<AppendTarget> places = {
          {0, units(page), 0, 0},
          {units(2 * page), units(3 * page), 77, 0},
          {units(4 * page), units(4 * page + rest), 3, kRest}};
      FillOnDevice(stream, arena.data(), 0xff, arena.num_bytes());
      FillOnDevice(stream, unfit.data(), 0xff, unfit.num_bytes());
      FillOnDevice(stream, q_rounded.data(), 0, q_rounded.num_bytes());
      CopyToDevice(stream, targets.data(), places.data(), targets.num_bytes());
      stream.Synchronize();
    }
    AppendOperands Operands() const {
      AppendOperands op;
      op.targets = reinterpret_cast<const AppendTarget*>(targets.data());
      op.q_rounded = q_rounded.data();
      op.arena = arena.data();
      op.unfit = reinterpret_cast<uint32_t*>(unfit.data());
      op.block = 7;
      op.num_sequences = kSequences;
      op.num_heads = kHeads;
      return op;
    }
    // All that was written.
    std::vector<std::byte> Read(Stream& stream) const {
      std::vector<std::byte> all(arena.num_bytes() + q_rounded.num_bytes() + unfit.num_bytes());
      std::byte* to = all.data();
      for (const Buffer* const buffer : {&arena, &q_rounded, &unfit}) {
        CopyToHost(stream, to, buffer->data(), buffer->num_bytes());
        to += buffer->num_bytes();
      }
      stream.Synchronize();
      return all;
    }

    size_t page, rest;
    Buffer arena, targets, q_rounded, unfit;
  };
};

TEST_F(AppendHeadsSmallTest, StoreWhatAppendTokensStoresOfTheSameValues) {
  std::mt19937 random(1);
  for (const int64_t dim : {64, 128, 256}) {
    for (const DType pages : {DType::kF16, DType::kBF16}) {
      for (const DType given : {DType::kF32, DType::kF16, DType::kBF16}) {
        for (const bool has_factors : {false, true}) {
          SCOPED_TRACE(testing::Message() << dim << NameOf(pages) << NameOf(given) << has_factors);
          const int64_t kv_count = kSequences * kKvHeads * dim;
          std::vector<float> q = RandomValues(kSequences * kHeads * dim, given, random);
          std::vector<float> k = RandomValues(kv_count, given, random);
          std::vector<float> v = RandomValues(kv_count, given, random);
          v[static_cast<size_t>(kKvHeads * dim + 9)] = INFINITY;  // Of sequence 1.
          GivenHeads heads;
          const auto q_memory = Upload(q, given);
          const auto k_memory = Upload(k, given);
          const auto v_memory = Upload(v, given);
          heads.q = q_memory->data();
          heads.k = k_memory->data();
          heads.v = v_memory->data();
          heads.type = given;
          const std::vector<float> q_factors = RandomValues(kHeads * dim, DType::kF32, random);
          const std::vector<float> k_factors = RandomValues(kKvHeads * dim, DType::kF32, random);
          const auto q_factor_memory = Upload(q_factors, DType::kF32);
          const auto k_factor_memory = Upload(k_factors, DType::kF32);
          if (has_factors) {
            heads.query_factor = 0.7f;
            heads.query_factors = reinterpret_cast<const float*>(q_factor_memory->data());
            heads.key_factors = reinterpret_cast<const float*>(k_factor_memory->data());
            for (size_t i = 0; i < q.size(); ++i) q[i] *= q_factors[i % q_factors.size()] * 0.7f;
            for (size_t i = 0; i < k.size(); ++i) k[i] *= k_factors[i % k_factors.size()];
          }
          const Memory found(dim, stream());
          AppendGivenHeads(kKvHeads, dim, pages, heads, found.Operands(), stream());

          const Memory expected(dim, stream());
          const auto q_floats = Upload(q, DType::kF32);
          const auto k_floats = Upload(k, DType::kF32);
          const auto v_floats = Upload(v, DType::kF32);
          AppendOperands op = expected.Operands();
          op.q = reinterpret_cast<const float*>(q_floats->data());
          op.k = reinterpret_cast<const float*>(k_floats->data());
          op.v = reinterpret_cast<const float*>(v_floats->data());
          AppendTokens(kKvHeads, dim, pages, op, stream());
          EXPECT_EQ(found.Read(stream()), expected.Read(stream()));
        }
      }
    }
  }
}

}  // namespace
}  // namespace pmkvq
