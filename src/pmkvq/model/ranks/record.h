// Plain data as bytes, for what rank 0 tells the other ranks. All ranks run one program on one kind
// of processor, so values go as they lie in memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "pmkvq/base/check.h"

namespace pmkvq {

class RecordWriter {
 public:
  template <class T>
  void Put(const T& value) {
    static_assert(std::is_trivially_copyable_v<T>);
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof(T));
  }
  void PutText(const std::string& text) { PutAll(std::span<const char>(text)); }
  template <class T>
  void PutAll(std::span<const T> values) {
    static_assert(std::is_trivially_copyable_v<T>);
    Put(static_cast<uint64_t>(values.size()));
    if (!values.empty()) {
      bytes_.append(reinterpret_cast<const char*>(values.data()), values.size_bytes());
    }
  }
  template <class T>
  void PutAll(const std::vector<T>& values) {
    PutAll(std::span<const T>(values));
  }

  std::string& bytes() { return bytes_; }

 private:
  std::string bytes_;
};

// Reads what a RecordWriter of the same program wrote, in the same order; less is a bug (check).
class RecordReader {
 public:
  // `bytes` must outlive the reader.
  explicit RecordReader(const std::string& bytes) : bytes_(bytes) {}

  bool AtEnd() const { return next_ == bytes_.size(); }
  template <class T>
  T Get() {
    static_assert(std::is_trivially_copyable_v<T>);
    T value;
    Take(&value, sizeof(T));
    return value;
  }
  std::string GetText() {
    std::string text(Get<uint64_t>(), '\0');
    Take(text.data(), text.size());
    return text;
  }
  template <class T>
  std::vector<T> GetAll() {
    std::vector<T> values(Get<uint64_t>());
    Take(values.data(), values.size() * sizeof(T));
    return values;
  }

 private:
  void Take(void* to, size_t count) {
    PMKVQ_CHECK_MSG(count <= bytes_.size() - next_, "a record ends early");
    if (count > 0) std::memcpy(to, bytes_.data() + next_, count);
    next_ += count;
  }

  const std::string& bytes_;
  size_t next_ = 0;
};

}  // namespace pmkvq
