// Where the weights of a model come from: tensors under canonical names, whatever their files call
// them, each in a weight format (tensor/weight_format.h).
//
// Canonical names:
//   embedding                  [V, E]
//   output_head                [V, E]
//   final_norm                 [E]
//   blocks.<i>.<part>.<name>   a weight of block i: "blocks.3.attn.q", "blocks.3.mlp.gate"; a bias
//                              is named after its matrix: "blocks.3.attn.q.bias"
// The names within a part, and their shapes, are those that the part declares (model/blocks/).
//
// A source is immutable; any number of threads may use it. Its tensors stay valid while it lives.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "pmkvq/tensor/tensor.h"
#include "pmkvq/tensor/weight_format.h"

namespace pmkvq {

struct Fp8Scales;

// A tensor as it lies in a file, or in memory.
struct StoredWeight {
  std::string name;         // Canonical; empty where the source's name map has none for it.
  std::string stored_name;  // As its file calls it.
  std::string file;         // The file's path, for messages.
  std::string type;         // As the file spells it: "BF16", "I32", "F8_E4M3".
  std::optional<WeightFormat> format;  // Nothing: no model computes with this type as it is.
  Shape shape;                         // Rows before columns.
  int64_t pair_rows = 0;               // Rows, or values of a vector, lie in pairs
                                       // (WeightView::pair_rows in kernels/gemm/gemm.h).
  const std::byte* data = nullptr;     // Null: a type of which not even the size is known.
  uint64_t num_bytes = 0;
  // It is a weight of a block: a model that leaves it out computes another function than the one
  // that was trained. False for types of which not even the size is known.
  bool of_block = false;
  // Set for float8 weights: `data` are codes, and `format` is that of the values which ExpandFp8
  // (fp8_weights.h) makes of them.
  std::shared_ptr<const Fp8Scales> fp8;
};

class WeightSource {
 public:
  virtual ~WeightSource() = default;
  WeightSource(const WeightSource&) = delete;
  WeightSource& operator=(const WeightSource&) = delete;

  // All tensors of all files.
  const std::vector<StoredWeight>& tensors() const { return tensors_; }

  // By canonical name. Null when there is no such tensor.
  const StoredWeight* Find(std::string_view name) const;
  // The tensor of that canonical name, which must have that shape, and a format. Throws
  // InvalidInput naming file, tensor (its stored name), found and expected; Unsupported for a type
  // of which not even the size is known.
  const StoredWeight& Get(std::string_view name, const Shape& shape) const;

  virtual int64_t num_files() const = 0;
  // What the source's files would call a tensor: for messages about one that is missing.
  virtual std::string StoredName(std::string_view name) const = 0;
  // 32 hex digits over `architecture` and what the source holds. Plans and results name it, so what
  // a kind of source hashes must never change.
  virtual std::string Identity(std::string_view architecture) const = 0;
  // Gives the memory of a mapped tensor back; it is read from its file when next used. Tensors in
  // memory stay.
  virtual void DropPages(const StoredWeight& weight) const = 0;

 protected:
  // `place` (a folder or file) and `formats` ("F32, F16 or BF16": what its tensors may be) are for
  // messages. Canonical names are distinct (check).
  WeightSource(std::string place, std::string formats, std::vector<StoredWeight> tensors);

  const std::string& place() const { return place_; }
  // For constructors that move data: calls change(weight) for every tensor. Names must stay.
  template <class Change>
  void EachTensor(Change change) {
    for (StoredWeight& tensor : tensors_) change(tensor);
  }

 private:
  std::string place_;
  std::string formats_;
  std::vector<StoredWeight> tensors_;
  std::map<std::string_view, const StoredWeight*> by_name_;
};

}  // namespace pmkvq
