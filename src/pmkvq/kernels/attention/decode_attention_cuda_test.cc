// Decode attention on CUDA against the oracle in double precision on the stored values: every head
// of every case. docs/numerics.md derives the bound.
#include <cstring>
#include <memory>
#include <vector>

#include "pmkvq/base/error.h"
#include "pmkvq/kernels/attention/decode_attention.h"
#include "pmkvq/kernels/attention/decode_pages.h"
#include "pmkvq/tensor/device/buffer.h"
#include "support/expect_error.h"
#include "support/gpu_test.h"

namespace pmkvq {
namespace {

constexpr double kWorstHead = 2e-3;
constexpr double kMeanHead = 5e-4;
// With keys per channel queries times ranges are rounded as well: an error in proportion to the
// scores' deviation, for which there is as much again up to a deviation of 2.
double ChannelFactor(const DecodeShape& shape, float deviation) {
  return shape.keys_by_channel ? 2.0 * std::max(1.0, deviation / 2.0) : 1.0;
}
const std::vector<PageBits> kMix = {{2, 2}, {4, 4},  {8, 8}, {16, 16}, {4, 2},  {2, 4}, {8, 2},
                                    {2, 2}, {16, 8}, {4, 4}, {8, 16},  {2, 16}, {16, 4}};

DecodeShape MakeShape(int64_t group, int64_t kv_heads, int64_t dim, SinkLayout sink = {}) {
  DecodeShape shape;
  shape.num_heads = group * kv_heads;
  shape.num_kv_heads = kv_heads;
  shape.head_dim = dim;
  shape.scale = 1.0f / std::sqrt(static_cast<float>(dim));
  shape.sink = sink;
  return shape;
}

// A batch's arrays on the device.
class DeviceBatch {
 public:
  DeviceBatch(const DecodeShape& shape, const RandomDecodeBatch& batch, Stream& stream)
      : shape_(shape),
        stream_(stream),
        operands_(batch.operands()),
        scratch_(stream.device(),
                 DecodeScratchBytes(shape, operands_.num_sequences, operands_.max_pages)) {
    operands_.arena = Upload(batch.arena());
    operands_.entries = reinterpret_cast<const PageEntry*>(Upload(batch.entries()));
    operands_.bits = reinterpret_cast<const PageBits*>(Upload(batch.bits()));
    operands_.num_tokens = reinterpret_cast<const int32_t*>(Upload(batch.num_tokens()));
    operands_.sink_rests = reinterpret_cast<const uint32_t*>(Upload(batch.sink_rests()));
    operands_.q = Upload(batch.q());
    out_bytes_ = batch.q().size() * sizeof(float);
    buffers_.push_back(std::make_unique<Buffer>(stream.device(), out_bytes_));
    out_ = buffers_.back()->data();
    operands_.out = reinterpret_cast<float*>(out_);
  }

  // What it gives; nothing of an earlier call is left to be found.
  std::vector<float> Run() {
    FillOnDevice(stream_, out_, 0xff, out_bytes_);
    FillOnDevice(stream_, scratch_.data(), 0xff, scratch_.num_bytes());
    RunDecodeAttention(shape_, operands_, scratch_.view(), stream_);
    std::vector<float> out(out_bytes_ / sizeof(float));
    CopyToHost(stream_, out.data(), out_, out_bytes_);
    stream_.Synchronize();
    return out;
  }

  // The outputs as a product's operand of two parts, with `part_rows` rows each.
  std::vector<uint16_t> RunToOperand(DType type, int64_t part_rows) {
    const auto count = static_cast<size_t>(2 * part_rows * shape_.num_heads * shape_.head_dim);
    const Buffer operand(stream_.device(), count * 2);
    FillOnDevice(stream_, operand.data(), 0, count * 2);
    FillOnDevice(stream_, scratch_.data(), 0xff, scratch_.num_bytes());
    DecodeOperands operands = operands_;
    operands.out = nullptr;
    operands.operand = {operand.data(), type, 2, part_rows};
    RunDecodeAttention(shape_, operands, scratch_.view(), stream_);
    return Read(operand, count);
  }
  // The same by rounding what Run gives, all of it.
  std::vector<uint16_t> RoundedOut(DType type, int64_t part_rows) {
    Run();
    const int64_t width = shape_.num_heads * shape_.head_dim;
    const auto count = static_cast<size_t>(2 * part_rows * width);
    const Buffer operand(stream_.device(), count * 2);
    FillOnDevice(stream_, operand.data(), 0, count * 2);
    RoundRows(operands_.out, operands_.num_sequences, width, {operand.data(), type, 2, part_rows},
              stream_);
    return Read(operand, count);
  }

 private:
  std::vector<uint16_t> Read(const Buffer& buffer, size_t count) {
    std::vector<uint16_t> values(count);
    CopyToHost(stream_, values.data(), buffer.data(), count * 2);
    stream_.Synchronize();
    return values;
  }
  template <class T>
  std::byte* Upload(const std::vector<T>& values) {
    const size_t bytes = values.size() * sizeof(T);
    buffers_.push_back(std::make_unique<Buffer>(stream_.device(), bytes));
    CopyToDevice(stream_, buffers_.back()->data(), values.data(), bytes);
    return buffers_.back()->data();
  }

  DecodeShape shape_;
  Stream& stream_;
  DecodeOperands operands_;
  Buffer scratch_;
  std::vector<std::unique_ptr<Buffer>> buffers_;
  std::byte* out_ = nullptr;
  size_t out_bytes_ = 0;
};

struct HeadErrors {
  double worst = 0.0;
  double mean = 0.0;
};

// |out - expected| / |expected| of every head of sequences with tokens.
HeadErrors ErrorsOf(const DecodeShape& shape, const RandomDecodeBatch& batch,
                    const std::vector<float>& out) {
  std::vector<double> expected(out.size());
  ref::DecodeAttention(shape, batch.operands(), expected.data());
  HeadErrors errors;
  int64_t count = 0;
  for (size_t head = 0; head < out.size() / static_cast<size_t>(shape.head_dim); ++head) {
    if (batch.num_tokens()[head / static_cast<size_t>(shape.num_heads)] == 0) continue;
    double difference = 0.0;
    double size = 0.0;
    for (int64_t d = 0; d < shape.head_dim; ++d) {
      const size_t at = head * static_cast<size_t>(shape.head_dim) + static_cast<size_t>(d);
      difference += (out[at] - expected[at]) * (out[at] - expected[at]);
      size += expected[at] * expected[at];
    }
    const double error = std::sqrt(difference / size);
    if (!(error <= errors.worst)) errors.worst = error;  // NaN, too.
    errors.mean += error;
    ++count;
  }
  errors.mean /= static_cast<double>(std::max<int64_t>(count, 1));
  return errors;
}

class DecodeAttentionTestBase : public GpuTest {
 protected:
  void Check(const DecodeShape& shape, const std::vector<DecodeSequenceSpec>& specs,
             float deviation = 2.0f, float v_scale = 1.0f) {
    const RandomDecodeBatch batch(shape, specs, deviation, v_scale);
    const HeadErrors errors = ErrorsOf(shape, batch, DeviceBatch(shape, batch, stream()).Run());
    EXPECT_LE(errors.worst, kWorstHead * ChannelFactor(shape, deviation));
    EXPECT_LE(errors.mean, kMeanHead * ChannelFactor(shape, deviation));
    means_.push_back(errors.mean);
    worst_ = std::max(worst_, errors.worst);
  }
  void TearDown() override {
    if (means_.empty()) return;
    RecordProperty("worst_head_error", std::to_string(worst_));
    RecordProperty("largest_mean_error",
                   std::to_string(*std::max_element(means_.begin(), means_.end())));
  }

 private:
  double worst_ = 0.0;
  std::vector<double> means_;
};

class DecodeAttentionSmallTest : public DecodeAttentionTestBase,
                                 public testing::WithParamInterface<int64_t> {};
class DecodeAttentionTest : public DecodeAttentionTestBase,
                            public testing::WithParamInterface<int64_t> {};
INSTANTIATE_TEST_SUITE_P(HeadDim, DecodeAttentionSmallTest, testing::Values(64, 128, 256));
INSTANTIATE_TEST_SUITE_P(HeadDim, DecodeAttentionTest, testing::Values(64, 128, 256));

TEST_P(DecodeAttentionSmallTest, EveryPairOfWidths) {
  constexpr uint8_t kWidths[] = {16, 8, 4, 2};
  for (const uint8_t k : kWidths) {
    for (const uint8_t v : kWidths) {
      SCOPED_TRACE(testing::Message() << "K " << int{k} << " V " << int{v});
      Check(MakeShape(4, 2, GetParam()),
            {{.num_tokens = 5 * 128 + 37, .bits = {{k, v}}, .seed = k * 31u + v}});
    }
  }
}

TEST_P(DecodeAttentionSmallTest, OddNumbersOfTokensAndHeads) {
  uint32_t seed = 1;
  for (const int32_t tokens : {1, 2, 13, 127, 128, 129, 700}) {
    for (const auto& [group, kv_heads] : std::vector<std::pair<int64_t, int64_t>>{
             {1, 8}, {2, 3}, {3, 1}, {5, 2}, {7, 4}, {8, 1}, {9, 2}, {16, 1}, {20, 3}}) {
      SCOPED_TRACE(testing::Message() << tokens << " tokens, " << group << " x " << kv_heads);
      Check(MakeShape(group, kv_heads, GetParam()),
            {{.num_tokens = tokens, .bits = {{4, 4}, {2, 2}}, .seed = ++seed}});
    }
  }
}

TEST_P(DecodeAttentionSmallTest, SinksOfEverySize) {
  for (const int32_t sink : {1, 5, 127, 128, 130, 300}) {
    for (const int32_t tokens : {1, 4, 5, 6, 127, 129, 131, 300, 301, 1500}) {
      SCOPED_TRACE(testing::Message() << "sink " << sink << ", " << tokens << " tokens");
      Check(MakeShape(3, 2, GetParam(), {sink / 128 * 128, sink % 128}),
            {{.num_tokens = tokens, .bits = {{4, 2}, {8, 8}}, .seed = 3}});
    }
  }
}

TEST_P(DecodeAttentionSmallTest, WindowsOfEverySizeHideOlderTokens) {
  for (const SinkLayout sink : {SinkLayout{}, SinkLayout{0, 5}, SinkLayout{128, 3}}) {
    for (const int64_t window : {1, 2, 100, 127, 128, 129, 300, 1000}) {
      DecodeShape shape = MakeShape(3, 2, GetParam(), sink);
      shape.sliding_window = window;
      std::vector<DecodeSequenceSpec> specs;
      for (const int32_t tokens : {1, 0, 4, 6, 128, 129, 131, 132, 300, 700, 3000}) {
        specs.push_back(
            {.num_tokens = tokens, .bits = kMix, .seed = static_cast<uint32_t>(tokens)});
      }
      SCOPED_TRACE(testing::Message() << "window " << window << ", sink " << sink.piece_tokens
                                      << " + " << sink.rest_tokens);
      Check(shape, specs);
    }
  }
}

TEST_P(DecodeAttentionSmallTest, WindowsThatHideNothingGiveTheSameBits) {
  for (const SinkLayout sink : {SinkLayout{}, SinkLayout{0, 3}}) {
    DecodeShape shape = MakeShape(3, 2, GetParam(), sink);
    std::vector<DecodeSequenceSpec> specs;
    for (const int32_t tokens : {1, 2, 129, 512, 513, 4097}) {
      specs.push_back({.num_tokens = tokens, .bits = kMix, .seed = static_cast<uint32_t>(tokens)});
    }
    const RandomDecodeBatch batch(shape, specs);
    const std::vector<float> expected = DeviceBatch(shape, batch, stream()).Run();
    shape.sliding_window = 4097;
    EXPECT_EQ(DeviceBatch(shape, batch, stream()).Run(), expected);
  }
}

// Only a window's pages are cut into runs, so what lies before it changes no bit.
TEST_P(DecodeAttentionSmallTest, TokensBeforeTheWindowChangeNothing) {
  DecodeShape shape = MakeShape(4, 2, GetParam(), {0, 1});
  shape.sliding_window = 700;
  const RandomDecodeBatch batch(shape, {{.num_tokens = 9000, .bits = kMix, .seed = 5}});
  DeviceBatch device(shape, batch, stream());
  const std::vector<float> expected = device.Run();
  for (int repeat = 0; repeat < 20; ++repeat) ASSERT_EQ(device.Run(), expected);
  EXPECT_LE(ErrorsOf(shape, batch, expected).worst, kWorstHead);
}

TEST_P(DecodeAttentionSmallTest, KeysPerChannelOfEveryPairOfWidths) {
  constexpr uint8_t kWidths[] = {16, 8, 4, 2};
  DecodeShape shape = MakeShape(4, 2, GetParam());
  shape.keys_by_channel = true;
  for (const uint8_t k : kWidths) {
    for (const uint8_t v : kWidths) {
      SCOPED_TRACE(testing::Message() << "K " << int{k} << " V " << int{v});
      Check(shape, {{.num_tokens = 5 * 128 + 37, .bits = {{k, v}}, .seed = k * 31u + v}});
    }
  }
}

TEST_P(DecodeAttentionSmallTest, KeysPerChannelInMixesGroupsAndWindows) {
  for (const auto& [group, kv_heads] :
       std::vector<std::pair<int64_t, int64_t>>{{1, 8}, {3, 1}, {7, 4}, {8, 1}, {12, 2}}) {
    for (const int64_t window : {0, 1, 700, 1500}) {
      SCOPED_TRACE(testing::Message() << group << " x " << kv_heads << ", window " << window);
      DecodeShape shape = MakeShape(group, kv_heads, GetParam(), {0, 1});
      shape.keys_by_channel = true;
      shape.sliding_window = window;
      Check(shape, {{.num_tokens = 9000, .bits = kMix, .seed = 1},
                    {.num_tokens = 0},
                    {.num_tokens = 1, .seed = 2},
                    {.num_tokens = 4097, .bits = {{2, 2}}, .seed = 3},
                    {.num_tokens = 777, .bits = kMix, .seed = 5}});
    }
  }
}

// Values are BF16 then, beyond F16's range, too.
TEST_P(DecodeAttentionSmallTest, CachesOfBf16) {
  for (const bool by_channel : {false, true}) {
    for (const float v_scale : {1e-6f, 1.0f, 1e6f}) {
      DecodeShape shape = MakeShape(3, 2, GetParam(), {128, 3});
      shape.float_type = DType::kBF16;
      shape.keys_by_channel = by_channel;
      Check(shape,
            {{.num_tokens = 9000, .bits = kMix, .seed = 1},
             {.num_tokens = 0},
             {.num_tokens = 130, .seed = 2},
             {.num_tokens = 777, .bits = kMix, .seed = 5}},
            2.0f, v_scale);
      shape.sliding_window = 300;
      Check(shape, {{.num_tokens = 2000, .bits = kMix, .seed = 3}}, 2.0f, v_scale);
    }
  }
}

// Products of queries and ranges beyond F16, and queries of 0.
TEST_P(DecodeAttentionSmallTest, KeysPerChannelOfAnyScale) {
  DecodeShape shape = MakeShape(4, 2, GetParam(), {0, 3});
  shape.keys_by_channel = true;
  for (const float deviation : {0.0f, 0.01f, 8.0f}) {
    for (const float scale : {1e-6f, 1.0f, 1e3f}) {  // Of scores: queries become so much larger.
      SCOPED_TRACE(testing::Message() << "deviation " << deviation << ", scale " << scale);
      shape.scale = 1.0f / (scale * std::sqrt(static_cast<float>(GetParam())));
      Check(shape, {{.num_tokens = 3000, .bits = kMix, .seed = 11}}, deviation);
    }
  }
}

TEST_P(DecodeAttentionTest, MixesOfWidthsAndLengths) {
  Check(MakeShape(4, 4, GetParam(), {0, 1}),
        {{.num_tokens = 9000, .bits = kMix, .seed = 1},
         {.num_tokens = 0},
         {.num_tokens = 1, .seed = 2},
         {.num_tokens = 4097, .bits = {{2, 2}}, .seed = 3},
         {.num_tokens = 130 * 128 + 5, .bits = {{8, 4}, {16, 16}, {2, 2}}, .seed = 4},
         {.num_tokens = 777, .bits = kMix, .seed = 5}});
}

TEST_P(DecodeAttentionTest, LongSequencesOfEveryRunLength) {
  for (const int32_t pages : {127, 128, 513, 2049}) {
    SCOPED_TRACE(testing::Message() << pages << " pages");
    Check(MakeShape(2, 1, GetParam()),
          {{.num_tokens = pages * 128 - 50, .bits = {{2, 2}, {4, 4}}, .seed = 9}});
  }
}

TEST_P(DecodeAttentionTest, SharpAndFlatScoresAndValuesOfAnyScale) {
  for (const float deviation : {0.01f, 8.0f, 30.0f}) {
    for (const float v_scale : {1e-3f, 1.0f, 1000.0f}) {
      SCOPED_TRACE(testing::Message() << "deviation " << deviation << ", values " << v_scale);
      Check(MakeShape(4, 2, GetParam(), {0, 3}), {{.num_tokens = 3000, .bits = kMix, .seed = 11}},
            deviation, v_scale);
    }
  }
}

TEST_P(DecodeAttentionSmallTest, OperandsAreTheRoundedOutputs) {
  for (const SinkLayout sink : {SinkLayout{}, SinkLayout{0, 3}}) {
    const DecodeShape shape = MakeShape(3, 2, GetParam(), sink);
    std::vector<DecodeSequenceSpec> specs;
    for (const int32_t tokens : {1, 2, 129, 512, 513, 4097}) {
      specs.push_back({.num_tokens = tokens, .bits = kMix, .seed = static_cast<uint32_t>(tokens)});
    }
    const RandomDecodeBatch batch(shape, specs);
    DeviceBatch device(shape, batch, stream());
    for (const DType type : {DType::kF16, DType::kBF16}) {
      EXPECT_EQ(device.RunToOperand(type, 8), device.RoundedOut(type, 8));
    }
  }
}

TEST_P(DecodeAttentionTest, BitsDependOnTheSequenceAlone) {
  const DecodeShape shape = MakeShape(4, 2, GetParam(), {0, 1});
  const DecodeSequenceSpec first{.num_tokens = 20 * 128 + 9, .bits = kMix, .seed = 77};
  const RandomDecodeBatch alone_batch(shape, {first});
  DeviceBatch alone(shape, alone_batch, stream());
  const std::vector<float> expected = alone.Run();
  const size_t row = expected.size();
  for (int repeat = 0; repeat < 50; ++repeat) {
    ASSERT_EQ(std::memcmp(alone.Run().data(), expected.data(), row * sizeof(float)), 0) << repeat;
  }
  for (const int64_t batch_size : {7, 64, 70}) {
    std::vector<DecodeSequenceSpec> specs;
    for (int64_t i = 0; i < batch_size; ++i) {
      specs.push_back({.num_tokens = static_cast<int32_t>(1 + i * 97 % 1800),
                       .bits = {{4, 4}, {2, 2}, {8, 2}},
                       .seed = static_cast<uint32_t>(100 + i)});
    }
    const auto at = static_cast<size_t>(batch_size - 3);
    specs[at] = first;
    const RandomDecodeBatch batch(shape, specs);
    DeviceBatch device(shape, batch, stream());
    const std::vector<float> all = device.Run();
    EXPECT_EQ(std::memcmp(all.data() + at * row, expected.data(), row * sizeof(float)), 0)
        << batch_size;
    for (int repeat = 0; repeat < 10; ++repeat) {
      ASSERT_EQ(std::memcmp(device.Run().data(), all.data(), all.size() * sizeof(float)), 0);
    }
    DecodeShape with_more_blocks = shape;
    with_more_blocks.has_unlike_widths = true;
    EXPECT_EQ(DeviceBatch(with_more_blocks, batch, stream()).Run(), all);
  }
}

// More runs than blocks, which merge at once or later.
TEST_P(DecodeAttentionTest, BitsDoNotDependOnHowBlocksMerge) {
  const DecodeShape shape = MakeShape(8, 2, GetParam());
  DecodeShape unlike = shape;
  unlike.has_unlike_widths = true;
  const auto spec = [](int64_t i) {
    return DecodeSequenceSpec{.num_tokens = static_cast<int32_t>(48 * 128 + 9 + i % 3 * 128),
                              .bits = kMix,
                              .seed = static_cast<uint32_t>(200 + i)};
  };
  const RandomDecodeBatch alone_batch(shape, {spec(0)});
  const std::vector<float> expected = DeviceBatch(shape, alone_batch, stream()).Run();
  const size_t row = expected.size();
  for (const int64_t batch_size : {10, 20, 35, 64}) {
    std::vector<DecodeSequenceSpec> specs;
    for (int64_t i = 1; i < batch_size; ++i) specs.push_back(spec(i));
    specs.push_back(spec(0));
    const RandomDecodeBatch batch(shape, specs);
    const std::vector<float> all = DeviceBatch(shape, batch, stream()).Run();
    EXPECT_EQ(std::memcmp(all.data() + all.size() - row, expected.data(), row * sizeof(float)), 0)
        << batch_size;
    EXPECT_EQ(DeviceBatch(unlike, batch, stream()).Run(), all) << batch_size;
  }
}

// Pages of 2 bits before and behind those of others: queries are written in two ways.
TEST_P(DecodeAttentionTest, SmallQueriesBesideKeysOfTwoBits) {
  const std::vector<PageBits> mix = {{2, 4}, {4, 4}, {2, 2}, {8, 4}, {2, 4}, {16, 16}};
  Check(MakeShape(4, 2, GetParam()), {{.num_tokens = 3000, .bits = mix, .seed = 12}}, 1e-3f);
}

// Units of 2-bit pages are whole pages where 20 of 32 pages that are looked at have 2 bits, else
// halves.
TEST_P(DecodeAttentionTest, FewAndManyPagesOfTwoBits) {
  const PageBits two = {2, 2};
  for (const int32_t num_tokens : {900, 5000, 40000}) {
    for (const std::vector<PageBits>& mix : std::vector<std::vector<PageBits>>{
             {two, {4, 4}}, {two, two, {4, 4}}, {two, two, two, {8, 2}}, {two, {16, 16}, {4, 2}}}) {
      Check(MakeShape(4, 2, GetParam()),
            {{.num_tokens = num_tokens, .bits = mix, .seed = 12},
             {.num_tokens = num_tokens - 128, .bits = {two}, .seed = 13}});
    }
  }
}

TEST_P(DecodeAttentionTest, RowsOfSequencesWithoutTokensStay) {
  const DecodeShape shape = MakeShape(2, 2, GetParam());
  const RandomDecodeBatch batch(shape, {{.num_tokens = 0}, {.num_tokens = 200, .seed = 2}});
  const std::vector<float> out = DeviceBatch(shape, batch, stream()).Run();
  uint32_t first = 0;
  std::memcpy(&first, out.data(), sizeof(first));
  EXPECT_EQ(first, 0xffffffffu);
}

TEST_F(DecodeAttentionTestBase, WhatThereIsNoCodeForIsRefusedByName) {
  const Buffer scratch(kDevice, 1 << 20);
  const auto refuse = [&](const DecodeShape& shape, const char* text) {
    testing_support::ExpectError<Unsupported>(
        [&] { RunDecodeAttention(shape, {}, scratch.view(), stream()); },
        {"[cuda:0] attention: found", text, "--device cpu"});
  };
  refuse(MakeShape(1, 1, 96), "heads of 96 values, expected 64, 128 or 256");
  DecodeShape f32 = MakeShape(1, 1, 128);
  f32.float_type = DType::kF32;
  refuse(f32, "a cache of F32, expected F16 or BF16");
}

}  // namespace
}  // namespace pmkvq
