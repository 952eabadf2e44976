// Small helpers shared by Forward and Profile. Private to this module.
#pragma once

#include <cstdint>
#include <vector>

#include "pmkvq/base/aligned.h"
#include "pmkvq/model/model.h"

namespace pmkvq::model_detail {

// Biases are empty vectors in the struct and null pointers to the kernels.
inline const float* DataOrNull(const std::vector<float>& values) {
  return values.empty() ? nullptr : values.data();
}

template <class Real>
void GrowTo(AlignedVector<Real>& values, int64_t count) {
  if (static_cast<int64_t>(values.size()) < count) values.resize(static_cast<size_t>(count));
}

template <class Real>
void AddTo(Real* x, const Real* y, int64_t count) {
  for (int64_t i = 0; i < count; ++i) x[i] += y[i];
}

// x [E] = the embedding of a token, as the first block reads it.
template <class Real>
void EmbedToken(const Model& model, int32_t token, Real* x) {
  ExpandRow(model.embedding(), token, x);
  const auto factor = static_cast<Real>(model.embedding_factor());
  for (int64_t i = 0; i < model.config().hidden_size; ++i) x[i] *= factor;
}

}  // namespace pmkvq::model_detail
