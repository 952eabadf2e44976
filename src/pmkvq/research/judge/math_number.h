// Numerals of answers: digits, decimal points, repeating decimals, scientific notation.
#pragma once

#include <cstddef>
#include <optional>
#include <string_view>

#include "pmkvq/research/judge/math_value.h"

namespace pmkvq {

struct Numeral {
  MathValue value;
  size_t length = 0;   // Bytes of it.
  bool whole = false;  // Digits only.
};

// The numeral at the start of normalised text: 42, 0.5, .5, 5., 1.5e3, and repeating decimals,
// exactly: 0.1\overline{6}, 0.\bar3, 0.\dot{1}4\dot{2}, 0.1(6), 0.333\dots. Dots repeat the
// shortest group of digits that ends the numeral at least twice and fills at least half of its
// decimals: 0.1666\dots is 1/6, and 3.14159\dots is no numeral. Nothing when the text starts
// otherwise, and for numerals that are too long or carry marks that cannot be read. Linear in the
// numeral; quadratic in the decimals before dots. Never throws.
std::optional<Numeral> ReadNumeral(std::string_view text);

}  // namespace pmkvq
