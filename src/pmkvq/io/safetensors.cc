#include "pmkvq/io/safetensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <optional>
#include <tuple>
#include <utility>

#include "pmkvq/base/error.h"
#include "pmkvq/io/file.h"
#include "pmkvq/io/json.h"
#include "pmkvq/io/limits.h"

namespace pmkvq {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors data is little-endian");

constexpr uint64_t kPrefixBytes = 8;
constexpr const char* kMetadataKey = "__metadata__";

constexpr DType kAllDTypes[] = {DType::kF32, DType::kF16, DType::kBF16, DType::kF64, DType::kI8,
                                DType::kU8,  DType::kI16, DType::kU16,  DType::kI32, DType::kU32,
                                DType::kI64, DType::kU64, DType::kBool};

std::optional<DType> FindDType(std::string_view name) {
  for (const DType dtype : kAllDTypes) {
    if (NameOf(dtype) == name) return dtype;
  }
  return std::nullopt;
}

// Bits of one value of the types that we do not compute with; 0 for a type that is not known here.
int64_t ForeignBits(std::string_view name) {
  if (name == "C64") return 64;
  if (name.starts_with("F8_")) return 8;
  if (name.starts_with("F6_")) return 6;
  if (name == "F4") return 4;
  return 0;
}

// A name that the format may get one day: "I4", "BF8_X", ...
bool LooksLikeDType(std::string_view name) {
  constexpr size_t kMaxNameBytes = 16;
  if (name.empty() || name.size() > kMaxNameBytes || name[0] < 'A' || name[0] > 'Z') return false;
  return std::all_of(name.begin(), name.end(), [](char c) {
    return (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
  });
}

// Where one tensor lies, in bytes from the start of the data.
struct Extent {
  uint64_t begin = 0;
  uint64_t end = 0;
  const std::string* name = nullptr;  // In the header that is being made.
};

class HeaderParser {
 public:
  HeaderParser(const std::string& path, const std::byte* data, uint64_t data_bytes)
      : path_(path), data_(data), data_bytes_(data_bytes) {}

  SafetensorsHeader Parse(std::string_view text) {
    JsonLimits json_limits;
    json_limits.max_bytes = limits::kHeaderBytes;
    const JsonValue json = JsonValue::Parse(text, path_, json_limits);
    if (!json.IsObject()) json.Fail("an object");
    if (json.size() > limits::kTensors) {
      throw InvalidInput(path_, fmt::format("tensors: found {}, expected at most {}", json.size(),
                                            limits::kTensors));
    }
    extents_.reserve(json.size());
    json.ForEachMember([&](std::string_view name, const JsonValue& value) {
      if (name == kMetadataKey) {
        ParseMetadata(value);
      } else {
        ParseTensor(std::string(name), value);
      }
    });
    CheckCoverage();
    return std::move(header_);
  }

 private:
  [[noreturn]] void Fail(const std::string& name, const char* field, const std::string& found,
                         const std::string& expected) const {
    throw InvalidInput(
        path_, fmt::format("tensor '{}', {}: found {}, expected {}", name, field, found, expected));
  }

  void ParseMetadata(const JsonValue& json) {
    if (json.size() > limits::kMetadataEntries) {
      json.Fail(fmt::format("at most {} entries", limits::kMetadataEntries));
    }
    json.ForEachMember([&](std::string_view key, const JsonValue& value) {
      header_.metadata.emplace(key, value.AsStringView());
    });
  }

  void ParseTensor(const std::string& name, const JsonValue& json) {
    if (name.size() > limits::kTensorNameBytes) {
      throw InvalidInput(path_, fmt::format("tensor name: found {} bytes, expected at most {}",
                                            name.size(), limits::kTensorNameBytes));
    }
    if (!json.IsObject()) Fail(name, "entry", Quoted(json), "an object");
    const JsonValue type = json.Find("dtype");
    const std::string_view type_name = type.IsString() ? type.AsStringView() : "";
    const std::optional<DType> dtype = FindDType(type_name);
    if (!dtype && !LooksLikeDType(type_name)) FailDType(name, type);
    Extent extent = ParseOffsets(name, json.Find("data_offsets"));
    const uint64_t found = extent.end - extent.begin;
    Shape shape;
    const int64_t bits = dtype ? static_cast<int64_t>(8 * SizeOf(*dtype)) : ForeignBits(type_name);
    const uint64_t num_bytes = ParseShape(name, json.Find("shape"), bits, found, &shape);
    if (found != num_bytes) {
      Fail(name, "data_offsets", fmt::format("{} bytes", found),
           fmt::format("{} bytes for {} {}", num_bytes, type_name, ToString(shape)));
    }
    if (dtype) {
      TensorView view;
      view.dtype = *dtype;
      view.shape = std::move(shape);
      // Integer arithmetic because `data_` may be null.
      view.data = reinterpret_cast<const std::byte*>(reinterpret_cast<uintptr_t>(data_) +
                                                     static_cast<uintptr_t>(extent.begin));
      extent.name = &header_.tensors.emplace(name, std::move(view)).first->first;
    } else {
      const auto* data = reinterpret_cast<const std::byte*>(reinterpret_cast<uintptr_t>(data_) +
                                                            static_cast<uintptr_t>(extent.begin));
      ForeignTensor tensor{std::string(type_name), std::move(shape), found, data};
      extent.name = &header_.foreign_tensors.emplace(name, std::move(tensor)).first->first;
    }
    extents_.push_back(extent);
  }

  static std::string Quoted(const JsonValue& json) {
    constexpr size_t kMaxQuotedBytes = 80;
    if (json.size() > kMaxQuotedBytes) return fmt::format("{} elements", json.size());
    std::string text = json.Dump();
    return text.size() <= kMaxQuotedBytes ? text : fmt::format("{} bytes of JSON", text.size());
  }

  [[noreturn]] void FailDType(const std::string& name, const JsonValue& json) const {
    std::string known;
    for (const DType each : kAllDTypes) known += fmt::format(" {}", NameOf(each));
    Fail(name, "dtype", Quoted(json), "one of" + known);
  }

  // Returns the number of bytes by `bits` a value; `found_bytes` where `bits` is 0 (not known).
  uint64_t ParseShape(const std::string& name, const JsonValue& json, int64_t bits,
                      uint64_t found_bytes, Shape* shape) const {
    const auto fail = [&] {
      Fail(name, "shape", Quoted(json),
           fmt::format("an array of at most {} sizes >= 0 whose product fits the file",
                       limits::kTensorRank));
    };
    if (!json.IsArray() || json.size() > limits::kTensorRank) fail();
    // A dimension of 0 must not hide an overflow of the others: it is left out of this product.
    int64_t product = std::max<int64_t>(bits, 1);
    bool empty = false;
    shape->reserve(json.size());
    for (size_t i = 0; i < json.size(); ++i) {
      const JsonValue element = json.At(i);
      if (!element.IsInteger() || element.AsInt() < 0) fail();
      const int64_t dim = element.AsInt();
      shape->push_back(dim);
      empty = empty || dim == 0;
      if (dim != 0 && __builtin_mul_overflow(product, dim, &product)) fail();
    }
    if (bits == 0) return found_bytes;
    if (empty) return 0;
    if (product % 8 != 0) fail();
    return static_cast<uint64_t>(product / 8);
  }

  Extent ParseOffsets(const std::string& name, const JsonValue& json) const {
    const auto fail = [&] {
      Fail(name, "data_offsets", Quoted(json),
           fmt::format("[begin, end] with 0 <= begin <= end <= {} (data bytes in the file)",
                       data_bytes_));
    };
    if (!json.IsArray() || json.size() != 2) fail();
    if (!json.At(0).IsInteger() || !json.At(1).IsInteger()) fail();
    const int64_t begin = json.At(0).AsInt();
    const int64_t end = json.At(1).AsInt();
    if (begin < 0 || end < begin || static_cast<uint64_t>(end) > data_bytes_) fail();
    return {static_cast<uint64_t>(begin), static_cast<uint64_t>(end), nullptr};
  }

  // Every data byte belongs to exactly one tensor.
  void CheckCoverage() {
    std::sort(extents_.begin(), extents_.end(), [](const Extent& a, const Extent& b) {
      return std::tie(a.begin, a.end, *a.name) < std::tie(b.begin, b.end, *b.name);
    });
    uint64_t covered = 0;
    for (const Extent& extent : extents_) {
      if (extent.begin != covered) {
        Fail(*extent.name, "data_offsets", fmt::format("begin {}", extent.begin),
             fmt::format("{} ({})", covered,
                         extent.begin < covered ? "it overlaps the tensor before it"
                                                : "there is a gap before it"));
      }
      covered = extent.end;
    }
    if (covered != data_bytes_) {
      throw InvalidInput(path_, fmt::format("data: found {} bytes, expected {} by the header",
                                            data_bytes_, covered));
    }
  }

  const std::string& path_;
  const std::byte* data_;
  uint64_t data_bytes_;
  SafetensorsHeader header_;
  std::vector<Extent> extents_;
};

}  // namespace

SafetensorsHeader ParseSafetensorsHeader(const std::string& path, std::string_view header,
                                         const std::byte* data, uint64_t data_bytes) {
  return HeaderParser(path, data, data_bytes).Parse(header);
}

struct SafetensorsFile::Impl {
  std::string path;
  std::optional<MappedFile> file;  // None for tensors in memory.
  SafetensorsHeader header;
  std::vector<Tensor> copies;  // Of tensors without an aligned place in a file.

  void CopyMisaligned() {
    for (auto& [name, view] : header.tensors) {
      if (reinterpret_cast<uintptr_t>(view.data) % SizeOf(view.dtype) == 0) continue;
      Tensor& copy = copies.emplace_back(view.dtype, view.shape);
      std::memcpy(copy.data(), view.data, view.num_bytes());
      view.data = copy.data();
    }
  }
};

SafetensorsFile SafetensorsFile::Open(const std::string& path) {
  MappedFile file = MappedFile::Open(path);
  const uint64_t size = file.size();
  if (size < kPrefixBytes) {
    throw InvalidInput(
        path, fmt::format("file size: found {} bytes, expected at least {}", size, kPrefixBytes));
  }
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, file.data(), kPrefixBytes);
  const uint64_t limit = std::min(size - kPrefixBytes, limits::kHeaderBytes);
  if (header_bytes > limit) {
    throw InvalidInput(path, fmt::format("header length: found {} bytes, expected at most {} in a "
                                         "file of {} bytes",
                                         header_bytes, limit, size));
  }
  const std::string_view text(reinterpret_cast<const char*>(file.data()) + kPrefixBytes,
                              static_cast<size_t>(header_bytes));
  SafetensorsHeader header = ParseSafetensorsHeader(
      path, text, file.data() + kPrefixBytes + header_bytes, size - kPrefixBytes - header_bytes);
  file.DropPages(file.data(), kPrefixBytes + header_bytes);
  auto impl = std::unique_ptr<Impl>(new Impl{path, std::move(file), std::move(header), {}});
  impl->CopyMisaligned();
  return SafetensorsFile(std::move(impl));
}

SafetensorsFile SafetensorsFile::FromMemory(const std::string& name,
                                            std::map<std::string, Tensor> tensors) {
  auto impl = std::make_unique<Impl>();
  impl->path = name;
  impl->copies.reserve(tensors.size());  // Views stay where they are.
  for (auto& [tensor_name, tensor] : tensors) {
    impl->copies.push_back(std::move(tensor));
    impl->header.tensors.emplace(tensor_name, impl->copies.back().view());
  }
  return SafetensorsFile(std::move(impl));
}

SafetensorsFile::SafetensorsFile(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
SafetensorsFile::SafetensorsFile(SafetensorsFile&&) noexcept = default;
SafetensorsFile& SafetensorsFile::operator=(SafetensorsFile&&) noexcept = default;
SafetensorsFile::~SafetensorsFile() = default;

void SafetensorsFile::DropPages(const TensorView& tensor) const {
  if (impl_->file.has_value()) impl_->file->DropPages(tensor.data, tensor.num_bytes());
}

const std::string& SafetensorsFile::path() const { return impl_->path; }

const std::map<std::string, TensorView>& SafetensorsFile::tensors() const {
  return impl_->header.tensors;
}

const std::map<std::string, std::string>& SafetensorsFile::metadata() const {
  return impl_->header.metadata;
}

const std::map<std::string, ForeignTensor>& SafetensorsFile::foreign_tensors() const {
  return impl_->header.foreign_tensors;
}

void SafetensorsFile::RefuseForeign(const std::string& name) const {
  const auto it = foreign_tensors().find(name);
  if (it == foreign_tensors().end()) return;
  throw Unsupported(path(), fmt::format("tensor '{}': found {} {}, expected F32, F16 or BF16: "
                                        "weights of this type are not supported",
                                        name, it->second.dtype, ToString(it->second.shape)));
}

const TensorView* SafetensorsFile::Find(const std::string& name) const {
  const auto it = tensors().find(name);
  return it == tensors().end() ? nullptr : &it->second;
}

const TensorView& SafetensorsFile::Get(const std::string& name, DType dtype,
                                       const Shape& shape) const {
  RefuseForeign(name);
  const TensorView* view = Find(name);
  const std::string found = view == nullptr
                                ? "nothing"
                                : fmt::format("{} {}", NameOf(view->dtype), ToString(view->shape));
  if (view == nullptr || view->dtype != dtype || view->shape != shape) {
    throw InvalidInput(path(), fmt::format("tensor '{}': found {}, expected {} {}", name, found,
                                           NameOf(dtype), ToString(shape)));
  }
  return *view;
}

void WriteSafetensors(const std::string& path, const std::map<std::string, TensorView>& tensors,
                      const std::map<std::string, std::string>& metadata) {
  std::vector<const std::pair<const std::string, TensorView>*> order;
  for (const auto& entry : tensors) order.push_back(&entry);
  std::stable_sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
    return SizeOf(a->second.dtype) > SizeOf(b->second.dtype);
  });

  JsonWriter json;
  json.BeginObject();
  if (!metadata.empty()) {
    json.Key(kMetadataKey).BeginObject();
    for (const auto& [key, value] : metadata) json.Key(key).String(value);
    json.EndObject();
  }
  int64_t offset = 0;
  for (const auto* entry : order) {
    const auto& [name, view] = *entry;
    const int64_t end = offset + static_cast<int64_t>(view.num_bytes());
    json.Key(name).BeginObject();
    json.Key("dtype").String(NameOf(view.dtype)).Key("shape").Array(view.shape);
    json.Key("data_offsets").Array(std::vector<int64_t>{offset, end}).EndObject();
    offset = end;
  }
  std::string header = json.EndObject().text();
  const size_t unpadded = kPrefixBytes + header.size();
  header.append((unpadded + kAlignment - 1) / kAlignment * kAlignment - unpadded, ' ');

  AtomicFileWriter writer(path);
  const uint64_t header_bytes = header.size();
  writer.Append(&header_bytes, kPrefixBytes);
  writer.Append(header.data(), header.size());
  for (const auto* entry : order) writer.Append(entry->second.data, entry->second.num_bytes());
  writer.Commit();
}

}  // namespace pmkvq
