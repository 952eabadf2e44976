// A tokenizer.model of SentencePiece: a protocol buffer message of type ModelProto
// (sentencepiece_model.proto of google/sentencepiece). Internal to text/.
#pragma once

#include <string>
#include <string_view>

#include "pmkvq/text/vocabulary_data.h"

namespace pmkvq {

class SentencePieceFile {
 public:
  // `bytes`: the file, which outlives this. `source` names it in errors. Throws InvalidInput for
  // what is no such message or has no pieces, Unsupported for models other than BPE with byte
  // fallback.
  SentencePieceFile(std::string_view bytes, const std::string& source);

  // Points into the bytes.
  const TokenizerData& data() const { return data_; }

 private:
  struct Fields;

  void ReadPiece(std::string_view message);
  static void ReadTrainer(std::string_view message, const std::string& source, Fields* fields);
  static void ReadNormalizer(std::string_view message, const std::string& source, Fields* fields);
  void CheckSupported(const Fields& fields) const;
  // Id of the control piece of this text, or kNoId.
  int32_t FindControl(std::string_view piece) const;

  const std::string& source_;
  TokenizerData data_;
};

}  // namespace pmkvq
