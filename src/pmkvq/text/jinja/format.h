// Python's % and str.format, and strftime. Internal to text/jinja.
#pragma once

#include <string>
#include <string_view>

#include "pmkvq/text/jinja/objects.h"
#include "pmkvq/text/jinja/runtime.h"
#include "pmkvq/text/jinja/value.h"

namespace pmkvq::jinja {

// text % arguments, with a tuple of arguments, a dict for %(name)s, or one other value. Known: %s
// %r %d %i %f %F %e %g %x %X %o %c %%, with the flags "-+ 0#", width and precision.
Value FormatPercent(Runtime& runtime, const Value& text, const Value& arguments);

// text.format(arguments) with fields {}, {0}, {name}, {!r} and without nested fields; behind a
// colon fill, alignment, sign, 0, width, comma, precision and one of s d f e g x X o b %.
Value FormatBraces(Runtime& runtime, const String& text, const Arguments& arguments);

// A day, and the time of day.
struct Date {
  int year = 2026;
  int month = 1;  // From 1.
  int day = 1;
  int hour = 0;
  int minute = 0;
  int second = 0;
};

// strftime of the C locale. Throws for directives that Python's documentation does not have.
std::string FormatDate(Runtime& runtime, const Date& date, std::string_view format);

// round() half to even of the decimal text, as Python does.
double RoundDecimal(double value, int digits);

}  // namespace pmkvq::jinja
