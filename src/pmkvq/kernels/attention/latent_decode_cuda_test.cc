// Attention over latents on CUDA against the oracle in double precision on the stored values: every
// head of every case. Bounds are those of decode attention (docs/numerics.md).
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "pmkvq/base/error.h"
#include "pmkvq/kernels/attention/latent_decode.h"
#include "pmkvq/kernels/attention/latent_pages.h"
#include "pmkvq/tensor/device/buffer.h"
#include "support/expect_error.h"
#include "support/gpu_test.h"

namespace pmkvq {
namespace {

constexpr double kWorstHead = 2e-3;
constexpr double kMeanHead = 5e-4;
const std::vector<PageBits> kMix = {{2, 8}, {4, 8},  {8, 8}, {16, 16}, {4, 4},  {2, 2}, {8, 4},
                                    {2, 4}, {16, 8}, {4, 2}, {8, 16},  {2, 16}, {16, 2}};

LatentDecodeShape MakeShape(int64_t heads, int64_t latent, SinkLayout sink = {},
                            int64_t rope = 64) {
  return {heads, latent, rope, DType::kF16, sink};
}

// A batch's arrays on the device.
class DeviceLatents {
 public:
  DeviceLatents(const LatentDecodeShape& shape, const RandomLatentBatch& batch, Stream& stream)
      : shape_(shape),
        stream_(stream),
        operands_(batch.operands()),
        scratch_(stream.device(),
                 LatentDecodeScratchBytes(shape, operands_.num_sequences, operands_.max_pages)) {
    operands_.arena = Upload(batch.arena());
    operands_.entries = reinterpret_cast<const PageEntry*>(Upload(batch.entries()));
    operands_.bits = reinterpret_cast<const PageBits*>(Upload(batch.bits()));
    operands_.num_tokens = reinterpret_cast<const int32_t*>(Upload(batch.num_tokens()));
    operands_.sink_rests = reinterpret_cast<const uint32_t*>(Upload(batch.sink_rests()));
    operands_.q = Upload(batch.q());
    out_bytes_ = static_cast<size_t>(operands_.num_sequences * shape.num_heads * shape.latent) *
                 sizeof(float);
    buffers_.push_back(std::make_unique<Buffer>(stream.device(), out_bytes_));
    out_ = buffers_.back()->data();
    operands_.out = reinterpret_cast<float*>(out_);
  }

  // What it gives; nothing of an earlier call is left to be found.
  std::vector<float> Run() {
    FillOnDevice(stream_, out_, 0xff, out_bytes_);
    FillOnDevice(stream_, scratch_.data(), 0xff, scratch_.num_bytes());
    RunLatentDecode(shape_, operands_, scratch_.view(), stream_);
    std::vector<float> out(out_bytes_ / sizeof(float));
    CopyToHost(stream_, out.data(), out_, out_bytes_);
    stream_.Synchronize();
    return out;
  }

  // The last token of a batch of one sequence attends as a chunk of one row, whose own key is what
  // the cache has stored for it.
  std::vector<float> RunAsChunk(const RandomLatentBatch& batch, const float* c, const float* rope) {
    DeviceGemm gemm(stream_.device());
    const int64_t num_tokens = batch.num_tokens()[0] - 1;
    std::vector<float> q;
    for (const F16 value : batch.q()) q.push_back(ToFloat(value));
    const std::vector<uint32_t> unfit(1, kAllFit);
    ChunkOperands chunk;
    chunk.q = reinterpret_cast<const float*>(Upload(q));
    chunk.k = reinterpret_cast<const float*>(Upload(std::vector<float>(c, c + shape_.latent)));
    chunk.v = reinterpret_cast<const float*>(Upload(std::vector<float>(rope, rope + shape_.rope)));
    chunk.out = operands_.out;
    chunk.num_rows = 1;
    chunk.arena = operands_.arena;
    chunk.entries = operands_.entries;
    chunk.bits = operands_.bits;
    chunk.num_tokens = static_cast<int32_t>(num_tokens);
    if (shape_.sink.rest_tokens > 0) {
      chunk.rest_k = batch.sink_rests()[0];
      chunk.rest_v = batch.sink_rests()[1];
    }
    chunk.unfit = reinterpret_cast<uint32_t*>(Upload(unfit));
    FillOnDevice(stream_, out_, 0xff, out_bytes_);
    const Buffer scratch(stream_.device(), LatentChunkScratchBytes(shape_, 1));
    RunLatentChunk(shape_, chunk, scratch.view(), gemm, stream_);
    std::vector<float> out(out_bytes_ / sizeof(float));
    CopyToHost(stream_, out.data(), out_, out_bytes_);
    stream_.Synchronize();
    return out;
  }

 private:
  template <class T>
  std::byte* Upload(const std::vector<T>& values) {
    const size_t bytes = values.size() * sizeof(T);
    buffers_.push_back(std::make_unique<Buffer>(stream_.device(), bytes));
    CopyToDevice(stream_, buffers_.back()->data(), values.data(), bytes);
    stream_.Synchronize();
    return buffers_.back()->data();
  }

  LatentDecodeShape shape_;
  Stream& stream_;
  DecodeOperands operands_;
  Buffer scratch_;
  std::vector<std::unique_ptr<Buffer>> buffers_;
  std::byte* out_ = nullptr;
  size_t out_bytes_ = 0;
};

class LatentDecodeTest : public GpuTest {
 protected:
  void Check(const LatentDecodeShape& shape, const std::vector<LatentSequenceSpec>& specs,
             float deviation = 2.0f, float scale = 1.0f) {
    const RandomLatentBatch batch(shape, specs, deviation, scale);
    Compare(shape, batch, DeviceLatents(shape, batch, stream()).Run());
  }
  void Compare(const LatentDecodeShape& shape, const RandomLatentBatch& batch,
               const std::vector<float>& out, double mean_head = kMeanHead) {
    std::vector<double> expected(out.size());
    ref::LatentDecode(shape, batch.operands(), expected.data());
    double worst = 0.0;
    double sum = 0.0;
    int64_t count = 0;
    const auto width = static_cast<size_t>(shape.latent);
    for (size_t head = 0; head < out.size() / width; ++head) {
      if (batch.num_tokens()[head / static_cast<size_t>(shape.num_heads)] == 0) continue;
      double difference = 0.0;
      double size = 0.0;
      for (size_t at = head * width; at < (head + 1) * width; ++at) {
        difference += (out[at] - expected[at]) * (out[at] - expected[at]);
        size += expected[at] * expected[at];
      }
      const double error = std::sqrt(difference / size);
      if (!(error <= worst)) worst = error;  // NaN, too.
      sum += error;
      ++count;
    }
    EXPECT_LE(worst, kWorstHead);
    EXPECT_LE(sum / static_cast<double>(std::max<int64_t>(count, 1)), mean_head);
    worst_ = std::max(worst_, worst);
    mean_ = std::max(mean_, sum / static_cast<double>(std::max<int64_t>(count, 1)));
  }
  void TearDown() override {
    RecordProperty("worst_head_error", std::to_string(worst_));
    RecordProperty("largest_mean_error", std::to_string(mean_));
  }

 private:
  double worst_ = 0.0;
  double mean_ = 0.0;
};

TEST_F(LatentDecodeTest, EveryPairOfWidths) {
  constexpr uint8_t kWidths[] = {16, 8, 4, 2};
  for (const uint8_t c : kWidths) {
    for (const uint8_t rope : kWidths) {
      SCOPED_TRACE(testing::Message() << "c " << int{c} << " k_r " << int{rope});
      Check(MakeShape(16, 512),
            {{.num_tokens = 3 * 128 + 37, .bits = {{c, rope}}, .seed = c * 31u + rope}});
    }
  }
}

TEST_F(LatentDecodeTest, NarrowRopeParts) {
  constexpr uint8_t kWidths[] = {16, 8, 4, 2};
  for (const uint8_t c : kWidths) {
    for (const uint8_t rope : kWidths) {
      SCOPED_TRACE(testing::Message() << "c " << int{c} << " k_r " << int{rope});
      Check(MakeShape(4, 256, {0, 1}, 32),
            {{.num_tokens = 3 * 128 + 37, .bits = {{c, rope}}, .seed = c * 31u + rope}});
    }
  }
  Check(MakeShape(40, 256, {128, 3}, 32), {{.num_tokens = 3000, .bits = kMix, .seed = 8}});
}

TEST_F(LatentDecodeTest, OddNumbersOfTokensHeadsAndChannels) {
  uint32_t seed = 1;
  for (const int32_t tokens : {1, 2, 3, 17, 127, 128, 129, 700}) {
    for (const auto& [heads, latent] : std::vector<std::pair<int64_t, int64_t>>{
             {1, 128}, {16, 256}, {20, 128}, {7, 512}, {40, 256}}) {
      SCOPED_TRACE(testing::Message() << tokens << " tokens, " << heads << " x " << latent);
      Check(MakeShape(heads, latent),
            {{.num_tokens = tokens, .bits = {{4, 8}, {2, 8}}, .seed = ++seed}});
    }
  }
}

TEST_F(LatentDecodeTest, SinksOfEverySize) {
  for (const int32_t sink : {1, 5, 127, 128, 130}) {
    for (const int32_t tokens : {1, 4, 5, 6, 127, 129, 131, 300}) {
      SCOPED_TRACE(testing::Message() << "sink " << sink << ", " << tokens << " tokens");
      Check(MakeShape(3, 256, {sink / 128 * 128, sink % 128}),
            {{.num_tokens = tokens, .bits = {{4, 8}, {8, 8}}, .seed = 3}});
    }
  }
}

TEST_F(LatentDecodeTest, MixesOfWidthsAndLengths) {
  Check(MakeShape(16, 512, {0, 1}), {{.num_tokens = 4000, .bits = kMix, .seed = 1},
                                     {.num_tokens = 0},
                                     {.num_tokens = 1, .seed = 2},
                                     {.num_tokens = 2049, .bits = {{2, 8}}, .seed = 3},
                                     {.num_tokens = 777, .bits = kMix, .seed = 5}});
  for (const int32_t pages : {127, 130}) {
    Check(MakeShape(2, 128), {{.num_tokens = pages * 128 - 50, .bits = kMix, .seed = 9}});
  }
}

TEST_F(LatentDecodeTest, DeepSeeksHeads) {
  Check(MakeShape(128, 512), {{.num_tokens = 300, .bits = {{8, 8}, {4, 8}}, .seed = 4}});
}

TEST_F(LatentDecodeTest, SharpAndFlatScoresAndLatentsOfAnyScale) {
  for (const float deviation : {0.01f, 8.0f, 30.0f}) {
    for (const float scale : {1e-2f, 1.0f, 1000.0f}) {
      SCOPED_TRACE(testing::Message() << "deviation " << deviation << ", latents " << scale);
      Check(MakeShape(4, 256, {0, 3}), {{.num_tokens = 2000, .bits = kMix, .seed = 11}}, deviation,
            scale);
    }
  }
}

TEST_F(LatentDecodeTest, BitsDependOnTheSequenceAlone) {
  const LatentDecodeShape shape = MakeShape(16, 512, {0, 1});
  const LatentSequenceSpec first{.num_tokens = 20 * 128 + 9, .bits = kMix, .seed = 77};
  const RandomLatentBatch alone_batch(shape, {first});
  DeviceLatents alone(shape, alone_batch, stream());
  const std::vector<float> expected = alone.Run();
  const size_t row = expected.size();
  for (int repeat = 0; repeat < 50; ++repeat) {
    ASSERT_EQ(std::memcmp(alone.Run().data(), expected.data(), row * sizeof(float)), 0) << repeat;
  }
  for (const int64_t batch_size : {7, 64, 70}) {
    std::vector<LatentSequenceSpec> specs;
    for (int64_t i = 0; i < batch_size; ++i) {
      specs.push_back({.num_tokens = static_cast<int32_t>(1 + i * 97 % 900),
                       .bits = {{4, 8}, {2, 8}, {8, 8}},
                       .seed = static_cast<uint32_t>(100 + i)});
    }
    const auto at = static_cast<size_t>(batch_size - 3);
    specs[at] = first;
    const RandomLatentBatch batch(shape, specs);
    DeviceLatents device(shape, batch, stream());
    const std::vector<float> all = device.Run();
    EXPECT_EQ(std::memcmp(all.data() + at * row, expected.data(), row * sizeof(float)), 0)
        << batch_size;
    for (int repeat = 0; repeat < 10; ++repeat) {
      ASSERT_EQ(std::memcmp(device.Run().data(), all.data(), all.size() * sizeof(float)), 0);
    }
  }
}

// A chunk of one row gives what decoding gives for the same tokens.
TEST_F(LatentDecodeTest, ChunksAttendToPagesAndThemselves) {
  for (const SinkLayout sink : {SinkLayout{}, SinkLayout{0, 3}, SinkLayout{128, 5}}) {
    for (const int32_t tokens : {2, 140, 1500}) {
      const LatentDecodeShape shape = MakeShape(5, 256, sink, tokens == 140 ? 32 : 64);
      // The last token is the only one of its page, at 16 bits.
      const int32_t num_tokens =
          sink.piece_tokens + sink.rest_tokens + (tokens + 127) / 128 * 128 + 1;
      const RandomLatentBatch batch(shape, {{.num_tokens = num_tokens, .bits = kMix, .seed = 21}});
      const DecodeOperands operands = batch.operands();
      const PageEntry& last = batch.entries().back();
      std::vector<float> own;
      for (int64_t i = 0; i < shape.key_values(); ++i) {
        const bool is_rope = i >= shape.latent;
        const auto dim = static_cast<int>(is_rope ? shape.rope : kLatentGroup);
        const int64_t channel = is_rope ? i - shape.latent : i;
        const FragmentPageShape page{is_rope ? 1 : shape.groups(), dim, false, false};
        const auto half = static_cast<uint16_t>(FragmentValue(
            page, 16,
            operands.arena + static_cast<size_t>(is_rope ? last.v : last.k) * fragment::kArenaUnit,
            channel / dim, (shape.sink.InPages(num_tokens) - 1) % 128, channel % dim));
        F16 value;
        std::memcpy(&value, &half, 2);
        own.push_back(ToFloat(value));
      }
      SCOPED_TRACE(testing::Message() << "sink " << sink.rest_tokens << ", " << num_tokens);
      DeviceLatents device(shape, batch, stream());
      // Codes are rounded to F16 as well, once for scores and sums.
      Compare(shape, batch, device.RunAsChunk(batch, own.data(), own.data() + shape.latent),
              2 * kMeanHead);
    }
  }
}

TEST_F(LatentDecodeTest, WhatThereIsNoCodeForIsRefusedByName) {
  const Buffer scratch(kDevice, 1 << 20);
  const auto refuse = [&](const LatentDecodeShape& shape, const char* text) {
    testing_support::ExpectError<Unsupported>(
        [&] { RunLatentDecode(shape, {}, scratch.view(), stream()); },
        {"[cuda:0] attention: found", text, "--device cpu"});
  };
  refuse(MakeShape(4, 384), "latents of 384 + 64 values");
  LatentDecodeShape shape = MakeShape(4, 512);
  shape.rope = 32;
  refuse(shape, "latents of 512 + 32 values");
  shape = MakeShape(4, 512);
  shape.float_type = DType::kBF16;
  refuse(shape, "latents in a cache of BF16");
}

}  // namespace
}  // namespace pmkvq
