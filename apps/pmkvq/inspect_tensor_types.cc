#include "inspect_tensor_types.h"

#include <fmt/format.h>

#include <map>
#include <utility>

#include "pmkvq/base/byte_size.h"
#include "pmkvq/io/gguf/gguf_file.h"

namespace pmkvq::cli {

std::vector<TensorTypeUse> TensorTypesOf(const Checkpoint& checkpoint) {
  if (FindGgufFile(checkpoint.folder()).empty()) return {};
  std::map<std::string, TensorTypeUse> by_type;
  std::string last_name;  // Experts of one tensor are listed one after the other.
  for (const StoredWeight& tensor : checkpoint.weights().tensors()) {
    TensorTypeUse& use = by_type[tensor.type];
    use.type = tensor.type;
    if (tensor.stored_name != last_name) use.num_tensors += 1;
    last_name = tensor.stored_name;
    use.bytes += static_cast<int64_t>(tensor.num_bytes);
  }
  std::vector<TensorTypeUse> types;
  for (auto& [type, use] : by_type) types.push_back(std::move(use));
  return types;
}

std::string FormatTensorTypes(const std::vector<TensorTypeUse>& types) {
  if (types.empty()) return "";
  std::string text = fmt::format("\n{:<8} {:>8} {:>12}\n", "type", "tensors", "bytes");
  for (const TensorTypeUse& use : types) {
    text +=
        fmt::format("{:<8} {:>8} {:>12}\n", use.type, use.num_tensors, FormatByteSize(use.bytes));
  }
  return text;
}

void WriteTensorTypes(const std::vector<TensorTypeUse>& types, JsonWriter& json) {
  if (types.empty()) return;
  json.Key("tensor_types").BeginObject();
  for (const TensorTypeUse& use : types) {
    json.Key(use.type).BeginObject();
    json.Key("tensors").Int(use.num_tensors);
    json.Key("bytes").Int(use.bytes);
    json.EndObject();
  }
  json.EndObject();
}

}  // namespace pmkvq::cli
