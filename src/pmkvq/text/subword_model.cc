#include "pmkvq/text/subword_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "pmkvq/base/error.h"
#include "pmkvq/text/byte_alphabet.h"
#include "pmkvq/text/vocabulary.h"

namespace pmkvq {
namespace {

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return -1;
}

}  // namespace

ByteIds FindByteIds(const Vocabulary& vocabulary) {
  ByteIds ids;
  for (size_t byte = 0; byte < ids.size(); ++byte) {
    const char character = static_cast<char>(byte);
    ids[byte] = vocabulary.alphabet() == TokenAlphabet::kBytes
                    ? vocabulary.FindBytes({&character, 1})
                    : vocabulary.FindInModel(fmt::format("<0x{:02X}>", byte));
  }
  return ids;
}

int ByteOfPiece(std::string_view piece) {
  if (piece.size() != 6 || !piece.starts_with("<0x") || piece[5] != '>') return -1;
  const int high = HexDigit(piece[3]);
  const int low = HexDigit(piece[4]);
  return high < 0 || low < 0 ? -1 : 16 * high + low;
}

size_t WordEnd(std::string_view text, size_t begin) {
  while (text.substr(begin).starts_with(kSpaceMark)) begin += kSpaceMark.size();
  return std::min(text.find(kSpaceMark, begin), text.size());
}

void CheckPieceSize(std::string_view piece) {
  if (piece.size() > static_cast<size_t>(std::numeric_limits<int32_t>::max())) {
    throw InvalidInput("text", "more than 2 GiB without a place to cut it");
  }
}

}  // namespace pmkvq
