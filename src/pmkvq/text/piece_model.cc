#include "pmkvq/text/piece_model.h"

#include <algorithm>
#include <bit>
#include <unordered_map>

#include "pmkvq/base/check.h"
#include "pmkvq/text/merge_loop.h"
#include "pmkvq/text/utf8.h"

namespace pmkvq {
namespace {

// Numbers in the order of falling scores; equal for equal scores. Finite scores never give kNoRank.
uint32_t RankOf(float score) {
  const auto bits = std::bit_cast<uint32_t>(score + 0.0f);  // -0 becomes 0.
  constexpr uint32_t kSign = 0x80000000u;
  const uint32_t rising = (bits & kSign) != 0 ? ~bits : bits | kSign;
  return ~rising;
}

}  // namespace

PieceModel::PieceModel(const std::vector<float>& scores, const std::vector<TokenType>& types,
                       const Vocabulary* vocabulary)
    : vocabulary_(vocabulary), byte_ids_(FindByteIds(*vocabulary)) {
  PMKVQ_CHECK(std::find(byte_ids_.begin(), byte_ids_.end(), Vocabulary::kNoToken) ==
              byte_ids_.end());
  PMKVQ_CHECK(types.empty() || types.size() == scores.size());
  ranks_.reserve(scores.size());
  is_unused_.resize(scores.size());
  for (size_t id = 0; id < scores.size(); ++id) {
    const TokenType type = types.empty() ? TokenType::kNormal : types[id];
    is_unused_[id] = type == TokenType::kUnused;
    has_unused_ |= is_unused_[id];
    const bool merges = type == TokenType::kNormal || type == TokenType::kUnused;
    ranks_.push_back(merges ? RankOf(scores[id]) : MergedPair::kNoRank);
  }
  // The text "<0x0A>" is not the byte, whatever its type.
  for (const int32_t id : byte_ids_) ranks_[static_cast<size_t>(id)] = MergedPair::kNoRank;
}

// Symbols are stretches of the piece: a symbol's position is its first byte, its value the number
// of its bytes.
class PieceModel::Pairs {
 public:
  Pairs(const PieceModel& model, std::string_view text) : model_(&model), text_(text) {}

  MergedPair Find(int32_t position, int32_t left, int32_t right) {
    const auto length = static_cast<size_t>(left) + static_cast<size_t>(right);
    if (length > model_->vocabulary_->longest()) return {};
    const int32_t id =
        model_->vocabulary_->FindBytes(text_.substr(static_cast<size_t>(position), length));
    if (id == Vocabulary::kNoToken) return {};
    const uint32_t rank = model_->ranks_[static_cast<size_t>(id)];
    if (rank == MergedPair::kNoRank) return {};
    if (model_->has_unused_ && model_->is_unused_[static_cast<size_t>(id)]) lefts_[id] = left;
    return {rank, left + right};
  }

  // Appends the ids of a merged stretch.
  void Append(std::string_view stretch, std::vector<int32_t>* ids) const {
    const int32_t id = model_->vocabulary_->FindBytes(stretch);
    if (id == Vocabulary::kNoToken) {
      for (const char byte : stretch) {
        ids->push_back(model_->byte_ids_[static_cast<unsigned char>(byte)]);
      }
      return;
    }
    const auto left = model_->is_unused_[static_cast<size_t>(id)] ? lefts_.find(id) : lefts_.end();
    if (left == lefts_.end()) {
      ids->push_back(id);
      return;
    }
    const auto cut = static_cast<size_t>(left->second);
    Append(stretch.substr(0, cut), ids);
    Append(stretch.substr(cut), ids);
  }

 private:
  const PieceModel* model_;
  std::string_view text_;
  std::unordered_map<int32_t, int32_t> lefts_;  // Unused pieces: bytes of the left of the pair.
};

void PieceModel::Encode(std::string_view piece, MergeBuffers* buffers,
                        std::vector<int32_t>* ids) const {
  CheckPieceSize(piece);
  std::vector<MergeSymbol>& symbols = buffers->symbols;
  symbols.assign(piece.size(), MergeSymbol{});
  int32_t previous = MergeSymbol::kNone;
  size_t length = 0;
  for (size_t i = 0; i < piece.size(); i += length) {
    DecodeUtf8(piece, i, &length);
    const size_t next = i + length;
    symbols[i] = {static_cast<int32_t>(length),
                  previous,
                  next < piece.size() ? static_cast<int32_t>(next) : MergeSymbol::kNone,
                  {}};
    previous = static_cast<int32_t>(i);
  }
  MergeLoop<Pairs> loop(Pairs(*this, piece), buffers);
  loop.Run();
  for (size_t i = 0; i < piece.size(); ++i) {
    const int32_t size = symbols[i].value;
    if (size != MergeSymbol::kGone) {
      loop.pairs().Append(piece.substr(i, static_cast<size_t>(size)), ids);
    }
  }
}

}  // namespace pmkvq
