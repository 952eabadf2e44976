// The SPEC string of --kv: name[:key=value[+key=value...]]. Grammar only; what the names and keys
// mean is decided in registry.cc.
#pragma once

#include <map>
#include <string>
#include <string_view>

namespace pmkvq {

struct MethodSpec {
  std::string name;
  std::map<std::string, std::string> keys;
};

// Throws InvalidInput naming --kv and the part at fault: no name, a part without '=', an empty key
// or value, a key given twice.
MethodSpec ParseMethodSpec(std::string_view text);

}  // namespace pmkvq
