// What `pmkvq calibrate --kv SPEC` found out for a research method: tensors and how they were made,
// in one .safetensors file whose header metadata says method, model and record. Given to the method
// by the key `from=FILE` of its SPEC.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "pmkvq/kv/kv_types.h"
#include "pmkvq/kv/plan.h"
#include "pmkvq/tensor/tensor.h"

namespace pmkvq {

struct MethodData {
  std::string method;          // Name of the method that it is for.
  std::string spec;            // The SPEC it was made with.
  std::string model_identity;  // Checkpoint::Identity()
  KvGeometry geometry;
  CalibrationRecord record;
  std::map<std::string, Tensor> tensors;  // Float32; names and shapes are the method's own.
};

// Throws IoError.
void SaveMethodData(const MethodData& data, const std::string& path);
// Throws IoError, InvalidInput (file, field, value, expected).
MethodData LoadMethodData(const std::string& path);

}  // namespace pmkvq
