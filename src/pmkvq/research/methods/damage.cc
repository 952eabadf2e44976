#include "pmkvq/research/methods/damage.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>

#include "pmkvq/base/error.h"
#include "pmkvq/kv/packed/packed_cache.h"
#include "pmkvq/kv/simulated/simulated_cache.h"
#include "pmkvq/kv/spec/packed_spec.h"
#include "pmkvq/kv/spec/spec.h"
#include "pmkvq/research/methods/registry.h"

namespace pmkvq {
namespace {

// The values of a tensor as floats.
std::vector<float> Floats(const SafetensorsFile& file, const std::string& name,
                          const TensorView& view) {
  std::vector<float> values(static_cast<size_t>(view.num_elements()));
  switch (view.dtype) {
    case DType::kF32:
      std::copy_n(view.As<float>(), values.size(), values.data());
      break;
    case DType::kF64:
      std::transform(view.As<double>(), view.As<double>() + values.size(), values.data(),
                     [](double value) { return static_cast<float>(value); });
      break;
    case DType::kF16:
      std::transform(view.As<F16>(), view.As<F16>() + values.size(), values.data(),
                     [](F16 value) { return ToFloat(value); });
      break;
    case DType::kBF16:
      std::transform(view.As<BF16>(), view.As<BF16>() + values.size(), values.data(),
                     [](BF16 value) { return ToFloat(value); });
      break;
    default:
      throw InvalidInput(file.path(),
                         fmt::format("tensor '{}': found {}, expected F32, F16, BF16 or F64", name,
                                     NameOf(view.dtype)));
  }
  return values;
}

// Where the tensors of one kind stand for what each append hands over.
struct Rows {
  std::vector<float> values;  // [L, heads, T, width]
  int64_t heads = 1;
  int64_t width = 0;
  int64_t num_tokens = 0;

  bool empty() const { return values.empty(); }
  // Of one block, [count, heads, width].
  void Gather(int64_t layer, int64_t first, int64_t count, std::vector<float>& out) const {
    out.resize(static_cast<size_t>(count * heads * width));
    for (int64_t t = 0; t < count; ++t) {
      for (int64_t head = 0; head < heads; ++head) {
        const auto from = ((layer * heads + head) * num_tokens + first + t) * width;
        std::copy_n(values.begin() + from, width, out.begin() + (t * heads + head) * width);
      }
    }
  }
};

class Damage {
 public:
  Damage(const SafetensorsFile& in, const DamageOptions& options) : in_(in), options_(options) {
    ReadGeometry();
    store_ = MakeStore();
    simulated_ = dynamic_cast<const SimulatedKvCache*>(store_.get());
    if (simulated_ != nullptr) needs_ = simulated_->method().needs();
    ReadTensors();
    seq_ = store_->Open().value();
  }

  DamageResult Run() {
    // Pages take their bytes one by one, so a prompt of them is appended so.
    const int64_t prompt = simulated_ != nullptr ? options_.prompt_len : 0;
    for (int64_t first = 0; first < num_tokens_;) {
      ThrowIfCancelled(options_.cancel, "damage");
      const int64_t count = first == 0 ? std::max<int64_t>(prompt, 1) : 1;
      for (int64_t n = 1; n < count; ++n) result_.bytes.push_back(MostBytes(n));
      Append(first, count, first + count == options_.prompt_len);
      first += count;
      result_.bytes.push_back(store_->SequenceStats(seq_).bytes);
    }
    const KvSequenceStats stats = store_->SequenceStats(seq_);
    result_.peak_bytes = stats.peak_bytes;
    result_.kept_share = stats.kept_share;
    ReadStored();
    return std::move(result_);
  }

 private:
  [[noreturn]] void FailShape(const std::string& name, const std::string& found,
                              const std::string& expected) const {
    throw InvalidInput(in_.path(),
                       fmt::format("tensor '{}': found {}, expected {}", name, found, expected));
  }

  const TensorView& Need(const std::string& name, const std::string& why) const {
    in_.RefuseForeign(name);
    const TensorView* const view = in_.Find(name);
    if (view != nullptr) return *view;
    throw InvalidInput(in_.path(), fmt::format("tensor '{}': found none, {}", name, why));
  }
  // [first, heads, T, width]; `heads` and `width` may be any where they are 0.
  Rows Read(const std::string& name, const std::string& why, int64_t heads, int64_t width) const {
    const TensorView& view = Need(name, why);
    const Shape& shape = view.shape;
    const bool is_as_expected = shape.size() == 4 && shape[0] == geometry_.num_layers &&
                                shape[2] == num_tokens_ && shape[1] > 0 &&
                                (heads == 0 || shape[1] == heads) && shape[3] == width;
    if (!is_as_expected) {
      FailShape(name, ToString(shape),
                fmt::format("[{}, {}, {}, {}]", geometry_.num_layers,
                            heads == 0 ? "H" : std::to_string(heads), num_tokens_, width));
    }
    return {Floats(in_, name, view), shape[1], width, num_tokens_};
  }
  // [L, T, E]
  Rows ReadInput(const std::string& name, const std::string& why) const {
    const TensorView& view = Need(name, why);
    const Shape& shape = view.shape;
    if (shape.size() != 3 || shape[0] != geometry_.num_layers || shape[1] != num_tokens_ ||
        shape[2] == 0) {
      FailShape(name, ToString(shape),
                fmt::format("[{}, {}, E]", geometry_.num_layers, num_tokens_));
    }
    return {Floats(in_, name, view), 1, shape[2], num_tokens_};
  }

  void ReadGeometry() {
    const std::string keys = in_.Find("k") == nullptr && in_.Find("keys_before_rope") != nullptr
                                 ? "keys_before_rope"
                                 : "k";
    const TensorView& k = Need(keys, "expected keys after RoPE, [L, Hkv, T, D]");
    const bool has_shape =
        k.shape.size() == 4 && *std::min_element(k.shape.begin(), k.shape.end()) > 0;
    if (!has_shape) FailShape(keys, ToString(k.shape), "[L, Hkv, T, D], none of them 0");
    const int64_t dim = k.shape[3];
    if (dim % 8 != 0 || (dim > 128 && dim != 256)) {
      FailShape(keys, ToString(k.shape), "a head size D that is a multiple of 8 up to 128, or 256");
    }
    num_tokens_ = k.shape[2];
    geometry_ = {k.shape[0], k.shape[1], k.shape[1], dim};
    if (options_.prompt_len < 0 || options_.prompt_len > num_tokens_) {
      throw InvalidInput("--prompt-len", fmt::format("found {}, expected 0 to the {} tokens of {}",
                                                     options_.prompt_len, num_tokens_, in_.path()));
    }
    if (in_.Find("q") == nullptr) return;
    q_ = Read("q", "", 0, dim);
    if (q_.heads % geometry_.num_kv_heads != 0) {
      FailShape("q", fmt::format("{} heads", q_.heads),
                fmt::format("a multiple of the {} of '{}'", geometry_.num_kv_heads, keys));
    }
    geometry_.num_heads = q_.heads;
  }

  // There is neither a budget nor a plan to take the widths of a progressive cache from.
  void CheckWidths() const {
    const MethodSpec spec = ParseMethodSpec(options_.spec);
    const PackedMethod* const method = FindPackedMethod(spec.name);
    if (method == nullptr || !method->progressive) return;
    if (spec.keys.contains("bits") || spec.keys.contains("k")) return;
    throw InvalidInput(
        "--kv",
        fmt::format("'{}': found no widths, expected {}:bits=B or {}:k=B+v=B (16, 8, 4 or 2)",
                    options_.spec, spec.name, spec.name));
  }

  std::unique_ptr<KvStore> MakeStore() {
    RopeParams params;  // Of attention, whose results nobody reads.
    params.head_dim = geometry_.head_dim;
    rope_.emplace(params);
    KvOptions given;
    given.spec = options_.spec;
    given.kv_dtype = options_.kv_dtype;
    const KvOptions kv = ApplySpecKeys(given);
    if (kv.plan != nullptr) {
      throw InvalidInput("--kv",
                         fmt::format("'{}': found a plan, which belongs to a model; expected "
                                     "a SPEC without one",
                                     options_.spec));
    }
    CheckWidths();
    KvRequirements needs;
    needs.geometry = geometry_;
    needs.max_len = num_tokens_;
    needs.rope = &*rope_;
    needs.chunk_tokens = std::max<int64_t>(options_.prompt_len, 1);
    return MakeKvStore(kv, needs);
  }

  std::string Why(const char* what) const {
    return fmt::format("and --kv {} needs {}", options_.spec, what);
  }

  void ReadTensors() {
    const int64_t heads = geometry_.num_kv_heads;
    const int64_t dim = geometry_.head_dim;
    if (needs_.keys_before_rope) {
      keys_before_rope_ = Read("keys_before_rope", Why("keys before RoPE"), heads, dim);
      k_ = keys_before_rope_;
    } else {
      k_ = Read("k", Why("keys after RoPE"), heads, dim);
    }
    v_ = Read("v", "expected values, [L, Hkv, T, D]", heads, dim);
    if (needs_.queries || needs_.attention) Need("q", Why("queries"));
    if (needs_.attention_input) {
      attention_input_ = ReadInput("attention_input", Why("the input of attention"));
    }
    if (needs_.block_input) block_input_ = ReadInput("block_input", Why("the input of blocks"));
    if (!block_input_.empty() && !attention_input_.empty() &&
        block_input_.width != attention_input_.width) {
      FailShape("attention_input", fmt::format("{} values of a token", attention_input_.width),
                fmt::format("the {} of 'block_input'", block_input_.width));
    }
    if (!needs_.logits) return;
    const TensorView& logits = Need("logits", Why("logits"));
    if (logits.shape.size() != 2 || logits.shape[0] != num_tokens_ || logits.shape[1] == 0) {
      FailShape("logits", ToString(logits.shape), fmt::format("[{}, V]", num_tokens_));
    }
    logits_ = {Floats(in_, "logits", logits), 1, logits.shape[1], num_tokens_};
  }

  int64_t MostBytes(int64_t num_tokens) const {
    const CacheMethod& method = simulated_->method();
    int64_t bytes = 0;
    for (int64_t layer = 0; layer < geometry_.num_layers; ++layer) {
      bytes += method.BlockBytes(layer, num_tokens);
    }
    return std::min(bytes, method.SequenceBytes(num_tokens).value_or(bytes));
  }

  void Append(int64_t first, int64_t count, bool ends_prompt) {
    const ReserveResult reserved = store_->Reserve(seq_, count);
    if (reserved == ReserveResult::kBudgetExhausted) {
      throw InvalidInput("--kv",
                         fmt::format("'{}' holds {} of the {} tokens, expected room for all",
                                     options_.spec, first, num_tokens_));
    }
    ThrowIfFailed();
    store_->BeginForward({{seq_, count, false, ends_prompt}});
    for (int64_t layer = 0; layer < geometry_.num_layers; ++layer) {
      k_.Gather(layer, first, count, k_rows_);
      v_.Gather(layer, first, count, v_rows_);
      if (q_.empty()) {
        q_rows_.assign(k_rows_.size(), 0.0f);
      } else {
        q_.Gather(layer, first, count, q_rows_);
      }
      out_.resize(q_rows_.size());
      OfferExtras(layer, first, count);
      store_->AppendAndAttend(layer, q_rows_.data(), k_rows_.data(), v_rows_.data(), out_.data());
    }
    if (!logits_.empty()) {
      store_->OfferLogits(seq_, {logits_.values.data() + (first + count - 1) * logits_.width,
                                 static_cast<size_t>(logits_.width)});
    }
    store_->EndForward();
    ThrowIfFailed();
  }

  void OfferExtras(int64_t layer, int64_t first, int64_t count) {
    if (!store_->ExtraNeeds().of_blocks()) return;
    KvExtras extras;
    if (!keys_before_rope_.empty()) extras.keys_before_rope = k_rows_.data();
    const auto input = [&](const Rows& rows, std::vector<float>& memory) -> const float* {
      if (rows.empty()) return nullptr;
      rows.Gather(layer, first, count, memory);
      extras.input_width = rows.width;
      return memory.data();
    };
    extras.block_input = input(block_input_, block_input_rows_);
    extras.attention_input = input(attention_input_, attention_input_rows_);
    store_->OfferExtras(layer, extras);
  }

  void ThrowIfFailed() const {
    const KvFailure* const failure = store_->FailureOf(seq_);
    if (failure != nullptr) throw InvalidInput(failure->where, failure->what);
  }

  void ReadStored() {
    const int64_t heads = geometry_.num_kv_heads;
    const int64_t dim = geometry_.head_dim;
    const Shape shape = {geometry_.num_layers, heads, num_tokens_, dim};
    result_.k_read = Tensor(DType::kF32, shape);
    result_.v_read = Tensor(DType::kF32, shape);
    result_.kept = Tensor(DType::kU8, {geometry_.num_layers, heads, num_tokens_});
    auto* const kept = result_.kept.As<uint8_t>();
    std::vector<float> keys(static_cast<size_t>(num_tokens_ * heads * dim));
    std::vector<float> values(keys.size());
    for (int64_t layer = 0; layer < geometry_.num_layers; ++layer) {
      if (simulated_ == nullptr) {
        dynamic_cast<const PackedKvCache&>(*store_).ReadTokens(seq_, layer, keys.data(),
                                                               values.data());
      }
      for (int64_t head = 0; head < heads; ++head) {
        for (int64_t token = 0; token < num_tokens_; ++token) {
          const int64_t row = (layer * heads + head) * num_tokens_ + token;
          const float* k = keys.data() + (token * heads + head) * dim;
          const float* v = values.data() + (token * heads + head) * dim;
          kept[row] = 1;
          if (simulated_ != nullptr) {
            const SimulatedBlock& block = simulated_->Block(seq_, layer);
            k = block.Key(token, head);
            v = block.Value(token, head);
            kept[row] = block.IsKept(token, head) ? 1 : 0;
          }
          std::copy_n(k, dim, result_.k_read.As<float>() + row * dim);
          std::copy_n(v, dim, result_.v_read.As<float>() + row * dim);
        }
      }
    }
  }

  const SafetensorsFile& in_;
  const DamageOptions& options_;
  UniformKvGeometry geometry_;
  int64_t num_tokens_ = 0;  // T
  std::optional<RopeTable> rope_;
  std::unique_ptr<KvStore> store_;
  const SimulatedKvCache* simulated_ = nullptr;  // Null: pages.
  MethodNeeds needs_;
  SequenceId seq_ = 0;
  Rows k_, v_, q_, keys_before_rope_, attention_input_, block_input_;
  Rows logits_;  // [1, 1, T, V]
  std::vector<float> k_rows_, v_rows_, q_rows_, out_, block_input_rows_, attention_input_rows_;
  DamageResult result_;
};

}  // namespace

DamageResult DamageTensors(const SafetensorsFile& in, const DamageOptions& options) {
  return Damage(in, options).Run();
}

}  // namespace pmkvq
