#include "inspect_tensor_types.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "pmkvq/base/byte_size.h"
#include "pmkvq/base/error.h"
#include "pmkvq/io/gguf/gguf_file.h"
#include "pmkvq/model/weight_conversion.h"
#include "terminal.h"

namespace pmkvq::cli {
namespace {

int64_t ToMiB(int64_t bytes) { return bytes >> 20; }

// Vectors (norms, biases) become floats, exactly.
bool BecomesQ8(const StoredWeight& tensor) { return tensor.decodes && tensor.shape.size() > 1; }

void AddError(const Checkpoint& checkpoint, const StoredWeight& tensor, int threads,
              TensorTypeUse& use) {
  const Q8Error error = MeasureQ8Error(checkpoint.weights(), tensor, threads);
  if (!error.is_finite) {
    throw InvalidInput(tensor.file, fmt::format("tensor '{}': found a value that is not finite, "
                                                "expected finite weights",
                                                tensor.stored_name));
  }
  const auto greatest = static_cast<double>(error.max_error);
  use.max_added_error = std::max(use.max_added_error, greatest);
  if (error.max_weight > 0) {
    use.max_added_share =
        std::max(use.max_added_share, greatest / static_cast<double>(error.max_weight));
  }
}

}  // namespace

std::vector<TensorTypeUse> TensorTypesOf(const Checkpoint& checkpoint, int threads) {
  if (FindGgufFile(checkpoint.folder()).empty()) return {};
  int64_t total_bytes = 0;
  for (const StoredWeight& tensor : checkpoint.weights().tensors()) {
    if (BecomesQ8(tensor)) total_bytes += static_cast<int64_t>(tensor.num_bytes);
  }
  constexpr int64_t kShownBytes = int64_t{256} << 20;
  const bool shows_progress = total_bytes >= kShownBytes;
  ProgressBar progress;
  if (shows_progress) progress.Begin("MiB of weights", ToMiB(total_bytes), 0);
  std::map<std::string, TensorTypeUse> by_type;
  int64_t done_bytes = 0;
  for (const StoredWeight& tensor : checkpoint.weights().tensors()) {
    TensorTypeUse& use = by_type[tensor.type];
    use.type = tensor.type;
    use.num_tensors += 1;
    use.bytes += static_cast<int64_t>(tensor.num_bytes);
    if (!BecomesQ8(tensor)) continue;
    use.becomes_q8 = true;
    AddError(checkpoint, tensor, threads, use);
    checkpoint.weights().DropPages(tensor);
    const int64_t now_bytes = done_bytes + static_cast<int64_t>(tensor.num_bytes);
    if (shows_progress) progress.Advance(ToMiB(now_bytes) - ToMiB(done_bytes));
    done_bytes = now_bytes;
  }
  if (shows_progress) progress.End();
  std::vector<TensorTypeUse> types;
  for (auto& [type, use] : by_type) types.push_back(std::move(use));
  return types;
}

std::string FormatTensorTypes(const std::vector<TensorTypeUse>& types) {
  if (types.empty()) return "";
  std::string text = fmt::format("\n{:<8} {:>8} {:>12}  {:<10}  {}\n", "type", "tensors", "bytes",
                                 "kept as", "greatest added error");
  for (const TensorTypeUse& use : types) {
    const std::string error =
        use.becomes_q8 ? fmt::format("{:.2e}, {:.2f} % of the largest weight of its tensor",
                                     use.max_added_error, 100 * use.max_added_share)
                       : "none";
    text += fmt::format("{:<8} {:>8} {:>12}  {:<10}  {}\n", use.type, use.num_tensors,
                        FormatByteSize(use.bytes), use.becomes_q8 ? "q8" : "as stored", error);
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
    json.Key("kept_as").String(use.becomes_q8 ? "q8" : "as-stored");
    json.Key("max_added_error").Number(use.max_added_error);
    json.Key("max_added_share").Number(use.max_added_share);
    json.EndObject();
  }
  json.EndObject();
}

}  // namespace pmkvq::cli
