#include "pmkvq/engine/session_file.h"

#include <fmt/format.h>

#include <charconv>
#include <cstring>
#include <map>

#include "pmkvq/base/error.h"
#include "pmkvq/io/hash.h"
#include "pmkvq/io/json.h"
#include "pmkvq/io/safetensors.h"

namespace pmkvq {
namespace {

constexpr const char* kKind = "pmkvq session";
constexpr const char* kVersion = "1";
constexpr size_t kStepFields = 5;

using Views = std::map<std::string, TensorView>;

template <class T>
TensorView ViewOf(const std::vector<T>& values, Shape shape = {}) {
  if (shape.empty()) shape = {std::ssize(values)};
  return {reinterpret_cast<const std::byte*>(values.data()), DTypeOf<T>::value, std::move(shape)};
}

TensorView ViewOf(const std::vector<std::byte>& bytes) {
  return {bytes.data(), DType::kU8, {std::ssize(bytes)}};
}

TensorView ViewOf(const std::string& text) {
  return {reinterpret_cast<const std::byte*>(text.data()), DType::kU8, {std::ssize(text)}};
}

std::vector<uint8_t> BytesOf(const std::vector<PageWidths>& pages) {
  std::vector<uint8_t> bytes;
  for (const PageWidths& page : pages) {
    bytes.push_back(static_cast<uint8_t>(page.k));
    bytes.push_back(static_cast<uint8_t>(page.v));
  }
  return bytes;
}

std::string BlockName(size_t block, const char* part) {
  return fmt::format("block.{}.{}", block, part);
}

// Over names, shapes and data of all tensors, and the settings.
std::string HashOf(const Views& tensors, const std::string& settings) {
  Hash128 hash;
  hash.Update(settings);
  for (const auto& [name, view] : tensors) {
    hash.Update(fmt::format("{} {} {}\n", name, NameOf(view.dtype), ToString(view.shape)));
    hash.Update(view.data, view.num_bytes());
  }
  return hash.HexDigest();
}

std::string SettingsText(const StoredSession& session) {
  const SequenceImage& image = session.image;
  JsonWriter json;
  json.BeginObject();
  json.Key("model_identity").String(session.model_identity);
  json.Key("num_tokens").Int(image.num_tokens);
  json.Key("peak_bytes").Int(image.peak_bytes);
  json.Key("narrowed_bytes").Int(image.narrowed_bytes);
  json.Key("next_is_planned").Bool(image.next_is_planned);
  json.Key("next_opened_at").Int(image.next_opened_at);
  json.Key("num_blocks").Int(std::ssize(image.blocks));
  std::vector<int64_t> freed;
  for (const SequenceImage::Block& block : image.blocks) freed.push_back(block.num_freed);
  json.Key("num_freed").Array(freed);
  json.Key("settings").BeginArray();
  for (const ImageSetting& setting : image.settings) {
    json.BeginObject();
    json.Key("name").String(setting.name).Key("value").String(setting.value);
    json.EndObject();
  }
  json.EndArray().EndObject();
  return json.text();
}

// Reads the tensors of a file, and in the end knows whether there are more.
class TensorReader {
 public:
  explicit TensorReader(const SafetensorsFile& file) : file_(file) {}

  // Values of a tensor of this type and rank; `columns`: of rank 2.
  template <class T>
  std::vector<T> Read(const std::string& name, int64_t columns = 0) {
    file_.RefuseForeign(name);
    const TensorView* view = file_.Find(name);
    if (view == nullptr) throw InvalidInput(file_.path(), name + ": missing, expected a tensor");
    const bool fits = view->dtype == DTypeOf<T>::value &&
                      (columns == 0 ? view->shape.size() == 1
                                    : view->shape.size() == 2 && view->shape[1] == columns);
    if (!fits) {
      throw InvalidInput(
          file_.path(), fmt::format("{}: found {} {}, expected {} [n{}]", name, NameOf(view->dtype),
                                    ToString(view->shape), NameOf(DTypeOf<T>::value),
                                    columns == 0 ? "" : fmt::format(", {}", columns)));
    }
    std::vector<T> values(static_cast<size_t>(view->num_elements()));
    if (!values.empty()) std::memcpy(values.data(), view->data, view->num_bytes());
    ++num_read_;
    return values;
  }

  std::vector<std::byte> ReadBytes(const std::string& name) {
    const auto values = Read<uint8_t>(name);
    std::vector<std::byte> bytes(values.size());
    if (!bytes.empty()) std::memcpy(bytes.data(), values.data(), values.size());
    return bytes;
  }

  std::vector<PageWidths> ReadWidths(const std::string& name) {
    const auto values = Read<uint8_t>(name, 2);
    std::vector<PageWidths> pages(values.size() / 2);
    for (size_t i = 0; i < pages.size(); ++i) pages[i] = {values[2 * i], values[2 * i + 1]};
    return pages;
  }

  void CheckAllRead() const {
    if (num_read_ == file_.tensors().size() && file_.foreign_tensors().empty()) return;
    throw InvalidInput(
        file_.path(),
        fmt::format("found {} tensors, expected {}",
                    file_.tensors().size() + file_.foreign_tensors().size(), num_read_));
  }

 private:
  const SafetensorsFile& file_;
  size_t num_read_ = 0;
};

// The result is the file's.
const std::string& MetadataOf(const SafetensorsFile& file, const char* key) {
  const auto found = file.metadata().find(key);
  if (found == file.metadata().end()) {
    throw InvalidInput(file.path(),
                       std::string(key) + ": missing; expected a session that pmkvq has saved");
  }
  return found->second;
}

}  // namespace

void WriteSession(const std::string& path, const StoredSession& session) {
  const SequenceImage& image = session.image;
  std::vector<std::vector<uint8_t>> widths;  // Two of each block, for the views.
  std::vector<int64_t> steps;
  Views tensors;
  widths.reserve(2 * image.blocks.size());
  const auto add_widths = [&](size_t block, const char* part,
                              const std::vector<PageWidths>& pages) {
    widths.push_back(BytesOf(pages));
    tensors[BlockName(block, part)] = ViewOf(widths.back(), {std::ssize(pages), 2});
  };
  for (size_t i = 0; i < image.blocks.size(); ++i) {
    const SequenceImage::Block& block = image.blocks[i];
    add_widths(i, "widths", block.pages);
    add_widths(i, "next_widths", block.next_pages);
    tensors[BlockName(i, "keys")] = ViewOf(block.bytes[0]);
    tensors[BlockName(i, "values")] = ViewOf(block.bytes[1]);
  }
  for (const ImageAheadStep& step : image.next_steps) {
    steps.insert(steps.end(), {step.layer, step.page, step.side, step.bits, step.tokens_before});
  }
  tensors["ahead"] = ViewOf(steps, {std::ssize(image.next_steps), kStepFields});
  tensors["tokens"] = ViewOf(session.tokens);
  tensors["note"] = ViewOf(session.note);
  const std::string settings = SettingsText(session);
  WriteSafetensors(path, tensors,
                   {{"format", kKind},
                    {"version", kVersion},
                    {"settings", settings},
                    {"hash", HashOf(tensors, settings)}});
}

StoredSession ReadSession(const std::string& path, const std::string& model_identity) {
  const SafetensorsFile file = SafetensorsFile::Open(path);
  const auto expect = [&](const char* field, const std::string& found, const std::string& expected,
                          const char* remedy) {
    if (found == expected) return;
    throw InvalidInput(
        path, fmt::format("{}: found \"{}\", expected \"{}\"{}", field, found, expected, remedy));
  };
  expect("format", MetadataOf(file, "format"), kKind, "");
  expect("version", MetadataOf(file, "version"), kVersion, "");
  const std::string& settings = MetadataOf(file, "settings");
  expect("hash", MetadataOf(file, "hash"), HashOf(file.tensors(), settings),
         "; the file was changed after it was saved");

  const JsonValue json = JsonValue::Parse(settings, path + ": settings");
  StoredSession session;
  session.model_identity = json.At("model_identity").AsString();
  expect("model_identity", session.model_identity, model_identity,
         "; the session belongs to another model");
  SequenceImage& image = session.image;
  image.num_tokens = json.At("num_tokens").AsInt();
  image.peak_bytes = json.At("peak_bytes").AsInt();
  image.narrowed_bytes = json.At("narrowed_bytes").AsInt();
  image.next_is_planned = json.At("next_is_planned").AsBool();
  image.next_opened_at = json.At("next_opened_at").AsInt();
  const JsonValue list = json.At("settings");
  for (size_t i = 0; i < list.size(); ++i) {
    image.settings.push_back({list.At(i).At("name").AsString(), list.At(i).At("value").AsString()});
  }

  TensorReader reader(file);
  session.tokens = reader.Read<int32_t>("tokens");
  const auto note = reader.Read<uint8_t>("note");
  session.note.assign(note.begin(), note.end());
  const auto steps = reader.Read<int64_t>("ahead", kStepFields);
  for (size_t i = 0; i < steps.size(); i += kStepFields) {
    image.next_steps.push_back({steps[i], steps[i + 1], steps[i + 2], steps[i + 3], steps[i + 4]});
  }
  const int64_t num_blocks = json.At("num_blocks").AsInt(0, std::ssize(file.tensors()));
  for (int64_t i = 0; i < num_blocks; ++i) {
    const auto block = static_cast<size_t>(i);
    image.blocks.push_back({reader.ReadWidths(BlockName(block, "widths")),
                            json.At("num_freed").At(block).AsInt(),
                            reader.ReadWidths(BlockName(block, "next_widths")),
                            {reader.ReadBytes(BlockName(block, "keys")),
                             reader.ReadBytes(BlockName(block, "values"))}});
  }
  reader.CheckAllRead();
  if (std::ssize(session.tokens) != image.num_tokens) {
    throw InvalidInput(path, fmt::format("tokens: found {}, expected {}, as many as are stored",
                                         session.tokens.size(), image.num_tokens));
  }
  return session;
}

}  // namespace pmkvq
