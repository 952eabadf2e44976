#include "pmkvq/text/sentencepiece_file.h"

#include <gtest/gtest.h>

#include <limits>

#include "pmkvq/base/error.h"
#include "pmkvq/text/tokenizer.h"
#include "support/expect_error.h"
#include "support/sentencepiece_writer.h"
#include "support/temp_folder.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;
using testing_support::ProtoWriter;
using testing_support::SmallSentencePiece;
using testing_support::TempFolder;
using Ids = std::vector<int32_t>;

constexpr int32_t kPiece = SmallSentencePiece::kFirstPiece;
constexpr int32_t kByte = SmallSentencePiece::kFirstByte;

std::shared_ptr<const Tokenizer> Load(const SmallSentencePiece& model) {
  const TempFolder folder;
  return Tokenizer::Load(folder.Write("tokenizer.model", model.Bytes()));
}

template <class ErrorType>
void ExpectRefused(const std::string& bytes, std::initializer_list<std::string> words) {
  const TempFolder folder;
  const std::string path = folder.Write("tokenizer.model", bytes);
  ExpectError<ErrorType>([&] { Tokenizer::Load(path); }, words);
}

TEST(SentencePieceFile, HoldsPiecesScoresTypesAndSettings) {
  SmallSentencePiece model;
  model.Piece("a", -1.5f).Piece("b", -2, TokenType::kUserDefined);
  model.add_dummy_prefix = false;
  model.remove_extra_whitespaces = true;
  const std::string bytes = model.Bytes();
  const SentencePieceFile file(bytes, "t.model");
  const TokenizerData& data = file.data();
  ASSERT_EQ(data.tokens.size(), 261u);
  EXPECT_EQ(data.tokens[259], "a");
  EXPECT_EQ(data.scores[259], -1.5f);
  EXPECT_EQ(data.types[260], TokenType::kUserDefined);
  EXPECT_EQ(data.types[3], TokenType::kByte);
  EXPECT_EQ(data.unk, 0);
  EXPECT_EQ(data.bos, 1);
  EXPECT_EQ(data.eos, 2);
  EXPECT_EQ(data.pad, TokenizerData::kNoId);
  EXPECT_EQ(data.add_space_prefix, false);
  EXPECT_TRUE(data.removes_extra_spaces);
}

TEST(SentencePieceFile, MergesByScoreFromTheLeft) {
  SmallSentencePiece model;  // ab 259, bb 260, ▁ab 261, ▁ 262, a 263, b 264, abab 265.
  model.Piece("ab", -1).Piece("bb", -1).Piece("▁ab", -2).Piece("▁", -3).Piece("a", -4);
  model.Piece("b", -5).Piece("abab", -0.5f);
  model.add_dummy_prefix = false;
  const auto tokenizer = Load(model);
  EXPECT_EQ(tokenizer->Encode(""), Ids{});
  EXPECT_EQ(tokenizer->Encode("abb"), (Ids{kPiece, kPiece + 5}));  // Equal scores: the left.
  EXPECT_EQ(tokenizer->Encode("bbb"), (Ids{kPiece + 1, kPiece + 5}));
  EXPECT_EQ(tokenizer->Encode("abab"), (Ids{kPiece + 6}));
  EXPECT_EQ(tokenizer->Encode(" ab ab"), (Ids{kPiece + 2, kPiece + 2}));
  EXPECT_EQ(tokenizer->Encode("é"), (Ids{kByte + 0xC3, kByte + 0xA9}));
  EXPECT_EQ(tokenizer->Encode("<0x41>a"), (Ids{kByte + '<', kByte + '0', kByte + 'x', kByte + '4',
                                               kByte + '1', kByte + '>', kPiece + 4}));
  EXPECT_EQ(tokenizer->prefix_ids(), Ids{1});
  EXPECT_EQ(tokenizer->suffix_ids(), Ids{});
}

TEST(SentencePieceFile, APairMayHoldACharacterThatIsNoPiece) {
  SmallSentencePiece model;
  model.Piece("xy", -1).Piece("▁", -2);
  EXPECT_EQ(Load(model)->Encode("xyx"), (Ids{kPiece + 1, kPiece, kByte + 'x'}));
}

TEST(SentencePieceFile, UnusedPiecesAreCutAgain) {
  SmallSentencePiece model;
  model.Piece("a", -9).Piece("b", -9).Piece("ab", -2, TokenType::kUnused).Piece("abb", -3);
  model.add_dummy_prefix = false;
  EXPECT_EQ(Load(model)->Encode("ab"), (Ids{kPiece, kPiece + 1}));
  EXPECT_EQ(Load(model)->Encode("abb"), (Ids{kPiece + 3}));
}

TEST(SentencePieceFile, UserDefinedPiecesAreKeptWhole) {
  SmallSentencePiece model;
  model.Piece("▁▁", 0, TokenType::kUserDefined).Piece("the", 0, TokenType::kUserDefined);
  model.Piece("▁", -1).Piece("▁the", -0.5f).Piece("a", -2);
  const auto tokenizer = Load(model);
  // The space in front and the first space of the text make one piece.
  EXPECT_EQ(tokenizer->Encode(" a", false), (Ids{kPiece, kPiece + 4}));
  EXPECT_EQ(tokenizer->Encode("the", false), (Ids{kPiece + 2, kPiece + 1}));
  EXPECT_FALSE(tokenizer->IsSpecial(kPiece + 1));
}

TEST(SentencePieceFile, SpacesMayBeTrimmed) {
  SmallSentencePiece model;
  model.Piece("▁", -1).Piece("a", -2);
  model.remove_extra_whitespaces = true;
  const auto tokenizer = Load(model);
  EXPECT_EQ(tokenizer->Encode("  a   a  "), (Ids{kPiece, kPiece + 1, kPiece, kPiece + 1}));
  EXPECT_EQ(tokenizer->Encode("   "), Ids{});
  EXPECT_EQ(tokenizer->Decode({kPiece, kPiece, kPiece + 1}), "a");
}

TEST(SentencePieceFile, OtherModelsAreRefused) {
  SmallSentencePiece model;
  model.model_type = 1;
  ExpectRefused<Unsupported>(model.Bytes(), {"tokenizer.model", "model_type", "UNIGRAM", "BPE"});
  model = {};
  model.byte_fallback = false;
  ExpectRefused<Unsupported>(model.Bytes(), {"byte_fallback", "false", "true"});
  model = {};
  model.whitespace_as_suffix = true;
  ExpectRefused<Unsupported>(model.Bytes(), {"treat_whitespace_as_suffix"});
}

TEST(SentencePieceFile, ACharacterMapReplacesLongestMatches) {
  // Units: the root, whose children lie at 256 ^ byte; 'x' with a value at 2; "xy" at 512 ^ 'y'.
  const auto offset = [](uint32_t value) { return value << 10; };
  std::vector<uint32_t> units(1024);
  constexpr uint32_t kLeaf = 1u << 8;
  units[0] = offset(256);
  units[256 ^ 'x'] = 'x' | kLeaf | offset((256 ^ 'x') ^ 512);
  units[512] = 0x80000000u | 0;  // "x" becomes "A".
  units[512 ^ 'y'] = 'y' | kLeaf | offset((512 ^ 'y') ^ 700);
  units[700] = 0x80000000u | 2;  // "xy" becomes nothing.
  std::string map;
  const auto append = [&](uint32_t word) {
    for (int shift = 0; shift < 32; shift += 8) map += static_cast<char>(word >> shift & 255);
  };
  append(static_cast<uint32_t>(4 * units.size()));
  for (const uint32_t unit : units) append(unit);
  map += std::string("A\0\0", 3);
  SmallSentencePiece model;
  model.character_map = map;
  model.add_dummy_prefix = false;
  const auto tokenizer = Load(model);
  EXPECT_EQ(tokenizer->Decode(tokenizer->Encode("xaxyx")), "AaA");
  const auto refused = [](const std::string& wrong, std::initializer_list<std::string> words) {
    SmallSentencePiece with_map;
    with_map.character_map = wrong;
    ExpectRefused<InvalidInput>(with_map.Bytes(), words);
  };
  refused("x", {"precompiled_charsmap", "trie"});
  refused(map.substr(0, 100), {"precompiled_charsmap", "4096", "100"});
  refused(map + "\xff", {"precompiled_charsmap", "UTF-8"});
  // A place beyond the replacements is found when it is used.
  SmallSentencePiece cut;
  cut.character_map = map.substr(0, map.size() - 3);
  const auto broken = Load(cut);
  ExpectError<InvalidInput>([&] { (void)broken->Encode("x"); }, {"precompiled_charsmap", "byte 0"});
}

TEST(SentencePieceFile, WrongPiecesAreNamed) {
  const auto refused = [](const SmallSentencePiece& model,
                          std::initializer_list<std::string> words) {
    ExpectRefused<InvalidInput>(model.Bytes(), words);
  };
  const float nan = std::numeric_limits<float>::quiet_NaN();
  refused(SmallSentencePiece().Piece("a", nan), {"scores[259]", "nan", "finite"});
  refused(SmallSentencePiece().Piece("a", -1).Piece("a", -2), {"tokens[260]", "\"a\"", "before"});
  refused(SmallSentencePiece().Piece("", -1), {"tokens[259]", "\"\""});
  refused(SmallSentencePiece().Piece(std::string(20'000, 'x'), -1), {"tokens[259]", "16384 bytes"});
  refused(SmallSentencePiece().Piece("\xff", -1), {"tokens[259]", "UTF-8"});
  refused(SmallSentencePiece().Piece("a", -1, static_cast<TokenType>(9)), {"token_type[259]", "9"});
  ProtoWriter few;
  few.Bytes(1, ProtoWriter().Bytes(1, "a").bytes());
  few.Bytes(2, ProtoWriter().Number(3, 2).Number(35, 1).bytes());
  ExpectRefused<InvalidInput>(few.bytes(), {"<0x00>", "byte fallback"});
}

TEST(SentencePieceFile, WhatIsNoModelIsNamed) {
  ExpectRefused<InvalidInput>("", {"no pieces"});
  ExpectRefused<InvalidInput>("x", {"no SentencePiece model", "byte 1"});
  ExpectRefused<InvalidInput>(ProtoWriter().Number(1, 5).bytes(), {"bytes as field 1"});
  ExpectRefused<InvalidInput>(std::string(11, '\xff'), {"64 bits"});
  ExpectRefused<InvalidInput>("\x0b", {"wire type"});
  ExpectRefused<InvalidInput>(std::string("\0", 1), {"field number"});
  ExpectRefused<InvalidInput>("\x0a\xff\xff\xff\xff\x7f", {"more bytes"});
}

TEST(SentencePieceFile, EveryCutOfAFileIsRefusedOrWhole) {
  SmallSentencePiece model;
  model.Piece("ab", -1);
  const std::string bytes = model.Bytes();
  for (size_t size = 0; size < bytes.size(); ++size) {
    try {
      const SentencePieceFile file(std::string_view(bytes).substr(0, size), "t.model");
      FAIL() << "a cut at " << size << " has no TrainerSpec";
    } catch (const Error&) {
    }
  }
}

}  // namespace
}  // namespace pmkvq
