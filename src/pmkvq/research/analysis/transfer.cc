#include "pmkvq/research/analysis/transfer.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "pmkvq/base/error.h"
#include "pmkvq/research/analysis/placement.h"
#include "pmkvq/research/analysis/series.h"
#include "pmkvq/research/calib/calibration.h"

namespace pmkvq {
namespace {

class Experiment {
 public:
  Experiment(const std::shared_ptr<const Model>& model, std::vector<TaskTexts> tasks,
             const TransferOptions& options)
      : model_(model), options_(options) {
    if (tasks.empty()) throw InvalidInput("--task", "found none, expected at least one");
    transfer_.tasks = std::move(tasks);
    transfer_.allocation = options.allocation;
    transfer_.allocation.cache.geometry = model->kv_geometry();
    CheckAllocationOptions(transfer_.allocation);
  }

  Transfer Run() {
    for (const TaskTexts& task : transfer_.tasks) Calibrate(task);
    Correlate();
    PlaceBits();
    for (size_t task = 0; task < transfer_.tasks.size(); ++task) Evaluate(task);
    return std::move(transfer_);
  }

 private:
  void Calibrate(const TaskTexts& task) {
    CalibrationContext context;
    context.model = model_.get();
    context.samples = &task.calibration;
    context.num_threads = options_.num_threads;
    context.progress = options_.progress;
    context.log = options_.log;
    context.cancel = options_.cancel;
    transfer_.sensitivity.push_back(MeasureSensitivity(context));
  }

  void Correlate() {
    std::vector<std::vector<double>> blocks;
    for (const Sensitivity& sensitivity : transfer_.sensitivity) {
      blocks.push_back(BlockSensitivities(sensitivity, transfer_.allocation.fbit_choices));
    }
    for (const std::vector<double>& a : blocks) {
      transfer_.rank_correlation.emplace_back();
      for (const std::vector<double>& b : blocks) {
        transfer_.rank_correlation.back().push_back(RankCorrelation(a, b));
      }
    }
  }

  // The mean over tasks.
  Sensitivity Pooled() const {
    Sensitivity pooled = transfer_.sensitivity.front();
    const auto count = static_cast<double>(transfer_.sensitivity.size());
    for (const auto side : {&Sensitivity::k, &Sensitivity::v}) {
      for (size_t width = 0; width < (pooled.*side).size(); ++width) {
        for (size_t block = 0; block < (pooled.*side)[width].size(); ++block) {
          double sum = 0;
          for (const Sensitivity& one : transfer_.sensitivity) sum += (one.*side)[width][block];
          (pooled.*side)[width][block] = sum / count;
        }
      }
    }
    return pooled;
  }

  void AddRow(const std::string& name, bool is_reference, Plan plan) {
    plan.key_scales = options_.key_scales;
    TransferRow row;
    row.name = name;
    row.is_reference = is_reference;
    row.k_bits = plan.k_bits;
    row.v_bits = plan.v_bits;
    row.budget_bytes = plan.budget_bytes;
    transfer_.rows.push_back(std::move(row));
    plans_.push_back(std::make_shared<const Plan>(std::move(plan)));
  }

  void PlaceBits() {
    const AllocationOptions& options = transfer_.allocation;
    for (size_t task = 0; task < transfer_.tasks.size(); ++task) {
      AddRow(transfer_.tasks[task].name, false,
             PlacementPlan(*model_, options, Allocate(transfer_.sensitivity[task], options)));
    }
    const Sensitivity mean = Pooled();
    const Allocation pooled = Allocate(mean, options);
    AddRow("all tasks", true, PlacementPlan(*model_, options, pooled));
    AllocationOptions mirrored = options;
    mirrored.mirrored = !options.mirrored;
    AddRow("mirrored", true, PlacementPlan(*model_, options, Allocate(mean, mirrored)));
    AddRow("uniform", true, UniformPlan(*model_, options, pooled));
  }

  // Tasks that agree place their bits alike: each distinct placement runs once.
  void Evaluate(size_t task) {
    std::vector<KvOptions> caches;
    std::vector<size_t> cache_of_row;
    std::vector<size_t> first_row;  // Of each cache.
    for (size_t row = 0; row < transfer_.rows.size(); ++row) {
      const auto same = std::find_if(first_row.begin(), first_row.end(), [&](size_t other) {
        return transfer_.rows[other].k_bits == transfer_.rows[row].k_bits &&
               transfer_.rows[other].v_bits == transfer_.rows[row].v_bits &&
               transfer_.rows[other].budget_bytes == transfer_.rows[row].budget_bytes;
      });
      cache_of_row.push_back(static_cast<size_t>(same - first_row.begin()));
      if (same != first_row.end()) continue;
      first_row.push_back(row);
      caches.push_back(PlacementCache(plans_[row], transfer_.allocation.cache.float_type, true));
    }
    LockStepOptions lock_step;
    lock_step.chunk = options_.chunk;
    lock_step.max_len = transfer_.allocation.max_len;
    lock_step.num_threads = options_.num_threads;
    lock_step.progress = options_.progress;
    lock_step.cancel = options_.cancel;
    const std::vector<std::vector<int32_t>>& texts = transfer_.tasks[task].evaluation;
    if (options_.progress != nullptr) {
      const int64_t total =
          std::accumulate(texts.begin(), texts.end(), int64_t{0},
                          [](int64_t sum, const auto& text) { return sum + std::ssize(text) - 1; });
      options_.progress->Begin("evaluate on " + transfer_.tasks[task].name, total, 0);
    }
    const std::vector<CacheMeans> means = MeasureMeans(model_, texts, caches, lock_step);
    if (options_.progress != nullptr) options_.progress->End();
    for (size_t row = 0; row < transfer_.rows.size(); ++row) {
      transfer_.rows[row].on_task.push_back(means[cache_of_row[row]]);
    }
  }

  const std::shared_ptr<const Model>& model_;
  const TransferOptions& options_;
  Transfer transfer_;
  std::vector<std::shared_ptr<const Plan>> plans_;  // Per row.
};

}  // namespace

Transfer MeasureTransfer(const std::shared_ptr<const Model>& model, std::vector<TaskTexts> tasks,
                         const TransferOptions& options) {
  return Experiment(model, std::move(tasks), options).Run();
}

}  // namespace pmkvq
