// Units of measurement behind an answer.
#pragma once

#include <string>
#include <string_view>

namespace pmkvq {

struct TrailingUnit {
  std::string_view rest;  // The answer without unit and percent sign.
  std::string unit;       // Canonical name, "" when none or unknown.
  bool percent = false;
};

// Takes the unit off the end of a raw answer: "5 cm", "5\text{ cm}^2", "12 square inches",
// "30 miles per hour", "40\%", "90 degrees" (a degree is no unit of its own: 90 and 90 degrees are
// one answer), and whatever noun stands in \text{...} or behind a plain number ("5 apples"). An
// answer that is nothing but words stays as it is, and so do words that change the number
// ("5 million").
TrailingUnit TakeTrailingUnit(std::string_view answer);

}  // namespace pmkvq
