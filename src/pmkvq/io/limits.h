// Limits on what is read from outside, and byte arithmetic that cannot overflow.
//
// A file is refused, in words, when it asks for more than its limit. The defaults are several
// times above every published model and data set, and low enough that reading a hostile file takes
// at most 4 times its size plus 16 MiB of memory. Functions that read take the limits as a
// parameter, so that a program with other needs can change them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>

namespace pmkvq {

namespace limits {

// Whole files that are read into memory: JSON, text, templates.
inline constexpr uint64_t kFileBytes = uint64_t{256} << 20;
inline constexpr uint64_t kLogBytes = uint64_t{1} << 36;  // Responses: written by this program.
// Lines of a .jsonl file: one line, and rows of calibration texts and of problems.
inline constexpr uint64_t kLineBytes = kFileBytes;
inline constexpr int64_t kTextRows = int64_t{1} << 19;
inline constexpr int64_t kProblemRows = int64_t{1} << 17;
inline constexpr size_t kRowTokens = size_t{1} << 21;  // Ids of one calibration row.

// JSON. Gemma 3's tokenizer.json, the largest published one, has 1.8 million values.
inline constexpr uint64_t kJsonNodes = uint64_t{1} << 22;
inline constexpr size_t kJsonDepth = 128;
inline constexpr size_t kJsonArrayNumbers = size_t{1} << 20;  // AsIntArray, AsDoubleArray.

// Safetensors. The header limit is that of the reference implementation.
inline constexpr uint64_t kHeaderBytes = 100'000'000;
inline constexpr size_t kTensors = size_t{1} << 17;  // In one file, and in an index.
inline constexpr size_t kTensorRank = 8;
inline constexpr size_t kTensorNameBytes = 1024;
inline constexpr size_t kMetadataEntries = size_t{1} << 15;
inline constexpr size_t kShards = 4096;

// GGUF. Mixtures of experts that keep each expert apart have some thousand tensors.
inline constexpr size_t kGgufTensors = size_t{1} << 15;
inline constexpr size_t kGgufKeyBytes = 1024;

// Tokenizer: tokens of the vocabulary, merges, added tokens, bytes of one regular expression.
inline constexpr size_t kTokens = size_t{1} << 20;
inline constexpr size_t kMerges = size_t{1} << 20;
inline constexpr size_t kAddedTokens = size_t{1} << 15;
inline constexpr size_t kPatternBytes = size_t{1} << 16;

// Positions of a model, and tokens of a sequence (--max-len and everything that is counted in
// tokens of one sequence).
inline constexpr int64_t kPositions = int64_t{1} << 30;
inline constexpr int64_t kSequenceTokens = int64_t{1} << 40;

}  // namespace limits

// Product and sum of byte counts and sizes. `what` names the quantity. Throws InvalidInput
// "[what] found a size beyond 9223372036854775807 bytes, expected less" where the result does not
// fit.
int64_t CheckedProduct(const char* what, std::initializer_list<int64_t> factors);
int64_t CheckedSum(const char* what, std::initializer_list<int64_t> terms);

}  // namespace pmkvq
