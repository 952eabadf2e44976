// How strings and numbers are spelled in JSON; shared by JsonValue::Dump and JsonWriter.
#pragma once

#include <string>
#include <string_view>

namespace pmkvq::internal {

// Appends `value` quoted and escaped. Invalid UTF-8 is replaced by U+FFFD, byte by byte.
void AppendJsonString(std::string& out, std::string_view value);

// Appends the shortest decimal form that reads back to the same double, always with a point or an
// exponent so that it reads back as a number and not as an integer; null for NaN and infinity.
void AppendJsonNumber(std::string& out, double value);

}  // namespace pmkvq::internal
