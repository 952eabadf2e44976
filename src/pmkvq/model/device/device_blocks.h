// The parts of a block on a device that are more than products and the steps of every family:
// latent attention and mixtures of experts. Private to this folder.
//
// What these launch depends on numbers of rows only, so all of it may be captured.
#pragma once

#include <cstdint>

#include "pmkvq/io/model_config.h"
#include "pmkvq/model/device/device_products.h"
#include "pmkvq/model/device/device_weights.h"
#include "pmkvq/model/device/device_workspace.h"
#include "pmkvq/tensor/device/stream.h"

namespace pmkvq {

// Values of a row that a block hands to the store and gets back (DeviceBlockRows).
struct BlockWidths {
  int64_t q = 0;
  int64_t k = 0;
  int64_t v = 0;
  int64_t out = 0;
  // Of products' operands and sums besides those of all families.
  int64_t operand = 0;
  int64_t sums = 0;
};
BlockWidths BlockWidthsOf(const ModelConfig& config);

class DeviceBlocks {
 public:
  DeviceBlocks(const ModelConfig& config, DeviceWorkspace& workspace, DeviceProducts& products,
               Stream& stream)
      : config_(config), own_(workspace), products_(products), stream_(stream) {}

  // Latents, rope keys and absorbed queries of a slice's rows to k, v and q of the workspace, from
  // OperandOf(q_kv_a)'s rows.
  void ProjectLatents(const DeviceBlockWeights& weights, const RowSlice& slice, float* sums);
  // What attention gave for them, through values and o.
  ProductSums ProjectSums(const DeviceBlockWeights& weights, const RowSlice& slice, float* sums);

  // Memory of the experts of at most `rows` rows. Gives whether addresses have changed.
  bool TakeExpertMemory(int64_t rows);
  // Where the normed rows go that experts compute: float.
  ProductRows ExpertInput(int64_t rows) const;
  // Adds the results of a slice's experts to x, and gives those of the shared one, if there is one.
  ProductSums RunExperts(const DeviceBlockWeights& weights, const RowSlice& slice, float* sums);

  // So that nothing has to be chosen, or loaded, while launches are captured.
  void Prepare(const DeviceWeights& weights);

 private:
  DeviceGemm::Batched OfHeads(const DeviceHeadMatrices& matrices, int64_t part_rows,
                              const std::byte* x, float* y) const;
  // y of all heads, from the operand's rows [H, k].
  ProductSums MultiplyHeads(const DeviceHeadMatrices& matrices, int64_t rows, float* sums);
  ProductRows HeadOperand(const DeviceHeadMatrices& matrices, int64_t rows) const;

  const ModelConfig& config_;
  DeviceWorkspace& own_;
  DeviceProducts& products_;
  Stream& stream_;
};

}  // namespace pmkvq
