// XQuant (arXiv 2510.11236, EMNLP 2025): 1 and 2 bits, levels moved inwards, codes shared by pairs
// of blocks.
//
// Axes and windows are KIVI's: keys after RoPE per channel in groups of G tokens, in blocks of R;
// values per token in groups of G channels behind the newest R. Blocks from `kq` on have 1-bit
// keys, the others 2-bit ones, or 4-bit ones with k=4, which the paper has not; `vq` likewise for
// values, which have 1 or 2 bits. An odd block from `km` on stores no key
// codes: it reads those of the block below (same token, head and channel) with its own minimum and
// step; `vm` likewise for values.
//
// Levels: with minimum z and step s of a group at b bits, a code c is read as
//   c * s (1 - 2 eta_b) + z + (2^b - 1) s eta_b,
// which moves the outermost levels inwards (eta_4 = 0). Nothing is calibrated.
#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"
#include "pmkvq/kernels/kv_quant/kv_quant_common.h"
#include "pmkvq/research/methods/affine.h"
#include "pmkvq/research/methods/simulated_method.h"
#include "pmkvq/research/methods/windows.h"

namespace pmkvq {
namespace {

// The codes of a block that the block above reads: [tokens, Hkv, D], of quantised tokens.
struct XQuantState final : MethodState {
  explicit XQuantState(int64_t kv_dim) : width(static_cast<size_t>(kv_dim)) {}

  void Truncate(int64_t num_tokens) override {
    for (std::vector<uint8_t>* codes : {&key_codes, &value_codes}) {
      codes->resize(std::min(codes->size(), static_cast<size_t>(num_tokens) * width));
    }
  }

  size_t width;  // C
  std::vector<uint8_t> key_codes;
  std::vector<uint8_t> value_codes;
};

// Keys, or values, of one block.
struct Side {
  AffineFormat format;
  bool shares = false;  // Reads the codes of the block below.
  float eta = 0;
};

class XQuant final : public CacheMethod {
 public:
  XQuant(const MethodSpec& spec, const MethodContext& context) : context_(context) {
    const UniformKvGeometry& geometry = context.geometry;
    key_group_ = spec.Integer("group", 32);
    value_group_ = std::min(key_group_, geometry.head_dim);
    CheckGroup(spec.text, value_group_, geometry.head_dim);
    const int64_t residual = ReadResidual(spec, 128, key_group_);
    keys_window_ = {.sink = 0, .recent = 0, .block = residual};
    values_window_ = {.sink = 0, .recent = residual, .block = 1};
    // The upper half, from an even block on.
    const int64_t half = (geometry.num_layers / 2 + 1) / 2 * 2;
    const double eta1 = spec.Real("eta1", 1.0 / 6);
    const double eta2 = spec.Real("eta2", 0.045);
    const auto key_bits = static_cast<int>(spec.Integer("k", 2));
    keys_ = Sides(FirstNarrow(spec, "kq"), key_bits, spec.Integer("km", half), eta1, eta2);
    values_ = Sides(FirstNarrow(spec, "vq"), 2, spec.Integer("vm", half), spec.Real("v-eta1", eta1),
                    spec.Real("v-eta2", eta2));
  }

  std::unique_ptr<MethodState> NewState(int64_t) const override {
    return std::make_unique<XQuantState>(context_.geometry.kv_dim());
  }

  void OnAppend(int64_t layer, const AppendedTokens& tokens, SimulatedBlock& block,
                MethodState* opaque) const override {
    XQuantState& state = static_cast<XQuantState&>(*opaque);
    auto* below = static_cast<XQuantState*>(tokens.below);
    DamageKeys(keys_[static_cast<size_t>(layer)], tokens.first, below, state, block);
    DamageValues(values_[static_cast<size_t>(layer)], tokens.first, below, state, block);
  }

  int64_t BlockBytes(int64_t layer, int64_t num_tokens) const override {
    const auto i = static_cast<size_t>(layer);
    return SideBytes(keys_[i], key_group_, keys_window_, num_tokens) +
           SideBytes(values_[i], value_group_, values_window_, num_tokens);
  }
  ByteGrowth Growth(int64_t) const override { return GrowthOf(keys_window_, values_window_); }

 private:
  // Of kq and vq: even, since both blocks of a pair must have one width. Beyond the last block:
  // none.
  int64_t FirstNarrow(const MethodSpec& spec, const char* key) const {
    const int64_t first = spec.Integer(key, (context_.geometry.num_layers + 1) / 2 * 2);
    if (first % 2 == 0) return first;
    throw InvalidInput("--kv", fmt::format("'{}': {}={}, expected an even number: blocks 2i and "
                                           "2i + 1 have one width",
                                           spec.text, key, first));
  }

  // `wide`: bits of the blocks below `first_narrow`.
  std::vector<Side> Sides(int64_t first_narrow, int wide, int64_t first_shared, double eta1,
                          double eta2) const {
    std::vector<Side> sides;
    for (int64_t layer = 0; layer < context_.geometry.num_layers; ++layer) {
      Side side;
      side.format = {layer >= first_narrow ? 1 : wide, context_.float_type};
      side.shares = layer % 2 == 1 && layer >= first_shared;
      const int bits = side.format.bits;
      side.eta = static_cast<float>(bits == 1 ? eta1 : bits == 2 ? eta2 : 0.0);
      sides.push_back(side);
    }
    return sides;
  }

  // Shared codes are the other block's, metadata is not.
  int64_t SideBytes(const Side& side, int64_t group, const TokenWindow& window,
                    int64_t num_tokens) const {
    const int64_t bytes = WindowedBytes(context_, side.format, group, window, num_tokens);
    if (!side.shares) return bytes;
    const int64_t num_groups = window.NumQuantized(num_tokens) * context_.geometry.kv_dim() / group;
    return bytes - num_groups * ((group * side.format.bits + 7) / 8);
  }

  // One group of x; `codes` are written, or only read where the side shares them.
  static void DamageCodes(const Side& side, std::vector<float>& x, std::vector<uint8_t>& codes) {
    const AffineGrid grid = GridOf(side.format, std::ssize(x), 1, x.data());
    const float step = grid.step * (1 - 2 * side.eta);
    const float min = grid.min + grid.max_code * grid.step * side.eta;
    for (size_t i = 0; i < x.size(); ++i) {
      if (!side.shares) {
        const uint32_t code =
            grid.step > 0 ? internal::CodeOf(x[i], grid.min, grid.step, grid.max_code) : 0;
        codes[i] = static_cast<uint8_t>(code);
      }
      x[i] = static_cast<float>(codes[i]) * step + min;
    }
  }

  // The codes of a token's head.
  static uint8_t* CodesAt(std::vector<uint8_t>& codes, const SimulatedBlock& block, int64_t token,
                          int64_t head) {
    return codes.data() + (token * block.num_kv_heads() + head) * block.head_dim();
  }

  // Where the codes of tokens 0 .. end - 1, `size` ones, are read, or written and read.
  static std::vector<uint8_t>& CodesOf(const Side& side, std::vector<uint8_t>* below, size_t size,
                                       std::vector<uint8_t>& own) {
    if (side.shares) {
      PMKVQ_CHECK(below != nullptr && below->size() >= size);
      return *below;
    }
    own.resize(std::max(own.size(), size));
    return own;
  }

  void DamageKeys(const Side& side, int64_t num_before, XQuantState* below, XQuantState& state,
                  SimulatedBlock& block) const {
    const int64_t begin = keys_window_.QuantizedEnd(num_before);
    const int64_t end = keys_window_.QuantizedEnd(block.num_tokens());
    if (begin == end) return;
    std::vector<uint8_t>& all = CodesOf(side, below == nullptr ? nullptr : &below->key_codes,
                                        static_cast<size_t>(end) * state.width, state.key_codes);
    std::vector<float> x(static_cast<size_t>(key_group_));
    std::vector<uint8_t> codes(x.size());
    for (int64_t token = begin; token < end; token += key_group_) {
      for (int64_t head = 0; head < block.num_kv_heads(); ++head) {
        for (int64_t channel = 0; channel < block.head_dim(); ++channel) {
          for (int64_t i = 0; i < key_group_; ++i) {
            x[static_cast<size_t>(i)] = block.Key(token + i, head)[channel];
            codes[static_cast<size_t>(i)] = CodesAt(all, block, token + i, head)[channel];
          }
          DamageCodes(side, x, codes);
          for (int64_t i = 0; i < key_group_; ++i) {
            block.Key(token + i, head)[channel] = x[static_cast<size_t>(i)];
            CodesAt(all, block, token + i, head)[channel] = codes[static_cast<size_t>(i)];
          }
        }
      }
    }
  }

  void DamageValues(const Side& side, int64_t num_before, XQuantState* below, XQuantState& state,
                    SimulatedBlock& block) const {
    const int64_t begin = values_window_.QuantizedEnd(num_before);
    const int64_t end = values_window_.QuantizedEnd(block.num_tokens());
    if (begin == end) return;
    std::vector<uint8_t>& all = CodesOf(side, below == nullptr ? nullptr : &below->value_codes,
                                        static_cast<size_t>(end) * state.width, state.value_codes);
    std::vector<float> x(static_cast<size_t>(value_group_));
    std::vector<uint8_t> codes(x.size());
    for (int64_t token = begin; token < end; ++token) {
      for (int64_t head = 0; head < block.num_kv_heads(); ++head) {
        for (int64_t channel = 0; channel < block.head_dim(); channel += value_group_) {
          float* value = block.Value(token, head) + channel;
          uint8_t* stored = CodesAt(all, block, token, head) + channel;
          std::copy_n(value, value_group_, x.begin());
          std::copy_n(stored, value_group_, codes.begin());
          DamageCodes(side, x, codes);
          std::copy(x.begin(), x.end(), value);
          std::copy(codes.begin(), codes.end(), stored);
        }
      }
    }
  }

  MethodContext context_;
  int64_t key_group_ = 32;    // Tokens.
  int64_t value_group_ = 32;  // Channels.
  TokenWindow keys_window_;
  TokenWindow values_window_;
  std::vector<Side> keys_;  // Per block.
  std::vector<Side> values_;
};

}  // namespace

SimulatedMethod XQuantMethod() {
  return {"xquant",
          "1 and 2 bits, keys per channel and values per token, codes shared by pairs of blocks",
          {ChoiceKey("k", {"4", "2"}, "2", "width of keys that have not 1 bit; the paper has 2"),
           IntegerKey("kq", 0, 65536, "none", "first block with 1-bit keys, an even number"),
           IntegerKey("vq", 0, 65536, "none", "first block with 1-bit values, an even number"),
           IntegerKey("km", 0, 65536, "half of the blocks",
                      "odd blocks from here on read the key codes of the block below"),
           IntegerKey("vm", 0, 65536, "half of the blocks",
                      "odd blocks from here on read the value codes of the block below"),
           RealKey("eta1", 0, 0.499, "1/6", "share by which 1-bit levels move inwards"),
           RealKey("eta2", 0, 0.499, "0.045", "share by which 2-bit levels move inwards"),
           RealKey("v-eta1", 0, 0.499, "eta1", "the same of values"),
           RealKey("v-eta2", 0, 0.499, "eta2", "the same of values"),
           ChoiceKey("group", {"128", "64", "32"}, "32", "tokens, or channels, of one range"),
           ResidualKey("128")},
          [](const MethodSpec& spec,
             const MethodContext& context) -> std::shared_ptr<const CacheMethod> {
            return std::make_shared<XQuant>(spec, context);
          }};
}

}  // namespace pmkvq
