#include "pmkvq/io/json.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <deque>
#include <limits>
#include <nlohmann/json.hpp>

#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"
#include "pmkvq/io/file.h"
#include "pmkvq/io/json_text.h"
#include "pmkvq/io/utf8.h"

namespace pmkvq {

// Nodes know their parent instead of their path, so that a path costs only when an error is made.
struct JsonValue::Node {
  Kind kind = Kind::kNull;
  bool missing = false;  // Find() found nothing.
  bool boolean = false;
  size_t index = 0;              // In the parent's `children`.
  const Node* parent = nullptr;  // Null: the top-level value.
  int64_t integer = 0;
  double number = 0;
  std::string name;  // Key in the parent object; the source of the text at the top level.
  std::string text;  // Of a string.
  std::vector<const Node*> children;  // Array elements or object members, in file order.
  std::vector<const Node*> by_name;   // Members sorted by name.

  const Node* FindMember(const std::string& key) const {
    const auto it =
        std::lower_bound(by_name.begin(), by_name.end(), key,
                         [](const Node* node, const std::string& k) { return node->name < k; });
    return it != by_name.end() && (*it)->name == key ? *it : nullptr;
  }

  struct Document;
  struct Missing;
  class Builder;
};

// Owns every node of one text. Destruction is flat, whatever the nesting.
struct JsonValue::Node::Document {
  std::deque<Node> nodes;
};

// What Find() answers for a key that is not there; keeps the document alive for the path.
struct JsonValue::Node::Missing {
  Node node;
  std::shared_ptr<const Node> parent;
};

namespace {

constexpr size_t kMaxDepth = 128;
constexpr size_t kMaxQuotedBytes = 80;

std::string Cut(std::string text) {
  if (text.size() <= kMaxQuotedBytes) return text;
  text.resize(ValidUtf8Prefix(std::string_view(text).substr(0, kMaxQuotedBytes)));
  return text + "...";
}

// A member name as it appears in a path: as it is when plain, else as a JSON string.
std::string QuoteName(const std::string& name) {
  const auto plain = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '-' || c == '.' || c == '/';
  };
  if (!name.empty() && std::all_of(name.begin(), name.end(), plain)) return Cut(name);
  std::string quoted;
  internal::AppendJsonString(quoted, name);
  return Cut(quoted);
}

// The library's message without its "[json.exception...] " and "parse error at ...: " heads and
// without bytes that would break the line.
std::string ParserMessage(const char* what) {
  std::string_view text(what);
  for (const std::string_view head : {"] ", "column "}) {
    const size_t at = text.find(head);
    if (at != std::string_view::npos) text.remove_prefix(at + head.size());
  }
  const size_t colon = text.find(": ");
  if (colon != std::string_view::npos && colon < 12) text.remove_prefix(colon + 2);
  std::string message;
  for (const char c : text) message += c >= ' ' && c <= '~' ? c : '?';
  return Cut(message);
}

}  // namespace

// Receives the parser's events. The parser keeps its own stack on the heap and so do we: nesting
// cannot overflow the call stack, and kMaxDepth bounds the recursion of Dump().
class JsonValue::Node::Builder : public nlohmann::json_sax<nlohmann::json> {
 public:
  Builder(Document& document, const std::string& source) : document_(document), source_(source) {}

  bool null() override {
    Add(Kind::kNull);
    return true;
  }
  bool boolean(bool value) override {
    Add(Kind::kBool).boolean = value;
    return true;
  }
  bool number_integer(number_integer_t value) override {
    Add(Kind::kInteger).integer = value;
    return true;
  }
  bool number_unsigned(number_unsigned_t value) override {
    if (value <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      Add(Kind::kInteger).integer = static_cast<int64_t>(value);
    } else {
      Add(Kind::kNumber).number = static_cast<double>(value);
    }
    return true;
  }
  bool number_float(number_float_t value, const string_t&) override {
    Add(Kind::kNumber).number = value;
    return true;
  }
  bool string(string_t& value) override {
    Add(Kind::kString).text = std::move(value);
    return true;
  }
  bool binary(binary_t&) override { return false; }  // Not part of JSON text.
  bool start_object(std::size_t) override { return Push(Kind::kObject); }
  bool start_array(std::size_t) override { return Push(Kind::kArray); }
  bool key(string_t& value) override {
    key_ = std::move(value);
    return true;
  }
  bool end_array() override {
    open_.pop_back();
    return true;
  }
  bool end_object() override {
    Node& object = *open_.back();
    open_.pop_back();
    object.by_name = object.children;
    std::sort(object.by_name.begin(), object.by_name.end(),
              [](const Node* a, const Node* b) { return a->name < b->name; });
    const auto twice =
        std::adjacent_find(object.by_name.begin(), object.by_name.end(),
                           [](const Node* a, const Node* b) { return a->name == b->name; });
    if (twice != object.by_name.end()) {
      throw InvalidInput(source_, fmt::format("{}: found twice, expected every key once",
                                              QuoteName((*twice)->name)));
    }
    return true;
  }
  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::detail::exception& error) override {
    throw InvalidInput(source_, fmt::format("not valid JSON at byte {}: {}", position,
                                            ParserMessage(error.what())));
  }

 private:
  Node& Add(Kind added) {
    Node& node = document_.nodes.emplace_back();
    node.kind = added;
    if (open_.empty()) {
      node.name = source_;
      return node;
    }
    Node& container = *open_.back();
    node.parent = &container;
    node.index = container.children.size();
    if (container.kind == Kind::kObject) node.name = std::move(key_);
    container.children.push_back(&node);
    return node;
  }
  bool Push(Kind opened) {
    if (open_.size() == kMaxDepth) {
      throw InvalidInput(source_,
                         fmt::format("nested deeper than the {} levels allowed", kMaxDepth));
    }
    open_.push_back(&Add(opened));
    return true;
  }

  Document& document_;
  const std::string& source_;
  std::vector<Node*> open_;
  std::string key_;
};

JsonValue::JsonValue(std::shared_ptr<const Node> node) : node_(std::move(node)) {}

JsonValue JsonValue::Parse(std::string_view text, const std::string& source) {
  // The parser would take a NUL byte for the end of the text and ignore what follows.
  const size_t nul = text.find('\0');
  if (nul != std::string_view::npos) {
    throw InvalidInput(source, fmt::format("not valid JSON at byte {}: NUL byte", nul));
  }
  auto document = std::make_shared<Node::Document>();
  Node::Builder builder(*document, source);
  nlohmann::json::sax_parse(text.begin(), text.end(), &builder);
  return JsonValue(std::shared_ptr<const Node>(document, &document->nodes.front()));
}

JsonValue JsonValue::ParseFile(const std::string& path) { return Parse(ReadFile(path), path); }

JsonValue::Kind JsonValue::kind() const { return node_->kind; }

bool JsonValue::AsBool() const {
  if (!IsBool()) Fail("true or false");
  return node_->boolean;
}

int64_t JsonValue::AsInt() const {
  if (!IsInteger()) Fail("an integer");
  return node_->integer;
}

int64_t JsonValue::AsInt(int64_t minimum, int64_t maximum) const {
  if (!IsInteger() || node_->integer < minimum || node_->integer > maximum) {
    Fail(fmt::format("an integer from {} to {}", minimum, maximum));
  }
  return node_->integer;
}

double JsonValue::AsDouble() const {
  if (IsInteger()) return static_cast<double>(node_->integer);
  if (kind() != Kind::kNumber) Fail("a number");
  return node_->number;
}

std::string JsonValue::AsString() const {
  if (!IsString()) Fail("a string");
  return node_->text;
}

bool JsonValue::Has(const std::string& key) const { return !Find(key).IsNull(); }

JsonValue JsonValue::At(const std::string& key) const {
  if (!IsObject()) Fail("an object");
  JsonValue value = Find(key);
  if (value.node_->missing) value.Fail("a value");
  return value;
}

JsonValue JsonValue::Find(const std::string& key) const {
  if (!IsObject() && !IsNull()) Fail("an object");
  if (const Node* member = node_->FindMember(key)) {
    return JsonValue(std::shared_ptr<const Node>(node_, member));
  }
  auto missing = std::make_shared<Node::Missing>();
  missing->parent = node_;
  missing->node.missing = true;
  missing->node.parent = node_.get();
  missing->node.name = key;
  return JsonValue(std::shared_ptr<const Node>(missing, &missing->node));
}

std::vector<std::string> JsonValue::Keys() const {
  if (!IsObject()) Fail("an object");
  std::vector<std::string> keys;
  keys.reserve(node_->children.size());
  for (const Node* child : node_->children) keys.push_back(child->name);
  return keys;
}

size_t JsonValue::size() const { return node_->children.size(); }

JsonValue JsonValue::At(size_t index) const {
  if (!IsArray()) Fail("an array");
  if (index >= size()) Fail(fmt::format("at least {} elements", index + 1));
  return JsonValue(std::shared_ptr<const Node>(node_, node_->children[index]));
}

std::vector<int64_t> JsonValue::AsIntArray() const {
  if (!IsArray()) Fail("an array of integers");
  std::vector<int64_t> values;
  values.reserve(size());
  for (size_t i = 0; i < size(); ++i) values.push_back(At(i).AsInt());
  return values;
}

std::vector<double> JsonValue::AsDoubleArray() const {
  if (!IsArray()) Fail("an array of numbers");
  std::vector<double> values;
  values.reserve(size());
  for (size_t i = 0; i < size(); ++i) values.push_back(At(i).AsDouble());
  return values;
}

namespace {

struct Location {
  std::string source;
  std::string path;
};

template <class Node>
Location Locate(const Node* node) {
  using Kind = JsonValue::Kind;
  std::vector<std::string> parts;
  for (; node->parent != nullptr; node = node->parent) {
    const bool element = node->parent->kind == Kind::kArray;
    parts.push_back(element ? fmt::format("[{}]", node->index) : QuoteName(node->name));
  }
  Location location{node->name, ""};
  for (auto part = parts.rbegin(); part != parts.rend(); ++part) {
    if (!location.path.empty() && part->front() != '[') location.path += '.';
    location.path += *part;
  }
  if (location.path.empty()) location.path = "top level";
  return location;
}

template <class Node>
void AppendNode(std::string& out, const Node& node) {
  using Kind = JsonValue::Kind;
  switch (node.kind) {
    case Kind::kNull:
      out += "null";
      return;
    case Kind::kBool:
      out += node.boolean ? "true" : "false";
      return;
    case Kind::kInteger:
      out += std::to_string(node.integer);
      return;
    case Kind::kNumber:
      internal::AppendJsonNumber(out, node.number);
      return;
    case Kind::kString:
      internal::AppendJsonString(out, node.text);
      return;
    case Kind::kArray:
    case Kind::kObject:
      break;
  }
  const bool object = node.kind == Kind::kObject;
  out += object ? '{' : '[';
  for (size_t i = 0; i < node.children.size(); ++i) {
    if (i > 0) out += ',';
    if (object) {
      internal::AppendJsonString(out, node.children[i]->name);
      out += ':';
    }
    AppendNode(out, *node.children[i]);
  }
  out += object ? '}' : ']';
}

}  // namespace

std::string JsonValue::Where() const {
  const Location location = Locate(node_.get());
  return location.source + ": " + location.path;
}

std::string JsonValue::Found(const std::string& expected) const {
  return fmt::format("{}: found {}, expected {}", Locate(node_.get()).path,
                     node_->missing ? "nothing" : Cut(Dump()), expected);
}

void JsonValue::Fail(const std::string& expected) const {
  throw InvalidInput(Locate(node_.get()).source, Found(expected));
}

void JsonValue::Refuse(const std::string& expected) const {
  throw Unsupported(Locate(node_.get()).source, Found(expected));
}

std::string JsonValue::Dump() const {
  std::string out;
  AppendNode(out, *node_);
  return out;
}

}  // namespace pmkvq
