#include "pmkvq/io/gguf/gguf_header.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <optional>

#include "pmkvq/base/error.h"
#include "pmkvq/base/interrupt.h"
#include "pmkvq/io/limits.h"
#include "pmkvq/io/utf8.h"

namespace pmkvq {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF files are little-endian");

constexpr std::string_view kMagic = "GGUF";
constexpr const char* kAlignmentKey = "general.alignment";
constexpr uint64_t kDefaultAlignment = 32;
constexpr uint32_t kMaxDims = 4;
// The least that each takes, with an empty key or name, which has an error of its own.
constexpr uint64_t kLeastPairBytes = 8 + 4 + 1;
constexpr uint64_t kLeastTensorBytes = 8 + 4 + 4 + 8;

std::optional<uint64_t> Multiply(uint64_t a, uint64_t b) {
  uint64_t product = 0;
  if (__builtin_mul_overflow(a, b, &product)) return std::nullopt;
  return product;
}

// Reads the bytes of a file in order; never beyond them.
class Reader {
 public:
  Reader(const std::string& path, std::span<const std::byte> file) : path_(path), file_(file) {}

  uint64_t position() const { return position_; }
  uint64_t left() const { return file_.size() - position_; }
  const std::byte* place() const { return file_.data() + position_; }

  // The next `num_bytes`; `what` names them in the error about a file that ends before.
  const std::byte* Take(uint64_t num_bytes, const std::string& what) {
    if (num_bytes > left()) {
      Fail(what,
           fmt::format("{} bytes at byte {} of a file of {}", num_bytes, position_, file_.size()),
           "a size within the file");
    }
    const std::byte* taken = place();
    position_ += num_bytes;
    return taken;
  }

  template <class T>
  T Read(const std::string& what) {
    if (sizeof(T) > left()) {
      Fail(what, fmt::format("the end of the file ({} bytes)", file_.size()),
           fmt::format("{} more bytes at byte {}", sizeof(T), position_));
    }
    T value;
    std::memcpy(&value, place(), sizeof(value));
    position_ += sizeof(value);
    return value;
  }

  std::string_view ReadString(const std::string& what) {
    const auto size = Read<uint64_t>(what);
    const std::byte* text = Take(size, what + ", length");
    return {reinterpret_cast<const char*>(text), static_cast<size_t>(size)};
  }

  // A key or the name of a tensor.
  std::string_view ReadName(const std::string& what, size_t max_bytes) {
    const uint64_t begin = position_;
    const std::string_view name = ReadString(what);
    const auto is_control = [](char c) {
      return static_cast<unsigned char>(c) < 0x20 || c == 0x7f;
    };
    if (name.empty() || name.size() > max_bytes) {
      Fail(what, fmt::format("{} bytes at byte {}", name.size(), begin),
           fmt::format("1 to {} bytes", max_bytes));
    }
    if (ValidUtf8Prefix(name) != name.size() || std::any_of(name.begin(), name.end(), is_control)) {
      Fail(what, fmt::format("{} at byte {}", QuotedText(name), begin),
           "UTF-8 text without control characters");
    }
    return name;
  }

  [[noreturn]] void Fail(const std::string& what, const std::string& found,
                         const std::string& expected) const {
    throw InvalidInput(path_, fmt::format("{}: found {}, expected {}", what, found, expected));
  }
  [[noreturn]] void Refuse(const std::string& what, const std::string& found,
                           const std::string& expected) const {
    throw Unsupported(path_, fmt::format("{}: found {}, expected {}", what, found, expected));
  }

 private:
  const std::string& path_;
  std::span<const std::byte> file_;
  uint64_t position_ = 0;
};

class HeaderParser {
 public:
  HeaderParser(const std::string& path, std::span<const std::byte> file)
      : path_(path), file_(file), in_(path, file) {}

  GgufHeader Parse() {
    ReadVersion();
    const auto num_tensors = in_.Read<uint64_t>("tensor count");
    const auto num_pairs = in_.Read<uint64_t>("metadata pair count");
    CheckCount("metadata pair count", num_pairs, kLeastPairBytes, limits::kMetadataEntries);
    for (uint64_t i = 0; i < num_pairs; ++i) ReadPair(i);
    SortPairs();
    CheckCount("tensor count", num_tensors, kLeastTensorBytes, limits::kGgufTensors);
    for (uint64_t i = 0; i < num_tensors; ++i) ReadTensor(i);
    SortTensors();
    PlaceTensors();
    return std::move(header_);
  }

 private:
  void ReadVersion() {
    const uint64_t magic_bytes = std::min<uint64_t>(kMagic.size(), in_.left());
    const std::string_view magic(reinterpret_cast<const char*>(in_.place()), magic_bytes);
    if (magic != kMagic) in_.Fail("magic", QuotedText(magic), "\"GGUF\"");
    in_.Take(kMagic.size(), "magic");
    header_.version = in_.Read<uint32_t>("version");
    if (header_.version == 2 || header_.version == 3) return;
    if (header_.version == 1)
      in_.Refuse("version", "1 (of 2023)", "2 or 3: convert the model anew");
    if (header_.version != 0 && (header_.version & 0xffffu) == 0) {
      in_.Refuse("byte order", "a big-endian file", "a little-endian one");
    }
    in_.Refuse("version", fmt::format("{}", header_.version), "2 or 3");
  }

  // Before anything is allocated for them.
  void CheckCount(const char* what, uint64_t count, uint64_t least_bytes, uint64_t most) const {
    if (count > in_.left() / least_bytes) {
      in_.Fail(what, fmt::format("{}", count),
               fmt::format("at most {}, for which the file's {} bytes have room",
                           in_.left() / least_bytes, file_.size()));
    }
    if (count > most) in_.Fail(what, fmt::format("{}", count), fmt::format("at most {}", most));
  }

  GgufType ReadType(const std::string& what) {
    const auto type = in_.Read<uint32_t>(what);
    if (type >= kNumGgufTypes) {
      in_.Fail(what, fmt::format("{}", type), fmt::format("0 to {}", kNumGgufTypes - 1));
    }
    return static_cast<GgufType>(type);
  }

  void CheckBools(const std::string& what, const std::byte* bytes, uint64_t count) const {
    for (uint64_t i = 0; i < count; ++i) {
      const auto value = static_cast<unsigned>(bytes[i]);
      if (value > 1) in_.Fail(what, fmt::format("a bool of {}", value), "0 or 1");
    }
  }

  void ReadPair(uint64_t index) {
    GgufPair pair;
    pair.key = in_.ReadName(fmt::format("key {}", index), limits::kGgufKeyBytes);
    const std::string key(pair.key);
    pair.type = ReadType(key + ", type");
    if (pair.type == GgufType::kArray) {
      ReadArray(key, pair);
    } else if (pair.type == GgufType::kString) {
      pair.data = in_.place();
      in_.ReadString(key);
    } else {
      pair.data = in_.Take(SizeOf(pair.type), key);
      if (pair.type == GgufType::kBool) CheckBools(key, pair.data, 1);
    }
    header_.pairs.push_back(pair);
  }

  void ReadArray(const std::string& key, GgufPair& pair) {
    pair.element_type = ReadType(key + ", element type");
    if (pair.element_type == GgufType::kArray) {
      in_.Refuse(key + ", element type", "an array of arrays", "an array of values");
    }
    pair.size = in_.Read<uint64_t>(key + ", count");
    pair.data = in_.place();
    const bool strings = pair.element_type == GgufType::kString;
    const uint64_t least = strings ? sizeof(uint64_t) : SizeOf(pair.element_type);
    if (pair.size > in_.left() / least) {
      in_.Fail(key + ", count", fmt::format("{}", pair.size),
               fmt::format("at most {}, for which the file's {} bytes have room",
                           in_.left() / least, file_.size()));
    }
    if (strings) {
      for (uint64_t i = 0; i < pair.size; ++i) {
        if (i % 65536 == 0) CancelPoint();
        SkipString(key, i);
      }
      return;
    }
    in_.Take(pair.size * least, key);
    if (pair.element_type == GgufType::kBool) CheckBools(key, pair.data, pair.size);
  }

  // An element of an array; its name is made for an error only.
  void SkipString(const std::string& key, uint64_t index) {
    uint64_t size = 0;
    if (in_.left() >= sizeof(size)) std::memcpy(&size, in_.place(), sizeof(size));
    if (in_.left() < sizeof(size) || size > in_.left() - sizeof(size)) {
      in_.ReadString(fmt::format("{}[{}]", key, index));  // Throws.
    }
    in_.Take(sizeof(size) + size, key);
  }

  void SortPairs() {
    std::vector<GgufPair>& pairs = header_.pairs;
    std::sort(pairs.begin(), pairs.end(),
              [](const GgufPair& a, const GgufPair& b) { return a.key < b.key; });
    for (size_t i = 1; i < pairs.size(); ++i) {
      if (pairs[i].key != pairs[i - 1].key) continue;
      in_.Fail(std::string(pairs[i].key), "the key twice", "each key once");
    }
  }

  uint64_t Alignment() const {
    const auto found = std::lower_bound(
        header_.pairs.begin(), header_.pairs.end(), std::string_view(kAlignmentKey),
        [](const GgufPair& pair, std::string_view key) { return pair.key < key; });
    if (found == header_.pairs.end() || found->key != kAlignmentKey) return kDefaultAlignment;
    const GgufValue value(path_, kAlignmentKey, found->type, found->element_type, found->size,
                          found->data);
    const int64_t alignment = value.AsInt(1, int64_t{1} << 31);
    if (!std::has_single_bit(static_cast<uint64_t>(alignment))) value.Fail("a power of two");
    return static_cast<uint64_t>(alignment);
  }

  void ReadTensor(uint64_t index) {
    GgufTensor tensor;
    tensor.name = in_.ReadName(fmt::format("name of tensor {}", index), limits::kTensorNameBytes);
    const std::string what = fmt::format("tensor '{}'", tensor.name);
    tensor.num_dims = in_.Read<uint32_t>(what);
    if (tensor.num_dims < 1 || tensor.num_dims > kMaxDims) {
      in_.Fail(what, fmt::format("{} dimensions", tensor.num_dims),
               fmt::format("1 to {}", kMaxDims));
    }
    for (uint32_t i = 0; i < tensor.num_dims; ++i) {
      tensor.sizes[i] = in_.Read<uint64_t>(what);
    }
    const auto code = in_.Read<uint32_t>(what);
    const std::optional<GgufTensorType> type = FindGgufTensorType(code);
    if (!type.has_value()) {
      in_.Refuse(what + ", type", DescribeForeignGgufType(code), GgufTensorTypeNames());
    }
    tensor.type = *type;
    SetSizes(what, tensor);
    offsets_.push_back(in_.Read<uint64_t>(what));
    header_.tensors.push_back(tensor);
  }

  std::string SizesText(const GgufTensor& tensor) const {
    std::string text = fmt::format("[{}", tensor.sizes[0]);
    for (uint32_t i = 1; i < tensor.num_dims; ++i) text += fmt::format(", {}", tensor.sizes[i]);
    return text + "]";
  }

  void SetSizes(const std::string& what, GgufTensor& tensor) const {
    const GgufTensorLayout& layout = LayoutOf(tensor.type);
    const auto block_values = static_cast<uint64_t>(layout.block_values);
    if (tensor.sizes[0] % block_values != 0) {
      in_.Fail(what + ", dimensions", SizesText(tensor),
               fmt::format("rows of whole blocks of {} values ({})", block_values, layout.name));
    }
    // Values first: a product of 0 modulo 2^64 is not 0.
    std::optional<uint64_t> values = 1;
    std::optional<uint64_t> rows = 1;
    for (uint32_t i = 0; i < tensor.num_dims; ++i) {
      if (tensor.sizes[i] == 0) in_.Fail(what + ", dimensions", SizesText(tensor), "1 and more");
      if (values) values = Multiply(*values, tensor.sizes[i]);
      if (rows && i > 0) rows = Multiply(*rows, tensor.sizes[i]);
    }
    std::optional<uint64_t> bytes;
    if (values) bytes = Multiply(*values / block_values, static_cast<uint64_t>(layout.block_bytes));
    constexpr auto kMost = static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
    if (!values || !rows || !bytes || *values > kMost || *bytes > kMost) {
      in_.Fail(what + ", dimensions", SizesText(tensor),
               fmt::format("a size within the file ({} bytes)", file_.size()));
    }
    tensor.cols = static_cast<int64_t>(tensor.sizes[0]);
    tensor.rows = static_cast<int64_t>(*rows);
    tensor.num_bytes = *bytes;
  }

  // Sorts tensors and their offsets by name.
  void SortTensors() {
    std::vector<uint32_t> order(header_.tensors.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<uint32_t>(i);
    std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
      return header_.tensors[a].name < header_.tensors[b].name;
    });
    std::vector<GgufTensor> tensors;
    std::vector<uint64_t> offsets;
    tensors.reserve(order.size());
    offsets.reserve(order.size());
    for (const uint32_t i : order) {
      if (!tensors.empty() && tensors.back().name == header_.tensors[i].name) {
        in_.Fail(fmt::format("tensor '{}'", tensors.back().name), "it twice", "each tensor once");
      }
      tensors.push_back(header_.tensors[i]);
      offsets.push_back(offsets_[i]);
    }
    header_.tensors = std::move(tensors);
    offsets_ = std::move(offsets);
  }

  void PlaceTensors() {
    const uint64_t alignment = Alignment();
    if (header_.tensors.empty()) return;
    // The position is below 2^63 and the alignment at most 2^31.
    const uint64_t data_begin = (in_.position() + alignment - 1) / alignment * alignment;
    if (data_begin > file_.size()) {
      in_.Fail(kAlignmentKey,
               fmt::format("{}, so that the data begin at byte {} of a file of {}", alignment,
                           data_begin, file_.size()),
               "data within the file");
    }
    const uint64_t data_bytes = file_.size() - data_begin;
    for (size_t i = 0; i < header_.tensors.size(); ++i) {
      GgufTensor& tensor = header_.tensors[i];
      const std::string what = fmt::format("tensor '{}', offset", tensor.name);
      if (offsets_[i] % alignment != 0) {
        in_.Fail(what, fmt::format("{}", offsets_[i]),
                 fmt::format("a multiple of {} ({})", alignment, kAlignmentKey));
      }
      if (offsets_[i] > data_bytes || tensor.num_bytes > data_bytes - offsets_[i]) {
        in_.Fail(
            what, fmt::format("{} bytes from {} on", tensor.num_bytes, offsets_[i]),
            fmt::format("an end within the {} bytes of data: is the file complete?", data_bytes));
      }
      tensor.data = file_.data() + data_begin + offsets_[i];
    }
    CheckOverlap();
  }

  void CheckOverlap() const {
    std::vector<const GgufTensor*> by_place;
    by_place.reserve(header_.tensors.size());
    for (const GgufTensor& tensor : header_.tensors) by_place.push_back(&tensor);
    std::sort(by_place.begin(), by_place.end(),
              [](const GgufTensor* a, const GgufTensor* b) { return a->data < b->data; });
    for (size_t i = 1; i < by_place.size(); ++i) {
      if (by_place[i]->data >= by_place[i - 1]->data + by_place[i - 1]->num_bytes) continue;
      in_.Fail(fmt::format("tensor '{}', offset", by_place[i]->name),
               fmt::format("bytes of tensor '{}'", by_place[i - 1]->name), "bytes of its own");
    }
  }

  const std::string& path_;
  std::span<const std::byte> file_;
  Reader in_;
  GgufHeader header_;
  std::vector<uint64_t> offsets_;  // Of header_.tensors.
};

}  // namespace

GgufHeader ParseGgufHeader(const std::string& path, std::span<const std::byte> file) {
  return HeaderParser(path, file).Parse();
}

}  // namespace pmkvq
