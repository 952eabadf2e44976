// Floats as a method keeps them: rounded to the cache's float type.
#pragma once

#include <cmath>

#include "pmkvq/kernels/kv_quant/kv_quant_common.h"
#include "pmkvq/kv/kv_failure.h"
#include "pmkvq/tensor/dtype.h"

namespace pmkvq {

// x rounded to nearest. Throws UnfitValues, whose message calls x `name`, where x or the result is
// not finite.
inline float StoredAs(DType type, float x, const char* name) {
  const float stored =
      internal::VisitFloatType(type, [&]<class T>(T) { return ToFloat(FromFloat<T>(x)); });
  if (!std::isfinite(stored)) throw UnfitValues(UnfitValueMessage(name, x, type));
  return stored;
}

}  // namespace pmkvq
