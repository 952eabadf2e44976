// Attention of a prompt's chunk on CUDA against double precision on the stored values, and the rows
// that it stores and reads.
#include "pmkvq/kernels/attention/chunk_attention.h"

#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "pmkvq/base/float16.h"
#include "pmkvq/kernels/attention/decode_pages.h"
#include "pmkvq/kernels/kv_quant/page_rows.h"
#include "pmkvq/tensor/device/buffer.h"
#include "support/gpu_test.h"

namespace pmkvq {
namespace {

class ChunkAttentionSmallTest : public GpuTest {
 protected:
  template <class T>
  std::byte* Upload(const std::vector<T>& values) {
    const size_t bytes = std::max<size_t>(values.size() * sizeof(T), 1);
    buffers_.push_back(std::make_unique<Buffer>(kDevice, bytes));
    CopyToDevice(stream(), buffers_.back()->data(), values.data(), values.size() * sizeof(T));
    stream().Synchronize();
    return buffers_.back()->data();
  }
  std::byte* Take(size_t num_bytes) {
    buffers_.push_back(std::make_unique<Buffer>(kDevice, num_bytes));
    FillOnDevice(stream(), buffers_.back()->data(), 0xff, num_bytes);
    return buffers_.back()->data();
  }

 private:
  std::vector<std::unique_ptr<Buffer>> buffers_;
};

DecodeShape MakeShape(int64_t group, int64_t kv_heads, int64_t dim, SinkLayout sink) {
  DecodeShape shape;
  shape.num_heads = group * kv_heads;
  shape.num_kv_heads = kv_heads;
  shape.head_dim = dim;
  shape.scale = 1.0f / std::sqrt(static_cast<float>(dim));
  shape.sink = sink;
  return shape;
}

struct Case {
  int64_t group, kv_heads, dim;
  SinkLayout sink;
  int32_t stored;
  int64_t rows;
  int64_t window = 0;
  bool by_channel = false;
  DType type = DType::kF16;
};

// In double precision: row t over the stored tokens as they read, then the chunk's rows 0 .. t
// rounded to F16.
std::vector<double> ExactChunk(const DecodeShape& shape, const DecodeOperands& stored,
                               int32_t num_stored, int64_t num_rows, const std::vector<float>& q,
                               const std::vector<float>& k, const std::vector<float>& v) {
  const int64_t dim = shape.head_dim;
  const int64_t group = shape.num_heads / shape.num_kv_heads;
  const bool is_f16 = shape.float_type == DType::kF16;
  const auto round = [&](float value) {
    return double{is_f16 ? ToFloat(ToF16(value)) : ToFloat(ToBF16(value))};
  };
  std::vector<double> out(q.size());
  for (int64_t head = 0; head < shape.num_kv_heads; ++head) {
    ref::DenseHead dense;
    if (num_stored > 0) dense = ref::ReadHead(shape, stored, 0, head);
    for (int64_t row = 0; row < num_rows; ++row) {
      const auto own = static_cast<size_t>((row * shape.num_kv_heads + head) * dim);
      for (int64_t d = 0; d < dim; ++d) {
        dense.k.push_back(round(k[own + static_cast<size_t>(d)]));
        dense.v.push_back(round(v[own + static_cast<size_t>(d)]));
      }
      dense.positions.push_back(num_stored + static_cast<int32_t>(row));
      for (int64_t j = 0; j < group; ++j) {
        const auto at = static_cast<size_t>((row * shape.num_heads + head * group + j) * dim);
        std::vector<double> query;
        for (int64_t d = 0; d < dim; ++d)
          query.push_back(is_f16 ? round(q[at + static_cast<size_t>(d)])
                                 : q[at + static_cast<size_t>(d)]);
        ref::AttendHead(shape, query.data(), dense, out.data() + at);
      }
    }
  }
  return out;
}

TEST_F(ChunkAttentionSmallTest, EqualsExactAttentionRowByRow) {
  const std::vector<PageBits> mix = {{2, 2}, {16, 4}, {8, 8}, {4, 2}, {4, 16}};
  const Case cases[] = {{1, 1, 64, {0, 0}, 0, 1},
                        {4, 2, 128, {0, 1}, 0, 33},
                        {2, 1, 128, {0, 1}, 1, 130},
                        {7, 2, 128, {0, 5}, 400, 200},
                        {4, 2, 64, {128, 3}, 700, 9},
                        {3, 1, 128, {0, 0}, 1500, 64},
                        {4, 3, 64, {0, 1}, 3, 40},
                        {2, 2, 128, {128, 0}, 100, 100},
                        {2, 1, 64, {0, 0}, 0, 300, 1},
                        {2, 2, 128, {0, 5}, 700, 300, 200},
                        {2, 2, 128, {128, 3}, 129, 50, 40},
                        {2, 1, 64, {128, 3}, 140, 150, 64},
                        {1, 2, 64, {0, 1}, 2500, 130, 1100},
                        {3, 1, 128, {0, 1}, 900, 9, 5},
                        {4, 2, 128, {0, 1}, 300, 40, 5000},
                        {3, 1, 128, {0, 0}, 1500, 64, 0, true},
                        {2, 2, 64, {0, 5}, 700, 300, 200, true},
                        {4, 2, 256, {0, 1}, 300, 40},
                        {2, 1, 256, {128, 3}, 700, 130, 200},
                        {2, 1, 256, {0, 1}, 700, 9, 0, true},
                        {4, 2, 64, {128, 3}, 700, 9, 0, false, DType::kBF16},
                        {2, 1, 128, {0, 5}, 700, 200, 300, true, DType::kBF16}};
  DeviceGemm gemm(kDevice);
  for (const Case& c : cases) {
    SCOPED_TRACE(testing::Message() << "stored " << c.stored << " rows " << c.rows << " dim "
                                    << c.dim << " group " << c.group << " window " << c.window);
    DecodeShape shape = MakeShape(c.group, c.kv_heads, c.dim, c.sink);
    shape.sliding_window = c.window;
    shape.keys_by_channel = c.by_channel;
    shape.float_type = c.type;
    const RandomDecodeBatch batch(shape, {{.num_tokens = c.stored, .bits = mix, .seed = 5}});
    const DecodeOperands stored = batch.operands();
    std::mt19937 random(11);
    std::normal_distribution<float> normal;
    const auto rows_of = [&](int64_t heads) {
      std::vector<float> values(static_cast<size_t>(c.rows * heads * c.dim));
      for (float& value : values) value = normal(random) * 1.3f;
      return values;
    };
    const std::vector<float> q = rows_of(shape.num_heads);
    const std::vector<float> k = rows_of(shape.num_kv_heads);
    const std::vector<float> v = rows_of(shape.num_kv_heads);

    ChunkOperands op;
    op.q = reinterpret_cast<const float*>(Upload(q));
    op.k = reinterpret_cast<const float*>(Upload(k));
    op.v = reinterpret_cast<const float*>(Upload(v));
    const size_t out_bytes = q.size() * sizeof(float);
    op.out = reinterpret_cast<float*>(Take(out_bytes));
    op.num_rows = c.rows;
    op.arena = Upload(batch.arena());
    op.entries = reinterpret_cast<const PageEntry*>(Upload(batch.entries()));
    op.bits = reinterpret_cast<const PageBits*>(Upload(batch.bits()));
    op.num_tokens = c.stored;
    if (c.sink.rest_tokens > 0 && c.stored > 0) {
      op.rest_k = batch.sink_rests()[0];
      op.rest_v = batch.sink_rests()[1];
    }
    op.unfit = reinterpret_cast<uint32_t*>(Take(sizeof(uint32_t)));
    const size_t scratch_bytes = ChunkScratchBytes(shape, c.rows);
    std::byte* const scratch = Take(scratch_bytes);
    RunChunkAttention(shape, op, {kDevice, scratch, scratch_bytes}, gemm, stream());
    std::vector<float> out(q.size());
    CopyToHost(stream(), out.data(), reinterpret_cast<const std::byte*>(op.out), out_bytes);
    uint32_t unfit = 0;
    CopyToHost(stream(), &unfit, reinterpret_cast<const std::byte*>(op.unfit), sizeof(unfit));
    stream().Synchronize();
    EXPECT_EQ(unfit, kAllFit);

    // Again: the same bits.
    FillOnDevice(stream(), scratch, 0xff, scratch_bytes);
    RunChunkAttention(shape, op, {kDevice, scratch, scratch_bytes}, gemm, stream());
    std::vector<float> again(q.size());
    CopyToHost(stream(), again.data(), reinterpret_cast<const std::byte*>(op.out), out_bytes);
    stream().Synchronize();
    EXPECT_EQ(again, out);

    const std::vector<double> expected = ExactChunk(shape, stored, c.stored, c.rows, q, k, v);
    double worst = 0.0;
    double sum = 0.0;
    for (int64_t head = 0; head < c.rows * shape.num_heads; ++head) {
      double difference = 0.0;
      double size = 0.0;
      for (int64_t d = 0; d < c.dim; ++d) {
        const auto at = static_cast<size_t>(head * c.dim + d);
        difference += std::pow(out[at] - expected[at], 2);
        size += std::pow(expected[at], 2);
      }
      worst = std::max(worst, std::sqrt(difference / size));
      sum += std::sqrt(difference / size);
      ASSERT_FALSE(std::isnan(difference)) << head;
    }
    // Queries and weights are rounded to F16, as in decode attention.
    EXPECT_LE(worst, 4e-3);
    EXPECT_LE(sum / static_cast<double>(c.rows * shape.num_heads), 5e-4);
  }
}

// Rows of a chunk, stored by StoreRows behind a few, read back by GatherPages and by layout.
TEST_F(ChunkAttentionSmallTest, StoredRowsAreReadBack) {
  for (const int64_t dim : {64, 128, 256}) {
    constexpr int64_t kHeads = 3;
    constexpr int64_t kRows = 200;
    const size_t page = static_cast<size_t>(kHeads * 128 * dim * 2);
    const auto units = [](size_t bytes) { return static_cast<uint32_t>(bytes / 256); };
    std::vector<float> k(static_cast<size_t>(kRows * kHeads * dim));
    std::vector<float> v(k.size());
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    for (size_t i = 0; i < k.size(); ++i) {
      k[i] = normal(random);
      v[i] = normal(random);
    }
    constexpr size_t kPages = 2;  // Of each side: K pages, V pages, then a rest of each side.
    std::byte* const arena = Take(2 * kPages * page + 2 * page);
    const uint32_t rest_k = units(4 * page);
    const uint32_t rest_v = units(5 * page);
    // 5 rows to a rest of 7 from its third on; 128 to page 0; 67 to page 1, whose keys alone.
    const std::vector<RowPiece> pieces = {{rest_k, rest_v, 0, 5, 2, 7},
                                          {0, units(2 * page), 5, 128, 0, 0},
                                          {units(page), units(3 * page), 133, 67, 0, 0}};
    StoreRows(kHeads, dim, DType::kF16, pieces,
              {reinterpret_cast<const float*>(Upload(k)), reinterpret_cast<const float*>(Upload(v)),
               arena},
              stream());
    const std::vector<PageEntry> entries = {{0, units(2 * page), 0, 0},
                                            {units(page), units(3 * page), 0, 0}};
    const std::vector<PageBits> bits(2);
    GatherPagesOperands op;
    op.arena = arena;
    op.entries = reinterpret_cast<const PageEntry*>(Upload(entries));
    op.bits = reinterpret_cast<const PageBits*>(Upload(bits));
    op.num_pages = 2;
    op.num_tokens = 195;
    op.k = Take(2 * page);
    op.v = Take(2 * page);
    GatherPages(kHeads, dim, DType::kF16, op, stream());
    std::vector<F16> got_k(static_cast<size_t>(kHeads * 256 * dim));
    std::vector<F16> got_v(got_k.size());
    CopyToHost(stream(), got_k.data(), op.k, 2 * page);
    CopyToHost(stream(), got_v.data(), op.v, 2 * page);
    std::vector<F16> rest(static_cast<size_t>(kHeads * 7 * dim));
    CopyToHost(stream(), rest.data(), arena + 5 * page, rest.size() * 2);
    stream().Synchronize();
    for (int64_t head = 0; head < kHeads; ++head) {
      for (int64_t token = 0; token < 256; ++token) {
        for (int64_t d = 0; d < dim; ++d) {
          const auto at = static_cast<size_t>((head * 256 + token) * dim + d);
          const auto from = static_cast<size_t>(((token + 5) * kHeads + head) * dim + d);
          const bool is_there = token < 195;
          ASSERT_EQ(ToFloat(got_k[at]), is_there ? ToFloat(ToF16(k[from])) : 0.0f) << token;
          ASSERT_EQ(ToFloat(got_v[at]), is_there ? ToFloat(ToF16(v[from])) : 0.0f) << token;
        }
      }
      const auto row = static_cast<size_t>((head * 7 + 2) * dim);
      EXPECT_EQ(ToFloat(rest[row]), ToFloat(ToF16(v[static_cast<size_t>(head * dim)])));
    }
  }
}

TEST_F(ChunkAttentionSmallTest, AValueThatDoesNotFitIsNamed) {
  const DecodeShape shape = MakeShape(2, 1, 64, {0, 1});
  std::vector<float> rows(static_cast<size_t>(4 * 2 * 64), 0.5f);
  DeviceGemm gemm(kDevice);
  for (const UnfitRow kind : {UnfitRow::kKey, UnfitRow::kValue, UnfitRow::kQuery}) {
    ChunkOperands op;
    std::vector<float> bad = rows;
    bad[70] = 1e6f;
    op.q = reinterpret_cast<const float*>(Upload(kind == UnfitRow::kQuery ? bad : rows));
    op.k = reinterpret_cast<const float*>(Upload(kind == UnfitRow::kKey ? bad : rows));
    op.v = reinterpret_cast<const float*>(Upload(kind == UnfitRow::kValue ? bad : rows));
    op.out = reinterpret_cast<float*>(Take(rows.size() * sizeof(float)));
    op.num_rows = 4;
    op.unfit = reinterpret_cast<uint32_t*>(Take(sizeof(uint32_t)));
    op.block = 9;
    const size_t bytes = ChunkScratchBytes(shape, 4);
    RunChunkAttention(shape, op, {kDevice, Take(bytes), bytes}, gemm, stream());
    uint32_t unfit = 0;
    CopyToHost(stream(), &unfit, reinterpret_cast<const std::byte*>(op.unfit), sizeof(unfit));
    stream().Synchronize();
    EXPECT_EQ(unfit, 9 * kUnfitKinds + static_cast<uint32_t>(kind));
  }
}

TEST_F(ChunkAttentionSmallTest, PatchesReachTheirEntries) {
  const std::vector<PagePatch> patches = {{{1, 2, 3, 4}, 700, {8, 4}}, {{9, 9, 9, 9}, 0, {2, 2}}};
  std::byte* const entries = Take(1000 * sizeof(PageEntry));
  std::byte* const bits = Take(1000 * sizeof(PageBits));
  PatchPageTables(reinterpret_cast<const PagePatch*>(Upload(patches)), 2,
                  reinterpret_cast<PageEntry*>(entries), reinterpret_cast<PageBits*>(bits),
                  stream());
  std::vector<PageEntry> got(1000);
  std::vector<PageBits> got_bits(1000);
  CopyToHost(stream(), got.data(), entries, got.size() * sizeof(PageEntry));
  CopyToHost(stream(), got_bits.data(), bits, got_bits.size() * sizeof(PageBits));
  stream().Synchronize();
  EXPECT_EQ(got[700], (PageEntry{1, 2, 3, 4}));
  EXPECT_EQ(got[0], (PageEntry{9, 9, 9, 9}));
  EXPECT_EQ(got_bits[700], (PageBits{8, 4}));
  EXPECT_EQ(got[1].k, 0xffffffffu);
}

}  // namespace
}  // namespace pmkvq
