// The fields of a JSON body: each is read once by name and type, so that what nobody has asked for
// is known in the end. Null counts as absent, as the official clients send it.
//
// All functions throw RefusedRequest (400) naming the field.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "pmkvq/io/json.h"

namespace pmkvq::server {

// Writes a value as it is, but for the spelling of its numbers.
void CopyJson(JsonWriter& json, const JsonValue& value);

class BodyFields {
 public:
  // `body` must be an object. `prefix` stands before names in errors: "stream_options.".
  explicit BodyFields(const JsonValue& body, std::string prefix = "");
  // Parses the text of a body: strict UTF-8, nesting of at most 64.
  static JsonValue Parse(std::string_view text);

  bool Has(const std::string& name);
  // The value of a field that is there.
  JsonValue Value(const std::string& name);
  std::optional<double> Number(const std::string& name, double least, double most);
  std::optional<int64_t> Integer(const std::string& name, int64_t least, int64_t most);
  std::optional<bool> Bool(const std::string& name);
  std::optional<std::string> Text(const std::string& name, size_t most_bytes);
  // A string or a list of strings.
  std::vector<std::string> Texts(const std::string& name, size_t most_texts, size_t most_bytes);

  // Fields without effect here.
  void Accept(std::initializer_list<const char*> names);
  // Refuses a field that is there with a value other than null, false, 0, "" or an empty list or
  // object, which ask for nothing.
  void Refuse(std::initializer_list<const char*> names);
  [[noreturn]] void Fail(const std::string& name, const std::string& found,
                         const std::string& expected) const;

  // Members that no function above was asked about.
  std::vector<std::string> unknown() const;

 private:
  template <class Read>
  auto ReadField(const std::string& name, const Read& read);

  JsonValue body_;
  std::string prefix_;
  std::set<std::string> known_;
};

}  // namespace pmkvq::server
