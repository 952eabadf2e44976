#include "pmkvq/research/analysis/interpolation.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <utility>

#include "pmkvq/base/error.h"
#include "pmkvq/model/device/device_profile.h"
#include "pmkvq/model/profile.h"
#include "pmkvq/research/analysis/placement.h"
#include "pmkvq/research/analysis/series.h"

namespace pmkvq {
namespace {

class Experiment {
 public:
  Experiment(const std::shared_ptr<const Model>& model, const InterpolationOptions& options)
      : model_(model), options_(options) {
    result_.allocation = options.allocation;
    result_.allocation.cache.geometry = model->kv_geometry();
    result_.max_positions = model->config().max_position_embeddings;
    CheckAllocationOptions(result_.allocation);
    CheckNotEmpty("--factors", options.factors.size());
    CheckNotEmpty("--seq-len", options.samples.size());
    CheckNotEmpty("--data", options.texts.size());
    for (const Samples& samples : options.samples) {
      result_.num_samples.push_back(std::ssize(samples.tokens));
    }
    for (const std::vector<int32_t>& text : options.texts) {
      result_.text_tokens.push_back(std::ssize(text));
    }
  }

  Interpolation Run() {
    for (const Samples& samples : options_.samples) {
      for (const int64_t factor : options_.factors) Calibrate(samples, factor);
    }
    Evaluate();
    return std::move(result_);
  }

 private:
  static void CheckNotEmpty(const char* option, size_t count) {
    if (count == 0) throw InvalidInput(option, "found nothing, expected one or more");
  }

  CalibrationContext ContextOf(const Samples& samples, int64_t factor) const {
    CalibrationContext context;
    context.model = model_.get();
    context.samples = &samples;
    context.effective_len = samples.seq_len * factor;
    context.num_threads = options_.num_threads;
    context.progress = options_.progress;
    context.log = options_.log;
    context.cancel = options_.cancel;
    return context;
  }

  double CalibrationLoss(const CalibrationContext& context) const {
    const std::vector<std::vector<int32_t>>& tokens = context.samples->tokens;
    std::vector<double> losses;
    const auto measure = [&](const auto& loss_of) {
      for (size_t i = 0; i < tokens.size(); ++i) {
        ThrowIfCancelled(options_.cancel, "analyze");
        losses.push_back(loss_of(tokens[i], context.samples->Positions(i, context.effective_len)));
      }
    };
    if (model_->device_model() != nullptr) {
      DeviceProfile profile(*model_);
      measure([&](const auto& ids, const auto& positions) {
        return profile.Forward(ids, positions, DeviceProfile::Precision::kExact,
                               /*with_loss=*/true, nullptr);
      });
    } else {
      Profile<float> profile(*model_, options_.num_threads);
      measure([&](const auto& ids, const auto& positions) {
        return profile.Forward(ids, positions, nullptr);
      });
    }
    return MeanOf(losses);
  }

  void Calibrate(const Samples& samples, int64_t factor) {
    const CalibrationContext context = ContextOf(samples, factor);
    InterpolationPoint point;
    point.seq_len = samples.seq_len;
    point.factor = factor;
    point.calibration_loss = CalibrationLoss(context);
    SensitivityAndKeys measured = MeasureSensitivityAndKeys(context);
    RepScales scales = SearchRepScales(context, measured.max_keys, options_.rep_scales);
    point.alpha = scales.alpha;
    point.sensitivity = std::move(measured.sensitivity);
    const std::vector<int>& choices = result_.allocation.fbit_choices;
    // Factors of one length follow one another, the first of them first.
    const Sensitivity& unstretched =
        factor == options_.factors.front()
            ? point.sensitivity
            : result_
                  .points[result_.points.size() - result_.points.size() % options_.factors.size()]
                  .sensitivity;
    point.rank_correlation = RankCorrelation(BlockSensitivities(point.sensitivity, choices),
                                             BlockSensitivities(unstretched, choices));
    const Allocation allocation = Allocate(point.sensitivity, result_.allocation);
    point.k_bits = allocation.k_bits;
    point.v_bits = allocation.v_bits;
    Plan plan = PlacementPlan(*model_, result_.allocation, allocation);
    plan.key_scales = std::move(scales.scales);
    plan.alpha = std::move(scales.alpha);
    plans_.push_back(std::make_shared<const Plan>(std::move(plan)));
    result_.points.push_back(std::move(point));
  }

  // Without scales a plan is its placement: equal ones run once.
  std::vector<size_t> FirstOfPlacement() const {
    std::vector<size_t> first;
    for (size_t i = 0; i < plans_.size(); ++i) {
      size_t same = 0;
      while (plans_[same]->k_bits != plans_[i]->k_bits || plans_[same]->v_bits != plans_[i]->v_bits)
        ++same;
      first.push_back(same);
    }
    return first;
  }

  void Evaluate() {
    const DType kv_dtype = result_.allocation.cache.float_type;
    std::vector<KvOptions> caches;
    for (const auto& plan : plans_) caches.push_back(PlacementCache(plan, kv_dtype, true));
    const std::vector<size_t> first = FirstOfPlacement();
    std::vector<size_t> placement_cache(plans_.size());
    for (size_t i = 0; i < plans_.size(); ++i) {
      if (first[i] != i) continue;
      placement_cache[i] = caches.size();
      caches.push_back(PlacementCache(plans_[i], kv_dtype, false));
    }
    LockStepOptions lock_step;
    lock_step.chunk = options_.chunk;
    lock_step.max_len = result_.allocation.max_len;
    lock_step.num_threads = options_.num_threads;
    lock_step.progress = options_.progress;
    lock_step.cancel = options_.cancel;
    if (options_.progress != nullptr) {
      const int64_t total = std::accumulate(result_.text_tokens.begin(), result_.text_tokens.end(),
                                            -std::ssize(result_.text_tokens));
      options_.progress->Begin("evaluate", total, 0);
    }
    const std::vector<CacheMeans> means = MeasureMeans(model_, options_.texts, caches, lock_step);
    if (options_.progress != nullptr) options_.progress->End();
    for (size_t i = 0; i < plans_.size(); ++i) {
      result_.points[i].cache = means[i];
      result_.points[i].placement_only = means[placement_cache[first[i]]];
    }
  }

  const std::shared_ptr<const Model>& model_;
  const InterpolationOptions& options_;
  Interpolation result_;
  std::vector<std::shared_ptr<const Plan>> plans_;  // Per point.
};

}  // namespace

Interpolation MeasureInterpolation(const std::shared_ptr<const Model>& model,
                                   const InterpolationOptions& options) {
  return Experiment(model, options).Run();
}

}  // namespace pmkvq
