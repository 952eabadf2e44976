#include "pmkvq/research/calib/round_weights.h"

#include <fmt/format.h>

#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "pmkvq/base/aligned.h"
#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"
#include "pmkvq/kernels/gemm/observed_products.h"
#include "pmkvq/kernels/gemm/weight_q4_rounding.h"
#include "pmkvq/kernels/norm/norm.h"
#include "pmkvq/model/profile.h"

namespace pmkvq {
namespace {

constexpr char kTask[] = "quantize";
constexpr char kHead[] = "output_head";

// Matrices with the same inputs, and the second moment of these.
struct SharedInput {
  std::vector<const Model::NamedMatrix*> matrices;
  AlignedVector<float> moment;  // [K, K]
};

// Gathers the second moments of the inputs of some matrices. A product with rows of a matrix from
// the first one on is one with the matrix: of latent attention's keys and values the first head's
// product shows the latents, which are the inputs of all heads.
class MomentObserver : public ProductObserver {
 public:
  MomentObserver(const std::vector<const Model::NamedMatrix*>& matrices, int num_threads)
      : num_threads_(num_threads) {
    for (const Model::NamedMatrix* matrix : matrices)
      wanted_[matrix->view.data] = {matrix, nullptr};
  }

  void See(const float* x, int64_t num_rows,
           std::span<const Projection<float>> projections) override {
    SharedInput* input = nullptr;
    for (const Projection<float>& projection : projections) {
      const auto found = wanted_.find(projection.weight->data);
      if (found == wanted_.end()) continue;
      Wanted& wanted = found->second;
      if (wanted.input == nullptr) {
        if (input == nullptr) input = NewInput(projection.weight->cols);
        wanted.input = input;
        input->matrices.push_back(wanted.matrix);
      }
      // Products of one call have the same inputs in every call.
      PMKVQ_CHECK(input == nullptr || input == wanted.input);
      input = wanted.input;
    }
    if (input == nullptr) return;
    const int64_t cols = projections.front().weight->cols;
    AddSecondMoment(x, num_rows, cols, input->moment.data(), num_threads_);
  }

  std::vector<std::unique_ptr<SharedInput>>& inputs() { return inputs_; }
  // Those that no product was seen of.
  std::vector<const Model::NamedMatrix*> Unseen() const {
    std::vector<const Model::NamedMatrix*> unseen;
    for (const auto& [data, wanted] : wanted_) {
      if (wanted.input == nullptr) unseen.push_back(wanted.matrix);
    }
    return unseen;
  }

 private:
  struct Wanted {
    const Model::NamedMatrix* matrix = nullptr;
    SharedInput* input = nullptr;
  };

  SharedInput* NewInput(int64_t cols) {
    inputs_.push_back(std::make_unique<SharedInput>());
    inputs_.back()->moment.assign(static_cast<size_t>(cols * cols), 0.0f);
    return inputs_.back().get();
  }

  const int num_threads_;
  std::map<const std::byte*, Wanted> wanted_;
  std::vector<std::unique_ptr<SharedInput>> inputs_;
};

class Rounding {
 public:
  explicit Rounding(const CalibrationContext& context)
      : context_(context),
        model_(*context.model),
        matrices_(model_.matrices()),
        profile_(model_, context.num_threads) {
    PMKVQ_CHECK_MSG(model_.device().device == Device::kCpu, "weights are rounded on the CPU");
    if (context.samples != nullptr) num_samples_ = context.samples->tokens.size();
  }

  RoundedWeights Run() {
    const int64_t num_blocks = model_.config().num_layers;
    const ProgressScope progress(context_.progress, kTask, num_blocks + 1, 0);
    const CancelScope scope(context_.cancel, kTask);
    for (size_t i = 0; i < num_samples_; ++i) {
      const std::vector<int32_t>& tokens = context_.samples->tokens[i];
      positions_.push_back(context_.samples->Positions(i, context_.effective_len));
      states_.emplace_back(tokens.size() * static_cast<size_t>(model_.config().hidden_size));
      profile_.Embed(tokens, states_.back().data());
    }
    for (int64_t layer = 0; layer < num_blocks; ++layer) {
      RoundBlock(layer);
      progress.Advance();
    }
    RoundHead();
    progress.Advance();
    return std::move(rounded_);
  }

 private:
  void RoundBlock(int64_t layer) {
    MomentObserver observer(MatricesOf(fmt::format("blocks.{}.", layer)), context_.num_threads);
    {
      const ObservedProducts observed(observer);
      for (size_t i = 0; i < num_samples_; ++i) {
        CancelPoint();
        profile_.RunBlock(layer, positions_[i], states_[i].data());
      }
    }
    RoundSeen(observer);
  }

  void RoundHead() {
    const std::vector<const Model::NamedMatrix*> heads = MatricesOf(kHead);
    if (heads.empty()) return;
    MomentObserver observer(heads, context_.num_threads);
    const Projection<float> head{&heads.front()->view, nullptr, nullptr};
    const ModelConfig& config = model_.config();
    for (size_t i = 0; i < num_samples_; ++i) {
      const auto num_tokens = std::ssize(positions_[i]);
      RmsNorm(states_[i].data(), num_tokens, config.hidden_size, model_.final_norm().data(),
              config.rms_norm_eps, states_[i].data(), context_.num_threads);
      observer.See(states_[i].data(), num_tokens, {&head, 1});
    }
    RoundSeen(observer);
  }

  std::vector<const Model::NamedMatrix*> MatricesOf(const std::string& prefix) const {
    std::vector<const Model::NamedMatrix*> found;
    for (const Model::NamedMatrix& matrix : matrices_) {
      if (matrix.name.starts_with(prefix) && IsRoundedToQ4(matrix)) found.push_back(&matrix);
    }
    return found;
  }

  void RoundSeen(MomentObserver& observer) {
    for (std::unique_ptr<SharedInput>& input : observer.inputs()) {
      CancelPoint();
      const int64_t cols = input->matrices.front()->view.cols;
      FactorForRounding(cols, input->moment.data());
      for (const Model::NamedMatrix* matrix : input->matrices) {
        CheckFits(*matrix, RoundWeightToQ4(matrix->view, input->moment.data(), context_.num_threads,
                                           rounded_.matrices[matrix->name]));
      }
      input.reset();
    }
    for (const Model::NamedMatrix* matrix : observer.Unseen()) {
      CheckFits(*matrix, QuantizeWeightToQ4(matrix->view, context_.num_threads,
                                            rounded_.matrices[matrix->name]));
      rounded_.num_unseen += num_samples_ > 0 ? 1 : 0;
    }
  }

  void CheckFits(const Model::NamedMatrix& matrix, bool fits) const {
    if (fits) return;
    throw InvalidInput(
        model_.checkpoint().folder(),
        fmt::format("{}: found a value that is not finite or beyond 65504, expected weights that "
                    "F16 can hold",
                    matrix.name));
  }

  const CalibrationContext& context_;
  const Model& model_;
  const std::vector<Model::NamedMatrix> matrices_;
  Profile<float> profile_;
  size_t num_samples_ = 0;
  std::vector<std::vector<int64_t>> positions_;  // Per sample.
  std::vector<AlignedVector<float>> states_;     // Per sample [N, E]: what the next block reads.
  RoundedWeights rounded_;
};

}  // namespace

bool IsRoundedToQ4(const Model::NamedMatrix& matrix) {
  const WeightView& view = matrix.view;
  return !matrix.is_router && FormatInMode(WeightMode::kQ4, view.format) == WeightFormat::kQ4_1 &&
         view.format != WeightFormat::kQ4_1 &&
         view.cols % LayoutOf(WeightFormat::kQ4_1).block_values == 0 && view.num_bytes() > 0;
}

RoundedWeights RoundWeights(const CalibrationContext& context) { return Rounding(context).Run(); }

}  // namespace pmkvq
