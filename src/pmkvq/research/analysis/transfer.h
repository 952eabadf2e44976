// Whether sensitivities of one task serve another. Bits are placed by the sensitivities of
// each task, under one budget, and each placement is measured on all tasks (docs/analysis.md).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "pmkvq/research/analysis/lock_step.h"
#include "pmkvq/research/analysis/texts.h"
#include "pmkvq/research/calib/allocate.h"
#include "pmkvq/research/report/html_page.h"

namespace pmkvq {

struct TransferOptions {
  AllocationOptions allocation;    // One budget for all rows. Geometry is the model's.
  std::vector<Tensor> key_scales;  // Used in every cache; empty: none.
  int64_t chunk = 16;              // Tokens of a measured Forward.
  int num_threads = 1;
  ProgressSink* progress = nullptr;
  LogSink* log = nullptr;
  const CancelFlag* cancel = nullptr;
};

// One placement of bits, measured on all tasks.
struct TransferRow {
  std::string name;  // The task that it was calibrated on, or the name of a reference ("uniform").
  bool is_reference = false;  // Not calibrated on one task: all, mirrored, uniform.
  std::vector<int> k_bits;    // Empty for uniform budgets.
  std::vector<int> v_bits;
  std::vector<int64_t> budget_bytes;  // Per block.
  std::vector<CacheMeans> on_task;    // In the order of Transfer::tasks.
};

struct Transfer {
  AllocationOptions allocation;
  std::vector<TaskTexts> tasks;
  std::vector<Sensitivity> sensitivity;               // Per task.
  std::vector<std::vector<double>> rank_correlation;  // Spearman, over blocks; [task][task]
  // One per task, then "all tasks" (mean of the sensitivities), "mirrored" (each block
  // judged by the sensitivity of its mirror image) and "uniform" (the same bytes split evenly).
  std::vector<TransferRow> rows;
};

// Cost: one backward pass per calibration sample; one pass per distinct placement, and one of fp16,
// over the evaluation texts. Throws as MeasureSensitivity, Allocate and RunLockStep, and
// InvalidInput without tasks.
Transfer MeasureTransfer(const std::shared_ptr<const Model>& model, std::vector<TaskTexts> tasks,
                         const TransferOptions& options);

std::string TransferJson(const Transfer& transfer, const std::string& command);
// The result in a sentence: the KL with another task's sensitivities against the KL with the task's
// own, and the reference rows.
std::string TransferVerdict(const Transfer& transfer);
HtmlPage TransferPage(const Transfer& transfer, const PageOrigin& origin);

}  // namespace pmkvq
