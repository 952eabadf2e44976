// The gate of Fast KVzip (arXiv 2601.17668): how much a token's key and value will be needed, from
// the input of attention, for each KV head of a block.
//
//   q = RMSNorm(Wq h + bias) [Hkv, g, 16], k = RMSNorm(Wk h) [Hkv, 16], g query heads of a KV head
//   logit = q . k / 4 + b, base_j = q . k_base_j / 4 for 16 learned keys
//   score = mean over g of 1 / (1 + sum_j exp(base_j - logit))
//
// Both norms have weights [16] and epsilon 1e-6. Tensors have the authors' names.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "pmkvq/tensor/tensor.h"

namespace pmkvq {

class FastKvZipGate {
 public:
  static constexpr int64_t kDim = 16;
  static constexpr int64_t kBases = 16;

  // For training: normals of a stream of `seed`, norms of 1, no biases.
  FastKvZipGate(int64_t num_kv_heads, int64_t group, int64_t width, uint64_t seed);
  // Of "<prefix>q_proj.weight" and so on. Throws InvalidInput naming `file` and the tensor:
  // missing, another shape.
  FastKvZipGate(const std::map<std::string, Tensor>& tensors, const std::string& prefix,
                int64_t num_kv_heads, int64_t group, const std::string& file);

  int64_t width() const { return width_; }  // E
  // Every tensor with its shape, under "<prefix>" names.
  void WriteTo(const std::string& prefix, std::map<std::string, Tensor>& tensors) const;

  // scores [count, Hkv] of the rows h [count, E].
  void Score(const float* h, int64_t count, float* scores) const;
  // The mean binary cross entropy of `count` rows against targets [count, Hkv] in [0, 1].
  double Loss(const float* h, int64_t count, const float* targets) const;
  // One step of gradient descent on that loss: v = momentum v + gradient, weights -= rate v.
  void Step(const float* h, int64_t count, const float* targets, float rate, float momentum);
  // Its gradient by parameters, in the order of Parameters; for tests.
  std::vector<float> Gradient(const float* h, int64_t count, const float* targets) const;
  // All parameters behind one another: Wq [Hkv g 16, E], bias, Wk [Hkv 16, E], norm of q [16], of k
  // [16], b [Hkv, g], k_base [Hkv, 16, 16].
  std::vector<float>& parameters() { return parameters_; }

 private:
  struct Part {
    const char* name;
    Shape shape;
    size_t begin;
  };
  struct Rows;

  void LayOut();
  const float* At(size_t part) const { return parameters_.data() + parts_[part].begin; }
  void Forward(const float* h, int64_t count, Rows& rows) const;
  void Normalize(const float* raw, const float* weight, float* out) const;

  int64_t heads_ = 0;  // Hkv
  int64_t group_ = 0;  // g
  int64_t width_ = 0;  // E
  std::vector<Part> parts_;
  std::vector<float> parameters_;
  std::vector<float> velocity_;
};

}  // namespace pmkvq
