// Python's methods of strings, with the marks of their parts kept. Internal to text/jinja.
#pragma once

#include <string_view>
#include <vector>

#include "pmkvq/text/jinja/runtime.h"
#include "pmkvq/text/jinja/value.h"

namespace pmkvq::jinja {

enum class Side : uint8_t { kBoth, kLeft, kRight };

// strip(): of white space where `characters` is null.
Value Strip(Runtime& runtime, const String& text, Side side, const String* characters);
// replace(): at most `count` times; negative for all.
Value Replace(Runtime& runtime, const String& text, const String& from, const String& to,
              int64_t count);
// join() of the texts of the items; plain.
Value Join(Runtime& runtime, const String& separator, const std::vector<Value>& items);
// The lines of splitlines(), without their ends unless `keep_ends`.
std::vector<Value> SplitLines(Runtime& runtime, const String& text, bool keep_ends);

enum class Case : uint8_t { kUpper, kLower, kCapital, kTitle, kSwap };
// upper(), lower(), capitalize(), title(), swapcase().
Value ChangeCase(Runtime& runtime, const String& text, Case to);

// islower(), isupper() of a text.
bool IsLowerText(std::string_view text);
bool IsUpperText(std::string_view text);

}  // namespace pmkvq::jinja
