// Calibration data of a research method, made by `pmkvq calibrate --kv SPEC`: tensors in one
// .safetensors file, with method, model and calibration record as header metadata
// (docs/formats.md). The key `from=FILE` of the SPEC gives the file to the method.
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
  UniformKvGeometry geometry;
  CalibrationRecord record;
  std::map<std::string, Tensor> tensors;  // Float32; names and shapes are the method's own.
  std::string path;                       // The file it was read from; not stored.

  // The tensor `name`. Throws InvalidInput naming file and tensor: missing, another shape.
  const Tensor& Get(const std::string& name, const Shape& shape) const;
};

// "NAME.LAYER": the name of a tensor that belongs to one block.
std::string BlockTensorName(const std::string& name, int64_t layer);

// For the error of a method without its file: how the file is made.
std::string ExpectedMethodData(const std::string& method);

// Throws IoError.
void SaveMethodData(const MethodData& data, const std::string& path);
// Throws IoError, and InvalidInput (file, field, value, expected): no such file of ours, another
// version, a tensor of another type or with a value that is not finite.
MethodData LoadMethodData(const std::string& path);

}  // namespace pmkvq
