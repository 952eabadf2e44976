// The list of a model's weights. Each part of a block declares its own (model/blocks/); loading,
// quantising and everything else that goes through all weights uses this list and no other.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "pmkvq/io/model_config.h"
#include "pmkvq/kernels/gemm/gemm.h"
#include "pmkvq/tensor/tensor.h"

namespace pmkvq {

enum class WeightRole : uint8_t {
  kMatrix,  // [N, K], used as stored or quantised.
  kExpert,  // The same; only rows that chose the expert are multiplied with it.
  kRouter,  // [n, K], used as stored: a wrong choice costs more than its few bytes.
  kNorm,    // [size], kept as floats.
  kBias,    // [size], kept as floats.
};

inline bool IsMatrix(WeightRole role) {
  return role != WeightRole::kNorm && role != WeightRole::kBias;
}

struct WeightDeclaration {
  std::string name;  // Canonical (io/weights/weight_source.h).
  WeightRole role = WeightRole::kMatrix;
  Shape shape;
};

// What the values of a norm are made of when they are loaded: (stored + offset) * factor.
struct NormForm {
  double offset = 0;
  double factor = 1;
};

// A declared weight and where its owner keeps it: one of the two pointers.
struct WeightSlot : WeightDeclaration {
  WeightView* matrix = nullptr;
  std::vector<float>* vector = nullptr;
  // Where a shard (model/ranks/shard.h) has slices of the matrix's columns, and they go in place of
  // the matrix, of which only the format and the shape are set. Null: no shard cuts its columns.
  std::vector<WeightView>* slices = nullptr;
  NormForm form;
};

// Collects declarations. Places must stay where they are while the list is used.
class WeightList {
 public:
  // Stands before the names that follow: "blocks.3.", or nothing.
  void SetPrefix(std::string prefix) { prefix_ = std::move(prefix); }

  void Matrix(std::string_view name, int64_t rows, int64_t cols, WeightView& place) {
    Add(name, WeightRole::kMatrix, {rows, cols}).matrix = &place;
  }
  void ColumnMatrix(std::string_view name, int64_t rows, int64_t cols, WeightView& place,
                    std::vector<WeightView>& slices) {
    WeightSlot& slot = Add(name, WeightRole::kMatrix, {rows, cols});
    slot.matrix = &place;
    slot.slices = &slices;
  }
  void Expert(std::string_view name, int64_t rows, int64_t cols, WeightView& place) {
    Add(name, WeightRole::kExpert, {rows, cols}).matrix = &place;
  }
  void Router(std::string_view name, int64_t num_experts, int64_t cols, WeightView& place) {
    Add(name, WeightRole::kRouter, {num_experts, cols}).matrix = &place;
  }
  void Norm(std::string_view name, int64_t size, std::vector<float>& place,
            const NormForm& form = {}) {
    WeightSlot& slot = Add(name, WeightRole::kNorm, {size});
    slot.vector = &place;
    slot.form = form;
  }
  void Bias(std::string_view name, int64_t size, std::vector<float>& place) {
    Add(name, WeightRole::kBias, {size}).vector = &place;
  }

  const std::vector<WeightSlot>& slots() const { return slots_; }

 private:
  WeightSlot& Add(std::string_view name, WeightRole role, Shape shape) {
    WeightSlot& slot = slots_.emplace_back();
    slot.name = prefix_;
    slot.name += name;
    slot.role = role;
    slot.shape = std::move(shape);
    return slot;
  }

  std::string prefix_;
  std::vector<WeightSlot> slots_;
};

// All weights of a model of that config: those outside of blocks, then block by block.
std::vector<WeightDeclaration> DeclaredWeights(const ModelConfig& config);

}  // namespace pmkvq
