// Cocktail (arXiv 2503.23294, DATE 2025) with a stand-in for its retrieval encoder: widths of a
// prompt's chunks by their similarity to the question.
//
// The prompt is cut into chunks of 32 tokens; its end, from the last whole chunk on, is taken as
// the question. Similarity s of a chunk: the cosine between the mean of its token embeddings (the
// input of block 0) and that of the question. With d = s_max - s_min, chunks above s_max - beta d
// stay at full precision, those below s_min + alpha d get 2 bits, the others 4, all KV heads and
// blocks alike. Question and generated tokens stay at full precision, and so does the prompt until
// its last token is there. Cocktail itself embeds with Contriever, which a cache does not have: the
// embeddings are our choice, and the name says so.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "pmkvq/base/check.h"
#include "pmkvq/research/methods/affine.h"
#include "pmkvq/research/methods/cocktail_rule.h"
#include "pmkvq/research/methods/simulated_method.h"

namespace pmkvq {
namespace {

constexpr int64_t kWidthBytes = 1;  // Of a chunk.

struct CocktailState final : MethodState {
  explicit CocktailState(int64_t chunk_tokens) : chunk(chunk_tokens) {}

  // A prompt that is cut before its end keeps the sums of its last chunk as they are.
  void Truncate(int64_t num_tokens) override {
    num_tokens_cut = std::min(num_tokens_cut, num_tokens);
    const auto chunks = static_cast<size_t>((num_tokens + chunk - 1) / chunk);
    if (sums.size() > chunks) sums.resize(chunks);
  }

  int64_t chunk;
  // Of block 0, until the prompt ends: sums of embeddings by chunk [chunks, E].
  std::vector<std::vector<double>> sums;
  bool is_decided = false;
  std::vector<int> widths;             // By chunk of the context; 16: full precision.
  int64_t num_tokens_cut = INT64_MAX;  // Least length so far after a truncation.
};

class Cocktail final : public CacheMethod {
 public:
  Cocktail(const MethodSpec& spec, const MethodContext& context) : context_(context) {
    chunk_ = spec.Integer("chunk", 32);
    rule_.alpha = spec.Real("alpha", 0.6);
    rule_.beta = spec.Real("beta", 0.1);
  }

  MethodNeeds needs() const override {
    MethodNeeds needs;
    needs.block_input = true;
    needs.own_bytes = true;
    return needs;
  }
  std::unique_ptr<MethodState> NewState(int64_t) const override {
    return std::make_unique<CocktailState>(chunk_);
  }

  void OnAppend(int64_t layer, const AppendedTokens& tokens, SimulatedBlock& block,
                MethodState* opaque) const override {
    CocktailState& state = static_cast<CocktailState&>(*opaque);
    if (state.is_decided) return;
    if (layer == 0) Embed(tokens, state);
    if (!tokens.ends_prompt) return;
    state.is_decided = true;
    if (layer == 0) {
      state.widths = WidthsOf(block.num_tokens(), state);
      state.sums.clear();
    } else {
      PMKVQ_CHECK(tokens.below != nullptr);
      state.widths = static_cast<const CocktailState&>(*tokens.below).widths;
    }
    for (size_t chunk = 0; chunk < state.widths.size(); ++chunk) {
      if (state.widths[chunk] < 16) Damage(static_cast<int64_t>(chunk), state.widths[chunk], block);
    }
  }

  // A bound: what a prompt takes until it ends, and a width of every chunk.
  int64_t BlockBytes(int64_t, int64_t num_tokens) const override {
    return 2 * context_.FloatBytes(num_tokens) + num_tokens / chunk_ * kWidthBytes;
  }
  ByteGrowth Growth(int64_t) const override { return {}; }

  int64_t BytesNow(int64_t, const SimulatedBlock& block, const MethodState* opaque) const override {
    const CocktailState& state = static_cast<const CocktailState&>(*opaque);
    int64_t bytes = 2 * context_.FloatBytes(block.num_tokens());
    for (size_t chunk = 0; chunk < state.widths.size(); ++chunk) {
      const int64_t first = static_cast<int64_t>(chunk) * chunk_;
      const int64_t count =
          std::min(chunk_, std::min(state.num_tokens_cut, block.num_tokens()) - first);
      if (count <= 0) break;
      bytes += kWidthBytes;
      if (state.widths[chunk] == 16) continue;
      const int64_t values = 2 * count * context_.geometry.kv_dim();
      bytes += AffineBytes(FormatOf(state.widths[chunk]), values, context_.geometry.group()) -
               2 * context_.FloatBytes(count);
    }
    return bytes;
  }

 private:
  AffineFormat FormatOf(int bits) const { return {bits, context_.float_type}; }

  void Embed(const AppendedTokens& tokens, CocktailState& state) const {
    const auto width = static_cast<size_t>(tokens.input_width);
    for (int64_t i = 0; i < tokens.count; ++i) {
      const auto chunk = static_cast<size_t>((tokens.first + i) / chunk_);
      if (state.sums.size() <= chunk) state.sums.resize(chunk + 1, std::vector<double>(width));
      const float* embedding = tokens.block_input + i * tokens.input_width;
      CheckFinite(embedding, tokens.input_width);
      for (size_t j = 0; j < width; ++j) state.sums[chunk][j] += double{embedding[j]};
    }
  }

  // Of the chunks in front of the question.
  std::vector<int> WidthsOf(int64_t num_tokens, const CocktailState& state) const {
    const int64_t num_context = std::max<int64_t>(0, num_tokens / chunk_ - 1);
    if (num_context == 0) return {};
    std::vector<double> question = state.sums[static_cast<size_t>(num_context)];
    for (size_t chunk = static_cast<size_t>(num_context) + 1; chunk < state.sums.size(); ++chunk) {
      for (size_t j = 0; j < question.size(); ++j) question[j] += state.sums[chunk][j];
    }
    std::vector<double> similarities;
    for (int64_t chunk = 0; chunk < num_context; ++chunk) {
      similarities.push_back(Cosine(state.sums[static_cast<size_t>(chunk)], question));
    }
    return CocktailWidths(rule_, similarities);
  }

  static double Cosine(const std::vector<double>& a, const std::vector<double>& b) {
    double product = 0;
    double a_squares = 0;
    double b_squares = 0;
    for (size_t i = 0; i < a.size(); ++i) {
      product += a[i] * b[i];
      a_squares += a[i] * a[i];
      b_squares += b[i] * b[i];
    }
    const double norms = std::sqrt(a_squares * b_squares);
    return norms > 0 ? product / norms : 0;
  }

  void Damage(int64_t chunk, int bits, SimulatedBlock& block) const {
    const int64_t group = context_.geometry.group();
    for (int64_t token = chunk * chunk_; token < (chunk + 1) * chunk_; ++token) {
      for (int64_t head = 0; head < block.num_kv_heads(); ++head) {
        DamageRow(FormatOf(bits), group, block.head_dim(), block.Key(token, head));
        DamageRow(FormatOf(bits), group, block.head_dim(), block.Value(token, head));
      }
    }
  }

  MethodContext context_;
  CocktailRule rule_;
  int64_t chunk_ = 32;
};

}  // namespace

SimulatedMethod CocktailMethod() {
  return {"cocktail-own",
          "widths of a prompt's chunks by their similarity to its end, by token embeddings",
          {IntegerKey("chunk", 8, 1024, "32", "tokens of a chunk"),
           RealKey("alpha", 0, 1, "0.6", "2 bits below this share of the range of similarities"),
           RealKey("beta", 0, 1, "0.1", "full precision in this share at its upper end")},
          [](const MethodSpec& spec,
             const MethodContext& context) -> std::shared_ptr<const CacheMethod> {
            return std::make_shared<Cocktail>(spec, context);
          }};
}

}  // namespace pmkvq
