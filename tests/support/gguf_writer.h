// Makes GGUF files for tests: right ones, and wrong ones where a test asks for that.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "pmkvq/io/gguf/gguf_value.h"
#include "pmkvq/io/gguf/tensor_types.h"

namespace pmkvq::testing_support {

template <class T>
void AppendBytes(std::string& bytes, T value) {
  bytes.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

inline void AppendText(std::string& bytes, std::string_view text) {
  AppendBytes<uint64_t>(bytes, text.size());
  bytes += text;
}

class GgufWriter {
 public:
  // What a test may spoil.
  uint32_t version = 3;
  uint64_t alignment = 32;
  std::string magic = "GGUF";

  GgufWriter& Text(std::string_view key, std::string_view value) {
    std::string& pair = Pair(key, GgufType::kString);
    AppendText(pair, value);
    return *this;
  }
  GgufWriter& U32(std::string_view key, uint32_t value) {
    return Plain(key, GgufType::kU32, value);
  }
  GgufWriter& I32(std::string_view key, int32_t value) { return Plain(key, GgufType::kI32, value); }
  GgufWriter& U64(std::string_view key, uint64_t value) {
    return Plain(key, GgufType::kU64, value);
  }
  GgufWriter& U16(std::string_view key, uint16_t value) {
    return Plain(key, GgufType::kU16, value);
  }
  GgufWriter& F32(std::string_view key, float value) { return Plain(key, GgufType::kF32, value); }
  GgufWriter& Bool(std::string_view key, bool value) {
    return Plain(key, GgufType::kBool, static_cast<uint8_t>(value));
  }
  template <class T>
  GgufWriter& Plain(std::string_view key, GgufType type, T value) {
    AppendBytes(Pair(key, type), value);
    return *this;
  }
  template <class T>
  GgufWriter& Array(std::string_view key, GgufType type, const std::vector<T>& values) {
    std::string& pair = Pair(key, GgufType::kArray);
    AppendBytes(pair, static_cast<uint32_t>(type));
    AppendBytes<uint64_t>(pair, values.size());
    for (const T& value : values) AppendBytes(pair, value);
    return *this;
  }
  GgufWriter& Texts(std::string_view key, const std::vector<std::string>& values) {
    std::string& pair = Pair(key, GgufType::kArray);
    AppendBytes(pair, static_cast<uint32_t>(GgufType::kString));
    AppendBytes<uint64_t>(pair, values.size());
    for (const std::string& value : values) AppendText(pair, value);
    return *this;
  }
  // Removes all pairs of that key.
  GgufWriter& Drop(std::string_view key) {
    std::erase_if(pairs_, [&](const auto& pair) { return pair.first == key; });
    return *this;
  }

  // `sizes` fastest first.
  GgufWriter& Tensor(std::string name, std::vector<uint64_t> sizes, uint32_t type,
                     std::string data) {
    tensors_.push_back({std::move(name), std::move(sizes), type, std::move(data)});
    return *this;
  }
  GgufWriter& Tensor(std::string name, std::vector<uint64_t> sizes, GgufTensorType type,
                     std::string data) {
    return Tensor(std::move(name), std::move(sizes), LayoutOf(type).code, std::move(data));
  }

  std::string Bytes() const {
    std::string bytes = magic;
    AppendBytes(bytes, version);
    AppendBytes<uint64_t>(bytes, tensors_.size());
    AppendBytes<uint64_t>(bytes, pairs_.size());
    for (const auto& [key, pair] : pairs_) bytes += pair;
    uint64_t offset = 0;
    std::string data;
    for (const TensorRecord& tensor : tensors_) {
      AppendText(bytes, tensor.name);
      AppendBytes<uint32_t>(bytes, static_cast<uint32_t>(tensor.sizes.size()));
      for (const uint64_t size : tensor.sizes) AppendBytes(bytes, size);
      AppendBytes(bytes, tensor.type);
      AppendBytes(bytes, offset);
      data += tensor.data;
      data.resize((data.size() + alignment - 1) / alignment * alignment);
      offset = data.size();
    }
    if (!tensors_.empty()) bytes.resize((bytes.size() + alignment - 1) / alignment * alignment);
    return bytes + data;
  }

 private:
  struct TensorRecord {
    std::string name;
    std::vector<uint64_t> sizes;
    uint32_t type;
    std::string data;
  };

  std::string& Pair(std::string_view key, GgufType type) {
    std::string pair;
    AppendText(pair, key);
    AppendBytes(pair, static_cast<uint32_t>(type));
    return pairs_.emplace_back(std::string(key), std::move(pair)).second;
  }

  std::vector<std::pair<std::string, std::string>> pairs_;
  std::vector<TensorRecord> tensors_;
};

}  // namespace pmkvq::testing_support
