#include "pmkvq/text/sentencepiece_file.h"

#include <fmt/format.h>

#include <bit>

#include "pmkvq/base/error.h"
#include "pmkvq/base/interrupt.h"
#include "pmkvq/io/limits.h"

namespace pmkvq {
namespace {

// The fields of one message in the order of the file. Values of fields that are not asked for are
// skipped.
class FieldReader {
 public:
  FieldReader(std::string_view message, const std::string& source, const char* name)
      : message_(message), source_(source), name_(name) {}

  // False at the end.
  bool Next() {
    if (at_ == message_.size()) return false;
    const uint64_t tag = ReadVarint();
    constexpr uint64_t kMaxField = (1u << 29) - 1;
    field_ = tag >> 3;
    wire_ = tag & 7;
    if (field_ == 0 || field_ > kMaxField) Fail("a field number from 1 to 536870911");
    switch (wire_) {
      case kVarint:
        varint_ = ReadVarint();
        break;
      case kFixed64:
        value_ = Take(8);
        break;
      case kBytes:
        value_ = Take(ReadVarint());
        break;
      case kFixed32:
        value_ = Take(4);
        break;
      default:
        Fail("a wire type of 0, 1, 2 or 5");
    }
    return true;
  }

  uint64_t field() const { return field_; }

  // The value, which must be of this type.
  std::string_view Bytes() const {
    Expect(kBytes, "bytes");
    return value_;
  }
  uint64_t Varint() const {
    Expect(kVarint, "a whole number");
    return varint_;
  }
  bool Bool() const { return Varint() != 0; }
  float Float() const {
    Expect(kFixed32, "a float");
    uint32_t bits = 0;
    for (size_t i = 0; i < 4; ++i) bits |= uint32_t{static_cast<unsigned char>(value_[i])} << 8 * i;
    return std::bit_cast<float>(bits);
  }

 private:
  static constexpr uint64_t kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5;

  [[noreturn]] void Fail(const std::string& expected) const {
    throw InvalidInput(source_, fmt::format("no SentencePiece model: {}, at byte {}: expected {}",
                                            name_, at_, expected));
  }

  void Expect(uint64_t wire, const char* what) const {
    if (wire_ == wire) return;
    Fail(fmt::format("{} as field {}, found wire type {}", what, field_, wire_));
  }

  std::string_view Take(uint64_t size) {
    if (size > message_.size() - at_) Fail(fmt::format("{} more bytes", size));
    const std::string_view bytes = message_.substr(at_, size);
    at_ += size;
    return bytes;
  }

  uint64_t ReadVarint() {
    uint64_t value = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
      const auto byte = static_cast<unsigned char>(Take(1).front());
      value |= uint64_t{byte & 0x7fu} << shift;
      if (byte < 0x80) return value;
    }
    Fail("a number of at most 64 bits");
  }

  std::string_view message_;
  const std::string& source_;
  const char* name_;
  size_t at_ = 0;
  uint64_t field_ = 0;
  uint64_t wire_ = 0;
  uint64_t varint_ = 0;
  std::string_view value_;
};

std::string ModelTypeName(uint64_t type) {
  switch (type) {
    case 1:
      return "UNIGRAM";
    case 2:
      return "BPE";
    case 3:
      return "WORD";
    case 4:
      return "CHAR";
    default:
      return fmt::format("{}", type);
  }
}

}  // namespace

// Of the specifications, with the defaults of the message types.
struct SentencePieceFile::Fields {
  uint64_t model_type = 1;
  bool whitespace_as_suffix = false;
  bool byte_fallback = false;
  std::string_view unk = "<unk>";
  std::string_view bos = "<s>";
  std::string_view eos = "</s>";
  std::string_view pad = "<pad>";
  std::string_view character_map;
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = true;
  bool escape_whitespaces = true;
};

SentencePieceFile::SentencePieceFile(std::string_view bytes, const std::string& source)
    : source_(source) {
  data_.kind = TokenizerKind::kSentencePieceBpe;
  data_.cuts_user_defined = false;
  data_.field_prefix = "pieces.";
  Fields fields;
  Fields denormalizer;
  FieldReader model(bytes, source_, "ModelProto");
  while (model.Next()) {
    CancelPoint();
    switch (model.field()) {
      case 1:
        ReadPiece(model.Bytes());
        break;
      case 2:
        ReadTrainer(model.Bytes(), source_, &fields);
        break;
      case 3:
        ReadNormalizer(model.Bytes(), source_, &fields);
        break;
      case 5:
        ReadNormalizer(model.Bytes(), source_, &denormalizer);
        break;
      default:
        break;
    }
  }
  if (data_.tokens.empty()) {
    throw InvalidInput(source_, "no SentencePiece model: found no pieces, expected ModelProto");
  }
  CheckSupported(fields);
  if (!denormalizer.character_map.empty()) {
    throw Unsupported(source_,
                      "denormalizer_spec.precompiled_charsmap: found a map, expected none");
  }
  data_.add_space_prefix = fields.add_dummy_prefix;
  data_.character_map = fields.character_map;
  data_.removes_extra_spaces = fields.remove_extra_whitespaces;
  data_.unk = FindControl(fields.unk);
  data_.bos = FindControl(fields.bos);
  data_.eos = FindControl(fields.eos);
  data_.pad = FindControl(fields.pad);
}

void SentencePieceFile::ReadPiece(std::string_view message) {
  const size_t id = data_.tokens.size();
  if (id == limits::kTokens) {
    throw InvalidInput(
        source_, fmt::format("found more than {} pieces, expected at most that", limits::kTokens));
  }
  std::string_view text;
  float score = 0;
  uint64_t type = 1;
  FieldReader piece(message, source_, "SentencePiece");
  while (piece.Next()) {
    if (piece.field() == 1) text = piece.Bytes();
    if (piece.field() == 2) score = piece.Float();
    if (piece.field() == 3) type = piece.Varint();
  }
  if (text.empty()) {
    throw InvalidInput(source_, fmt::format("pieces.tokens[{}]: found \"\", expected text", id));
  }
  if (type < 1 || type > 6) {
    throw InvalidInput(source_,
                       fmt::format("pieces.token_type[{}]: found {}, expected 1 to 6", id, type));
  }
  data_.tokens.push_back(text);
  data_.scores.push_back(score);
  data_.types.push_back(static_cast<TokenType>(type));
}

void SentencePieceFile::ReadTrainer(std::string_view message, const std::string& source,
                                    Fields* fields) {
  FieldReader spec(message, source, "TrainerSpec");
  while (spec.Next()) {
    switch (spec.field()) {
      case 3:
        fields->model_type = spec.Varint();
        break;
      case 24:
        fields->whitespace_as_suffix = spec.Bool();
        break;
      case 35:
        fields->byte_fallback = spec.Bool();
        break;
      case 45:
        fields->unk = spec.Bytes();
        break;
      case 46:
        fields->bos = spec.Bytes();
        break;
      case 47:
        fields->eos = spec.Bytes();
        break;
      case 48:
        fields->pad = spec.Bytes();
        break;
      default:
        break;
    }
  }
}

void SentencePieceFile::ReadNormalizer(std::string_view message, const std::string& source,
                                       Fields* fields) {
  FieldReader spec(message, source, "NormalizerSpec");
  while (spec.Next()) {
    switch (spec.field()) {
      case 2:
        fields->character_map = spec.Bytes();
        break;
      case 3:
        fields->add_dummy_prefix = spec.Bool();
        break;
      case 4:
        fields->remove_extra_whitespaces = spec.Bool();
        break;
      case 5:
        fields->escape_whitespaces = spec.Bool();
        break;
      default:
        break;
    }
  }
}

void SentencePieceFile::CheckSupported(const Fields& fields) const {
  const auto expect = [&](bool right, const char* field, const std::string& found,
                          const char* expected) {
    if (right) return;
    throw Unsupported(source_, fmt::format("{}: found {}, expected {}", field, found, expected));
  };
  expect(fields.model_type == 2, "trainer_spec.model_type", ModelTypeName(fields.model_type),
         "BPE");
  expect(fields.byte_fallback, "trainer_spec.byte_fallback", "false", "true");
  expect(!fields.whitespace_as_suffix, "trainer_spec.treat_whitespace_as_suffix", "true", "false");
  expect(fields.escape_whitespaces, "normalizer_spec.escape_whitespaces", "false", "true");
}

int32_t SentencePieceFile::FindControl(std::string_view piece) const {
  for (size_t id = 0; id < data_.tokens.size(); ++id) {
    const bool control =
        data_.types[id] == TokenType::kControl || data_.types[id] == TokenType::kUnknown;
    if (control && data_.tokens[id] == piece) return static_cast<int32_t>(id);
  }
  return TokenizerData::kNoId;
}

}  // namespace pmkvq
