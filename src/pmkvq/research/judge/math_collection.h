// Answers that consist of several: tuples, lists, sets, matrices.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace pmkvq {

// All take normalised text (math_normalize.h).

struct Tuple {
  std::string brackets;  // "()", "[]", "(]" or "[)".
  std::vector<std::string> items;
};
// A tuple or an interval; a single thing in brackets is none.
std::optional<Tuple> ParseTuple(std::string_view text);

// The items of a list or set; one for anything else. "a \pm b" is two items.
struct ItemList {
  std::vector<std::string> items;
  bool is_set = false;
};
ItemList ParseItems(std::string_view text);

// Rows of entries. Matrices in round and in square brackets mean the same in every LaTeX
// environment;
// |...| is a determinant.
struct Matrix {
  std::string brackets;  // "pmatrix" for these, "vmatrix" for determinants, else the environment.
  std::vector<std::vector<std::string>> rows;
};
std::optional<Matrix> ParseMatrix(std::string_view text);

}  // namespace pmkvq
