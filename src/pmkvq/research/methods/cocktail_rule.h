// Cocktail's widths of chunks by their similarity to the question.
#pragma once

#include <algorithm>
#include <vector>

namespace pmkvq {

struct CocktailRule {
  double alpha = 0.6;
  double beta = 0.1;
};

// With the least similarity s_min and the range d: 16 bits above s_min + d - beta d, 2 below s_min
// + alpha d, else 4. At least one similarity.
inline std::vector<int> CocktailWidths(const CocktailRule& rule,
                                       const std::vector<double>& similarities) {
  const auto [least, most] = std::minmax_element(similarities.begin(), similarities.end());
  const double range = *most - *least;
  const double low = *least + rule.alpha * range;
  const double high = *most - rule.beta * range;
  std::vector<int> widths;
  for (const double similarity : similarities) {
    widths.push_back(similarity > high ? 16 : similarity < low ? 2 : 4);
  }
  return widths;
}

}  // namespace pmkvq
