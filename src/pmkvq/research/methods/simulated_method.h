// What a file in methods/ gives the registry: a name, a line of help, a maker and, where the method
// is calibrated, the measuring of it.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "pmkvq/kv/simulated/cache_method.h"
#include "pmkvq/kv/spec/spec.h"
#include "pmkvq/research/calib/calibration.h"
#include "pmkvq/research/methods/method_data.h"
#include "pmkvq/tensor/dtype.h"

namespace pmkvq {

struct MethodContext {
  UniformKvGeometry geometry;
  DType float_type = DType::kF16;  // --kv-dtype: of values at full precision, and of metadata.
  // The file of the key from=, made for this method and geometry; null: not given. Only for methods
  // with a calibration.
  std::shared_ptr<const MethodData> data;

  // Bytes of `num_tokens` tokens of K, or of V, of one block at full precision.
  int64_t FloatBytes(int64_t num_tokens) const {
    return num_tokens * geometry.kv_dim() * static_cast<int64_t>(SizeOf(float_type));
  }
};

struct SimulatedMethod {
  std::string name;
  std::string description;  // One line for --help, without keys.
  // All keys and words of its SPEC; a method with a calibration declares FromKey.
  SpecKeys keys;
  // `spec` has passed MethodSpec::Check(keys). Throws InvalidInput naming --kv for values that do
  // not go together or do not suit the geometry. The file of the key "from" is context.data.
  std::function<std::shared_ptr<const CacheMethod>(const MethodSpec& spec,
                                                   const MethodContext& context)>
      make;
  // Measures the tensors that `make` then finds as context.data->tensors: float32; the method
  // chooses names and shapes. `context.data` is null here. Nothing: the method is not
  // calibrated. Throws as the steps of calibration (research/calib/calibration.h), and Cancelled.
  std::function<std::map<std::string, Tensor>(const MethodSpec& spec, const MethodContext& context,
                                              const CalibrationContext& calibration)>
      calibrate = nullptr;
  // Tells versions of a method apart that was added at run time (AddMethod); "" for ours.
  std::string code_hash = {};
  // Weights of the model that the method replaces (Model::WithWeights): float32 tensors by
  // canonical name, made of context.data. Nothing: the model stays as it is. Throws as `make`.
  std::function<std::map<std::string, Tensor>(const MethodSpec& spec, const MethodContext& context)>
      replacements = nullptr;
};

// The key from=FILE of a method with a calibration; `help` describes the content of the file.
inline SpecKey FromKey(const std::string& help) {
  return FileKey("from", "none", help + " (pmkvq calibrate --kv makes it)");
}

}  // namespace pmkvq
