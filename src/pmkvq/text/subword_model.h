// Pieces of text to ids. Internal to text/.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace pmkvq {

class Vocabulary;
struct MergeBuffers;

// SentencePiece writes a space as U+2581.
inline constexpr std::string_view kSpaceMark = "\u2581";

// The end of the word that starts at `begin`: space marks, then other characters up to the next
// mark.
size_t WordEnd(std::string_view text, size_t begin);

// Immutable; may be used from several threads.
class SubwordModel {
 public:
  virtual ~SubwordModel() = default;

  // Appends the ids of `piece` (valid UTF-8, not empty), which are merged apart from other pieces.
  // `buffers`: memory for the time of the call.
  // Throws InvalidInput for a piece of 2 GiB and more, and for a byte without a token.
  virtual void Encode(std::string_view piece, MergeBuffers* buffers,
                      std::vector<int32_t>* ids) const = 0;
};

// Ids of the tokens for single bytes: <0x0A> in a vocabulary of pieces. kNoToken where there is
// none.
using ByteIds = std::array<int32_t, 256>;
ByteIds FindByteIds(const Vocabulary& vocabulary);

// The byte that a piece stands for: 10 for <0x0A>; -1 for others.
int ByteOfPiece(std::string_view piece);

// Throws InvalidInput for a piece whose positions do not fit int32_t.
void CheckPieceSize(std::string_view piece);

}  // namespace pmkvq
