// The SPEC string of --kv: name[:part[+part...]], where a part is key=value or a single word (a
// variant or a switch); and the keys that a method declares.
#pragma once

#include <map>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace pmkvq {

// One key or word that a method takes. Parsing, help, and the files that identify a run all come
// from these declarations.
struct SpecKey {
  enum class Kind {
    kWord,     // Stands alone: "reference".
    kInteger,  // A whole number in [least, most].
    kReal,     // A number in [least, most].
    kChoice,   // One of `choices`.
    kFile,     // The path of a file, or one of `choices`.
  };
  std::string name;
  Kind kind = Kind::kWord;
  double least = 0;
  double most = 0;
  std::vector<std::string> choices;
  std::string fallback;  // What holds where the key is not given, as help shows it.
  std::string help;

  // What may stand behind "name=", for help and messages: "8, 4, 3 or 2"; "" for a word.
  std::string Values() const;
};
using SpecKeys = std::vector<SpecKey>;

SpecKey WordKey(std::string name, std::string help);
SpecKey IntegerKey(std::string name, int64_t least, int64_t most, std::string fallback,
                   std::string help);
SpecKey RealKey(std::string name, double least, double most, std::string fallback,
                std::string help);
SpecKey ChoiceKey(std::string name, std::vector<std::string> choices, std::string fallback,
                  std::string help);
SpecKey FileKey(std::string name, std::string fallback, std::string help,
                std::vector<std::string> choices = {});

struct MethodSpec {
  std::string name;
  std::map<std::string, std::string> keys;
  std::set<std::string> words;
  std::string text;  // The whole SPEC, for messages.

  // Throws InvalidInput naming --kv and the part at fault: a key or word that is not declared (the
  // declared ones are listed), a value that its declaration does not allow.
  void Check(const SpecKeys& declared) const;

  // The value of `key`, or `otherwise` where it is not given. After Check only, with the kind that
  // the key is declared with (a choice among numbers reads as Integer): another value is a bug of
  // the caller (check).
  int64_t Integer(const std::string& key, int64_t otherwise) const;
  double Real(const std::string& key, double otherwise) const;
  std::string Text(const std::string& key, const std::string& otherwise) const;

  // Key and path of every declared file that is given; words in a file's place ("none") are none.
  std::vector<std::pair<std::string, std::string>> Files(const SpecKeys& declared) const;
};

// Grammar only; see Check. Throws InvalidInput naming --kv and the part at fault: no name, an empty
// part, key or value, a part given twice.
MethodSpec ParseMethodSpec(std::string_view text);

}  // namespace pmkvq
