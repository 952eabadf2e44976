// TaDA (arXiv 2506.04642, ACL 2025 industry track): the mean over KV heads, and deviations from it.
//
// Of keys (after RoPE) and of values, each token keeps the mean m of its KV heads at 16 bits and,
// for each head, the deviation m - x from the stored mean, quantised per token in groups of
// min(128, D). Whole blocks of R tokens are quantised when they are full; the rest stays at full
// precision.
//
// All blocks have one width (bits=) or, with from=FILE, each block its own: calibration measures by
// how much the loss moves when one block alone is quantised at a width, and the widths with the
// least sum under an average are found exactly. The paper searches for them at random.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <span>

#include "pmkvq/base/error.h"
#include "pmkvq/base/interrupt.h"
#include "pmkvq/kernels/kv_quant/kv_quant_common.h"
#include "pmkvq/model/profile.h"
#include "pmkvq/research/calib/allocate.h"
#include "pmkvq/research/calib/sample_loop.h"
#include "pmkvq/research/methods/affine.h"
#include "pmkvq/research/methods/block_means.h"
#include "pmkvq/research/methods/simulated_method.h"
#include "pmkvq/research/methods/windows.h"

namespace pmkvq {
namespace {

constexpr std::array<int, 3> kTadaWidths = {8, 4, 2};
constexpr auto kNumWidths = static_cast<int64_t>(kTadaWidths.size());
constexpr double kDefaultAverage = 4;
constexpr char kLoss[] = "loss_change";   // Per block, by width.
constexpr char kResidual[] = "residual";  // [1]: R that the file was made with.

// What a block's tokens become, but for its width.
struct Form {
  Form(const MethodSpec& spec, const MethodContext& context) {
    const UniformKvGeometry& geometry = context.geometry;
    if (geometry.num_kv_heads == 1) {
      throw InvalidInput("--kv",
                         fmt::format("'{}': the model has one KV head, which is its own mean: all "
                                     "of it would stay at 16 bits; expected 2 KV heads or more",
                                     spec.text));
    }
    num_heads = geometry.num_kv_heads;
    dim = geometry.head_dim;
    group = geometry.group();
    window.block = spec.Integer("residual", 128);
    const std::string mean = spec.Text("mean", "");
    mean_type = mean == "f16"    ? DType::kF16
                : mean == "bf16" ? DType::kBF16
                : mean == "f32"  ? DType::kF32
                                 : context.float_type;
  }

  // One token, head h at heads[h]. `mean` [D] is scratch.
  void Damage(const AffineFormat& format, std::span<float* const> heads, float* mean) const {
    for (int64_t i = 0; i < dim; ++i) {
      double sum = 0;
      for (const float* head : heads) sum += double{head[i]};
      mean[i] = internal::VisitFloatType(mean_type, [&]<class T>(T) {
        return ToFloat(FromFloat<T>(static_cast<float>(sum / static_cast<double>(num_heads))));
      });
    }
    for (float* head : heads) {
      for (int64_t i = 0; i < dim; ++i) head[i] = mean[i] - head[i];
      DamageRow(format, group, dim, head);
      for (int64_t i = 0; i < dim; ++i) head[i] = mean[i] - head[i];
    }
  }

  int64_t num_heads = 0;
  int64_t dim = 0;
  int64_t group = 0;
  DType mean_type = DType::kF16;
  TokenWindow window;
};

// Widths of least loss, one for each block. Throws InvalidInput (a file for another R).
std::vector<int> ChooseWidths(const MethodData& data, const Form& form, double average) {
  const float residual = data.Get(kResidual, {1}).As<float>()[0];
  if (residual != static_cast<float>(form.window.block)) {
    throw InvalidInput(data.path, fmt::format("made with residual={}, expected {}, as in the SPEC",
                                              residual, form.window.block));
  }
  std::vector<KnapsackItem> items;
  for (int64_t layer = 0; layer < data.geometry.num_layers; ++layer) {
    const float* loss = data.Get(BlockTensorName(kLoss, layer), {kNumWidths}).As<float>();
    KnapsackItem item;
    for (size_t i = 0; i < kTadaWidths.size(); ++i) {
      // Fewer bits never lose less in truth. A smaller measured loss is noise and is raised.
      item.cost.push_back(i == 0 ? double{loss[0]} : std::max(item.cost.back(), double{loss[i]}));
      item.bytes.push_back(kTadaWidths[i]);
    }
    items.push_back(std::move(item));
  }
  const double budget = average * static_cast<double>(items.size());
  const KnapsackResult best = SolveKnapsack(items, static_cast<int64_t>(budget + 1e-6));
  std::vector<int> widths;
  for (const int choice : best.choice) widths.push_back(kTadaWidths[static_cast<size_t>(choice)]);
  return widths;
}

class Tada final : public CacheMethod {
 public:
  Tada(const MethodSpec& spec, const MethodContext& context)
      : context_(context), form_(spec, context) {
    const auto refuse = [&](const char* key, const char* expected) {
      if (!spec.keys.contains(key)) return;
      throw InvalidInput("--kv", fmt::format("'{}': {}={}, expected {}", spec.text, key,
                                             spec.keys.at(key), expected));
    };
    std::vector<int> widths(static_cast<size_t>(context.geometry.num_layers),
                            static_cast<int>(spec.Integer("bits", 4)));
    if (context.data != nullptr) {
      refuse("bits", "average= with from=: the file says the widths");
      widths = ChooseWidths(*context.data, form_, spec.Real("average", kDefaultAverage));
    } else {
      refuse("average", "from= with it, or bits= in its place");
    }
    for (const int bits : widths) formats_.push_back({bits, context.float_type});
  }

  void OnAppend(int64_t layer, const AppendedTokens& tokens, SimulatedBlock& block,
                MethodState*) const override {
    const AffineFormat& format = formats_[static_cast<size_t>(layer)];
    std::vector<float> mean(static_cast<size_t>(form_.dim));
    std::vector<float*> heads(static_cast<size_t>(form_.num_heads));
    const int64_t end = form_.window.QuantizedEnd(block.num_tokens());
    for (int64_t token = form_.window.QuantizedEnd(tokens.first); token < end; ++token) {
      for (const bool keys : {true, false}) {
        for (int64_t head = 0; head < form_.num_heads; ++head) {
          heads[static_cast<size_t>(head)] =
              keys ? block.Key(token, head) : block.Value(token, head);
        }
        form_.Damage(format, heads, mean.data());
      }
    }
  }

  int64_t BlockBytes(int64_t layer, int64_t num_tokens) const override {
    const int64_t quantized = form_.window.NumQuantized(num_tokens);
    const auto mean_bytes = form_.dim * static_cast<int64_t>(SizeOf(form_.mean_type));
    return 2 * (WindowedBytes(context_, formats_[static_cast<size_t>(layer)], form_.group,
                              form_.window, num_tokens) +
                quantized * mean_bytes);
  }
  ByteGrowth Growth(int64_t) const override { return GrowthOf(form_.window, form_.window); }

 private:
  MethodContext context_;
  Form form_;
  std::vector<AffineFormat> formats_;  // Per block.
};

// Rows [N, Hkv, D] of one side of a block: their change when all tokens that have left the window
// at the end are quantised.
std::vector<float> ErrorOf(const Form& form, const AffineFormat& format, int64_t num_tokens,
                           const std::vector<float>& rows) {
  std::vector<float> damaged = rows;
  std::vector<float> mean(static_cast<size_t>(form.dim));
  std::vector<float*> heads(static_cast<size_t>(form.num_heads));
  const int64_t end = form.window.QuantizedEnd(num_tokens);
  for (int64_t token = 0; token < end; ++token) {
    CancelPoint();
    float* row = damaged.data() + token * form.num_heads * form.dim;
    for (size_t head = 0; head < heads.size(); ++head) {
      heads[head] = row + static_cast<int64_t>(head) * form.dim;
    }
    form.Damage(format, heads, mean.data());
  }
  for (size_t i = 0; i < rows.size(); ++i) damaged[i] -= rows[i];
  return damaged;
}

// Per block and width, by how much the mean next-token loss of one sample moves. Cost: 3 L passes.
std::vector<double> LossChanges(const Form& form, const MethodContext& context,
                                std::span<const int32_t> tokens, std::span<const int64_t> positions,
                                Profile<float>& profile) {
  const auto num_tokens = std::ssize(tokens);
  const int64_t count = num_tokens * context.geometry.kv_dim();
  std::vector<std::vector<float>> keys;
  std::vector<std::vector<float>> values;
  const double exact = profile.Forward(tokens, positions, [&](const BlockStates<float>& states) {
    keys.emplace_back(states.k, states.k + count);
    values.emplace_back(states.v, states.v + count);
  });
  std::vector<double> changes;
  for (size_t layer = 0; layer < keys.size(); ++layer) {
    for (const int bits : kTadaWidths) {
      const AffineFormat format{bits, context.float_type};
      const std::vector<float> of_k = ErrorOf(form, format, num_tokens, keys[layer]);
      const std::vector<float> of_v = ErrorOf(form, format, num_tokens, values[layer]);
      const double loss = profile.PerturbedLoss(tokens, positions, static_cast<int64_t>(layer),
                                                of_k.data(), of_v.data());
      changes.push_back(std::abs(loss - exact));
    }
  }
  return changes;
}

std::map<std::string, Tensor> Calibrate(const MethodSpec& spec, const MethodContext& context,
                                        const CalibrationContext& calibration) {
  const Form form(spec, context);
  if (spec.keys.contains("bits")) {
    throw InvalidInput("--kv", fmt::format("'{}': bits={}, expected none: calibration measures all "
                                           "widths",
                                           spec.text, spec.keys.at("bits")));
  }
  Profile<float> profile(*calibration.model, calibration.num_threads);
  SampleLoopStep step;
  step.task = "tada";
  step.options = fmt::format("residual {} {} {}", form.window.block, NameOf(form.mean_type),
                             NameOf(context.float_type));
  step.num_values = static_cast<size_t>(context.geometry.num_layers * kNumWidths);
  step.process = [&](std::span<const int32_t> tokens, std::span<const int64_t> positions) {
    return LossChanges(form, context, tokens, positions, profile);
  };
  std::map<std::string, Tensor> tensors =
      MeansOfBlocks(calibration, step, kLoss, context.geometry.num_layers);
  Tensor residual(DType::kF32, {1});
  residual.As<float>()[0] = static_cast<float>(form.window.block);
  tensors.emplace(kResidual, std::move(residual));
  return tensors;
}

}  // namespace

SimulatedMethod TadaMethod() {
  return {"tada",
          "the mean over KV heads at 16 bits and deviations from it, per token",
          {ChoiceKey("bits", {"8", "4", "2"}, "4", "width of deviations in all blocks"),
           FromKey("what each block loses at each width"),
           RealKey("average", 2, 8, "4", "average width of deviations; with from="),
           IntegerKey("residual", 1, 4096, "128", "tokens that are quantised together"),
           ChoiceKey("mean", {"f16", "bf16", "f32"}, "as --kv-dtype", "type of stored means")},
          [](const MethodSpec& spec,
             const MethodContext& context) -> std::shared_ptr<const CacheMethod> {
            return std::make_shared<Tada>(spec, context);
          },
          Calibrate};
}

}  // namespace pmkvq
