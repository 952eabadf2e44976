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

namespace pmkvq {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors data is little-endian");

constexpr uint64_t kPrefixBytes = 8;
constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // The limit of the reference implementation.
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

// Where one tensor lies, in bytes from the start of the data.
struct Extent {
  uint64_t begin = 0;
  uint64_t end = 0;
  std::string name;
};

class HeaderParser {
 public:
  HeaderParser(const std::string& path, const std::byte* data, uint64_t data_bytes)
      : path_(path), data_(data), data_bytes_(data_bytes) {}

  SafetensorsHeader Parse(std::string_view text) {
    const JsonValue json = JsonValue::Parse(text, path_);
    if (!json.IsObject()) json.Fail("an object");
    for (const std::string& name : json.Keys()) {
      if (name == kMetadataKey) {
        ParseMetadata(json.At(name));
      } else {
        ParseTensor(name, json.At(name));
      }
    }
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
    for (const std::string& key : json.Keys()) header_.metadata[key] = json.At(key).AsString();
  }

  void ParseTensor(const std::string& name, const JsonValue& json) {
    if (!json.IsObject()) Fail(name, "entry", json.Dump(), "an object");
    TensorView view;
    view.dtype = ParseDType(name, json.Find("dtype"));
    const uint64_t num_bytes = ParseShape(name, json.Find("shape"), view);
    const Extent extent = ParseOffsets(name, json.Find("data_offsets"));
    if (extent.end - extent.begin != num_bytes) {
      Fail(name, "data_offsets", fmt::format("{} bytes", extent.end - extent.begin),
           fmt::format("{} bytes for {} {}", num_bytes, NameOf(view.dtype), ToString(view.shape)));
    }
    // Integer arithmetic because `data_` may be null.
    view.data = reinterpret_cast<const std::byte*>(reinterpret_cast<uintptr_t>(data_) +
                                                   static_cast<uintptr_t>(extent.begin));
    header_.tensors.emplace(name, std::move(view));
    extents_.push_back(extent);
  }

  DType ParseDType(const std::string& name, const JsonValue& json) const {
    const std::optional<DType> dtype = json.IsString() ? FindDType(json.AsString()) : std::nullopt;
    if (!dtype) {
      std::string known;
      for (const DType each : kAllDTypes) known += fmt::format(" {}", NameOf(each));
      Fail(name, "dtype", json.Dump(), "one of" + known);
    }
    return *dtype;
  }

  // Returns the number of bytes.
  uint64_t ParseShape(const std::string& name, const JsonValue& json, TensorView& view) const {
    const auto fail = [&] {
      Fail(name, "shape", json.Dump(), "an array of sizes >= 0 whose product fits the file");
    };
    if (!json.IsArray()) fail();
    // A dimension of 0 must not hide an overflow of the others: it is left out of this product.
    int64_t product = static_cast<int64_t>(SizeOf(view.dtype));
    bool empty = false;
    for (size_t i = 0; i < json.size(); ++i) {
      const JsonValue element = json.At(i);
      if (!element.IsInteger() || element.AsInt() < 0) fail();
      const int64_t dim = element.AsInt();
      view.shape.push_back(dim);
      empty = empty || dim == 0;
      if (dim != 0 && __builtin_mul_overflow(product, dim, &product)) fail();
    }
    return empty ? 0 : static_cast<uint64_t>(product);
  }

  Extent ParseOffsets(const std::string& name, const JsonValue& json) const {
    const auto fail = [&] {
      Fail(name, "data_offsets", json.Dump(),
           fmt::format("[begin, end] with 0 <= begin <= end <= {} (data bytes in the file)",
                       data_bytes_));
    };
    if (!json.IsArray() || json.size() != 2) fail();
    if (!json.At(0).IsInteger() || !json.At(1).IsInteger()) fail();
    const int64_t begin = json.At(0).AsInt();
    const int64_t end = json.At(1).AsInt();
    if (begin < 0 || end < begin || static_cast<uint64_t>(end) > data_bytes_) fail();
    return {static_cast<uint64_t>(begin), static_cast<uint64_t>(end), name};
  }

  // Every data byte belongs to exactly one tensor.
  void CheckCoverage() {
    std::sort(extents_.begin(), extents_.end(), [](const Extent& a, const Extent& b) {
      return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
    });
    uint64_t covered = 0;
    for (const Extent& extent : extents_) {
      if (extent.begin != covered) {
        Fail(extent.name, "data_offsets", fmt::format("begin {}", extent.begin),
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
  const uint64_t limit = std::min(size - kPrefixBytes, kMaxHeaderBytes);
  if (header_bytes > limit) {
    throw InvalidInput(path, fmt::format("header length: found {} bytes, expected at most {} in a "
                                         "file of {} bytes",
                                         header_bytes, limit, size));
  }
  const std::string_view text(reinterpret_cast<const char*>(file.data()) + kPrefixBytes,
                              static_cast<size_t>(header_bytes));
  SafetensorsHeader header = ParseSafetensorsHeader(
      path, text, file.data() + kPrefixBytes + header_bytes, size - kPrefixBytes - header_bytes);
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

const TensorView* SafetensorsFile::Find(const std::string& name) const {
  const auto it = tensors().find(name);
  return it == tensors().end() ? nullptr : &it->second;
}

const TensorView& SafetensorsFile::Get(const std::string& name, DType dtype,
                                       const Shape& shape) const {
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
