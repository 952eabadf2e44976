// RTN: round to nearest, per token. Every key and value is quantised as soon as it is stored;
// there is no sink and no window. Groups run along head_dim. The floor that other methods are
// measured from.
#include <algorithm>

#include "pmkvq/research/methods/affine.h"
#include "pmkvq/research/methods/simulated_method.h"

namespace pmkvq {
namespace {

class Rtn final : public CacheMethod {
 public:
  Rtn(const MethodSpec& spec, const MethodContext& context) : context_(context) {
    format_.bits = static_cast<int>(spec.Integer("bits", 4));
    format_.metadata_type = context.float_type;
    group_ = spec.Integer("group", context.geometry.group());
    CheckGroup(spec.text, group_, context.geometry.head_dim);
  }

  void OnAppend(int64_t, const AppendedTokens& tokens, SimulatedBlock& block,
                MethodState*) const override {
    for (int64_t token = tokens.first; token < block.num_tokens(); ++token) {
      for (int64_t head = 0; head < block.num_kv_heads(); ++head) {
        DamageRow(format_, group_, block.head_dim(), block.Key(token, head));
        DamageRow(format_, group_, block.head_dim(), block.Value(token, head));
      }
    }
  }

  int64_t BlockBytes(int64_t, int64_t num_tokens) const override {
    return 2 * AffineBytes(format_, num_tokens * context_.geometry.kv_dim(), group_);
  }
  ByteGrowth Growth(int64_t) const override { return {}; }

 private:
  MethodContext context_;
  AffineFormat format_;
  int64_t group_ = 0;
};

}  // namespace

SimulatedMethod RtnMethod() {
  return {"rtn",
          "per token, every token at once",
          {ChoiceKey("bits", {"8", "4", "3", "2"}, "4", "width of codes"),
           IntegerKey("group", 1, 256, "128, or head_dim", "channels of one range")},
          [](const MethodSpec& spec,
             const MethodContext& context) -> std::shared_ptr<const CacheMethod> {
            return std::make_shared<Rtn>(spec, context);
          }};
}

}  // namespace pmkvq
