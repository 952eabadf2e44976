// Oracle of absorbed attention over latents in fragment order: double precision, on the host.
#include <cmath>
#include <cstring>
#include <vector>

#include "pmkvq/base/float16.h"
#include "pmkvq/kernels/attention/latent_decode.h"
#include "pmkvq/kernels/kv_quant/fragment_page.h"

namespace pmkvq::ref {
namespace {

double HalfAt(const std::byte* data, int64_t index) {
  F16 value;
  std::memcpy(&value, data + index * 2, 2);
  return ToFloat(value);
}

const std::byte* At(const DecodeOperands& operands, uint32_t units) {
  return operands.arena + static_cast<size_t>(units) * fragment::kArenaUnit;
}

// What one stream of a page reads at a token: `heads` x `dim` values.
void ReadToken(const DecodeOperands& operands, uint32_t codes, uint32_t metadata, int bits,
               int64_t heads, int64_t dim, int64_t token, double* out) {
  const FragmentPageShape shape{heads, dim, /*is_values=*/false, /*by_channel=*/false};
  for (int64_t head = 0; head < heads; ++head) {
    double min = 0.0;
    double step = 0.0;
    if (bits < 16) {
      const std::byte* const bounds = At(operands, metadata) + head * fragment::MetadataBytes();
      min = HalfAt(bounds, token);
      step = HalfAt(bounds, fragment::kTokens + token) / ((1 << bits) - 1);
    }
    for (int64_t d = 0; d < dim; ++d) {
      const uint32_t value = FragmentValue(shape, bits, At(operands, codes), head, token, d);
      const auto half = static_cast<uint16_t>(value);
      F16 as_float;
      std::memcpy(&as_float, &half, 2);
      out[head * dim + d] = bits == 16 ? double{ToFloat(as_float)} : value * step + min;
    }
  }
}

}  // namespace

void LatentDecode(const LatentDecodeShape& shape, const DecodeOperands& operands, double* out) {
  const int64_t width = shape.key_values();
  for (int64_t b = 0; b < operands.num_sequences; ++b) {
    const int32_t num_tokens = operands.num_tokens[b];
    if (num_tokens == 0) continue;
    const int64_t row = operands.table_rows == nullptr ? b : operands.table_rows[b];
    const int64_t rest = shape.sink.InRest(num_tokens);
    const int64_t in_pages = shape.sink.InPages(num_tokens);
    std::vector<double> keys(static_cast<size_t>(num_tokens * width));
    for (int64_t t = 0; t < rest; ++t) {
      const uint32_t* const slots = operands.sink_rests + 2 * row;
      double* const key = keys.data() + t * width;
      for (int64_t d = 0; d < shape.latent; ++d) {
        const int64_t line = d / kLatentGroup * shape.sink.rest_tokens + t;
        key[d] = HalfAt(At(operands, slots[0]), line * kLatentGroup + d % kLatentGroup);
      }
      for (int64_t d = 0; d < shape.rope; ++d) {
        key[shape.latent + d] = HalfAt(At(operands, slots[1]), t * shape.rope + d);
      }
    }
    for (int64_t t = 0; t < in_pages; ++t) {
      const int64_t index = row * operands.max_pages + t / fragment::kTokens;
      const PageEntry& entry = operands.entries[index];
      const PageBits& bits = operands.bits[index];
      double* const key = keys.data() + (rest + t) * width;
      ReadToken(operands, entry.k, entry.k_metadata, bits.k, shape.groups(), kLatentGroup,
                t % fragment::kTokens, key);
      ReadToken(operands, entry.v, entry.v_metadata, bits.v, 1, shape.rope, t % fragment::kTokens,
                key + shape.latent);
    }
    for (int64_t head = 0; head < shape.num_heads; ++head) {
      const std::byte* const q = operands.q + (b * shape.num_heads + head) * width * 2;
      std::vector<double> weights(static_cast<size_t>(num_tokens));
      double largest = -INFINITY;
      for (int64_t t = 0; t < num_tokens; ++t) {
        double dot = 0.0;
        for (int64_t d = 0; d < width; ++d) {
          dot += HalfAt(q, d) * keys[static_cast<size_t>(t * width + d)];
        }
        weights[static_cast<size_t>(t)] = dot;
        largest = std::max(largest, dot);
      }
      double sum = 0.0;
      for (double& weight : weights) sum += weight = std::exp(weight - largest);
      double* const to = out + (b * shape.num_heads + head) * shape.latent;
      std::fill_n(to, shape.latent, 0.0);
      for (int64_t t = 0; t < num_tokens; ++t) {
        const double weight = weights[static_cast<size_t>(t)] / sum;
        for (int64_t d = 0; d < shape.latent; ++d) {
          to[d] += weight * keys[static_cast<size_t>(t * width + d)];
        }
      }
    }
  }
}

}  // namespace pmkvq::ref
