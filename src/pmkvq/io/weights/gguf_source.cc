#include "pmkvq/io/weights/gguf_source.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <string_view>
#include <utility>
#include <vector>

#include "pmkvq/base/aligned.h"
#include "pmkvq/base/check.h"
#include "pmkvq/io/gguf/gguf_config.h"
#include "pmkvq/io/hash.h"
#include "pmkvq/io/weights/expert_stacks.h"
#include "pmkvq/io/weights/gguf_names.h"

namespace pmkvq {
namespace {

constexpr size_t kIdentityBytesPerTensor = 64 * 1024;

// Rows before columns: the reverse of the stored order.
Shape ShapeOf(const GgufTensor& tensor) {
  Shape shape(tensor.sizes, tensor.sizes + tensor.num_dims);
  std::reverse(shape.begin(), shape.end());
  return shape;
}

bool IsOfQueryOrKey(std::string_view name) {
  for (const char* end : {".attn.q", ".attn.k", ".attn.q.bias", ".attn.k.bias"}) {
    if (name.ends_with(end)) return true;
  }
  return false;
}

// Matrices of the heads of latent attention, one behind the other in one tensor.
bool IsOfHeads(std::string_view name) {
  return name.ends_with(".attn.k_b") || name.ends_with(".attn.v_b");
}

StoredWeight Describe(const GgufSet& files, const GgufTensor& tensor, int64_t pair_rows) {
  const GgufTensorLayout& layout = LayoutOf(tensor.type);
  StoredWeight weight;
  weight.name = CanonicalNameOfGguf(tensor.name);
  weight.stored_name = tensor.name;
  weight.file = files.FileOf(tensor);
  weight.type = layout.name;
  weight.format = WeightFormatNamed(layout.name);
  weight.shape = ShapeOf(tensor);
  if (IsOfHeads(weight.name) && weight.shape.size() == 3) {
    weight.shape = {weight.shape[0] * weight.shape[1], weight.shape[2]};
  }
  if (IsOfQueryOrKey(weight.name)) weight.pair_rows = pair_rows;
  weight.data = tensor.data;
  weight.num_bytes = tensor.num_bytes;
  weight.of_block = IsOfBlockOfGguf(tensor.name);
  PMKVQ_CHECK(weight.format.has_value() &&
              LayoutOf(*weight.format).block_bytes == layout.block_bytes &&
              LayoutOf(*weight.format).block_values == layout.block_values);
  return weight;
}

std::vector<StoredWeight> ListTensors(const GgufSet& files, int64_t head_dim, int64_t num_experts) {
  const int64_t pair_rows = GgufArchitecture(files) == "llama" ? head_dim : 0;
  std::vector<StoredWeight> tensors;
  tensors.reserve(files.tensors().size());
  for (const GgufTensor& tensor : files.tensors()) {
    tensors.push_back(Describe(files, tensor, pair_rows));
  }
  return internal::SplitExpertStacks(std::move(tensors), num_experts);
}

// Elements of a plain type that do not lie at a multiple of their size: a file may be aligned to
// less.
bool IsMisaligned(const StoredWeight& weight) {
  if (!weight.format.has_value() || LayoutOf(*weight.format).block_values != 1) return false;
  const auto address = reinterpret_cast<uintptr_t>(weight.data);
  return address % static_cast<uintptr_t>(LayoutOf(*weight.format).block_bytes) != 0;
}

class GgufSource : public WeightSource {
 public:
  GgufSource(GgufSet files, int64_t head_dim, int64_t num_experts)
      : WeightSource(files.path(), GgufTensorTypeNames(),
                     ListTensors(files, head_dim, num_experts)),
        files_(std::move(files)) {
    EachTensor([&](StoredWeight& weight) {
      if (!IsMisaligned(weight)) return;
      AlignedVector<std::byte>& copy = copies_.emplace_back(weight.num_bytes);
      std::memcpy(copy.data(), weight.data, copy.size());
      weight.data = copy.data();
    });
  }

  int64_t num_files() const override { return files_.num_files(); }

  std::string StoredName(std::string_view name) const override { return GgufName(name); }

  std::string Identity(std::string_view architecture) const override {
    Hash128 hash;
    hash.Update(architecture);
    for (const GgufTensor& tensor : files_.tensors()) {
      hash.Update(fmt::format("{} {} {}\n", tensor.name, LayoutOf(tensor.type).name,
                              ToString(ShapeOf(tensor))));
      hash.Update(tensor.data,
                  std::min(static_cast<size_t>(tensor.num_bytes), kIdentityBytesPerTensor));
    }
    return hash.HexDigest();
  }

  void DropPages(const StoredWeight& weight) const override {
    files_.DropPages(weight.data, static_cast<size_t>(weight.num_bytes));
  }

 private:
  GgufSet files_;
  std::vector<AlignedVector<std::byte>> copies_;
};

}  // namespace

std::unique_ptr<const WeightSource> MakeGgufSource(GgufSet files, int64_t head_dim,
                                                   int64_t num_experts) {
  return std::make_unique<GgufSource>(std::move(files), head_dim, num_experts);
}

}  // namespace pmkvq
