// Units of measurement and other words behind an answer.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace pmkvq {

// What is said about a number besides its value.
struct QuantityWords {
  // Canonical name ("cm", "cm^2", "mi/h", "dollar"); "" when there is none or none that is known.
  std::string unit;
  // The other words, in lower case and in the singular: things that are counted ("apple"),
  // directions, times of day, months.
  std::vector<std::string> words;
  bool percent = false;  // A percent sign or the word.
};

// Either side may leave out its unit, or some or all of its words; two different ones are two
// answers: 5 cm and 5 m, 12 wins and 12 losses. "unit" stands for any unit of the same power, and
// a yen sign for yen and yuan. Symmetric.
bool CompatibleUnits(const QuantityWords& a, const QuantityWords& b);

struct TrailingUnit {
  std::string_view rest;  // The answer without unit, words, percent and degree signs.
  QuantityWords quantity;
};

// Takes unit and words off the end of a raw answer: "5 cm", "5\text{ cm}^2", "12 square inches",
// "30 miles per hour", "40\%", "90 degrees", "45^\circ N", "7 pm" and "5 apples". A degree is no
// unit: 90 and 90 degrees are one answer. An answer that is nothing but words stays as it is, and
// so do words that change the number ("5 million").
TrailingUnit TakeTrailingUnit(std::string_view answer);

// The unit of "\$5 per day": the currency, and the unit behind the number.
std::string WithCurrency(std::string_view currency, const std::string& unit);

}  // namespace pmkvq
