// The SPEC string of --kv: name[:part[+part...]], where a part is key=value or a single word (a
// variant or a switch). Grammar only; what names, keys and words mean is up to the methods.
#pragma once

#include <initializer_list>
#include <map>
#include <set>
#include <string>
#include <string_view>

namespace pmkvq {

struct MethodSpec {
  std::string name;
  std::map<std::string, std::string> keys;
  std::set<std::string> words;
  std::string text;  // The whole SPEC, for messages.

  // The number of `key`, or `otherwise` where it is not given. Throws InvalidInput naming the key,
  // the value found and the numbers expected.
  int64_t OneOf(const std::string& key, int64_t otherwise,
                std::initializer_list<int64_t> allowed) const;
  // The same for any number in [least, most]; Integer and Real differ in what they read.
  int64_t Integer(const std::string& key, int64_t otherwise, int64_t least, int64_t most) const;
  double Real(const std::string& key, double otherwise, double least, double most) const;
  // The same for a name.
  std::string NameOf(const std::string& key, const std::string& otherwise,
                     std::initializer_list<const char*> allowed) const;
  // Throws InvalidInput for keys and words other than these; names them.
  void CheckNames(std::initializer_list<const char*> known_keys,
                  std::initializer_list<const char*> known_words = {}) const;
};

// Throws InvalidInput naming --kv and the part at fault: no name, an empty part, key or value, a
// part given twice.
MethodSpec ParseMethodSpec(std::string_view text);

}  // namespace pmkvq
